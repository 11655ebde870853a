"""Every call loses Deepgram in the same moment: the way back is a queue, no stampede (faults.md 18)."""

from __future__ import annotations

import asyncio
import itertools

from gateway.emulator import Emulator
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    send,
    transcribe,
    words,
)
from tests.integration.test_transparency import BRISK_WINDOWS

CALLS = 40
RATE = 20.0
"""Dials per second, and how many may go at once."""
LATE = 0.1
"""Seconds by which the emulator may see a dial later than another."""


def dialled_at(emulator: Emulator, tag: str = "") -> list[float]:
    """When the connections came whose query holds `tag`, in order; in seconds."""
    return sorted(record.opened_at for record in emulator.connections if tag in record.query)


def keeps_to_the_rate(times: list[float]) -> None:
    """No stretch of time holds more dials than it may."""
    for (i, start), (j, stop) in itertools.combinations(enumerate(times), 2):
        assert j - i + 1 <= RATE * (stop - start + LATE) + RATE, f"{j - i + 1} dials in {stop - start:.2f} s"


async def test_all_calls_at_once(stand: Stand) -> None:
    """Redials keep to the rate, a new call does not wait behind them, and no call loses a word."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, deepgram={"max_dials_per_second": RATE})
    over = asyncio.Event()
    audio, said = call(12)
    more, said_more = call(8, 2)

    async def one() -> None:
        async with dial(gateway, f"{LISTEN}&tag=old") as ws:
            await send(ws, audio)
            await over.wait()
            await send(ws, more)
            await ws.send(CLOSE_STREAM)
            messages = await read(ws, 20)
        assert words(messages) == said + said_more
        assert len(of_type(messages, "Metadata")) == 1

    calls = [asyncio.create_task(one()) for _ in range(CALLS)]
    await eventually(lambda: sum(r.audio_bytes for r in emulator.connections) == CALLS * len(audio), 15)
    await asyncio.sleep(1.0)  # so that the burst is there again
    before = len(emulator.connections)
    emulator.act("reset")
    over.set()
    await eventually(lambda: gateway.metrics.dials_waiting > CALLS / 4)
    newcomer = asyncio.create_task(transcribe(gateway, more, f"{LISTEN}&tag=new"))
    await asyncio.gather(*calls)
    assert words(await newcomer) == said_more
    assert len(emulator.connections) == before + CALLS + 1
    keeps_to_the_rate(dialled_at(emulator)[before:])
    (new,) = dialled_at(emulator, "tag=new")
    assert dialled_at(emulator, "tag=old")[-1] - new > 0.3, "it did not wait for all of them"
    assert gateway.metrics.dials_waiting == 0
    assert sum(gateway.metrics.dial_wait.counts) == before + CALLS + 1
