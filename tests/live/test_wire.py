"""A leg of either side: fragments, UTF-8, the write-buffer guard, the end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import re
import socket
import sys
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame
from websockets.protocol import Protocol as SansIO
from websockets.protocol import Side

from gateway.live.client import ClientLeg
from gateway.live.head import Head, parse
from gateway.live.upstream import UpstreamLeg
from gateway.live.wire import CLOSE_TIMEOUT, RECEIVED
from tests.fakes.stand import eventually
from tests.fakes.wire_client import BINARY, CLOSE, PING, TEXT, fragments, frame, upgrade
from tests.live.test_client import Wire

LARGEST = 1 << 20
Leg = ClientLeg | UpstreamLeg


class Owner:
    """Keeps what a leg of either side tells it."""

    joins_audio = False

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ends: list[tuple[int, object]] = []
        self.overflows = 0

    def client_audio(self, data: bytes) -> bool:
        self.heard.append(b"b" + data)
        return False

    def client_text(self, text: str) -> None:
        self.heard.append(b"t" + text.encode())

    def client_frames(self, count: int) -> None:
        """Pings and fragments count, too."""

    def client_turn(self) -> None:
        """Nothing is sent."""

    def client_reads(self) -> None:
        """Nothing waits."""

    def client_closed(self, code: int, sent: int | None) -> None:
        self.ends.append((code, sent))

    def client_overflowed(self) -> None:
        self.overflows += 1

    def upstream_opened(self, leg: UpstreamLeg, request_id: str) -> None:
        """Nothing is sent."""

    def upstream_text(self, leg: UpstreamLeg, data: bytes) -> bool:
        self.heard.append(b"t" + data)
        return False

    def upstream_heard(self, leg: UpstreamLeg) -> None:
        """Nothing is sent."""

    def upstream_blocked(self, leg: UpstreamLeg, blocked: bool) -> None:
        """Nothing waits."""

    def upstream_closed(self, leg: UpstreamLeg, code: int, reason: str) -> None:
        self.ends.append((code, reason))

    def defect(self) -> None:
        raise  # what is being handled


class Full(Wire):
    """A transport whose peer does not read."""

    def get_write_buffer_size(self) -> int:
        return len(self.written)


class Socketed(Wire):
    """A transport with a socket for options; what is written stays here, as if TLS were between."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self.sock, "sslcontext": True}.get(name, default)


def read(leg: Leg, data: bytes) -> None:
    """As the loop does it."""
    RECEIVED[: len(data)] = data
    leg.buffer_updated(len(data))


def asked(owner: Owner, write_limit: int = 65_536) -> ClientLeg:
    head = parse(upgrade("/v1/listen"))
    assert isinstance(head, Head)
    leg = ClientLeg(head, LARGEST, write_limit)
    leg.owner = owner
    return leg


def opened(transport: Wire, owner: Owner, write_limit: int = 65_536) -> ClientLeg:
    """A client's leg that has answered 101."""
    leg = asked(owner, write_limit)
    leg.connection_made(transport)
    leg.accept([])
    leg.flush()
    return leg


def dialled(owner: Owner, write_limit: int = 65_536) -> UpstreamLeg:
    return UpstreamLeg("ws://x/", [], owner, 1, max_message_bytes=LARGEST, write_limit=write_limit)


def answered(transport: Socketed, owner: Owner, first: bytes = b"") -> UpstreamLeg:
    """A leg to Deepgram that has got its 101, and `first` in the same read."""
    leg = dialled(owner)
    leg.connection_made(transport)
    read(leg, switch(transport.written) + first)
    return leg


@given(
    st.lists(st.tuples(st.sampled_from([BINARY, TEXT]), st.text(max_size=50), st.integers(0, 4)), max_size=8),
    st.randoms(use_true_random=False),
)
def test_messages_survive_any_cutting(sent: list[tuple[int, str, int]], rng: random.Random) -> None:
    """By fragments, with pings between them, and by reads."""

    async def run() -> None:
        owner = Owner()
        leg = opened(Wire(), owner)
        data = b""
        for opcode, text, pieces in sent:
            payload = text.encode()
            cuts = [rng.randrange(len(payload) + 1) for _ in range(pieces)]
            data += fragments(opcode, payload, cuts, frame(PING, b"p") * rng.randrange(2))
        while data:
            size = rng.randrange(1, 40)
            read(leg, data[:size])
            data = data[size:]
        assert owner.heard == [
            (b"b" if opcode == BINARY else b"t") + text.encode() for opcode, text, _ in sent
        ]

    asyncio.run(run())


def unaided(leg: Leg) -> None:
    """From now on `leg` gives every byte to websockets, as if there were no walk."""
    leg._walks = False
    assert leg.ws is not None  # made here, and kept: it has the beginnings of frames


