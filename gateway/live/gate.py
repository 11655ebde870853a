"""Where dials wait for their turn."""

from __future__ import annotations

import asyncio

from gateway.metrics import Metrics
from gateway.policy.dials import DialQueue


class DialGate:
    """One for all calls; see `DialQueue` for who goes when."""

    def __init__(self, rate: float, metrics: Metrics) -> None:
        """`rate` in dials per second."""
        self._queue = DialQueue[asyncio.Future[None]](rate)
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None

    async def turn(self, *, is_new: bool) -> None:
        """Returns when the dial may begin; `is_new`: the first one of its call."""
        joined_at = self._loop.time()
        if self._queue.admit(joined_at):
            self._metrics.dial_wait.observe(0.0)
            return
        turn = self._loop.create_future()
        self._queue.join(turn, is_new=is_new)
        self._release()
        try:
            await turn
        finally:
            self._queue.leave(turn)
            self._metrics.dials_waiting = len(self._queue)
        self._metrics.dial_wait.observe(self._loop.time() - joined_at)

    def _release(self) -> None:
        for turn in self._queue.released(self._loop.time()):
            if not turn.done():  # cancelled, and not told yet
                turn.set_result(None)
        self._metrics.dials_waiting = len(self._queue)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._queue.ready_at, self._release) if len(self._queue) else None
