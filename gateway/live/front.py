"""The client port: reads a request's head, then gives the connection to whom it is meant for.

Upgrades on a listen path become calls. Everything else that is HTTP goes, with the bytes already read, to the
sidecar's application for Deepgram's paths: websockets' parser would answer nothing to a POST with a body.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from gateway.auth import Credential, Principal, parse_credential
from gateway.config import is_loopback
from gateway.deepgram.errors import RESTART, TRY_LATER, Refusal
from gateway.deepgram.query import ListenQuery
from gateway.errors import ClientError
from gateway.live.call import Call, batch_window
from gateway.live.client import ClientLeg, ClientOwner
from gateway.live.exchange import Exchange
from gateway.live.handshake import plain_response, refusal_headers
from gateway.live.head import HEAD_END, LISTEN_PATHS, NOT_HTTP, TLS, Head, parse
from gateway.live.record import may_store
from gateway.live.wire import RECEIVED, tune
from gateway.session.resume import MISTAKEN, STRANGER, GatewayResume, Verdict, read

FIRST_MESSAGE: Final = 5.0
"""Seconds for a client that comes back to say who it is."""
SEND_BUFFER_BYTES: Final = 65_536
"""Of a client's socket: the kernel's own choice grew to megabytes, half an hour of results, before a client
that does not read was noticed (`session.client_slow`). The kernel doubles it."""

UPLOAD_BUFFER_BYTES: Final = 65_536
"""Of other clients' sockets: what is read at once is in memory. The kernel doubles it. Not of the listener's:
the kernel would offer no window scaling, and recordings come at 64 KiB in a round trip."""


def tune_listener(sock: socket.socket) -> None:
    """Options of every connection that `sock` accepts: they inherit them, which takes no call for each."""
    if sock.family != socket.AF_UNIX:
        tune(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


class HttpServer(Protocol):
    """What the sidecar's application is to the client port."""

    def protocol(self) -> asyncio.Protocol:
        """A protocol for a connection that is handed over."""

    @property
    def connections(self) -> int: ...


NOT_FOUND: Final = Refusal(
    404, "NOT_FOUND", "There is no such path; live audio goes to /v1/listen or /v2/listen."
)
BODY: Final = Refusal(400, "Bad Request", "An upgrade request has no body.")
WRONG_METHOD: Final = Refusal(405, "METHOD_NOT_ALLOWED", "A WebSocket upgrade is a GET request.")
FULL: Final = Refusal(
    503, "Service Unavailable", "The gateway has no room for another connection.", retry_after=5
)
NO_MEMORY: Final = Refusal(
    503, "Service Unavailable", "The gateway has no memory for another call.", retry_after=5
)
CALLBACK: Final = Refusal(
    400,
    "INVALID_QUERY_PARAMETER",
    "callback: live results go to the caller only; see session.allow_callback.",
)
DRAINING: Final = Refusal(503, "Service Unavailable", "The gateway is shutting down.", retry_after=1)
FOREIGN_ORIGIN: Final = Refusal(403, "FORBIDDEN", "Pages of this Origin may not call; see server.origins.")


