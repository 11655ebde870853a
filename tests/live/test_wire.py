"""A leg of either side: fragments, UTF-8, the write-buffer guard, the end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import socket
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame
from websockets.protocol import Protocol as SansIO
from websockets.protocol import Side
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from gateway.live import wire
from gateway.live.wire import RECEIVED, ClientSide, ServerSide, WebSocketLeg
from tests.fakes.stand import eventually
from tests.fakes.wire_client import BINARY, CLOSE, PING, TEXT, fragments, frame, upgrade
from tests.live.test_client import Wire


class _Keeping(WebSocketLeg):
    """Keeps what it is told."""

    def __init__(self, ws: SansIO, write_limit: int = 1 << 24) -> None:
        super().__init__(ws, 1 << 20, write_limit)
        self.heard: list[bytes] = []
        self.ends: list[tuple[int, str]] = []
        self.overflows = 0
        self.reads = 0

    def binary_received(self, messages: list[bytes]) -> bool:
        self.heard += [b"b" + data for data in messages]
        return False

    def text_received(self, data: bytes) -> bool:
        self.heard.append(b"t" + data)
        return False

    def read_done(self) -> None:
        self.reads += 1

    def lost(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))

    def overflowed(self) -> None:
        self.overflows += 1


class Leg(_Keeping, ServerSide):
    def __init__(self, write_limit: int = 1 << 24) -> None:
        super().__init__(ServerProtocol(), write_limit)

    def handshake_received(self, event: object) -> None:
        assert isinstance(self.ws, ServerProtocol)
        self.ws.send_response(self.ws.accept(event))  # type: ignore[arg-type] # the protocol's own Request


class Full(Wire):
    """A transport whose peer does not read."""

    def get_write_buffer_size(self) -> int:
        return len(self.written)


def read(leg: WebSocketLeg, data: bytes) -> None:
    """As the loop does it."""
    RECEIVED[: len(data)] = data
    leg.buffer_updated(len(data))


def opened(transport: Wire, write_limit: int = 65536) -> Leg:
    leg = Leg(write_limit)
    leg.connection_made(transport)
    read(leg, upgrade("/"))
    return leg


@given(
    st.lists(st.tuples(st.sampled_from([BINARY, TEXT]), st.text(max_size=50), st.integers(0, 4)), max_size=8),
    st.randoms(use_true_random=False),
)
def test_messages_survive_any_cutting(sent: list[tuple[int, str, int]], rng: random.Random) -> None:
    """By fragments, with pings between them, and by reads."""

    async def run() -> None:
        leg = opened(Wire())
        data = b""
        for opcode, text, pieces in sent:
            payload = text.encode()
            cuts = [rng.randrange(len(payload) + 1) for _ in range(pieces)]
            data += fragments(opcode, payload, cuts, frame(PING, b"p") * rng.randrange(2))
        while data:
            size = rng.randrange(1, 40)
            read(leg, data[:size])
            data = data[size:]
        assert leg.heard == [(b"b" if opcode == BINARY else b"t") + text.encode() for opcode, text, _ in sent]

    asyncio.run(run())


class _Unaided(_Keeping):
    """Gives every byte to websockets, as if there were no walk."""

    def _walk(self, data: bytes) -> None:
        self.ws.receive_data(data)
        self._hand_over()

    _stop_walking = _walk

    def _let_go(self) -> None:
        """It has the beginnings of frames."""


class Dialling(_Keeping, ClientSide):
    """The client's side: frames come without a mask, results as text."""

    def __init__(self) -> None:
        ws = ClientProtocol(parse_uri("ws://x/"), max_size=1 << 20)
        super().__init__(ws)
        request = ws.connect()
        self.key = request.headers["Sec-WebSocket-Key"]
        ws.send_request(request)

    def handshake_received(self, event: object) -> None:
        assert self.is_open()


class Unaided(_Unaided, Leg):
    pass


class UnaidedDialling(_Unaided, Dialling):
    pass


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
    they_agree(reads, ends, (Dialling, UnaidedDialling), first)


HEAD_END = b"\r\n\r\n"


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    reads: list[bytes] = []
    while data:
        size = sizes[len(reads) % len(sizes)]
        reads.append(data[:size])
        data = data[size:]
    return reads


