"""The client's leg by itself: answers, and audio handed on in one piece per read."""

from __future__ import annotations

import asyncio
import socket
import weakref
from functools import partial
from typing import cast

import pytest
from websockets.http11 import Response

from gateway.deepgram.errors import Refusal
from gateway.live.client import COUNTED, IN_VAIN, ClientLeg, ClientOwner
from gateway.live.head import Head, parse
from gateway.live.slots import Slots
from tests.fakes.stand import eventually
from tests.fakes.wire_client import BINARY, CLOSE, PING, PONG, TEXT, fragments, frame, upgrade

BUSY = Refusal(503, "Service Unavailable", "Full.", retry_after=5)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading: list[bool] = []
        self.over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered here."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.over

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.over = True

    abort = close

    def pause_reading(self) -> None:
        self.reading.append(False)

    def resume_reading(self) -> None:
        self.reading.append(True)


class Owner:
    """Keeps what a leg tells it."""

    def __init__(self, joins: bool) -> None:
        self.joins_audio = joins
        self.heard: list[bytes | str | int | tuple[int, int | None]] = []

    def client_audio(self, data: bytes) -> bool:
        self.heard.append(data)
        return False

    def client_text(self, text: str) -> None:
        self.heard.append(text)

    def client_frames(self, count: int) -> None:
        self.heard.append(count)

    def client_turn(self) -> None:
        self.heard.append("turn")

    def client_reads(self) -> None:
        self.heard.append("reads")

    def client_closed(self, code: int, sent: int | None) -> None:
        self.heard.append((code, sent))

    def client_overflowed(self) -> None:
        self.heard.append("overflow")


def asked(owner: Owner | None) -> tuple[ClientLeg, Wire]:
    """A leg whose request is not answered."""
    head = parse(upgrade("/v1/listen"))
    assert isinstance(head, Head)
    leg, wire = ClientLeg(head, 1000, 65536), Wire()
    leg.connection_made(wire)
    leg.owner = cast(ClientOwner, owner)
    return leg, wire


def opened(owner: Owner) -> tuple[ClientLeg, Wire]:
    """A leg that has answered 101."""
    leg, wire = asked(owner)
    leg.accept([("dg-request-id", "r")])
    leg.flush()
    assert wire.written.startswith(b"HTTP/1.1 101 ")
    assert b"\r\ndg-request-id: r\r\n" in wire.written
    owner.heard.clear()
    return leg, wire


async def test_of_the_handshake_nothing_is_kept() -> None:
    """Neither the request, nor the answer, nor websockets' protocol: kibibytes of each call."""
    leg, _ = asked(Owner(True))
    protocol, answer = weakref.ref(leg.ws), weakref.ref(cast(Response, leg._switch))
    leg.accept([])
    leg.flush()
    assert leg.accepted
    assert protocol() is None
    assert answer() is None
    leg.connection_lost(None)


