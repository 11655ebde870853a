"""One call: a client's audio in, Deepgram's results out.

The shell calls one method for whatever happened, then

    for event in session.events_received(): …             do it
    for message in session.data_to_send(epoch, now): …    send it on that upstream connection
    session.get_timer()                                   call handle_timer(now) at that time

Audio is first offered to `relay`, after which none of that is needed.

`now` is in seconds on a monotonic clock. Nothing here waits, reads a clock, or opens a socket. This is the
client's half: its handshake, its pace, its end; what becomes of its audio is `Stream`'s business.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import msgspec

from gateway.audio.clock import PACKETS, Continuity, MediaClock, from_parameters
from gateway.audio.containers import Clock, Opening, OpusClock
from gateway.config import SessionConfig
from gateway.deepgram.errors import INTERNAL, NET_0001, POLICY, TRY_LATER, Refusal, close_reason, error_text
from gateway.deepgram.headers import relayed
from gateway.deepgram.query import ListenQuery
from gateway.deepgram.recogniser import Kind, Recogniser
from gateway.dialects.events import (
    ClientEvent,
    CloseStream,
    Configure,
    Finalize,
    Forward,
    KeepAlive,
)
from gateway.session.backfill import Backfill, CatchUp
from gateway.session.events import (
    Accept,
    Alert,
    Close,
    Deliver,
    Detached,
    Ended,
    Event,
    Flooded,
    GivenUp,
    Recognised,
    Refuse,
    Resumed,
)
from gateway.session.pacer import Pacer
from gateway.session.resume import MISTAKEN, GatewayGap, GatewayResume, Resumption, Verdict, read
from gateway.session.states import Input, State, after
from gateway.session.stream import Delays, Owner, Stream
from gateway.session.timers import Timers
from gateway.session.uplink import Repeat
from gateway.session.watch import LATE

FULL_WAIT = 1.0
"""Seconds until a client that was stopped for want of room is looked at again."""
OWN_CREDENTIAL = Refusal(503, "Service Unavailable", "The gateway cannot reach Deepgram now.", retry_after=30)
"""What a client is told when Deepgram refuses the gateway's own key: the client can do nothing about it."""

NORMAL = 1000
DEAF = frozenset({State.DRAINING, State.HELD, State.CLOSED})
"""States in which nothing more is taken from the client."""
MESSAGES_BURST = 4.0
"""Seconds of messages that may come at once: what a network held back."""
FINALIZES_BURST = 10.0
"""The same of Finalizes: one for each of many channels is no storm."""
MOST_GAPS = 1000
"""Gaps a client may declare: each is kept until the end of the session."""
SERIAL = CatchUp()


class Timer(enum.IntEnum):
    ACCEPT_WAIT = enum.auto()
    CLIENT_IDLE = enum.auto()
    RESUME_READING = enum.auto()
    ACK = enum.auto()
    HOLD = enum.auto()
    WINDOW = enum.auto()


