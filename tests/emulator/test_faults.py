"""Each fault happens: to whom, when and as often as it was asked for."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from gateway.emulator import Emulator, Fault
from gateway.emulator.faults import FaultBook, Faults
from gateway.emulator.tokens import word_for
from gateway.errors import ConfigError
from tests.emulator.conftest import Starter
from tests.emulator.wire import (
    FLUX,
    LISTEN,
    call,
    dial,
    heard,
    read,
    read_for,
    results,
    said,
    send,
    texts,
    transcribe,
    until,
)

SILENCE = b"\xff" * 8000
INTERIMS = f"{LISTEN}&interim_results=true"


async def ended(emulator: Emulator, how: str) -> None:
    """Wait until the last connection is over, and check how."""
    await until(lambda: emulator.connections[-1].closed_at)
    assert (emulator.connections[-1].ended_by, emulator.connections[-1].ended_how) == ("emulator", how)


async def test_close_after_bytes(start: Starter) -> None:
    """A close frame with code and reason once so many bytes have come, here after a Metadata."""
    fault = Fault("close", after_bytes=4000, code=1012, reason="restarting", metadata_first=True)
    emulator = await start(faults=(fault,))
    async with dial(emulator) as ws:
        await send(ws, SILENCE[:3200])
        assert await read_for(ws, 0.05) == []
        await ws.send(SILENCE[:800])
        assert [m["type"] for m in await read(ws)] == ["Metadata"]
    assert (ws.close_code, ws.close_reason) == (1012, "restarting")
    assert emulator.connections[0].audio_bytes == 4000
    await ended(emulator, "close-frame")


async def test_close_after_audio_and_without_a_status(start: Starter) -> None:
    """Seconds of audio are a trigger too; code 0 sends a close frame without a code."""
    emulator = await start(faults=(Fault("close", after_audio=0.5, code=0),))
    async with dial(emulator) as ws:
        await send(ws, SILENCE[:4000])
        await read(ws)
    assert ws.close_code == 1005


@pytest.mark.parametrize("kind", ["reset", "fin"])
async def test_the_connection_is_cut(start: Starter, kind: Any) -> None:
    """RST and FIN both end it without a close frame; only the RST is an error of the network."""
    emulator = await start(faults=(Fault(kind, after_seconds=0.1),))
    async with dial(emulator) as ws:
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.recv()
    assert ws.close_code == 1006
    assert isinstance(caught.value.__cause__, ConnectionResetError) is (kind == "reset")
    await ended(emulator, kind)


async def test_half_open(start: Starter) -> None:
    """Nothing comes and nothing is read, not even a ping; TCP stays."""
    emulator = await start(faults=(Fault("half-open", after_bytes=8000),))
    async with dial(emulator) as ws:
        await send(ws, SILENCE)
        await send(ws, SILENCE)
        pong = asyncio.ensure_future(await ws.ping())
        assert await read_for(ws, 0.1) == []
        assert not pong.done()
        assert emulator.connections[0].audio_bytes == 8000
        assert emulator.connections[0].open
        ws.transport.abort()


async def test_stop_reading_and_resume(start: Starter) -> None:
    """What is sent meanwhile waits in TCP, and is read when the fault is over."""
    emulator = await start(faults=(Fault("stop-reading", after_bytes=1600, lasts=0.2),))
    async with dial(emulator) as ws:
        await ws.send(SILENCE[:1600])
        await asyncio.sleep(0.05)
        await ws.send(SILENCE[:1600])
        await asyncio.sleep(0.05)
        assert emulator.connections[0].audio_bytes == 1600
        await asyncio.sleep(0.2)
        assert emulator.connections[0].audio_bytes == 3200
        await ws.send(b"")
        assert (await read(ws))[-1]["type"] == "Metadata"


async def test_mute(start: Starter) -> None:
    """Audio is taken and pings are answered, but nothing is said until it is over."""
    emulator = await start(silence_window=0.5, faults=(Fault("mute", after_audio=1.0, lasts=0.3),))
    async with dial(emulator) as ws:
        await send(ws, SILENCE * 2)
        await (await ws.ping())
        muted = await read_for(ws, 0.1)
        assert len(muted) == 1
        await asyncio.sleep(0.3)
        await send(ws, SILENCE)
        assert await read_for(ws, 0.1)


async def test_freeze(start: Starter) -> None:
    """The cursor stands still: the last interim again and again."""
    emulator = await start(silence_window=30.0, faults=(Fault("freeze", after_audio=2.0),))
    async with dial(emulator, INTERIMS) as ws:
        for _ in range(6):
            await send(ws, SILENCE)
            await asyncio.sleep(0.01)
        got = [json.loads(text) for text in await read_for(ws, 0.1)]
    durations = [m["duration"] for m in got]
    assert len(durations) >= 4
    assert max(durations) <= 2.0
    assert got[-1] == got[-2]


async def test_slow(start: Starter) -> None:
    """Listening is slower than real time."""
    emulator = await start(time_scale=4.0, faults=(Fault("slow", speed=0.8),))
    began = time.monotonic()
    await transcribe(emulator, SILENCE * 2)
    assert time.monotonic() - began > 0.5


async def test_late(start: Starter) -> None:
    """Results come after a delay."""
    emulator = await start(faults=(Fault("late", delay=0.3),))
    began = time.monotonic()
    assert results(await transcribe(emulator, SILENCE))
    assert time.monotonic() - began > 0.28


async def test_duplicate(start: Starter) -> None:
    """So many results come twice."""
    emulator = await start(silence_window=1.0, faults=(Fault("duplicate", count=2),))
    got = results(await transcribe(emulator, SILENCE * 4))
    assert [m["start"] for m in got] == [0, 0, 1, 1, 2, 3]


async def test_skip(start: Starter) -> None:
    """A stretch of audio is passed over without a word: the windows have a hole."""
    emulator = await start(silence_window=1.0, faults=(Fault("skip", after_audio=2.0, seconds=1.5),))
    async with dial(emulator) as ws:
        for _ in range(6):
            await send(ws, SILENCE)
        await ws.send(b"")
        got = results(await read(ws))
    ends = [m["start"] + m["duration"] for m in got]
    holes = [b["start"] - end for end, b in zip(ends, got[1:], strict=False)]
    assert [hole for hole in holes if hole > 0.01] == [pytest.approx(1.5)]


@pytest.mark.parametrize("oddity", ["nan", "negative", "regressing", "beyond"])
async def test_implausible(start: Starter, oddity: Any) -> None:
    """The next result cannot be true; the one after it can."""
    emulator = await start(silence_window=1.0, faults=(Fault("implausible", after_audio=1.2, oddity=oddity),))
    async with dial(emulator) as ws:
        for _ in range(4):
            await send(ws, SILENCE)
        await ws.send(b"")
        got = results(await read(ws))
    first, odd, third = got[:3]
    assert (first["start"], third["start"]) == (0.0, 2.0)
    assert {
        "nan": math.isnan(odd["start"]),
        "negative": odd["start"] < 0,
        "regressing": odd["start"] + odd["duration"] < 1.0,
        "beyond": odd["start"] > 4.0,
    }[oddity]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("garbage"), "{not json"),
        (Fault("garbage", text="plain"), "plain"),
        (Fault("binary", text="bytes"), b"bytes"),
    ],
)
async def test_nonsense(start: Starter, fault: Fault, expected: str | bytes) -> None:
    """Text that is no JSON, or a binary message, and the stream goes on."""
    emulator = await start(faults=(fault,))
    async with dial(emulator) as ws:
        assert await ws.recv() == expected
        await ws.send(b"")
        assert (await read(ws))[-1]["type"] == "Metadata"


async def test_unknown_type(start: Starter) -> None:
    """A message of a type that nobody knows."""
    emulator = await start(faults=(Fault("unknown-type"),))
    async with dial(emulator) as ws:
        assert json.loads(await ws.recv())["type"] == "Surprise"


async def test_oversized(start: Starter) -> None:
    """A message above the usual limit of 1 MiB ends it on the client's side."""
    emulator = await start(faults=(Fault("oversized"),))
    async with dial(emulator) as ws:
        with pytest.raises(ConnectionClosed):
            await ws.recv()
    await until(lambda: emulator.connections[0].close_code == 1009)


