"""A recording as a live session, against a gateway's client port and against ports that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.errors import UpstreamError
from gateway.prerecorded import live
from tests.fakes.stand import LISTEN, Stand, call

AUDIO, SAID = call(4)


async def pieces(size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(AUDIO), size):
        yield AUDIO[at : at + size]


@pytest.mark.parametrize("size", [100, 100_000])
async def test_messages_come_in_order(stand: Stand, size: int) -> None:
    """Whatever the pieces, no message is larger than allowed; Metadata is the last."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"max_message_bytes": 1024})
    host, port = gateway.address
    url = f"ws://{host}:{port}/v1/listen?{LISTEN}"
    async with live.session(url, pieces(size), [], 1024) as messages:
        types = [message.type async for message in messages]
    assert types[-1] == "Metadata"
    assert "Results" in types
    assert emulator.connections[0].audio_bytes == len(AUDIO)


async def test_an_unknown_path_is_a_refusal(stand: Stand) -> None:
    """With the port's own status and words."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    host, port = gateway.address
    with pytest.raises(live.SessionRefused) as refused:
        async with live.session(f"ws://{host}:{port}/v1/nothing", pieces(100), [], 1024):
            pass
    assert refused.value.refusal.status == 404
    assert "no such path" in refused.value.refusal.message
    assert refused.value.request_id


async def test_nobody_there() -> None:
    """Is an UpstreamError."""
    with pytest.raises(UpstreamError, match="does not answer"):
        async with live.session("ws://127.0.0.1:9/v1/listen", pieces(100), [], 1024):
            pass


async def test_a_session_that_breaks(stand: Stand) -> None:
    """Is said when its messages have been read."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    host, port = gateway.address

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield AUDIO[:800]
            await asyncio.sleep(0.02)

    async def listen() -> None:
        async with live.session(f"ws://{host}:{port}/v1/listen?{LISTEN}", endless(), [], 1024) as messages:
            async for _ in messages:
                for found in list(gateway._exchange.calls.values()):
                    found.shut_down(1012, "the gateway is restarting")

    with pytest.raises(UpstreamError, match="closed with 1012"):
        await listen()
