"""The connection to Deepgram: how it is dialled, and what it says."""

from __future__ import annotations

import asyncio
import base64
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs
from websockets.client import ClientProtocol
from websockets.http11 import Response
from websockets.uri import parse_uri

from gateway.config import DeepgramConfig, RegionConfig
from gateway.errors import UpstreamRejected, UpstreamTimeout, UpstreamUnavailable
from gateway.live.wire import LOGGER, ClientSide, tune

SEND_BUFFER_BYTES: Final = 32_768
"""Small, so that audio waits in our replay buffer and not in the kernel: with the default a peer that stopped
reading took 480 s of G.711 (faults.md M2). The kernel doubles it."""
HAPPY_EYEBALLS_DELAY: Final = 0.25
"""RFC 8305 §8."""
LOOKUP_PATIENCE: Final = 1.0
"""Seconds for DNS where addresses are known from before."""
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
            self._owner.upstream_opened(self, event.headers.get("dg-request-id", ""))
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


class Dialer:
    """Opens connections: DNS, TCP by Happy Eyeballs, an egress proxy if there is one, TLS, WebSocket."""

    def __init__(self, config: DeepgramConfig) -> None:
        """Raises ConfigError's cause, OSError or ssl.SSLError, for an unusable `ca_file`."""
        self._config = config
        self._resolver = _Resolver()
        schemes = {urlsplit(region.url).scheme for region in config.regions}
        # Loading the system's authorities takes 50 ms and 2 MB, for nothing where no region has TLS.
        self.tls = ssl.create_default_context() if "https" in schemes or config.ca_file else None
        if self.tls is not None and config.ca_file:
            self.tls.load_verify_locations(config.ca_file)

    async def dial(self, region: RegionConfig, make_leg: Callable[[str], UpstreamLeg]) -> None:
        """Returns when the 101 is here; by then the leg has told its owner.

        `make_leg` gets the region's ws:// or wss:// base. Raises UpstreamRejected, UpstreamUnavailable or
        UpstreamTimeout; then nothing of the dial is left.
        """
        leg: UpstreamLeg | None = None
        try:
            async with asyncio.timeout(self._config.dial_timeout):
                leg = await self._connect(_place(region.url), make_leg)
                await leg.answered
        except TimeoutError:
            raise UpstreamTimeout(f"no answer in {self._config.dial_timeout:g} s") from None
        except (OSError, ssl.SSLError) as exc:
            raise UpstreamUnavailable(str(exc) or type(exc).__name__) from exc
        finally:
            if leg is not None and not leg.is_open():
                leg.abort()
                leg.answered.cancel()

    async def _connect(self, place: _Place, make_leg: Callable[[str], UpstreamLeg]) -> UpstreamLeg:
        base, host, port, is_secure, is_address = place
        loop = asyncio.get_running_loop()
        tls, name = (self.tls, host) if is_secure else (None, None)
        if is_address and not self._config.proxy:
            # Nothing to look up and no second address to race: one step of the loop's own.
            _, leg = await loop.create_connection(
                lambda: make_leg(base), host, port, ssl=tls, server_hostname=name
            )
            return leg
        sock = await self._reach(host, port)
        try:
            _, leg = await loop.create_connection(
                lambda: make_leg(base), sock=sock, ssl=tls, server_hostname=name
            )
        except BaseException:
            sock.close()
            raise
        return leg

    async def _reach(self, host: str, port: int) -> socket.socket:
        """A TCP connection to the host, through the proxy if one is set."""
        if not self._config.proxy:
            return await _tcp(await self._resolver.addresses(host, port))
        proxy = urlsplit(self._config.proxy)
        sock = await _tcp(await self._resolver.addresses(proxy.hostname or "", proxy.port or 80))
        try:
            await _tunnel(sock, host, port, proxy.username, proxy.password)
        except BaseException:
            sock.close()
            raise
        return sock


class _Place(NamedTuple):
    """Where a region's URL points to; `base` of a WebSocket URL there."""

    base: str
    host: str
    port: int
    is_secure: bool
    is_address: bool
    """`host` is no name."""


@functools.lru_cache
def _place(url: str) -> _Place:
    parts = urlsplit(url)
    is_secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if is_secure else 80)
    base = ("wss://" if is_secure else "ws://") + parts.netloc
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _Place(base, host, port, is_secure, is_address=False)
    return _Place(base, host, port, is_secure, is_address=True)


class _Resolver:
    """Remembers the last good addresses of each name, of which there are as many as regions: an outage of DNS
    ends no call, and none waits longer than `LOOKUP_PATIENCE` for what is known (faults.md 20)."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], list[Any]] = {}

    async def addresses(self, host: str, port: int) -> list[Any]:
        """Raises OSError for a name that was never found."""
        loop, known = asyncio.get_running_loop(), self._known.get((host, port))
        try:
            async with asyncio.timeout(LOOKUP_PATIENCE if known else None):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:  # TimeoutError is one
            if known is None:
                raise
            return known
        self._known[host, port] = found
        return found


async def _tcp(addresses: list[Any]) -> socket.socket:
    return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY)


async def _tunnel(sock: socket.socket, host: str, port: int, user: str | None, password: str | None) -> None:
    """HTTP CONNECT (RFC 9110 §9.3.6) on a connected socket. Raises OSError when the proxy will not."""
    loop = asyncio.get_running_loop()
    lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
    if user is not None:
        credentials = f"{unquote(user)}:{unquote(password or '')}".encode()
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(credentials).decode())
    await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        # One byte at a time: what follows the head belongs to Deepgram.
        byte = await loop.sock_recv(sock, 1)
        if not byte or len(answer) > MAX_BODY_BYTES:
            raise OSError("the egress proxy gave no HTTP answer")
        answer += byte
    if not re.match(rb"\S+ 2\d\d\b", answer):
        first_line = answer.partition(b"\r\n")[0].decode("latin-1")
        raise OSError(f"the egress proxy refused: {first_line}")
