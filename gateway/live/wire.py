"""A WebSocket connection on an asyncio transport: messages outside, two ways to read them inside.

Messages of one frame, which is what audio and results come in, are cut out here by their headers. Every
other frame, and whatever is wrong, is given to websockets' Sans-I/O protocol with just its bytes; so is the
handshake. Both legs of a call are one of these. Everything is synchronous: what one read brings is parsed,
handed on and answered before the loop looks at the next socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as SansIO
from websockets.protocol import Side, State

from gateway.live.defects import contained

try:
    from websockets.speedups import apply_mask
except ImportError:  # a wheel without C extensions
    from websockets.utils import apply_mask

_mask: Final = apply_mask  # compiled code finds a constant at once, and looks any other name up

CLOSE_TIMEOUT: Final = 5.0
"""Seconds for the peer to end the connection after a close frame."""
HIGH_WATER_BYTES: Final = 65_536
"""Unsent bytes at which a leg counts as not writable."""
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 10, 5, 2
USER_TIMEOUT_MS: Final = 10_000
"""A peer that acknowledges nothing is given up after this long (RFC 5482); faults.md 2 and 30."""
ABNORMAL: Final = 1006

_WHOLE_BINARY: Final = 0x82
_WHOLE_TEXT: Final = 0x81
_WHOLE: Final = (_WHOLE_BINARY, _WHOLE_TEXT)
_PING: Final = 0x89
_MASKED: Final = 0x80
_LONG_TEXT: Final = 0x817E
"""How a frame begins that is a whole text of 126 to 65 535 bytes; its length follows."""
_LONG_HEAD: Final = struct.Struct("!HH").unpack_from
_LONG: Final = struct.Struct("!BBH").pack
_LONG_MASKED: Final = struct.Struct("!BBH4s").pack
_LONGEST: Final = struct.Struct("!BBQ").pack
_HEAD_END: Final = b"\r\n\r\n"
_write: Final = os.write  # so here

LOGGER: Final = logging.getLogger("websockets")
"""Given to each of websockets' protocols, which would look for one by name."""
MOST_FRAMES: Final = 16
"""Of one size that are cut out of a read at once: each count of each size is a layout that is kept."""
RECEIVED: Final = memoryview(bytearray(262_144))
"""Where every read of the process lands; what must outlive it is copied."""


