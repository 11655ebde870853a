"""The queue for several hosts: BullMQ on Redis or Valkey, one server or a cluster.

Redis brings a job's id to a worker; the row says whether it may be run. Whatever Redis loses, repeats or
forgets is therefore only late: rows that are due and unknown to Redis are added again, those that come
twice are put aside. How long a job waits and how often it is tried is the row's as well: BullMQ's own
attempts are not used.

BullMQ 3.4 on redis-py 8 needs: no `socket_timeout` shorter than its blocking read (idle workers would go
deaf), a `maxStalledCount` beyond what happens, the server's version asked for before the first job (else
waits are whole seconds), a hash tag in the prefix and no bulk adds on a cluster.

Replicas are not waited for (WAIT): what a failover loses is a row that is swept up within ten seconds, and a
replica that is slow or gone would hold up, or refuse, jobs that are safe already.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from bullmq import Job as QueuedJob
from bullmq import Queue
from bullmq import Worker as QueueWorker
from bullmq.custom_errors import UnrecoverableError
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from gateway.config import JobsConfig
from gateway.errors import StoreError
from gateway.metrics import Metrics
from gateway.prerecorded.worker import Worker
from gateway.store import jobs as rows
from gateway.store.databases import Connection
from gateway.store.job import TERMINAL, Job
from gateway.store.store import Store

NAME: Final = "transcriptions"
ENQUEUE_SECONDS: Final = 2.0
"""For all that one request brings; what is not in Redis by then is added by the sweep."""
COMMAND_SECONDS: Final = 1.0
"""For a command that does not wait by its nature: a server that hangs holds up nobody who hands jobs in."""
PROBE_SECONDS: Final = 0.5
READ_SECONDS: Final = 15.0
"""Longer than a blocking read (10 s at most), short enough for a server that has gone without a word."""
LOCK: Final = 1 / 3
"""Of a lease: how long BullMQ waits for a sign of life before it delivers a job again."""
SIGNS_PER_LOCK: Final = 3
SWEEP_SECONDS: Final = 5.0
LOST_AFTER: Final = 5.0
"""Seconds that a job is due before Redis is asked whether it knows it."""
SWEPT: Final = 500
LATER: Final = 1.0
"""Seconds until a job that could not be looked at is delivered again."""
SOON: Final = 0.1
"""Seconds until a job is delivered again whose row was not free, though it looked due."""
ANY_NUMBER: Final = 1_000_000
OURS: Final = "~"
"""What neither an id of a job nor a key of BullMQ's has in it."""
KEEPS_ALL: Final = "noeviction"
COMPLETED: Final = {"age": 3600, "count": 1000}
"""What BullMQ keeps of jobs that have ended well: it is for people who look at a board; the rows know all."""
_DOWN: Final = (RedisError, RedisClusterException, OSError, TimeoutError)  # the second is no RedisError


def connect(config: JobsConfig, seconds: float) -> Any:
    """A client of `jobs.redis`, made for BullMQ; a reply may take so many `seconds`. Connects when used."""
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": seconds,
        "socket_connect_timeout": COMMAND_SECONDS,
        "max_connections": ANY_NUMBER,  # beyond its own limit redis-py refuses commands instead of waiting
    }
    # What has timed out is not tried again: that would take as long once more.
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3, supported_errors=(RedisConnectionError,))
    if not config.redis_cluster:
        return Redis.from_url(config.redis[0], retry=retry, **options)
    urls = [urlsplit(url) for url in config.redis]
    nodes = [ClusterNode(url.hostname or "", url.port or 6379) for url in urls]
    return RedisCluster(
        startup_nodes=nodes,
        username=unquote(urls[0].username) if urls[0].username else None,
        password=unquote(urls[0].password) if urls[0].password else None,
        ssl=urls[0].scheme == "rediss",
        retry=retry,
        **options,
    )


def _note(metrics: Metrics, error: Exception) -> None:
    """Counts a command that failed; what others than Redis raise is none."""
    if isinstance(error, TimeoutError | RedisTimeout):
        metrics.redis_errors.add("timeout")
    elif isinstance(error, _DOWN):
        metrics.redis_errors.add("failed")


