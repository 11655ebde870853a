"""A request's body into the spool, within limits of size and time."""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

from gateway.deepgram.errors import POLICY, Refusal
from gateway.errors import ClientError
from gateway.prerecorded.spool import SpoolFile

GRACE: Final = 10.0
"""Seconds before an upload's rate is looked at."""


class UploadRefused(ClientError):
    """A body that is not taken; `reason` is a metric's label."""

    def __init__(self, reason: str, refusal: Refusal) -> None:
        super().__init__(refusal.message, status=refusal.status, close_code=POLICY)
        self.reason = reason
        self.refusal = refusal


class Body(Protocol):
    """What is read; aiohttp's StreamReader is one."""

    async def readany(self) -> bytes:
        """What is there, once there is something; b"" at the end."""


def empty() -> UploadRefused:
    text = 'The body is empty: send audio, or {"url": "..."} as application/json.'
    return UploadRefused("empty", Refusal(400, "Bad Request", text))


def too_large(limit: int) -> UploadRefused:
    text = f"The body is larger than {limit} bytes."
    return UploadRefused("too_large", Refusal(413, "PAYLOAD_TOO_LARGE", text))


async def take(
    body: Body, file: SpoolFile, *, limit: int, min_rate: int, seconds: float | None = None
) -> None:
    """Writes all of `body`, which `file.finish` is left to confirm. Raises UploadRefused and SpoolFull.

    `limit` in bytes; `min_rate` in bytes per second since now, 0 for none; in `seconds` it must be over.
    """
    clock = Clock(min_rate, seconds)
    while data := await clock.next(body):
        if file.size + len(data) > limit:
            raise too_large(limit)
        await file.write(data)
    if not file.size:
        raise empty()


async def take_small(body: Body, *, limit: int, min_rate: int) -> bytes:
    """The same for what is no recording and fits in memory."""
    clock, taken = Clock(min_rate), b""
    while data := await clock.next(body):
        taken += data
        if len(taken) > limit:
            raise too_large(limit)
    if not taken:
        raise empty()
    return taken


class Clock:
    """Sees to it that a body keeps coming."""

    def __init__(self, min_rate: int, seconds: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._seconds = math.inf if seconds is None else seconds
        self._min_rate = min_rate
        self._received = 0

    async def next(self, body: Body) -> bytes:
        seconds = GRACE + self._received / self._min_rate if self._min_rate else math.inf
        due = self._began + min(seconds, self._seconds)
        try:
            async with asyncio.timeout_at(due if due < math.inf else None):
                data = await body.readany()
        except TimeoutError:
            text = f"The upload is slower than {self._min_rate} bytes per second."
            if self._seconds <= seconds:
                text = f"The upload takes longer than {self._seconds:g} s."
            raise UploadRefused("too_slow", Refusal(408, "SLOW_UPLOAD", text)) from None
        self._received += len(data)
        return data
