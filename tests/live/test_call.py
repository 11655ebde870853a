"""What a call does when the code around it fails, and how it names what happened."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.live import call as module
from gateway.metrics.table import BREAK_CAUSES
from tests.fakes.stand import CLOSE_STREAM, Stand, call, dial, eventually, read, send, transcribe, words


async def test_a_timer_in_the_past_is_no_trouble(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop may give something else than a TimerHandle for a time that has come; uvloop does."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def like_uvloop(when: float, callback: Any, *arguments: Any, **options: Any) -> asyncio.Handle:
        if when <= loop.time() + 0.01:
            return loop.call_soon(callback, *arguments, **options)
        return call_at(when, callback, *arguments, **options)

    monkeypatch.setattr(loop, "call_at", like_uvloop)
    audio, said = call(20)
    assert words(await transcribe(gateway, audio)) == said


@pytest.mark.parametrize(
    ("code", "reason", "cause"),
    [
        (1011, "… See https://dpgr.am/net0001", "net_0001"),
        (1011, "NET-0000", "net_0000"),
        (1008, "DATA-0000: …", "data_0000"),
        (1006, "", "lost"),
        (1009, "", "too_big"),
        (1000, "", "closed"),
        (1011, "", "closed"),
        (1006, "stalled: audio flows, results do not", "stalled"),
        (1006, "rotated", "rotated"),
    ],
)
def test_causes_of_a_break(code: int, reason: str, cause: str) -> None:
    """The reason counts first: a code alone does not say which timeout it was."""
    assert module._break_cause(code, reason) == cause
    assert cause in BREAK_CAUSES


async def test_numbers_of_a_call(stand: Stand) -> None:
    """What went through is counted once, in seconds and bytes, and nothing is left active."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, _ = call()
    async with dial(gateway) as ws:
        await eventually(lambda: gateway.metrics.sessions_active == gateway.metrics.deepgram_connections == 1)
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        await read(ws)
    metrics = gateway.metrics
    await eventually(lambda: metrics.sessions_active == metrics.deepgram_connections == 0)
    assert metrics.client_audio_bytes == metrics.upstream_audio_bytes == len(audio)
    text = metrics.render("")[0].decode()
    assert metrics.client_audio_seconds == pytest.approx(len(audio) / 8000)
    assert 'gw_sessions_total{outcome="completed"} 1' in text
    assert 'transcription_requests_total{model="nova-3",region="r0",status="completed"} 1' in text
    assert 'gw_upstream_dials_total{outcome="opened"} 1' in text
