"""Audio with a header, as browsers and files bring it, over connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.emulator import Fault
from gateway.emulator.containers import PACKET_MS, packets_of
from gateway.emulator.sound import Format
from tests.fakes.muxer import cluster, ogg, ogg_header, wav_header, webm, webm_header
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    read_until,
    words,
)
from tests.integration.test_lost_upstream import SESSION, ended_well, tiled
from tests.integration.test_transparency import BRISK_WINDOWS

SAMPLES = Path(__file__).parents[1] / "audio" / "samples"
QUERY = "model=nova-3&interim_results=true"
DROPPED = 52 / 8000  # seconds that decoders leave out at the beginning
SENT_BYTES = 400  # in a message: it ends anywhere
PAUSE = 0.006  # seconds between two messages; they last about 0.05, so that results come before a break


def browser(audio: bytes) -> bytes:
    """As MediaRecorder does it with a time slice of 0.4 s."""
    return webm(packets_of(audio))


def small_pages(audio: bytes) -> bytes:
    return ogg(packets_of(audio))


MUX: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "ogg": (small_pages, ogg_header()),
    "webm": (browser, webm_header()),
}


async def speak(
    stand: Stand, stream: bytes, *faults: Fault, query: str = QUERY, continuity: str = "best_effort"
) -> tuple[list[dict[str, Any]], Any, str]:
    """A call over these faults: what the client was told, the emulator, the request id."""
    emulator = await stand.emulator(faults=faults, **BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session={**SESSION, "preroll": 0.5})  # the calls are short
    async with dial(gateway, query) as ws:
        assert ws.response is not None
        assert ws.response.headers["gw-continuity"] == continuity
        for at in range(0, len(stream), SENT_BYTES):
            await ws.send(stream[at : at + SENT_BYTES])
            await asyncio.sleep(PAUSE)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws, 20)
        assert ws.close_code == 1000
    await eventually(lambda: gateway.metrics.deepgram_connections == 0)
    return messages, emulator, ws.response.headers["dg-request-id"]


@pytest.mark.parametrize("name", MUX)
@pytest.mark.parametrize("at", [1, 3000, 12_000, 17_345, 23_000])
async def test_no_word_is_lost_in_a_container(stand: Stand, name: str, at: int) -> None:
    """Nor doubled: each connection begins with the header and goes on at a page or block (faults.md 44)."""
    mux, header = MUX[name]
    audio, said = call(25)
    stream = mux(audio)
    messages, emulator, request_id = await speak(stand, stream, Fault("reset", nth=1, after_bytes=at))
    assert words(messages) == said
    assert at < 12_000 or emulator.connections[1].audio_bytes < len(stream) - (at - 9000)
    seconds = -(-len(audio) // (PACKET_MS * 8)) * PACKET_MS / 1000 - DROPPED
    assert not [m for m in messages if "gaps" in m.get("gateway", {})]
    tiled(messages, seconds)
    ended_well(messages, request_id, seconds)
    first, *rest = emulator.connections
    assert stream.startswith(first.audio)
    assert rest
    for record in rest:
        assert record.audio.startswith(header)
        rest = record.audio[len(header) :]
        assert stream.endswith(rest) or stream.endswith(rest[len(cluster(b"", 0)) :])


@pytest.mark.parametrize("name", MUX)
async def test_three_breaks(stand: Stand, name: str) -> None:
    """Also while what was owed is being sent again; what is final is not kept for ever."""
    mux, _ = MUX[name]
    audio, said = call(60)
    faults = (Fault("reset", nth=n, after_bytes=16_000) for n in (1, 2, 3))
    messages, emulator, _ = await speak(stand, mux(audio), *faults)
    assert words(messages) == said
    assert len(emulator.connections) == 4
    assert len(emulator.connections[3].audio) < len(mux(audio)) * 0.6


async def test_ogg_by_its_encoding(stand: Stand) -> None:
    """`encoding=ogg-opus` says no more than the bytes do."""
    audio, said = call(20)
    query = f"{QUERY}&encoding=ogg-opus&sample_rate=48000"
    reset = Fault("reset", nth=1, after_bytes=15_000)
    messages, _, _ = await speak(stand, small_pages(audio), reset, query=query)
    assert words(messages) == said


@pytest.mark.parametrize("name", ["tone.ogg", "tone.webm"])
async def test_what_a_real_encoder_made(stand: Stand, name: str) -> None:
    """Its silence is tiled to the end, over a break."""
    stream = (SAMPLES / name).read_bytes()
    reset = Fault("reset", nth=1, after_bytes=len(stream) * 2 // 3)
    messages, emulator, _ = await speak(stand, stream, reset)
    (summary,) = of_type(messages, "Metadata")
    assert 4.0 <= summary["duration"] < 4.06
    tiled(messages, summary["duration"])
    assert [record.close_code for record in emulator.connections][1:] == [1000]


@pytest.mark.parametrize(
    ("fmt", "tag", "bits"),
    [(Format("linear16", 16_000), 1, 16), (Format("mulaw", 8000), 7, 8), (Format("linear32", 8000), 3, 32)],
)
async def test_a_wav_is_exact(stand: Stand, fmt: Format, tag: int, bits: int) -> None:
    """Its header is no audio, and goes first on each connection (continuity.md, section 5.10)."""
    audio, said = call(25, fmt=fmt)
    header = wav_header(fmt.sample_rate, tag=tag, bits=bits)
    at = int(1.37 * fmt.bytes_per_second) + 1
    messages, emulator, request_id = await speak(stand, header + audio, Fault("reset", nth=1, after_bytes=at))
    assert words(messages) == said
    tiled(messages, len(audio) / fmt.bytes_per_second)
    ended_well(messages, request_id, len(audio) / fmt.bytes_per_second)
    (_, record) = emulator.connections
    assert record.audio.startswith(header)
    assert audio.endswith(record.audio[len(header) :])
    assert (len(record.audio) - len(header)) % fmt.frame_bytes == 0


async def test_without_a_clock_a_loss_is_declared(stand: Stand) -> None:
    """Packets can't be sent again: the client is told where results stopped (continuity.md I5)."""
    windows = {"window_min": 30.0, "window_max": 40.0, "silence_window": 30.0, "interim_interval": 0.5}
    emulator = await stand.emulator(
        "script", estimated_bytes_per_second=1000, finalize_reply="always", **windows
    )
    gateway = await stand.gateway(emulator.url, session=SESSION)
    async with dial(gateway, f"{QUERY}&endpointing=false&encoding=opus&sample_rate=48000") as ws:
        assert ws.response is not None
        assert ws.response.headers["gw-continuity"] == "none"
        for _ in range(20):
            await ws.send(bytes(100))
        await ws.send('{"type":"Finalize"}')
        told = await read_until(ws, lambda message: bool(message.get("from_finalize")))
        for _ in range(20):
            await ws.send(bytes(100))
        told += await read_until(ws, lambda message: bool(message["start"] + message["duration"] > 3.4))
        emulator.act("reset")
        await eventually(lambda: gateway.metrics.deepgram_connections == 0)
        for _ in range(20):
            await ws.send(bytes(100))
        await ws.send(CLOSE_STREAM)
        told += await read(ws)
    (gap,) = told[-1]["gateway"]["gaps"]
    assert gap["reason"] == "not_replayable"
    assert gap["start"] == pytest.approx(2.0, abs=1e-3)
    assert 3.4 < gap["stop"] <= 4.0
    after = next(m for m in of_type(told, "Results") if "gaps" in m.get("gateway", {}))
    assert (after["is_final"], after["gateway"]["gaps"]) == (True, [gap])
    assert after["start"] == pytest.approx(gap["stop"], abs=1e-3)
    assert told[-1]["gateway"]["incomplete"]
    assert emulator.connections[1].audio_bytes == 2000


async def test_a_call_says_what_may_be_relied_on(stand: Stand) -> None:
    """In the 101, as far as the query tells; in the log and the metrics, as far as the bytes do."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url)
    for query, stream, promised in (
        (LISTEN, b"\xff" * 800, "exact"),
        ("model=nova-3", wav_header(8000) + b"\xff" * 800, "best_effort"),
        ("model=nova-3", browser(b"\xff" * 8000), "best_effort"),
        ("model=nova-3", b"fLaC" + bytes(100), "best_effort"),
        ("model=nova-3&encoding=flac", b"fLaC" + bytes(100), "none"),
    ):
        async with dial(gateway, query) as ws:
            assert ws.response is not None
            assert ws.response.headers["gw-continuity"] == promised
            await ws.send(stream)
            await ws.send(CLOSE_STREAM)
            await read(ws)
    assert gateway.metrics.continuity == {"exact": 2, "best_effort": 1, "none": 2, "other": 0}
    gateway.metrics.render("")
    assert gateway.metrics.client_audio_seconds == pytest.approx(0.1 + 0.1 + 1 - DROPPED, abs=0.01)
