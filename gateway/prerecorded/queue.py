"""Jobs as the rest of the gateway sees them: handed in, looked at, cancelled, retried, watched.

The row is the truth (docs/prerecorded.md). A `JobQueue` only says which job is worth looking at now; it
may say so twice, or forget.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from gateway.config import JobsConfig
from gateway.errors import StoreConflict, StoreError
from gateway.metrics import Metrics
from gateway.prerecorded.work import Outcome
from gateway.prerecorded.worker import Ended, Worker
from gateway.store import deliveries, transcripts
from gateway.store import jobs as rows
from gateway.store.databases import Connection
from gateway.store.job import OPEN, TERMINAL, Job, JobState
from gateway.store.jobs import Mark
from gateway.store.store import Store

WATCH_SECONDS: Final = 2.0
"""Between two looks after the jobs of dead workers."""
PURGE_SECONDS: Final = 60.0
PURGED: Final = 500
"""Jobs that are deleted in one transaction."""
LOOK_SECONDS: Final = 1.0
"""Between two looks at the jobs that somebody watches: another process may run them."""
_REQUEST: Final = (
    "principal",
    "url",
    "spooled",
    "query",
    "priority",
    "callback",
    "metadata",
    "stored",
    "media_type",
)
"""What makes two jobs of one id the same request."""


class JobQueue(Protocol):
    """Brings jobs whose rows are committed to workers."""

    @property
    def healthy(self) -> bool:
        """Whether jobs that come now are taken."""

    async def start(self) -> None:
        """Begins to run jobs, if it was made with a worker."""

    async def enqueue(self, jobs: Sequence[Job]) -> None:
        """Says that these rows are queued; harmless when it knows. Never raises: what fails comes again."""

    async def cancel(self, job: Job) -> None:
        """Says that this row is queued no more, or gone. Never raises: a worker sees it in the row."""

    async def drain(self, seconds: float) -> None:
        """Starts no more jobs; returns when all have ended or, after `seconds`, the rest was put back."""

    async def close(self) -> None:
        """Lets go of every connection and task."""


class Watcher:
    """Somebody who watches a job: `mark` is what was seen of it last, `changed` says that there is more."""

    def __init__(self) -> None:
        self.mark: Mark | None = None
        self.changed = asyncio.Event()


class Changes:
    """Wakes whoever watches a job when something happens to it, in this process or in another."""

    def __init__(self) -> None:
        self._watched: dict[str, set[Watcher]] = {}

    @property
    def watched(self) -> list[str]:
        """The ids of the jobs that somebody watches."""
        return list(self._watched)

    def announce(self, job: Job) -> None:
        """This process changed it."""
        for watcher in self._watched.get(job.id, ()):
            watcher.changed.set()

    def compare(self, marks: Mapping[str, Mark]) -> None:
        """What the store has of the jobs that are watched; one that is missing is gone, or not known now."""
        for job_id, watchers in self._watched.items():
            for watcher in watchers:
                if watcher.mark != marks.get(job_id):
                    watcher.changed.set()

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[Watcher]:
        watcher = Watcher()
        self._watched.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            self._watched[job_id].discard(watcher)
            if not self._watched[job_id]:
                del self._watched[job_id]


class Jobs:
    """All that may be done with jobs. A `principal` sees its own only.

    `discard` begins to delete the audio of a job that will not be run again. Who cancels or deletes one waits
    until that is done: the same job handed in again would find its audio, and then lose it. `ended` is the
    worker's.
    """

    def __init__(
        self,
        store: Store,
        queue: JobQueue,
        worker: Worker,
        changes: Changes,
        config: JobsConfig,
        *,
        metrics: Metrics,
        log: Any,
        clock: Callable[[], float],
        ended: Ended,
        discard: Callable[[Job], asyncio.Future[None]],
    ) -> None:
        self.queue = queue
        self.worker = worker
        self._store = store
        self._changes = changes
        self._config = config
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._ended = ended
        self._discard = discard

    @property
    def healthy(self) -> bool:
        """Whether jobs are taken."""
        return self._store.healthy and self.queue.healthy

    async def submit(self, jobs: Sequence[Job]) -> list[Job]:
        """Accepts all of `jobs`, which are on disk when this returns, or none.

        What was submitted before, all of it and with the same ids and words, is returned as it is now. Raises
        StoreConflict, whose text is the id, when it is another job's; StoreError when none is taken.
        """
        if not self.healthy:
            raise StoreError("jobs cannot be taken now")
        try:
            await rows.add(self._store, jobs)
        except StoreConflict:
            return await self._submitted_before(jobs)
        self._metrics.jobs_accepted += len(jobs)
        await self.queue.enqueue(jobs)
        return list(jobs)

    async def get(self, job_id: str, principal: str) -> Job | None:
        """With its result. Raises StoreError."""
        job = await self._store.read(lambda connection: rows.get(connection, job_id))
        return job if job and job.principal == principal else None

    async def exists(self, job_id: str) -> bool:
        """Whether there is a job of that id, whoever's it is. Raises StoreError."""
        return bool(await self._store.read(partial(rows.marks, job_ids=[job_id])))

    async def page(
        self, principal: str, state: JobState | None, before: tuple[float, str] | None, limit: int
    ) -> list[Job]:
        """See `store.jobs.page`. Raises StoreError."""
        return await self._store.read(
            lambda connection: rows.page(connection, principal, state, before, limit)
        )

    async def cancel(self, job_id: str) -> Job | None:
        """Ends a job that has not ended, running or not; None if it has. Raises StoreError."""

        async def op(connection: Connection) -> Job | None:
            cancelled = await rows.cancel(connection, job_id, self._clock())
            if cancelled:
                await self._ended(connection, [cancelled])
            return cancelled

        job = await self._store.write(op)
        if job:
            self._metrics.jobs_ended.add(job.state)
            self.worker.cancel(job_id)
            self._changes.announce(job)
            discarding = self._discard(job)
            await self.queue.cancel(job)
            await asyncio.wait({discarding})
        return job

    async def remove(self, job_id: str) -> bool:
        """Deletes a job that has ended with all that it left: its audio, its result, its transcript, and the
        callbacks that tell of it. False if it has not ended, or is not there. Raises StoreError."""

        async def op(connection: Connection) -> Job | None:
            if gone := await rows.remove(connection, job_id):
                await transcripts.remove(connection, gone.principal, gone.id)
                await deliveries.remove_of(connection, gone.principal, gone.id)
            return gone

        gone = await self._store.write(op)
        if gone:
            discarding = self._discard(gone)
            await self.queue.cancel(gone)
            await asyncio.wait({discarding})
        return gone is not None

    async def retry(self, job_id: str) -> Job | None:
        """Queues a failed or cancelled job with all its attempts anew, else None. Raises StoreError."""
        attempts = self.worker.pools.attempts
        job = await self._store.write(
            lambda connection: rows.retry(connection, job_id, self._clock(), attempts)
        )
        if job:
            self._changes.announce(job)
            await self.queue.enqueue([job])
        return job

    async def needs(self, name: str) -> bool:
        """Whether a job that may yet run has that file of the spool. Raises StoreError."""
        return bool(await self._store.read(lambda connection: rows.needed(connection, [name])))

    async def awaiting(self, job_id: str) -> Job | None:
        """Any principal's job, for whoever knows the secret that it awaits. Raises StoreError."""
        return (await self._store.read(lambda connection: rows.find(connection, [job_id]))).get(job_id)

    async def finish(self, job: Job, outcome: Outcome) -> None:
        """Ends a running attempt by what Deepgram's callback says, unless it has ended. Raises StoreError."""
        after = await self.worker.finish(job, outcome)
        if after and after.state == "queued":
            await self.queue.enqueue([after])

    async def states(self, job_id: str, principal: str) -> AsyncGenerator[Job, None]:
        """The job, and again with each new state or attempt, until it has ended. Raises StoreError."""
        with self._changes.watch(job_id) as watcher:
            while job := await self.get(job_id, principal):
                if (mark := (job.state, job.attempts)) != watcher.mark:
                    watcher.mark = mark
                    yield job
                if job.state in TERMINAL:
                    return
                await watcher.changed.wait()
                watcher.changed.clear()

    async def watch(self) -> None:
        """Looks after jobs of dead workers, deletes what is old, counts, and tells those who watch jobs of
        what others did to them; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tend())
            tasks.create_task(self._look())

    async def _look(self) -> None:
        """One question for all that is watched, however many watch."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not (watched := self._changes.watched):
                continue
            marks: dict[str, Mark] = {}  # with the store down all are woken, and hear of it themselves
            try:
                marks = await self._store.read(partial(rows.marks, job_ids=watched))
            except StoreError as exc:
                self._log.debug("jobs.not_looked_at", reason=str(exc))
            except Exception:
                self._log.exception("jobs.defect")
            self._changes.compare(marks)

    async def _tend(self) -> None:
        purge_at = 0.0
        while True:
            try:
                if again := [job for job in await self.worker.reap() if job.state == "queued"]:
                    await self.queue.enqueue(again)
                await self._count(OPEN)
                if self._clock() >= purge_at:
                    purge_at = self._clock() + PURGE_SECONDS
                    await self._purge()
                    await self._count(TERMINAL)
            except StoreError as exc:
                self._log.debug("jobs.not_watched", reason=str(exc))
            except Exception:
                self._log.exception("jobs.defect")
            await asyncio.sleep(WATCH_SECONDS)

    async def _submitted_before(self, jobs: Sequence[Job]) -> list[Job]:
        there = await self._store.read(lambda connection: rows.find(connection, [job.id for job in jobs]))
        for job in jobs:
            old = there.get(job.id)
            if old and any(getattr(old, name) != getattr(job, name) for name in _REQUEST):
                raise StoreConflict(job.id)
        if missing := [job.id for job in jobs if job.id not in there]:
            raise StoreConflict(next((job_id for job_id in there), missing[0]))
        return [there[job.id] for job in jobs]

    async def _count(self, states: Collection[JobState]) -> None:
        counts = await self._store.read(lambda connection: rows.counts(connection, states))
        for state in states:
            self._metrics.jobs[state] = counts.get(state, 0)
        self._metrics.queue_depth = int(self._metrics.jobs["queued"])

    async def _purge(self) -> None:
        now = self._clock()
        old, older = now - 3600 * self._config.keep_hours, now - 3600 * self._config.keep_failed_hours
        while True:
            gone = await self._store.write(lambda connection: rows.purge(connection, old, older, PURGED))
            for job in gone:
                self._discard(job)
            if len(gone) < PURGED:
                return
