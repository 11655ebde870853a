"""Jobs as rows, on both databases."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from gateway.errors import StoreConflict
from gateway.store import jobs
from gateway.store.job import STATES, Job, JobError
from gateway.store.store import Store

JOB = Job(
    id="a",
    principal="p",
    query="model=nova-3",
    url="https://example.com/a.wav",
    metadata=msgspec.Raw(b'{"case":7}'),
    run_at=10.0,
    created_at=10.0,
)


def job(name: str, **fields: object) -> Job:
    return msgspec.structs.replace(JOB, id=name, **fields)


async def claim(store: Store, now: float = 20.0, limit: int = 10, name: str | None = None) -> list[Job]:
    return await store.write(lambda connection: jobs.claim(connection, "w", now, now + 30, limit, name))


async def test_what_is_kept_comes_back(store: Store) -> None:
    """All fields of a job, before and after."""
    await jobs.add(store, [JOB])
    assert await store.read(lambda connection: jobs.get(connection, "a")) == JOB
    [running] = await claim(store)
    ended = msgspec.structs.replace(
        running,
        state="failed",
        error=JobError("DEEPGRAM_ERROR", "no", 400),
        ended_at=30.0,
        result=msgspec.Raw(b"[]"),
    )
    assert await store.write(lambda connection: jobs.settle(connection, [ended])) == [True]
    found = await store.read(lambda connection: jobs.get(connection, "a"))
    assert found == msgspec.structs.replace(ended, lease_until=found.lease_until if found else None)


async def test_all_or_none(store: Store) -> None:
    """One id that is there, and nothing is added."""
    await jobs.add(store, [JOB])
    with pytest.raises(StoreConflict):
        await jobs.add(store, [job("b"), JOB])
    assert await store.read(lambda connection: jobs.get(connection, "b")) is None


async def test_claims(store: Store) -> None:
    """What is due, the urgent first, then the old; each once."""
    await jobs.add(
        store,
        [
            job("later", run_at=99.0),
            job("new", run_at=12.0),
            job("old"),
            job("urgent", priority=1, run_at=15.0),
        ],
    )
    assert [one.id for one in await claim(store, limit=2)] == ["urgent", "old"]
    claimed = await claim(store)
    assert [(one.id, one.state, one.attempts, one.worker) for one in claimed] == [("new", "running", 1, "w")]
    assert await claim(store) == []
    assert await store.read(jobs.next_due) == 99.0


async def test_one_is_claimed_by_id(store: Store) -> None:
    """If it is due and queued."""
    await jobs.add(store, [job("a"), job("b"), job("later", run_at=99.0)])
    assert [one.id for one in await claim(store, name="b")] == ["b"]
    assert await claim(store, name="b") == []
    assert await claim(store, name="later") == []


async def test_only_the_latest_attempt_counts(store: Store) -> None:
    """And only while it runs."""
    await jobs.add(store, [JOB])
    [first] = await claim(store)
    done = msgspec.structs.replace(first, state="succeeded", ended_at=21.0, worker="", lease_until=None)
    late = msgspec.structs.replace(done, attempts=2)
    gone = msgspec.structs.replace(done, id="gone")
    before = msgspec.structs.replace(done, created_at=done.created_at - 1.0)  # deleted; its id is free again
    attempts = [late, before, done, gone, done]
    assert await store.write(lambda connection: jobs.settle(connection, attempts)) == [
        *(False, False, True, False, False)
    ]
    assert await store.write(lambda connection: jobs.settle(connection, [done])) == [False]


async def test_a_callback_beside_the_wait_for_it(store: Store) -> None:
    """That an attempt waits for Deepgram, and what Deepgram says, may be written at once: both count."""
    await jobs.add(store, [JOB])
    [running] = await claim(store)
    waits = msgspec.structs.replace(running, lease_until=99.0, worker="")
    done = msgspec.structs.replace(running, state="succeeded", ended_at=21.0, worker="", lease_until=None)
    attempts = [waits, done, waits, done]
    assert await store.write(lambda connection: jobs.settle(connection, attempts)) == [
        *(True, True, False, False)
    ]
    found = await store.read(lambda connection: jobs.get(connection, running.id))
    assert found is not None
    assert found.state == "succeeded"


async def test_leases(store: Store) -> None:
    """A worker renews its own; what is not renewed runs out."""
    await jobs.add(store, [job("a"), job("b")])
    await claim(store)
    kept = await store.write(lambda connection: jobs.renew(connection, "w", ["a"], 100.0))
    others = await store.write(lambda connection: jobs.renew(connection, "x", ["b"], 100.0))
    assert (kept, others) == ({("a", JOB.created_at, 1)}, set())
    assert [one.id for one in await store.read(lambda connection: jobs.expired(connection, 60.0, 9))] == ["b"]


async def test_cancel_and_retry(store: Store) -> None:
    """Each once, from the states that allow it."""
    await jobs.add(store, [JOB])
    cancelled = await store.write(lambda connection: jobs.cancel(connection, "a", 20.0))
    assert cancelled
    assert (cancelled.state, cancelled.ended_at) == ("cancelled", 20.0)
    assert await store.write(lambda connection: jobs.cancel(connection, "a", 21.0)) is None
    queued = await store.write(lambda connection: jobs.retry(connection, "a", 30.0, 3))
    assert queued
    assert (queued.state, queued.run_at, queued.max_attempts, queued.ended_at) == ("queued", 30.0, 3, None)
    assert await store.write(lambda connection: jobs.retry(connection, "a", 31.0, 3)) is None
    assert await store.read(lambda connection: jobs.counts(connection, STATES)) == {"queued": 1}


async def test_only_what_has_ended_is_removed(store: Store) -> None:
    """Once."""
    await jobs.add(store, [job("a"), job("b", state="succeeded", ended_at=10.0), job("c", state="cancelled")])
    removed = [await store.write(partial(jobs.remove, job_id=name)) for name in "abcb"]
    assert [one and one.id for one in removed] == [None, "b", "c", None]
    assert await store.read(lambda connection: jobs.get(connection, "a")) == job("a")


async def test_how_far_jobs_have_come(store: Store) -> None:
    """Those that are there."""
    await jobs.add(store, [job("a"), job("b"), job("c")])
    await claim(store, name="b")
    found = await store.read(lambda connection: jobs.marks(connection, ["a", "b", "gone"]))
    assert found == {"a": ("queued", 0), "b": ("running", 1)}


async def test_what_a_queue_forgot(store: Store) -> None:
    """Page by page."""
    await jobs.add(store, [job(name) for name in "abc"] + [job("d", run_at=50.0)])
    first = await store.read(lambda connection: jobs.overdue(connection, 20.0, "", 2))
    second = await store.read(lambda connection: jobs.overdue(connection, 20.0, first[-1].id, 2))
    assert [one.id for one in first + second] == ["a", "b", "c"]


async def test_old_ones_go(store: Store) -> None:
    """By when they ended; failed ones stay longer."""
    await jobs.add(
        store,
        [
            job("old", state="succeeded", ended_at=10.0),
            job("new", state="succeeded", ended_at=90.0),
            job("dead", state="failed", ended_at=10.0),
            job("waiting"),
        ],
    )
    gone = await store.write(lambda connection: jobs.purge(connection, 50.0, 5.0, 10))
    assert [one.id for one in gone] == ["old"]
    gone = await store.write(lambda connection: jobs.purge(connection, 50.0, 11.0, 10))
    assert [one.id for one in gone] == ["dead"]
