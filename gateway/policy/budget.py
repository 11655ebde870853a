"""What gives way when the replay buffers of all sessions together outgrow the memory they may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

REFUSE_AT: Final = 0.85
"""Share of the budget from which on no session begins: those that run need the rest to live through."""
SHRINK_AT: Final = 0.95
SHRINK_TO: Final = 0.90
"""Lower than where it begins, so that a gap is one stretch and not a sliver every second."""
CLOSE_AT: Final = 0.98


class Held(NamedTuple):
    """Bytes that a session keeps for replay; `can_shrink`: it may give up the oldest of them."""

    size: int
    can_shrink: bool


class Relief(NamedTuple):
    """`refuse`: begin no session. `limit`: the most that a session which can shrink may keep; None: as it
    is. `close`: indexes of the sessions to end, newest first."""

    refuse: bool
    limit: int | None
    close: list[int]


def relief(budget: int, held: Sequence[Held]) -> Relief:
    """What to do when these sessions, oldest first, share `budget` bytes.

    The largest backlogs come down to one common size; the small ones, which are the calls that work, lose
    nothing. Sessions are closed only where that does not help.
    """
    sizes = [one.size for one in held]
    limit = None
    if sum(sizes) > SHRINK_AT * budget:
        able = sorted(one.size for one in held if one.can_shrink)
        limit = _level(able, int(SHRINK_TO * budget) - sum(sizes) + sum(able))
        sizes = [min(one.size, limit) if one.can_shrink else one.size for one in held]
    total = sum(sizes)
    close: list[int] = []
    if total > CLOSE_AT * budget:
        newest = (index for index in reversed(range(len(sizes))) if sizes[index])
        while total > SHRINK_AT * budget:
            close.append(next(newest))
            total -= sizes[close[-1]]
    return Relief(total > REFUSE_AT * budget, limit, close)


def _level(sizes: Sequence[int], room: int) -> int:
    """The highest level that makes `sizes`, rising, fit into `room` when they are cut off at it."""
    for index, size in enumerate(sizes):
        share = max(0, room) // (len(sizes) - index)
        if size >= share:
            return share
        room -= size
    return 0
