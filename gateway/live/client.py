"""The client's connection, from its upgrade request on: that has been read, by `gateway.live.head`."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from websockets.datastructures import Headers
from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from gateway.live.handshake import ServerHandshake, asked, phrase
from gateway.live.head import Head
from gateway.live.slots import Slots
from gateway.live.wire import LOGGER, RECEIVED, ServerSide

READ_BYTES: Final = 16_384
READ: Final = RECEIVED[:READ_BYTES]
"""Where a read of a client's lands: no more is taken before it may be found that it sends too much. Of pings
that is 30 ms of work."""
IN_VAIN: Final = 3
"""Turns in a row without anything to read, after which a leg is polled again."""
READS: Final = 16
"""In one turn of a slot, of who is allowed as much."""
_INTO: Final = [READ]
_readv: Final = os.readv  # looked up once: it is called for every read
UNREAD_BYTES: Final = 32_768
"""What a client may send while it is not read: about 4 s of G.711. More stays on its side.

By the window, not by a small buffer: small segments take many times their length of one, and the kernel drops
what does not fit, the client's acknowledgements with it. It would hear nothing any more, and be given up.
"""
COUNTED: Final = 100
"""Frames that the owner is told of at once: to tell of each would be one more function for every read."""


class ClientOwner(Protocol):
    """Who is told what the client says."""

    joins_audio: bool
    """Whether messages of audio that come together may be handed over as one."""

    def client_audio(self, data: bytes) -> bool:
        """True: nothing comes of it that `client_turn` would have to see to."""

    def client_text(self, text: str) -> None: ...
    def client_frames(self, count: int) -> None:
        """So many more have come, of whatever kind; told before `client_turn`, some `COUNTED` at a time."""

    def client_turn(self) -> None:
        """All that one read brought has been told."""

    def client_reads(self) -> None:
        """It takes bytes again."""

    def client_closed(self, code: int, sent: int | None) -> None:
        """`code` as received, 1006 without a close frame; `sent`: that of our own, if there was one."""

    def client_overflowed(self) -> None: ...
    def defect(self) -> None:
        """A mistake of ours came to light in what the client said; the exception is being handled."""


class ClientLeg(ServerSide):
    """Waits for an owner that will `accept` or `refuse` the request in `head`.

    A leg without an owner still ends as it should, but nothing that comes on it has any effect.
    """

    __slots__ = (
        "_frames",
        "_handshake",
        "_in_vain",
        "_paused",
        "_slots",
        "_switch",
        "is_seated",
        "owner",
        "window_ms",
    )

    def __init__(self, head: Head, max_message_bytes: int, write_limit: int) -> None:
        ws = ServerHandshake(max_size=max_message_bytes, logger=LOGGER)
        super().__init__(ws, max_message_bytes, write_limit)
        self._walks = True
        self.owner: ClientOwner | None = None
        # Both until the 101 is sent, for an hour's call need not keep them:
        self._handshake: ServerProtocol | None = ws
        self._switch: Response | None = ws.accept(asked(head))
        self._slots: Slots | None = None
        self.window_ms: int | None = None
        self.is_seated = False
        """In a slot: the loop does not read from it."""
        self._in_vain = 0  # so many turns there was nothing to read
        self._paused = False
        self._frames = 0  # that the owner has not been told of

    @property
    def accepted(self) -> bool:
        return self._handshake is None or self._handshake.state is not State.CONNECTING

    def accept(self, headers: Sequence[tuple[str, str]]) -> None:
        """Answers 101, with `headers` beside what the handshake needs."""
        assert self._handshake is not None
        assert self._switch is not None
        for name, value in headers:
            self._switch.headers[name] = value
        self._handshake.send_response(self._switch)
        self._out += self._handshake.data_to_send()  # before any message, in the same write
        self._handshake = self._switch = None

    def refuse(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Answers with an HTTP response and ends the connection."""
        fields = Headers([*headers, ("Content-Length", str(len(body))), ("Connection", "close")])
        assert self._handshake is not None
        self._handshake.send_response(Response(status, phrase(status), fields, body))
        self.flush()
        self._close_soon()

    def read_in_turns(self, slots: Slots, own_ms: int | None) -> None:
        """While it brings something the socket is read by the clock: by its own window, or by that of all."""
        self._slots, self.window_ms = slots, own_ms

    def pause_reading(self, paused: bool) -> None:
        """TCP back-pressure: while paused the client's own send buffer fills up."""
        self._paused = paused
        if paused:
            self._bound_unread()
        if self.transport is None or self.transport.is_closing() or self.is_seated:
            return
        if paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def close(self, code: int | None, reason: str = "") -> None:
        self._leave_slots()
        super().close(code, reason)

    # What asyncio and Slots ask

    def get_buffer(self, _sizehint: int) -> memoryview:
        return READ

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has read."""
        super().buffer_updated(nbytes)
        if self._slots is not None and not self.is_seated:
            self._slots.sit(self)

    def leave_loop(self) -> bool:
        transport = self.transport
        if transport is None or transport.is_closing() or self._fd < 0:
            return False
        transport.pause_reading()
        self.is_seated = True
        return True

    def join_loop(self) -> None:
        if self.is_seated:
            self.is_seated = False
            self.pause_reading(self._paused)

    def read_now(self) -> bool:
        transport = self.transport
        for _ in range(READS):
            if transport is None or transport.is_closing():
                return False
            if self._paused:
                return True
            try:
                length = _readv(self._fd, _INTO)
            except BlockingIOError:
                self._in_vain += 1
                return self._in_vain < IN_VAIN
            except OSError:
                return False  # the transport will find it too, and end
            if not length:
                return False
            self._in_vain = 0
            super().buffer_updated(length)
            if length < READ_BYTES:
                return True
        return True

    # What WebSocketLeg says

    @property
    def handshake_error(self) -> str:
        """Why the upgrade request cannot be granted; empty when it can."""
        error = self._handshake.handshake_exc if self._handshake is not None else None
        return str(error) if error is not None else ""

    def binary_received(self, messages: list[bytes]) -> bool:
        self._frames = frames = self._frames + len(messages)
        owner = self.owner
        if owner is not None and owner.joins_audio and messages and all(messages):
            return owner.client_audio(b"".join(messages)) and frames < COUNTED
        is_done = frames < COUNTED
        for message in messages:
            if self.owner is not None:
                is_done &= self.owner.client_audio(message)
        return is_done

    def text_received(self, data: bytes) -> bool:
        self._frames += 1
        if self.owner is not None:
            self.owner.client_text(data.decode())
        return False

    def frame_received(self) -> None:
        self._frames += 1

    def read_done(self) -> None:
        if self.owner is not None:
            if self._frames >= COUNTED:
                frames, self._frames = self._frames, 0
                self.owner.client_frames(frames)
            self.owner.client_turn()

    def lost(self, code: int, reason: str) -> None:
        self._leave_slots()
        if self.owner is not None:
            sent = self._ws.close_sent if self._ws is not None else None
            self.owner.client_closed(code, sent.code if sent else None)

    def overflowed(self) -> None:
        if self.owner is not None:
            self.owner.client_overflowed()

    def writable_changed(self) -> None:
        if self.owner is not None and self.writable:
            self.owner.client_reads()

    def defect(self) -> None:
        if self.owner is not None:
            self.owner.defect()
        else:
            super().defect()

    def _bound_unread(self) -> None:
        """Each time, since the kernel widens the window of who sends much at once."""
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):  # it is gone, or not of TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, UNREAD_BYTES)

    def _leave_slots(self) -> None:
        """The end is the loop's business, and should be known at once."""
        self._slots = None
        self.window_ms = 0  # if it is in a slot, that is the last time that it is found there
        if self.is_seated:
            self._paused = False
            self.join_loop()
