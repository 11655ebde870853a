"""Copies of one request: an SDK that waited too long, or whose connection broke, sends it all again.

The first of them is transcribed, the others get its answer: while it is on its way, and for a window after. A
caller that names its request, by an `Idempotency-Key`, has a day, and is told when it says another by that
name.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from gateway.deepgram.errors import Refusal
from gateway.prerecorded.transcriber import Answer
from gateway.prerecorded.upload import UploadRefused

MOST_BYTES: Final = 33_554_432
"""Of answers that are kept for copies to come; beyond it the oldest go first."""
OVERHEAD_BYTES: Final = 4096
"""Counted beside the body of each: many short answers are kept for a day."""
NAMED_SECONDS: Final = 86_400.0
"""For which the answer to a request that has a name is kept."""
OTHER_REQUEST: Final = Refusal(
    422, "IDEMPOTENCY_KEY_REUSED", "Idempotency-Key: it came with another request before."
)


class Identity(NamedTuple):
    """Which request it is: two of one `digest` are the same.

    Of one `slot` there is one at a time: that of a request with a name is made of the name, else it is the
    digest.
    """

    slot: bytes
    digest: bytes

    @property
    def has_name(self) -> bool:
        return self.slot != self.digest


class Shared:
    """A transcription that several requests may wait for."""

    __slots__ = ("digest", "task", "timer", "waiting")

    def __init__(self, task: asyncio.Task[Answer], digest: bytes) -> None:
        self.task = task
        self.digest = digest
        self.waiting = 0
        self.timer: asyncio.TimerHandle | None = None
        """While it is on its way and nobody waits: gives it up. After: forgets it."""

    @property
    def is_over(self) -> bool:
        """Whether it has failed, or will: trying again must be a new try."""
        if not self.task.done():
            return bool(self.task.cancelling())
        return self.task.cancelled() or self.task.exception() is not None or not self.task.result().ok

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Copies:
    """`window`: seconds for which an answer is kept, and one is waited for that nobody wants now."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._shared: dict[bytes, Shared] = {}  # by slot
        self._kept = 0  # bytes

    def find(self, request: Identity) -> Shared | None:
        """What the same request before has come to, if it has not failed and is not forgotten.

        Raises UploadRefused where its name is another's.
        """
        shared = self._shared.get(request.slot)
        if shared is None or shared.is_over:
            return None
        if shared.digest != request.digest:
            raise UploadRefused("key_reused", OTHER_REQUEST)
        return shared

    def add(self, request: Identity, task: asyncio.Task[Answer]) -> Shared:
        """The first such request. Without a window, nor a name, nobody else will find it."""
        shared = Shared(task, request.digest)
        if seconds := NAMED_SECONDS if request.has_name else self._window:
            self._shared[request.slot] = shared
            task.add_done_callback(lambda _: self._done(request.slot, shared, seconds))
        return shared

    async def wait(self, shared: Shared) -> Answer:
        """Its answer. When all who waited are cancelled it goes on for the window: a copy may come."""
        shared.waiting += 1
        if not shared.task.done():
            shared.stop_timer()
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                loop = asyncio.get_running_loop()
                shared.timer = loop.call_later(self._window, shared.task.cancel)

    def _done(self, slot: bytes, shared: Shared, seconds: float) -> None:
        shared.stop_timer()
        if shared.is_over:
            if self._shared.get(slot) is shared:
                del self._shared[slot]
            return
        self._kept += _bytes(shared)
        shared.timer = asyncio.get_running_loop().call_later(seconds, self._forget, slot, shared)
        while self._kept > MOST_BYTES:
            self._forget(*next((k, s) for k, s in self._shared.items() if s.task.done() and not s.is_over))

    def _forget(self, slot: bytes, shared: Shared) -> None:
        if self._shared.get(slot) is shared:
            shared.stop_timer()  # it has the answer
            del self._shared[slot]
            self._kept -= _bytes(shared)


def _bytes(shared: Shared) -> int:
    return len(shared.task.result().body) + OVERHEAD_BYTES
