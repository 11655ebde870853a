"""Deepgram never gets audio faster than 1.25 times real time, however fast it comes (continuity.md I10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from gateway.emulator import ConnectionRecord
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Stand,
    call,
    dial,
    eventually,
    read,
    send,
    words,
)

RATE = 8000
WINDOW = 5.0


class Arrivals:
    """When each message of audio came to an emulator's connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: list[tuple[float, int]] = []
        kept = ConnectionRecord.keep_audio

        def keep(record: ConnectionRecord, data: bytes, keep: bool) -> None:
            self.at.append((time.monotonic(), len(data)))
            kept(record, data, keep)

        monkeypatch.setattr(ConnectionRecord, "keep_audio", keep)


def most_ahead(arrivals: Sequence[tuple[float, int]]) -> float:
    """The most seconds of audio, beyond 1.25 times the time, that came in any window of at most 5 s."""
    worst = 0.0
    for first, (start, _) in enumerate(arrivals):
        total = 0
        for at, size in arrivals[first:]:
            if at - start > WINDOW:
                break
            total += size
            worst = max(worst, total / RATE - 1.25 * (at - start))
    return worst


async def test_a_file_at_wire_speed_is_slowed(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP holds the sender back: its socket fills, memory here does not, nothing is lost (faults.md 33)."""
    arrivals = Arrivals(monkeypatch)
    emulator = await stand.emulator(capture_audio=True)
    gateway = await stand.gateway(emulator.url)
    audio, said = call(40)
    audio += b"\xff" * (7 * RATE - len(audio))
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with dial(gateway) as ws:
        await send(ws, audio, 1600)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
    took = loop.time() - start
    (record,) = emulator.connections
    assert record.audio == audio
    assert words(messages) == said
    assert took > (len(audio) / RATE - 1.0) / 1.25 - 0.1
    assert took < len(audio) / RATE
    assert most_ahead(arrivals.at) < 1.0 + 0.25  # a message may be 250 ms long
    assert gateway.metrics.client_throttled_seconds > 0


async def test_a_client_ahead_is_not_read(stand: Stand) -> None:
    """What a sender may be ahead is bounded: a burst, and what the kernels hold."""
    emulator = await stand.emulator(capture_audio=False)
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway, write_limit=4096) as ws:
        sending = asyncio.create_task(send(ws, b"\xff" * RATE * 600, 1600))
        await asyncio.sleep(1.0)
        (session,) = [live.session for live in gateway._exchange.calls.values()]
        assert not session.reading
        # One second of burst, one of time at 1.25, and what one read of the socket may bring.
        assert session.stream.uplink.received < 2.25 * RATE + 300_000
        received = session.stream.uplink.received
        await asyncio.sleep(0.3)
        assert session.stream.uplink.received - received < RATE
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        ws.transport.abort()
    # That it is gone is known when it is read again: after the first read, 128 KiB or so, was paid for.
    await eventually(lambda: not gateway._exchange.calls, 20)


async def test_real_time_is_never_held_up(stand: Stand) -> None:
    """A client that speaks in real time is read all the time."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    loop = asyncio.get_running_loop()
    async with dial(gateway) as ws:
        start = loop.time()
        for number in range(50):
            await ws.send(b"\xff" * 160)
            await asyncio.sleep(max(0.0, start + 0.02 * (number + 1) - loop.time()))
        await eventually(lambda: emulator.connections[0].audio_bytes == 8000)
        assert gateway.metrics.client_throttled_seconds == 0


async def test_compressed_audio_has_no_pace(stand: Stand) -> None:
    """Without a byte clock what comes goes up at once."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    loop = asyncio.get_running_loop()
    async with dial(gateway, "encoding=opus&sample_rate=48000") as ws:
        start = loop.time()
        await send(ws, b"o" * 1_000_000, 10_000)
        await eventually(lambda: emulator.connections[0].audio_bytes == 1_000_000)
        assert loop.time() - start < 3
        await ws.send(CLOSE_STREAM)
        await read(ws)


async def test_a_late_upstream_is_caught_up_at_the_pace(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited for the dial goes up in pieces of 100 ms, no faster than catch_up_pace."""
    arrivals = Arrivals(monkeypatch)
    emulator = await stand.emulator(handshake_delay=2.0)
    gateway = await stand.gateway(emulator.url, session={"accept_wait_ms": 50})
    audio = b"\xff" * 3 * RATE
    async with dial(gateway, LISTEN) as ws:
        await send(ws, audio)
        await eventually(
            lambda: emulator.connections and emulator.connections[0].audio_bytes == len(audio), 10
        )
        await ws.send(CLOSE_STREAM)
        await read(ws)
    assert most_ahead(arrivals.at) < 1.0 + 0.25
    assert max(size for _, size in arrivals.at) <= 2000
