"""A small HTTP CONNECT proxy, as companies put between their servers and the world."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Self


class EgressProxy:
    """Tunnels to wherever it is asked, if `login` ("user:password") is right; or answers `refuse` to all.
    What it says when it does is `agree`.

    `requests` holds every request head that came.
    """

    def __init__(
        self, login: str = "", refuse: bytes = b"", agree: bytes = b"200 Connection established"
    ) -> None:
        self.requests: list[bytes] = []
        self.tunnels = 0
        self.port = 0
        self._login = login
        self._refuse = refuse
        self._agree = agree
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._tunnel(reader, writer)
        await _hang_up(writer)
        self._tasks.discard(task)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        answer = self._refuse or self._objection(head)
        if answer:
            writer.write(answer)
            await writer.drain()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self.tunnels += 1
        # Head and first bytes in one packet, as a proxy may send them; the reader must not take too much.
        writer.write(b"HTTP/1.1 " + self._agree + b"\r\nVia: 1.1 test\r\n\r\n")
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            await _hang_up(far_writer)

    def _objection(self, head: bytes) -> bytes:
        if not head.startswith(b"CONNECT "):
            return b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"
        wanted = b"Proxy-Authorization: Basic " + base64.b64encode(self._login.encode()) + b"\r\n"
        if self._login and wanted not in head:
            return b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        return b""


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
