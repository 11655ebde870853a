"""When a dial may go: so many a second over all calls, so that a blackout does not end in a stampede.

The arithmetic is the generic cell rate algorithm (ITU-T I.371). Those who wait stand in two lines, calls that
begin and calls that go on, first come first served in each; where both wait they take turns. So a new call
does not wait for a thousand that are on their way back, and those get at least half of what there is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class DialQueue(Generic[T]):
    """`T` stands for a dial: anything that can be told from another."""

    def __init__(self, rate: float) -> None:
        """`rate` in dials per second; after a quiet second as many go at once."""
        self._interval = 1 / rate
        self._due = 0.0
        self._lines: tuple[OrderedDict[T, None], ...] = (OrderedDict(), OrderedDict())
        self._turn = 0

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    def admit(self, now: float) -> bool:
        """Whether a dial may go at once, as one that need not wait may; it has had its turn then."""
        if len(self) or self.ready_at > now:
            return False
        self._due = max(self._due, now) + self._interval
        return True

    def join(self, dial: T, *, is_new: bool) -> None:
        """Waits from now on; `is_new`: the first dial of its call."""
        self._lines[not is_new][dial] = None

    def leave(self, dial: T) -> None:
        """Waits no longer; one that does not wait is nobody's concern."""
        for line in self._lines:
            line.pop(dial, None)

    def released(self, now: float) -> list[T]:
        """Those whose turn it is, in order; they have left the queue. `now` in seconds, monotonic."""
        gone = []
        while len(self) and self.ready_at <= now:
            self._due = max(self._due, now) + self._interval
            line = self._lines[self._turn] or self._lines[not self._turn]
            gone.append(line.popitem(last=False)[0])
            self._turn = int(line is self._lines[0])
        return gone

    @property
    def ready_at(self) -> float:
        """When the next one may go."""
        return self._due - 1 + self._interval
