"""How much may go now: at most `pace` times so much a second, and `burst` seconds ahead of that.

Deepgram takes audio at up to 1.25 times real time
(developers.deepgram.com/docs/recovering-from-connection-errors-and-timeouts-when-live-streaming-audio).
The arithmetic is the generic cell rate algorithm (ITU-T I.371): one number, the time at which everything
sent so far would have been due.
"""

from __future__ import annotations

from typing import Final

MICROSECOND: Final = 1e-6


class Pacer:
    """Counts in bytes, or in messages; `now` in seconds on any monotonic clock."""

    __slots__ = ("_ahead", "_cost", "_due", "_per_second")

    def __init__(self, per_second: float, pace: float, burst: float, now: float) -> None:
        """`per_second` at real time; `burst` in seconds of audio."""
        self._per_second = per_second
        self._due = now
        self.change(pace, burst)

    def admit(self, length: int, now: float) -> bool:
        """Whether `length` bytes may go now; if so, they count as gone."""
        due = self._due
        after = (due if due > now else now) + length * self._cost
        if after > now + self._ahead:
            return False
        self._due = after
        return True

    def spend(self, length: int, now: float) -> bool:
        """Counts `length` bytes as gone, come what may; False when that was more than allowed."""
        due = self._due
        self._due = after = (due if due > now else now) + length * self._cost
        return after <= now + self._ahead

    def ready_at(self, length: int) -> float:
        """When `length` bytes will be allowed; rounded up, so that they are."""
        return self._due - self._ahead + length * self._cost + MICROSECOND

    def change(self, pace: float, burst: float) -> None:
        """Goes on at another pace; what was sent ahead stays sent ahead."""
        self._cost = 1 / (self._per_second * pace)  # seconds for one
        self._ahead = burst / pace