SIZES = st.integers(0, 300) | st.sampled_from([125, 126, 127, 65_535, 65_536, 70_000])


def pieces(opcode: int, *, masked: bool) -> st.SearchStrategy[bytes]:
    """What a peer may send that mostly says whole messages of `opcode`, of printable bytes."""
    whole = st.builds(
        lambda size, n: frame(opcode, bytes([n]) * size, mask=masked), SIZES, st.integers(32, 126)
    )
    long = bytes([0x80 | opcode, 0x80 * masked | 127])
    return st.one_of(
        whole,
        whole,
        st.builds(
            frame,
            st.sampled_from([0, TEXT, BINARY, 3, CLOSE, PING, 10, 15]),
            st.binary(max_size=130),
            fin=st.booleans(),
            mask=st.sampled_from([masked, masked, masked, not masked]),
            rsv=st.sampled_from([0, 0, 0, 0, 1, 4]),
        ),
        st.binary(min_size=1, max_size=20),
        st.just(long + (1 << 62).to_bytes(8, "big")),
        st.just(long + b"\xff" * 8),
    )


PIECES = pieces(BINARY, masked=True)


ALIKE = st.builds(
    lambda size, n, mask: frame(BINARY, bytes([n]) * size, mask=mask),
    st.sampled_from([0, 1, 2, 160, 200]),
    st.integers(0, 255),
    st.sampled_from([True, True, True, True, False]),
)


CUTS = st.lists(st.integers(1, 400) | st.integers(1, 100_000), min_size=1, max_size=20)


@given(st.lists(PIECES, max_size=12), CUTS, st.booleans())
def test_the_walk_and_websockets_agree(pieces: list[bytes], cuts: list[int], ends: bool) -> None:
    """On every byte stream, however it is cut: the same messages, the same answers, the same end.

    Only where one read brings bad text and then a close or another mistake, websockets answers that one,
    since it is asked for its answer first. The messages are the same even then.
    """
    they_agree(cut(b"".join(pieces), cuts), ends)


@given(st.lists(st.lists(ALIKE | ALIKE | ALIKE | PIECES, min_size=1, max_size=6).map(b"".join), max_size=8))
def test_they_agree_on_whole_frames(reads: list[bytes]) -> None:
    """Most of them of one size, as audio is, and as many to a read as there happen to be."""
    they_agree(reads, ends=False)


@given(st.lists(pieces(TEXT, masked=False), max_size=12), CUTS, st.booleans(), st.booleans())
def test_they_agree_on_the_other_side(
    pieces: list[bytes], cuts: list[int], ends: bool, with_the_answer: bool
) -> None:
    """Towards Deepgram: frames without a mask, the first of them perhaps in one read with the 101."""
    reads = cut(b"".join(pieces), cuts)
    first = reads.pop(0) if with_the_answer and reads else b""
    they_agree(reads, ends, dials=True, first=first)


HEAD_END = b"\r\n\r\n"


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    reads: list[bytes] = []
    while data:
        size = sizes[len(reads) % len(sizes)]
        reads.append(data[:size])
        data = data[size:]
    return reads


def they_agree(reads: list[bytes], ends: bool, dials: bool = False, first: bytes = b"") -> None:
    """`first` comes in one read with Deepgram's 101."""

    async def run(alone: bool) -> tuple[object, ...]:
        owner = Owner()
        with socket.socket() as sock:
            transport = Socketed(sock)
            leg: Leg
            at_once = b"" if alone else first
            leg = answered(transport, owner, at_once) if dials else opened(transport, owner)
            if alone:
                unaided(leg)
                read(leg, first)
            if not dials:
                transport.written = b""  # there is a date in it
            for data in reads:
                if not transport.over:
                    read(leg, data)
            if ends:
                leg.eof_received()
            leg.connection_lost(None)
        # What a client sends is masked by chance.
        written: object = len(transport.written) if dials else transport.written
        return owner.heard, owner.ends, written, leg.ws.close_sent, leg.ws.close_rcvd, transport.over

    walked, alone = asyncio.run(run(False)), asyncio.run(run(True))
    assert walked[0] == alone[0]
    if walked != alone:
        assert isinstance(walked[3], Close)
        assert isinstance(alone[3], Close)
        assert walked[3].code == 1007
        assert alone[3].code != 1007


def switch(request: bytes) -> bytes:
    """The answer to an upgrade request (RFC 6455 §4.2.2)."""
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert found
    key = found[1].decode()
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode(), usedforsecurity=False)
    accept = base64.b64encode(digest.digest()).decode()
    lines = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()


