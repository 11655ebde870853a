"""The upstream half of a call: audio in, results out, over as many connections to Deepgram as it takes.

A stream dials, sends what its uplink has, watches whether results come, and after any loss opens another
connection that goes on where the finals stopped. It knows nothing of the client: what becomes of it is told
to its `Owner`, what is to be done goes onto the list of events.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.audio.clock import positive
from gateway.audio.containers import Clock
from gateway.config import SessionConfig
from gateway.deepgram.errors import ABNORMAL, INTERNAL, POLICY
from gateway.deepgram.query import ListenQuery
from gateway.deepgram.recogniser import FINAL, INTERIM, MAX_CHANNELS, Kind, Reading, Recogniser
from gateway.session.events import Broke, Deliver, Dial, Event, HangUp, Restored
from gateway.session.finalizes import unasked
from gateway.session.timers import Timers
from gateway.session.transcript import Transcript
from gateway.session.uplink import Repeat, Uplink
from gateway.session.watch import Watch

HEALTHY_LIFE = 5.0
"""Seconds after which a connection without results counts as healthy: the next dial is at once."""
FINALS_ONLY = 4
"""Times as patient with a connection that sends no interims: finals come every few seconds, not every one."""
WATCH_INTERVAL = 0.5
WATCH_GRID = 0.1
"""Seconds; calls are looked after at multiples of this."""
SUMMARY_WAIT = 1.0
"""Seconds between Deepgram's Metadata and its close frame; they come in one packet."""
FINALIZE = '{"type":"Finalize"}'
MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError)
"""What is raised for a message that cannot be read, or not be changed where that is needed (faults.md 23)."""
ROTATED = "rotated"
"""The reason of a break that we make ourselves in a very long call."""
OUT_OF_TIME = "Deepgram did not finish in time"
CALLBACK_LOST = "the connection to Deepgram was lost, and callback= is not repeated"
ROUNDED = 20
"""Of a second: by so much a final may end before the Finalize that it answers."""
WORN_OUT = 1.1
"""Times `rotate` after which any final is a place to change the connection: utterances may never end."""
MOST_IDS = 100
"""Of Deepgram's request ids, the latest, are remembered: a call may dial for days."""
WORTH_A_DIAL = 1.0
"""Seconds without a final at an otherwise clean end that are worth another connection."""


class Delays(Protocol):
    """See `gateway.policy.backoff.Backoff`."""

    def delay(self, now: float, *, in_budget: bool = True) -> float: ...
    def pause(self, now: float) -> float: ...
    def reset(self) -> None: ...


