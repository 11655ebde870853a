"""How many recordings may be on their way in at once, by all routes together, and which are refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

from gateway.deepgram.errors import Refusal
from gateway.metrics import Metrics
from gateway.prerecorded.request import BadField
from gateway.prerecorded.spool import SpoolFull
from gateway.prerecorded.upload import UploadRefused

BUSY: Final = Refusal(
    503, "Service Unavailable", "The gateway has as many uploads as it takes.", retry_after=5
)


class Uploads:
    """`active` requests with recordings wait for their answer; `idle` is set while there are none."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._most = most
        self._metrics = metrics

    @property
    def full(self) -> bool:
        return self.active >= self._most

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Around all that is done for a request; what refuses it is counted. Raises UploadRefused."""
        if self.full:
            self._metrics.uploads_refused.add("busy")
            raise UploadRefused("busy", BUSY)
        self.active += 1
        self.idle.clear()
        try:
            yield
        except UploadRefused as exc:
            self._metrics.uploads_refused.add(exc.reason)
            raise
        except SpoolFull:
            self._metrics.uploads_refused.add("spool_full")
            raise
        except BadField:
            self._metrics.uploads_refused.add("malformed")
            raise
        finally:
            self.active -= 1
            if not self.active:
                self.idle.set()