async def _end(tasks: Set[asyncio.Task[None]]) -> None:
    """Cancels them until they are gone.

    Once is not enough: on Python 3.11 a call of redis-py's that is cancelled while its answer comes in
    returns as if it were not.
    """
    while alive := [task for task in tasks if not task.done()]:
        for task in alive:
            task.cancel()
        await asyncio.wait(alive, timeout=SOON)


class FleetQueue:
    """A `JobQueue`. `worker` is None where this process only takes jobs in; `clock` is the worker's."""

    def __init__(
        self,
        store: Store,
        worker: Worker | None,
        config: JobsConfig,
        *,
        metrics: Metrics,
        log: Any,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._worker = worker
        self._config = config
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._redis = connect(config, COMMAND_SECONDS)
        self._queue = Queue(NAME, {"connection": self._redis, "prefix": config.redis_prefix})
        self._puller = (
            Puller(worker, store, config, metrics=metrics, log=log, clock=clock) if worker else None
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._swept = ""
        self.healthy = False

    async def start(self) -> None:
        await self._probe()
        watching = (
            self._every(PROBE_SECONDS, self._probe),
            self._every(SWEEP_SECONDS, self._sweep),
            self._every(SWEEP_SECONDS, self._judge),
        )
        self._tasks = set(map(asyncio.create_task, watching))
        if self._worker and self._puller:
            self._tasks.add(asyncio.create_task(self._worker.beat()))
            self._puller.start()

    async def enqueue(self, jobs: Sequence[Job]) -> None:
        try:
            async with asyncio.timeout(ENQUEUE_SECONDS):
                # What has never been run cannot have ended in Redis, so that it need not be asked.
                await self._add([job for job in jobs if not job.attempts])
                await self._add_unknown([job for job in jobs if job.attempts])
        except _DOWN as exc:
            _note(self._metrics, exc)
            self._log.warning("jobs.not_enqueued", jobs=len(jobs), error=str(exc) or type(exc).__name__)

    async def cancel(self, job: Job) -> None:
        with contextlib.suppress(*_DOWN):
            async with asyncio.timeout(ENQUEUE_SECONDS):
                # Without effect on one that runs: its worker sees the row.
                await self._queue.remove(self._name(job))

    async def drain(self, seconds: float) -> None:
        if self._puller:
            await self._puller.drain(seconds)

    async def close(self) -> None:
        await _end(self._tasks)
        if self._puller:
            await self._puller.close()
        await self._queue.close()

    async def _add(self, jobs: Sequence[Job]) -> None:
        """Adds what Redis does not know; it does nothing for what it knows."""
        added = [{"name": job.route, "data": {}, "opts": self._options(job)} for job in jobs]
        if len(added) > 1 and not self._config.redis_cluster:
            await self._queue.addBulk(added)
            return
        for one in added:
            await self._queue.add(one["name"], one["data"], one["opts"])

    async def _add_unknown(self, jobs: Sequence[Job]) -> int:
        """Adds what Redis does not know, or believes to have ended; returns how many that were."""
        if not jobs:
            return 0
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(self._queue.toKey(self._name(job)), ["timestamp", "finishedOn"])
            known = await pipe.execute()
        for job, (_, finished) in zip(jobs, known, strict=True):
            if finished:
                await self._queue.remove(self._name(job))
        unknown = [job for job, (added, ended) in zip(jobs, known, strict=True) if ended or not added]
        await self._add(unknown)
        return len(unknown)

    def _name(self, job: Job) -> str:
        """The job's id in Redis: the same, unless BullMQ has a key of that name beside those of jobs."""
        return job.id + OURS if job.id in self._queue.keys else job.id

    def _options(self, job: Job) -> dict[str, Any]:
        return {
            "jobId": self._name(job),
            "priority": job.priority,
            "delay": max(0, round((job.run_at - self._clock()) * 1000)),
            "removeOnComplete": COMPLETED,
            "removeOnFail": {"age": round(self._config.keep_failed_hours * 3600)},
            "stackTraceLimit": 0,  # ours, which says nothing of why a job failed
        }

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever comes of it: one time that fails must not be the last."""
        while True:
            try:
                await work()
            except (StoreError, *_DOWN) as exc:
                _note(self._metrics, exc)
                self._log.debug("jobs.redis", error=str(exc))
            except Exception:
                self._log.exception("jobs.defect")
            await asyncio.sleep(seconds)

    async def _probe(self) -> None:
        """Whether Redis answers."""
        was = self.healthy
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                # Written, not read: one that has no memory left, or may only be read, takes no jobs.
                await self._redis.set(self._queue.toKey(OURS), "", ex=60)
            self.healthy = True
        except _DOWN as exc:
            _note(self._metrics, exc)
            self.healthy = False
            if was:
                self._log.error("redis.down", reason=str(exc) or type(exc).__name__)
        if self.healthy and not was:
            self._log.info("redis.up")
        self._metrics.redis_up = int(self.healthy)

    async def _judge(self) -> None:
        """Whether Redis would throw jobs away for want of memory. INFO: CONFIG is not everybody's to ask."""
        masters = {"target_nodes": RedisCluster.PRIMARIES} if self._config.redis_cluster else {}
        said = await self._redis.info("memory", **masters)
        nodes = said.values() if self._config.redis_cluster else [said]
        evicting = {node.get("maxmemory_policy", KEEPS_ALL) for node in nodes} - {KEEPS_ALL}
        if evicting and self._metrics.redis_policy_ok:
            self._log.error(
                "redis.evicts", policy=", ".join(evicting), remedy=f"maxmemory-policy {KEEPS_ALL}"
            )
        self._metrics.redis_policy_ok = int(not evicting)

    async def _sweep(self) -> None:
        """Adds again what is due and has been forgotten: a page of it, so that a long queue costs little."""
        page = await self._store.read(self._overdue)
        self._metrics.jobs_missing += await self._add_unknown(page)
        self._swept = page[-1].id if len(page) == SWEPT else ""

    async def _overdue(self, connection: Connection) -> list[Job]:
        return await rows.overdue(connection, self._clock() - LOST_AFTER, self._swept, SWEPT)


class Puller:
    """Takes deliveries from BullMQ for a worker, and says how they went.

    By hand, as BullMQ provides for: one is asked for at a time, the next one with the answer to the last.
    BullMQ's own loop asks for every free place at once, so that with fifty places a job that comes alone
    costs dozens of questions.
    """

    def __init__(
        self,
        worker: Worker,
        store: Store,
        config: JobsConfig,
        *,
        metrics: Metrics,
        log: Any,
        clock: Callable[[], float],
    ) -> None:
        self._worker = worker
        self._store = store
        self._config = config
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._lock_ms = round(config.lease * LOCK * 1000)
        options = {
            "connection": connect(config, READ_SECONDS),  # its own, since it closes it
            "prefix": config.redis_prefix,
            "lockDuration": self._lock_ms,
        }
        self._bullmq = QueueWorker(NAME, None, options)
        self._draining = asyncio.Event()
        self._places = asyncio.Semaphore(worker.pools.at_once)
        self._held: set[QueuedJob] = set()
        self._pulling: set[asyncio.Task[None]] = set()
        """What asks for deliveries, and what runs those that came."""
        self._keeping: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """From when Redis can be reached for the first time."""
        self._spawn(self._pull())
        self._keeping = {asyncio.create_task(self._keep())}

    async def drain(self, seconds: float) -> None:
        """As a `JobQueue` does."""
        if not self._draining.is_set():
            self._draining.set()
            await self._bullmq.pause(True)  # without it a wait for the next job would go on
            await self._worker.drain(seconds)
            if self._pulling:
                await asyncio.wait(self._pulling, timeout=ENQUEUE_SECONDS)

    async def close(self) -> None:
        self._draining.set()
        await _end(self._pulling)
        await _end(self._keeping)
        await self._bullmq.close(force=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._pulling.add(task)
        task.add_done_callback(self._pulling.discard)
        return task

    async def _pull(self) -> None:
        for number in itertools.count():
            await self._places.acquire()
            if self._draining.is_set():
                return
            if queued := await self._next(f"{self._bullmq.id}:{number}"):
                self._spawn(self._deliver(queued)).add_done_callback(lambda _: self._places.release())
            else:
                self._places.release()

    async def _next(self, token: str) -> QueuedJob | None:
        """The next delivery, locked with `token`; None if there was none for a while."""
        try:
            await self._bullmq.blockingRedisConnection.getRedisVersion()  # it asks once
            return await self._bullmq.getNextJob(token)
        except Exception as exc:  # also for what others put into Redis: the queue must not stand still
            _note(self._metrics, exc)
            self._log.warning("jobs.redis", error=str(exc))
            await asyncio.sleep(PROBE_SECONDS)
            return None

    async def _keep(self) -> None:
        """Renews the locks of what is held here; what nobody holds any more is delivered again."""
        backend, pause_ms = self._bullmq.backend, self._lock_ms // SIGNS_PER_LOCK
        while True:
            await asyncio.sleep(pause_ms / 1000)
            try:
                if held := list(self._held):
                    ids, tokens = [queued.id for queued in held], [queued.token for queued in held]
                    await backend.extendLocks(ids, tokens, self._lock_ms)
                await backend.moveStalledJobsToWait(ANY_NUMBER, pause_ms)
            except _DOWN as exc:
                _note(self._metrics, exc)
                self._log.debug("jobs.redis", error=str(exc))
            except Exception:
                self._log.exception("jobs.defect")

    async def _deliver(self, delivered: QueuedJob) -> None:
        """A delivery, and those that come with the answer to it."""
        queued: QueuedJob | None = delivered
        while queued:
            self._held.add(queued)
            try:
                following = await self._process(queued)
            except Exception as exc:  # bullmq says TypeError when a lock has run out
                self._log.warning("jobs.not_told", job=queued.id, error=str(exc))
                following = None  # this one comes again, when its lock has run out
            finally:
                self._held.discard(queued)
            queued = following

    async def _process(self, queued: QueuedJob) -> QueuedJob | None:
        """Runs what was delivered, and tells BullMQ; gives what is delivered next."""
        job, again_at = await self._outcome(queued)
        token, more = queued.token, not self._draining.is_set()
        if again_at is not None:
            await queued.moveToDelayed(round(again_at * 1000), token)
            return None
        if job and job.state == "failed":
            error = UnrecoverableError(job.error.message if job.error else job.state)
            following = await queued.moveToFailed(error, token, more)
        else:
            following = await queued.moveToCompleted(job.state if job else "gone", token, more)
        data, job_id, *_ = following
        return await self._bullmq.nextJobFromJobData(data, job_id, token=token) if data else None

    async def _outcome(self, queued: QueuedJob) -> tuple[Job | None, float | None]:
        """The job after this delivery, None if it is gone; when to deliver it again, unless it has ended."""
        if not await self._turn():
            return None, self._clock()
        try:
            job = await self._run(queued)
        except (StoreError, *_DOWN) as exc:
            self._log.debug("jobs.not_claimed", reason=str(exc))
            return None, self._clock() + LATER
        if job is None or job.state in TERMINAL:
            return job, None
        return job, max(job.lease_until or job.run_at, self._clock() + SOON)

    async def _run(self, queued: QueuedJob) -> Job | None:
        """The job as it is after this delivery, whether or not that had anything to do with it."""
        if queued.attemptsMade > queued.data.get("ended", 0):
            await self._retried_in_redis(queued)
        job_id = queued.id.removesuffix(OURS)
        claimed = await self._worker.claim(job_id=job_id)
        if claimed and (after := await self._worker.run(claimed[0])):
            return after
        return await self._store.read(lambda connection: rows.get(connection, job_id))

    async def _retried_in_redis(self, queued: QueuedJob) -> None:
        """Whoever presses retry in a bull-board means the job, not only what Redis knows of it.

        Only a job that Redis had among the failed comes again with more ends than were seen; one that is
        delivered twice, because its worker died, comes with as many.
        """
        await queued.updateData({"ended": queued.attemptsMade})
        job_id, attempts = queued.id.removesuffix(OURS), self._worker.pools.attempts
        await self._store.write(
            lambda connection: rows.retry(connection, job_id, self._clock(), attempts, of=("failed",))
        )

    async def _turn(self) -> bool:
        """Waits until the limit of starts lets one begin; False if that will not be here."""
        while not self._draining.is_set() and (wait := self._worker.wait()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), wait)
        return not self._draining.is_set()