@pytest.mark.parametrize(("joins", "wanted"), [(True, [b"abcd"]), (False, [b"ab", b"c", b"d"])])
async def test_audio_of_one_read(joins: bool, wanted: list[bytes]) -> None:
    """It is handed over as one where the clock allows it, one by one where a message is a packet."""
    owner = Owner(joins)
    leg, _ = opened(owner)
    leg.data_received(b"".join(frame(BINARY, data) for data in (b"ab", b"c", b"d")))
    assert owner.heard == [*wanted, "turn"]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (frame(BINARY, b"a"), 1),
        (frame(BINARY), 1),
        (frame(TEXT, b"{}"), 1),
        (frame(PING, b"p"), 1),
        (frame(PONG), 1),
        (fragments(BINARY, b"abc", (1, 2)), 3),
    ],
)
async def test_frames_of_every_kind_are_counted(data: bytes, count: int) -> None:
    """Its owner is told of a hundred or more, by one read or many, and before its turn (faults.md 38)."""
    for times in (1, 100):
        owner = Owner(True)
        leg, _ = opened(owner)
        for _ in range(200 // times):
            leg.data_received(data * times)
        told = [item for item in owner.heard if isinstance(item, int)]
        assert 200 * count - COUNTED < sum(told) <= 200 * count
        assert min(told) >= COUNTED
        assert "turn" in owner.heard[owner.heard.index(told[0]) :]


async def test_order_is_kept_around_text_and_the_end() -> None:
    """Neither text nor an empty frame overtakes the audio before it, nor is joined to what follows."""
    owner = Owner(True)
    leg, _ = opened(owner)
    sent = [(BINARY, b"a"), (BINARY, b"b"), (TEXT, b"{}"), (BINARY, b"c"), (BINARY, b""), (BINARY, b"d")]
    leg.data_received(b"".join(frame(opcode, data) for opcode, data in sent))
    assert owner.heard == [b"ab", "{}", b"c", b"", b"d", "turn"]


async def test_frames_before_the_answer_end_it() -> None:
    """They are not handed on, and nothing is answered."""
    owner = Owner(True)
    leg, wire = asked(owner)
    leg.data_received(frame(TEXT, b"{}"))
    assert wire.over
    assert "{}" not in owner.heard
    leg.connection_lost(None)


@pytest.mark.parametrize(
    ("data", "code", "sent"),
    [
        (frame(CLOSE, b"\x03\xe8"), 1000, 1000),
        (frame(CLOSE), 1005, 1005),
        (b"", 1006, None),
        (frame(3), 1006, 1002),
    ],
)
async def test_why_it_ended(data: bytes, code: int, sent: int | None) -> None:
    """The client's own code, 1006 for none, and ours, which may say what was wrong."""
    owner = Owner(True)
    leg, _ = opened(owner)
    if data:
        leg.data_received(data)
    leg.connection_lost(None)
    assert owner.heard[-1] == (code, sent)
    assert [item for item in owner.heard if isinstance(item, tuple)] == [(code, sent)]


async def test_a_refusal_ends_the_connection() -> None:
    """Status, headers and body in one answer."""
    leg, wire = asked(None)
    leg.refuse(429, [("X", "y")], b"no")
    assert wire.written == (
        b"HTTP/1.1 429 Too Many Requests\r\nX: y\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    )
    leg.connection_lost(None)


async def test_reading_can_be_paused() -> None:
    """And nothing happens to a connection that is over."""
    leg, wire = opened(Owner(True))
    leg.pause_reading(True)
    leg.pause_reading(False)
    assert wire.reading == [False, True]
    wire.close()
    leg.pause_reading(True)
    assert wire.reading == [False, True]
    leg.connection_lost(None)


async def connected(owner: Owner) -> tuple[ClientLeg, socket.socket]:
    """A leg that has answered 101 on a socket, and its client's end."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    head = parse(upgrade("/v1/listen"))
    assert isinstance(head, Head)
    _, leg = await loop.create_connection(partial(ClientLeg, head, 1000, 65536), sock=ours)
    leg.owner = cast(ClientOwner, owner)
    leg.accept([])
    leg.flush()
    return leg, theirs


async def test_reading_by_the_clock() -> None:
    """What is there, nothing, and the end, which is for the loop to find."""
    owner = Owner(True)
    leg, theirs = await connected(owner)
    slots = Slots(0)
    leg.read_in_turns(slots, None)
    assert leg.leave_loop()
    assert leg.read_now()
    theirs.sendall(frame(BINARY, b"ab") + frame(BINARY, b"cd"))
    owner.heard.clear()
    assert leg.read_now()
    assert owner.heard == [b"abcd", "turn"]
    leg.pause_reading(True)
    theirs.sendall(frame(BINARY, b"ef"))
    assert leg.read_now()
    assert owner.heard == [b"abcd", "turn"]
    leg.pause_reading(False)
    assert leg.read_now()
    assert owner.heard[2:] == [b"ef", "turn"]
    theirs.close()
    assert not leg.read_now()
    leg.join_loop()
    await eventually(lambda: owner.heard[-1] == (1006, None))
    assert not leg.read_now()


async def test_who_says_nothing_is_polled() -> None:
    """A slot is for who has brought something; after some turns in vain the loop listens again."""
    leg, theirs = await connected(Owner(True))
    slots = Slots(10)
    leg.read_in_turns(slots, None)
    await asyncio.sleep(0.03)
    assert not leg.is_seated
    for _ in range(2):
        theirs.sendall(frame(BINARY, b"ab"))
        await eventually(lambda: leg.is_seated)
        for _ in range(IN_VAIN + 1):
            theirs.sendall(frame(BINARY, b"cd"))
            await asyncio.sleep(0.02)
            assert leg.is_seated
        await eventually(lambda: not leg.is_seated)
    leg.abort()
    theirs.close()


@pytest.mark.parametrize("by_clock", [False, True])
async def test_a_flood_is_found_early(by_clock: bool) -> None:
    """After 16 KiB of it, not after all that the kernel has; who may go on is read as fast as before."""

    class Strict(Owner):
        def client_frames(self, count: int) -> None:
            super().client_frames(count)
            leg.pause_reading(True)

    owner = Strict(True)
    leg, theirs = await connected(owner)
    if by_clock:
        assert leg.leave_loop()
    theirs.sendall(frame(PING, b"") * 15_000)
    if by_clock:
        assert leg.read_now()
    await eventually(lambda: 2730 in owner.heard)
    leg.abort()
    theirs.close()
    patient = Owner(True)
    leg, theirs = await connected(patient)
    assert leg.leave_loop()
    theirs.sendall(frame(BINARY, bytes(1000)) * 60)
    assert leg.read_now()
    assert sum(len(said) for said in patient.heard if isinstance(said, bytes)) == 60_000
    leg.abort()
    theirs.close()
