"""Takes jobs, runs them within limits, and says in their rows how they ended.

A worker claims a row (one more attempt, a lease), renews its leases while it works, and ends the row by
id and attempt: whatever it does for an attempt that is no longer the row's changes nothing. A worker that
dies is noticed by its leases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.config import JobsConfig
from gateway.errors import StoreError
from gateway.metrics import Metrics
from gateway.prerecorded.pools import Pools
from gateway.prerecorded.work import (
    LATE,
    LOST,
    NO_CALLBACK,
    Again,
    Attempt,
    Failed,
    Outcome,
    put_back,
    settled,
)
from gateway.store import jobs as rows
from gateway.store.databases import Connection
from gateway.store.job import TERMINAL, Fence, Job, JobError
from gateway.store.store import Store

Ended = Callable[[Connection, Sequence[Job]], Awaitable[None]]
"""Writes what belongs to jobs' ends in their transaction: transcripts, the callbacks that tell of it."""

BEATS_PER_LEASE: Final = 3
"""How often a lease is renewed while it lasts, so that one late renewal loses nothing."""
MINUTE: Final = 60.0
REAPED: Final = 100
"""Jobs of dead workers that are looked at in one transaction."""
MOST_REFUSED: Final = 5
"""How often a store that works may refuse a job's end before the job has failed."""
PUT_BACK_SECONDS: Final = 5.0
"""For the rows of what a drain interrupted; a store that hangs must not keep the gateway from ending."""
STORE_PAUSE: Final = 1.0
"""Seconds between two tries to write a job's end while the store is down."""


class Starts:
    """At most `limit` starts in any 60 s: the window slides, so that no two minutes' worth come together."""

    def __init__(self, limit: int) -> None:
        """0: no limit."""
        self._limit = limit
        self._begun: deque[float] = deque()

    def free(self, now: float) -> int:
        """How many may start now."""
        while self._begun and self._begun[0] <= now - MINUTE:
            self._begun.popleft()
        return max(self._limit - len(self._begun), 0) if self._limit else 1_000_000

    def wait(self, now: float) -> float:
        """Seconds until one may start."""
        return 0.0 if self.free(now) else self._begun[len(self._begun) - self._limit] + MINUTE - now

    def take(self, now: float, count: int) -> None:
        if self._limit:
            self._begun.extend([now] * count)

    def give_back(self, count: int) -> None:
        """The last ones did not start."""
        if self._limit:
            for _ in range(min(count, len(self._begun))):
                self._begun.pop()