def they_agree(
    reads: list[bytes],
    ends: bool,
    kinds: tuple[type[Leg | Dialling], type[Leg | Dialling]] = (Leg, Unaided),
    first: bytes = b"",
) -> None:
    """`first` comes in one read with the handshake."""

    async def run(kind: type[Leg | Dialling]) -> tuple[object, ...]:
        transport = Wire()
        leg = kind()
        leg.connection_made(transport)
        read(leg, (switch(leg.key) if isinstance(leg, Dialling) else upgrade("/")) + first)
        if not first:
            transport.written = b""  # there is a date in it
        for data in reads:
            if not transport.over:
                read(leg, data)
        if ends:
            leg.eof_received()
        leg.connection_lost(None)
        # What a client sends is masked by chance.
        written: object = len(transport.written) if isinstance(leg, Dialling) else transport.written
        return leg.heard, leg.ends, written, leg.ws.close_sent, leg.ws.close_rcvd, transport.over

    walked, unaided = (asyncio.run(run(kind)) for kind in kinds)
    assert walked[0] == unaided[0]
    if walked != unaided:
        assert isinstance(walked[3], Close)
        assert isinstance(unaided[3], Close)
        assert walked[3].code == 1007
        assert unaided[3].code != 1007


def switch(key: str) -> bytes:
    """The answer to an upgrade request with `key` (RFC 6455 §4.2.2)."""
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
    they_agree(reads, False, (Dialling, UnaidedDialling))


async def test_websockets_is_there_for_its_frames_only() -> None:
    """Its protocol takes 3 KiB: it goes when a frame of its kind is done, and not by the collector."""

    def has_one(leg: Leg) -> bool:
        return leg._ws is not None

    transport = Wire()
    leg = opened(transport)
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
    assert leg.heard == [b"t{}"]
    read(leg, frame(CLOSE, b"\x03\xe8"))
    leg.connection_lost(None)
    assert leg.ends == [(1000, "")]


async def test_bad_utf8_fails_the_connection() -> None:
    """1007, and nothing of it is handed on."""
    transport = Wire()
    leg = opened(transport)
    read(leg, frame(TEXT, b"\xc3\x28"))
    assert leg.heard == []
    assert b"\x03\xef" in transport.written  # 1007
    leg.connection_lost(None)


async def test_the_guard() -> None:
    """A peer that leaves more than write_limit unread is cut, once, pongs included (faults.md M1)."""
    transport = Full()
    leg = opened(transport, 10_000)
    for _ in range(200):
        read(leg, frame(PING, b"p" * 100))
    assert transport.over
    assert leg.overflows == 1
    assert len(transport.written) < 10_000 + 200
    leg.connection_lost(None)


async def test_pauses_are_told() -> None:
    """`writable` follows the transport."""
    leg = opened(Wire())
    seen = [leg.writable]
    leg.pause_writing()
    seen.append(leg.writable)
    leg.resume_writing()
    assert [*seen, leg.writable] == [True, False, True]
    leg.connection_lost(None)


async def test_the_end_is_told_once() -> None:
    """With the peer's code and reason; 1006 without a close frame."""
    leg = opened(Wire())
    read(leg, frame(CLOSE, b"\x03\xf3because"))
    leg.eof_received()
    leg.connection_lost(None)
    leg.connection_lost(None)
    assert leg.ends == [(1011, "because")]
    other = opened(Wire())
    other.connection_lost(ConnectionResetError())
    assert other.ends == [(1006, "")]


async def test_a_close_ends_soon_whatever_the_peer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not answer the close frame is not waited for longer than CLOSE_TIMEOUT."""
    monkeypatch.setattr(wire, "CLOSE_TIMEOUT", 0.05)
    transport = Wire()
    leg = opened(transport)
    leg.close(1000)
    before = transport.over
    await asyncio.sleep(0.1)
    assert (before, transport.over) == (False, True)
    leg.connection_lost(None)


async def test_nothing_is_sent_after_the_close() -> None:
    """Neither data nor a second close frame."""
    transport = Wire()
    leg = opened(transport)
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

    leg = opened(Counting())
    calls.clear()
    for _ in range(3):
        leg.send_text(b"{}")
    assert calls == []
    leg.flush()
    assert len(calls) == 1
    leg.connection_lost(None)


@pytest.mark.parametrize("kind", [Leg, Dialling])
async def test_what_the_socket_does_not_take_comes_later(kind: type[Leg | Dialling]) -> None:
    """In order, though the first is written to the socket and the rest waits in the transport."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, leg = await loop.create_connection(kind, sock=ours)
    assert isinstance(leg, Leg | Dialling)
    send = leg.send_audio if isinstance(leg, Dialling) else leg.send_result
    if isinstance(leg, Dialling):
        await loop.sock_sendall(theirs, switch(leg.key))
        await eventually(leg.is_open)
        leg.flush()
    else:
        await loop.sock_sendall(theirs, upgrade("/"))
    peer = SansIO(Side.SERVER if isinstance(leg, Dialling) else Side.CLIENT)
    head = b""
    while HEAD_END not in head:
        head += await loop.sock_recv(theirs, 65_536)
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
    await eventually(lambda: bool(leg.ends))
    send(b"x")
