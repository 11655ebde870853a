"""Whether an open connection still works: what TCP does not say.

`send()` succeeding proves nothing, since minutes of audio fit into kernel buffers; only progress of results
does. All limits are in seconds of our own clock, and our own lateness is never held against Deepgram.
"""

from __future__ import annotations

import math
from typing import Final

from gateway.audio.containers import Clock

PING_AFTER: Final = 3.0
"""Seconds without a byte from Deepgram after which it is asked for a pong."""
DEAD_AFTER: Final = 9.0
"""Seconds without a byte, pongs included, after which the connection is dead."""
BLOCKED_FOR: Final = 5.0
"""Seconds for which Deepgram may take no bytes while we have some."""
ENOUGH_BYTES: Final = 4_096
"""The same for audio whose bytes have no place in time."""
ENOUGH_AUDIO: Final = 3.0
"""Seconds of audio that must have gone up for missing results to mean anything."""
FELL_BEHIND: Final = "stalled: results fall behind"
"""What is wrong with a connection that is slower than real time."""
LATE: Final = 0.25
"""Our own lateness, in seconds, that is forgiven without a thought."""


class Watch:
    """Told of every result, so it only notes then; what that means is worked out when somebody looks."""

    __slots__ = (  # noqa: SIM905 (as in `Stream`)
        "_base _blocked_since _clock _enough _grace _heard_at _looked_at _max_lag _opened_at _owed_since "
        "_pinged_at _progress_at _reached _sent_at_progress _sent_before _stall"
    ).split()

    def __init__(self, clock: Clock, stall: float, max_lag: float, now: float, patience: int = 1) -> None:
        """`stall`: seconds that results may stand still while audio flows; `max_lag`: seconds behind it.

        `patience`: times as long, as late and as much audio, where results come so much more seldom.
        """
        self._clock = clock
        self._stall = stall * patience
        self._max_lag = max_lag * patience
        self._enough = ENOUGH_AUDIO * patience
        self._grace = self._stall - (self._enough if clock.timed else 0.0)
        self.opened(0, now)

    def opened(self, sent: int, now: float) -> None:
        """A new connection begins with byte `sent`."""
        self._base = self._position(sent)
        self._heard_at = self._progress_at = now
        self._pinged_at = self._opened_at = now
        self._blocked_since: float | None = None
        self._owed_since: float | None = None  # when enough audio for a result was seen to have none
        self._looked_at = now
        self._sent_at_progress = self._sent_before = sent
        self._reached: dict[int, float] = {}

    def heard(self, now: float) -> None:
        self._heard_at = now

    def blocked(self, blocked: bool, now: float) -> None:
        if not blocked:
            self._blocked_since = None
        elif self._blocked_since is None:
            self._blocked_since = now

    def progressed(self, channel: int, end: float, sent: int, now: float) -> None:
        """A result reached second `end` of this connection. Saying an old second again is no progress."""
        self._heard_at = now
        if end > self._reached.get(channel, 0.0):
            self._reached[channel] = end
            self._progress_at = now
            self._owed_since = None
            self._sent_at_progress = sent

    def excuse(self, late: float) -> None:
        """We looked `late` seconds after the time: whatever came meanwhile may still be unread."""
        if late > LATE:
            self._heard_at += late
            self._progress_at += late
            self._opened_at += late
            if self._blocked_since is not None:
                self._blocked_since += late
            if self._owed_since is not None:
                self._owed_since += late

    def is_fruitless(self, sent: int) -> bool:
        """Whether audio went up and no result has come."""
        return self._position(sent) > self._base and not self._reached

    def wants_ping(self, now: float) -> bool:
        if now - max(self._heard_at, self._pinged_at) < PING_AFTER:
            return False
        self._pinged_at = now
        return True

    def trouble(self, sent: int, now: float) -> str:
        """What is wrong with the connection; empty when nothing is."""
        if now - self._heard_at > DEAD_AFTER:
            return "stalled: not a byte from Deepgram"
        if self._blocked_since is not None and now - self._blocked_since > BLOCKED_FOR:
            return "stalled: Deepgram reads nothing"
        position = self._position(sent)
        if self._owed_since is None and self._flowed(position) > self._enough:
            self._owed_since = now
        elif self._owed_since is not None and sent == self._sent_before and not self._clock.timed:
            self._owed_since += now - self._looked_at  # how much is enough is a guess: only flow counts
        self._looked_at, self._sent_before = now, sent
        if now >= self._stalled_at:
            return "stalled: audio flows, results do not"
        if self._behind(position, now) > self._max_lag:
            return FELL_BEHIND
        return ""

    def quiet_for(self, sent: int, now: float) -> float:
        """Seconds in which nothing can become wrong, and no ping due, whatever happens meanwhile."""
        position = self._position(sent)
        if self._blocked_since is not None or self._behind(position, now) > self._max_lag / 2:
            return 0.0
        ping_at = max(self._heard_at, self._pinged_at) + PING_AFTER
        until = min(ping_at, self._heard_at + DEAD_AFTER, self._stalled_at)
        if self._owed_since is None:  # the clock runs from when that is seen
            until = min(until, now + self._enough - self._flowed(position))
        return until - now

    @property
    def _stalled_at(self) -> float:
        """When results have stood still for too long: a client's pauses are no time in which they could come.

        So the clock runs from the audio that was enough for one, less the seconds that this lasts.
        """
        if self._owed_since is None:
            return math.inf
        return max(self._progress_at + self._stall, self._owed_since + self._grace)

    def _flowed(self, position: float) -> float:
        """Seconds of audio since results went on."""
        return position - self._position(self._sent_at_progress)

    def _behind(self, position: float, now: float) -> float:
        """Seconds that results of the channel furthest on are behind; 0 where that means nothing.

        A container's backlog goes up at once. Nobody hears faster than people speak because of that.
        """
        if not self._reached or not self._clock.timed:
            return 0.0
        audio = position - self._base
        if not self._clock.exact:
            audio = min(audio, now - self._opened_at)
        return audio - max(self._reached.values())

    def _position(self, sent: int) -> float:
        """Seconds of audio in the first `sent` bytes; without a clock, a guess that is good enough."""
        if self._clock.timed:
            return self._clock.samples(sent) / self._clock.rate_hz
        return sent * ENOUGH_AUDIO / ENOUGH_BYTES
