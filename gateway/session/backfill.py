"""Catching up beside the call: the hole that an outage left is transcribed on a connection of its own.

The call goes on at the live edge at once. What it says is held back, but for interims, until the hole has
been told, so that the client gets everything in order; or nothing is held and the hole's results are marked,
for a client that asked for that. If the hole takes too long, the rest of it is given up, and said to be.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from gateway.config import SessionConfig
from gateway.deepgram.query import ListenQuery
from gateway.deepgram.recogniser import Kind, Recogniser
from gateway.session.events import Backfilled, Backfilling, Deliver, Event
from gateway.session.stream import Owner, Stream
from gateway.session.timers import Timers

OVERLAP: Final = 0.5
"""Seconds on either side of the edge that both connections hear, so that neither has only part of a word."""
_TOLD_IN_ORDER: Final = frozenset({Kind.FINAL, Kind.SPEECH_BEGAN, Kind.SPEECH_ENDED})


class CatchUp(NamedTuple):
    """`parallel`: beside the call, else before it goes on; `ordered`: results come as their audio did."""

    parallel: bool = False
    ordered: bool = True


def wanted(query: ListenQuery, config: SessionConfig) -> CatchUp:
    """What the client asks for in `gw_catch_up` and `gw_order`, or else the operator."""
    how = query.get("gw_catch_up")
    if how not in ("serial", "backfill"):
        how = config.catch_up
    return CatchUp(how == "backfill", query.get("gw_order") != "any")


class _Timer(enum.Enum):
    HOLD = enum.auto()


class Backfill:
    """Owns the stream that transcribes the hole, and keeps what has to wait for it."""

    def __init__(
        self,
        main: Stream,
        new_stream: Callable[[Owner], Stream],
        *,
        recogniser: Recogniser,
        config: SessionConfig,
        ordered: bool,
        events: list[Event],
        tell: Callable[[Deliver], None],
        over: Callable[[], None],
        now: float,
    ) -> None:
        """`main` is about to begin a connection. `tell` says something to the client; `over` is called once.

        `ordered`: nothing is told before what was said before it.
        """
        clock, timeline = main.clock, main.transcript.timeline
        overlap = int(OVERLAP * clock.rate_hz)
        edge = clock.samples(main.uplink.received) - overlap
        kept = clock.first_sample(main.uplink.buffer.start)
        self._ordered = ordered
        self._events = events
        self._tell = tell
        self._over = over
        self._limit = config.client_queue_bytes // 2  # the client's own queue must have room for them
        self._main = main
        self._held: list[tuple[Deliver, float]] = []  # with the audio that there was
        self._held_bytes = 0
        self._start = timeline.second(max(timeline.watermark, kept))
        self._stop = timeline.second(edge)
        self._timers: Timers[_Timer] = Timers()
        self._timers.set(_Timer.HOLD, now + config.backfill_hold)
        events.append(Backfilling(self._start, self._stop))
        self.stream = new_stream(self)
        main.hand_over(self.stream, edge, edge - overlap, now, is_aside=not ordered)
        self.stream.finish(recogniser.close_stream, now)

    @property
    def room(self) -> int:
        """Bytes that the hole leaves of the session's buffer."""
        uplink = self.stream.uplink
        return uplink.limit - len(uplink.buffer)

    @property
    def earliest(self) -> float:
        """When `handle_timers` wants to be called."""
        return min(self._timers.earliest, self.stream.timers.earliest)

    def handle_timers(self, now: float) -> None:
        for _ in self._timers.due(now):
            self.give_up("backfill_late", "late")
            return
        self.stream.handle_timers(now)

    def holds(self, event: Deliver) -> bool:
        """Takes what the main stream says if the client must not have it yet."""
        if not self._ordered or event.kind not in _TOLD_IN_ORDER:
            return False
        self._held.append((event, self._main.audio_seconds))
        self._held_bytes += len(event.raw)
        if self._held_bytes > self._limit:
            self.give_up("backfill_late", "late")
        return True

    def release(self) -> Iterator[Deliver]:
        """All that was held."""
        audio = self._main.audio_seconds
        for event, then in self._held:
            yield msgspec.structs.replace(event, lag=event.lag + audio - then)

    def give_up(self, reason: str, outcome: str) -> None:
        """What has no final yet becomes a gap."""
        self.stream.give_up_owed(reason)
        self._end(outcome)

    # What the stream says

    def stream_opened(self, request_id: str, now: float) -> None:
        pass

    def stream_broke(self) -> None:
        pass

    def stream_says(self, raw: bytes, kind: Kind, channel: int) -> None:
        if kind is Kind.FINAL or self._ordered:  # turns that are over are no news, unless all is in order
            later = self._main.audio_seconds - self.stream.audio_seconds
            self._tell(Deliver(raw, kind, channel, self.stream.lag + later))

    def stream_refused(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.give_up("upstream_failed", "failed")

    def stream_failed(self, code: int, reason: str) -> None:
        self.give_up("upstream_failed", "failed")

    def stream_done(self) -> None:
        self._end("complete")

    # Private

    def _end(self, outcome: str) -> None:
        gaps = (gap for gap in self.stream.transcript.gaps if self._start <= gap.start < self._stop)
        missing = sum(gap.stop - gap.start for gap in gaps)
        self._timers.clear_all()
        self.stream.end()
        self._events.append(Backfilled(outcome, self._stop - self._start - missing))
        self._over()
