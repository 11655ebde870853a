"""The queue for several hosts: BullMQ on Redis or Valkey, one server or a cluster.

Redis brings a job's id to a worker; the row says whether it may be run. Whatever Redis loses, repeats or
forgets is therefore only late: rows that are due and unknown to Redis are added again, those that come
twice are put aside. How long a job waits and how often it is tried is the row's as well: BullMQ's own
attempts are not used.

BullMQ 3.4 on redis-py 8 needs: no `socket_timeout` shorter than its blocking read (idle workers would go
deaf), a short `runRetryDelay` (15 s by default), a `maxStalledCount` beyond what happens, the server's
version asked for before the worker runs (else waits are whole seconds), a hash tag in the prefix and no
bulk adds on a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn
from urllib.parse import unquote, urlsplit

from bullmq import Job as QueuedJob
from bullmq import Queue
from bullmq import Worker as QueueWorker
from bullmq.custom_errors import DelayedError, UnrecoverableError
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from gateway.config import JobsConfig
from gateway.errors import StoreError
from gateway.metrics import Metrics
from gateway.prerecorded.worker import Worker
from gateway.store import jobs as rows
from gateway.store.databases import Connection
from gateway.store.job import Job
from gateway.store.store import Store

NAME: Final = "transcriptions"
ENQUEUE_SECONDS: Final = 2.0
"""For all that one request brings; what is not in Redis by then is added by the sweep."""
PROBE_SECONDS: Final = 0.5
SOCKET_SECONDS: Final = 15.0
"""Longer than a blocking read (10 s at most), short enough for a server that has gone without a word."""
LOCK: Final = 1 / 3
"""Of a lease: how long BullMQ waits for a sign of life before it delivers a job again."""
SWEEP_SECONDS: Final = 5.0
LOST_AFTER: Final = 5.0
"""Seconds that a job is due before Redis is asked whether it knows it."""
SWEPT: Final = 500
LATER: Final = 1.0
"""Seconds until a job that could not be looked at is delivered again."""
SOON: Final = 0.1
"""Seconds until a job is delivered again whose row was not free, though it looked due."""
RETRY_MS: Final = 1_000
ANY_NUMBER: Final = 1_000_000
COMPLETED: Final = {"age": 3600, "count": 1000}
"""What BullMQ keeps of jobs that have ended well: it is for people who look at a board; the rows know all."""
_DOWN: Final = (RedisError, OSError, TimeoutError)


def connect(config: JobsConfig) -> Any:
    """A client of `jobs.redis`, made for BullMQ. Connects when it is used."""
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": SOCKET_SECONDS,
        "socket_connect_timeout": 2.0,
    }
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3)
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
        self._redis = connect(config)
        self._queue = Queue(NAME, {"connection": self._redis, "prefix": config.redis_prefix})
        self._puller: QueueWorker | None = None
        self._draining = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._swept = ""
        self.healthy = False

    async def start(self) -> None:
        await self._probe()
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._sweep())]
        if self._worker:
            self._tasks += [
                asyncio.create_task(self._worker.beat()),
                asyncio.create_task(self._pull(self._worker)),
            ]

    async def enqueue(self, jobs: Sequence[Job]) -> None:
        try:
            async with asyncio.timeout(ENQUEUE_SECONDS):
                await self._add(jobs)
        except _DOWN as exc:
            self._log.warning("jobs.not_enqueued", jobs=len(jobs), error=str(exc))

    async def cancel(self, job: Job) -> None:
        with contextlib.suppress(*_DOWN):
            async with asyncio.timeout(ENQUEUE_SECONDS):
                await self._queue.remove(job.id)  # without effect on one that runs: its worker sees the row

    async def drain(self, seconds: float) -> None:
        if self._puller and self._worker and not self._draining.is_set():
            self._draining.set()
            closing = asyncio.create_task(self._puller.close())
            await self._worker.drain(seconds)
            await asyncio.wait({closing}, timeout=ENQUEUE_SECONDS)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._puller and not self._puller.closed:
            await self._puller.close(force=True)
        await self._queue.close()

    async def _add(self, jobs: Sequence[Job]) -> None:
        """Adds what Redis does not know, or believes to have ended."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(self._queue.toKey(job.id), ["timestamp", "finishedOn"])
            known = await pipe.execute()
        for job, (added, finished) in zip(jobs, known, strict=True):
            if finished:
                await self._queue.remove(job.id)
            elif added:
                continue
            delay = max(0, round((job.run_at - self._clock()) * 1000))
            options = {
                "jobId": job.id,
                "priority": job.priority,
                "delay": delay,
                "removeOnComplete": COMPLETED,
                "removeOnFail": {"age": round(self._config.keep_failed_hours * 3600)},
            }
            await self._queue.add(job.route, {}, options)

    async def _pull(self, worker: Worker) -> None:
        """Has BullMQ bring jobs, from when Redis can be reached for the first time."""
        lock = round(self._config.lease * LOCK * 1000)
        options = {
            "connection": connect(self._config),  # its own, since it closes it
            "prefix": self._config.redis_prefix,
            "concurrency": self._config.at_once,
            "lockDuration": lock,
            "stalledInterval": lock // 2,
            "maxStalledCount": ANY_NUMBER,
            "runRetryDelay": RETRY_MS,
            "autorun": False,
        }

        async def process(queued: QueuedJob, token: str) -> str:
            return await self._process(worker, queued, token)

        self._puller = QueueWorker(NAME, process, options)
        self._puller.on("error", lambda error, *_: self._log.debug("jobs.redis", error=str(error)))
        while True:
            try:
                for connection in (self._puller.redisConnection, self._puller.blockingRedisConnection):
                    await connection.getRedisVersion()
                await self._puller.run()
                return
            except _DOWN as exc:
                self._log.warning("jobs.redis", error=str(exc))
                await asyncio.sleep(PROBE_SECONDS)

    async def _process(self, worker: Worker, queued: QueuedJob, token: str) -> str:
        """A delivery of BullMQ's; raises what sets the job aside (DelayedError) or fails it."""
        if not await self._turn(worker):
            await self._later(queued, token, self._clock())
        try:
            job = await self._run(worker, queued)
        except (StoreError, *_DOWN) as exc:
            self._log.debug("jobs.not_claimed", reason=str(exc))
            await self._later(queued, token, self._clock() + LATER)
        if job is None or job.state in ("succeeded", "cancelled"):
            return "gone" if job is None else job.state
        if job.state == "failed":
            raise UnrecoverableError(job.error.message if job.error else job.state)
        await self._later(queued, token, max(job.lease_until or job.run_at, self._clock() + SOON))

    async def _run(self, worker: Worker, queued: QueuedJob) -> Job | None:
        """The job as it is after this delivery, whether or not that had anything to do with it."""
        if queued.attemptsMade > queued.data.get("ended", 0):
            await self._retried_in_redis(queued)
        claimed = await worker.claim(job_id=queued.id)
        if claimed and (after := await worker.run(claimed[0])):
            return after
        return await self._store.read(lambda connection: rows.get(connection, queued.id))

    async def _retried_in_redis(self, queued: QueuedJob) -> None:
        """Whoever presses retry in a bull-board means the job, not only what Redis knows of it.

        Only a job that Redis had among the failed comes again with more ends than were seen; one that is
        delivered twice, because its worker died, comes with as many.
        """
        await queued.updateData({"ended": queued.attemptsMade})
        attempts = self._config.most_attempts
        await self._store.write(
            lambda connection: rows.retry(connection, queued.id, self._clock(), attempts, of=("failed",))
        )

    async def _later(self, queued: QueuedJob, token: str, at: float) -> NoReturn:
        """Has the job delivered again at `at`; where Redis does not hear it, when its lock has run out."""
        with contextlib.suppress(*_DOWN):
            await queued.moveToDelayed(round(at * 1000), token)
        raise DelayedError

    async def _turn(self, worker: Worker) -> bool:
        """Waits until the limit of starts lets one begin; False if that will not be here."""
        while not self._draining.is_set() and (wait := worker.wait()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), wait)
        return not self._draining.is_set()

    async def _watch(self) -> None:
        """Looks whether Redis answers."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        was = self.healthy
        try:
            async with asyncio.timeout(ENQUEUE_SECONDS):
                await self._redis.exists(self._queue.toKey("meta"))
            self.healthy = True
        except _DOWN as exc:
            self.healthy = False
            if was:
                self._log.error("redis.down", reason=str(exc))
        if self.healthy and not was:
            self._log.info("redis.up")
        self._metrics.redis_up = int(self.healthy)

    async def _sweep(self) -> None:
        """Adds again what is due and has been forgotten: page by page, so that a long queue costs little."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                page = await self._store.read(self._overdue)
                if page:
                    await self._add(page)
                self._swept = page[-1].id if len(page) == SWEPT else ""
            except (StoreError, *_DOWN) as exc:
                self._log.debug("jobs.not_swept", reason=str(exc))

    async def _overdue(self, connection: Connection) -> list[Job]:
        return await rows.overdue(connection, self._clock() - LOST_AFTER, self._swept, SWEPT)
