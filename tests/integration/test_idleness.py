"""Silence on either side: KeepAlive upstream, NET-0001 for the client, and dials that cost nothing."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from gateway.config import SessionConfig
from gateway.emulator import Emulator
from tests.fakes.stand import (
    CLOSE_STREAM,
    FLUX,
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

NET_0001 = (
    "Deepgram did not receive audio data or a text message within the timeout window. "
    "See https://dpgr.am/net0001"
)
BUSY_CLIENT = '{"type": "KeepAlive"}'


def keepalives(emulator: Emulator) -> list[float]:
    """When the first connection got a KeepAlive, in Unix seconds."""
    record = emulator.connections[0]
    texts = zip(record.texts, record.texts_at, strict=True)
    return [at for text, at in texts if json.loads(text) == {"type": "KeepAlive"}]


async def test_keepalive_when_idle(stand: Stand) -> None:
    """After session.keepalive without upstream traffic a KeepAlive goes up as text; the client's are ours."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"keepalive": 1.0})
    async with dial(gateway) as ws:
        await ws.send(b"\xff" * 160)
        await eventually(lambda: emulator.connections[0].first_audio_at)
        first = emulator.connections[0].first_audio_at
        assert first is not None
        for _ in range(22):
            await ws.send(BUSY_CLIENT)
            await asyncio.sleep(0.1)
        times = [at - first for at in keepalives(emulator)]
        assert times == [pytest.approx(1.0, abs=0.15), pytest.approx(2.0, abs=0.2)]
        assert emulator.connections[0].audio_bytes == 160


async def test_no_keepalive_while_audio_flows(stand: Stand) -> None:
    """Audio keeps the connection alive by itself."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"keepalive": 1.0})
    async with dial(gateway) as ws:
        for _ in range(15):
            await ws.send(b"\xff" * 800)
            await asyncio.sleep(0.1)
    assert keepalives(emulator) == []


def test_the_default_interval_is_deepgrams_advice() -> None:
    """Every 3 to 5 s; it gives up after 10."""
    assert 3 <= SessionConfig().keepalive <= 5


async def test_flux_is_pinged(stand: Stand) -> None:
    """Flux has no KeepAlive message: a WebSocket ping keeps it open."""
    emulator = await stand.emulator(flux_idle_after=1.6)
    gateway = await stand.gateway(emulator.url, session={"keepalive": 1.0})
    async with dial(gateway, FLUX, "/v2/listen") as ws:
        await ws.send(b"\xff" * 160)
        record = emulator.connections[0]
        await eventually(lambda: record.pings >= 2)
        assert record.texts == []
        assert record.open
        await ws.send(CLOSE_STREAM)
        await read(ws)


async def test_a_client_that_says_nothing_is_closed(stand: Stand) -> None:
    """Like Deepgram: the last results, Metadata, then 1011 with the exact reason."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"client_idle": 0.5})
    audio, said = call()
    async with dial(gateway) as ws:
        await send(ws, audio)
        loop = asyncio.get_running_loop()
        start = loop.time()
        messages = await read(ws)
        assert (ws.close_code, ws.close_reason) == (1011, NET_0001)
        assert loop.time() - start > 0.4
    assert words(messages) == said
    assert [m["type"] for m in messages[-1:]] == ["Metadata"]
    assert emulator.connections[0].texts == [CLOSE_STREAM]


async def test_a_client_that_never_said_anything_is_closed(stand: Stand) -> None:
    """The rule does not wait for the first audio."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"client_idle": 0.3})
    async with dial(gateway) as ws:
        await read(ws)
        assert (ws.close_code, ws.close_reason) == (1011, NET_0001)
    await eventually(lambda: gateway.metrics.sessions_active == 0)


@pytest.mark.parametrize("frame", [BUSY_CLIENT, b"\xff", '{"type":"Finalize"}'])
async def test_any_frame_is_a_sign_of_life(stand: Stand, frame: str | bytes) -> None:
    """Audio and text count; that is what the reason says."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"client_idle": 0.4})
    async with dial(gateway) as ws:
        for _ in range(8):
            await ws.send(frame)
            await asyncio.sleep(0.1)
        assert ws.close_code is None
        await ws.send(CLOSE_STREAM)
        await read(ws)
        assert ws.close_code == 1000


async def test_our_own_stall_is_not_the_clients(stand: Stand) -> None:
    """Who talks on is not closed, however late it is read: by the loop or in a slot (faults.md 51)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"client_idle": 0.6}, server={"batch_ms": 100})

    async def talk(stall: float) -> int | None:
        async with dial(gateway) as ws:
            for n in range(12):
                await ws.send(b"\xff" * 800)
                await asyncio.sleep(0.1)
                if n == 4:
                    time.sleep(stall)  # noqa: ASYNC251 - the stall is the point
            return ws.close_code

    assert await asyncio.gather(talk(1.2), *(talk(0) for _ in range(5))) == [None] * 6


async def test_the_rule_can_be_off(stand: Stand) -> None:
    """With client_idle = 0 a client may be silent for as long as it likes."""
    emulator = await stand.emulator(net0001_after=0.5, net0000_after=None)
    gateway = await stand.gateway(emulator.url, session={"client_idle": 0, "keepalive": 1.0})
    async with dial(gateway) as ws:
        await asyncio.sleep(1.2)
        assert ws.close_code is None


@pytest.mark.parametrize("knobs", [{"net0000_after": 0.2}, {"net0001_after": 0.2}])
async def test_an_upstream_that_ends_before_audio(stand: Stand, knobs: dict[str, Any]) -> None:
    """That is no fault and not the client's business; the first byte dials again, and nothing is lost."""
    emulator = await stand.emulator(**knobs)
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with dial(gateway) as ws:
        await eventually(lambda: not emulator.connections[0].open)
        assert emulator.connections[0].close_code == 1011
        await asyncio.sleep(0.1)
        await ws.send(BUSY_CLIENT)
        await asyncio.sleep(0.1)
        assert len(emulator.connections) == 1, "nothing is owed, so nobody is dialled"
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
        assert ws.close_code == 1000
        assert ws.response is not None
        request_id = ws.response.headers["dg-request-id"]
    assert words(messages) == said
    assert [record.audio for record in emulator.connections] == [b"", audio]
    assert [m["request_id"] for m in of_type(messages, "Metadata")] == [request_id]
    assert request_id == emulator.connections[0].request_id


async def test_a_call_without_audio(stand: Stand) -> None:
    """CloseStream alone ends a call as it ends one with Deepgram: Metadata, then 1000."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway, LISTEN) as ws:
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
        assert ws.close_code == 1000
    assert [m["type"] for m in messages] == ["Metadata"]


async def test_a_call_without_audio_after_its_upstream_left(stand: Stand) -> None:
    """Also when Deepgram had given up before: the client still gets its Metadata and its 1000."""
    emulator = await stand.emulator(net0001_after=0.2)
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway, LISTEN) as ws:
        await eventually(lambda: not emulator.connections[0].open)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
        assert ws.close_code == 1000
    assert [m["type"] for m in messages] == ["Metadata"]
