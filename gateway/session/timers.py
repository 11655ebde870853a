"""What is to be done at which time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Generic, TypeVar

Name = TypeVar("Name")


class Timers(Generic[Name]):
    """One time per name, in seconds on the caller's clock; `earliest` is asked for with every frame."""

    __slots__ = ("_at", "earliest")

    def __init__(self) -> None:
        self._at: dict[Name, float] = {}
        self.earliest = math.inf

    def __contains__(self, name: Name) -> bool:
        return name in self._at

    def set(self, name: Name, at: float) -> None:
        was = self._at.get(name)
        self._at[name] = at
        if at <= self.earliest:
            self.earliest = at
        elif was == self.earliest:
            self.earliest = min(self._at.values())

    def clear(self, *names: Name) -> None:
        for name in names:
            self._at.pop(name, None)
        self.earliest = min(self._at.values(), default=math.inf)

    def clear_all(self) -> None:
        self._at.clear()
        self.earliest = math.inf

    def due(self, now: float) -> Iterator[tuple[Name, float]]:
        """Takes out what is due, with its time; what one of them clears is no longer due."""
        for name in [name for name, at in self._at.items() if at <= now]:
            at = self._at.get(name, math.inf)
            if at <= now:
                self.clear(name)
                yield name, at
