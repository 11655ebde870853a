"""Where results go. Each sink has its own bounded queue: a slow one delays nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.deepgram.recogniser import Kind
from gateway.live.wire import ServerSide
from gateway.session.events import Deliver


class ClientSink:
    """The client itself. While it does not read, interims of a channel replace each other and finals wait.

    More than `limit_bytes` waiting, or nothing read for `patience` seconds, and `on_slow` is called, once.
    """

    __slots__ = (  # noqa: SIM905 (as in `WebSocketLeg`)
        "_ending _give_up _gone _leg _limit_bytes _loop _on_slow _patience _queue _queued_bytes"
    ).split()

    def __init__(
        self, leg: ServerSide, limit_bytes: int, patience: float, on_slow: Callable[[], None]
    ) -> None:
        self._leg = leg
        self._limit_bytes = limit_bytes
        self._patience = patience
        self._on_slow = on_slow
        self._queue: list[Deliver] = []
        self._queued_bytes = 0
        self._give_up: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ending: tuple[int | None, str] | None = None
        self._gone = False

    def deliver(self, event: Deliver) -> None:
        if self._gone:
            return
        if self._leg.writable and not self._queue:
            self._leg.send_result(event.raw)
            return
        if event.kind is Kind.INTERIM:
            self._drop_interim(event.channel)
        self._queue.append(event)
        self._queued_bytes += len(event.raw)
        if self._queued_bytes > self._limit_bytes:
            self._slow()
        elif self._give_up is None:
            self._give_up = self._loop.call_later(self._patience, self._slow)

    def resume(self) -> None:
        """The client reads again."""
        if self._give_up is not None:
            self._give_up.cancel()
            self._give_up = None
        while self._queue and self._leg.writable:
            event = self._queue.pop(0)
            self._queued_bytes -= len(event.raw)
            self._leg.send_result(event.raw)
        if self._queue and self._give_up is None:
            self._give_up = self._loop.call_later(self._patience, self._slow)
        elif not self._queue and self._ending is not None:
            self._leg.close(*self._ending)

    def close(self, code: int | None, reason: str) -> None:
        """Closes the client's connection, after what is still queued."""
        self._ending = (code, reason)
        if not self._queue:
            self._leg.close(code, reason)

    def forget(self) -> None:
        """The client is gone."""
        self._gone = True
        self._queue.clear()
        if self._give_up is not None:
            self._give_up.cancel()

    def _drop_interim(self, channel: int) -> None:
        for index, waiting in enumerate(self._queue):
            if waiting.kind is Kind.INTERIM and waiting.channel == channel:
                self._queued_bytes -= len(waiting.raw)
                del self._queue[index]
                return

    def _slow(self) -> None:
        self.forget()
        self._on_slow()
