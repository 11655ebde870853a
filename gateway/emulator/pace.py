"""How fast a recogniser gets through the audio it was sent. Pure."""

from __future__ import annotations

_CREDIT = (
    0.25  # seconds of listening that may be caught up at once after a pause, so that frames need no timers
)


class Cursor:
    """A position in samples that follows the received audio at `speed` times real time (None: no limit)."""

    def __init__(self, speed: float | None, now: float) -> None:
        self.speed = speed
        self._position = 0.0
        self._at = now
        self._caught_up = True

    def advance(self, now: float, available: int, sample_rate: int) -> int:
        """The position at `now`, when `available` samples have come."""
        elapsed = min(now - self._at, _CREDIT) if self._caught_up else now - self._at
        self._at = now
        if self.speed is None:
            self._position = available
        else:
            self._position = min(available, self._position + elapsed * self.speed * sample_rate)
        self._caught_up = self._position >= available
        return int(self._position)

    def reaches(self, sample: int, sample_rate: int) -> float:
        """When the position will be at `sample`, if the audio is there."""
        if self.speed is None:
            return self._at
        return self._at + max(0.0, sample - self._position) / (self.speed * sample_rate)
