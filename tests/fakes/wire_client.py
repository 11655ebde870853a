"""A client that owns its bytes: it can cut, delay and break them as no library would.

It shares no code with what it talks to: frames are written and read by hand (RFC 6455 §5.2).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import random
import struct
from collections.abc import Iterable
from typing import Self, cast

Headers = list[tuple[str, str]]
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_KEY = base64.b64encode(b"0123456789abcdef").decode()
ACCEPT = "BACScCJPNqyz+UBoqMH89VmURoA="
"""The answer to `_KEY` (RFC 6455 §4.2.2)."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0) -> bytes:
    """One frame; the mask is not zero, so that a server that forgets it shows."""
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    size = len(payload)
    flag = mask << 7
    if size < 126:
        head += bytes([flag | size])
    elif size < 65536:
        head += bytes([flag | 126]) + struct.pack("!H", size)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", size)
    if not mask:
        return head + payload
    key = b"\x5a\xa5\x3c\xc3"
    whole = int.from_bytes(payload, "big") ^ int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return head + key + whole.to_bytes(size, "big")


def fragments(opcode: int, payload: bytes, cuts: Iterable[int], between: bytes = b"") -> bytes:
    """One message in pieces cut at `cuts`, with `between` (control frames) after every piece but the last."""
    edges = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    out = b""
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        last = number == len(edges) - 2
        out += frame(CONT if number else opcode, payload[start:stop], fin=last)
        out += b"" if last else between
    return out


def upgrade(target: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """An upgrade request; a header in `headers` replaces the usual one of that name."""
    usual = {
        "Host": "gateway.test",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": _KEY,
        "Sec-WebSocket-Version": "13",
    }
    own = list(headers)
    named = {name.lower() for name, _ in own}
    lines = [f"{name}: {value}" for name, value in usual.items() if name.lower() not in named]
    lines += [f"{name}: {value}" for name, value in own]
    return "\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


class WireClient:
    """One connection. `open` gives it `status`, `headers` (names in lower case), and `body` but on 101."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: Headers = []
        self.body = b""

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> Self:
        """TCP only."""
        reader, writer = await asyncio.open_connection(*address)
        return cls(reader, writer)

    @classmethod
    async def open(
        cls, address: tuple[str, int], target: str, headers: Iterable[tuple[str, str]] = ()
    ) -> Self:
        """TCP and the upgrade, whatever is answered."""
        client = await cls.connect(address)
        client.writer.write(upgrade(target, headers))
        await client.read_response()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def read_response(self, seconds: float = 10.0) -> None:
        """The answer to one request."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            self.status = int(first.split(" ")[1])
            pairs = (line.partition(":") for line in lines)
            self.headers = [(name.lower(), value.strip()) for name, _, value in pairs]
            length = self.header("content-length")
            if self.status != 101 and length is not None:
                self.body = await self.reader.readexactly(int(length))

    def header(self, name: str) -> str | None:
        """The header's value; None without it. Fails when there are several."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) < 2, f"{name} came {len(found)} times"
        return found[0] if found else None

    async def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))
        await self.writer.drain()

    async def dribble(self, data: bytes, rng: random.Random) -> None:
        """The bytes in pieces of random size, with random pauses between them."""
        at = 0
        while at < len(data):
            size = rng.choice((1, 7, 100, 1460, 8000))
            self.writer.write(data[at : at + size])
            at += size
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice((0, 0, 0.001)))
        await self.writer.drain()

    def pause(self) -> None:
        """Stop reading: from now on the kernel's buffers fill up."""
        cast(asyncio.Transport, self.writer.transport).pause_reading()

    def resume(self) -> None:
        """Read again."""
        cast(asyncio.Transport, self.writer.transport).resume_reading()

    async def frame(self, seconds: float = 10.0) -> tuple[int, bytes]:
        """The next frame from the server. Raises IncompleteReadError or an OSError at the end of TCP."""
        async with asyncio.timeout(seconds):
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            assert second < 0x80, "a server must not mask"
            return first & 0x0F, await self.reader.readexactly(size)

    async def messages(self, seconds: float = 10.0) -> tuple[list[bytes], int, str]:
        """All texts up to the close frame, its code (1005: none in it, 1006: no frame) and its reason."""
        texts: list[bytes] = []
        async with asyncio.timeout(seconds):
            try:
                while True:
                    opcode, payload = await self.frame(seconds)
                    if opcode == TEXT:
                        texts.append(payload)
                    elif opcode == CLOSE:
                        code = int.from_bytes(payload[:2], "big") if payload else 1005
                        await self.send(frame(CLOSE, payload))
                        return texts, code, payload[2:].decode()
            except (asyncio.IncompleteReadError, OSError):
                return texts, 1006, ""

    async def ended(self, seconds: float = 10.0) -> bytes:
        """Waits for the end of TCP; what came before it."""
        came = b""
        async with asyncio.timeout(seconds):
            with contextlib.suppress(OSError):
                while data := await self.reader.read(65536):
                    came += data
        return came

    async def close(self) -> None:
        """The end of TCP from our side."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def exchange(address: tuple[str, int], *pieces: bytes) -> tuple[int, Headers, bytes]:
    """One HTTP request in pieces, each sent by itself; returns status, headers and body."""
    async with await WireClient.connect(address) as client:
        for piece in pieces:
            await client.send(piece)
            await asyncio.sleep(0.01 if len(pieces) > 1 else 0)
        await client.read_response()
        return client.status, client.headers, client.body
