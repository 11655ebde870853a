"""Old transcripts go, and calls whose gateway died are ended."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
import pytest

from gateway.store import deliveries, jobs, transcripts
from gateway.store.databases import Connection
from gateway.store.job import Job
from gateway.store.retention import DAY, keep_tidy, remove_all
from gateway.store.store import Store
from gateway.store.transcripts import Transcript, Wanted


def recording(id: str, at: float) -> Transcript:
    return Transcript(id=id, principal="p", source="sync", result=b"{}", created_at=at, ended_at=at)


async def ids(store: Store) -> list[str]:
    page = await store.read(lambda c: transcripts.page(c, "p", Wanted(), 2000))
    return [summary.id for summary in page]


async def tidied(store: Store, days: float, now: float) -> None:
    """One round of it."""
    tidying = asyncio.create_task(keep_tidy(store, days, lambda: now, now))
    await asyncio.sleep(0.3)
    tidying.cancel()


async def test_old_ones_go(store: Store) -> None:
    """All of them, however many; 0 days keep everything."""

    async def save_many(connection: Connection) -> None:
        await transcripts.save(connection, [recording(f"old{n}", 10 * DAY) for n in range(1200)])

    await store.write(save_many)
    await store.write(partial(transcripts.save, recordings=[recording("young", 21 * DAY)]))
    await tidied(store, 0.0, 100 * DAY)
    assert len(await ids(store)) == 1201
    await tidied(store, 30.0, 50 * DAY)
    assert await ids(store) == ["young"]


async def test_all_that_one_has_said(store: Store) -> None:
    """In several transactions; with the jobs and callbacks that are over, but not with those that are not."""

    async def save_many(connection: Connection) -> None:
        for n in range(1200):
            await transcripts.save(connection, [recording(f"t{n}", 1.0)])
        for name in ("over", "open"):
            told = deliveries.new(name, "p", "https://a.example/", "job.succeeded", b'"words"', 1.0)
            ended = {"state": "delivered", "ended_at": 2.0} if name == "over" else {}
            await deliveries.insert(connection, msgspec.structs.replace(told, **ended))

    await store.write(save_many)
    over = Job(id="over", principal="p", state="succeeded", result=msgspec.Raw(b'"words"'), ended_at=2.0)
    await jobs.add(
        store, [over, Job(id="open", principal="p"), msgspec.structs.replace(over, id="q", principal="q")]
    )
    assert await remove_all(store, "p", 10.0) == 1200
    assert await ids(store) == []
    assert set(await store.read(partial(jobs.find, job_ids=["over", "open", "q"]))) == {"open", "q"}
    left = await store.read(lambda c: deliveries.page(c, "p", None, None, 10))
    assert [one.id for one in left] == ["open"]


@pytest.mark.parametrize("alone", [True, False])
async def test_calls_that_nobody_ended(store: Store, alone: bool) -> None:
    """Where we came alone all that began before us; where others write too, only those of yesterday."""
    store.alone = alone
    begun = [
        Transcript(id="yesterdays", principal="p", source="live", created_at=1.0),
        Transcript(id="anothers", principal="p", source="live", created_at=2 * DAY - 5),
        Transcript(id="ours", principal="p", source="live", created_at=2 * DAY + 5),
    ]
    await store.write(lambda c: transcripts.begin(c, begun))
    await tidied(store, 0.0, 2 * DAY)
    found = [await store.read(partial(transcripts.get, principal="p", id=call.id)) for call in begun]
    assert [one is not None and one.ended_at is not None for one in found] == [True, alone, False]


async def test_it_outlives_a_store_that_is_down(store: Store) -> None:
    """And goes on when that is back."""
    await store.write(partial(transcripts.save, recordings=[recording("old", 0.0)]))
    store.healthy = False
    tidying = asyncio.create_task(keep_tidy(store, 1.0, lambda: 9 * DAY, 0.0, every=0.05))
    await asyncio.sleep(0.15)
    store.healthy = True
    await asyncio.sleep(0.5)
    tidying.cancel()
    assert await ids(store) == []
