"""What both queues must do: embedded on SQLite and PostgreSQL, BullMQ on one Valkey and a cluster of six."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from gateway.config import JobsConfig
from gateway.errors import StoreConflict
from gateway.prerecorded import queue
from gateway.prerecorded.work import Again, Attempt, Done, Failed, Outcome
from gateway.store import deliveries
from gateway.store.databases import Connection
from gateway.store.job import Job, JobError
from gateway.store.schema import JOBS
from tests.fakes.hosts import Host, HostProcess, Place, done
from tests.fakes.postgres import Postgres
from tests.fakes.stand import eventually
from tests.fakes.valkey import Cluster, Valkey

QUICK = JobsConfig(lease=1.8, backoff_seconds=0.1, starts_per_minute=0)
BROKEN = JobError("DEEPGRAM_ERROR", "Deepgram answered HTTP 503.", 503)

Start = Callable[..., Awaitable[Host]]


@pytest.fixture(params=["sqlite", "postgresql", "valkey", "cluster"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    store, prefix = f"sqlite:///{tmp_path}/gateway.db", f"{{{tmp_path.name}}}"
    match request.param:
        case "postgresql":
            server: Postgres = request.getfixturevalue("postgres")
            return Place(server.database(), QUICK)
        case "valkey":
            one: Valkey = request.getfixturevalue("valkey_single")
            return Place(store, QUICK).change(backend="fleet", redis=(one.url,), redis_prefix=prefix)
        case "cluster":
            many: Cluster = request.getfixturevalue("valkey_cluster")
            return Place(store, QUICK).change(
                backend="fleet", redis=many.urls, redis_cluster=True, redis_prefix=prefix
            )
    return Place(store, QUICK)


@pytest.fixture
async def start(place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts hosts at `place`, and stops them with the test; dead workers are looked for often."""
    monkeypatch.setattr(queue, "WATCH_SECONDS", 0.2)
    asyncio.get_running_loop().set_debug(False)  # with it a cluster's client takes seconds
    hosts: list[Host] = []

    async def one(attempt: Attempt | None = done, regions: int = 1, **settings: object) -> Host:
        here = msgspec.structs.replace(place.change(**settings), regions=regions)
        hosts.append(await Host.start(here, attempt))
        return hosts[-1]

    yield one
    for host in reversed(hosts):
        await host.stop()


async def test_jobs_are_done(start: Start) -> None:
    """Each once, and what belongs to its end is written with it."""
    told: list[str] = []
    host = await start()
    host.ended = lambda _, job: told.append(job.id)
    jobs = await host.submit(40)
    ended = await host.until_ended(jobs)
    assert {(job.state, job.attempts, job.reruns) for job in ended} == {("succeeded", 1, 0)}
    assert bytes(ended[0].result or b"") == b'{"results":{}}'
    assert ended[0].request_id == f"request-of-{jobs[0].id}"
    assert sorted(told) == sorted(job.id for job in jobs)


async def test_two_hosts_share(start: Start) -> None:
    """No job is begun by both."""
    begun: list[tuple[str, str]] = []

    def noting(name: str) -> Attempt:
        async def attempt(job: Job) -> Outcome:
            begun.append((name, job.id))
            await asyncio.sleep(0.25)
            return await done(job)

        return attempt

    first, _second = await start(noting("first")), await start(noting("second"))
    jobs = await first.submit(60)
    await first.until_ended(jobs)
    assert sorted(job_id for _, job_id in begun) == sorted(job.id for job in jobs)
    assert {name for name, _ in begun} == {"first", "second"}


async def test_the_urgent_come_first(start: Start) -> None:
    """By priority, and among equals by age."""
    begun: list[int] = []

    async def attempt(job: Job) -> Outcome:
        begun.append(job.priority)
        await asyncio.sleep(0.05)
        return await done(job)

    host = await start(None)
    for priority in (5, 9, 1, 5, 3):
        await host.submit(priority=priority)
    working = await start(attempt, concurrency=1)
    await eventually(lambda: len(begun) == 5, 10)
    assert begun == [1, 3, 5, 5, 9]
    assert working.worker.free <= 1


async def test_attempts_and_their_waits(start: Start) -> None:
    """What may work later is tried again, each time after twice the wait, as often as is allowed."""
    begun: list[float] = []

    async def attempt(job: Job) -> Outcome:
        begun.append(time.monotonic())
        return Again(BROKEN)

    host = await start(attempt, backoff_seconds=0.3)
    [job] = await host.submit()
    [ended] = await host.until_ended([job])
    assert (ended.state, ended.attempts, ended.error) == ("failed", 3, BROKEN)
    waits = [after - before for before, after in pairwise(begun)]
    assert 0.23 < waits[0] < 2.0  # the upper bounds are for machines that are busy
    assert 0.47 < waits[1] < 2.5


