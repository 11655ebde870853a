"""`/v1/sessions` over HTTP, beside real calls."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, ClientTimeout

from gateway.app import Gateway
from gateway.auth import Principal
from gateway.deepgram.recogniser import Kind
from gateway.live import observers
from gateway.session.events import Deliver
from gateway.sidecar import events
from gateway.store.sessions import Session
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Message,
    Stand,
    call,
    dial,
    eventually,
    get,
    read,
    read_until,
    send,
    stand,
)
from tests.live.test_record import at, ended, finals

__all__ = ["stand"]

Events = list[tuple[str, str | None, Any]]
INTERIMS = LISTEN + "&interim_results=true"


async def show(gateway: Gateway, path: str) -> tuple[int, Any]:
    status, _, body = await get(gateway.sidecar_address, path)
    return status, json.loads(body) if body else None


async def listed(gateway: Gateway, query: str = "") -> list[Session]:
    status, page = await show(gateway, "/v1/sessions" + query)
    assert status == 200
    return msgspec.convert(page["sessions"], list[Session])


async def watch(gateway: Gateway, id: str, after: str = "", events: Events | None = None) -> Events:
    """All events up to the end of the stream: (name, id, data)."""
    host, port = gateway.sidecar_address
    found = events if events is not None else []
    headers = {"Last-Event-ID": after} if after else {}
    async with (
        ClientSession(timeout=ClientTimeout(total=20)) as client,
        client.get(f"http://{host}:{port}/v1/sessions/{id}/events", headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        fields: dict[str, str] = {}
        async for line in response.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
                fields = {}
    return found


def said(events: Events) -> list[tuple[int, float, float, str, Any]]:
    return [
        (data["channel"], data["start"], data["duration"], data["text"], data["words"])
        for name, _, data in events
        if name == "final" and data["text"]
    ]


async def test_observers_at_different_points(stand: Stand, tmp_path: Path) -> None:
    """From before the first word, from the middle, from a break, after the end: each gets all of it, once."""
    emulator = await stand.emulator(interim_interval=0.2)
    fast = {"backoff_base": 0.01, "backoff_cap": 0.01}
    gateway = await stand.gateway(emulator.url, store=at(tmp_path), session=fast)
    audio, _ = call(40)
    quarter = len(audio) // 4 // 800 * 800
    watching = []
    async with dial(gateway, INTERIMS) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        got, seen = list[Message](), Events()
        for part in range(4):
            watching.append(asyncio.create_task(watch(gateway, id, events=seen if part == 0 else None)))
            await eventually(lambda: len(gateway._exchange.calls[id]._watchers) == len(watching))
            if part == 2:
                emulator.act("close")
            start, stop = part * quarter, len(audio) if part == 3 else (part + 1) * quarter
            if part == 0:
                await send(ws, audio[:stop])  # the stream of an observer that is there begins at once
                await eventually(lambda: any(name == "interim" for name, _, _ in seen))
                start = stop
            await send(ws, audio[start:stop])
            got += await read_until(ws, lambda message: bool(message.get("is_final")))
        await ws.send(CLOSE_STREAM)
        got += await read(ws)
    for task in watching:
        events = await task
        assert said(events) == finals(got) != []
        name, last, data = events[-1]
        assert (name, last) == ("end", "end")
        numbers = [int(one) for name, one, _ in events if name == "final" and one is not None]
        assert numbers == sorted(set(numbers))
    [session] = await ended(gateway)
    assert msgspec.convert(data, Session) == session
    assert said(await watch(gateway, id)) == finals(got)
    assert (await watch(gateway, id))[-1][0] == "end"


async def test_going_on_after_a_lost_connection(stand: Stand, tmp_path: Path) -> None:
    """By Last-Event-ID, within a call and after it; who has seen the end is told that there is no more."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    audio, _ = call(30)
    half = len(audio) // 2 // 800 * 800
    first: Events = []
    async with dial(gateway) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        watching = asyncio.create_task(watch(gateway, id, events=first))
        await send(ws, audio[:half])
        got = await read_until(ws, lambda message: bool(message.get("is_final")))
        await eventually(lambda: said(first))
        watching.cancel()
        await asyncio.wait([watching])
        await send(ws, audio[half:])
        await ws.send(CLOSE_STREAM)
        got += await read(ws)
    last = next(one for name, one, _ in reversed(first) if name == "final" and one is not None)
    assert said(first) + said(await watch(gateway, id, last)) == finals(got)
    status, _ = await status_of(gateway, id, "end")
    assert status == 204
    status, body = await status_of(gateway, id, "x")
    assert (status, body["err_msg"].partition(":")[0]) == (400, "Last-Event-ID")


