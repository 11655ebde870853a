"""The connection to Deepgram: what it says, and what is said on it."""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import Any, Final, Protocol

from websockets.client import ClientProtocol
from websockets.http11 import Response
from websockets.uri import parse_uri

from gateway.errors import UpstreamRejected, UpstreamUnavailable
from gateway.live.wire import LOGGER, ClientSide, tune

SEND_BUFFER_BYTES: Final = 32_768
"""Small, so that audio waits in our replay buffer and not in the kernel: with the default a peer that stopped
reading took 480 s of G.711 (faults.md M2). The kernel doubles it."""
MAX_BODY_BYTES: Final = 65_536


_uri: Final = functools.lru_cache(128)(parse_uri)  # the calls of one phone system all dial the same


class UpstreamOwner(Protocol):
    """Who is told what an upstream connection says."""

    def upstream_opened(self, leg: UpstreamLeg, request_id: str) -> None: ...
    def upstream_text(self, leg: UpstreamLeg, data: bytes) -> bool:
        """True: nothing comes of it that `upstream_heard` would have to see to."""

    def upstream_heard(self, leg: UpstreamLeg) -> None:
        """A read is done: time to send and deliver."""

    def upstream_blocked(self, leg: UpstreamLeg, blocked: bool) -> None:
        """Deepgram does not read what we sent, or reads it again."""

    def upstream_closed(self, leg: UpstreamLeg, code: int, reason: str) -> None: ...
    def defect(self) -> None:
        """A mistake of ours came to light in what Deepgram said; the exception is being handled."""


class UpstreamLeg(ClientSide):
    """`answered` ends when Deepgram has answered the upgrade, with an UpstreamError unless by 101."""

    __slots__ = ("_handshake", "_owner", "answered", "epoch")

    def __init__(
        self,
        url: str,
        headers: list[tuple[str, str]],
        owner: UpstreamOwner,
        epoch: int,
        *,
        max_message_bytes: int,
        write_limit: int,
    ) -> None:
        ws = ClientProtocol(_uri(url), max_size=max_message_bytes, logger=LOGGER)
        super().__init__(ws, max_message_bytes, write_limit)
        self._handshake: ClientProtocol | None = ws  # until it is done
        self.epoch = epoch
        self.answered: asyncio.Future[None] = self._loop.create_future()
        self._owner = owner
        request = ws.connect()
        for name, value in headers:
            request.headers[name] = value
        ws.send_request(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        shown = transport.get_extra_info("socket")
        # uvloop's stand-in makes a socket of its own for every option.
        sock = socket.socket(shown.family, shown.type, shown.proto, shown.fileno())
        try:
            tune(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        finally:
            sock.detach()
        self.flush()

    def handshake_received(self, event: Any) -> None:
        assert isinstance(event, Response)
        assert self._handshake is not None
        if self.is_open():
            self._handshake = None
            if not self.answered.done():
                self.answered.set_result(None)
            ids = event.headers.get_all("dg-request-id")  # none, or whatever a proxy makes of them
            self._owner.upstream_opened(self, next(filter(str.isascii, ids), ""))
        elif event.status_code < 400:  # a 101 that is none, a redirect, a web page
            why = self._handshake.handshake_exc or f"HTTP {event.status_code}"
            self._fail(UpstreamUnavailable(f"no WebSocket server answered: {why}"))
        else:
            body = bytes(event.body or b"")[:MAX_BODY_BYTES]
            self._fail(UpstreamRejected(event.status_code, list(event.headers.raw_items()), body))

    def text_received(self, data: bytes) -> bool:
        return self._owner.upstream_text(self, data)

    def read_done(self) -> None:
        if self._handshake is None:
            self._owner.upstream_heard(self)
            if self._ws is not None and self._ws.close_rcvd is not None and not self._lost:
                self._lost = True  # nothing follows a close frame; the end of TCP is not waited for
                self.lost(self._ws.close_rcvd.code, self._ws.close_rcvd.reason)
        elif self._handshake.handshake_exc is not None:
            self._fail(UpstreamUnavailable(f"no WebSocket server answered: {self._handshake.handshake_exc}"))

    def lost(self, code: int, reason: str) -> None:
        self._fail(UpstreamUnavailable("the connection ended before Deepgram answered"))
        self._owner.upstream_closed(self, code, reason)

    def writable_changed(self) -> None:
        self._owner.upstream_blocked(self, not self.writable)

    def defect(self) -> None:
        self._owner.defect()

    def _fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)
