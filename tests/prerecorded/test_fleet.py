"""What is BullMQ's own: what Redis forgets, a board's retry, servers that go away."""

from __future__ import annotations

import asyncio
import socket
import time
from functools import partial
from pathlib import Path

import pytest
from bullmq import Job as QueuedJob

from gateway.config import JobsConfig
from gateway.errors import StoreError
from gateway.metrics import Metrics
from gateway.prerecorded import fleet
from gateway.prerecorded.fleet import FleetQueue
from gateway.prerecorded.work import Failed, Outcome
from gateway.store.databases import location
from gateway.store.job import Job, JobError
from gateway.store.store import Store
from tests.fakes import valkey
from tests.fakes.hosts import Host, Place, done
from tests.fakes.stand import eventually
from tests.fakes.valkey import Cluster, Valkey

QUICK = JobsConfig(backend="fleet", lease=1.8, backoff_seconds=0.1, starts_per_minute=0)


@pytest.fixture(autouse=True)
async def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep comes soon; asyncio's debug mode makes a cluster's client slow."""
    asyncio.get_running_loop().set_debug(False)
    monkeypatch.setattr(fleet, "SWEEP_SECONDS", 0.3)
    monkeypatch.setattr(fleet, "LOST_AFTER", 0.5)


def at(servers: Valkey | Cluster, folder: Path) -> Place:
    urls = servers.urls if isinstance(servers, Cluster) else (servers.url,)
    place = Place(f"sqlite:///{folder}/gateway.db", QUICK)
    return place.change(
        redis=urls, redis_cluster=isinstance(servers, Cluster), redis_prefix=f"{{{folder.name}}}"
    )


async def test_what_redis_forgot_is_added_again(valkey_single: Valkey, tmp_path: Path) -> None:
    """All of a queue, as after a failover that lost it (faults.md 63)."""
    place = at(valkey_single, tmp_path)
    taking = await Host.start(place, None)
    jobs = await taking.submit(5)
    with valkey_single.client() as client:
        assert client.delete(*client.keys(f"{place.jobs.redis_prefix}*"))
    working = await Host.start(place, done)
    ended = await working.until_ended(jobs)
    assert {job.state for job in ended} == {"succeeded"}
    assert taking.metrics.jobs_missing + working.metrics.jobs_missing >= 5
    await working.stop()
    await taking.stop()


@pytest.mark.parametrize("many", [False, True])
async def test_all_at_once(request: pytest.FixtureRequest, tmp_path: Path, many: bool) -> None:
    """However many hand jobs in, and however many end, at one moment: none has to be swept up."""
    servers = request.getfixturevalue("valkey_cluster" if many else "valkey_single")
    host = await Host.start(at(servers, tmp_path).change(concurrency=200), done)
    jobs = [job for made in await asyncio.gather(*(host.submit() for _ in range(200))) for job in made]
    await host.until_ended(jobs)
    assert host.metrics.redis_errors["failed"] == 0
    await host.stop()


async def test_names_that_bullmq_needs(valkey_single: Valkey, tmp_path: Path) -> None:
    """A caller may choose any id: none stops the queue."""
    host = await Host.start(at(valkey_single, tmp_path), done)
    assert isinstance(host.queue, FleetQueue)
    for name in filter(None, host.queue._queue.keys):
        [job] = await host.submit(id=name)
        [ended] = await host.until_ended([job])
        assert ended.state == "succeeded"
    await host.stop()


async def test_a_boards_retry_runs_the_job(valkey_single: Valkey, tmp_path: Path) -> None:
    """Once for each time that it is pressed; a second delivery of the same is not one."""
    attempts: list[int] = []

    async def attempt(job: Job) -> Outcome:
        attempts.append(job.attempts)
        return Failed(JobError("DEEPGRAM_ERROR", "no", 400))

    host = await Host.start(at(valkey_single, tmp_path), attempt)
    assert isinstance(host.queue, FleetQueue)
    queue = host.queue._queue
    [job] = await host.submit()
    for pressed in range(3):
        await host.until(job, partial(_failed, pressed + 1))
        await _in_state(host.queue, job, "failed")
        assert attempts == list(range(1, pressed + 2))
        queued = await QueuedJob.fromId(queue, job.id)
        await queued.retry("failed")
    await host.until(job, partial(_failed, 4))
    await host.stop()


async def test_succeeded_is_for_ever(valkey_single: Valkey, tmp_path: Path) -> None:
    """Whatever Redis is told to do with such a job."""
    host = await Host.start(at(valkey_single, tmp_path), done)
    assert isinstance(host.queue, FleetQueue)
    [job] = await host.submit()
    [ended] = await host.until_ended([job])
    await _in_state(host.queue, job, "completed")
    queued = await QueuedJob.fromId(host.queue._queue, job.id)
    await queued.retry("completed")
    await _in_state(host.queue, job, "completed")
    assert await host.get(job) == ended
    await host.stop()


async def test_places_that_are_free_cost_nothing(valkey_single: Valkey, tmp_path: Path) -> None:
    """Jobs that come one after the other take a handful of scripts each, however many might run at once."""
    host = await Host.start(at(valkey_single, tmp_path).change(concurrency=50), done)
    with valkey_single.client() as client:
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        for _ in range(20):
            await host.until_ended(await host.submit())
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert calls / 20 < 10
    await host.stop()


async def test_a_long_job_is_not_delivered_again(valkey_single: Valkey, tmp_path: Path) -> None:
    """Its lock is renewed while it runs: Redis does not take its worker for dead."""

    async def attempt(job: Job) -> Outcome:
        await asyncio.sleep(2.5)
        return await done(job)

    host = await Host.start(at(valkey_single, tmp_path).change(lease=4.5), attempt)
    assert isinstance(host.queue, FleetQueue)
    [job] = await host.submit()
    await host.until_ended([job])
    queued = await QueuedJob.fromId(host.queue._queue, job.id)
    assert (queued.attemptsStarted, queued.stalledCounter) == (1, 0)
    await host.stop()


async def test_locks_are_kept_whatever_fails(
    valkey_single: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sign of life that comes to nothing, by an error of the client's own, is not the last."""

    async def attempt(job: Job) -> Outcome:
        await asyncio.sleep(2.5)
        return await done(job)

    host = await Host.start(at(valkey_single, tmp_path).change(lease=4.5), attempt)
    assert isinstance(host.queue, FleetQueue)
    assert host.queue._puller
    backend = host.queue._puller._bullmq.backend
    extend, mistakes = backend.extendLocks, [AttributeError("no node")]

    async def stumbling(*arguments: object) -> object:
        if mistakes:
            raise mistakes.pop()
        return await extend(*arguments)

    monkeypatch.setattr(backend, "extendLocks", stumbling)
    [job] = await host.submit()
    await host.until_ended([job])
    assert not mistakes
    await _in_state(host.queue, await QueuedJob.fromId(host.queue._queue, job.id), "completed")
    await host.stop()


