"""Who watches calls: sinks that hold up nobody. One that does not keep up misses interims, then is cut."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from gateway.deepgram.recogniser import FINAL, INTERIM
from gateway.session.events import Deliver
from gateway.store.sessions import Session

MOST_BYTES: Final = 262_144
"""Of results that wait for an observer: some minutes of a call."""


class Observer:
    """One who watches: `async for number, raw in observer`, where `number` is None for an interim.

    It ends with the call, which leaves `session`, or when too much waits: then `session` stays None.
    """

    def __init__(self, first: int) -> None:
        """`first` is the number of the next final."""
        self.first = first
        self.session: Session | None = None
        self._next = first
        self._queue: deque[tuple[int | None, int, bytes]] = deque()
        self._bytes = 0
        self._over = False
        self._news = asyncio.Event()

    def deliver(self, event: Deliver) -> None:
        if event.kind > FINAL or self._over:
            return
        number = None
        if event.kind is INTERIM:
            self._forget_interim(event.channel)
        else:
            number, self._next = self._next, self._next + 1
        self._queue.append((number, event.channel, event.raw))
        self._bytes += len(event.raw)
        self._news.set()
        if self._bytes > MOST_BYTES:
            self._queue.clear()
            self.end(None)

    def end(self, session: Session | None) -> None:
        """After what waits; `session` says how the call went, None: it goes on."""
        if not self._over:
            self.session, self._over = session, True
            self._news.set()

    def __aiter__(self) -> Observer:
        return self

    async def __anext__(self) -> tuple[int | None, bytes]:
        while not self._queue:
            if self._over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        number, _, raw = self._queue.popleft()
        self._bytes -= len(raw)
        return number, raw

    def _forget_interim(self, channel: int) -> None:
        """What the next one of its channel says, with no final in between, is all that counts."""
        for index in range(len(self._queue) - 1, -1, -1):
            number, of, raw = self._queue[index]
            if of == channel:
                if number is None:
                    del self._queue[index]
                    self._bytes -= len(raw)
                return
