"""Client sockets that are read by the clock instead of when they have something.

A leg in a slot is not polled: once per window its socket is read, and what came is handled in one turn. That
saves a wake-up and a system call or two for every frame but the first, and nothing, be it audio, text, or the
end of the connection, waits longer than the window. Legs are spread over the window. One that has nothing to
say is polled until it has: to look in vain costs as much as to read.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Final, Protocol

TICK: Final = 0.01
"""Seconds between two looks; windows are whole ticks."""
LONGEST_MS: Final = 250
GROUP: Final = 8
"""Legs that are read before the loop looks what else came: results wait for no more than that."""


class SlottedLeg(Protocol):
    """What a leg must do for a slot; see `ClientLeg`."""

    window_ms: int | None
    """Its own window; None: the common one; 0 leaves it to the loop."""

    def leave_loop(self) -> bool:
        """Ends being polled; False: that cannot be, and it stays as it is."""

    def join_loop(self) -> None:
        """Is polled again, if it was not."""

    def read_now(self) -> bool:
        """Reads what is there; False: the loop must have it, for what was found or because nothing was."""

    def defect(self) -> None:
        """`read_now` raised, and the exception is being handled."""


class Slots:
    """One for all client legs of a process; `window_ms`, which may change, is for legs without their own."""

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self._loop = asyncio.get_running_loop()
        self._ring: list[list[SlottedLeg]] = [[] for _ in range(_ticks(LONGEST_MS) + 1)]
        self._at = 0
        self._turn: list[SlottedLeg] = []  # those whose tick it is,
        self._read = 0  # and how many of them have been read
        self._next = 0  # a phase that spreads newcomers
        self._seated = 0
        self._due = 0.0
        self._timer: asyncio.Handle | None = None

    def sit(self, leg: SlottedLeg) -> None:
        """`leg`, which is polled, has brought something: from now on it is read by its window, if it has one.

        Who learns at its next turn that its window is 0 now, is polled again.
        """
        window = self.window_ms if leg.window_ms is None else leg.window_ms
        if not window or not leg.leave_loop():
            return
        self._seated += 1
        self._next += 1
        self._ring[(self._at + 1 + self._next % _ticks(window)) % len(self._ring)].append(leg)
        if self._timer is None:
            self._due = self._loop.time() + TICK
            self._timer = self._loop.call_at(self._due, self._tick)

    # Private

    def _tick(self) -> None:
        ring = self._ring
        at = self._at = (self._at + 1) % len(ring)
        self._turn, ring[at] = ring[at], []
        self._read = 0
        self._go_on()

    def _go_on(self) -> None:
        at, ring, common = self._at, self._ring, self.window_ms
        next_common = ring[(at + _ticks(common)) % len(ring)]
        first = self._read
        self._read += GROUP
        for leg in self._turn[first : self._read]:
            own = leg.window_ms
            if common if own is None else own:
                try:
                    goes_on = leg.read_now()
                except Exception:  # out of here it would be the last tick, and no client be read any more
                    leg.defect()
                    goes_on = False
                if goes_on:
                    (next_common if own is None else ring[(at + _ticks(own)) % len(ring)]).append(leg)
                    continue
            self._seated -= 1
            leg.join_loop()
        self._timer = None
        if self._read < len(self._turn):
            self._timer = self._loop.call_soon(self._go_on)
            return
        self._turn = []
        if self._seated:
            self._due = max(self._due + TICK, self._loop.time())
            self._timer = self._loop.call_at(self._due, self._tick)


@functools.cache
def _ticks(window_ms: int) -> int:
    return max(1, round(window_ms / 1000 / TICK))
