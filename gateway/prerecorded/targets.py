"""Connections to addresses that somebody outside named: resolved once, judged, and made to what was judged.

No connection is kept for the next request, no cookie, no proxy of the environment (security.md S34-S41, S44).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from aiohttp import (
    AddrInfoType,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_exceptions import ClientConnectorCertificateError
from yarl import URL

from gateway.config import CallbackConfig
from gateway.errors import TargetBusy, TargetError
from gateway.policy.targets import NOT_FROM_HERE, Target, judge, permits, rules

LOOKUP_SECONDS: Final = 2.0
"""For resolving a name. A refusal at intake takes just as long, whatever its cause."""
LOOKUPS: Final = 64
"""Names that are resolved at once."""
LOOKUPS_OF_PRINCIPAL: Final = 32
"""For one principal: names that hang, of however many domains, must leave places for the others."""
LOOKUPS_OF_DOMAIN: Final = 16
"""Of one domain for one principal: its other names need not wait for those that hang."""
NOT_NOW: Final = "cannot be looked up now, since too many others are"
CONNECT_SECONDS: Final = 3.0
"""TCP and TLS; long enough for one lost SYN."""
MAX_ANSWER_BYTES: Final = 65_536
"""Read of a receiver's answer, and thrown away; what counts is its status."""
MOST_REDIRECTS: Final = 3
REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
FETCHED_TYPES: Final = (
    "audio/",
    "video/",
    "application/ogg",
    "application/octet-stream",
    "binary/octet-stream",
)

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name; raises OSError. The port is a help for the resolver only."""


class Reply(NamedTuple):
    """What became of a request: the receiver's `status`, or none and why in `error`."""

    status: int | None
    error: str = ""
    retry_after: float = 0.0
    """Seconds; 0 where nothing was said."""


class Fetched(NamedTuple):
    """A recording that is being fetched; `size` in bytes where the other side said it."""

    media_type: str
    size: int | None
    chunks: AsyncIterator[bytes]


