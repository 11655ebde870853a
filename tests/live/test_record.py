"""What is stored of calls, and that nobody waits for it. Real sockets, a real database."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from gateway.app import Gateway
from gateway.live import record as module
from gateway.live.record import said
from gateway.store import sessions, transcripts, usage
from gateway.store.schema import SESSIONS
from gateway.store.sessions import Session
from gateway.store.transcripts import FinalResult
from tests.fakes.receiver import Receiver
from tests.fakes.stand import (
    CLOSE_STREAM,
    FLUX,
    LISTEN,
    Message,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    read_until,
    send,
    transcribe,
    words,
)

FAST = {"backoff_base": 0.01, "backoff_cap": 0.01}


def at(path: Path) -> dict[str, Any]:
    return {"url": f"sqlite:///{path}/gateway.db"}


async def ended(gateway: Gateway, count: int = 1) -> list[Session]:
    """The sessions that are over, once there are so many."""
    found: list[Session] = []
    async with asyncio.timeout(15):
        while len(found) < count:
            await asyncio.sleep(0.05)
            found = await everything(gateway)
    return found


async def everything(gateway: Gateway) -> list[Session]:
    assert gateway.store is not None

    async def op(connection: Any) -> list[Session]:
        rows = await connection.execute(SESSIONS.select())
        return [s for row in rows.all() if (s := await sessions.get(connection, row.principal, row.id))]

    return await gateway.store.read(op)


async def kept(gateway: Gateway, id: str) -> list[FinalResult]:
    assert gateway.store is not None
    return await gateway.store.read(partial(transcripts.finals, call=id))


def finals(messages: list[Message]) -> list[tuple[int, float, float, str, Any]]:
    """Of those that say something: what must be stored of them."""
    out = []
    for one in of_type(messages, "Results"):
        best = one["channel"]["alternatives"][0]
        if one.get("is_final") and best["transcript"]:
            channel = one["channel_index"][0]
            out.append((channel, one["start"], one["duration"], best["transcript"], best["words"]))
    return out


def rows(stored: list[FinalResult]) -> list[tuple[int, float, float, str, Any]]:
    return [(one.channel, one.start, one.duration, one.text, json.loads(one.words)) for one in stored]


@pytest.mark.parametrize("cut", [False, True])
async def test_what_is_stored_is_what_the_client_got(stand: Stand, tmp_path: Path, cut: bool) -> None:
    """Text, words and times, also over a break; and the seconds are those that the emulator counted."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path), session=FAST)
    audio, ids = call(30)
    half = len(audio) // 2 // 800 * 800
    async with dial(gateway, LISTEN + "&interim_results=true&gw_x=1") as ws:
        await send(ws, audio[:half])
        got = await read_until(ws, lambda message: bool(message.get("is_final")))
        await eventually(lambda: sum(one.audio_bytes for one in emulator.connections) == half)
        if cut:
            emulator.act("close")
            # What is under way to a connection that is gone is sent, and nobody counts it.
            await eventually(lambda: len(emulator.connections) == 2)
        await send(ws, audio[half:])
        await ws.send(CLOSE_STREAM)
        got += await read(ws)
        assert ws.response is not None
        headers = ws.response.headers
    assert words(got) == ids
    [session] = await ended(gateway)
    stored = await kept(gateway, headers["gw-session-id"])
    assert rows(stored) == finals(got) != []
    given = sum(one.audio_bytes for one in emulator.connections) / 8000
    assert session.id == headers["gw-session-id"]
    assert session.request_id == headers["dg-request-id"]
    assert session.accepted_seconds == len(audio) / 8000
    assert session.sent_seconds == pytest.approx(given)
    assert session.replayed_seconds == pytest.approx(given - len(audio) / 8000)
    assert (session.replayed_seconds > 0, session.breaks, session.connections) == (cut, cut, 1 + cut)
    assert (session.outcome, session.close_code, session.continuity) == ("completed", 1000, "exact")
    assert session.stored
    assert session.max_lag > 0
    assert session.ended_at is not None
    assert gateway.store is not None
    found = await gateway.store.read(partial(transcripts.get, principal="anonymous", id=session.id))
    assert found is not None
    assert found.text == " ".join(text for _, _, _, text, _ in finals(got))
    assert found.query == LISTEN + "&interim_results=true&gw_x=1"
    day = datetime.fromtimestamp(session.ended_at, UTC).date()
    [used] = await gateway.store.read(partial(usage.of, principal="anonymous", first=day, last=day))
    assert (used.accepted_seconds, used.sent_seconds) == (session.accepted_seconds, session.sent_seconds)
    assert used.replayed_seconds == session.replayed_seconds


