"""Connections of the HTTP server that do not do what they should."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from aiohttp import web

from gateway.sidecar.http import HttpServer

HEADER_TIMEOUT = 0.3


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(3 * HEADER_TIMEOUT)
        return web.Response(text="slow")

    app = web.Application()
    app.router.add_get("/slow", slow)
    async with HttpServer(app, HEADER_TIMEOUT) as server:
        yield server


async def drip(port: int, chunks: list[bytes], pause: float = 0.05) -> float:
    """Send the chunks with pauses, the last one again and again; returns when the server hung up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.monotonic()

    async def send() -> None:
        with suppress(OSError):
            for chunk in chunks + chunks[-1:] * 100:
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    with suppress(OSError):
        while await asyncio.wait_for(reader.read(1024), 5):
            pass
    sending.cancel()
    writer.close()
    return time.monotonic() - start


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b""], id="silent"),
        pytest.param([b"GET /slow HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"], id="a header line at a time"),
        pytest.param([b"GET /", b"a"], id="a letter at a time"),
    ],
)
async def test_head_deadline(server: HttpServer, chunks: list[bytes]) -> None:
    """A connection that delivers no complete head is closed at the deadline, however busy it is."""
    _, port = await server.listen("127.0.0.1", 0)
    assert HEADER_TIMEOUT * 0.9 < await drip(port, chunks) < HEADER_TIMEOUT * 3


async def test_second_head_deadline(server: HttpServer) -> None:
    """A kept-alive connection has the same deadline for its next head."""
    _, port = await server.listen("127.0.0.1", 0)
    whole = b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"
    assert HEADER_TIMEOUT * 0.9 < await drip(port, [whole, b"GET /none HTTP/1.1\r\n", b"X: y\r\n"]) < 1.5


async def test_body_in_drips(server: HttpServer) -> None:
    """A body that never ends does not keep the connection."""
    _, port = await server.listen("127.0.0.1", 0)
    head = b"GET /none HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    assert await drip(port, [head, b"x"]) < 3


async def test_deadline_is_for_the_head_only(server: HttpServer) -> None:
    """A handler may take longer than the head may."""
    _, port = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).endswith(b"slow")
    writer.close()


async def test_connection_handed_over(server: HttpServer) -> None:
    """A connection that another server began to read is answered from the bytes that it hands over."""

    class Handover(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            protocol = server.protocol()
            protocol.connection_made(self.transport)
            self.transport.set_protocol(protocol)
            protocol.data_received(data)

    loop = asyncio.get_running_loop()
    listener = await loop.create_server(Handover, "127.0.0.1", 0)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 404 Not Found\r\n"
        writer.close()


async def test_close_does_not_wait_for_clients() -> None:
    """Leaving the server closes idle connections at once."""
    async with HttpServer(web.Application(), 30.0) as server:
        _, port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        start = time.monotonic()
    assert time.monotonic() - start < 3
    await asyncio.wait_for(reader.read(), 1)
    writer.close()
