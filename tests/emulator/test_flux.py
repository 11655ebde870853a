"""A Flux connection."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from websockets.exceptions import InvalidStatus

from gateway.emulator.tokens import Manner, id_for
from tests.emulator.conftest import Starter
from tests.emulator.wire import FLUX, V2, Message, call, check_strictly, dial, read, said, send

TURNS = Manner(gap_ms=(50, 150), no_gap=0.0, tail_ms=1500)
SILENCE = b"\xff" * 8000


def events(messages: list[Message], *names: str) -> list[Message]:
    """The TurnInfo messages of some kinds."""
    return [m for m in messages if m["type"] == "TurnInfo" and (not names or m["event"] in names)]


async def test_a_turn_from_its_start_to_its_end(start: Starter) -> None:
    """Connected first, then Updates around one StartOfTurn and one EndOfTurn per turn, all numbered."""
    emulator = await start()
    audio, tokens = call(5, manner=TURNS)
    async with dial(emulator, FLUX, "/v2/listen") as ws:
        await send(ws, audio + audio)
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws)
    check_strictly(got, V2)
    assert got[0]["type"] == "Connected"
    assert [m["sequence_id"] for m in got] == list(range(len(got)))
    turns = events(got, "StartOfTurn", "EndOfTurn")
    assert [(m["event"], m["turn_index"]) for m in turns] == [
        ("StartOfTurn", 0),
        ("EndOfTurn", 0),
        ("StartOfTurn", 1),
        ("EndOfTurn", 1),
    ]
    for end in turns[1::2]:
        assert [id_for(word) for word in end["transcript"].split()] == said(tokens)
        assert end["trigger"] == "model"
        assert end["end_of_turn_confidence"] >= 0.7
    assert turns[2]["audio_window_start"] == turns[1]["audio_window_end"]
    assert got[-1]["event"] == "Update"
    assert ws.close_code == 1005


async def test_an_eager_end_that_was_none(start: Starter) -> None:
    """EagerEndOfTurn at a short pause, TurnResumed when the voice goes on."""
    emulator = await start()
    first, _ = call(2, manner=Manner(gap_ms=(50, 60), no_gap=0.0, tail_ms=350))
    second, _ = call(2, seed=2, manner=Manner(gap_ms=(50, 60), no_gap=0.0, lead_ms=0, tail_ms=1500))
    async with dial(emulator, f"{FLUX}&eager_eot_threshold=0.4", "/v2/listen") as ws:
        await send(ws, first + second)
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws)
    names = [m["event"] for m in events(got, "StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EndOfTurn")]
    assert names == ["StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EagerEndOfTurn", "EndOfTurn"]
    told = [m["event"] for m in events(got)]
    assert "Update" not in [after for before, after in pairwise(told) if before == "EagerEndOfTurn"]


async def test_the_end_of_a_turn_by_force_and_by_time(start: Starter) -> None:
    """ForceEndTurn ends it now; eot_timeout_ms ends it where the threshold never would."""
    emulator = await start()
    audio, _ = call(2, manner=Manner(tail_ms=100))
    async with dial(emulator, f"{FLUX}&eot_threshold=1.0&eot_timeout_ms=1500", "/v2/listen") as ws:
        await send(ws, audio)
        await ws.send('{"type":"ForceEndTurn"}')
        await send(ws, audio + SILENCE * 2)
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws)
    assert [m["trigger"] for m in events(got, "EndOfTurn")] == ["manual", "timeout"]


async def test_configure(start: Starter) -> None:
    """Thresholds, keyterms and hints are taken over and told back; impossible ones are refused."""
    emulator = await start()
    async with dial(emulator, FLUX, "/v2/listen") as ws:
        await ws.send(
            '{"type":"Configure","thresholds":{"eot_threshold":0.8},"keyterms":["a"],"numerals":true}'
        )
        await ws.send('{"type":"Configure","thresholds":{"eot_threshold":7}}')
        got = [json.loads(await ws.recv()) for _ in range(3)]
    check_strictly(got, V2)
    assert got[1]["thresholds"] == {"eot_threshold": 0.8, "eot_timeout_ms": 5000}
    assert (got[1]["keyterms"], got[1]["numerals"]) == (["a"], True)
    assert got[2]["code"] == "INVALID_THRESHOLD"


@pytest.mark.parametrize("kind", ["KeepAlive", "Finalize"])
async def test_v1_messages_do_not_exist_here(start: Starter, kind: str) -> None:
    """KeepAlive and Finalize are errors that end the stream."""
    emulator = await start()
    async with dial(emulator, FLUX, "/v2/listen") as ws:
        await ws.send(json.dumps({"type": kind}))
        got = await read(ws)
    check_strictly(got, V2)
    assert got[-1]["type"] == "Error"


async def test_pings_hold_it_open(start: Starter) -> None:
    """flux_idle_after counts from the last frame or ping."""
    emulator = await start(flux_idle_after=0.3, flux_update_interval=0.5)
    async with dial(emulator, FLUX, "/v2/listen") as ws:
        await send(ws, SILENCE)
        updates = [json.loads(await ws.recv()) for _ in range(3)][1:]
        assert [m["audio_window_end"] for m in updates] == [0.5, 1.0]
        for _ in range(4):
            await (await ws.ping())
            await asyncio.sleep(0.15)
        assert emulator.connections[0].open
        got = await read(ws)
    assert got[-1]["type"] == "Error"
    assert ws.close_code == 1011


@pytest.mark.parametrize(
    "query",
    [
        "",
        "model=nova-3",
        f"{FLUX}&eot_threshold=2",
        f"{FLUX}&eager_eot_threshold=0.1",
        f"{FLUX}&eot_timeout_ms=1",
    ],
)
async def test_queries_that_are_refused(start: Starter, query: str) -> None:
    """The model is required, and thresholds have limits."""
    emulator = await start()
    with pytest.raises(InvalidStatus) as caught:
        await dial(emulator, query, "/v2/listen")
    assert caught.value.response.status_code == 400
