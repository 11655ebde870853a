"""A short run of tests/chaos/jobs.py: workers die, jobs do not."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos import jobs


@pytest.mark.parametrize("backend", ["embedded", "fleet"])
async def test_killed_workers_lose_nothing(backend: str) -> None:
    """Each job is completed, and told of."""
    asyncio.get_running_loop().set_debug(False)
    found = await jobs.run(300, backend, every=0.8)
    assert (found.completed, found.told, found.lost) == (300, 300, 0)
    assert found.kills
