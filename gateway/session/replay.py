"""Audio that Deepgram still owes results for, addressed by its byte offset since the client's first byte."""

from __future__ import annotations

from collections import deque
from typing import Final

SMALL: Final = 64
"""Bytes below which a message takes less memory than the object that it would be: such ones are joined,"""
JOINED: Final = 1024
"""to so many bytes."""


class ReplayBuffer:
    """Bytes from `start` to `end`; both only grow.

    It keeps the messages themselves: taking one in copies nothing, and what is kept takes the memory that it
    is long. With `packets`, no read crosses from one to the next. Who has one at hand that is not `SMALL` may
    put it at the end of `messages` itself, and add its length to `end`.
    """

    __slots__ = ("_at", "_first", "_index", "_packets", "end", "messages", "start")

    def __init__(self, start: int = 0, *, packets: bool = False) -> None:
        self.start = self.end = start
        self.messages: deque[bytes] = deque()
        self._packets = packets
        self._first = start  # where the first message begins: its last bytes may be all that is wanted of it
        self._index = 0  # the message that was read from last, for the next read mostly goes on there,
        self._at = start  # and where it begins

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: bytes) -> None:
        messages, length = self.messages, len(data)
        if length < SMALL and messages and len(messages[-1]) < JOINED and not self._packets:
            messages[-1] += data
        elif data:
            messages.append(data)
        self.end += length

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`, or the one whole packet that begins there."""
        assert self.start <= offset <= self.end, (self.start, offset, self.end)
        messages = self.messages
        if offset == self.end:
            return b""
        if offset < self._at:
            self._index, self._at = 0, self._first
        while self._at + len(messages[self._index]) <= offset:
            self._at += len(messages[self._index])
            self._index += 1
        index, skipped = self._index, offset - self._at
        if self._packets:
            return messages[index]
        found = [messages[index][skipped : skipped + limit]]
        missing = min(limit, self.end - offset) - len(found[0])
        while missing:
            index += 1
            found.append(messages[index][:missing])
            missing -= len(found[-1])
        return b"".join(found)

    def discard_until(self, offset: int) -> None:
        """Forgets what lies before `offset`."""
        assert offset <= self.end, (offset, self.end)
        if offset <= self.start:
            return
        self.start = offset
        messages = self.messages
        while messages and self._first + len(messages[0]) <= offset:
            self._first += len(messages.popleft())
            self._index -= 1
        if self._index < 0:
            self._index, self._at = 0, self._first
