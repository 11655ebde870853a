"""What may be done with jobs besides running them; what runs them is in test_queue_conformance.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config import JobsConfig
from gateway.errors import StoreError
from gateway.prerecorded import queue
from gateway.store import jobs as rows
from gateway.store.job import Job
from tests.fakes.hosts import Host, Place, done
from tests.fakes.stand import eventually


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """It runs nothing by itself."""
    made = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig()), None)
    yield made
    await made.stop()


async def finish(host: Host, count: int = 1) -> None:
    for job in await host.worker.claim(count):
        await host.worker.run(job)


async def test_others_jobs_are_not_there(host: Host) -> None:
    """Neither one by one nor in the list."""
    [job] = await host.submit()
    assert await host.jobs.get(job.id, "q") is None
    assert await host.jobs.page("q", None, None, 10) == []


async def test_pages(host: Host) -> None:
    """Each job is on one page, the newest first, without its result."""
    jobs = [(await host.submit(created_at=float(number)))[0] for number in range(5)]
    await finish(host)
    first = await host.jobs.page("p", None, None, 3)
    second = await host.jobs.page("p", None, (first[-1].created_at, first[-1].id), 3)
    assert [job.id for job in first + second] == [job.id for job in reversed(jobs)]
    assert all(job.result is None for job in first + second)
    assert len(await host.jobs.page("p", "queued", None, 10)) == 4


async def test_states_are_told(host: Host) -> None:
    """Each, as it comes, until there will be no other; who stops watching leaves nothing behind."""
    [job] = await host.submit()
    told: list[str] = []

    async def watch() -> None:
        async for now in host.jobs.states(job.id, "p"):
            told.append(now.state)

    watching = asyncio.create_task(watch())
    await eventually(lambda: told == ["queued"])
    [claimed] = await host.worker.claim()
    await eventually(lambda: told == ["queued", "running"])
    await host.worker.run(claimed)
    await asyncio.wait_for(watching, 2)
    assert told == ["queued", "running", "succeeded"]


async def test_one_question_for_all_who_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many watch; and what another process does to their jobs is told."""
    monkeypatch.setattr(queue, "LOOK_SECONDS", 0.02)
    place = Place(f"sqlite:///{tmp_path}/gateway.db", JobsConfig())
    host, other = await Host.start(place, None), await Host.start(place, None)
    jobs = await host.submit(10)
    told: list[str] = []

    async def watch(job: Job) -> None:
        async for now in host.jobs.states(job.id, "p"):
            told.append(now.state)

    watching = [asyncio.create_task(watch(job)) for job in jobs * 3]
    await eventually(lambda: len(told) == 30)
    asked: list[object] = []
    read = host.store.read

    async def noted(op: Any) -> Any:
        asked.append(getattr(op, "func", op))
        return await read(op)

    with monkeypatch.context() as watched:
        watched.setattr(host.store, "read", noted)
        await eventually(lambda: asked.count(rows.marks) >= 6)
    assert len(asked) <= 10  # beside those some that count all jobs
    await finish(other, 10)
    await asyncio.wait_for(asyncio.gather(*watching), 5)
    assert (told.count("queued"), told.count("succeeded")) == (30, 30)
    await other.stop()
    await host.stop()


async def test_nothing_is_taken_without_a_store(host: Host) -> None:
    """An id that could not be kept is not given."""
    host.store.healthy = False
    with pytest.raises(StoreError):
        await host.submit()
    host.store.healthy = True
    assert await host.jobs.page("p", None, None, 10) == []


async def test_old_jobs_are_deleted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a day, failed ones after two weeks; with their audio."""
    jobs = await host.submit(2, spooled="audio")
    await finish(host)
    [ended] = [job for job in [await host.get(job) for job in jobs] if job.state == "succeeded"]
    day = 24 * 3600.0
    monkeypatch.setattr(host.jobs, "_clock", lambda: time.time() + day - 60)
    await host.jobs._purge()
    assert (await host.get(ended)).state == "succeeded"
    monkeypatch.setattr(host.jobs, "_clock", lambda: time.time() + day + 60)
    await host.jobs._purge()
    assert await host.jobs.get(ended.id, "p") is None
    assert host.discarded == [ended.id]
    assert len(await host.jobs.page("p", None, None, 10)) == 1


async def test_jobs_are_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By state; those that wait are the queue's depth, and those that are over are looked at less often."""
    monkeypatch.setattr(queue, "PURGE_SECONDS", 0.0)
    await host.submit(3)
    await finish(host)
    counted = host.metrics
    await eventually(
        lambda: (counted.jobs["succeeded"], counted.queue_depth) == (1, 2), 3 * queue.WATCH_SECONDS
    )


async def test_the_worker_does_what_it_is_given(host: Host) -> None:
    """By priority."""
    await host.submit(priority=7)
    [urgent] = await host.submit(priority=2)
    await finish(host)
    found: Job = await host.get(urgent)
    assert found.result == (await done(urgent)).result  # type: ignore[union-attr]  # it is Done
