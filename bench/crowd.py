"""What the gateway's own code costs where calls take turns, so that each finds its objects out of the cache.

Real legs, calls and sessions on uvloop; only their peers are not there: what is written goes to /dev/null.
In a round every call does the same, one after the other. The pace of audio is not held: no time has to pass.
*Woken* is the same with the processor's caches emptied before each turn: what sleep, and the work of the
kernel and of others, leave of them to a call that is woken for one message.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Iterable
from time import thread_time_ns as clock
from typing import Any, Final, cast

import msgspec
import structlog
import uvloop
from websockets.utils import accept_key

from gateway.app.calls import make_exchange
from gateway.config import Config
from gateway.live.call import Call
from gateway.live.dialer import Dialer
from gateway.live.exchange import Exchange
from gateway.live.front import FrontDoor, HttpServer
from gateway.live.upstream import UpstreamLeg
from gateway.live.wire import RECEIVED, WebSocketLeg
from gateway.metrics import Metrics

CALLS: Final = 300
FRAME_SECONDS: Final = 0.02
FRAME_BYTES: Final = 160
EAGER: Final = 1e6
"""A pace that holds nothing back."""
PER_CALL_SECOND: Final = {"interim": 2.75, "final": 0.25, "timer": 0.4}
"""What comes beside the audio: three results, and a look every two and a half seconds."""
CACHE_BYTES: Final = 6 << 20
"""More than a core keeps for itself."""
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="


class _Transport:
    """A connection whose peer takes everything at once."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is connected to nobody; it is there for its options."""
        self._socket = sock
        self.protocol: Any = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket if name == "socket" else default

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered here."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        """What the socket did not take, which is the handshake."""

    def pause_reading(self) -> None:
        """It is never asked to read."""

    resume_reading = pause_reading


class _Answers:
    """A Deepgram that opens every connection at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.legs: asyncio.Queue[UpstreamLeg] = asyncio.Queue()

    async def dial(self, region: Any, make_leg: Callable[[str], UpstreamLeg]) -> None:
        leg = make_leg("ws://deepgram.test")
        leg.connection_made(cast(asyncio.Transport, _Transport(self._socket)))
        assert leg._handshake is not None
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(leg._handshake.key)}",
            f"dg-request-id: {0:036d}",
        ]
        leg.data_received("\r\n".join([*lines, "", ""]).encode())
        self.legs.put_nowait(leg)


class Crowd:
    """Calls in mid-speech. What its methods return is what one call took, in nanoseconds."""

    def __init__(
        self,
        exchange: Exchange,
        query: str,
        result: Callable[[float, float, bool], bytes],
        others: bytes = b"",
    ) -> None:
        """`result(start, stop, final)` is a message for a stretch of the call.

        `others` is read before each turn, so that nothing else is in the caches.
        """
        self._others = others
        self._socket = socket.socket()
        self._answers = _Answers(self._socket)
        exchange.dialer = cast(Dialer, self._answers)
        self._door = FrontDoor(exchange, cast(HttpServer, _NoHttp()))
        self._query = query
        self._result = result
        self._exchange = exchange
        self._clients: list[WebSocketLeg] = []
        self._upstream: list[UpstreamLeg] = []
        self._calls: list[Call] = []
        self._said = self._final = 0.0

    async def open(self, count: int) -> None:
        request = "\r\n".join(
            [
                f"GET /v1/listen?{self._query} HTTP/1.1",
                "Host: gateway.test",
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Key: {KEY}",
                "Sec-WebSocket-Version: 13",
                "Authorization: Token softphone",
                "",
                "",
            ]
        ).encode()
        for _ in range(count):
            visitor, transport = cast(asyncio.BufferedProtocol, self._door()), _Transport(self._socket)
            visitor.connection_made(cast(asyncio.Transport, transport))
            RECEIVED[: len(request)] = request
            visitor.buffer_updated(len(request))
            self._clients.append(transport.protocol)
        self._upstream = [await self._answers.legs.get() for _ in range(count)]
        self._calls = list(self._exchange.calls.values())
        nobody = os.open(os.devnull, os.O_WRONLY)
        for leg in (*self._clients, *self._upstream):
            leg._fd = nobody
        self.read(5)  # so that the size of its frames is known

    def nothing(self) -> float:
        """What the others pay for the clock."""
        return self._each(self._clients, b"\0" * 840, lambda leg, size: None)

    def read(self, frames: int) -> float:
        self._said += frames * FRAME_SECONDS
        return self._each(self._clients, _audio_frame() * frames, _take)

    def result(self, final: bool) -> float:
        message = self._result(round(self._final, 6), round(self._said, 6), final)
        if final:
            self._final = self._said
        return self._each(self._upstream, b"\x81\x7e" + len(message).to_bytes(2, "big") + message, _take)

    def timer(self) -> float:
        began = clock()
        for call in self._calls:
            call._on_timer()
        return (clock() - began) / len(self._calls)

    def check(self) -> None:
        """What was timed did happen: every call has passed everything on."""
        metrics, count = self._exchange.metrics, len(self._calls)
        for call in self._calls:
            stream = call.session.stream
            assert stream.malformed == stream.stale == 0
            assert stream.lag < 1e-6, stream.lag
            assert abs(stream.audio_seconds - self._said) < 1e-6
        assert metrics.upstream_audio_bytes == round(self._said / FRAME_SECONDS) * FRAME_BYTES * count
        assert metrics.upstream_messages_received % count == 0

    def _each(
        self, legs: Iterable[WebSocketLeg], data: bytes, take: Callable[[WebSocketLeg, int], None]
    ) -> float:
        size, spent = len(data), 0
        for leg in legs:
            RECEIVED[:size] = data
            if self._others:
                bytearray(self._others)
            began = clock()
            take(leg, size)
            spent += clock() - began
        return spent / len(self._clients)


