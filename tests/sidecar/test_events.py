"""Server-sent events, to somebody who reads and to somebody who does not."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from gateway.sidecar import events


async def test_a_reader_gets_events() -> None:
    """Under the type that browsers ask for, each with an empty line behind it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = await events.opened(request)
        await response.send("one", event="final", id="1")
        await response.send("two")
        return response

    app = web.Application()
    app.router.add_get("/", handle)
    async with (
        TestServer(app) as server,
        ClientSession() as session,
        session.get(server.make_url("/")) as got,
    ):
        assert got.content_type == "text/event-stream"
        assert sorted((await got.text()).split("\n\n")[0].splitlines()) == [
            "data: one",
            "event: final",
            "id: 1",
        ]


async def test_who_does_not_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the socket does not take within the time is an error, after a bounded number of bytes."""
    monkeypatch.setattr(events, "SEND_SECONDS", 0.2)
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = await events.opened(request)
        sent = 0
        try:
            while sent < 256:
                await response.send("x" * 65_536)
                sent += 1
        except (ConnectionError, TimeoutError):
            ended.set_result(sent)
        else:
            ended.set_exception(AssertionError("16 MiB were taken for read"))
        return response

    app = web.Application()
    app.router.add_get("/", handle)
    async with TestServer(app) as server, asyncio.timeout(20):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, ("127.0.0.1", server.port))
            await loop.sock_sendall(deaf, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert await ended < 32
