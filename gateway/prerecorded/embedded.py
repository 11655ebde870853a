"""The queue that needs nothing besides the store: due rows are claimed as soon as somebody is free for them.

It looks when there may be something to do: after a job came in or ended, when the next retry is due, when the
limit of starts allows one more; and every second, for rows that another process on the same database wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.errors import StoreError
from gateway.prerecorded.worker import Worker
from gateway.store import jobs as rows
from gateway.store.job import Job
from gateway.store.store import Store

POLL_SECONDS: Final = 1.0


class EmbeddedQueue:
    """A `JobQueue`. `worker` is None where this process only takes jobs in; `clock` is the worker's."""

    def __init__(self, store: Store, worker: Worker | None, *, log: Any, clock: Callable[[], float]) -> None:
        self._store = store
        self._worker = worker
        self._log = log
        self._clock = clock
        self._wake = asyncio.Event()
        self._draining = False
        self._feeding: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        return True  # it is as healthy as the store

    async def start(self) -> None:
        if self._worker:
            self._feeding = asyncio.create_task(self._feed(self._worker), name="jobs")
            self._beating = asyncio.create_task(self._worker.beat(), name="job leases")

    async def enqueue(self, jobs: Sequence[Job]) -> None:
        self._wake.set()

    async def cancel(self, job: Job) -> None:
        pass  # the row says it

    async def drain(self, seconds: float) -> None:
        self._draining = True
        self._wake.set()
        if self._feeding and self._worker:
            await self._feeding  # not cancelled: what it is claiming must be run or put back
            await self._worker.drain(seconds)

    async def close(self) -> None:
        for task in (self._feeding, self._beating):
            if task:
                task.cancel()
                await asyncio.wait({task})

    async def _feed(self, worker: Worker) -> None:
        while not self._draining:
            self._wake.clear()
            wait = POLL_SECONDS
            try:
                if (free := worker.free) > 0:
                    claimed = await worker.claim(free)
                    for job in claimed:
                        worker.run(job).add_done_callback(lambda _: self._wake.set())
                    if len(claimed) == free:
                        continue  # there may be more, and `free` says whether they may start
                    wait = await self._until_due()
                else:
                    wait = worker.wait() or POLL_SECONDS
            except StoreError as exc:
                self._log.debug("jobs.not_claimed", reason=str(exc))
            except Exception:
                self._log.exception("jobs.defect")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(wait, POLL_SECONDS))

    async def _until_due(self) -> float:
        """Seconds until the next queued job is due."""
        due = await self._store.read(lambda connection: rows.next_due(connection))
        return POLL_SECONDS if due is None else max(due - self._clock(), 0.005)
