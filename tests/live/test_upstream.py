"""Dials, seen from inside: what is left of one that failed. More is in tests/integration/test_egress.py."""

from __future__ import annotations

import asyncio
import socket

import pytest
from websockets.utils import accept_key

from gateway.config import DeepgramConfig, RegionConfig
from gateway.errors import UpstreamRejected, UpstreamTimeout, UpstreamUnavailable
from gateway.live.dialer import Dialer
from gateway.live.upstream import MAX_BODY_BYTES, SEND_BUFFER_BYTES, UpstreamLeg
from gateway.live.wire import CLOSE_TIMEOUT
from tests.fakes.deepgrams import Answering
from tests.fakes.stand import Stand, eventually
from tests.fakes.wire_client import CLOSE, frame

HEADERS = [("Authorization", "Token k"), ("X-Fern-A", "1"), ("X-Fern-A", "2")]


class Owner:
    """Keeps what a leg tells it."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.texts: list[bytes] = []
        self.closes: list[tuple[int, str]] = []
        self.leg: UpstreamLeg | None = None

    def make(self, base: str) -> UpstreamLeg:
        self.leg = UpstreamLeg(
            f"{base}/v1/listen?keyterm=a+b&model=nova-3&encoding=mulaw&sample_rate=8000",
            HEADERS,
            self,
            1,
            max_message_bytes=65_536,
            write_limit=65_536,
        )
        return self.leg

    def upstream_opened(self, leg: UpstreamLeg, request_id: str) -> None:
        self.opened.append(request_id)

    def upstream_text(self, leg: UpstreamLeg, data: bytes) -> bool:
        self.texts.append(data)
        return False

    def upstream_heard(self, leg: UpstreamLeg) -> None:
        """Nothing to send."""

    def upstream_blocked(self, leg: UpstreamLeg, blocked: bool) -> None:
        """Nothing waits."""

    def upstream_closed(self, leg: UpstreamLeg, code: int, reason: str) -> None:
        self.closes.append((code, reason))

    def defect(self) -> None:
        raise AssertionError("there is none")


def switching(head: bytes, fields: bytes = b"") -> bytes:
    """The 101 that answers the request in `head`."""
    key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n" + fields + b"\r\n"
    )


async def dial(url: str, owner: Owner, deadline: float = 2.0) -> None:
    await Dialer(DeepgramConfig(dial_timeout=deadline)).dial(RegionConfig(url=url), owner.make)


async def test_a_dial(stand: Stand) -> None:
    """When it returns, the owner knows the request id; repeated headers and the query are as given."""
    emulator = await stand.emulator()
    owner = Owner()
    await dial(emulator.url, owner)
    (record,) = emulator.connections
    assert owner.opened == [record.request_id]
    assert record.query.startswith("keyterm=a+b&")
    assert record.headers["x-fern-a"] == "1, 2"
    assert owner.leg is not None
    assert owner.leg.transport is not None
    sock = owner.leg.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SEND_BUFFER_BYTES
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    owner.leg.close(1000)
    await eventually(lambda: owner.closes)
    assert owner.closes == [(1000, "")]


async def test_a_rejection_has_all_that_was_said(stand: Stand) -> None:
    """Status, headers in order, body."""
    emulator = await stand.emulator(deny_status=402)
    with pytest.raises(UpstreamRejected) as rejected:
        await dial(emulator.url, Owner())
    assert rejected.value.status == 402
    assert b"ASR_PAYMENT_REQUIRED" in rejected.value.body
    assert ("dg-request-id", emulator.refusals[0].request_id) in rejected.value.headers


async def test_a_rejections_body_is_bounded() -> None:
    """No answer makes us keep more than MAX_BODY_BYTES."""
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
    async with Answering(answer) as deepgram:
        with pytest.raises(UpstreamRejected) as rejected:
            await dial(deepgram.url, Owner())
    assert len(rejected.value.body) <= MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("answer", "then", "error"),
    [
        (None, "wait", UpstreamTimeout),
        (None, "close", UpstreamUnavailable),
        (None, "reset", UpstreamUnavailable),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "wait", UpstreamUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "wait", UpstreamUnavailable),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "wait", UpstreamUnavailable),
    ],
)
async def test_what_failed_is_gone(answer: bytes | None, then: str, error: type[Exception]) -> None:
    """The error says of which kind it is, the connection is closed, the owner was told nothing."""
    owner = Owner()
    async with Answering(answer, then) as deepgram:
        with pytest.raises(error):
            await dial(deepgram.url, owner, 0.3)
        await eventually(lambda: not deepgram.open)
    assert (owner.opened, owner.texts) == ([], [])


async def test_a_dial_can_be_given_up() -> None:
    """Cancelling it closes what it had opened."""
    async with Answering(None) as deepgram:
        dialling = asyncio.create_task(dial(deepgram.url, Owner(), 10))
        await eventually(lambda: deepgram.requests)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        await eventually(lambda: not deepgram.open)


@pytest.mark.parametrize(
    ("fields", "request_id"),
    [
        (b"", ""),
        (b"dg-request-id: a\r\ndg-request-id: b\r\n", "a"),
        (b"dg-request-id: \xff\r\ndg-request-id: b\r\n", "b"),
        (b"dg-request-id: \xff\r\n", ""),
    ],
)
async def test_the_request_id_is_what_can_be_one(fields: bytes, request_id: str) -> None:
    """Two of them, or bytes that no client could be told, are no reason to end a call."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(switching(await reader.readuntil(b"\r\n\r\n"), fields))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        owner = Owner()
        await dial(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", owner)
        assert owner.opened == [request_id]
        assert owner.leg is not None
        owner.leg.abort()
        await eventually(lambda: owner.closes)


async def test_a_close_frame_is_the_end() -> None:
    """Whoever leaves TCP open after its close frame is not waited for."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(switching(await reader.readuntil(b"\r\n\r\n")))
        await asyncio.sleep(0.05)  # the dial is over
        writer.write(frame(CLOSE, (1011).to_bytes(2, "big") + b"NET-0000", mask=False))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        owner = Owner()
        await dial(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", owner)
        await eventually(lambda: owner.closes, CLOSE_TIMEOUT / 2)
        assert owner.leg is not None
        assert owner.leg.transport is not None
        assert not owner.leg.transport.is_closing(), "the answer to the close is not cut"
        owner.leg.abort()
        await asyncio.sleep(0.05)
    assert owner.closes == [(1011, "NET-0000")], "told once"
