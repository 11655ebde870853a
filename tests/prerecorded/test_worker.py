"""Limits and mishaps of a worker; how jobs end by it is in test_queue_conformance.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from gateway.config import JobsConfig
from gateway.errors import StoreError
from gateway.prerecorded import worker as module
from gateway.prerecorded.work import Done, Outcome
from gateway.prerecorded.worker import Starts
from gateway.store.databases import Connection
from gateway.store.job import Job
from gateway.store.schema import JOBS
from tests.fakes.hosts import Host, Place, done
from tests.fakes.stand import eventually


def test_starts_in_a_sliding_window() -> None:
    """Two in any minute: the third may go a minute after the first."""
    starts = Starts(2)
    starts.take(0.0, 1)
    starts.take(30.0, 1)
    assert (starts.free(59.0), starts.wait(59.0)) == (0, 1.0)
    assert (starts.free(60.0), starts.wait(60.0)) == (1, 0.0)
    starts.take(60.0, 1)
    assert starts.wait(61.0) == 29.0


def test_starts_are_given_back() -> None:
    """What was reserved and not used may start later."""
    starts = Starts(3)
    starts.take(0.0, 3)
    assert starts.free(1.0) == 0
    starts.give_back(2)
    assert starts.free(1.0) == 2


def test_no_limit() -> None:
    """0 is none."""
    starts = Starts(0)
    starts.take(0.0, 1000)
    assert starts.free(0.0) > 1000
    assert starts.wait(0.0) == 0.0


async def test_an_end_waits_for_the_store(tmp_path: Path) -> None:
    """A result is not lost because the database is away for a moment."""
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig()), None)
    refusals = iter([StoreError("the store is down")])

    def refuse(_connection: Connection, _job: Job) -> None:
        for refusal in refusals:
            raise refusal

    host.ended = refuse
    [job] = await host.submit()
    [claimed] = await host.worker.claim()
    after = await host.worker.run(claimed)
    assert after
    assert (await host.get(job)).state == after.state == "succeeded"
    await host.stop()


async def test_an_end_that_breaks(tmp_path: Path) -> None:
    """What fails in an end, and is not the store's, fails the job after some tries; it is not run again."""
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig()), None)

    def broken(_connection: Connection, job: Job) -> None:
        if job.state == "succeeded":
            raise ValueError("no text")

    host.ended = broken
    await host.submit()
    [claimed] = await host.worker.claim()
    after = await host.worker.run(claimed)
    assert after
    assert (after.state, after.attempts, after.error and after.error.code) == ("failed", 1, "NOT_STORED")
    await host.stop()


async def test_a_sign_of_life_while_an_end_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is no longer this worker's to renew, since it has just ended it: that is told all the same."""
    place = Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig(lease=0.3))
    host = await Host.start(place, None)
    beating = asyncio.create_task(host.worker.beat())
    write_jointly = host.store.write_jointly

    async def slowly(*arguments: Any) -> Any:
        written = await write_jointly(*arguments)
        await asyncio.sleep(0.5)  # some signs of life
        return written

    monkeypatch.setattr(host.store, "write_jointly", slowly)
    await host.submit()
    [claimed] = await host.worker.claim()
    assert await host.worker.run(claimed)
    assert host.metrics.jobs_ended["succeeded"] == 1
    beating.cancel()
    await host.stop()


async def test_a_drain_while_the_store_is_down(tmp_path: Path) -> None:
    """Ends all the same: what cannot be written is left to who finds the lease over."""
    began = asyncio.Event()

    async def attempt(job: Job) -> Outcome:
        began.set()
        await asyncio.Event().wait()
        return await done(job)

    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig(lease=30.0)), attempt)
    [job] = await host.submit()
    await began.wait()
    host.store.healthy = False
    async with asyncio.timeout(10):
        await host.queue.drain(0.05)
    host.store.healthy = True
    assert (await host.get(job)).state == "running"
    await host.stop()