async def status_of(gateway: Gateway, id: str, after: str) -> tuple[int, Any]:
    host, port = gateway.sidecar_address
    async with (
        ClientSession() as client,
        client.get(
            f"http://{host}:{port}/v1/sessions/{id}/events", headers={"Last-Event-ID": after}
        ) as response,
    ):
        text = await response.text()
        return response.status, json.loads(text) if text else None


async def test_what_is_not_stored_is_missing(stand: Stand) -> None:
    """Without a store an observer sees what is said from its coming on, and is told so."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, _ = call(30)
    half = len(audio) // 2 // 800 * 800
    async with dial(gateway) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        await send(ws, audio[:half])
        before = await read_until(ws, lambda message: bool(message.get("is_final")))
        events: Events = []
        watching = asyncio.create_task(watch(gateway, id, events=events))
        await eventually(lambda: events)
        await send(ws, audio[half:])
        await ws.send(CLOSE_STREAM)
        got = await read(ws)
    await watching
    assert events[0][0] == "missing"
    assert finals(before)[0] not in said(events)
    assert said(events)[-1] == finals(got)[-1]
    assert (await show(gateway, f"/v1/sessions/{id}"))[0] == 404


async def test_a_store_that_is_down(stand: Stand, tmp_path: Path) -> None:
    """A live call is shown all the same, and what cannot be read is said to be missing."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    async with dial(gateway) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        assert gateway.store is not None
        gateway.store.healthy = False
        assert (await show(gateway, f"/v1/sessions/{id}"))[0] == 200
        assert (await show(gateway, "/v1/sessions/other"))[0] == 503
        events: Events = []
        watching = asyncio.create_task(watch(gateway, id, events=events))
        await eventually(lambda: events)
        assert events[0][0] == "missing"
        gateway.store.healthy = True
        await ws.send(CLOSE_STREAM)
        await read(ws)
    assert (await watching)[-1][0] == "end"


