"""How Deepgram is reached: DNS, TCP, an egress proxy if there is one, TLS, and the 101."""

from __future__ import annotations

import asyncio
import base64
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs

from gateway.config import DeepgramConfig, RegionConfig
from gateway.errors import UpstreamTimeout, UpstreamUnavailable
from gateway.live.upstream import MAX_BODY_BYTES, UpstreamLeg

HAPPY_EYEBALLS_DELAY: Final = 0.25
"""RFC 8305 §8."""
LOOKUP_PATIENCE: Final = 1.0
"""Seconds for DNS where addresses are known from before."""


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

        `make_leg` gets the region's ws:// or wss:// base. Raises UpstreamUnavailable or
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
