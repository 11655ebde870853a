"""Clients that are read by the clock: fewer messages, the same words, nothing stuck."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.exceptions import InvalidStatus

from gateway.app import Gateway
from gateway.emulator import Emulator
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Stand,
    call,
    dial,
    eventually,
    read,
    words,
)

FRAME = 160  # bytes: 20 ms of G.711
FRAMES = 100


async def talk(gateway: Gateway, query: str = LISTEN) -> list[int | None]:
    """Two seconds in frames of 20 ms at their pace; the words that came of it."""
    audio, _ = call(24)
    async with dial(gateway, query) as ws:
        begun = asyncio.get_running_loop().time()
        for number in range(FRAMES):
            await ws.send(audio[number * FRAME : (number + 1) * FRAME])
            await asyncio.sleep(max(0, begun + (number + 1) * 0.02 - asyncio.get_running_loop().time()))
        await ws.send(CLOSE_STREAM)
        return words(await read(ws))


def messages(emulator: Emulator) -> int:
    """How many the latest connection got; all of the audio must be in them."""
    record = emulator.connections[-1]
    audio, _ = call(24)
    assert record.audio == audio[: FRAMES * FRAME]
    assert max(record.boundaries) <= 2000, "longer than 250 ms"
    return len(record.boundaries)


async def test_a_window_of_the_gateway_or_of_the_session(stand: Stand) -> None:
    """100 ms make a message of five frames; `gw_batch_ms` is the client's own choice."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"batch_ms": 100})
    said = await talk(gateway)
    assert messages(emulator) < FRAMES / 3
    assert await talk(gateway, f"{LISTEN}&gw_batch_ms=0") == said
    assert messages(emulator) > FRAMES / 2
    assert await talk(gateway, f"{LISTEN}&gw_batch_ms=250") == said
    assert messages(emulator) < FRAMES / 6


async def test_the_window_changes_in_mid_call(stand: Stand) -> None:
    """As with the load: no byte is lost or comes twice, in whatever mode it was sent."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"batch_ms": 0})
    slots = gateway.door.exchange.slots

    async def change() -> None:
        for window in (100, 0, 20, 60, 0, 40) * 10:
            slots.window_ms = window
            await asyncio.sleep(0.13)

    changing = asyncio.create_task(change())
    try:
        assert await talk(gateway)
        assert 0 < messages(emulator) < FRAMES
    finally:
        changing.cancel()


@pytest.mark.parametrize("asked", ["251", "-1", "1e2", "", "0x10", "²"])
async def test_windows_that_cannot_be(stand: Stand, asked: str) -> None:
    """One line that says what is wrong, before anything is dialled."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    with pytest.raises(InvalidStatus) as caught:
        async with dial(gateway, f"{LISTEN}&gw_batch_ms={asked}"):
            pass
    assert caught.value.response.status_code == 400
    assert b"gw_batch_ms: a whole number from 0 to 250 is needed" in (caught.value.response.body or b"")
    assert not emulator.connections


async def test_nothing_is_stuck(stand: Stand) -> None:
    """Half a window's audio, a Finalize, a connection that is cut: each is seen within the window."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"batch_ms": 250})
    async with dial(gateway) as ws:
        audio, _ = call(24)
        await ws.send(audio[:4000])
        await ws.send('{"type":"Finalize"}')
        async with asyncio.timeout(5):
            while not json.loads(await ws.recv()).get("from_finalize"):
                pass
        ws.transport.abort()
    await eventually(lambda: gateway.metrics.sessions_active == 0)