async def test_flux(stand: Stand, tmp_path: Path) -> None:
    """The turns that have ended."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    got = await transcribe(gateway, call(8)[0] + b"\xff" * 6000, FLUX, "/v2/listen")
    turns = [one for one in of_type(got, "TurnInfo") if one["event"] == "EndOfTurn" and one["transcript"]]
    [session] = await ended(gateway)
    stored = await kept(gateway, session.id)
    assert [(one.text, json.loads(one.words)) for one in stored] == [
        (turn["transcript"], turn["words"]) for turn in turns
    ]
    assert stored
    assert stored[0].start == turns[0]["audio_window_start"]
    assert session.close_code == 1005


async def test_nothing_waits_for_the_store(stand: Stand, tmp_path: Path) -> None:
    """While somebody holds the database's lock results come as ever, and are stored when it is let go."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    audio, ids = call(20)

    async def slowest() -> float:
        """Seconds from a result's leaving the emulator to its reaching the client, at most."""
        came: dict[str, float] = {}
        async with dial(gateway, LISTEN) as ws:
            await send(ws, audio)
            await ws.send(CLOSE_STREAM)
            async for text in ws:
                came[str(text)] = time.time()
        connection = emulator.connections[-1]
        assert words([json.loads(text) for text in came]) == ids
        assert set(came) == set(connection.sent)
        sent = zip(connection.sent, connection.sent_at, strict=True)
        return max(came[text] - at for text, at in sent)

    usual = await slowest()
    await ended(gateway)
    lock = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    assert await slowest() < usual + 0.5, "the store waits five seconds for a lock"
    assert len(await everything(gateway)) == 1
    lock.execute("ROLLBACK")
    lock.close()
    first, second = await ended(gateway, 2)
    assert rows(await kept(gateway, first.id)) == rows(await kept(gateway, second.id)) != []
    assert sum(gateway.metrics.store_dropped.values()) == 0


async def test_what_waits_is_bounded(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bounds it is dropped and counted; the client gets it all."""
    monkeypatch.setattr(module, "MOST_BYTES", 700)
    monkeypatch.setattr(module, "MOST_CALLS", 1)
    monkeypatch.setattr(module, "LAST_WRITES", 0.1)
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    lock = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    audio, ids = call(12)
    for _ in range(3):
        assert words(await transcribe(gateway, audio)) == ids
    dropped = gateway.metrics.store_dropped
    await eventually(lambda: dropped["session"] >= 1)
    assert dropped["final"] > 0
    assert dropped["call"] > 0
    assert gateway._exchange.recorder is not None
    assert gateway._exchange.recorder._bytes <= 700
    lock.close()


@pytest.mark.parametrize(
    ("live", "query"),
    [(True, "&gw_store=false"), (True, "&gw_store=0"), (False, ""), (False, "&gw_store=true")],
)
async def test_words_need_not_be_stored(stand: Stand, tmp_path: Path, live: bool, query: str) -> None:
    """By the operator or the caller; how the call went, and its seconds, are stored all the same."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store={**at(tmp_path), "live": live})
    audio, ids = call()
    assert words(await transcribe(gateway, audio, LISTEN + query)) == ids
    [session] = await ended(gateway)
    assert not session.stored
    assert session.accepted_seconds == len(audio) / 8000
    assert await kept(gateway, session.id) == []
    assert gateway.store is not None
    assert await gateway.store.read(partial(transcripts.get, principal="anonymous", id=session.id)) is None
    assert "gw_store" not in emulator.connections[0].query


async def test_a_misspelt_wish_is_refused(stand: Stand) -> None:
    """Else what was not to be stored would be."""
    gateway = await stand.gateway("http://127.0.0.1:1")
    with pytest.raises(InvalidStatus) as refused:
        async with dial(gateway, LISTEN + "&gw_store=no"):
            pass
    assert refused.value.response.status_code == 400
    assert b"gw_store" in refused.value.response.body


async def test_a_call_that_was_left(stand: Stand, tmp_path: Path) -> None:
    """What it said is stored, and how it ended."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    audio, _ = call(12)
    async with dial(gateway) as ws:
        await send(ws, audio)
        await eventually(lambda: emulator.connections and emulator.connections[0].audio_bytes == len(audio))
        ws.transport.abort()
    [session] = await ended(gateway)
    assert session.close_code == 1006
    assert len(await kept(gateway, session.id)) > 0


async def test_the_end_is_told(stand: Stand, tmp_path: Path) -> None:
    """By a signed callback with the session and none of its words, once the receiver takes it."""
    emulator = await stand.emulator()
    secret = tmp_path / "secrets"
    secret.write_text("whsec_" + base64.b64encode(bytes(32)).decode())
    async with Receiver({"/hook": ["500", "200"]}) as receiver:
        callback = {
            "secrets_file": str(secret),
            "session_url": receiver.url("/hook"),
            "allow_http": True,
            "allow": ("127.0.0.1",),
            "ports": (receiver.port,),
            "backoff_seconds": 0.1,
        }
        gateway = await stand.gateway(emulator.url, store=at(tmp_path), callback=callback)
        got = await transcribe(gateway, call()[0])
        [session] = await ended(gateway)
        await eventually(lambda: len(receiver.received) == 2)
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    body = json.loads(second.body)
    assert body["type"] == "session.ended"
    assert msgspec.convert(body["data"], Session) == session
    assert finals(got)[0][3] not in second.body.decode()


async def test_what_is_written_twice_counts_once(stand: Stand, tmp_path: Path) -> None:
    """After a commit whose answer was lost."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    store = gateway.store
    assert store is not None
    await transcribe(gateway, call()[0])
    [session] = await ended(gateway)
    await store.write(partial(module._write, batch=[module._Over(session, None)]))
    day = datetime.fromtimestamp(session.ended_at or 0, UTC).date()
    [used] = await store.read(partial(usage.of, principal="anonymous", first=day, last=day))
    assert used.accepted_seconds == session.accepted_seconds


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"channel": 5}', b'{"transcript": "\xff"}', b"[" * 9999])
def test_what_nobody_understands(raw: bytes) -> None:
    """It is not stored, and fails nothing."""
    assert said(raw) is None


def test_what_is_left_out() -> None:
    """A result without alternatives says nothing."""
    found = said(b'{"type":"Results","channel_index":[],"channel":{"alternatives":[]}}')
    assert found is not None
    assert (found.text, bytes(found.words)) == ("", b"[]")
