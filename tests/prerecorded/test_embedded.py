"""The embedded queue looks when there is something to do, and seldom otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import JobsConfig
from gateway.prerecorded import queue
from gateway.prerecorded.embedded import POLL_SECONDS, EmbeddedQueue
from gateway.prerecorded.work import Outcome
from gateway.store.job import Job
from tests.fakes.hosts import Host, Place, done

QUIET = JobsConfig(starts_per_minute=0)


async def test_no_storm_while_nothing_is_due(tmp_path: Path) -> None:
    """A look a second, and one at once for a new job."""
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", QUIET), done)
    assert isinstance(host.queue, EmbeddedQueue)
    looks: list[float] = []
    claim = host.worker.claim

    async def counting(limit: int = 1, job_id: str | None = None) -> list[Job]:
        looks.append(time.monotonic())
        return await claim(limit, job_id)

    host.worker.claim = counting  # type: ignore[method-assign]  # to count what goes through
    await asyncio.sleep(1.5)
    assert len(looks) <= 1.5 / POLL_SECONDS + 1
    began = time.monotonic()
    [job] = await host.submit()
    await host.until_ended([job])
    assert time.monotonic() - began < POLL_SECONDS / 2
    await host.stop()


async def test_a_later_job_is_run_when_it_is_due(tmp_path: Path) -> None:
    """Not a poll later."""
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", QUIET), done)
    [job] = await host.submit(run_at=time.time() + 0.4)
    [ended] = await host.until_ended([job])
    assert ended.ended_at
    assert 0.0 <= ended.ended_at - job.run_at < 0.4
    await host.stop()


async def test_a_defect_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks in one round of feeding, of renewing leases or of looking after jobs ends no other."""
    monkeypatch.setattr(queue, "WATCH_SECONDS", 0.05)
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig(lease=0.3)), slow)
    broken: dict[str, int] = {}
    for name in ("claim", "_renew", "reap"):
        monkeypatch.setattr(host.worker, name, breaking(name, getattr(host.worker, name), broken))
    [job] = await host.submit()
    [ended] = await host.until_ended([job])
    assert (ended.state, ended.attempts) == ("succeeded", 1)
    assert broken == {"claim": 1, "_renew": 1, "reap": 1}
    await host.stop()


async def slow(job: Job) -> Outcome:
    await asyncio.sleep(0.5)
    return await done(job)


def breaking(
    name: str, works: Callable[..., Awaitable[Any]], broken: dict[str, int]
) -> Callable[..., Awaitable[Any]]:
    async def once(*arguments: Any) -> Any:
        if name not in broken:
            broken[name] = 1
            raise ValueError("a defect")
        return await works(*arguments)

    return once
