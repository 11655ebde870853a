"""Jobs put together, as settings say: for `gateway serve`, and for `gateway worker`, which does only that."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.app.recordings import Recordings
from gateway.auth import upstream_authorization
from gateway.errors import ConfigError, StoreError
from gateway.live.exchange import Exchange
from gateway.prerecorded import keep
from gateway.prerecorded.detours import Detours
from gateway.prerecorded.embedded import EmbeddedQueue
from gateway.prerecorded.notify import Notifier
from gateway.prerecorded.pools import Pools
from gateway.prerecorded.queue import Changes, JobQueue, Jobs
from gateway.prerecorded.receiver import Receiver
from gateway.prerecorded.spool import SpoolDown
from gateway.prerecorded.work import Work
from gateway.prerecorded.worker import Worker
from gateway.sidecar.jobs import document
from gateway.store import deliveries
from gateway.store import jobs as rows
from gateway.store.databases import Connection
from gateway.store.job import Job
from gateway.store.store import Store
from gateway.store.transcripts import Transcript

SWEEP_SECONDS: Final = 3600.0


class JobRoom:
    """The jobs of this process, from `start` to `close`."""

    def __init__(
        self,
        exchange: Exchange,
        store: Store,
        recordings: Recordings,
        notifier: Notifier,
        receiver: Receiver,
        *,
        work: bool,
    ) -> None:
        """`work`: whether jobs are run here. Raises ConfigError for a backend that is not installed."""
        self._notifier = notifier
        self._stores = exchange.config.store.prerecorded
        self._spool = recordings.spool
        self._changes = Changes()
        self._deleting: set[asyncio.Task[None]] = set()
        self._store = store
        self._log = exchange.log
        self._clock = exchange.clock
        self._tasks: list[asyncio.Task[None]] = []
        worker = self._worker(exchange, store, recordings, receiver)
        self.jobs = Jobs(
            store,
            _queue(exchange, store, worker if work else None),
            worker,
            self._changes,
            exchange.config.jobs,
            metrics=exchange.metrics,
            log=exchange.log,
            clock=exchange.clock,
            ended=self._ended,
            discard=self._discard,
        )

    def _worker(self, exchange: Exchange, store: Store, recordings: Recordings, receiver: Receiver) -> Worker:
        config, spool, transcriber = exchange.config, recordings.spool, recordings.transcriber
        authorization = upstream_authorization(config.auth.upstream, None, exchange.api_key)
        headers = [("authorization", authorization)] if authorization else []
        pools = Pools.of(config.jobs, len(config.deepgram.regions))
        detours = Detours(transcriber, spool, store, receiver, config, headers=headers, pools=pools)
        doing = Work(
            transcriber,
            spool,
            headers=headers,
            timeout=config.jobs.attempt_timeout,
            pools=pools,
            too_long=detours.too_long,
            detour=detours.attempt,
        )
        return Worker(
            store,
            doing.attempt,
            config.jobs,
            pools=pools,
            name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            metrics=exchange.metrics,
            log=exchange.log,
            clock=exchange.clock,
            random=exchange.random,
            ended=self._ended,
            announce=self._announce,
        )

    async def start(self) -> None:
        await self.jobs.queue.start()
        self._tasks = [
            asyncio.create_task(self.jobs.watch(), name="job watch"),
            asyncio.create_task(self._sweep(), name="job files"),
        ]

    async def drain(self, seconds: float) -> None:
        """Lets running jobs end for that long; what does not is put back for others."""
        await self.jobs.queue.drain(seconds)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.jobs.queue.close()
        if self._deleting:
            await asyncio.wait(self._deleting)

    async def _sweep(self) -> None:
        """Deletes files that a crash left between an upload and its row, at the start and every hour."""
        while True:
            try:
                if gone := await self._spool.sweep(self._needed, self._clock()):
                    self._log.info("spool.swept", files=gone)
            except (StoreError, SpoolDown, OSError) as exc:
                self._log.warning("spool.not_swept", reason=str(exc))
            except Exception:
                self._log.exception("jobs.defect")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _needed(self, names: list[str]) -> set[str]:
        return await self._store.read(lambda connection: rows.needed(connection, names))

    async def _ended(self, connection: Connection, jobs: Sequence[Job]) -> None:
        """In the transaction that ends jobs: transcripts, seconds, and the callbacks that tell of it."""
        if made := list(filter(None, map(self._made, jobs))):
            await keep.save(connection, made)
        for job in jobs:
            if job.callback:
                told, event = msgspec.json.encode(document(job)), f"job.{job.state}"
                prepared = self._notifier.prepare(job.principal, job.callback, event, told, job.id)
                await deliveries.insert(connection, prepared)

    def _made(self, job: Job) -> tuple[Transcript, bool] | None:
        """A job's transcript, and whether its words are to be stored; None where there is none."""
        if job.state != "succeeded" or job.result is None:
            return None
        assert job.ended_at is not None
        try:
            made = keep.transcript(
                job.id,
                job.principal,
                "callback" if job.route == "callback" else "async",
                bytes(job.result),
                created_at=job.created_at,
                ended_at=job.ended_at,
                request_id=job.request_id,
                query=job.query,
                metadata=None if job.metadata is None else bytes(job.metadata),
            )
        except msgspec.DecodeError:
            return None  # whatever Deepgram answered, it is the job's result
        return made, job.stored and self._stores

    def _announce(self, job: Job) -> None:
        self._changes.announce(job)
        if job.ended_at is not None:
            self._notifier.wake()
        if job.state == "succeeded" and job.spooled:
            self._discard(job)

    def _discard(self, job: Job) -> asyncio.Task[None]:
        """Deletes the audio of a job that will not run again; one that failed may."""
        task = asyncio.create_task(self._delete(job.spooled))
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)
        return task

    async def _delete(self, name: str | None) -> None:
        try:
            if name:
                await self._spool.delete(name)
        except SpoolDown as exc:  # what is left lying is swept
            self._log.warning("spool.not_deleted", reason=str(exc))


def _queue(exchange: Exchange, store: Store, worker: Worker | None) -> JobQueue:
    config, log, clock = exchange.config.jobs, exchange.log, exchange.clock
    if config.backend == "embedded":
        return EmbeddedQueue(store, worker, log=log, clock=clock)
    try:
        from gateway.prerecorded.fleet import FleetQueue
    except ModuleNotFoundError:
        raise ConfigError(
            "jobs.backend: 'fleet' needs bullmq; in Gateway's source: pip install '.[fleet]'"
        ) from None
    return FleetQueue(store, worker, config, metrics=exchange.metrics, log=log, clock=clock)