class FrontDoor:
    """Makes a protocol per connection; `visitors` counts those whose request is not complete."""

    def __init__(self, exchange: Exchange, http: HttpServer) -> None:
        self.exchange = exchange
        self.http = http
        self.visitors = 0  # requests that are not complete, and connections that want a session back
        self.draining = False

    @property
    def connections(self) -> int:
        attached = len(self.exchange.calls) - self.exchange.metrics.sessions_detached
        return self.visitors + attached + self.http.connections

    def __call__(self) -> asyncio.BaseProtocol:
        return _Visitor(self)

    def refusal(self) -> Refusal | None:
        """Why nobody is let in now, if so."""
        if self.draining:
            return DRAINING
        return FULL if self.connections > self.exchange.config.server.max_connections else None

    def receive_call(self, head: Head, leg: ClientLeg) -> ClientOwner | None:
        """Opens the call that `head` asks for, or refuses it; no dial before the client is known."""
        try:
            refusal = self._objection(head, leg)
            credential = parse_credential(head.headers)
            principal = self.exchange.authenticator.authenticate(credential)
        except ClientError as exc:
            refusal = Refusal(exc.status, "INVALID_AUTH", str(exc))
        if refusal is not None:
            request_id = self.exchange.mint_request_id()
            leg.refuse(refusal.status, refusal_headers(refusal, request_id), refusal.body(request_id))
            return None
        wanted = self._wanted(head)
        if wanted and wanted != "1":
            return _Returning(self, leg, head, principal, credential, self.exchange.calls.get(wanted))
        call = Call(self.exchange, leg, head, principal, credential, resumable=wanted == "1")
        call.start()
        return call

    def _objection(self, head: Head, leg: ClientLeg) -> Refusal | None:
        if head.path not in LISTEN_PATHS:
            return NOT_FOUND
        if head.method != "GET":
            return WRONG_METHOD
        if head.has_body:
            return BODY
        if not origin_allowed(head.get("origin"), self.exchange.config.server.origins):
            return FOREIGN_ORIGIN
        if leg.handshake_error:
            return Refusal(400, "Bad Request", leg.handshake_error)
        if ListenQuery(head.query).has("callback") and not self.exchange.config.session.allow_callback:
            return CALLBACK
        try:
            batch_window(head)
            may_store(ListenQuery(head.query))
        except ValueError as exc:
            return Refusal(400, "Bad Request", str(exc))
        if self.exchange.is_full and self._wanted(head) not in self.exchange.calls:
            self.exchange.metrics.shed.add("refused")
            return NO_MEMORY
        return None

    def _wanted(self, head: Head) -> str | None:
        """What the client says of resuming: "1", or the id of the session that it wants back."""
        return ListenQuery(head.query).get("gw_resume") if self.exchange.config.resume.enabled else None


class _Returning:
    """A connection that wants a session back, until its first message says whether it may have it."""

    joins_audio = False

    def __init__(
        self,
        door: FrontDoor,
        leg: ClientLeg,
        head: Head,
        principal: Principal,
        credential: Credential | None,
        call: Call | None,
    ) -> None:
        """`call` is the one whose id was named, whoever's it is."""
        self._door = door
        self._leg = leg
        self._head = head
        self._principal = principal
        self._credential = credential
        # Somebody else's session is to nobody distinguishable from none.
        is_own = call is not None and call.principal == principal and call.session.resumption is not None
        self._call = call if is_own else None
        headers = []
        if self._call is not None:
            headers.append(("gw-session-id", self._call.session_id))
        known = self._call.session.request_id if self._call is not None else ""
        self._request_id = known or door.exchange.mint_request_id()
        leg.accept([("dg-request-id", self._request_id), *headers])
        door.visitors += 1
        self._deadline = asyncio.get_running_loop().call_later(FIRST_MESSAGE, self._mistaken)

    def client_audio(self, data: bytes) -> bool:
        self._mistaken()
        return True

    def client_text(self, text: str) -> None:
        try:
            request = read(text)
        except msgspec.ValidationError:
            request = None
        if not isinstance(request, GatewayResume):
            self._mistaken()
            return
        self._depart()
        verdict = self._call.take_over(self._leg, request) if self._call is not None else None
        if verdict is Verdict.STRANGER:
            self._leg.close(STRANGER, "that is not the session's token")
        elif verdict is not Verdict.WELCOME:
            self._begin_anew()
        self._door.exchange.metrics.resumes.add(verdict.value if verdict else "unknown")

    def client_frames(self, count: int) -> None:
        pass

    def client_turn(self) -> None:
        pass

    client_reads = client_turn

    def client_closed(self, code: int, sent: int | None) -> None:
        self._door.exchange.metrics.resumes.add("abandoned")
        self._depart()

    def client_overflowed(self) -> None:
        pass

    def defect(self) -> None:
        self._depart()
        self._leg.defect()

    def _begin_anew(self) -> None:
        door, leg = self._door, self._leg
        if door.draining or door.exchange.is_full:
            refusal, code = (DRAINING, RESTART) if door.draining else (NO_MEMORY, TRY_LATER)
            leg.close(code, refusal.message)
            return
        call = Call(
            door.exchange,
            leg,
            self._head,
            self._principal,
            self._credential,
            resumable=True,
            request_id=self._request_id,
        )
        leg.owner = call
        call.start()

    def _mistaken(self) -> None:
        self._door.exchange.metrics.resumes.add("mistaken")
        self._depart()
        self._leg.close(MISTAKEN, "a GatewayResume must come first, and soon")

    def _depart(self) -> None:
        self._leg.owner = None
        self._deadline.cancel()
        self._door.visitors -= 1


