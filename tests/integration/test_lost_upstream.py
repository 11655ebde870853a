"""Deepgram goes away in the middle of a call: the client sees a pause, and every word once."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from gateway.emulator import Fault
from gateway.emulator.sound import Format
from gateway.emulator.tokens import Manner, interleave
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
    words,
)
from tests.integration.test_transparency import BRISK_WINDOWS

QUERY = f"{LISTEN}&interim_results=true"
SESSION = {"backoff_base": 0.05, "backoff_cap": 0.1}


def tiled(messages: list[dict[str, Any]], seconds: float, channel: int = 0) -> None:
    """Finals follow one another from 0 to the end, without hole or overlap (continuity.md I2)."""
    finals = [m for m in of_type(messages, "Results") if m["is_final"] and m["channel_index"][0] == channel]
    at = 0.0
    for message in finals:
        assert message["start"] == pytest.approx(at, abs=2e-4)
        at = message["start"] + message["duration"]
        spoken = message["channel"]["alternatives"][0]["words"]
        assert all(message["start"] - 1e-3 <= w["start"] <= w["end"] <= at + 1e-3 for w in spoken)
    assert at == pytest.approx(seconds, abs=2e-4)


def ended_well(messages: list[dict[str, Any]], request_id: str, seconds: float) -> None:
    """One Metadata for the whole call, one request id throughout."""
    (summary,) = of_type(messages, "Metadata")
    assert messages[-1] == summary
    assert summary["duration"] == pytest.approx(seconds, abs=1e-3)
    ids = {
        m.get("request_id") or m["metadata"]["request_id"] for m in messages if m["type"] != "SpeechStarted"
    }
    assert ids == {request_id}


async def speak(stand: Stand, *faults: Fault, count: int = 25) -> None:
    """A call over these faults that must end with every token once."""
    emulator = await stand.emulator(faults=faults, **BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session=SESSION)
    audio, said = call(count)
    async with dial(gateway, QUERY) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws, 20)
        assert ws.close_code == 1000
        assert ws.response is not None
        request_id = ws.response.headers["dg-request-id"]
    assert words(messages) == said
    tiled(messages, len(audio) / 8000)
    ended_well(messages, request_id, len(audio) / 8000)
    assert len(emulator.connections) > 1
    assert sum(record.audio_bytes for record in emulator.connections) >= len(audio)
    await eventually(lambda: gateway.metrics.deepgram_connections == 0)


async def test_a_connection_is_rotated(stand: Stand) -> None:
    """Its last final comes with the order to dial the next: nothing of that may go wrong."""
    emulator = await stand.emulator(**{**BRISK_WINDOWS, "short_final": 0.0})
    gateway = await stand.gateway(emulator.url, session={**SESSION, "rotate": 0.2})
    audio, said = call(25, manner=Manner(burst_ms=(72, 90), gap_ms=(300, 400), lead_ms=20, tail_ms=60))
    async with dial(gateway, QUERY) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws, 20)
    assert words(messages) == said
    tiled(messages, len(audio) / 8000)
    assert len(emulator.connections) > 1


@pytest.mark.parametrize("at", [1, 799, 4000, 12_345, 20_000])
async def test_a_reset_after_so_many_bytes(stand: Stand, at: int) -> None:
    """Wherever it strikes, also in the middle of a word (faults.md 1)."""
    await speak(stand, Fault("reset", nth=1, after_bytes=at))


@pytest.mark.parametrize("kind", ["reset", "fin", "close"])
async def test_ways_to_go(stand: Stand, kind: str) -> None:
    """A reset, an end without a word, a close frame: the same for the client."""
    await speak(stand, Fault(kind, nth=1, after_audio=1.0))  # type: ignore[arg-type] # the three are kinds


@pytest.mark.parametrize(("code", "reason"), [(1011, "NET-0000"), (1011, "NET-0001"), (1000, ""), (1001, "")])
async def test_closes_are_not_believed(stand: Stand, code: int, reason: str) -> None:
    """A close before CloseStream is a break whatever its code, also with Metadata before it (M3)."""
    await speak(stand, Fault("close", nth=1, after_audio=1.0, code=code, reason=reason, metadata_first=True))


async def test_three_breaks_in_a_row(stand: Stand) -> None:
    """Also while what was owed is being sent again (faults.md 26)."""
    faults = (Fault("reset", nth=n, after_audio=0.7) for n in (1, 2, 3))
    await speak(stand, *faults)


async def test_a_break_right_after_the_101(stand: Stand) -> None:
    """A connection that dies young, twice, then one that lives (faults.md 7)."""
    await speak(stand, Fault("close", nth=1, code=1011), Fault("reset", nth=2), count=10)


async def test_a_break_while_a_redial_is_refused(stand: Stand) -> None:
    """429 and 503 in the middle of a call are waited out (faults.md 10)."""
    refusals = (Fault("refuse", nth=2, status=503), Fault("refuse", nth=3, status=429))
    await speak(stand, Fault("reset", nth=1, after_audio=1.0), *refusals)


@pytest.mark.parametrize("moment", ["close-stream", "metadata"])
@pytest.mark.parametrize("kind", ["reset", "fin"])
async def test_a_break_at_the_end(stand: Stand, moment: Any, kind: Any) -> None:
    """CloseStream was said but not answered: it is said again, on a new connection (faults.md 27)."""
    await speak(stand, Fault(kind, nth=1, at=moment))


async def test_a_break_at_finalize(stand: Stand) -> None:
    """A Finalize whose answer was lost is said again: at its place, and answered once (continuity.md I11)."""
    emulator = await stand.emulator(faults=(Fault("reset", nth=1, at="finalize"),), **BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session=SESSION)
    audio, said = call(12)
    async with dial(gateway, QUERY) as ws:
        await send(ws, audio)
        await ws.send('{"type":"Finalize"}')
        await eventually(lambda: len(emulator.connections) == 2)
        await send(ws, b"\xff" * 4000)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
    assert words(messages) == said
    finalized = [m for m in of_type(messages, "Results") if m["from_finalize"]]
    assert [m["start"] + m["duration"] for m in finalized] == [pytest.approx(len(audio) / 8000, abs=1e-3)]


async def test_what_was_configured_is_configured_again(stand: Stand) -> None:
    """A new connection begins with the query: Configure goes up once more."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session=SESSION)
    audio, said = call(12)
    configure = '{"type":"Configure","keyterms":["a"]}'
    async with dial(gateway, QUERY) as ws:
        await ws.send(configure)
        assert json.loads(await ws.recv())["type"] == "ConfigureSuccess"
        await send(ws, audio[:8000])
        await eventually(lambda: emulator.connections[0].audio_bytes == 8000)
        emulator.act("reset")
        await send(ws, audio[8000:])
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws)) == said
    assert [record.texts[0] for record in emulator.connections] == [configure, configure]