class SessionProtocol:
    """See the module. Public attributes are for reading; what happened is told by the methods below."""

    __slots__ = (  # noqa: SIM905 (thirty names, one to a line, say no more)
        "_backoff _catch_up _client_present _config _detached_at _done_but_for_hole _ended _ending _events "
        "_finalizes _floods _intake _last_heard _left_out _may_return _messages _mint_request_id "
        "_own_credential _query _reader "
        "_recogniser _timers backfill detached dials ignored_bytes joins_audio reading relay request_id "
        "resumption state stream"
    ).split()

    def __init__(
        self,
        config: SessionConfig,
        query: ListenQuery,
        recogniser: Recogniser,
        *,
        own_credential: bool,
        backoff: Delays,
        mint_request_id: Callable[[], str],
        now: float,
        resumption: Resumption | None = None,
        request_id: str = "",
        catch_up: CatchUp = SERIAL,
    ) -> None:
        """`own_credential`: Deepgram sees the gateway's key, not the client's.

        `resumption`: the client may come back. `request_id`: it has had its 101, and wanted another session.
        """
        self.state = State.CONNECTING
        self.dials = 0
        self.request_id = ""
        self.ignored_bytes = 0
        self.reading = True
        """False while the client must not be read from: it is ahead of real time or the buffer is full."""
        self.detached = False
        """The client is gone, and is waited for."""
        self.resumption = resumption
        self.backfill: Backfill | None = None
        """What an outage left is transcribed beside `stream`."""
        self.joins_audio = False
        """Whether messages of audio may be told as one."""
        self._config = config
        self._recogniser = recogniser
        self._own_credential = own_credential
        self._mint_request_id = mint_request_id
        self._events: list[Event] = []
        self._timers: Timers[Timer] = Timers()
        self._client_present = True  # or may come back
        self._may_return = resumption is not None
        self._detached_at = self._last_heard = now
        self._left_out = 0  # bytes
        self._intake: Pacer | None = None
        self._messages = Pacer(config.max_messages_per_second, 1.0, MESSAGES_BURST, now)
        self._finalizes = Pacer(config.max_finalizes_per_second, 1.0, FINALIZES_BURST, now)
        self._floods: tuple[str, ...] = ()
        clock = _clock_of(query)
        self._reader: Opening | OpusClock | None = Opening() if clock is None else None
        self._ending = Close(recogniser.end_code)
        self._catch_up = catch_up
        self._done_but_for_hole = False
        self._query, self._backoff = query, backoff
        self.stream = self._new_stream(self)
        self.relay = self.stream.uplink.relay
        """(data, now) -> whether audio, as in `audio_received`, is to go up now, as it is, on the connection
        of `stream`, if that takes bytes; False: tell `audio_received`."""
        self._learn_clock(clock or PACKETS, now)
        self._timers.set(Timer.ACCEPT_WAIT, now + config.accept_wait_ms / 1000)
        self.stream.dial()
        if request_id:
            self._go_on_instead(request_id)

    # What the client does

    def audio_received(self, data: bytes, now: float) -> None:
        """One message of audio, or several joined where the clock says they may be; never empty."""
        self._last_heard = now
        if self.state in DEAF:
            self.ignored_bytes += len(data)
            return
        reader = self._reader
        if isinstance(reader, Opening):
            clock = reader.take(data)
            if clock is not None:
                self._begin_audio(reader, clock, now)
            return
        if reader is not None:
            self._read_along(reader, data)
        self._pass_on(data, now)

    def _pass_on(self, data: bytes, now: float) -> None:
        stream = self.stream
        stream.audio(data, now)
        if self._intake is not None and not self._intake.spend(len(data), now):
            self._hold_back(now)
        if self._is_full:
            self._make_room(now)  # last: it may end the session

    def frames_received(self, count: int, now: float) -> bool:
        """The client's connection brought `count` frames more, whatever is in them (faults.md 38).

        False: that was too many, and has consequences.
        """
        return self.state is State.CLOSED or self._spend("messages", self._messages, count, now)

    def client_said(self, event: ClientEvent, now: float) -> None:
        """One text message, decoded; or the empty binary message, as `CloseStream`."""
        self._last_heard = now
        if self.state in DEAF:
            return
        match event:
            case KeepAlive():
                return  # it is there, that is all
            case CloseStream(text):
                self._finish(text, self._ending, Input.FINISHED, now)
                return
            case Finalize(text):
                self._spend("finalizes", self._finalizes, 1, now)
                self.stream.control(text, Repeat.UNTIL_FINAL, now)
            case Configure(text):
                self.stream.control(text, Repeat.ALWAYS, now, is_configure=True)
            case Forward(text):
                if self.resumption is None or not self._understood(text, now):
                    self.stream.control(text, Repeat.NEVER, now)
        if self.stream.uplink.crowded:
            self._hold_back(now)

    def answer(self, raw: bytes) -> None:
        """Says something to the client that is not Deepgram's."""
        self.stream_says(raw, Kind.OTHER, 0)

    def client_lost(self, now: float, code: int | None = None) -> None:
        """The client's connection ended, `code` is that of its close frame, None without one; what it said is
        still transcribed.

        One that may come back is waited for, unless it took its leave, or has answered ours.
        """
        if not self._client_present or self.detached or self.state is State.CLOSED:
            return
        took_leave = code is not None and (code == NORMAL or self.state is State.HELD)
        if self._may_return and self.request_id and not took_leave:
            self._detach(now)
        else:
            self._leave(now)

    def judge(self, request: GatewayResume) -> Verdict:
        """Whether a client that comes on another connection may have the session."""
        assert self.resumption is not None
        verdict = self.resumption.judge(request)
        may_return = self._client_present and self._may_return and self.state is not State.CLOSED
        return verdict if may_return or verdict is Verdict.STRANGER else Verdict.LOST

    def client_returned(self, request: GatewayResume, now: float) -> None:
        """A welcome client (`judge`) is there again; nothing more comes from the connection it had before."""
        resumption = self.resumption
        assert resumption is not None
        away = now - self._detached_at if self.detached else 0.0
        self.detached = False
        self._timers.clear(Timer.WINDOW, Timer.HOLD)
        self._events.append(Resumed(away, self.audio_offset))
        for raw in resumption.resume(request, self.audio_offset, self.stream.bytes_per_second):
            self._events.append(Deliver(raw, Kind.OTHER))
        if self.state is State.HELD:
            self._events.append(self._ending)
        else:
            self._last_heard = now
            self._look_after_client()

    def let_go(self, now: float) -> None:
        """The client could not come back any more: it is not waited for."""
        self._may_return = False
        if self.detached:
            self._leave(now)

    def shut_down(self, code: int, reason: str, now: float) -> None:
        """The gateway must stop: Deepgram's last results, then this close."""
        self.let_go(now)
        if self.state is State.CONNECTING:
            self._refuse(Refusal(503, "Service Unavailable", "The gateway is shutting down.", retry_after=1))
        elif self.state not in DEAF:
            ending = Close(code, reason)
            self._finish(self._recogniser.close_stream, ending, Input.FINISHED, now)

    @property
    def given_seconds(self) -> tuple[float, float]:
        """Seconds of audio that Deepgram was given, and of these what was given once more after a break."""
        given, again = self.stream.given_seconds
        if self.backfill is not None:
            aside = self.backfill.stream.given_seconds
            given, again = given + aside[0], again + aside[1]
        return given, again

    @property
    def held_bytes(self) -> int:
        """Audio that is kept for replay."""
        hole = len(self.backfill.stream.uplink.buffer) if self.backfill is not None else 0
        return len(self.stream.uplink.buffer) + hole

    @property
    def can_shrink(self) -> bool:
        """Whether the oldest audio may be given up for want of memory."""
        return self.clock.timed and self._config.overflow == "drop_oldest"

    def shrink(self, limit: int, now: float) -> None:
        """The replay buffer gives up all but `limit` bytes, once."""
        surplus = self.held_bytes - limit
        if surplus > 0:
            self._drop_oldest(surplus, now)

    # What Deepgram does

    def upstream_opened(self, epoch: int, request_id: str, now: float) -> bool:
        """The 101 of dial `epoch` is here; `request_id` is its `dg-request-id`, empty without one.

        False: it comes too late, and the connection must be ended.
        """
        return self._stream_of(epoch).opened(epoch, request_id, now)

    def upstream_heard(self, epoch: int, now: float) -> None:
        """Bytes came on connection `epoch` that are no message, if only a pong."""
        self._stream_of(epoch).heard(epoch, now)

    def upstream_blocked(self, epoch: int, blocked: bool, now: float) -> None:
        """Connection `epoch` takes no more bytes for now, or takes them again."""
        self._stream_of(epoch).blocked(epoch, blocked, now)

    def dial_refused(
        self, epoch: int, status: int, headers: list[tuple[str, str]], body: bytes, now: float
    ) -> None:
        """Deepgram answered dial `epoch` with an HTTP response that is no 101."""
        self._stream_of(epoch).refused(epoch, status, headers, body, now)

    def dial_failed(self, epoch: int, now: float) -> None:
        """Dial `epoch` ended without an HTTP answer."""
        self._stream_of(epoch).failed(epoch, now)

    def upstream_message(self, epoch: int, raw: bytes, now: float) -> Deliver | None:
        """One text message; from a connection already given up it has no effect.

        Returns what it says to the client if nothing else comes of it, and nothing has to come before it:
        there is no need then to look for events, data or timers.
        """
        events = self._events
        stream = self.stream if self.backfill is None else self._stream_of(epoch)
        is_quiet = not events and not stream.draining
        said = stream.message(epoch, raw, now)
        if said is not None:
            events.append(said)
        if is_quiet and len(events) == 1 and isinstance(only := events[0], Deliver):
            events.clear()
            return only
        return None

    def upstream_lost(self, epoch: int, code: int, reason: str, now: float) -> None:
        """The open connection `epoch` ended; `code` as received, 1006 without a close frame."""
        self._stream_of(epoch).lost(epoch, code, reason, now)

    # What the shell asks

    @property
    def continuity(self) -> Continuity:
        """What may be relied on when a connection breaks, as far as is known by now."""
        return "best_effort" if isinstance(self._reader, Opening) else self.clock.continuity

    @property
    def clock(self) -> Clock:
        return self.stream.clock

    @property
    def audio_offset(self) -> int:
        """Where the client is in its audio, in bytes, what it left out included."""
        unread = sum(map(len, self._reader.messages)) if isinstance(self._reader, Opening) else 0
        return self.stream.uplink.received + unread + self._left_out

    def data_to_send(self, epoch: int, now: float) -> list[bytes | str]:
        """Messages for open upstream connection `epoch`: audio as bytes, control as text, b"" for a ping."""
        stream = self.stream
        if epoch != stream.epoch:
            stream = self._stream_of(epoch)
            if epoch != stream.epoch:
                return []
        return stream.take(now)

    def events_received(self) -> list[Event]:
        """What happened since the last call, in order."""
        if not self._events:
            return []
        events = self._events.copy()
        self._events.clear()
        return events

    def get_timer(self) -> float | None:
        """When to call `handle_timer`; None: never."""
        at = min(self._timers.earliest, self.stream.timers.earliest)
        if self.backfill is not None:
            at = min(at, self.backfill.earliest)
        return at if at < math.inf else None

    def handle_timer(self, now: float) -> None:
        """Does what is due; being early does no harm."""
        due = self.get_timer()
        if due is not None and now - due > LATE:
            self._last_heard = now  # what the client said meanwhile is still unread
        for timer, _ in self._timers.due(now):
            match timer:
                case Timer.ACCEPT_WAIT:
                    if self.state is State.CONNECTING:
                        self.state = after(self.state, Input.WAIT_OVER)
                        self._accept("")
                case Timer.CLIENT_IDLE:
                    self._check_idle(now)
                case Timer.RESUME_READING:
                    self._hold_back(now)
                case Timer.ACK:
                    self._acknowledge(now)
                case Timer.HOLD:
                    self.stream.rest(now)
                    self._timers.set(timer, now + FULL_WAIT)
                case Timer.WINDOW:
                    self._leave(now)
        self.stream.handle_timers(now)
        if self.backfill is not None:
            self.backfill.handle_timers(now)

    # What the stream says

    def stream_opened(self, request_id: str, now: float) -> None:
        self.state = after(self.state, Input.UPSTREAM_OPENED)
        self._accept(request_id)
        is_free = self._catch_up.parallel and self.backfill is None and self.state is State.STREAMING
        if is_free and self.stream.backlog > self._config.backfill_after:
            self.backfill = Backfill(
                self.stream,
                self._new_stream,
                recogniser=self._recogniser,
                config=self._config,
                ordered=self._catch_up.ordered,
                events=self._events,
                tell=self._tell,
                over=self._backfill_over,
                now=now,
            )

    def stream_broke(self) -> None:
        self.state = after(self.state, Input.UPSTREAM_LOST)

    def stream_says(self, raw: bytes, kind: Kind, channel: int) -> None:
        event = Deliver(raw, kind, channel, self.stream.lag)
        if self.backfill is None or not self.backfill.holds(event):
            self._tell(event)

    def stream_refused(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if self._own_credential and status in (401, 402, 403):
            self._events.append(Alert(status, error_text(body)))
            self._refuse(OWN_CREDENTIAL)
        else:
            self._refuse_as(status, tuple(relayed(headers)), body)

    def stream_failed(self, code: int, reason: str) -> None:
        """Says why, and what is missing."""
        if self.backfill is not None:
            self.backfill.give_up("upstream_failed", "failed")
            if self._done_but_for_hole:
                return  # nothing else was missing: with that the call has ended
        self.stream.give_up_owed("upstream_failed")
        self._ending = Close(code, reason)
        error = self.stream.transcript.failure(reason)
        if error is not None:
            self.answer(error)
        self._end(Input.REFUSED, "failed")

    def stream_done(self) -> None:
        if self.backfill is not None:
            self._done_but_for_hole = True
            self.stream.end()
            return
        summary = self.stream.summary()
        if summary is not None:
            self.answer(summary)
        self._end(Input.ENDED, "completed")

    # Private

    def _new_stream(self, owner: Owner) -> Stream:
        return Stream(
            self._config,
            self._query,
            self._recogniser,
            backoff=self._backoff,
            next_epoch=self._count_dial,
            events=self._events,
            owner=owner,
        )

    def _stream_of(self, epoch: int) -> Stream:
        """The stream to which a connection belongs, or belonged."""
        backfill = self.backfill
        return backfill.stream if backfill is not None and epoch == backfill.stream.epoch else self.stream

    def _tell(self, event: Deliver) -> None:
        """To the client, and to one that comes back."""
        if self.resumption is not None and event.kind is not Kind.INTERIM:
            event = msgspec.structs.replace(event, raw=self.resumption.number(event.raw))
        self._events.append(event)

    def _backfill_over(self) -> None:
        backfill, self.backfill = self.backfill, None
        assert backfill is not None
        self.stream.take_back(backfill.stream)
        for event in backfill.release():
            self._tell(event)
        if self._done_but_for_hole:
            self.stream.end_speech()  # that began in the hole: the stream ended before it knew of it
            self.stream_done()

    def _count_dial(self) -> int:
        self.dials += 1
        return self.dials

    def _learn_clock(self, clock: Clock, now: float) -> None:
        config, rate = self._config, clock.bytes_per_second
        self.joins_audio = clock.joinable
        self.stream.use(clock, now)
        self._intake = Pacer(rate, config.pace, config.pace_burst, self._last_heard) if rate else None

    def _begin_audio(self, opening: Opening, clock: Clock, now: float) -> None:
        """The first messages said what they are, or will never."""
        self._reader = clock if isinstance(clock, OpusClock) else None
        self._learn_clock(clock, now)
        self._events.append(Recognised(clock.container, clock.continuity))
        for message in [b"".join(opening.messages)] if clock.joinable else opening.messages:
            self._pass_on(message, now)

    def _read_along(self, clock: OpusClock, data: bytes) -> None:
        was_timed = clock.timed
        clock.feed(data)
        if was_timed and not clock.timed:
            self._events.append(Recognised(clock.container, clock.continuity))

    def _accept(self, request_id: str, greeting: Callable[[int], bytes] | None = None) -> None:
        """Answers the client's handshake, once."""
        if self.request_id:
            return
        self._timers.clear(Timer.ACCEPT_WAIT)
        self.request_id = self.stream.request_id = request_id or self._mint_request_id()
        self.stream.wanted = False
        self._events.append(Accept(self.request_id))
        if self.resumption is not None:
            greet = greeting or self.resumption.hello
            self._events.append(Deliver(greet(self.stream.bytes_per_second), Kind.OTHER))
        self._look_after_client()

    def _look_after_client(self) -> None:
        if self._config.client_idle and self._recogniser.idle_close and self.state is not State.DRAINING:
            self._timers.set(Timer.CLIENT_IDLE, self._last_heard + self._config.client_idle)
        if self.resumption is not None:
            self._timers.set(Timer.ACK, self._last_heard + self.resumption.config.ack_every_ms / 1000)

    def _refuse(self, refusal: Refusal) -> None:
        request_id = self._mint_request_id()
        headers = [("Content-Type", "application/json"), ("dg-error", refusal.message)]
        headers.append(("dg-request-id", request_id))
        if refusal.retry_after is not None:
            headers.append(("Retry-After", str(refusal.retry_after)))
        self._refuse_as(refusal.status, tuple(headers), refusal.body(request_id))

    def _refuse_as(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        """Deepgram will not have this call: as HTTP while the client waits for it, as a close after that."""
        if self.state is State.CONNECTING:
            self._events.append(Refuse(status, headers, body))
            self._end(Input.REFUSED, "refused")
            return
        text = error_text(body) or f"Deepgram refused the call with HTTP {status}"
        self.stream_failed(POLICY if status < 500 else INTERNAL, close_reason(text))

    def _check_idle(self, now: float) -> None:
        if not self.reading:
            self._last_heard = now  # it is us who do not listen
        due = max(self._last_heard, self.stream.uplink.relayed_at) + self._config.client_idle
        if now < due:
            self._timers.set(Timer.CLIENT_IDLE, due)
        elif self.state not in DEAF and self._may_return:
            self._events.append(Close(INTERNAL, NET_0001))  # perhaps its network is gone, and nobody knows
            self._detach(now)
        elif self.state not in DEAF:
            self._finish(self._recogniser.close_stream, Close(INTERNAL, NET_0001), Input.FINISHED, now)

    def _spend(self, what: str, pacer: Pacer, count: int, now: float) -> bool:
        """Whether the client may say so much; if not, it is slowed down, and never closed for it."""
        if pacer.spend(count, now):
            return True
        self._hold_back(now)
        if what not in self._floods:
            self._floods += (what,)
            self._events.append(Flooded(what))
        return False

    def _hold_back(self, now: float) -> None:
        """The client is not read while it is ahead of real time, has said too much, or there is no room:
        its own buffers take it from there."""
        paces = (self._messages, self._finalizes, self._intake)
        at = max(pacer.ready_at(0) for pacer in paces if pacer is not None)
        if at <= now and self.state not in DEAF and (self.stream.uplink.crowded or self._is_full):
            at = now + FULL_WAIT
        self.reading = at <= now
        if not self.reading:
            self._timers.set(Timer.RESUME_READING, at)

    @property
    def _is_full(self) -> bool:
        uplink = self.stream.uplink
        if self.backfill is not None:
            uplink.limit = self.backfill.room
        return len(uplink.buffer) > uplink.limit

    def _make_room(self, now: float) -> None:
        """The buffer is full: the oldest second goes. It is a gap only if it must be sent again."""
        stream = self.stream
        if not self.clock.timed or self._config.overflow == "pause":
            self._hold_back(now)
        elif self._config.overflow == "fail":
            self.stream_failed(TRY_LATER, "the replay buffer is full")
        else:
            self._drop_oldest(len(stream.uplink.buffer) - stream.uplink.limit, now)

    def _drop_oldest(self, surplus: int, now: float) -> None:
        hole = self.backfill.stream if self.backfill is not None else None
        oldest = hole if hole is not None and len(hole.uplink.buffer) > surplus else self.stream
        oldest.drop_oldest(min(surplus, len(oldest.uplink.buffer)), now)

    def _finish(self, text: str, ending: Close, why: Input, now: float) -> None:
        """No more audio will come: Deepgram's last results, then `ending`."""
        if isinstance(self._reader, Opening) and self._reader.messages:
            self._begin_audio(self._reader, self._reader.unknown, now)
        self.state = after(self.state, why)
        self._ending = ending
        self.reading = True
        self._timers.clear(Timer.CLIENT_IDLE, Timer.RESUME_READING)
        if not self._client_present and not self.stream.is_open and not self.stream.uplink.received:
            self._end(Input.ENDED, "abandoned")
        else:
            self.stream.finish(text, now)

    def _end(self, why: Input, outcome: str) -> None:
        """Everything is accounted for, or nobody is there to account to."""
        was_accepted = bool(self.request_id)
        self._ended = Ended(outcome)
        is_held = was_accepted and self._client_present and self._may_return
        self.state = after(self.state, Input.LAST_WORD_SAID if is_held else why)
        self.reading = True  # its close frame, too, wants to be read
        if was_accepted and not self.detached:
            self._events.append(self._ending)
        self.stream.end()
        if is_held:
            self._timers.clear(Timer.CLIENT_IDLE, Timer.RESUME_READING, Timer.ACK, Timer.HOLD)
        else:
            self._over()

    def _over(self) -> None:
        self._events.append(self._ended)
        self._timers.clear_all()

    # Private: a client that may come back

    def _go_on_instead(self, request_id: str) -> None:
        """The client has had its 101, and gets this session for one that cannot be had."""
        assert self.resumption is not None
        self.state = after(self.state, Input.WAIT_OVER)
        self._accept(request_id, self.resumption.instead)

    def _detach(self, now: float) -> None:
        assert self.resumption is not None
        config = self.resumption.config
        self.detached, self._detached_at = True, now
        self._timers.clear(Timer.CLIENT_IDLE, Timer.ACK)
        self._timers.set(Timer.WINDOW, now + config.window)
        if self.state not in DEAF:
            self.stream.finalize(now)
            self._timers.set(Timer.HOLD, now + config.hold_upstream)
        self._events.append(Detached())

    def _leave(self, now: float) -> None:
        """The client is gone for good."""
        if self.detached:
            self._events.append(GivenUp(now - self._detached_at))
        self._client_present = self.detached = self.stream.awaits_summary = False
        self._timers.clear(Timer.ACK, Timer.HOLD, Timer.WINDOW)
        if self.state is State.CONNECTING:
            self._end(Input.CLIENT_LOST, "abandoned")
        elif self.state is State.DRAINING:
            self.state = after(self.state, Input.CLIENT_LOST)
        elif self.state is State.HELD:
            self.state = after(self.state, Input.ENDED)
            self._over()
        else:
            self._finish(self._recogniser.close_stream, self._ending, Input.CLIENT_LOST, now)

    def _acknowledge(self, now: float) -> None:
        assert self.resumption is not None
        oldest = self.stream if self.backfill is None else self.backfill.stream
        ack = self.resumption.ack(self.audio_offset, oldest.final, now)
        if ack is not None:
            self._events.append(Deliver(ack, Kind.OTHER))
        self._timers.set(Timer.ACK, now + self.resumption.config.ack_every_ms / 1000)

    def _understood(self, text: str, now: float) -> bool:
        """Whether `text` is of docs/resume.md, which is not Deepgram's business."""
        try:
            said = read(text)
        except msgspec.ValidationError:
            self._mistaken("that is no message of docs/resume.md", now)
            return True
        if isinstance(said, GatewayGap):
            self._leave_out(said, now)
        return said is not None  # a GatewayResume that comes again has had its effect

    def _leave_out(self, gap: GatewayGap, now: float) -> None:
        length = gap.to - gap.start
        if gap.start != self.audio_offset or length < 0 or length % self.clock.frame_bytes:
            self._mistaken(f"a GatewayGap must begin at {self.audio_offset} and be whole samples", now)
        elif len(self.stream.transcript.gaps) >= MOST_GAPS:
            self._mistaken(f"there are {MOST_GAPS} gaps already", now)
        elif length:
            if isinstance(self._reader, Opening):  # what comes now is not its beginning any more
                self._begin_audio(self._reader, self._reader.unknown, now)
            self._left_out += length
            self.stream.leave_out(length, now)

    def _mistaken(self, why: str, now: float) -> None:
        """The client does not keep to the protocol: it is closed, and not waited for."""
        self._events.append(Close(MISTAKEN, why))
        self._leave(now)


def _clock_of(query: ListenQuery) -> MediaClock | None:
    """As far as the query tells; None where the audio itself has to."""
    if query.has("callback"):
        return PACKETS  # what becomes of it is told to somebody else
    return from_parameters(query.get("encoding"), query.get("sample_rate"), query.get("channels"))
