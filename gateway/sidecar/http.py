"""How an aiohttp application meets sockets: by its own listener, or handed over by another server."""

from __future__ import annotations

import asyncio
from typing import Final, Self

from aiohttp import web
from aiohttp.typedefs import Handler

READ_AHEAD_BYTES: Final = 65_536
"""Of a body: with twice that unread, its sender has to wait."""
LINGERING: Final = 1.0
"""Seconds in which a body that was refused is read on, so that its sender gets to see the answer: closing
with bytes unread is a TCP reset, and that may overtake it."""


class HttpServer:
    """One application and its connections: each delivers a whole request head in `header_timeout` seconds.

    aiohttp has no such deadline: a client that sends a line a second, or nothing, would be kept. From
    the second request on its keep-alive timeout, which gets the same value, bounds a head that drips in.

    `async with HttpServer(app, 10.0) as server:`, then `listen` or `protocol`; one server per application.
    """

    def __init__(self, app: web.Application, header_timeout: float) -> None:
        self._header_timeout = header_timeout
        self._waiting: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}
        self._listeners: list[asyncio.Server] = []
        app.middlewares.insert(0, self._head_complete)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=header_timeout,
            lingering_time=LINGERING,
            shutdown_timeout=1.0,
            read_bufsize=READ_AHEAD_BYTES,
            auto_decompress=False,  # what comes packed is refused, never opened
            handler_cancellation=True,  # who has left needs no answer
        )

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop listening, let running requests end for a second, close every connection."""
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    @property
    def connections(self) -> int:
        """Open connections, those of `protocol` included."""
        server = self._runner.server
        return len(server.connections) if server is not None else 0

    def protocol(self) -> web.RequestHandler:
        """A protocol for one connection; who hands one over calls `connection_made`, then `data_received`."""
        server = self._runner.server
        if server is None:
            raise RuntimeError("use `async with` first")
        protocol = server()
        loop = asyncio.get_running_loop()
        self._waiting[protocol] = loop.call_later(self._header_timeout, self._head_late, protocol)
        return protocol

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept connections; returns the address, where port 0 is the one chosen. Raises `OSError`."""
        listener = await asyncio.get_running_loop().create_server(self.protocol, host, port)
        self._listeners.append(listener)
        address = listener.sockets[0].getsockname()
        return address[0], address[1]

    @web.middleware
    async def _head_complete(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        timer = self._waiting.pop(request.protocol, None)
        if timer:
            timer.cancel()
        return await handler(request)

    def _head_late(self, protocol: web.RequestHandler) -> None:
        del self._waiting[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()