async def test_death_on_close_stream(start: Starter) -> None:
    """Dead before the tail, or between the tail and the Metadata."""
    emulator = await start(
        faults=(Fault("reset", at="close-stream", nth=1), Fault("reset", at="metadata", nth=2))
    )
    assert await transcribe(emulator, SILENCE) == []
    got = await transcribe(emulator, SILENCE)
    assert {m["type"] for m in got} <= {"Results"}
    assert emulator.connections[1].sent_count == 1
    assert (await transcribe(emulator, SILENCE))[-1]["type"] == "Metadata"


async def test_death_on_finalize_and_first_audio(start: Starter) -> None:
    """Other moments of the protocol."""
    emulator = await start(faults=(Fault("fin", at="finalize", nth=1), Fault("fin", at="audio", nth=2)))
    for poke in ('{"type":"Finalize"}', b"\xff"):
        async with dial(emulator) as ws:
            await ws.send(poke)
            assert await read(ws) == []
        assert ws.close_code == 1006


async def test_accept_then_die(start: Starter) -> None:
    """Without a trigger it comes right behind the 101."""
    emulator = await start(faults=(Fault("close", code=1011, times=2),))
    for _ in range(2):
        async with dial(emulator) as ws:
            assert await read(ws) == []
        assert ws.close_code == 1011
    assert (await transcribe(emulator, SILENCE))[-1]["type"] == "Metadata"


