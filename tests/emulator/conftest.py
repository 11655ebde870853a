"""Emulators that stop when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway.emulator import Emulator, Knobs
from gateway.emulator.engines import EngineName

Starter = Callable[..., Awaitable[Emulator]]


@pytest.fixture
async def start() -> AsyncIterator[Starter]:
    """Start emulators with knobs; audio becomes results at once unless a test asks for pace."""
    running: list[Emulator] = []

    async def starter(engine: EngineName = "tokens", **knobs: Any) -> Emulator:
        emulator = Emulator(Knobs(**{"ingest_speed": None, "close_timeout": 1.0, **knobs}), engine)
        await emulator.start()
        running.append(emulator)
        return emulator

    yield starter
    for emulator in running:
        await emulator.stop()
