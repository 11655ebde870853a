"""A receiver of callbacks and a host of recordings, as bad as a test wants it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import NamedTuple, Self

from aiohttp import web


class Received(NamedTuple):
    """One request; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    server_name: str | None


class Receiver:
    """`answers` are given one after the other by path, the last for ever; 200 where there is none.

    An answer is a status, the place to redirect to (`307 https://…`), `hang`, `half` (a head, then nothing),
    `endless` (a body without end) or `drop` (the connection is closed).
    """

    def __init__(self, answers: Mapping[str, list[str]] | None = None) -> None:
        self.answers = {path: list(given) for path, given in (answers or {}).items()}
        self.received: list[Received] = []
        self.connections = 0
        self.under_way = self.most_under_way = 0
        self.bytes_sent = 0
        self.port = 0
        self._names: list[str | None] = []
        self._server: asyncio.Server | None = None
        self._web = web.Server(self._handle, access_log=None, handler_cancellation=True)

    async def start(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> Self:
        if tls is not None:
            tls.sni_callback = lambda _socket, name, _context: self._names.append(name)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connected, host, port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._web.shutdown(0.1)

    async def __aenter__(self) -> Self:
        return self if self.port else await self.start()

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def _connected(self) -> web.RequestHandler:
        self.connections += 1
        return self._web()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self._answer(request)
        finally:
            self.under_way -= 1

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        name = self._names[-1] if self._names else None
        self.received.append(Received(request.method, request.path, headers, await request.read(), name))
        script = self.answers.get(request.path, ["200"])
        answer, _, rest = (script.pop(0) if len(script) > 1 else script[0]).partition(" ")
        if answer == "hang":
            await asyncio.sleep(3600)
        if answer == "drop":
            assert request.transport is not None
            request.transport.abort()
            await asyncio.sleep(3600)
        if answer in ("half", "endless"):
            return await self._stream(request, endless=answer == "endless")
        key = "Location" if answer.startswith("3") else "Retry-After"
        return web.Response(
            status=int(answer), headers={key: rest} if rest else {}, body=b"audio", content_type="audio/wav"
        )

    async def _stream(self, request: web.BaseRequest, *, endless: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
        await response.prepare(request)
        while endless:
            await response.write(bytes(65_536))
            self.bytes_sent += 65_536
        await asyncio.sleep(3600)
        return response