async def test_a_drain_while_the_store_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not wait for it for ever."""
    monkeypatch.setattr(module, "PUT_BACK_SECONDS", 0.1)
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig(lease=30.0)), None)
    await host.submit()
    [claimed] = await host.worker.claim()
    over = asyncio.Event()
    write = host.store.write_jointly

    async def hang(*arguments: Any) -> Any:
        await over.wait()
        return await write(*arguments)

    monkeypatch.setattr(host.store, "write_jointly", hang)
    running = host.worker.run(claimed)
    async with asyncio.timeout(10):
        await host.worker.drain(0.05)
    assert not running.done()
    over.set()
    await running
    await host.stop()


async def test_a_drain_while_an_end_waits_for_the_store(tmp_path: Path) -> None:
    """The same, where the attempt was over before."""
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig(lease=30.0)), None)
    [job] = await host.submit()
    [claimed] = await host.worker.claim()
    host.store.healthy = False
    running = host.worker.run(claimed)
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await host.worker.drain(0.05)
    assert running.done()
    host.store.healthy = True
    assert (await host.get(job)).state == "running"
    await host.stop()


async def test_what_runs_here_is_not_lost(tmp_path: Path) -> None:
    """Though its lease ran out, as it does while the store is down."""
    over = asyncio.Event()

    async def attempt(job: Job) -> Outcome:
        await over.wait()
        return await done(job)

    place = Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig(lease=30.0))
    host = await Host.start(place, attempt)
    [job] = await host.submit()
    await host.until(job, lambda now: now.state == "running")

    async def expire(connection: Connection) -> None:
        await connection.execute(update(JOBS).values(lease_until=1.0))

    await host.store.write(expire)
    assert await host.worker.reap() == []
    over.set()
    [ended] = await host.until_ended([job])
    assert (ended.state, ended.attempts) == ("succeeded", 1)
    await host.stop()


async def test_an_id_that_is_used_again(tmp_path: Path) -> None:
    """What still runs of a job that was deleted elsewhere does not end the next one of its id."""
    may_end = {name: asyncio.Event() for name in ("old", "new")}

    async def attempt(job: Job) -> Outcome:
        await may_end[job.query].wait()
        return Done(msgspec.Raw(msgspec.json.encode(job.query)), "")

    place = Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig(lease=30.0))
    working, asked = await Host.start(place, attempt), await Host.start(place, None)
    [old] = await asked.submit(query="old")
    await asked.until(old, lambda now: now.state == "running")
    assert await asked.jobs.cancel(old.id)
    assert await asked.jobs.remove(old.id)
    [new] = await asked.submit(id=old.id, query="new")
    await asked.until(new, lambda now: now.state == "running")
    may_end["old"].set()
    await eventually(lambda: working.metrics.job_attempts["fenced"] == 1)
    assert (await asked.get(new)).state == "running"
    may_end["new"].set()
    [ended] = await asked.until_ended([new])
    assert (ended.state, ended.attempts, bytes(ended.result or b"")) == ("succeeded", 1, b'"new"')
    await working.stop()
    await asked.stop()


async def test_a_defect_is_an_outcome(tmp_path: Path) -> None:
    """Work that raises is tried again, and says so."""

    async def attempt(job: Job) -> Outcome:
        if job.attempts == 1:
            raise ZeroDivisionError
        return await done(job)

    config = JobsConfig(backoff_seconds=0.05)
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", config), attempt)
    [job] = await host.submit()
    [ended] = await host.until_ended([job])
    assert (ended.state, ended.attempts, ended.reruns) == ("succeeded", 2, 1)
    await host.stop()


async def test_an_attempt_has_a_deadline(tmp_path: Path) -> None:
    """What takes longer is interrupted and tried again."""

    async def attempt(job: Job) -> Outcome:
        await eventually(lambda: job.attempts > 1, 30)
        return await done(job)

    config = JobsConfig(backoff_seconds=0.05, attempt_timeout=0.2)
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", config), attempt)
    [job] = await host.submit()
    ended = await host.until(job, lambda now: now.attempts == 2)
    assert ended.reruns == 1
    assert msgspec.to_builtins(host.metrics.job_attempts)["again"] == 1
    await host.stop()