async def test_two_channels(stand: Stand) -> None:
    """Channels have windows of their own; what is sent again begins where the one that is behind needs it.

    No word is lost on either. The channel that was ahead hears its last ones again.
    """
    emulator = await stand.emulator(faults=(Fault("reset", nth=1, after_audio=1.1),), **BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session=SESSION)
    fmt = Format("linear16", 8000)
    (left, said_left), (right, said_right) = call(14, 1, fmt), call(10, 2, fmt)
    audio = interleave([left, right], fmt)
    query = "encoding=linear16&sample_rate=8000&channels=2&multichannel=true"
    async with dial(gateway, query) as ws:
        await send(ws, audio, 1111)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
    for channel, said in ((0, said_left), (1, said_right)):
        heard = iter(words(messages, channel))
        assert all(token in heard for token in said), "a word is missing or out of order"
    assert messages[-1]["duration"] == pytest.approx(len(audio) / 32_000, abs=1e-3)


async def test_a_call_that_is_idle_meanwhile(stand: Stand) -> None:
    """Nothing is owed: nobody is dialled until the client speaks again, and the clock goes on."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session=SESSION)
    audio, _ = call(8)
    more, said_more = call(8, 2)
    async with dial(gateway, QUERY) as ws:
        await send(ws, audio)
        await ws.send('{"type":"Finalize"}')
        async with asyncio.timeout(5):
            while not json.loads(await ws.recv()).get("from_finalize"):
                pass
        emulator.act("reset")
        await asyncio.sleep(0.2)
        assert len(emulator.connections) == 1
        await send(ws, more)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
        assert ws.close_code == 1000
    assert words(messages) == said_more
    assert emulator.connections[0].audio == audio
    assert emulator.connections[1].audio.endswith(more), "after a pre-roll of what is final already"
    first = of_type(messages, "Results")[0]
    assert first["start"] == pytest.approx(len(audio) / 8000, abs=1e-3)
    assert messages[-1]["duration"] == pytest.approx(len(audio + more) / 8000, abs=1e-3)


async def test_garbage_is_deepgrams_to_judge(stand: Stand) -> None:
    """Bytes that are no audio, or not of the encoding that was said, go up as they came (faults.md 35)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session=SESSION)
    for query in (LISTEN, "encoding=linear16&sample_rate=16000", "encoding=opus&sample_rate=48000", ""):
        garbage = random.Random(query).randbytes(7_777)
        async with dial(gateway, query) as ws:
            await send(ws, garbage)
            await ws.send(CLOSE_STREAM)
            await read(ws)
            assert ws.close_code == 1000
        assert emulator.connections[-1].audio == garbage


async def test_poison_ends_the_call(stand: Stand) -> None:
    """Audio that is refused twice at the same place is not sent a third time (faults.md 6, 35)."""
    why = "DATA-0000: the payload cannot be decoded as audio"
    poison = Fault("close", after_bytes=4000, code=1008, reason=why)
    emulator = await stand.emulator(faults=(poison,), window_min=3, window_max=5)
    gateway = await stand.gateway(emulator.url, session=SESSION)
    async with dial(gateway) as ws:
        await send(ws, b"\x00" * 8000)
        await read(ws)
        assert (ws.close_code, ws.close_reason) == (1008, why)
    assert len(emulator.connections) == 2


async def test_others_notice_nothing(stand: Stand) -> None:
    """A break belongs to its call alone (continuity.md I16)."""
    emulator = await stand.emulator(faults=(Fault("reset", nth=1, after_audio=0.5),), **BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session=SESSION)
    audio, said = call(10)
    async with dial(gateway) as broken, dial(gateway) as whole:
        for ws in (broken, whole):
            await send(ws, audio)
            await ws.send(CLOSE_STREAM)
        assert words(await read(broken)) == said
        assert words(await read(whole)) == said
    assert [len(record.audio) for record in emulator.connections[1:2]] == [len(audio)]


async def test_interims_that_the_client_does_not_want(stand: Stand) -> None:
    """`force_interims`: Deepgram is asked for them, a mute connection shows; the client gets none."""
    emulator = await stand.emulator(faults=(Fault("mute", nth=1, after_audio=1.0),), **BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session={**SESSION, "force_interims": True, "stall": 3})
    audio, said = call(30)
    async with dial(gateway, LISTEN) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws, 40)
    assert words(messages) == said
    assert all(message["is_final"] for message in of_type(messages, "Results"))
    assert len(emulator.connections) == 2
    assert all("interim_results=true" in record.query for record in emulator.connections)
