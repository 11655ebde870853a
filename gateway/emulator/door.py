"""One port for everything: look at a request's head and hand it to the WebSocket or the HTTP side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from gateway.emulator.connection import Connection
from gateway.emulator.host import Host

_MAX_HEAD_BYTES = 65536


class Door(asyncio.Protocol):
    """Collects the first request's head, then gives the socket away."""

    _transport: asyncio.Transport

    def __init__(self, host: Host, http: Callable[[], asyncio.BaseProtocol]) -> None:
        self._host = host
        self._http = http
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._host.doors.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.doors.discard(self)

    def data_received(self, data: bytes) -> None:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end >= 0 or len(self._head) > _MAX_HEAD_BYTES:
            self._hand_over(_wants_upgrade(self._head[: end + 2]))

    def _hand_over(self, upgrade: bool) -> None:
        transport = self._transport
        self._host.doors.discard(self)
        taker = Connection(self._host, self._host.new_record()) if upgrade else self._http()
        transport.set_protocol(taker)
        taker.connection_made(transport)
        cast("asyncio.Protocol", taker).data_received(self._head)
        self._head = b""

    def abort(self) -> None:
        """Drop a connection that never sent a request."""
        self._transport.abort()


def _wants_upgrade(head: bytes) -> bool:
    """Whether a request's head asks for a WebSocket."""
    lines = head.lower().split(b"\r\n")
    return any(line.startswith(b"upgrade:") and b"websocket" in line for line in lines[1:])