class Targets:
    """Judges addresses and connects to those that may be. `own_ports`: where this process listens (S44).

    A `principal` is whose address it is: each has its share of what is looked up at once.
    """

    def __init__(
        self, config: CallbackConfig, own_ports: Callable[[], Collection[int]], lookup: Lookup | None = None
    ) -> None:
        """Raises OSError for a `ca_file` that is none."""
        self._rules = rules(config.allow_http, config.ports, config.allow)
        self._own_ports = own_ports
        self._lookup = lookup or _resolve
        self._places = asyncio.Semaphore(LOOKUPS)
        self._shares: WeakValueDictionary[tuple[str, str], asyncio.Semaphore] = WeakValueDictionary()
        """By principal and domain, "" for all of a principal's."""
        self._looking: dict[tuple[str, str], asyncio.Task[Sequence[str]]] = {}  # by principal and host
        self._tls = ssl.create_default_context()
        if config.ca_file:
            self._tls.load_verify_locations(config.ca_file)

    def judge(self, url: str) -> Target:
        """What can be told without asking anyone; for more, `check`. Raises TargetError."""
        return judge(url, self._rules)

    async def check(self, principal: str, url: str) -> Target:
        """Whether `url` may be connected to now; at intake, so that the caller hears of it.

        Refused, unknown and unresolvable look alike, and take equally long (S40). Raises TargetError, and
        TargetBusy when that cannot be told now.
        """
        target = self.judge(url)
        loop = asyncio.get_running_loop()
        answer_at = loop.time() + LOOKUP_SECONDS
        try:
            await self._addresses(principal, target)
        except TargetError:
            await asyncio.sleep(answer_at - loop.time())
            raise
        return target

    async def post(
        self, principal: str, url: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> Reply:
        """One POST in at most `seconds`, no redirect followed. The error is fit for whoever named the URL."""
        try:
            async with (
                asyncio.timeout(seconds),
                self._request(principal, "POST", self.judge(url), headers, body) as response,
            ):
                await _drain(response)
                return Reply(response.status, retry_after=_retry_after(response))
        except TargetError as exc:
            return Reply(None, str(exc))
        except TimeoutError:
            return Reply(None, "no answer in time")

    @contextlib.asynccontextmanager
    async def fetch(
        self,
        principal: str,
        url: str,
        *,
        max_bytes: int,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Fetched]:
        """A recording from `url`, at most `max_bytes` of it in `seconds`, over at most three redirects.

        Each redirect is judged anew; none leads from https to http; `headers` go to the first origin only.
        Raises TargetError, also while the chunks are read.
        """
        target = self.judge(url)
        given = dict(headers or {})
        try:
            async with asyncio.timeout(seconds), contextlib.AsyncExitStack() as stack:
                for _ in range(MOST_REDIRECTS + 1):
                    request = self._request(principal, "GET", target, given)
                    response = await stack.enter_async_context(request)
                    if response.status not in REDIRECTS:
                        yield _fetched(response, max_bytes)
                        return
                    there = self._redirected(target, response.headers.get("Location", ""))
                    if there[:3] != target[:3]:
                        given.clear()
                    target = there
                    await stack.aclose()
                raise TargetError("redirects too often")
        except TimeoutError:
            raise TargetError("took too long") from None
        except ClientError:
            raise TargetError(NOT_FROM_HERE) from None

    def _redirected(self, target: Target, location: str) -> Target:
        try:
            there = str(URL(target.url, encoded=True).join(URL(location)))
        except ValueError:
            raise TargetError(NOT_FROM_HERE) from None
        found = self.judge(there)
        if found.scheme != "https" and target.scheme == "https":
            raise TargetError("redirects from https to http")
        return found

    async def _addresses(self, principal: str, target: Target) -> frozenset[IPv4Address | IPv6Address]:
        """Where a connection for `target` may go. One address that may not be is enough to refuse all."""
        literal = target.literal
        found: Sequence[str] = (target.host,)
        if literal is None:
            try:
                found = await self._found(principal, target)
            except (OSError, ValueError):  # TimeoutError is one; ValueError: what IDNA cannot encode
                raise TargetError(NOT_FROM_HERE) from None
        is_ours = target.port in self._own_ports()
        if not found or any(
            not permits(self._rules, target, one) or (is_ours and _is_this_machine(one)) for one in found
        ):
            raise TargetError(NOT_FROM_HERE)
        return frozenset(map(ip_address, found))

    async def _found(self, principal: str, target: Target) -> Sequence[str]:
        """What its name resolves to; a principal that asks again meanwhile shares that.

        Not several of them: one would wait in another's places. Raises TargetBusy, OSError.
        """
        key = principal, target.host
        looking = self._looking.get(key)
        if looking is None:
            looking = self._looking[key] = asyncio.create_task(self._ask(principal, target))
            looking.add_done_callback(lambda _: self._looking.pop(key))
            looking.add_done_callback(_noticed)
        return await asyncio.shield(looking)

    async def _ask(self, principal: str, target: Target) -> Sequence[str]:
        free = await self._place(principal, ".".join(target.host.rsplit(".", 2)[-2:]))
        answer = asyncio.ensure_future(self._lookup(target.host, target.port))
        answer.add_done_callback(
            lambda _: free()
        )  # which of a name that hangs comes after everybody has left
        answer.add_done_callback(_noticed)
        async with asyncio.timeout(LOOKUP_SECONDS):
            return await asyncio.shield(answer)

    async def _place(self, principal: str, domain: str) -> Callable[[], None]:
        """Gives a place back. Raises TargetBusy when none becomes free.

        The smallest share comes first: who waits there holds no place in a larger one.
        """
        domains = self._share(principal, domain, LOOKUPS_OF_DOMAIN)
        own = self._share(principal, "", LOOKUPS_OF_PRINCIPAL)
        with contextlib.ExitStack() as taken:
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    for places in (domains, own, self._places):
                        await places.acquire()
                        taken.callback(places.release)
            except TimeoutError:
                raise TargetBusy(NOT_NOW) from None
            return taken.pop_all().close

    def _share(self, principal: str, domain: str, most: int) -> asyncio.Semaphore:
        """Kept for as long as somebody has a place of it, or waits for one."""
        share = self._shares.get((principal, domain))
        if share is None:
            share = self._shares[principal, domain] = asyncio.Semaphore(most)
        return share

    @contextlib.asynccontextmanager
    async def _request(
        self,
        principal: str,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> AsyncIterator[ClientResponse]:
        """Raises TargetError for whatever keeps an answer from coming."""
        judged = await self._addresses(principal, target)

        def socket_for(address: AddrInfoType) -> socket.socket:
            """Every connection comes by here; one to a literal address asks no resolver (M6)."""
            if ip_address(address[4][0]) not in judged:
                raise OSError(errno.EACCES, "not the address that was judged")
            return socket.socket(*address[:3])

        connector = TCPConnector(
            resolver=_Pinned(judged),
            socket_factory=socket_for,
            use_dns_cache=False,
            force_close=True,
            ssl=self._tls,
        )
        session = ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,  # a gzip bomb stays as small as it came
            trust_env=False,
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            read_bufsize=MAX_ANSWER_BYTES,
        )
        async with session:
            try:
                response = await session.request(
                    method, URL(target.url, encoded=True), data=body, headers=headers, allow_redirects=False
                )
            except ClientConnectorCertificateError:
                raise TargetError("has a certificate that is not trusted") from None
            except (ClientError, OSError, ValueError):
                raise TargetError(NOT_FROM_HERE) from None
            try:
                yield response
            finally:
                response.close()


class _Pinned(AbstractResolver):
    """Gives out the addresses that were judged, whatever is asked."""

    def __init__(self, addresses: Collection[IPv4Address | IPv6Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def _resolve(host: str, port: int) -> Sequence[str]:
    """The system's resolver, in threads of its own: names that hang must not hold up the dials to Deepgram,
    which share the loop's few."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Sequence[str]] = loop.create_future()

    def finish(found: Sequence[str], error: OSError | None) -> None:
        if not done.done():  # nobody waits any more
            done.set_exception(error) if error else done.set_result(found)

    def look() -> None:
        found: Sequence[str] = ()
        error: OSError | None = None
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [str(info[4][0]) for info in infos]
        except (OSError, UnicodeError) as exc:
            error = exc if isinstance(exc, OSError) else OSError(str(exc))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, found, error)

    threading.Thread(target=look, name="lookup", daemon=True).start()
    return await done


def _noticed(done: asyncio.Future[Any]) -> None:
    """Its failure is told to whoever waits, if anybody still does."""
    if not done.cancelled():
        done.exception()


def _is_this_machine(address: str) -> bool:
    """Whether packets to `address` stay here: it can be bound, without asking for a port."""
    one = ip_address(address)
    one = getattr(one, "ipv4_mapped", None) or one
    if one.is_loopback:
        return True
    family = socket.AF_INET if one.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(one), 0))
    except OSError:
        return False
    return True


async def _drain(response: ClientResponse) -> None:
    """Reads what a polite receiver says, so that its connection ends cleanly."""
    left = MAX_ANSWER_BYTES
    with contextlib.suppress(ClientError):
        while left > 0 and (chunk := await response.content.read(left)):
            left -= len(chunk)


def _retry_after(response: ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0


def _fetched(response: ClientResponse, max_bytes: int) -> Fetched:
    if not 200 <= response.status < 300:
        raise TargetError(f"could not be fetched: its server answered {response.status}")
    media_type = response.content_type  # application/octet-stream where none was sent
    if not media_type.startswith(FETCHED_TYPES):
        raise TargetError("is no recording: its server names another media type")
    size = response.content_length
    if size is not None and size > max_bytes:
        raise TargetError(f"is larger than {max_bytes} bytes")
    return Fetched(media_type, size, _chunks(response, max_bytes))


async def _chunks(response: ClientResponse, left: int) -> AsyncIterator[bytes]:
    most = left
    async for chunk in response.content.iter_any():
        left -= len(chunk)
        if left < 0:
            raise TargetError(f"is larger than {most} bytes")
        yield chunk
