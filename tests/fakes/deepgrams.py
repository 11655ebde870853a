"""Upstreams that an emulator cannot be: they break the rules below its WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Self


class Answering:
    """Takes connections, reads one request head from each, answers `answer`, and then does `then`.

    `then` is "wait" (say nothing more), "close" or "reset". Without an answer nothing is ever said.
    """

    def __init__(self, answer: bytes | None, then: str = "wait", tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""
        self._answer = answer
        self._then = then
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0.01)  # the aborted transports tell their streams

    @property
    def open(self) -> int:
        """Connections that are not over."""
        return len(self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                if self._answer is not None:
                    writer.write(self._answer)
                    await writer.drain()
                if self._then == "reset":
                    writer.transport.abort()
                elif self._then == "wait":
                    await reader.read()
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