async def test_one_that_does_not_read_is_cut(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a last event that says so; the call and other observers do not notice."""
    monkeypatch.setattr(observers, "MOST_BYTES", 4000)
    monkeypatch.setattr(events, "SEND_BUFFER_BYTES", 2048)
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    audio, _ = call(20)
    async with dial(gateway) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        loop, sock = asyncio.get_running_loop(), socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, gateway.sidecar_address)
        await loop.sock_sendall(
            sock, f"GET /v1/sessions/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        await eventually(lambda: gateway._exchange.calls[id]._watchers)
        good = asyncio.create_task(watch(gateway, id))
        live = gateway._exchange.calls[id]
        await eventually(lambda: len(live._watchers) == 2)
        slow = live._watchers[0]
        more = Deliver(b'{"transcript":"%s"}' % (b"x" * 3000), Kind.FINAL)
        for _ in range(200):  # as if very much were said, to this one alone
            slow.deliver(more)
            await asyncio.sleep(0)
        assert slow._over
        text = b""
        async with asyncio.timeout(10):
            while not text.endswith(b"\r\n0\r\n\r\n"):
                text += await loop.sock_recv(sock, 65536)
        sock.close()
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        got = await read(ws)
    assert b"event: slow" in text
    assert b"event: end" not in text
    assert said(await good) == finals(got)


async def test_observers_are_counted(stand: Stand) -> None:
    """No more than are let in; a seat is free again when one leaves."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, sidecar={"max_observers": 1})
    async with dial(gateway) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        [live] = gateway._exchange.calls.values()
        watching = asyncio.create_task(watch(gateway, id))
        await eventually(lambda: live._watchers)
        status, body = await show(gateway, f"/v1/sessions/{id}/events")
        assert (status, body["err_code"]) == (503, "UNAVAILABLE")
        watching.cancel()
        await eventually(lambda: not live._watchers)
        watching = asyncio.create_task(watch(gateway, id))
        await eventually(lambda: live._watchers)
        await ws.send(CLOSE_STREAM)
        await read(ws)
        assert (await watching)[-1][0] == "end"


async def test_live_calls_are_listed(stand: Stand) -> None:
    """The newest first, a page at a time, with how they go."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    assert await listed(gateway) == []
    async with dial(gateway) as one, dial(gateway), dial(gateway):
        await one.send(b"\xff" * 800)
        newest = await listed(gateway)
        assert len(newest) == 3
        assert newest == sorted(newest, key=lambda session: -session.created_at)
        await eventually(lambda: gateway.metrics.client_audio_bytes == 800)
        assert (await listed(gateway))[2].accepted_seconds == 0.1
        _, page = await show(gateway, "/v1/sessions?limit=2")
        following = await listed(gateway, f"?limit=2&cursor={page['next']}")
        assert [one["id"] for one in page["sessions"]] + [following[0].id] == [s.id for s in newest]
        assert {session.state for session in newest} == {"streaming"}
        for query in ("?limit=0", "?limit=x", "?limit=1001", "?cursor=x"):
            assert (await show(gateway, "/v1/sessions" + query))[0] == 400


async def test_other_principals_see_nothing(stand: Stand, tmp_path: Path) -> None:
    """Neither that a call is there, nor what is said in it."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    async with dial(gateway) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        [live] = gateway._exchange.calls.values()
        live.principal = Principal("someone", "key")
        assert await listed(gateway) == []
        for path in (f"/v1/sessions/{id}", f"/v1/sessions/{id}/events"):
            status, body = await show(gateway, path)
            assert status == 404
            other = (await show(gateway, path.replace(id, "none")))[1]
            assert body | {"request_id": ""} == other | {"request_id": ""}
        host, port = gateway.sidecar_address
        async with ClientSession() as client, client.delete(f"http://{host}:{port}/v1/sessions/{id}") as gone:
            assert gone.status == 404
        await ws.send(CLOSE_STREAM)
        await read(ws)
    await ended(gateway)
    assert (await show(gateway, f"/v1/sessions/{id}"))[0] == 404


async def test_a_call_that_is_over(stand: Stand, tmp_path: Path) -> None:
    """It is there at once, whether its row is written or not."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, store=at(tmp_path))
    lock = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    async with dial(gateway) as ws:
        assert ws.response is not None
        id = ws.response.headers["gw-session-id"]
        await ws.send(CLOSE_STREAM)
        await read(ws)
    await eventually(lambda: not gateway._exchange.calls)
    status, waiting = await show(gateway, f"/v1/sessions/{id}")
    assert (status, waiting["state"], waiting["outcome"]) == (200, "closed", "completed")
    lock.close()
    [session] = await ended(gateway)
    assert msgspec.convert((await show(gateway, f"/v1/sessions/{id}"))[1], Session) == session


async def test_ending_a_call(stand: Stand) -> None:
    """With Deepgram's last results."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    host, port = gateway.sidecar_address
    async with dial(gateway) as ws, ClientSession() as client:
        assert ws.response is not None
        await send(ws, call()[0])
        id = ws.response.headers["gw-session-id"]
        async with client.delete(f"http://{host}:{port}/v1/sessions/{id}") as response:
            assert response.status == 202
        got = await read(ws)
        assert got[-1]["type"] == "Metadata"
        assert ws.close_code == 1008
        async with client.delete(f"http://{host}:{port}/v1/sessions/{id}") as response:
            assert response.status == 404
