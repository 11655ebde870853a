"""A Deepgram that talks nonsense does not end a call (faults.md 23)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.emulator import Fault
from tests.fakes.stand import CLOSE_STREAM, Stand, call, dial, eventually, of_type, read, send, words
from tests.integration.test_transparency import BRISK_WINDOWS


async def run(stand: Stand, fault: Fault, **options: Any) -> tuple[Any, list[Any], int]:
    """A call over one fault, every word of it heard; its messages and how many connections it took."""
    emulator = await stand.emulator(faults=(fault,), **BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session={"backoff_base": 0.05}, **options)
    audio, said = call()
    async with dial(gateway, max_size=None) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
        assert ws.close_code == 1000
    assert words(messages) == said
    await eventually(lambda: gateway.metrics.sessions_active == 0)
    return gateway, messages, len(emulator.connections)


@pytest.mark.parametrize(
    "text",
    [
        "{not json",
        "",
        "[1,2]",
        "null",
        '{"no":"type"}',
        '{"type":7}',
        '{"type":"Results","a":NaN}',
        '{"type":' + "[" * 50_000,
    ],
)
async def test_nonsense_is_counted_and_skipped(stand: Stand, text: str) -> None:
    """What is no JSON object with a type is dropped; the call goes on, on the same connection."""
    gateway, messages, connections = await run(stand, Fault("garbage", after_audio=0.3, text=text))
    assert connections == 1
    assert gateway.metrics.upstream_bad_messages == 1
    assert {m["type"] for m in messages} == {"Results", "Metadata"}


async def test_unknown_types_pass(stand: Stand) -> None:
    """What Deepgram may invent is the client's to understand, with the client's request id."""
    _, messages, connections = await run(stand, Fault("unknown-type", after_audio=0.3))
    assert connections == 1
    (surprise,) = of_type(messages, "Surprise")
    assert surprise["request_id"] == messages[-1]["request_id"]


async def test_a_known_type_of_another_shape_passes(stand: Stand) -> None:
    """Results that cannot be read as such are passed on and change nothing."""
    text = json.dumps({"type": "Results", "channel_index": "left", "start": 1})
    _, messages, connections = await run(stand, Fault("garbage", after_audio=0.3, text=text))
    assert connections == 1
    assert json.loads(text) in messages


async def test_binary_is_ignored(stand: Stand) -> None:
    """Deepgram sends no binary messages; a client would not know what to do with one."""
    _, _, connections = await run(stand, Fault("binary", after_audio=0.3, text="\x00\x01"))
    assert connections == 1


async def test_a_large_message_passes(stand: Stand) -> None:
    """Beyond a library's usual megabyte, within deepgram.max_message_bytes."""
    _, messages, connections = await run(stand, Fault("oversized", after_audio=0.3))
    assert connections == 1
    assert len(of_type(messages, "Surprise")[0]["padding"]) == 1_100_000


async def test_an_oversized_message_is_a_break(stand: Stand) -> None:
    """Larger than that, its connection ends, and the call goes on over another."""
    fault = Fault("oversized", nth=1, after_audio=0.3)
    gateway, messages, connections = await run(stand, fault, deepgram={"max_message_bytes": 65_536})
    assert connections == 2
    assert of_type(messages, "Surprise") == []
    assert "gw_upstream_breaks_total" in gateway.metrics.render("")[0].decode()


async def test_what_cannot_be_is_counted(stand: Stand) -> None:
    """A result of audio that nobody sent never reaches the client, and is counted (faults.md 24)."""
    impossible = {
        "type": "Results",
        "channel_index": [0, 1],
        "start": 5000.0,
        "duration": 1.0,
        "is_final": True,
        "channel": {"alternatives": [{"transcript": "", "confidence": 0.0, "words": []}]},
    }
    gateway, messages, _ = await run(stand, Fault("garbage", after_audio=0.3, text=json.dumps(impossible)))
    assert all(m.get("start", 0.0) < 5000.0 for m in messages)
    assert "\ngw_upstream_implausible_total 1" in gateway.metrics.render("")[0].decode()


async def test_audio_after_the_end_is_counted(stand: Stand) -> None:
    """It is not transcribed; that there was some, the operator can see."""
    emulator = await stand.emulator(close_timeout=1.0)
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway) as ws:
        await ws.send(CLOSE_STREAM)
        await ws.send(b"\xff" * 800)
        await read(ws)
    await eventually(lambda: gateway.metrics.sessions_active == 0)
    assert gateway.metrics.ignored_audio_bytes == 800
