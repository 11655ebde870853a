"""Dials that wait for their turn."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.live.gate import DialGate
from gateway.metrics import Metrics


async def turns(gate: DialGate, count: int) -> list[float]:
    """When each of `count` dials got its turn, in seconds from now."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def dial() -> float:
        await gate.turn(is_new=False)
        return loop.time() - start

    return list(await asyncio.gather(*(dial() for _ in range(count))))


async def test_turns_come_at_the_rate() -> None:
    """A second's worth at once, the rest one by one; numbers say who waits and how long."""
    metrics = Metrics(["r0"], "0")
    gate = DialGate(20, metrics)
    waiting = asyncio.create_task(turns(gate, 26))
    await asyncio.sleep(0.02)
    assert metrics.dials_waiting == 6
    times = await waiting
    assert all(time >= 0.05 * n - 0.005 for n, time in enumerate(times[19:])), "none before its time"
    assert max(times) < 1.0
    assert metrics.dials_waiting == 0
    assert sum(metrics.dial_wait.counts) == 26
    assert 0.5 < metrics.dial_wait.sum < sum(times) + 0.1


async def test_who_gives_up_takes_no_turn() -> None:
    """A call that ends while it waits leaves its place to the next one."""
    metrics = Metrics(["r0"], "0")
    gate = DialGate(1, metrics)
    await turns(gate, 1)
    leaving = [asyncio.create_task(turns(gate, 1)) for _ in range(50)]
    staying = asyncio.create_task(turns(gate, 1))
    await asyncio.sleep(0.01)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    assert metrics.dials_waiting == 1
    assert (await staying)[0] < 3.0
    assert sum(metrics.dial_wait.counts) == 2


async def test_a_turn_that_comes_too_late() -> None:
    """Its call ended in the very moment: nothing happens."""
    gate = DialGate(5, Metrics(["r0"], "0"))
    await turns(gate, 5)
    leaving = asyncio.create_task(turns(gate, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.25)  # noqa: ASYNC251 - so that the turn has come and the timer has not run yet
    leaving.cancel()
    gate._release()
    with pytest.raises(asyncio.CancelledError):
        await leaving