class Worker:
    """Runs the jobs that a queue hands it. `name` is unique among all workers that ever were.

    `clock` tells seconds since 1970, `random` floats in [0, 1). `announce` hears of every change of state,
    after its commit.
    """

    def __init__(
        self,
        store: Store,
        attempt: Attempt,
        config: JobsConfig,
        *,
        pools: Pools,
        name: str,
        metrics: Metrics,
        log: Any,
        clock: Callable[[], float],
        random: Callable[[], float],
        ended: Ended,
        announce: Callable[[Job], None],
    ) -> None:
        self.name = name
        self.pools = pools
        self.starts = Starts(config.starts_per_minute)
        self._store = store
        self._attempt = attempt
        self._config = config
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._random = random
        self._ended = ended
        self._announce = announce
        self._running: dict[Fence, tuple[Job, asyncio.Task[Job | None]]] = {}
        self._ending: set[Fence] = set()  # of those; the row may say already that they have ended
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    @property
    def free(self) -> int:
        """How many jobs may start now."""
        return min(self.pools.at_once - len(self._running), self.starts.free(self._clock()))

    def wait(self) -> float:
        """Seconds until the limit of starts lets another one begin."""
        return self.starts.wait(self._clock())

    async def claim(self, limit: int = 1, job_id: str | None = None) -> list[Job]:
        """Takes jobs that are due, the most urgent first; or the one of that id if it is due."""
        now = self._clock()
        lease_until = now + self._config.lease

        async def op(connection: Connection) -> list[Job]:
            return await rows.claim(connection, self.name, now, lease_until, limit, job_id)

        self.starts.take(now, limit)
        claimed: list[Job] = []
        try:
            claimed = await self._store.write(op)
        finally:
            self.starts.give_back(limit - len(claimed))
        for job in claimed:
            self._metrics.job_wait.observe(max(0.0, now - job.run_at))
            self._announce(job)
        return claimed

    def run(self, job: Job) -> asyncio.Task[Job | None]:
        """Runs a claimed job to the end of its attempt, in a task that never raises.

        The result is the job as this attempt left it; None if it was interrupted or its row taken away.
        """
        task = asyncio.create_task(self._run(job))
        self._running[job.fence] = job, task
        self._idle.clear()
        return task

    def cancel(self, job_id: str) -> None:
        """Interrupts that job if it runs here; its row says already that it was cancelled."""
        for job, task in self._running.values():
            if job.id == job_id:
                task.cancel()

    async def beat(self) -> None:
        """Renews the leases, and stops work on jobs that are no longer this worker's; until cancelled."""
        while True:
            await asyncio.sleep(self._config.lease / BEATS_PER_LEASE)
            held = set(self._running)
            if held:
                try:
                    kept = await self._renew({job_id for job_id, _, _ in held})
                except StoreError as exc:
                    self._log.warning("jobs.lease_not_renewed", jobs=len(held), error=str(exc))
                    continue
                except Exception:
                    self._log.exception("jobs.defect")
                    continue
                for gone in held & self._running.keys() - kept - self._ending:
                    self._running[gone][1].cancel()

    async def reap(self) -> list[Job]:
        """Settles the jobs of workers that are gone; returns them as they are now, queued again or failed.

        What runs here is not lost, though a store that was down may have kept its lease from being renewed.
        """
        held = set(self._running)

        async def op(connection: Connection) -> list[tuple[Job, Job]]:
            found = await rows.expired(connection, self._clock(), REAPED + len(held))
            lost = (job for job in found if job.fence not in held)
            settling = [(job, self._settled(job, LOST if job.worker else NO_CALLBACK)) for job in lost]
            written = await self._write(connection, [after for _, after in settling])
            return [pair for pair, is_written in zip(settling, written, strict=True) if is_written]

        reaped = await self._store.write(op)
        for job, after in reaped:
            self._told(job, after, "lost")
        return [after for _, after in reaped]

    async def finish(self, job: Job, outcome: Outcome) -> Job | None:
        """Ends an attempt that nobody runs any more; None if it has ended already. Raises StoreError."""
        after = self._settled(job, outcome)
        if not await self._store.write_jointly(self._write, after):
            self._metrics.job_attempts.add("fenced")
            return None
        self._told(job, after, _name(outcome))
        return after

    async def drain(self, seconds: float) -> None:
        """Lets running jobs end for that long and puts the rest back; whoever calls starts no more."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            for _, task in list(self._running.values()):
                task.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUT_BACK_SECONDS):
                    await self._idle.wait()

    async def _run(self, job: Job) -> Job | None:
        try:
            began = self._clock()
            outcome = await self._outcome(job)
            self._metrics.job_seconds.observe(max(0.0, self._clock() - began))
            self._ending.add(job.fence)
            return await self._end(job, self._settled(job, outcome), _name(outcome))
        except asyncio.CancelledError:
            # Its row was taken away, and then this changes nothing; or the worker is being drained.
            if self._draining:
                return await self._end(job, put_back(job, now=self._clock()), "interrupted")
            return None
        finally:
            del self._running[job.fence]
            self._ending.discard(job.fence)
            if not self._running:
                self._idle.set()

    async def _outcome(self, job: Job) -> Outcome:
        try:
            async with asyncio.timeout(self._config.attempt_timeout):
                return await self._attempt(job)
        except TimeoutError:
            return LATE
        except Exception as exc:  # a defect of ours must not leave the job without an end
            self._log.exception("job.broke", job=job.id)
            return Again(JobError("INTERNAL", f"The gateway failed: {type(exc).__name__}."))

    def _settled(self, job: Job, outcome: Outcome) -> Job:
        return settled(
            job,
            outcome,
            now=self._clock(),
            pools=self.pools,
            backoff=self._config.backoff_seconds,
            random=self._random(),
        )

    async def _end(self, job: Job, after: Job, how: str) -> Job | None:
        """Writes how an attempt ended, however long the store is down; None if it came too late.

        In a drain it is tried once.
        """
        refused = 0
        while True:
            try:
                written = await self._store.write_jointly(self._write, after)
            except Exception as exc:  # also a defect of ours in what belongs to the end
                self._log.warning("job.end_not_written", job=job.id, error=str(exc))
                if self._draining:
                    return None  # its lease runs out, and another worker runs it again
                refused += self._store.healthy
                if refused == MOST_REFUSED:  # it is not the store that is wrong
                    after = self._settled(job, Failed(JobError("NOT_STORED", str(exc))))
                await asyncio.sleep(STORE_PAUSE)
                continue
            if not written:
                self._metrics.job_attempts.add("fenced")
                return None
            self._told(job, after, how)
            return after

    async def _write(self, connection: Connection, jobs: Sequence[Job]) -> Sequence[bool]:
        written = await rows.settle(connection, jobs)
        ended = [job for job, is_written in zip(jobs, written, strict=True) if is_written]
        if ended := [job for job in ended if job.state in TERMINAL]:
            await self._ended(connection, ended)
        return written

    async def _renew(self, job_ids: set[str]) -> set[Fence]:
        until = self._clock() + self._config.lease
        return await self._store.write(lambda connection: rows.renew(connection, self.name, job_ids, until))

    def _told(self, job: Job, after: Job, how: str) -> None:
        self._metrics.job_attempts.add(how)
        self._metrics.job_reruns += after.reruns - job.reruns
        if after.state in TERMINAL:
            self._metrics.jobs_ended.add(after.state)
        code = after.error.code if after.error else None
        self._log.info(
            "job.attempt", job=job.id, attempt=job.attempts, outcome=how, state=after.state, error=code
        )
        self._announce(after)


def _name(outcome: Outcome) -> str:
    return type(outcome).__name__.lower()