class Owner(Protocol):
    """Who is told what becomes of a stream."""

    def stream_opened(self, request_id: str, now: float) -> None:
        """A connection is there; its `dg-request-id`, empty without one.

        Now is the time to `hand_over` a backlog: this connection will not begin with it then.
        """

    def stream_broke(self) -> None:
        """There is none now; the stream looks for another."""

    def stream_says(self, raw: bytes, kind: Kind, channel: int) -> None:
        """A message for the client, as it goes on the wire."""

    def stream_refused(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Deepgram will not have it; another dial would get the same answer."""

    def stream_failed(self, code: int, reason: str) -> None:
        """Nothing more can be had."""

    def stream_done(self) -> None:
        """After `finish`: Deepgram has said all that it has to say."""


class Link(enum.Enum):
    DOWN = "down"
    DIALLING = "dialling"
    OPEN = "open"
    RESTING = "resting"
    """Asked to end, for want of audio: its last results are welcome, but no more goes up."""


_OPEN, _RESTING = Link.OPEN, Link.RESTING


class Timer(enum.IntEnum):
    REDIAL = enum.auto()
    KEEPALIVE = enum.auto()
    SEND = enum.auto()
    WATCH = enum.auto()
    FINISH = enum.auto()
    SUMMARY = enum.auto()
    REST = enum.auto()


class Stream:
    """Methods that take an `epoch` have no effect when it is not that of the present connection."""

    # With more than thirty names an instance has a dict of its own, of 1.5 KiB.
    __slots__ = (  # noqa: SIM905 (forty names, one to a line, say no more)
        "_answered _backoff _calls_back _channels _close_sent _config _connections _diarized _events "
        "_greeted _hides_interims _kept_alive_at _known_as _lag_at _link _next_epoch _opened_at _owner "
        "_patience _poisoned_at _recogniser _results _results_in_epoch _second_chance _skipped_at _splice "
        "_summary _watch _word_at awaits_summary draining epoch lag malformed patient prompted request_id "
        "request_ids stale timers transcript uplink urgent wanted"
    ).split()

    def __init__(
        self,
        config: SessionConfig,
        query: ListenQuery,
        recogniser: Recogniser,
        *,
        backoff: Delays,
        next_epoch: Callable[[], int],
        events: list[Event],
        owner: Owner,
    ) -> None:
        """Call `use` before the first audio."""
        self.epoch = 0
        self.request_id = ""
        """What the client knows the call by; Deepgram's own ids are put in its place."""
        self.request_ids: list[str] = []
        """Deepgram's ids of its connections, the latest ones."""
        self.wanted = True
        """Whether a connection is wanted even without audio: the client awaits its 101."""
        self.draining = False
        self.patient = False
        """Whether its owner says when to stop looking for a connection; `finish` only bounds an open one."""
        self.awaits_summary = True
        """Whether somebody wants Deepgram's last Metadata, even if there is nothing else to have."""
        self.malformed = self.stale = self.prompted = 0
        self.lag = 0.0
        """Seconds of received audio that the latest result had not reached."""
        self._lag_at = 0
        self.uplink = Uplink(pace=config.pace, catch_up_pace=config.catch_up_pace, burst=config.pace_burst)
        self.timers: Timers[Timer] = Timers()
        shows_interims = query.flag("interim_results") or not recogniser.has_windows
        self._hides_interims = config.force_interims and not shows_interims
        self._patience = 1 if shows_interims or self._hides_interims else FINALS_ONLY
        channels = positive(query.get("channels")) if query.flag("multichannel") else 1
        self._channels = min(MAX_CHANNELS, channels)
        self._calls_back = query.has("callback")
        self._diarized = query.flag("diarize") or query.get("diarize_model") is not None
        self._config = config
        self._recogniser = recogniser
        self._backoff = backoff
        self._next_epoch = next_epoch
        self._events = events
        self._owner = owner
        self._link = Link.DOWN
        self._connections = itertools.count(1)
        self._known_as = ""  # Deepgram's id of the present connection
        self._opened_at = self._kept_alive_at = 0.0
        self._word_at = 0.0  # Deepgram's last word, once its last results are awaited
        self._results = self._results_in_epoch = 0
        self._splice: tuple[bytes, bytes] | None = None
        self._greeted = False
        self._summary: bytes | None = None
        self._close_sent = False
        self._second_chance = not self._calls_back
        self._poisoned_at = (-1, -1)
        self._skipped_at: dict[int, int] = {}
        self._answered = 0  # bytes that are known to have their finals, whatever the clock
        self.urgent: list[bytes | str] = []
        """What goes up before anything else: pings and keepalives."""

    def use(self, clock: Clock, now: float) -> None:
        """The clock is known now, or a better one; before the first audio."""
        config = self._config
        self.uplink.use(clock, now)
        self.transcript = Transcript(
            self._recogniser,
            clock,
            self._channels,
            strategy=config.seam_strategy,
            preroll=config.preroll,
            diarized=self._diarized,
            annotate=config.annotate,
        )
        # Results that go elsewhere say nothing here.
        stall = math.inf if self._calls_back else config.stall
        self._watch = Watch(clock, stall, config.max_lag, now, self._patience)
        limit = clock.length(config.buffer) or config.buffer_bytes
        self.uplink.limit = min(config.buffer_bytes, limit)

    # What is said

    @property
    def clock(self) -> Clock:
        return self.uplink.clock

    @property
    def audio_seconds(self) -> float:
        """All audio that came; 0 without a clock."""
        clock = self.clock
        return clock.samples(self.uplink.received) / clock.rate_hz if clock.timed else 0.0

    @property
    def given_seconds(self) -> tuple[float, float]:
        """Seconds of audio that all connections were given, and of these what went up once more."""
        uplink = self.uplink
        share = self.audio_seconds / uplink.received if uplink.received else 0.0
        given, repeated = uplink.given
        return given * share, repeated * share

    @property
    def backlog(self) -> float:
        """Seconds of audio at hand without a final, where audio can be divided anywhere."""
        uplink, clock = self.uplink, self.clock
        if not (clock.exact and self._recogniser.has_windows):
            return 0.0
        watermark = clock.offset(self.transcript.timeline.watermark)
        return self._seconds(max(uplink.buffer.start, watermark), uplink.received)

    @property
    def is_open(self) -> bool:
        return self._link is _OPEN or self._link is _RESTING

    @property
    def final(self) -> int:
        """The client's bytes, with what it left out, that finals and gaps cover; 0 where a client would need
        the first bytes again to begin anew."""
        return self.clock.offset(self.transcript.timeline.final()) if self.bytes_per_second else 0

    @property
    def bytes_per_second(self) -> int:
        """Of audio without a header."""
        return 0 if self.clock.container else self.clock.bytes_per_second

    @property
    def behind(self) -> float:
        """Seconds of received audio that no result has reached by now."""
        return self.lag + self._seconds(self._lag_at, self.uplink.received)

    @property
    def is_fruitless(self) -> bool:
        """Whether the present or latest connection took audio, and gave no result for it."""
        return self._watch.is_fruitless(self.uplink.sent) and not self._calls_back

    def audio(self, data: bytes, now: float) -> None:
        self.uplink.audio(data)
        if self._link is Link.DOWN and Timer.REDIAL not in self.timers:
            self.dial()

    def control(self, text: str, repeat: Repeat, now: float, *, is_configure: bool = False) -> None:
        self.uplink.control(text, repeat, is_configure=is_configure)
        self.redial_if_owed(now)

    def finish(self, text: str, now: float) -> None:
        """No more will be said, and `text` says so: Deepgram's last results are awaited."""
        self.draining = True
        self._word_at = now
        self.uplink.finish(text)
        self._expect_the_end(now)
        if self._link is Link.DOWN and not self._has_work():
            self._complete()
        else:
            self.redial_if_owed(now)

    def finalize(self, now: float) -> None:
        """Asks for what is pending to become final, at this place."""
        if "Finalize" in self._recogniser.controls and (self.is_open or self._owed()):
            self.control(FINALIZE, Repeat.UNTIL_FINAL, now)

    def leave_out(self, length: int, now: float) -> None:
        """The client goes on `length` bytes later; no result should reach across."""
        transcript, clock = self.transcript, self.clock
        transcript.leave_out(clock.samples(self.uplink.received), length // clock.frame_bytes)
        self._events.append(transcript.gaps[-1])
        self.finalize(now)

    def rest(self, now: float) -> None:
        """Ends the connection if nothing is left to say on it; later audio gets another."""
        if self._link is Link.OPEN and self.uplink.drained:
            self._link = Link.RESTING
            self.uplink.close()
            self.urgent.append(self._recogniser.close_stream)
            self.timers.clear(Timer.KEEPALIVE, Timer.WATCH)
            self.timers.set(Timer.REST, now + self._config.finish)

    def hand_over(self, other: Stream, edge: int, begin: int, now: float, *, is_aside: bool) -> None:
        """The backlog up to sample `edge` becomes that of `other`, a new stream; here it goes on at `begin`.

        Both hear the audio around the edge, and each tells the words whose middle is on its side.
        """
        other.use(self.clock, now)
        other.request_id, other.request_ids = self.request_id, self.request_ids
        other._connections = self._connections
        other.transcript = self.transcript.hand_over(edge, begin, is_aside=is_aside)
        other.wanted = other.awaits_summary = False
        other.patient = other._hides_interims = True
        self.uplink.hand_over(other.uplink, self.clock.offset(edge), self.clock.offset(begin))
        self.uplink.limit -= len(other.uplink.buffer)

    def take_back(self, other: Stream) -> None:
        """What `hand_over` gave to `other` is transcribed, or given up."""
        self.stale += other.stale
        self.malformed += other.malformed
        self.prompted += other.prompted
        self.transcript.take_back(other.transcript)
        self.uplink.take_back(other.uplink)
        self.uplink.limit = other.uplink.limit

    def drop_oldest(self, surplus: int, now: float) -> None:
        """Gives up `surplus` bytes and what makes a second of it; a gap only if they had to be sent again."""
        uplink = self.uplink
        cut = uplink.buffer.start + surplus + self.clock.length(1.0)
        cut = self.clock.offset(self.clock.samples(min(cut, uplink.received)))
        if self.is_open and cut > uplink.sent:
            self._give_up("the backlog outgrew the buffer", now)
        uplink.drop_until(cut)

    def end(self) -> None:
        """It is over, whatever the reason."""
        self._events.append(HangUp(self.epoch))
        self._link = Link.DOWN
        self.uplink.close()
        self.uplink.buffer.discard_until(self.uplink.received)  # whoever holds the session needs none of it
        self.timers.clear_all()

    def dial(self) -> None:
        self.epoch = self._next_epoch()
        self._link = Link.DIALLING
        self.timers.clear(Timer.REDIAL)
        self._events.append(Dial(self.epoch))

    def redial_if_owed(self, now: float) -> None:
        if self._link is Link.DOWN and Timer.REDIAL not in self.timers and self._has_work():
            self.dial()

    # What Deepgram does

    def opened(self, epoch: int, request_id: str, now: float) -> bool:
        """The 101 of dial `epoch` is here. False: too late, the connection must be ended."""
        if epoch != self.epoch or self._link is not Link.DIALLING:
            return False
        self._link = Link.OPEN
        self._opened_at = self._kept_alive_at = now
        self._results_in_epoch = 0
        self._summary = None
        self._close_sent = False
        self._owner.stream_opened(request_id, now)
        self._learn_request_id(request_id)
        self._begin_epoch(now)
        self.timers.set(Timer.KEEPALIVE, now + self._config.keepalive)
        self._look_at(now + WATCH_INTERVAL)
        if self.draining:
            self._expect_the_end(now)
        return True

    def heard(self, epoch: int, now: float) -> None:
        """Bytes came, if only a pong."""
        if epoch == self.epoch:
            self._watch.heard(now)

    def blocked(self, epoch: int, blocked: bool, now: float) -> None:
        """The connection takes no more bytes for now, or takes them again."""
        if epoch == self.epoch:
            self._watch.blocked(blocked, now)

    def refused(
        self, epoch: int, status: int, headers: list[tuple[str, str]], body: bytes, now: float
    ) -> None:
        """Deepgram answered dial `epoch` with an HTTP response that is no 101."""
        if epoch != self.epoch or self._link is not Link.DIALLING:
            return
        self._link = Link.DOWN
        is_final = 400 <= status < 500 and status not in (408, 425, 429)
        if is_final or (status == 429 and self.wanted):
            self._owner.stream_refused(status, headers, body)
        else:
            self._redial_later(now, _retry_after(headers))

    def failed(self, epoch: int, now: float) -> None:
        """Dial `epoch` ended without an HTTP answer."""
        if epoch == self.epoch and self._link is Link.DIALLING:
            self._link = Link.DOWN
            self._redial_later(now)

    def message(self, epoch: int, raw: bytes, now: float) -> Deliver | None:
        """One text message; from a connection already given up it has no effect.

        Most are interims that pass as they came. Such a one is given back; of all else the owner is told.
        """
        link = self._link
        if epoch != self.epoch or (link is not _OPEN and link is not _RESTING):
            self.stale += 1
            return None
        try:
            reading = self._recogniser.read(raw)
            if reading.request_id != self._known_as:
                self._learn_request_id(reading.request_id)
            if self.draining:
                self._word_at = now
                self._expect_the_end(now)
            if self._splice is not None:
                raw = raw.replace(*self._splice)
            kind = reading.kind
            if kind is INTERIM or kind is FINAL:
                return self._result(reading, raw, now)
            self._aside(reading, raw, now)
        except MALFORMED:
            self.malformed += 1
            self._watch.heard(now)
        return None

    def lost(self, epoch: int, code: int, reason: str, now: float) -> None:
        """The open connection `epoch` ended; `code` as received, 1006 without a close frame."""
        if epoch != self.epoch or not self.is_open:
            return
        rested = self._link is Link.RESTING and code in self._recogniser.close_codes
        self._link = Link.DOWN
        self.uplink.close()
        self.urgent = []  # a CloseStream that this connection did not take is not for the next one
        self.timers.clear(Timer.KEEPALIVE, Timer.SUMMARY, Timer.WATCH, Timer.REST)
        if rested:
            self._has_rested(now)
            return
        ended_as_asked = self._close_sent and code in self._recogniser.close_codes
        if ended_as_asked and not self._deserves_another():
            self._complete()
            return
        if self.uplink.received:  # before that Deepgram does not wait for long, and nothing is lost
            self._events.append(Broke(epoch, code, reason, self._seconds_owed()))
        self.transcript.broke()
        if self.draining and not self._has_work():
            self._complete()
        elif self._is_poison(code):
            self._owner.stream_failed(code, reason)
        elif self._calls_back:
            self._owner.stream_failed(INTERNAL, CALLBACK_LOST)
        elif self._is_out_of_time(now):
            self._owner.stream_failed(INTERNAL, OUT_OF_TIME)
        else:
            self._owner.stream_broke()
            self._redial_after_break(now)

    # What the shell asks

    def take(self, now: float) -> list[bytes | str]:
        """Messages for the open connection: audio as bytes, control as text, b"" for a ping."""
        if not self.is_open:
            return []
        messages = self.uplink.take(now) if self._link is _OPEN else []
        if self.draining and messages and self.uplink.drained:
            self._close_sent = True
        if self.urgent:
            messages = self.urgent + messages
            self.urgent = []
        if self.uplink.wake_at < math.inf:
            self.timers.set(Timer.SEND, self.uplink.wake_at)
        return messages

    def handle_timers(self, now: float) -> None:
        """Does what is due."""
        for timer, due in self.timers.due(now):
            match timer:
                case Timer.WATCH:  # twice a second, so it comes first
                    self._watch.excuse(now - due)
                    self._look_after(now)
                case Timer.REDIAL if self.draining and not self._has_work():
                    self._complete()  # who awaited the rest is gone
                case Timer.REDIAL:
                    self.redial_if_owed(now)
                case Timer.KEEPALIVE:
                    self._keep_alive(now)
                case Timer.FINISH:
                    self._end_is_late(now)
                case Timer.SUMMARY if self._deserves_another():
                    self._give_up("ended without its last results", now)
                case Timer.SUMMARY:
                    self._complete()
                case Timer.REST:
                    self._give_up("stalled: no last results", now)
                case Timer.SEND:
                    pass  # the shell asks for data after every call

    def summary(self) -> bytes | None:
        """The one Metadata of the whole call, if Deepgram gave any."""
        raw = self._summary
        if raw is None:
            return None
        if self.clock.timed:
            left_out = self.transcript.timeline.left_out / self.clock.rate_hz
            seconds = round(self.audio_seconds + left_out, 6)
        else:
            seconds = self.transcript.duration(self._recogniser.read(raw))
        return self.transcript.summary(raw, seconds, self.request_ids)

    def end_speech(self) -> None:
        """Nobody will tell of its end any more: says that present speech is over, where the client waits."""
        self.transcript.ended()
        self._tell_gaps(len(self.transcript.gaps))

    def give_up_owed(self, reason: str) -> None:
        """Declares what has no final and will have none (continuity.md I5, I12)."""
        transcript, told = self.transcript, len(self.transcript.gaps)
        owed, watermark = self._owed(), transcript.timeline.watermark
        if not self._recogniser.has_windows or self._calls_back:
            return
        if not self.clock.timed and self.uplink.received > self._answered:
            transcript.lose_track(reason)
        elif self.clock.timed and owed:
            transcript.declare_gap(watermark, watermark + owed, reason)
        self._tell_gaps(told)

    # Private: timers

    def _end_is_late(self, now: float) -> None:
        """Another connection gets one chance with what is still missing; then the call has failed.

        Without a connection it is the dial under way, or the next one, that decides.
        """
        if self._link is Link.OPEN and self._second_chance:
            self._second_chance = False
            self._word_at = now
            self._give_up("stalled: no last results", now)
        elif self._link is Link.OPEN:
            self._owner.stream_failed(INTERNAL, OUT_OF_TIME)

    def _keep_alive(self, now: float) -> None:
        uplink = self.uplink
        due = max(self._kept_alive_at, uplink.relayed_at, uplink.sent_at) + self._config.keepalive
        if now >= due:
            self._kept_alive_at = now
            due = now + self._config.keepalive
            self.urgent.append(self._recogniser.keepalive)
        self.timers.set(Timer.KEEPALIVE, due)

    def _look_after(self, now: float) -> None:
        """Gives up a connection that TCP still believes in (faults.md 2, 3, 14, 15, 16)."""
        if self._watch.wants_ping(now):
            self.urgent.append(b"")
        sent = self.uplink.sent
        trouble = self._watch.trouble(sent, now)
        if trouble:
            self._give_up(trouble, now)
            return
        self._prompt()
        looks = max(1, int(self._watch.quiet_for(sent, now) / WATCH_INTERVAL))
        self._look_at(now + looks * WATCH_INTERVAL)
        self._keep_alive(now)  # while audio flows, this puts it off before its own time comes

    def _look_at(self, when: float) -> None:
        """Looks again soon after `when`: together with other calls, for each by itself would wake the process
        and find nothing of what it needs in the caches."""
        self.timers.set(Timer.WATCH, math.ceil(when / WATCH_GRID) * WATCH_GRID)

    def _prompt(self) -> None:
        """Asks for a final where audio has had none for long: it would fill the buffer."""
        clock, span = self.clock, self._config.finalize_after
        if not span or not clock.timed or self.draining or "Finalize" not in self._recogniser.controls:
            return
        marks, sent = self.transcript.timeline.committed, clock.samples(self.uplink.sent)
        for text in self.uplink.finalizes.prompt(marks, sent, round(span * clock.rate_hz)):
            self.prompted += 1
            self.urgent.append(text)  # of this connection alone, and of no place in the audio

    def _give_up(self, why: str, now: float) -> None:
        """Ends the open connection from our side; the stream goes on."""
        self._events.append(HangUp(self.epoch))
        self.lost(self.epoch, ABNORMAL, why, now)

    def _expect_the_end(self, now: float) -> None:
        """Deepgram has `finish` seconds for its next word, and what the backlog takes to go up."""
        backlog = self._seconds(self.uplink.sent, self.uplink.received)
        self.timers.set(Timer.FINISH, now + backlog / self._config.catch_up_pace + self._config.finish)

    def _is_out_of_time(self, now: float) -> bool:
        """Whether a dial or connection that came to nothing was the last: Deepgram's last word is longer ago
        than `finish` and what another connection would have to hear."""
        hearing = self._seconds_owed() / self._config.catch_up_pace
        is_late = now >= self._word_at + hearing + self._config.finish
        return self.draining and not self.patient and is_late

    # Private: one connection after another

    def _owed(self) -> int:
        """Samples without a final; without a clock, bytes that were not sent."""
        received = self.uplink.received
        if not self.clock.timed:
            return received - self.uplink.sent
        end = min(self.clock.samples(received), self.transcript.stop)
        owed = end - self.transcript.timeline.watermark
        return owed if owed > self.clock.slack else 0

    def _seconds(self, start: int, stop: int) -> float:
        """How long the audio between two bytes is; 0 without a clock."""
        clock = self.clock
        return (clock.samples(stop) - clock.samples(start)) / clock.rate_hz if clock.timed else 0.0

    def _seconds_owed(self) -> float:
        return self._owed() / self.clock.rate_hz if self.clock.timed else 0.0

    def _has_work(self) -> bool:
        """Whether a new connection would have work: without any, it would only time out (NET-0000)."""
        if self.wanted or self._owed() > 0:
            return True
        if self.draining and not self.awaits_summary:
            return False  # nobody is there any more
        if self.uplink.has_unsent_controls:
            return True
        awaited = self._recogniser.has_summary and self._summary is None and self.awaits_summary
        return awaited and self.draining

    def _deserves_another(self) -> bool:
        """Whether a connection ended as asked, but without the results of audio that is still there."""
        is_cut_off = self._recogniser.has_summary and self.awaits_summary and self._summary is None
        least = 0.0 if is_cut_off else WORTH_A_DIAL  # without its summary a close means nothing
        is_short = self._seconds_owed() > least and self._recogniser.has_windows
        if not is_short or not self._second_chance:
            return False
        self._second_chance = False
        self._summary = None
        return True

    def _has_rested(self, now: float) -> None:
        """The connection ended as asked; what has no final now will hardly get one by asking again."""
        self._owner.stream_broke()
        if self.draining and not self._has_work():
            self._owner.stream_done()
        elif self.draining or not self.uplink.drained:
            self.redial_if_owed(now)

    def _redial_after_break(self, now: float) -> None:
        is_healthy = self._results_in_epoch or now - self._opened_at >= HEALTHY_LIFE
        if is_healthy:
            self._backoff.reset()
        if not is_healthy and self.uplink.received:
            self._redial_later(now)
        elif pause := self._backoff.pause(now):
            self.timers.set(Timer.REDIAL, now + pause)
        else:
            self.redial_if_owed(now)  # also where it ended before any audio: no fault, and no hurry

    def _redial_later(self, now: float, at_least: float = 0.0) -> None:
        if self._is_out_of_time(now):
            self._owner.stream_failed(INTERNAL, OUT_OF_TIME)
            return
        self._owner.stream_broke()
        wait = self._backoff.delay(now, in_budget=not self.draining)  # at the end `finish` bounds them
        self.timers.set(Timer.REDIAL, now + max(at_least, wait))

    def _begin_epoch(self, now: float) -> None:
        uplink, transcript, clock = self.uplink, self.transcript, self.clock
        declared, resent = len(transcript.gaps), uplink.sent
        if not clock.timed and resent > self._answered:
            transcript.lose_track("not_replayable")
            self._answered = resent
        base = transcript.begin_epoch(clock.first_sample(uplink.buffer.start))
        uplink.open(clock.offset(base) if clock.timed else resent, now)
        lead_in = clock.lead_in(uplink.sent)
        self.urgent = [lead_in] if lead_in else []
        self._tell_gaps(declared)
        connection = next(self._connections)
        if connection > 1:
            transcript.begin_again(connection)
            replayed = max(0.0, self._seconds(uplink.sent, resent))
            self._events.append(Restored(self.epoch, replayed))
        self._watch.opened(uplink.sent, now)

    def _is_poison(self, code: int) -> bool:
        """Refused as audio (DATA-0000) twice without getting any further in between."""
        if code != POLICY:
            return False
        here = (self.transcript.timeline.watermark, self._results)
        again = self._poisoned_at == here
        self._poisoned_at = here
        return again

    # Private: results

    def _result(self, reading: Reading, raw: bytes, now: float) -> Deliver | None:
        uplink, clock, transcript = self.uplink, self.uplink.clock, self.transcript
        sent, is_final = clock.samples(uplink.sent), reading.kind is FINAL
        last = -1 if is_final else transcript.as_it_came(reading, sent)
        if last < 0 and not transcript.is_plausible(reading, sent):
            self._watch.heard(now)
            return None
        if is_final and self._leaves_a_hole(reading):
            self._give_up("a final skipped audio", now)
            return None
        self._results += is_final
        self._results_in_epoch += 1
        if self._results_in_epoch == 1:
            self._backoff.reset()
        self._watch.progressed(reading.channel, reading.end, uplink.sent, now)
        self._lag_at = received = uplink.received
        if last >= 0:
            heard = sent if received == uplink.sent else clock.samples(received)
            self.lag = (heard - last) / clock.rate_hz
        elif clock.timed:
            self.lag = transcript.timeline.lag(reading, clock.samples(received))
        if self._hides_interims and not is_final:
            return None
        if last >= 0:
            return Deliver(raw, INTERIM, reading.channel, self.lag)
        declared = len(transcript.gaps)
        message = transcript.result(reading, raw, sent)
        self._tell_gaps(declared)
        if reading.from_finalize:
            self._answered = uplink.sent
            channel, marks = reading.channel, transcript.timeline.committed
            until = marks[channel] + clock.rate_hz // ROUNDED
            if not uplink.finalize_answered(channel, len(marks), until) and message is not None:
                message = unasked(message)
        if message is not None:
            self._owner.stream_says(message, reading.kind, reading.channel)
        if not is_final:
            return None
        if clock.timed:
            uplink.settle(transcript.timeline.watermark, clock.offset(transcript.keep_from))
            clock.forget(uplink.buffer.start)
        if self._is_worn(reading, now):
            self._give_up(ROTATED, now)
        return None

    def _leaves_a_hole(self, reading: Reading) -> bool:
        """Whether a final skips audio that another connection could still hear: each place is tried once."""
        mark, channel = self.transcript.timeline.hole(reading), reading.channel
        if mark < 0 or self._skipped_at.get(channel) == mark:
            return False
        if self.uplink.buffer.start > self.clock.offset(mark):
            return False
        self._skipped_at[channel] = mark
        return True

    def _is_worn(self, reading: Reading, now: float) -> bool:
        """Whether to change the connection of a very long call: at the end of an utterance, if one comes.

        Without a clock nothing can be said again, and a call that calls back would do so anew.
        """
        limit, age = self._config.rotate, now - self._opened_at
        if not limit or self.draining or not self.clock.timed:
            return False
        return age >= (limit if reading.ends_speech else limit * WORN_OUT)

    def _aside(self, reading: Reading, raw: bytes, now: float) -> None:
        """A message that is no result."""
        self._watch.heard(now)
        if reading.kind is Kind.SUMMARY:
            msgspec.json.encode(msgspec.json.decode(raw))  # it will be changed: raises now what would then
            self._summary = raw
            if self._close_sent:
                self.timers.set(Timer.SUMMARY, now + SUMMARY_WAIT)
            return
        if reading.kind is Kind.HELLO:
            if self._greeted:
                return
            self._greeted = True
        if reading.kind is Kind.CONFIGURED and not self.uplink.configure_answered(reading.accepted):
            return
        message = self.transcript.other(reading, raw)
        if message is not None:
            self._owner.stream_says(message, reading.kind, reading.channel)

    def _learn_request_id(self, request_id: str) -> None:
        """Deepgram's id of this connection, from its 101 or else from its first message."""
        if not request_id or request_id == self._known_as:
            return
        self._known_as = request_id
        if request_id not in self.request_ids:
            self.request_ids.append(request_id)
            del self.request_ids[:-MOST_IDS]  # in place: a hole's stream tells of the same ones
        same = request_id == self.request_id
        self._splice = None if same else (request_id.encode(), self.request_id.encode())

    def _tell_gaps(self, told: int) -> None:
        """Of the gaps there are, the first `told` are known."""
        if told < len(self.transcript.gaps):
            self._events += self.transcript.gaps[told:]
        for message in self.transcript.overdue_ends():
            self._owner.stream_says(message, Kind.SPEECH_ENDED, 0)

    def _complete(self) -> None:
        """Deepgram said all that it has to say."""
        if self.clock.timed:
            self.give_up_owed("upstream_hole")
        self.end_speech()
        self._owner.stream_done()


def _retry_after(headers: list[tuple[str, str]]) -> float:
    """Seconds that a refusal asks to wait, capped at a minute; 0 when it does not say."""
    values = [value for name, value in headers if name.lower() == "retry-after"]
    return min(60.0, float(values[0])) if values and values[0].isascii() and values[0].isdigit() else 0.0