async def test_poison(start: Starter) -> None:
    """One word kills every connection that hears it, wherever it stands in its audio."""
    audio, tokens = call(6)
    emulator = await start(faults=(Fault("reset", when_word=word_for(tokens[3].id)),))
    for begin in (0, tokens[1].start_sample):
        async with dial(emulator) as ws:
            await send(ws, audio[begin:])
            assert texts(await read(ws))[-1:] != [word_for(tokens[3].id)]
        assert ws.close_code == 1006
    got = await transcribe(emulator, audio[tokens[4].start_sample :])
    assert heard(got) == said(tokens)[4:]


async def test_refuse(start: Starter) -> None:
    """Some attempts are refused, and then no more."""
    emulator = await start(faults=(Fault("refuse", status=503, retry_after=1, times=2),))
    for _ in range(2):
        with pytest.raises(InvalidStatus) as caught:
            await dial(emulator)
        assert caught.value.response.headers["retry-after"] == "1"
        assert "error_code" in json.loads(caught.value.response.body)
    async with dial(emulator):
        assert len(emulator.refusals) == 2
        assert [record.attempt for record in emulator.connections] == [3]


async def test_only_the_nth(start: Starter) -> None:
    """A fault for the second attempt spares the others."""
    emulator = await start(faults=(Fault("reset", nth=2, after_bytes=1),))
    ends = [bool(await transcribe(emulator, SILENCE)) for _ in range(3)]
    assert ends == [True, False, True]


async def test_only_that_one(start: Starter) -> None:
    """A fault for a connection by its id, set while it is open."""
    emulator = await start()
    async with dial(emulator) as first, dial(emulator) as second:
        emulator.patch(faults=(Fault("close", connection=emulator.connections[1].id),))
        await read(second)
        assert second.close_code == 1011
        await first.send(b"")
        assert (await read(first))[-1]["type"] == "Metadata"


async def test_act(start: Starter) -> None:
    """Actions strike open connections at once: one, or all."""
    emulator = await start()
    async with dial(emulator) as first, dial(emulator) as second:
        assert emulator.act("close", connection=emulator.connections[0], code=4000, reason="now") == 1
        await read(first)
        assert (first.close_code, first.close_reason) == (4000, "now")
        assert emulator.act("reset") == 1
        await read(second)
        assert second.close_code == 1006
    with pytest.raises(ConfigError):
        async with dial(emulator):
            emulator.act("unheard-of")


@pytest.mark.parametrize("kind", ["half-open", "stop-reading"])
async def test_a_fault_does_not_time_out(start: Starter, kind: Any) -> None:
    """The quiet that a fault makes is not held against the client."""
    emulator = await start(net0001_after=0.1, faults=(Fault(kind, lasts=0.4),))
    async with dial(emulator) as ws:
        assert await read_for(ws, 0.3) == []
        await ws.send('{"type":"KeepAlive"}')
        await asyncio.sleep(0.15)
        await ws.send(b"")
        assert [m["type"] for m in await read(ws)] == ["Metadata"]
        assert ws.close_code == 1000


async def test_act_half_open_and_resume(start: Starter) -> None:
    """A half-open connection can be brought back."""
    emulator = await start()
    async with dial(emulator) as ws:
        emulator.act("half-open")
        pong = await ws.ping()
        assert await read_for(ws, 0.05) == []
        emulator.act("resume")
        await asyncio.wait_for(pong, 1)
        await ws.send(b"")
        assert (await read(ws))[-1]["type"] == "Metadata"


async def test_flux_error(start: Starter) -> None:
    """Flux tells of its own end."""
    emulator = await start(faults=(Fault("flux-error", after_bytes=1),))
    async with dial(emulator, FLUX, "/v2/listen") as ws:
        await ws.send(b"\xff")
        got = await read(ws)
    assert [m["type"] for m in got] == ["Connected", "Error"]
    assert ws.close_code == 1011


def test_times_are_shared_and_spent() -> None:
    """A fault for one of many strikes once, whoever meets it first."""
    book = FaultBook((Fault("mute", times=1, after_bytes=10), Fault("slow", nth=2)))
    one, two = Faults(1), Faults(1)
    one.arm(book.matching(1, "a"), 0.0, 8000)
    two.arm(book.matching(2, "b"), 0.0, 8000)
    assert [fault.kind for fault in two.at_open(0.0)] == ["slow"]
    assert one.at_bytes(9, 0.0) == []
    assert [fault.kind for fault in one.at_bytes(10, 0.0)] == ["mute"]
    assert two.at_bytes(100, 0.0) == []
