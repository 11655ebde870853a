"""A network between two ends that can be made bad: one TCP relay, one `Link` for each connection through it.

Nothing here knows WebSockets, but for the head of the upgrade: its query's `tag` says whose connection it is,
and the answer's `dg-request-id` how the far end calls it.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections import defaultdict, deque
from typing import Final, cast

BACKLOG_BYTES: Final = 65_536
"""What a pipe takes in while it lets nothing out; more stays in the kernels, as it would on a real path."""
SLICE_SECONDS: Final = 0.002
DRIP_SECONDS: Final = 2.0
_TAG = re.compile(rb"[?&]tag=([^& ]+)")
_REQUEST_ID = re.compile(rb"\r\ndg-request-id: *([^\r ]+)", re.IGNORECASE)


def reset(transport: asyncio.Transport | None) -> None:
    """The end of TCP by RST."""
    if transport is not None and not transport.is_closing():
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class Pipe:
    """One direction of a link. Bytes keep their order whatever happens to their time."""

    def __init__(self) -> None:
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.carried = 0
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued = 0
        self._timer: asyncio.TimerHandle | None = None
        self._held_until = self._late_until = self._limited_until = self._sliced_until = 0.0
        self._delay = self._jitter = 0.0
        self._rate = 1.0
        self._slice = 0
        self._ended = False

    def hold(self, until: float) -> None:
        """Lets nothing out before `until`."""
        self._held_until = max(self._held_until, until)

    def late(self, delay: float, until: float, jitter: float = 0.0) -> None:
        """What comes before `until` takes `delay` seconds longer, and up to `jitter` more."""
        self._delay, self._jitter, self._late_until = delay, jitter, until

    def limit(self, rate: float, until: float) -> None:
        """At most `rate` bytes in a second."""
        self._rate, self._limited_until = rate, until

    def slice(self, size: int, until: float) -> None:
        """At most `size` bytes in a segment."""
        self._slice, self._sliced_until = size, until

    def feed(self, data: bytes) -> None:
        now = self._loop.time()
        busy = self._held_until, self._late_until, self._limited_until, self._sliced_until
        if not self._queue and now >= max(busy):
            self._write(data)
            return
        delay = self._delay + random.uniform(0, self._jitter) if now < self._late_until else 0.0
        self._queue.append((now + delay, data))
        self._queued += len(data)
        if self._queued > BACKLOG_BYTES and self.source is not None:
            self.source.pause_reading()
        self._pump()

    def end(self) -> None:
        """The source will say no more; the sink hears of it after all that waits."""
        self._ended = True
        self._pump()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()

    def _write(self, data: bytes) -> None:
        self.carried += len(data)
        if self.sink is not None and not self.sink.is_closing():
            self.sink.write(data)

    def _pump(self) -> None:
        if self._timer is not None:
            return
        wait = self._let_out()
        if wait is not None:
            self._timer = self._loop.call_later(wait, self._again)
        elif self._ended and self.sink is not None and not self.sink.is_closing():
            self.sink.close()

    def _again(self) -> None:
        self._timer = None
        self._pump()

    def _let_out(self) -> float | None:
        """Writes what may go now; returns the seconds until more may, None when nothing waits."""
        while self._queue:
            now = self._loop.time()
            due, data = self._queue[0]
            if max(due, self._held_until) > now:
                return max(due, self._held_until) - now
            size, wait = self._portion(len(data), now)
            self._queue.popleft()
            if size < len(data):
                self._queue.appendleft((due, data[size:]))
            self._write(data[:size])
            self._queued -= size
            if (
                self._queued <= BACKLOG_BYTES // 2
                and self.source is not None
                and not self.source.is_closing()
            ):
                self.source.resume_reading()
            if wait:
                return wait
        return None

    def _portion(self, size: int, now: float) -> tuple[int, float]:
        """How many of `size` bytes may go at once, and how long to wait after them."""
        if now < self._sliced_until:
            size = min(size, self._slice)
            return size, SLICE_SECONDS
        if now < self._limited_until:
            size = min(size, max(1, int(self._rate / 20)))
            return size, size / self._rate
        return size, 0.0


class Link:
    """One connection through the proxy: `up` towards the target, `down` back."""

    def __init__(self) -> None:
        self.tag = ""
        self.request_id = ""
        self.port = 0
        """Of whoever dialled."""
        self.up = Pipe()
        self.down = Pipe()
        self.over = False
        self.lingers = False
        """Whether what the near end said before it went is still to arrive."""
        self._loop = asyncio.get_running_loop()
        self._reset_at = 1 << 62

    @property
    def open(self) -> bool:
        return not self.over and bool(self.request_id)

    def half_open(self, seconds: float) -> None:
        """Nothing passes either way, and nobody is told."""
        for pipe in (self.up, self.down):
            pipe.hold(self._loop.time() + seconds)

    def zombie(self, seconds: float) -> None:
        """Half open, and at last what the near end had said arrives, though it may be gone long since."""
        self.half_open(seconds)
        self.lingers = True

    def late(self, delay: float, seconds: float) -> None:
        for pipe in (self.up, self.down):
            pipe.late(delay, self._loop.time() + seconds)

    def jitter(self, most: float, seconds: float) -> None:
        for pipe in (self.up, self.down):
            pipe.late(0.0, self._loop.time() + seconds, most)

    def limit(self, rate: float, seconds: float) -> None:
        self.up.limit(rate, self._loop.time() + seconds)

    def slice(self, size: int, seconds: float) -> None:
        for pipe in (self.up, self.down):
            pipe.slice(size, self._loop.time() + seconds)

    def reset(self) -> None:
        """RST to both ends."""
        for transport in (self.up.source, self.up.sink):
            reset(transport)
        self.stop()

    def reset_after(self, more: int) -> None:
        """RST when `more` bytes have gone up, in the middle of a frame as likely as not."""
        self._reset_at = self.up.carried + more

    def fin(self) -> None:
        """The near end sees the end of the stream, without a close frame."""
        near, far = self.up.source, self.up.sink
        if near is not None and not near.is_closing() and near.can_write_eof():
            near.write_eof()
        reset(far)
        self.stop()

    def stop(self) -> None:
        self.over = True
        self.up.stop()
        self.down.stop()

    def went_up(self, data: bytes) -> None:
        room = self._reset_at - self.up.carried
        if len(data) >= room:
            self.up.feed(data[: max(0, room)])
            self.reset()
        else:
            self.up.feed(data)


class _Near(asyncio.Protocol):
    """Whoever dialled us."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._link = Link()
        self._head = b""
        self._dialled = False
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link.up.source = self._link.down.sink = cast("asyncio.Transport", transport)
        self._link.port = transport.get_extra_info("peername")[1]
        if self._proxy.refusing:
            self._link.reset()

    def data_received(self, data: bytes) -> None:
        if self._dialled:
            self._link.went_up(data)
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._dialled = True
            found = _TAG.search(self._head)
            self._link.tag = found.group(1).decode() if found else ""
            wait = self._proxy.admit(self._link)
            if wait is not None:
                self._loop.call_later(wait, self._dial)

    def _dial(self) -> None:
        if not self._link.over:
            self._proxy.tasks.append(self._loop.create_task(self._reach()))

    async def _reach(self) -> None:
        host, port = self._proxy.target
        try:
            await self._loop.create_connection(lambda: _Far(self._link), host, port)
        except OSError:
            self._link.reset()
            return
        self._link.went_up(self._head)

    def eof_received(self) -> bool:
        self._link.up.end()
        return not self._link.over

    def connection_lost(self, exc: Exception | None) -> None:
        if self._link.lingers:
            self._link.over = True
            self._link.up.end()
            return
        self._link.stop()
        if self._link.up.sink is not None:
            self._link.up.sink.close()


