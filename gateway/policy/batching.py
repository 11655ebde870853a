"""How long a call's audio is collected before it is read: not at all while there is time, longer under load.

Waking up is most of what a frame costs, so five frames read at once cost hardly more than one. Deepgram takes
20 to 250 ms of audio in a message and names 100 ms a good balance
(developers.deepgram.com/docs/measuring-streaming-latency).
"""

from __future__ import annotations

from typing import Final

WINDOWS_MS: Final = (0, 20, 40, 60, 80, 100)
BUSY: Final = 0.45
"""Share of a core from which on the window grows by a step with every look."""
IDLE: Final = 0.12
"""Share below which it shrinks: less than `BUSY` becomes when the longest window has saved two thirds."""


class Batching:
    """`window_ms` is fixed, or follows the load by steps with hysteresis."""

    def __init__(self, fixed_ms: int | None) -> None:
        self.window_ms = fixed_ms or 0
        self._step = None if fixed_ms is not None else 0

    def observe(self, busy: float) -> int:
        """Takes in the share of a core that was used since the last look; returns the window."""
        if self._step is None:
            return self.window_ms
        if busy > BUSY:
            self._step = min(self._step + 1, len(WINDOWS_MS) - 1)
        elif busy < IDLE:
            self._step = max(self._step - 1, 0)
        self.window_ms = WINDOWS_MS[self._step]
        return self.window_ms
