"""Audio that Deepgram still owes results for, addressed by its byte offset since the client's first byte."""

from __future__ import annotations

from collections import deque


class ReplayBuffer:
    """Bytes from `start` to `end`; both only grow.

    One bytearray: appending is amortised O(1), cutting its front moves no memory, and 20 ms frames leave no
    objects behind. With `packets`, message boundaries are kept and never crossed. Who has nothing to do with
    boundaries may append to `data` itself.
    """

    __slots__ = ("_boundaries", "data", "start")

    def __init__(self, start: int = 0, *, packets: bool = False) -> None:
        self.start = start
        self.data = bytearray()
        self._boundaries: deque[int] | None = deque() if packets else None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def append(self, data: bytes) -> None:
        self.data += data
        if self._boundaries is not None:
            self._boundaries.append(self.end)

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`, or the one whole packet that begins there."""
        assert self.start <= offset <= self.end, (self.start, offset, self.end)
        at = offset - self.start
        if self._boundaries is None:
            return bytes(self.data[at : at + limit])
        stop = next(b for b in self._boundaries if b > offset)
        return bytes(self.data[at : stop - self.start])

    def discard_until(self, offset: int) -> None:
        """Forgets what lies before `offset`."""
        assert offset <= self.end, (offset, self.end)
        if offset <= self.start:
            return
        del self.data[: offset - self.start]
        self.start = offset
        while self._boundaries and self._boundaries[0] <= offset:
            self._boundaries.popleft()
