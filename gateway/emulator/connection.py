"""One WebSocket's socket: websockets' parser below, a `Stream` above, and the means to misbehave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import msgspec
from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from gateway.emulator import tcp
from gateway.emulator.actions import Action, Close, Cut, SendBinary, SendText, Socket
from gateway.emulator.faults import NEVER
from gateway.emulator.knobs import Fault, Knobs
from gateway.emulator.listen import ListenStream
from gateway.emulator.records import ConnectionRecord, masked_headers
from gateway.emulator.refusals import Refusal
from gateway.emulator.stream import Stream

if TYPE_CHECKING:
    from gateway.emulator.host import Host

_MAX_EAR_BACKLOG_BYTES = 1 << 20  # a recogniser that is behind by more stops the reading


def _answer_subprotocol(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Only the scheme, never the secret that stands beside it."""
    return offered[0] if offered and offered[0].lower() in ("token", "bearer") else None


class Connection(asyncio.Protocol):
    """A client's WebSocket, from its request to its end."""

    def __init__(self, host: Host, record: ConnectionRecord) -> None:
        self.record = record
        self.stream: Stream | None = None
        self.knobs = host.knobs
        self._host = host
        self._loop = asyncio.get_running_loop()
        deflate = [ServerPerMessageDeflateFactory()] if self.knobs.permessage_deflate else None
        self._ws = ServerProtocol(
            extensions=deflate,
            select_subprotocol=_answer_subprotocol,
            max_size=self.knobs.max_message_bytes,
            logger=logging.getLogger("gateway.emulator.websockets"),
        )
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._events: deque[Event] = deque()
        self._message: list[bytes] = []
        self._message_is_text = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._deaf = self._dumb = self._throttled = False
        self._deferred: list[asyncio.TimerHandle] = []

    def now(self) -> float:
        """Emulator seconds."""
        return self._loop.time() * self.knobs.time_scale

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self.knobs.max_send_buffer_bytes)
        tcp.no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if self._deaf or (self._ws.state is State.CONNECTING and self.record.path):
            self._early.append(data)
            return
        self._ws.receive_data(data)
        self._take_events()

    def eof_received(self) -> bool:
        if not self._deaf and self._ws.state is not State.CLOSED:
            self._ws.receive_eof()
            self._take_events()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.record.ended("client", "lost", time.time())
        for handle in [self._timer, *self._deferred]:
            if handle is not None:
                handle.cancel()
        self._timer, self._transport = None, None
        if self.stream is not None:
            self.stream.close()
        self._host.gone(self)

    def pause_writing(self) -> None:
        """More waits to be sent than a client may leave unread."""
        self.cut("reset", by="emulator")

    def resume_writing(self) -> None:
        """Never needed: a client that reads too slowly is gone."""

    # The handshake.

    def _take_events(self) -> None:
        self._events += self._ws.events_received()
        while self._events and not self._deaf:
            event = self._events.popleft()
            if isinstance(event, Request):
                self._requested(event)
            elif isinstance(event, Frame):
                self._frame(event)
                if self.stream is not None and self.stream.outbox.out:
                    self._perform(self.stream)
        self._after()

    def _requested(self, request: Request) -> None:
        path, _, query = request.path.partition("?")
        self.record.path, self.record.query = path, query
        self.record.headers = masked_headers(request.headers.raw_items())
        delay = self.knobs.handshake_delay / self.knobs.time_scale
        if delay:
            self._deferred.append(self._loop.call_later(delay, self._answer, request))
        else:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        if self._transport is None:
            return
        decision = self._host.admit(self, request)
        if isinstance(decision, Refusal):
            self._refuse(decision)
        else:
            self._accept(request, decision)
        self._catch_up()

    def _catch_up(self) -> None:
        """Take what came while nothing was taken."""
        self._take_events()
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)

    def _refuse(self, refusal: Refusal) -> None:
        body = refusal.body_bytes(self.record.request_id)
        headers = Headers(refusal.headers(self.record.request_id))
        headers["Content-Length"] = str(len(body))
        headers["Connection"] = "close"
        self.record.status = refusal.status
        self.record.ended("emulator", "refused", time.time())
        self._ws.send_response(Response(refusal.status, _phrase(refusal.status), headers, body))
        self._write()

    def _accept(self, request: Request, stream: Stream) -> None:
        response = self._ws.accept(request)
        if self.knobs.request_id_header:
            response.headers["dg-request-id"] = self.record.request_id
        self.record.status = response.status_code
        self._ws.send_response(response)
        if response.status_code != 101:
            self._host.gone(self)
            return
        self.stream = stream
        self._write()
        stream.open(self._host.book.matching(self.record.attempt, self.record.id), self.now())
        self._after()

    # Messages.

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PING:
            self.record.pings += 1
            if self.stream is not None:
                self.stream.pinged(self.now())
        elif frame.opcode is Opcode.CLOSE:
            self._peer_closed()
        elif frame.opcode is not Opcode.PONG:
            self._data_frame(frame)

    def _data_frame(self, frame: Frame) -> None:
        """A message, or a piece of one."""
        if frame.opcode is not Opcode.CONT:
            self._message_is_text = frame.opcode is Opcode.TEXT
            if frame.fin:
                self._received(bytes(frame.data))
                return
        self._message.append(bytes(frame.data))
        if frame.fin:
            whole, self._message = b"".join(self._message), []
            self._received(whole)

    def _received(self, data: bytes) -> None:
        stream, now = self.stream, self.now()
        if stream is None:
            return
        if self._message_is_text:
            text = data.decode(errors="replace")
            self.record.keep_text(text, time.time(), self.knobs.capture_texts)
            if not stream.closed:
                stream.text(text, now)
            return
        self.record.keep_audio(data, self.knobs.capture_audio)
        if self.record.first_audio_at is None:
            self.record.first_audio_at = time.time()
        if stream.closed:
            return
        if data:
            stream.audio(data, now)
        elif isinstance(stream, ListenStream):
            stream.end_of_audio(now)

    def _peer_closed(self) -> None:
        close = self._ws.close_rcvd
        if close is not None and self.record.ended_by is None:
            self.record.close_code, self.record.close_reason = close.code, close.reason
        self.record.ended("client", "close-frame", time.time())
        if self.stream is not None:
            self.stream.close()

    def retune(self, knobs: Knobs) -> None:
        """The knobs changed under an open connection; only its clock keeps its scale."""
        self.knobs = msgspec.structs.replace(knobs, time_scale=self.knobs.time_scale)
        if self.stream is not None and not self.stream.closed:
            self.stream.retune(
                self.knobs, self._host.book.matching(self.record.attempt, self.record.id), self.now()
            )
            self._after()

    def strike(self, fault: Fault) -> None:
        """Let a fault happen now."""
        if self.stream is not None and not self.stream.closed:
            self.stream.strike(fault, self.now())
            self.stream.wake_changed = True
            self._after()

    # Time and actions.

    def _after(self) -> None:
        """After anything that came in: do what the stream wants, and plan the next look at the clock."""
        stream = self.stream
        if stream is not None:
            if stream.outbox.out:
                self._perform(stream)
            if stream.wake_changed:
                self._plan(stream)
                self._throttle(stream)
        self._write()

    def _perform(self, stream: Stream) -> None:
        while stream.outbox.out:
            actions, stream.outbox.out = stream.outbox.out, []
            for action in actions:
                self._do(action)

    def _plan(self, stream: Stream) -> None:
        stream.wake_changed = False
        at = stream.wake_at()
        if at >= self._timer_at or self._transport is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at / self.knobs.time_scale, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, NEVER
        self.look()

    def look(self) -> None:
        """Look at the clock: something may be due, or an ear has news."""
        if self.stream is not None and self._transport is not None:
            self.stream.poll(self.now())
            self.stream.wake_changed = True
            self._after()

    def _throttle(self, stream: Stream) -> None:
        """Stop reading while the recogniser is far behind."""
        behind = stream.intake.backlog_bytes > _MAX_EAR_BACKLOG_BYTES
        if behind != self._throttled and self._transport is not None and not self._deaf:
            self._throttled = behind
            self._transport.pause_reading() if behind else self._transport.resume_reading()

    def _do(self, action: Action) -> None:
        if isinstance(action, Socket):
            self.cut(action.cut, by="emulator")
        elif self._ws.state is State.OPEN and not self._dumb:
            self._send(action)

    def _send(self, action: SendText | SendBinary | Close) -> None:
        if isinstance(action, SendText):
            self.record.keep_sent(action.text, time.time(), self.knobs.capture_texts)
            self._ws.send_text(action.text.encode())
        elif isinstance(action, SendBinary):
            self._ws.send_binary(action.data)
        else:
            self.close(action.code, action.reason)

    def close(self, code: int | None, reason: str) -> None:
        """Send a close frame; TCP ends with the peer's answer, or after `close_timeout`."""
        if self._ws.state is not State.OPEN:
            return
        self.record.close_code, self.record.close_reason = code or 1005, reason
        self.record.ended("emulator", "close-frame", time.time())
        self._ws.send_close(code, reason)
        if self.stream is not None:
            self.stream.close()
        self._write()
        self._deferred.append(self._loop.call_later(self.knobs.close_timeout, self.abort))

    def cut(self, how: Cut, by: str) -> None:
        """Do something to the TCP connection, below the WebSocket."""
        if self._transport is None:
            return
        if how in ("reset", "fin"):
            self.record.ended(by, how, time.time())
            self._write()
            tcp.reset(self._transport) if how == "reset" else self._fin(self._transport)
        elif how == "resume":
            self._deaf = self._dumb = False
            self._transport.resume_reading()
            if self.stream is not None:
                self.stream.resumed(self.now())
            self._catch_up()
        else:
            self._deaf, self._dumb = True, how == "half-open"
            self._transport.pause_reading()

    def _fin(self, transport: asyncio.Transport) -> None:
        """The end of TCP without a word; what still comes is thrown away."""
        self._deaf = self._dumb = True
        if self.stream is not None:
            self.stream.close()
        if transport.can_write_eof():
            transport.write_eof()
            self._deferred.append(self._loop.call_later(self.knobs.close_timeout, self.abort))
        else:
            transport.close()

    def abort(self) -> None:
        """Drop the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self) -> None:
        transport = self._transport
        for data in self._ws.data_to_send():
            if transport is None or transport.is_closing() or self._dumb:
                continue
            if data:
                transport.write(data)
            else:
                transport.close()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