class _Far(asyncio.Protocol):
    """The target."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._head: bytes | None = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link.up.sink = self._link.down.source = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            if b"\r\n\r\n" in self._head:
                found = _REQUEST_ID.search(self._head)
                upgraded = self._head.startswith(b"HTTP/1.1 101")
                self._link.request_id = found.group(1).decode() if found and upgraded else ""
                self._head = None
        self._link.down.feed(data)

    def eof_received(self) -> bool:
        self._link.down.end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            reset(self._link.down.sink)
        self._link.down.end()


class FaultProxy:
    """`address` leads to `target`. While `refusing`, every new connection is reset."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.refusing = False
        self.hanging = False
        """New connections are taken and never answered."""
        self.slow_dials: dict[str, float] = {}
        """Seconds that the next dial of a tag waits for its answer."""
        self.dripping: set[str] = set()
        """Tags whose next dial is answered byte by byte."""
        self.address = ("", 0)
        self.ports: dict[int, str] = {}
        """Whose connection came from which port, the latest of each."""
        self.tasks: list[asyncio.Task[None]] = []
        self._links: defaultdict[str, list[Link]] = defaultdict(list)
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Near(self), "127.0.0.1", 0, backlog=1024)
        self.address = self._server.sockets[0].getsockname()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in self.all():
            link.reset()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def admit(self, link: Link) -> float | None:
        """Seconds until this link may dial on; None: never."""
        self._links[link.tag].append(link)
        self.ports[link.port] = f"{link.tag} from port {link.port}"
        if link.tag in self.dripping:
            self.dripping.remove(link.tag)
            link.down.slice(1, asyncio.get_running_loop().time() + DRIP_SECONDS)
        return None if self.hanging else self.slow_dials.pop(link.tag, 0.0)

    def open_link(self, tag: str) -> Link | None:
        """The newest open connection of a tag."""
        links = self._links[tag] = [link for link in self._links[tag] if not link.over]
        return next((link for link in reversed(links) if link.open), None)

    def all(self) -> list[Link]:
        return [link for links in self._links.values() for link in links if not link.over]