class _Visitor(asyncio.BufferedProtocol):
    """A connection until its request's head is complete."""

    def __init__(self, door: FrontDoor) -> None:
        self._door = door
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance check: uvloop's transports do not derive from asyncio's.
        self._transport = transport = cast("asyncio.Transport", transport)
        self._door.visitors += 1
        timeout = self._door.exchange.config.server.handshake_timeout
        self._deadline = asyncio.get_running_loop().call_later(timeout, self._too_slow)
        refusal = self._door.refusal()
        if refusal is not None:
            reason = "draining" if self._door.draining else "capacity"
            self._door.exchange.metrics.client_aborted.add(reason)
            self._refuse(refusal)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._data += RECEIVED[:nbytes]
        head = parse(self._data)
        if isinstance(head, Refusal):
            self._note(head, self._transport)
            self._refuse(head)
        elif head is not None:
            self._hand_over(head, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._door.visitors -= 1
        if self._deadline is not None:
            self._deadline.cancel()

    def _hand_over(self, head: Head, transport: asyncio.Transport) -> None:
        self._leave()
        if head.wants_websocket:
            self._begin_call(head, transport)
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UPLOAD_BUFFER_BYTES)
        protocol = self._door.http.protocol()
        # uvloop asks a protocol how it wants its bytes only when reading begins.
        transport.pause_reading()
        transport.set_protocol(protocol)
        transport.resume_reading()
        protocol.connection_made(transport)
        protocol.data_received(self._data)

    def _begin_call(self, head: Head, transport: asyncio.Transport) -> None:
        server = self._door.exchange.config.server
        leg = ClientLeg(head, server.max_message_bytes, server.write_buffer_bytes)
        transport.set_protocol(leg)
        leg.connection_made(transport)
        leg.owner = self._door.receive_call(head, leg)
        leg.flush()
        if early := self._data.partition(HEAD_END)[2]:
            leg.data_received(early)

    def _note(self, refusal: Refusal, transport: asyncio.Transport) -> None:
        """Of who speaks something else than HTTP nothing else is ever seen."""
        exchange = self._door.exchange
        if refusal is TLS:
            exchange.metrics.client_aborted.add("tls")
            address = transport.get_extra_info("peername")
            exchange.log.warning("client.spoke_tls", peer=address[0] if address else "")
        elif refusal is NOT_HTTP:
            exchange.metrics.client_aborted.add("not_http")

    def _refuse(self, refusal: Refusal) -> None:
        assert self._transport is not None
        self._transport.write(plain_response(refusal, self._door.exchange.mint_request_id()))
        self._transport.close()

    def _too_slow(self) -> None:
        self._door.exchange.metrics.client_aborted.add("handshake_timeout")
        if self._transport is not None:
            self._transport.abort()


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """Whether a browser page from `origin` may open calls: one that is listed, or one of this machine.

    Without this any web page could spend the gateway's key through a visitor's browser (security.md S2).
    """
    if origin is None or origin in allowed or "*" in allowed:
        return True
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:  # an address in brackets that is none
        return False
    return is_loopback(host)