async def test_a_queue_that_others_write_to_goes_on(valkey_single: Valkey, tmp_path: Path) -> None:
    """What no row stands behind is put away, and what cannot be read does not stop the rest."""
    host = await Host.start(at(valkey_single, tmp_path), done)
    assert isinstance(host.queue, FleetQueue)
    queue = host.queue._queue
    foreign = await queue.add("async", {}, {"jobId": "of-nobody", "removeOnComplete": False})
    await queue.add("async", ["no", "object"], {"jobId": "unreadable", "attempts": 1})
    [job] = await host.submit()
    [ended] = await host.until_ended([job])
    assert ended.state == "succeeded"
    await _in_state(host.queue, foreign, "completed")
    await host.stop()


async def test_without_redis_nothing_is_taken(tmp_path: Path) -> None:
    """And what was taken before is done when it is back: it keeps what it has acknowledged."""
    with valkey.single() as server:
        place = at(server, tmp_path)
        taking = await Host.start(place, None)
        jobs = await taking.submit(20)
        server.kill()
        await eventually(lambda: not taking.queue.healthy)
        assert taking.metrics.redis_up == 0
        with pytest.raises(StoreError):
            await taking.submit()
        server.start()
        await eventually(lambda: taking.queue.healthy)
        working = await Host.start(place, done)
        ended = await working.until_ended(jobs)
        assert {job.state for job in ended} == {"succeeded"}
        await working.stop()
        await taking.stop()


async def test_a_restart_in_mid_work(tmp_path: Path) -> None:
    """Every job ends once."""

    async def attempt(job: Job) -> Outcome:
        await asyncio.sleep(0.05)
        return await done(job)

    with valkey.single() as server:
        host = await Host.start(at(server, tmp_path).change(concurrency=4), attempt)
        jobs = await host.submit(60)
        await eventually(lambda: host.metrics.jobs_ended["succeeded"] > 10)
        server.kill()
        await asyncio.sleep(0.5)
        server.start()
        ended = await host.until_ended(jobs)
        assert {job.state for job in ended} == {"succeeded"}
        await eventually(lambda: host.metrics.jobs_ended["succeeded"] == 60)  # counted after the row
        await host.stop()


