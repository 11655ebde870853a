"""Hosts that run jobs: in this process, or as processes of their own that can be killed."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import structlog
import uvloop

from gateway.config import CallbackConfig, JobsConfig, Secret
from gateway.metrics import Metrics
from gateway.prerecorded import notify
from gateway.prerecorded.embedded import EmbeddedQueue
from gateway.prerecorded.fleet import FleetQueue
from gateway.prerecorded.notify import Notifier
from gateway.prerecorded.pools import Pools
from gateway.prerecorded.queue import Changes, JobQueue, Jobs
from gateway.prerecorded.targets import Targets
from gateway.prerecorded.work import Attempt, Done, Outcome
from gateway.prerecorded.worker import Worker
from gateway.store import deliveries
from gateway.store.databases import Connection, location
from gateway.store.job import Job
from gateway.store.store import Store
from tests.fakes.stand import eventually

ROOT: Final = Path(__file__).resolve().parents[2]
SECRET: Final = Secret(f"whsec_{base64.b64encode(bytes(32)).decode()}")
FORKS: Final = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])  # a process in milliseconds; from nothing it takes seconds


class Place(msgspec.Struct, frozen=True):
    """Where jobs are: a database, the settings of their queue, the port to which callbacks may go, and how
    many regions Deepgram has."""

    store: str
    jobs: JobsConfig
    receiver: int = 0
    regions: int = 1

    def change(self, **settings: Any) -> Place:
        return msgspec.structs.replace(self, jobs=msgspec.structs.replace(self.jobs, **settings))


async def done(job: Job) -> Outcome:
    """The shortest work there is."""
    return Done(msgspec.Raw(b'{"results":{}}'), f"request-of-{job.id}")


class Host:
    """A store, a worker and a queue; `ended` is called in the transactions that end jobs."""

    def __init__(self, store: Store, place: Place, attempt: Attempt | None) -> None:
        self.metrics = Metrics([], "0")
        self.store = store
        self.discarded: list[str] = []
        self.ended: Callable[[Connection, Job], None] = lambda _connection, _job: None
        self._changes, log, clock = Changes(), structlog.get_logger(), time.time
        self.worker = Worker(
            store,
            attempt or done,
            place.jobs,
            pools=Pools.of(place.jobs, place.regions),
            name=uuid.uuid4().hex,
            metrics=self.metrics,
            log=log,
            clock=clock,
            random=random.random,
            ended=self._ended,
            announce=self._announce,
        )
        self.notifier = self._told(place.receiver) if attempt and place.receiver else None
        mine = self.worker if attempt else None
        queue: JobQueue
        if place.jobs.backend == "fleet":
            queue = FleetQueue(store, mine, place.jobs, metrics=self.metrics, log=log, clock=clock)
        else:
            queue = EmbeddedQueue(store, mine, log=log, clock=clock)
        self.queue = queue
        self.jobs = Jobs(
            store,
            queue,
            self.worker,
            self._changes,
            place.jobs,
            metrics=self.metrics,
            log=log,
            clock=clock,
            ended=self._ended,
            discard=self._discard,
        )
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, place: Place, attempt: Attempt | None) -> Self:
        """Without an `attempt` it only takes jobs in."""
        url = location(place.store, {})
        assert url
        store = Store(url, metrics=Metrics([], "0"), migrate="always")
        await store.start()
        host = cls(store, place, attempt)
        await host.queue.start()
        await eventually(lambda: host.queue.healthy, 20)  # a busy machine may be late for its first look
        if host.notifier:
            host.notifier.start()
        host._watching = asyncio.create_task(host.jobs.watch())
        return host

    async def stop(self, seconds: float = 0.0) -> None:
        """As SIGTERM does it."""
        await self.queue.drain(seconds)
        if self._watching:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        await self.queue.close()
        if self.notifier:
            await self.notifier.close()
        await self.store.close()

    async def submit(self, count: int = 1, **fields: Any) -> list[Job]:
        now = time.time()
        made = [
            msgspec.structs.replace(
                Job(id=uuid.uuid4().hex, principal="p", run_at=now, created_at=now, max_attempts=3), **fields
            )
            for _ in range(count)
        ]
        return await self.jobs.submit(made)

    async def get(self, job: Job) -> Job:
        found = await self.jobs.get(job.id, "p")
        assert found
        return found

    async def until(self, job: Job, wanted: Callable[[Job], bool], seconds: float = 20.0) -> Job:
        """The job once it is as `wanted`."""
        end = time.monotonic() + seconds
        while not wanted(found := await self.get(job)):
            assert time.monotonic() < end, found
            await asyncio.sleep(0.02)
        return found

    async def until_ended(self, jobs: list[Job], seconds: float = 30.0) -> list[Job]:
        return [await self.until(job, lambda now: now.ended_at is not None, seconds) for job in jobs]

    async def _ended(self, connection: Connection, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.ended(connection, job)
            if job.callback:
                body = msgspec.json.encode({"id": job.id})
                new_id, now = uuid.uuid4().hex, time.time()
                told = deliveries.new(new_id, job.principal, job.callback, "job", body, now, job.id)
                await deliveries.insert(connection, told)

    def _discard(self, job: Job) -> asyncio.Task[None]:
        self.discarded.append(job.id)
        return asyncio.create_task(asyncio.sleep(0))

    def _announce(self, job: Job) -> None:
        self._changes.announce(job)
        if self.notifier and job.ended_at:
            self.notifier.wake()

    def _told(self, port: int) -> Notifier:
        config = CallbackConfig(
            allow_http=True,
            ports=(port,),
            allow=("127.0.0.1",),
            timeout=1.0,
            per_host=32,
            backoff_seconds=0.2,
        )
        return Notifier(
            config,
            self.store,
            Targets(config, tuple),
            [SECRET],
            metrics=self.metrics,
            random=random.random,
            clock=time.time,
            new_id=lambda: uuid.uuid4().hex,
        )


class HostProcess:
    """A host in a process of its own; each attempt is a line of `journal`: the job's id, and its attempt."""

    def __init__(self, process: multiprocessing.process.BaseProcess, journal: Path) -> None:
        self._process = process
        self._journal = journal

    @classmethod
    async def start(cls, place: Place, journal: Path, seconds: float) -> Self:
        """Its attempts take so many `seconds`."""
        told = msgspec.json.encode(place), str(journal), seconds
        process = FORKS.Process(target=_run, args=told, daemon=True)
        await asyncio.to_thread(process.start)
        return cls(process, journal)

    @property
    def attempts(self) -> list[tuple[str, int]]:
        """What was begun, by all processes with this journal."""
        if not self._journal.exists():
            return []
        lines = (json.loads(line) for line in self._journal.read_text().splitlines())
        return [(job_id, attempt) for job_id, attempt in lines]

    async def kill(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.join)


def _run(place: bytes, journal: str, seconds: float) -> None:
    vars(notify)["LEASE_SLACK"] = 0.0  # a minute is too long for a test
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    uvloop.run(_work(msgspec.json.decode(place, type=Place), journal, seconds))


async def _work(place: Place, path: str, seconds: float) -> None:
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def attempt(job: Job) -> Outcome:
        os.write(journal, msgspec.json.encode([job.id, job.attempts]) + b"\n")
        await asyncio.sleep(seconds)
        return await done(job)

    await Host.start(place, attempt)
    await asyncio.Event().wait()  # it is killed