async def test_what_cannot_work_fails_at_once(start: Start) -> None:
    """With the reason (faults.md 69)."""

    async def attempt(job: Job) -> Outcome:
        return Failed(JobError("DEEPGRAM_ERROR", "corrupt or unsupported data", 400))

    host = await start(attempt)
    [job] = await host.submit()
    [ended] = await host.until_ended([job])
    assert (ended.state, ended.attempts) == ("failed", 1)
    assert ended.error == JobError("DEEPGRAM_ERROR", "corrupt or unsupported data", 400)


async def test_regions_are_pools(start: Start) -> None:
    """Each adds its places, and its attempts, also to those of a retry."""
    running: list[int] = []
    most = 0
    full = asyncio.Event()

    async def attempt(job: Job) -> Outcome:
        nonlocal most
        running.append(job.attempts)
        most = max(most, len(running))
        if most == 6:
            full.set()
        await asyncio.wait_for(full.wait(), 10)
        await asyncio.sleep(0.1)
        running.remove(job.attempts)
        return Again(BROKEN)

    pools = {"profile": "enterprise", "concurrency": 2, "attempts": 2}
    host = await start(attempt, regions=3, backoff_seconds=0.02, **pools)
    jobs = await host.submit(9, max_attempts=host.worker.pools.attempts)
    assert [(job.state, job.attempts) for job in await host.until_ended(jobs)] == [("failed", 6)] * 9
    assert most == 6
    assert await host.jobs.retry(jobs[0].id)
    again = await host.until(jobs[0], lambda job: job.state == "failed" and job.attempts > 6)
    assert again.attempts == 12


async def test_dead_letters_are_retried(start: Start) -> None:
    """A failed job gets all its attempts anew; one that succeeded never runs again."""
    works = False

    async def attempt(job: Job) -> Outcome:
        return await done(job) if works else Again(BROKEN)

    host = await start(attempt, backoff_seconds=0.02)
    [job] = await host.submit()
    [failed] = await host.until_ended([job])
    assert (failed.state, failed.attempts) == ("failed", 3)
    assert [one.id for one in await host.jobs.page("p", "failed", None, 10)] == [job.id]
    works = True
    again = await host.jobs.retry(job.id)
    assert again
    assert (again.state, again.max_attempts, again.error) == ("queued", 6, None)
    [ended] = await host.until_ended([job])
    assert (ended.state, ended.attempts) == ("succeeded", 4)
    assert await host.jobs.retry(job.id) is None
    assert await host.get(job) == ended


async def test_waiting_jobs_are_cancelled(start: Start) -> None:
    """And not begun any more."""
    begun: list[str] = []

    async def attempt(job: Job) -> Outcome:
        begun.append(job.id)
        await asyncio.sleep(0.1)
        return await done(job)

    host = await start(attempt, concurrency=1)
    jobs = await host.submit(3)
    await eventually(lambda: begun, 5)
    waiting = next(job for job in reversed(jobs) if job.id not in begun)
    cancelled = await host.jobs.cancel(waiting.id)
    assert cancelled
    assert cancelled.state == "cancelled"
    await host.until_ended(jobs)
    assert waiting.id not in begun
    assert (await host.get(waiting)).state == "cancelled"
    assert await host.jobs.cancel(waiting.id) is None


async def test_running_jobs_are_cancelled(start: Start) -> None:
    """On the host that is asked at once, on another one with its next sign of life."""
    interrupted = asyncio.Event()

    async def attempt(job: Job) -> Outcome:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            interrupted.set()
            raise
        return await done(job)

    working, asked = await start(attempt), await start(None)
    for host in (working, asked):
        interrupted.clear()
        [job] = await working.submit()
        await working.until(job, lambda now: now.state == "running")
        await host.jobs.cancel(job.id)
        await asyncio.wait_for(interrupted.wait(), 2)
        assert (await host.get(job)).state == "cancelled"


async def test_what_has_ended_is_deleted(start: Start) -> None:
    """With all that it left, once; its id is free again. What has not ended stays."""
    host = await start(concurrency=1)
    [job, kept] = await host.submit(2, spooled="audio", callback="https://hooks.example/")
    await host.until_ended([job, kept])
    assert await host.jobs.remove(job.id)
    assert await host.jobs.get(job.id, "p") is None
    assert not await host.jobs.remove(job.id)
    assert host.discarded == [job.id]
    told = await host.store.read(lambda connection: deliveries.page(connection, "p", None, None, 10))
    assert [one.subject for one in told] == [kept.id]
    [again] = await host.submit(id=job.id)
    assert (again.state, again.attempts) == ("queued", 0)
    [ended] = await host.until_ended([again], 4)  # a queue that took it for done would find it after five
    assert ended.attempts == 1
    hold = asyncio.Event()

    async def attempt(job: Job) -> Outcome:
        await hold.wait()
        return await done(job)

    working = await start(attempt)
    await host.queue.drain(0)
    [running] = await working.submit()
    await working.until(running, lambda now: now.state == "running")
    assert not await working.jobs.remove(running.id)
    hold.set()
    await working.until_ended([running])


