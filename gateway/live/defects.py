"""A mistake of ours costs the call that it is in, and no other.

The loop enters a call by what its legs read, by timers, by its dials, and by sweeps over all calls; each of
these ways goes through `contained`, or does the same in place where it is walked for every frame.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Breakable(Protocol):
    def defect(self) -> None:
        """Called while the exception is being handled; raises nothing."""


_B = TypeVar("_B", bound=Breakable)
_P = ParamSpec("_P")


def contained(entry: Callable[Concatenate[_B, _P], None]) -> Callable[Concatenate[_B, _P], None]:
    """`entry`, but that what it raises goes to `defect` instead of its caller."""

    def guarded(self: _B, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            entry(self, *args, **kwargs)
        except Exception:
            self.defect()

    return functools.update_wrapper(guarded, entry)
