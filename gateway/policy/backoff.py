"""How long to wait before the next dial: exponential ceilings, full jitter below them.

Full jitter spreads a fleet's retries evenly (AWS Architecture Blog, "Exponential Backoff And Jitter"). The
ceilings come from the `backoff` package; the randomness is injected, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

import backoff

BUDGET: Final = 30
PERIOD: Final = 600.0
"""Redials, and the seconds that they are counted over, beyond which a call dials only at the cap
(continuity.md I18): results that come before each break would reset any other limit."""


class Backoff:
    """`random` returns a float in [0, 1)."""

    def __init__(self, base: float, cap: float, random: Callable[[], float]) -> None:
        self._base = base
        self._cap = cap
        self._random = random
        self._ceilings: Generator[float, Any, None] | None = None
        self._redials: list[float] = []  # the latest, at most the budget

    def delay(self, now: float, *, in_budget: bool = True) -> float:
        """Seconds to wait after a failure, before the one redial that each call stands for; without
        `in_budget` something else bounds these."""
        self._ceilings = self._ceilings or self._fresh()
        wait = float(next(self._ceilings)) * self._random()
        return max(wait, self.pause(now)) if in_budget else wait

    def pause(self, now: float) -> float:
        """The same where nothing is known to be wrong: none, within the budget."""
        is_spent = len(self._redials) == BUDGET and now - self._redials[0] < PERIOD
        self._redials = [*self._redials, now][-BUDGET:]
        return self._cap if is_spent else 0.0

    def reset(self) -> None:
        """Begins again at the first ceiling; only results prove a connection healthy, a 101 does not."""
        self._ceilings = None

    def _fresh(self) -> Generator[float, Any, None]:
        ceilings = backoff.expo(base=2, factor=self._base, max_value=self._cap)
        next(ceilings)  # the generator's first value is for the caller's `send`
        return ceilings
