"""Deepgram is away for seconds: the call goes on live at once, and what was missed is told beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from gateway.emulator import Emulator
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Message,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    scrape,
    send,
    words,
)
from tests.integration.test_lost_upstream import QUERY, SESSION, ended_well, tiled
from tests.integration.test_transparency import BRISK_WINDOWS

SECOND = 8000
BEFORE, AWAY, AFTER = 1, 4, 2  # seconds
BACKFILL = f"{QUERY}&gw_catch_up=backfill"
SETTINGS: dict[str, Any] = {**SESSION, "backfill_after": 2}


async def live(ws: ClientConnection, audio: bytes) -> None:
    """Audio as a microphone gives it."""
    for at in range(0, len(audio), 400):
        await ws.send(audio[at : at + 400])
        await asyncio.sleep(0.05)


async def outage(ws: ClientConnection, emulator: Emulator, audio: bytes) -> list[Message]:
    """Says `audio` while Deepgram is away for the middle of it, and what has come when that is over."""
    await send(ws, audio[: BEFORE * SECOND])
    await eventually(lambda: emulator.connections[0].audio_bytes == BEFORE * SECOND)
    emulator.patch(deny_status=503)
    emulator.act("reset")
    await live(ws, audio[BEFORE * SECOND : (BEFORE + AWAY) * SECOND])
    assert len(emulator.connections) == 1
    return await so_far(ws)


async def so_far(ws: ClientConnection) -> list[Message]:
    """What has come and was not read."""
    got: list[Message] = []
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0.02):
                got.append(json.loads(await ws.recv()))
    return got


def reach(message: Message) -> float:
    return float(message["start"] + message["duration"])


def length(audio: bytes) -> float:
    return len(audio) / SECOND


def speech() -> tuple[bytes, list[int]]:
    audio, said = call(72)
    assert length(audio) > BEFORE + AWAY + AFTER
    return audio, said


@pytest.mark.parametrize("refused", [False, True])
async def test_live_at_once_and_all_in_order(stand: Stand, refused: bool) -> None:
    """Interims are live from the first second on; finals wait for those of the hole, and none is lost.

    Also where Deepgram has no connection to spare at first (429).

    continuity.md I1, continuity.md I2, continuity.md I4, continuity.md I12
    """
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session=SETTINGS)
    audio, said = speech()
    async with dial(gateway, BACKFILL) as ws:
        messages = await outage(ws, emulator, audio)
        emulator.patch(deny_status=None, max_connections=1 if refused else None)
        await eventually(lambda: len(emulator.connections) > 1)
        await live(ws, audio[(BEFORE + AWAY) * SECOND : (BEFORE + AWAY + AFTER) * SECOND])
        messages += await so_far(ws)
        results = of_type(messages, "Results")
        finals = [message for message in results if message["is_final"]]
        assert max(map(reach, results)) > BEFORE + AWAY + AFTER - 0.5, "not live"
        assert max(map(reach, finals)) < BEFORE + AWAY, "finals before those of the hole"
        emulator.patch(max_connections=None)
        await send(ws, audio[(BEFORE + AWAY + AFTER) * SECOND :])
        await ws.send(CLOSE_STREAM)
        messages += await read(ws, 20)
        assert ws.close_code == 1000
        assert ws.response is not None
        request_id = ws.response.headers["dg-request-id"]
    assert words(messages) == said
    tiled(messages, length(audio))
    ended_well(messages, request_id, length(audio))
    assert "gaps" not in messages[-1]["gateway"]
    assert len(messages[-1]["gateway"]["upstream_request_ids"]) == 3
    assert 'gw_backfills_total{outcome="complete"} 1.0' in await scrape(gateway)
    await eventually(lambda: gateway.metrics.deepgram_connections == 0)


async def test_out_of_order_for_who_asks(stand: Stand) -> None:
    """Nothing waits; what is told late says so."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session={**SETTINGS, "annotate": False})
    audio, said = speech()
    async with dial(gateway, f"{BACKFILL}&gw_order=any") as ws:
        messages = await outage(ws, emulator, audio)
        emulator.patch(deny_status=None)
        await live(ws, audio[(BEFORE + AWAY) * SECOND :])
        await ws.send(CLOSE_STREAM)
        messages += await read(ws, 20)
    finals = [m for m in of_type(messages, "Results") if m["is_final"]]
    late = [m for m in finals if m.get("gateway", {}).get("backfill")]
    in_order = sorted(finals, key=reach)
    assert late
    assert finals != in_order
    assert max(map(reach, late)) < BEFORE + AWAY
    assert words(in_order) == said
    tiled(in_order, length(audio))
    assert all("gw_" not in record.query for record in emulator.connections)


async def test_a_hole_for_which_there_is_no_connection(stand: Stand) -> None:
    """Deepgram has none to spare for longer than results may wait: the hole is declared, and they come."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(
        emulator.url, session={**SETTINGS, "catch_up": "backfill", "backfill_hold": 1}
    )
    audio, said = speech()
    async with dial(gateway, QUERY) as ws:
        messages = await outage(ws, emulator, audio)
        emulator.patch(deny_status=None, max_connections=1)
        await live(ws, audio[(BEFORE + AWAY) * SECOND :])
        await ws.send(CLOSE_STREAM)
        messages += await read(ws, 20)
        assert ws.close_code == 1000
    (gap,) = messages[-1]["gateway"]["gaps"]
    assert gap["reason"] == "backfill_late"
    assert gap["stop"] - gap["start"] > AWAY - 1
    assert messages[-1]["gateway"]["incomplete"]
    found = words(messages)
    assert found
    assert set(found) < set(said)
    assert found[-1] == said[-1]
    text = await scrape(gateway)
    assert 'gw_backfills_total{outcome="late"} 1.0' in text
    assert 'gw_gap_seconds_total{reason="backfill_late"}' in text


async def test_the_client_says_serial(stand: Stand) -> None:
    """Its word counts more than the operator's setting, and a connection more is not opened."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session={**SETTINGS, "catch_up": "backfill"})
    audio, said = speech()
    async with dial(gateway, f"{LISTEN}&gw_catch_up=serial") as ws:
        messages = await outage(ws, emulator, audio)
        emulator.patch(deny_status=None)
        await send(ws, audio[(BEFORE + AWAY) * SECOND :])
        await ws.send(CLOSE_STREAM)
        messages += await read(ws, 20)
    assert words(messages) == said
    assert len(emulator.connections) == 2