async def test_a_late_attempt_changes_nothing(start: Start) -> None:
    """Once its lease was given to another, the first one's result is not wanted any more (faults.md 66)."""
    attempts: list[int] = []
    hold = asyncio.Event()

    async def attempt(job: Job) -> Outcome:
        attempts.append(job.attempts)
        if job.attempts == 1:
            await hold.wait()
        return Done(msgspec.Raw(b"%d" % job.attempts), "")

    hosts = [await start(attempt, lease=30.0) for _ in range(2)]
    host = hosts[0]
    [job] = await host.submit()
    await host.until(job, lambda now: now.state == "running")

    async def expire(connection: Connection) -> None:
        await connection.execute(update(JOBS).values(lease_until=time.time() - 1))

    await host.store.write(expire)
    await eventually(lambda: any(one.metrics.job_attempts["lost"] for one in hosts), 5)
    hold.set()
    [ended] = await host.until_ended([job])
    await eventually(lambda: sum(one.metrics.job_attempts["fenced"] for one in hosts) == 1)
    assert (ended.state, ended.attempts, ended.reruns, bytes(ended.result or b"")) == (
        "succeeded",
        2,
        1,
        b"2",
    )
    assert attempts == [1, 2]


async def test_ids_are_taken_once(start: Start) -> None:
    """The same request again is the same job; another one under its id is refused with all beside it."""
    host = await start()
    [job] = await host.submit(url="https://example.com/a.wav")
    await host.until_ended([job])
    [again] = await host.jobs.submit([job])
    assert (again.id, again.state) == (job.id, "succeeded")
    other = msgspec.structs.replace(job, url="https://example.com/b.wav")
    fresh = msgspec.structs.replace(job, id="fresh")
    with pytest.raises(StoreConflict, match=job.id):
        await host.jobs.submit([fresh, other])
    assert await host.jobs.get("fresh", "p") is None


async def test_drain_puts_back_what_does_not_end(start: Start) -> None:
    """Another host takes it up at once, and no attempt is used up."""
    begun = asyncio.Event()

    async def endless(job: Job) -> Outcome:
        begun.set()
        await asyncio.sleep(30)
        return await done(job)

    host = await start(endless)
    [job] = await host.submit(max_attempts=1)
    await asyncio.wait_for(begun.wait(), 5)
    asked = await start(None)
    await host.queue.drain(0.1)
    back = await asked.get(job)
    assert (back.state, back.attempts, back.max_attempts, back.reruns) == ("queued", 1, 2, 1)
    other = await start()
    [ended] = await other.until_ended([job])
    assert (ended.state, ended.attempts) == ("succeeded", 2)


async def test_drain_waits(start: Start) -> None:
    """Jobs that end in time do."""

    async def attempt(job: Job) -> Outcome:
        await asyncio.sleep(0.3)
        return await done(job)

    host = await start(attempt)
    [job] = await host.submit()
    await host.until(job, lambda now: now.state == "running")
    await host.queue.drain(5)
    assert (await host.get(job)).state == "succeeded"


async def test_starts_are_limited(start: Start) -> None:
    """So many in a minute and no more; the others keep waiting."""
    host = await start(starts_per_minute=3)
    jobs = await host.submit(6)
    await eventually(lambda: host.metrics.jobs_ended["succeeded"] == 3, 5)
    await asyncio.sleep(0.3)
    states = [(await host.get(job)).state for job in jobs]
    assert sorted(states) == ["queued"] * 3 + ["succeeded"] * 3


async def test_a_killed_worker(place: Place, start: Start, tmp_path: Path) -> None:
    """kill -9 in mid-job: another runs the job, which ends once; reruns are counted (faults.md 67, 70)."""
    journal = tmp_path / "journal"
    doomed = await HostProcess.start(place, journal, 30.0)
    asked = await start(None)
    [job] = await asked.submit()
    await eventually(lambda: doomed.attempts, 15)
    await doomed.kill()
    host = await start()
    [ended] = await host.until_ended([job])
    assert (ended.state, ended.attempts, ended.reruns) == ("succeeded", 2, 1)
    assert doomed.attempts == [(job.id, 1)]
