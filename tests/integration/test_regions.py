"""A region that takes calls and then lets them down is left for another one (faults.md 2, 7)."""

from __future__ import annotations

import pytest

from gateway.emulator import Fault
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Stand,
    call,
    dial,
    eventually,
    read,
    send,
    transcribe,
    words,
)
from tests.integration.test_transparency import BRISK_WINDOWS

SESSION = {"backoff_base": 0.05, "backoff_cap": 0.1, "stall": 3.0}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", after_bytes=800),
        Fault("close", after_bytes=800, code=1011, reason="NET-0000"),
        Fault("fin", after_bytes=800),
        Fault("mute"),
        Fault("half-open", after_bytes=800),
    ],
    ids=lambda fault: fault.kind,
)
async def test_a_region_that_accepts_and_fails(stand: Stand, fault: Fault) -> None:
    """The call that met it goes on elsewhere, and the next one does not go there first."""
    bad, good = await stand.emulator(faults=(fault,), **BRISK_WINDOWS), await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(bad.url, good.url, session=SESSION)
    audio, said = call(45)
    async with dial(gateway) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws, 25)) == said
    assert (len(bad.connections), len(good.connections)) == (1, 1)
    audio, said = call()
    assert words(await transcribe(gateway, audio)) == said
    assert (len(bad.connections), len(good.connections)) == (1, 2)


async def test_a_break_of_a_working_connection_is_no_sign(stand: Stand) -> None:
    """Results had come: the same region is dialled again."""
    broken = Fault("reset", nth=1, after_audio=1.5)
    first = await stand.emulator(faults=(broken,), **BRISK_WINDOWS)
    second = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(first.url, second.url, session=SESSION)
    audio, said = call(20)
    assert words(await transcribe(gateway, audio)) == said
    assert (len(first.connections), len(second.connections)) == (2, 0)


async def test_nobody_moves_back(stand: Stand) -> None:
    """A call that fled stays when the first choice works again; new calls go there (faults.md 19)."""
    first = await stand.emulator(faults=(Fault("reset", nth=1, after_bytes=800),), **BRISK_WINDOWS)
    second = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(first.url, second.url, session=SESSION)
    audio, said = call(20)
    async with dial(gateway) as fled:
        await send(fled, audio)
        await eventually(lambda: second.connections)
        gateway._exchange.regions.worked("r0")  # as another call's result would say
        more, said_more = call(8, 2)
        assert words(await transcribe(gateway, more)) == said_more
        await send(fled, more)
        await fled.send(CLOSE_STREAM)
        assert words(await read(fled, 25)) == said + said_more
    assert (len(first.connections), len(second.connections)) == (2, 1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("close", nth=1, after_bytes=800, code=1008, reason="DATA-0000"),
        Fault("close", nth=1, after_seconds=0.2, code=1011, reason="NET-0000"),
    ],
    ids=["bad audio", "no audio"],
)
async def test_what_is_the_callers_doing_is_no_sign(stand: Stand, fault: Fault) -> None:
    """Audio that cannot be decoded, or none at all, says nothing about a region."""
    first, second = await stand.emulator(faults=(fault,)), await stand.emulator()
    gateway = await stand.gateway(first.url, second.url, session=SESSION)
    async with dial(gateway) as ws:
        if fault.after_bytes:
            await ws.send(b"\xff" * 800)
        await eventually(lambda: first.connections[0].ended_how)
        await eventually(lambda: len(first.connections) == 2 or not gateway.metrics.deepgram_connections)
        audio, said = call()
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        assert [word for word in words(await read(ws)) if word is not None] == said
    assert (len(first.connections), len(second.connections)) == (2, 0)


async def test_a_region_that_is_too_slow(stand: Stand) -> None:
    """Results come, ever later: the call goes on elsewhere (faults.md 16)."""
    slow = await stand.emulator(**{**BRISK_WINDOWS, "ingest_speed": 0.3})
    good = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(slow.url, good.url, session={**SESSION, "stall": 9.0, "max_lag": 5.0})
    audio, said = call(90)
    async with dial(gateway, f"{LISTEN}&interim_results=true") as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws, 40)) == said
    assert (len(slow.connections), len(good.connections)) == (1, 1)


async def test_a_region_that_lets_a_call_down_again(stand: Stand) -> None:
    """Each connection brings results and then dies for want of its own (faults.md 5): twice is enough."""
    fault = Fault("close", after_audio=1.0, code=1011, reason="NET-0000")
    bad, good = await stand.emulator(faults=(fault,), **BRISK_WINDOWS), await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(bad.url, good.url, session=SESSION)
    audio, said = call(30)
    async with dial(gateway) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws, 25)) == said
    assert (len(bad.connections), len(good.connections)) == (2, 1)
