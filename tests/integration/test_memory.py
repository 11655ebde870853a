"""All calls share one budget of memory: what gives way, and who is left alone (continuity.md I8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.app import Gateway
from gateway.emulator import Fault
from gateway.live import exchange
from gateway.policy.budget import CLOSE_AT, REFUSE_AT, SHRINK_AT
from tests.fakes.stand import (
    CLOSE_STREAM,
    Stand,
    call,
    dial,
    eventually,
    read,
    read_until,
    send,
    transcribe,
    words,
)
from tests.integration.test_transparency import BRISK_WINDOWS

BUDGET = 1_048_576
WIDE = "encoding=linear16&sample_rate=48000"
HEAVY = 5
"""Calls of 96 kB a second whose results never come."""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks often, so that little can come between two looks."""
    monkeypatch.setattr(exchange, "SWEEP_INTERVAL", 0.02)


@contextlib.asynccontextmanager
async def heavy(gateway: Gateway, query: str) -> AsyncIterator[list[ClientConnection]]:
    """Callers who talk, in real time, until the end of the block or of their call."""

    async def talk(ws: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await ws.send(b"\x00" * 9600)
                await asyncio.sleep(0.1)

    async with contextlib.AsyncExitStack() as stack:
        callers = [
            await stack.enter_async_context(dial(gateway, query, close_timeout=0.1)) for _ in range(HEAVY)
        ]
        talking = [asyncio.create_task(talk(ws)) for ws in callers]
        yield callers
        for task in talking:
            task.cancel()
        await asyncio.wait(talking)


def held(gateway: Gateway) -> int:
    """Bytes in all replay buffers, at this moment."""
    return sum(call.held.size for call in gateway._exchange.calls.values())


async def test_the_longest_backlogs_shrink(stand: Stand) -> None:
    """Their oldest audio goes, which is told; a call that works loses none; none begins (faults.md 48)."""
    refusals = tuple(Fault("refuse", nth=n) for n in range(2, 2000))
    emulator = await stand.emulator(faults=refusals, **BRISK_WINDOWS)
    session = {"accept_wait_ms": 50, "backoff_base": 0.2, "backoff_cap": 0.2, "buffer": 60.0}
    gateway = await stand.gateway(emulator.url, server={"buffer_memory": BUDGET}, session=session)
    metrics, (audio, said) = gateway.metrics, call(30)
    async with dial(gateway) as light, heavy(gateway, WIDE) as callers:
        await eventually(lambda: gateway._exchange.is_full, 10)
        assert metrics.replay_buffer_bytes > REFUSE_AT * BUDGET
        with pytest.raises(InvalidStatus) as refused:
            await dial(gateway)
        assert refused.value.response.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) > 0
        await send(light, audio)
        await light.send(CLOSE_STREAM)
        assert words(await read(light)) == said
        await eventually(lambda: metrics.shed["shrunk"] >= HEAVY)
        assert held(gateway) <= CLOSE_AT * BUDGET
        emulator.patch(faults=[])
        for ws in callers:
            told = await read_until(ws, lambda message: "gaps" in message.get("gateway", {}))
            gaps = told[-1]["gateway"]["gaps"]  # more than one where it came down more than once
            assert [gap["start"] for gap in gaps] == [0.0, *(gap["end"] for gap in gaps[:-1])]
            assert {gap["reason"] for gap in gaps} == {"buffer_overflow"}
    assert (metrics.shed["refused"], metrics.shed["closed"]) == (1, 0)
    await eventually(lambda: not gateway._exchange.is_full)
    assert words(await transcribe(gateway, audio)) == said


async def test_the_newest_are_closed_where_nothing_can_shrink(stand: Stand) -> None:
    """With overflow = "pause" no audio is given up: the oldest calls keep theirs, the newest one ends."""
    emulator = await stand.emulator(faults=(Fault("mute"),))
    settings = {"overflow": "pause", "buffer": 60.0}
    gateway = await stand.gateway(emulator.url, server={"buffer_memory": BUDGET}, session=settings)
    async with heavy(gateway, WIDE) as callers:
        *older, newest = callers
        await read(newest)
        assert newest.close_code == 1013
        assert held(gateway) <= SHRINK_AT * BUDGET
        assert [ws.close_code for ws in older] == [None] * (HEAVY - 1)
        assert (gateway.metrics.shed["closed"], gateway.metrics.shed["shrunk"]) == (1, 0)