RESULTS = st.builds(
    lambda opcode, text, size, mask: frame(opcode, text * size, mask=mask),
    st.sampled_from([TEXT, TEXT, TEXT, TEXT, BINARY, PING]),
    st.sampled_from([b"x", "\u00e4".encode(), b"\xc3"]),
    st.sampled_from([1, 63, 125, 126, 127, 700, 65_535, 65_536]),
    st.sampled_from([False, False, False, True]),
)


@given(st.lists(st.lists(RESULTS, min_size=1, max_size=2).map(b"".join), max_size=6), st.booleans())
def test_they_agree_on_results(reads: list[bytes], in_halves: bool) -> None:
    """One to a read, as results are, or more; text that is none, or masked, ends the connection."""
    if in_halves:
        reads = [part for data in reads for part in (data[: len(data) // 2], data[len(data) // 2 :])]
    they_agree(reads, ends=False, dials=True)


def test_the_rest_of_a_text_may_look_like_a_whole_one() -> None:
    """U+0081 is C2 81 in UTF-8, and 81 is how a text begins."""
    inner = "\u0081~\0~" + "y" * 126
    whole = frame(TEXT, ("x" * 200 + inner).encode(), mask=False)
    begin = len(whole) - len(inner.encode()) + 1
    assert whole[begin:] == frame(TEXT, b"y" * 126, mask=False)
    they_agree([whole[:begin], whole[begin:], whole], ends=False, dials=True)


async def test_websockets_is_there_for_its_frames_only() -> None:
    """Its protocol takes 3 KiB: it goes when a frame of its kind is done, and not by the collector."""

    def has_one(leg: ClientLeg) -> bool:
        return leg._ws is not None

    transport, owner = Wire(), Owner()
    leg = opened(transport, owner)
    assert not has_one(leg)
    protocol = weakref.ref(leg.ws)
    read(leg, frame(PING, b"p")[:3])
    assert protocol() is not None  # it has the beginning
    read(leg, frame(PING, b"p")[3:])
    assert transport.written.endswith(b"\x8a\x01p")
    assert protocol() is None
    read(leg, frame(TEXT, b"{", fin=False))
    assert has_one(leg)
    read(leg, frame(PING) + frame(0, b"}"))
    assert not has_one(leg)
    assert owner.heard == [b"t{}"]
    read(leg, frame(CLOSE, b"\x03\xe8"))
    leg.connection_lost(None)
    assert owner.ends == [(1000, 1000)]


async def test_bad_utf8_fails_the_connection() -> None:
    """1007, and nothing of it is handed on."""
    transport, owner = Wire(), Owner()
    leg = opened(transport, owner)
    read(leg, frame(TEXT, b"\xc3\x28"))
    assert owner.heard == []
    assert b"\x03\xef" in transport.written  # 1007
    leg.connection_lost(None)


async def test_the_guard() -> None:
    """A peer that leaves more than write_limit unread is cut, once, pongs included (faults.md M1)."""
    transport, owner = Full(), Owner()
    leg = opened(transport, owner, 10_000)
    for _ in range(200):
        read(leg, frame(PING, b"p" * 100))
    assert transport.over
    assert owner.overflows == 1
    assert len(transport.written) < 10_000 + 200
    leg.connection_lost(None)


async def test_pauses_are_told() -> None:
    """`writable` follows the transport."""
    leg = opened(Wire(), Owner())
    seen = [leg.writable]
    leg.pause_writing()
    seen.append(leg.writable)
    leg.resume_writing()
    assert [*seen, leg.writable] == [True, False, True]
    leg.connection_lost(None)


async def test_the_end_is_told_once() -> None:
    """With the peer's code, and its reason or our answer; 1006 without a close frame."""
    with socket.socket() as sock:
        client, deepgram, cut = Owner(), Owner(), Owner()
        legs: list[Leg] = [opened(Wire(), client), answered(Socketed(sock), deepgram)]
        for leg, masked in zip(legs, (True, False), strict=True):
            read(leg, frame(CLOSE, b"\x03\xf3because", mask=masked))
            leg.eof_received()
            leg.connection_lost(None)
            leg.connection_lost(None)
    opened(Wire(), cut).connection_lost(ConnectionResetError())
    assert (client.ends, deepgram.ends, cut.ends) == ([(1011, 1011)], [(1011, "because")], [(1006, None)])


async def test_a_close_ends_soon_whatever_the_peer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not answer the close frame is not waited for longer than CLOSE_TIMEOUT."""
    transport = Wire()
    leg = opened(transport, Owner())
    loop = asyncio.get_running_loop()
    now, seen = loop.time, []
    leg.close(1000)
    for later in (0.0, CLOSE_TIMEOUT - 1, CLOSE_TIMEOUT):
        monkeypatch.setattr(loop, "time", lambda later=later: now() + later)
        await asyncio.sleep(0.01)
        seen.append(transport.over)
    assert seen == [False, False, True]
    leg.connection_lost(None)


class Bug(Exception):
    """What nobody thought of."""


def breaks(owner: Owner, method: str) -> list[BaseException | None]:
    """From now on `method` raises; returns what is being handled whenever `owner` is told of a defect."""
    seen: list[BaseException | None] = []

    def broken(*_arguments: object) -> None:
        raise Bug

    setattr(owner, method, broken)
    owner.defect = lambda: seen.append(sys.exception())  # type: ignore[method-assign]  # of this one owner
    return seen


def drive(leg: Leg, opcode: int, size: int, *, mask: bool) -> None:
    """All that the loop asks of a leg; the same message twice, for the second may go another way."""
    for payload in (b"x", b"x" * size, b"x" * size):
        read(leg, frame(opcode, payload, mask=mask))
    leg.pause_writing()
    leg.resume_writing()
    leg.connection_lost(None)


@pytest.mark.parametrize("method", ["client_audio", "client_turn", "client_reads", "client_closed"])
async def test_a_mistake_with_what_a_client_says(method: str) -> None:
    """The loop hears nothing of it; the owner is told while it is being handled."""
    owner = Owner()
    leg = opened(Wire(), owner)
    seen = breaks(owner, method)
    drive(leg, BINARY, 160, mask=True)
    assert [type(error) for error in seen] == [Bug] * (3 if method in ("client_audio", "client_turn") else 1)


@pytest.mark.parametrize("method", ["upstream_text", "upstream_heard", "upstream_blocked", "upstream_closed"])
async def test_a_mistake_with_what_deepgram_says(method: str) -> None:
    """The same."""
    owner = Owner()
    with socket.socket() as sock:
        leg = answered(Socketed(sock), owner)
        seen = breaks(owner, method)
        drive(leg, TEXT, 200, mask=False)
    often = {"upstream_text": 3, "upstream_heard": 3, "upstream_blocked": 2, "upstream_closed": 1}
    assert [type(error) for error in seen] == [Bug] * often[method]


async def test_nothing_is_sent_after_the_close() -> None:
    """Neither data nor a second close frame."""
    transport = Wire()
    leg = opened(transport, Owner())
    leg.close(1000)
    written = transport.written
    leg.send_text(b"late")
    leg.send_binary(b"late")
    leg.send_ping()
    leg.close(1011)
    leg.flush()
    assert transport.written == written
    leg.connection_lost(None)


async def test_one_write_per_flush() -> None:
    """Messages of one turn leave in one system call."""
    calls: list[bytes] = []

    class Counting(Wire):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            calls.append(bytes(data))

    leg = opened(Counting(), Owner())
    calls.clear()
    for _ in range(3):
        leg.send_text(b"{}")
    assert calls == []
    leg.flush()
    assert len(calls) == 1
    leg.connection_lost(None)


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection of TCP that holds little."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        ours = socket.create_connection(listening.getsockname())
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        theirs, _ = listening.accept()
    theirs.setblocking(False)
    return ours, theirs


@pytest.mark.parametrize("dials", [False, True])
async def test_what_the_socket_does_not_take_comes_later(dials: bool) -> None:
    """In order, though the first is written to the socket and the rest waits in the transport."""
    ours, theirs = connected()
    loop, owner = asyncio.get_running_loop(), Owner()
    made = dialled(owner, 1 << 24) if dials else asked(owner, 1 << 24)
    transport, leg = await loop.create_connection(lambda: made, sock=ours)
    if isinstance(leg, ClientLeg):
        leg.accept([])
        leg.flush()
    head = b""
    while HEAD_END not in head:
        head += await loop.sock_recv(theirs, 65_536)
    if dials:
        await loop.sock_sendall(theirs, switch(head))
        await eventually(leg.is_open)
    send = leg.send_audio if isinstance(leg, UpstreamLeg) else leg.send_result
    peer = SansIO(Side.SERVER if dials else Side.CLIENT)
    sent = [bytes([n]) * 50_000 for n in range(40)]
    for data in sent:
        send(data)
    assert not leg.writable
    assert transport.get_write_buffer_size() < sum(map(len, sent))
    got: list[bytes] = []
    while len(got) < len(sent):
        peer.receive_data(await loop.sock_recv(theirs, 65_536))
        got += [bytes(event.data) for event in peer.events_received() if isinstance(event, Frame)]
    assert got == sent
    theirs.close()
    await eventually(lambda: bool(owner.ends))
    send(b"x")
