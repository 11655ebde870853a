"""Copies of one request: an SDK that waited too long, or whose connection broke, sends it all again.

The first of them is transcribed, the others get its answer: while it is on its way, and for a window after.
What makes two requests the same is a digest that the caller computes.
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.prerecorded.transcriber import Answer

MOST_BYTES: Final = 33_554_432
"""Of answers that are kept for copies to come; beyond it the oldest go first."""


class Shared:
    """A transcription that several requests may wait for."""

    __slots__ = ("giving_up", "task", "waiting")

    def __init__(self, task: asyncio.Task[Answer]) -> None:
        self.task = task
        self.waiting = 0
        self.giving_up: asyncio.TimerHandle | None = None


class Copies:
    """`window`: seconds for which an answer is kept, and one is waited for that nobody wants now."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._shared: dict[bytes, Shared] = {}
        self._kept = 0  # bytes

    def find(self, key: bytes) -> Shared | None:
        """What the first request of that digest has come to, if it is not over and forgotten."""
        shared = self._shared.get(key)
        return None if shared is not None and shared.task.cancelling() else shared

    def add(self, key: bytes, task: asyncio.Task[Answer]) -> Shared:
        """The first request of its digest. Without a window nobody else will find it."""
        shared = Shared(task)
        if self._window:
            self._shared[key] = shared
            task.add_done_callback(lambda _: self._done(key, shared))
        return shared

    async def wait(self, shared: Shared) -> Answer:
        """Its answer. When all who waited are cancelled it goes on for the window: a copy may come."""
        shared.waiting += 1
        if shared.giving_up is not None:
            shared.giving_up.cancel()
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                loop = asyncio.get_running_loop()
                shared.giving_up = loop.call_later(self._window, shared.task.cancel)

    def _done(self, key: bytes, shared: Shared) -> None:
        if shared.giving_up is not None:
            shared.giving_up.cancel()
        if shared.task.cancelled() or shared.task.exception() or not shared.task.result().ok:
            if self._shared.get(key) is shared:  # trying again must be a new try
                del self._shared[key]
            return
        self._kept += len(shared.task.result().body)
        asyncio.get_running_loop().call_later(self._window, self._forget, key, shared)
        while self._kept > MOST_BYTES:
            self._forget(*next((k, s) for k, s in self._shared.items() if s.task.done()))

    def _forget(self, key: bytes, shared: Shared) -> None:
        if self._shared.get(key) is shared:
            del self._shared[key]
            self._kept -= len(shared.task.result().body)