def _take(leg: WebSocketLeg, size: int) -> None:
    leg.buffer_updated(size)


class _NoHttp:
    connections = 0


def _audio_frame() -> bytes:
    """20 ms from a softphone: masked."""
    return b"\x82\xfe" + FRAME_BYTES.to_bytes(2, "big") + b"\x01\x02\x03\x04" + b"\x55" * FRAME_BYTES


def measure(
    query: str,
    result: Callable[[float, float, bool], bytes],
    rounds: int,
    count: int = CALLS,
    *,
    woken: bool = False,
) -> dict[str, list[float]]:
    """Nanoseconds per case and round; each round is all cases in turn."""
    return uvloop.run(_measure(query, result, rounds, count, bytes(CACHE_BYTES * woken)))


async def _measure(
    query: str, result: Callable[[float, float, bool], bytes], rounds: int, count: int, others: bytes
) -> dict[str, list[float]]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    region = {"name": "r0", "url": "http://deepgram.test"}
    tree = {"deepgram": {"regions": [region], "max_dials_per_second": 10 * count}, "store": {"url": "none"}}
    config = msgspec.convert(tree, Config)
    session = msgspec.structs.replace(
        config.session, pace=EAGER, catch_up_pace=EAGER, max_messages_per_second=50 * EAGER
    )
    config = msgspec.structs.replace(config, session=session)
    found: dict[str, list[float]] = {}
    async with asyncio.TaskGroup() as tasks:
        exchange = make_exchange(config, "key", Metrics(["r0"], "0"), tasks)
        crowd = Crowd(exchange, query, result, others)
        await crowd.open(count)
        gc.collect()
        gc.freeze()
        gc.disable()
        for _ in range(rounds):
            for name, ns in _round(crowd).items():
                found.setdefault(name, []).append(ns)
        gc.enable()
        gc.unfreeze()
        crowd.check()
    return found


def _round(crowd: Crowd) -> dict[str, float]:
    idle = crowd.nothing()
    five = min(crowd.read(5) for _ in range(3)) - idle
    interim = crowd.result(final=False) - idle
    one = crowd.read(1) - idle
    final = crowd.result(final=True) - idle
    timer = crowd.timer()
    share = PER_CALL_SECOND
    beside = share["interim"] * interim + share["final"] * final + share["timer"] * timer
    return {
        "read of 5 frames": five,
        "read of 1 frame": one,
        "interim": interim,
        "final": final,
        "timer": timer,
        "call-second, 100 ms": 10 * five + beside,
        "call-second, frame by frame": 50 * one + beside,
    }