def tune(sock: socket.socket) -> None:
    """Options of every connection: no delay, and a dead peer noticed by the kernel."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def _thousand(_: None) -> Iterator[tuple[bytes]]:
    return struct.iter_unpack("4s", os.urandom(4096))


_key: Final[Callable[[], tuple[bytes]]] = itertools.chain.from_iterable(
    map(_thousand, itertools.repeat(None))
).__next__
"""Masking keys (RFC 6455 §5.3: unpredictable), each in a tuple: a thousand for one system call."""


def frame(first: int, payload: bytes, masked: bool) -> bytes:
    """A whole frame (RFC 6455 §5.2); `first` is its first byte."""
    flag, length = _MASKED * masked, len(payload)
    if length < 126:
        head = bytes((first, flag | length))
    elif length < 65_536:
        head = _LONG(first, flag | 126, length)
    else:
        head = _LONGEST(first, flag | 127, length)
    if not masked:
        return head + payload
    (key,) = _key()
    return head + key + _mask(payload, key)


class _Shape:
    """`count` masked frames of one size: each is of `unit` bytes and begins with `head`, together they have
    `size`, of which `cut` makes three parts for each: its head, its key, and what it holds."""

    __slots__ = ("cut", "head", "size", "unit")

    def __init__(self, head: bytes, count: int) -> None:
        length = head[1] & 0x7F if len(head) == 2 else int.from_bytes(head[2:], "big")
        layout = struct.Struct(f"{len(head)}s4s{length}s" * count)
        self.head = head
        self.size = layout.size
        self.unit = layout.size // count
        self.cut: Callable[[memoryview], tuple[bytes, ...]] = layout.unpack_from


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


_shape: Final = functools.lru_cache(1024)(_Shape)  # one for all calls


class WebSocketLeg(asyncio.BufferedProtocol):
    """Subclasses say what a message means.

    `max_message` bytes in one message are too many; `write_limit` bytes unread by the peer are the end.
    """

    # One indirection less for each name, twice per frame: a twentieth of what a read costs.
    __slots__ = (  # noqa: SIM905 (twenty names, one to a line, say no more)
        "_closing _fd _fragmented _fragments _head _is_server _loop _lost _mask_received _max_message "
        "_missing _out _passing _shape _side _tail _walks _write_limit _ws transport writable"
    ).split()

    def __init__(self, ws: SansIO, max_message: int, write_limit: int) -> None:
        self._ws: SansIO | None = ws
        self.writable = True
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._max_message = max_message
        self._write_limit = write_limit
        self._side = ws.side
        self._is_server = ws.side is Side.SERVER
        self._mask_received = _MASKED * self._is_server
        self._fd = -1  # of the socket, where what is written there is what the peer gets
        self._out: list[bytes] = []
        self._head = b""  # the last bytes of the peer's handshake so far
        self._walks = False  # frames are cut out here; else websockets gets every byte
        self._shape: _Shape | None = None  # that of audio; frames of it need no walk
        self._tail: list[bytes] = []  # an incomplete frame,
        self._missing = 0  # of which so many bytes are yet to come, if that is known
        self._passing = 0  # so many bytes are yet to come of a frame that websockets has the beginning of
        self._fragments: list[bytes] = []
        self._fragmented: Opcode | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._lost = False

    @property
    def ws(self) -> SansIO:
        """websockets' protocol. On an open connection it knows nothing between two frames, and takes 3 KiB:
        there is none then, until it is asked for."""
        if self._ws is None:
            self._ws = SansIO(self._side, max_size=self._max_message, logger=LOGGER)
        return self._ws

    def is_open(self) -> bool:
        """Between both handshakes."""
        return self._ws is None or self._ws.state is State.OPEN

    # What subclasses say

    def handshake_received(self, event: Any) -> None:
        """The peer's Request or Response."""

    def binary_received(self, messages: list[bytes]) -> bool:
        """Whole binary messages, with nothing between them. True: `read_done` has nothing to do for them."""
        return False

    def text_received(self, data: bytes) -> bool:
        """One whole text message: valid UTF-8. True: `read_done` has nothing to do for it."""
        return False

    def frame_received(self) -> None:
        """A frame that ends no message: a ping, a fragment."""

    def read_done(self) -> None:
        """All messages of one read have been handed over, or there was none."""

    def lost(self, code: int, reason: str) -> None:
        """The connection is over; called once. 1006: without a close frame."""

    def writable_changed(self) -> None:
        """The peer leaves bytes unread, or reads again; not a time to write."""

    # What callers do

    def send_binary(self, data: bytes) -> None:
        if self._ws is None or self.is_open():
            self._out.append(frame(_WHOLE_BINARY, data, not self._is_server))

    def send_text(self, data: bytes) -> None:
        if self._ws is None or self.is_open():
            self._out.append(frame(_WHOLE_TEXT, data, not self._is_server))

    def send_ping(self) -> None:
        if self.is_open():
            self._out.append(frame(_PING, b"", not self._is_server))

    def close(self, code: int | None, reason: str = "") -> None:
        """Begins the closing handshake; the transport ends soon after, whatever the peer does."""
        if self.is_open():
            self.ws.send_close(code, reason)
        self.flush()
        self._close_soon()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def flush(self) -> None:
        """Writes what the protocol has to say; call it once after a group of sends."""
        chunks = self._out
        if self._ws is not None:
            # Control frames last: a close ends what is said, and a pong may come whenever it likes.
            chunks += self._ws.data_to_send()
            self._let_go()
        if not chunks:
            return
        self._out = []
        self._write(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if chunks[-1] == b"":
            self._end_writing()

    def overflowed(self) -> None:
        """The peer left too much unread, pongs included (faults.md M1)."""

    def defect(self) -> None:
        """What the connection said met a mistake of ours; the exception is being handled."""
        self._loop.call_exception_handler({"message": "live.defect", "exception": sys.exception()})
        self.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance check: uvloop's transports do not derive from asyncio's.
        self.transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and transport.get_extra_info("sslcontext") is None:
            self._fd = sock.fileno()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(RECEIVED[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        try:
            self._take(bytes(data))
            self.read_done()
            self._answer()
        except Exception:
            self.defect()

    @contained
    def eof_received(self) -> None:
        self._stop_walking(b"".join(self._tail))
        self.ws.receive_eof()
        self._hand_over()
        self.read_done()
        self.flush()
        self._close_soon()  # asyncio closes only when all is written, and who reads it may be gone

    @contained
    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        if not self._lost:
            self._lost = True
            received = None
            if self._ws is not None:
                with contextlib.suppress(EOFError):  # the end of the stream was already told
                    self._ws.receive_eof()
                self._ws.data_to_send()
                received = self._ws.close_rcvd
            code, reason = (received.code, received.reason) if received else (ABNORMAL, "")
            self.lost(code, reason)

    @contained
    def pause_writing(self) -> None:
        self.writable = False
        self.writable_changed()

    @contained
    def resume_writing(self) -> None:
        self.writable = True
        self.writable_changed()

    # Private

    def _answer(self) -> None:
        if self._out or self._ws is not None:
            self.flush()
            if self._ws is not None and self._ws.close_expected():
                self._close_soon()

    def _take(self, data: bytes) -> None:
        if not self._walks:
            self._listen(data)
        elif self.is_open():
            self._walk(data)
        elif self.ws.state is State.CONNECTING:
            self.abort()  # a client speaks when it has its 101 (RFC 6455 §4.1)
        else:
            self._stop_walking(b"".join(self._tail) + data)

    def _listen(self, data: bytes) -> None:
        """Gives bytes to websockets; the frames that follow a handshake are cut out here."""
        if self.ws.state is not State.CONNECTING:
            self.ws.receive_data(data)
            self._hand_over()
            return
        seen = len(self._head)
        end = (self._head + data).find(_HEAD_END)
        cut = end + len(_HEAD_END) - seen if end >= 0 else len(data)
        self._head = (self._head + data)[1 - len(_HEAD_END) :]
        self.ws.receive_data(data[:cut])
        self._hand_over()
        self._walks = self.is_open()  # else its answer was no 101, and has a body
        if cut < len(data):
            self._take(data[cut:])

    def _walk(self, data: bytes) -> None:
        """Cuts whole frames of audio out of the stream; of all else websockets sees every byte at once."""
        if self._passing:
            part, data = data[: self._passing], data[self._passing :]
            self._passing -= len(part)
            if not self._pass_on(part, data):
                return
        elif self._tail:
            self._tail.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data, self._tail = b"".join(self._tail), []
        at, size = 0, len(data)
        binary: list[bytes] = []
        while size - at >= 2:
            first, second = data[at], data[at + 1]
            is_ours = first in _WHOLE and second & _MASKED == self._mask_received
            length, start = second & 0x7F, at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                if start <= size:
                    length = int.from_bytes(data[at + 2 : start], "big")
                elif is_ours:
                    break
                else:
                    self.binary_received(binary)
                    self._stop_walking(data[at:])
                    return
            start += second >> 7 << 2
            end = start + length
            if not is_ours or length > self._max_message or self._fragmented is not None:
                self.binary_received(binary)
                binary = []
                self._passing = max(0, end - size)
                if not self._pass_on(data[at:end], data[end:]):
                    return
            elif end > size:
                self._missing = end - size
                break
            else:
                payload = data[start:end]
                if self._mask_received:
                    payload = _mask(payload, data[start - 4 : start])
                if first == _WHOLE_BINARY:
                    binary.append(payload)
                    if self._mask_received and payload:
                        self._shape = _shape(data[at : start - 4], 1)
                else:
                    self.binary_received(binary)
                    binary = []
                    self._text(payload)
                    if not self.is_open():
                        self._stop_walking(data[end:])
                        return
            at = end
        self.binary_received(binary)
        if at < size:
            self._tail = [data[at:]]

    def _pass_on(self, data: bytes, rest: bytes) -> bool:
        """Gives bytes of one frame to websockets, and `rest` too if the connection is to end; then False."""
        self.ws.receive_data(data)
        self._hand_over()
        if self.is_open():
            return True
        self._stop_walking(rest)
        return False

    def _stop_walking(self, data: bytes) -> None:
        """From here on websockets gets every byte, beginning with these."""
        self._walks, self._passing, self._missing, self._tail = False, 0, 0, []
        self.ws.receive_data(data)
        self._hand_over()

    def _hand_over(self) -> None:
        """What websockets made of the bytes it got, but nothing that follows bad text (RFC 6455 §8.1)."""
        for event in self.ws.events_received():
            if not isinstance(event, Frame):
                self.handshake_received(event)
            elif not self._frame(event):
                return

    def _frame(self, frame: Frame) -> bool:
        """False: it ends a text that is none."""
        opcode = frame.opcode
        if opcode is Opcode.BINARY or opcode is Opcode.TEXT:
            if frame.fin:
                return self._message(opcode, bytes(frame.data))
            self._fragmented, self._fragments = opcode, [bytes(frame.data)]
        elif opcode is Opcode.CONT:
            self._fragments.append(bytes(frame.data))
            if frame.fin and self._fragmented is not None:
                whole, self._fragments = b"".join(self._fragments), []
                opcode, self._fragmented = self._fragmented, None
                return self._message(opcode, whole)
        self.frame_received()
        return True

    def _message(self, opcode: Opcode, data: bytes) -> bool:
        if opcode is Opcode.BINARY:
            self.binary_received([data])
            return True
        return self._text(data)

    def _text(self, data: bytes) -> bool:
        try:
            data.isascii() or data.decode()
        except UnicodeDecodeError as exc:
            self.ws.fail(1007, f"{exc.reason} at position {exc.start}")
            return False
        self.text_received(data)
        return True

    def _write(self, data: bytes) -> None:
        """To the socket, if nothing waits for it; what that does not take is the transport's business."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._fd >= 0 and not transport.get_write_buffer_size():
            try:
                taken = _write(self._fd, data)
            except OSError:
                taken = 0  # it is full, or broken, which the transport will find and tell
            if taken == len(data):
                return
            data = data[taken:]
        self._queue(transport, data)

    def _queue(self, transport: asyncio.Transport, data: bytes) -> None:
        transport.write(data)
        if transport.get_write_buffer_size() > self._write_limit:
            self.overflowed()
            transport.abort()

    def _let_go(self) -> None:
        is_idle = self._walks and not self._passing and self._fragmented is None
        if is_idle and self.is_open():
            self.ws.parser.close()  # it refers to its protocol, which would wait for the cyclic collector
            self._ws = None

    def _end_writing(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _close_soon(self) -> None:
        if self._closing is None and self.transport is not None:
            self._closing = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)


class ServerSide(WebSocketLeg):
    """A leg that takes audio and gives results. What each of them passes is in these lines, for each function
    costs a microsecond where its call has just come out of memory."""

    __slots__ = ()

    def buffer_updated(self, nbytes: int) -> None:
        """Cuts what most reads are: audio in frames of one size."""
        shape = self._shape
        # Without websockets' protocol the connection is open, and only what is in `_tail` has begun.
        if shape is None or self._ws is not None or self._tail:
            self.data_received(RECEIVED[:nbytes])
            return
        if shape.size != nbytes:
            count, rest = divmod(nbytes, shape.unit)
            if rest or count > MOST_FRAMES:
                self.data_received(RECEIVED[:nbytes])
                return
            self._shape = shape = _shape(shape.head, count)
        parts, head = shape.cut(RECEIVED), shape.head
        messages = []
        for at in range(0, len(parts), 3):
            if parts[at] != head:
                self.data_received(RECEIVED[:nbytes])
                return
            messages.append(_mask(parts[at + 2], parts[at + 1]))
        try:
            if not self.binary_received(messages):
                self.read_done()
                self._answer()
        except Exception:
            self.defect()

    def send_result(self, data: bytes) -> None:
        """`send_text` and `flush`."""
        length, transport = len(data), self.transport
        if self._ws is not None or self._out or transport is None or not 126 <= length < 65_536:
            self.send_text(data)
            self.flush()
            return
        whole = _LONG(_WHOLE_TEXT, 126, length) + data
        if self._fd < 0 or transport.is_closing() or transport.get_write_buffer_size():
            self._write(whole)
            return
        try:  # as `_write` does it; docs/performance.md has what its call would cost
            taken = _write(self._fd, whole)
        except OSError:
            taken = 0
        if taken < len(whole):
            self._queue(transport, whole[taken:])


class ClientSide(WebSocketLeg):
    """A leg that gives audio and takes results; see `ServerSide`."""

    __slots__ = ()

    def buffer_updated(self, nbytes: int) -> None:
        """Cuts what most reads are: one result."""
        length = nbytes - 4
        is_one = 126 <= length <= self._max_message and _LONG_HEAD(RECEIVED) == (_LONG_TEXT, length)
        if not is_one or self._ws is not None or self._tail:
            self.data_received(RECEIVED[:nbytes])
            return
        text = RECEIVED[4:nbytes].tobytes()
        if not text.isascii() and not _is_utf8(text):
            self.data_received(RECEIVED[:nbytes])
            return
        try:
            if not self.text_received(text):
                self.read_done()
                self._answer()
        except Exception:
            self.defect()

    def send_audio(self, data: bytes) -> None:
        """`send_binary` and `flush`."""
        length, transport = len(data), self.transport
        if self._ws is not None or self._out or transport is None or not 126 <= length < 65_536:
            self.send_binary(data)
            self.flush()
            return
        (key,) = _key()
        whole = _LONG_MASKED(_WHOLE_BINARY, _MASKED | 126, length, key) + _mask(data, key)
        if self._fd < 0 or transport.is_closing() or transport.get_write_buffer_size():
            self._write(whole)
            return
        try:
            taken = _write(self._fd, whole)
        except OSError:
            taken = 0
        if taken < len(whole):
            self._queue(transport, whole[taken:])
