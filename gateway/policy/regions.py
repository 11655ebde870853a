"""Which region to dial: the first one that is not known to be in trouble."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Regions:
    """Remembers trouble until a result disproves it; names are those of the configured list.

    A 101 proves nothing: there are regions that accept and then die or fall mute. One that was in trouble
    rests for `cooldown` seconds and then gets one dial per `cooldown` until it has worked.
    """

    def __init__(self, names: Sequence[str], cooldown: float = 10.0) -> None:
        self._cooldown = cooldown
        self._names = tuple(names)
        self._failed_at: dict[str, float] = {}
        self._tried_at: dict[str, float] = {}

    def choose(self, now: float, among: Sequence[int] = ()) -> int:
        """The index of the first usable region; when none is, of the one that was left alone longest.

        `among`: indices in another order, or of some regions only.
        """
        rested_at = {i: self._rested_at(self._names[i]) for i in among or range(len(self._names))}
        usable = (i for i, at in rested_at.items() if at <= now)
        chosen = next(usable, min(rested_at, key=rested_at.__getitem__))
        self._tried_at[self._names[chosen]] = now
        return chosen

    def failed(self, name: str, now: float) -> None:
        """A dial got no 101, or a connection broke without a single result."""
        self._failed_at[name] = now

    def worked(self, name: str) -> None:
        """A connection brought a result."""
        self._failed_at.pop(name, None)

    def any_usable(self, now: float) -> bool:
        """Whether a region has had no trouble within the cooldown."""
        return any(now - self._failed_at.get(name, -math.inf) >= self._cooldown for name in self._names)

    def _rested_at(self, name: str) -> float:
        failed_at = self._failed_at.get(name)
        if failed_at is None:
            return -math.inf
        return max(failed_at, self._tried_at.get(name, failed_at)) + self._cooldown