async def test_a_master_dies_in_mid_work(tmp_path: Path) -> None:
    """Its replica goes on; every job ends once."""

    async def attempt(job: Job) -> Outcome:
        await asyncio.sleep(0.05)
        return await done(job)

    with valkey.cluster() as servers:
        place = at(servers, tmp_path).change(concurrency=4)
        host = await Host.start(place, attempt)
        jobs = await host.submit(80)
        await eventually(lambda: host.metrics.jobs_ended["succeeded"] > 10)
        servers.master_of(f"{place.jobs.redis_prefix}:x").kill()
        killed = time.monotonic()
        ended = await host.until_ended(jobs)
        assert {job.state for job in ended} == {"succeeded"}
        assert time.monotonic() - killed < 20
        await eventually(lambda: host.metrics.jobs_ended["succeeded"] == 80)  # counted after the row
        await host.stop()


async def test_a_redis_that_hangs(tmp_path: Path) -> None:
    """It holds up nobody for long, and then nothing more is taken (faults.md 62); what was, is done after."""
    with valkey.single() as server:
        host = await Host.start(at(server, tmp_path), done)
        with server.hanging():
            async with asyncio.timeout(fleet.ENQUEUE_SECONDS + 1):
                jobs = await host.submit()
            assert host.metrics.redis_errors["timeout"]
            await eventually(lambda: not host.queue.healthy)
            with pytest.raises(StoreError):
                await host.submit()
        await eventually(lambda: host.queue.healthy)
        [ended] = await host.until_ended(jobs)
        assert ended.state == "succeeded"
        await host.stop()


async def test_replies_are_their_askers(tmp_path: Path) -> None:
    """Whoever gives up asking leaves no reply to the next one on its connection (CVE-2023-28858)."""
    with valkey.single() as server:
        redis = fleet.connect(at(server, tmp_path).jobs, fleet.COMMAND_SECONDS)
        with server.hanging():
            asking = [asyncio.create_task(redis.echo(f"given up {number}")) for number in range(50)]
            await asyncio.sleep(0.1)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
        wanted = [f"{number}" for number in range(200)]
        assert await asyncio.gather(*map(redis.echo, wanted)) == wanted
        await redis.aclose()


@pytest.mark.filterwarnings("ignore:IMPORTANT! Eviction policy")  # bullmq's own, which no log shows
@pytest.mark.parametrize("many", [False, True])
async def test_a_redis_that_would_throw_jobs_away(
    request: pytest.FixtureRequest, tmp_path: Path, many: bool
) -> None:
    """Is told of, also if it is one of many; jobs are taken, for their rows are safe (faults.md 65)."""
    servers: Valkey | Cluster = request.getfixturevalue("valkey_cluster" if many else "valkey_single")
    one = servers.nodes[0] if isinstance(servers, Cluster) else servers
    with one.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            host = await Host.start(at(servers, tmp_path), done)
            await eventually(lambda: not host.metrics.redis_policy_ok)
            assert (await host.until_ended(await host.submit()))[0].state == "succeeded"
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    await eventually(lambda: host.metrics.redis_policy_ok == 1)
    await host.stop()


async def test_a_redis_without_memory(tmp_path: Path) -> None:
    """It answers, but takes nothing: nor do we."""
    with valkey.single() as server:
        host = await Host.start(at(server, tmp_path), done)
        with server.client() as client:
            client.config_set("maxmemory", 1)
            await eventually(lambda: not host.queue.healthy)
            with pytest.raises(StoreError):
                await host.submit()
            assert host.metrics.redis_errors["failed"]
            client.config_set("maxmemory", 0)
        await eventually(lambda: host.queue.healthy)
        await host.stop()


async def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    """Keeps nothing from starting, and what looks after the queue goes on looking (faults.md 61, 64)."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}"
        place = Place(f"sqlite:///{tmp_path}/gateway.db", QUICK)
        where = location(place.store, {})
        assert where
        store = Store(where, metrics=Metrics([], "0"), migrate="always")
        await store.start()
        host = Host(store, place.change(redis=(url,), redis_cluster=True, redis_prefix="{none}"), None)
        assert isinstance(host.queue, FleetQueue)
        await host.queue.start()
        assert not host.queue.healthy
        with pytest.raises(StoreError):
            await host.submit()
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in host.queue._tasks)
        await host.stop()


def _failed(attempts: int, job: Job) -> bool:
    return (job.state, job.attempts) == ("failed", attempts)


async def _in_state(queue: FleetQueue, job: Job, wanted: str) -> None:
    end = time.monotonic() + 5
    while (found := await queue._queue.getJobState(job.id)) != wanted:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.02)
