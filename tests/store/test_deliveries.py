"""Callbacks as rows, on both databases."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
import pytest
from sqlalchemy.engine import URL

from gateway.errors import StoreConflict
from gateway.metrics import Metrics
from gateway.store import deliveries
from gateway.store.databases import Connection
from gateway.store.deliveries import Delivery
from gateway.store.store import Store

HOOK = "https://Hooks.example:8443/a?b=c"


def made(delivery_id: str, host: str = "hooks.example", principal: str = "p", now: float = 100.0) -> Delivery:
    return deliveries.new(delivery_id, principal, f"https://{host}/x", "job.succeeded", b'{"id":1}', now)


async def put(store: Store, *given: Delivery) -> None:
    async def insert(connection: Connection) -> None:
        for one in given:
            await deliveries.insert(connection, one)

    await store.write(insert)


async def claimed(
    store: Store, now: float = 100.0, limit: int = 10, per_host: int = 10, but: tuple[str, ...] = ()
) -> list[Delivery]:
    return await store.write(
        lambda connection: deliveries.claim(connection, now, now + 50, limit, per_host, but)
    )


async def found(store: Store, delivery_id: str, principal: str = "p") -> Delivery | None:
    return await store.read(lambda connection: deliveries.get(connection, principal, delivery_id))


async def settled(store: Store, delivery: Delivery, **changed: object) -> bool:
    after = msgspec.structs.replace(delivery, **changed)
    return await store.write(lambda connection: deliveries.settle(connection, after))


async def test_those_of_a_subject_go(store: Store) -> None:
    """Its principal's, whatever became of them, and no others."""
    given = [("a", "p", "job"), ("b", "p", "job"), ("c", "q", "job"), ("d", "p", "other"), ("e", "p", None)]
    rows = [deliveries.new(name, who, HOOK, "e", b"1", 100.0, of) for name, who, of in given]
    await put(store, rows[0], msgspec.structs.replace(rows[1], state="failed", ended_at=1.0), *rows[2:])
    assert await store.write(lambda connection: deliveries.remove_of(connection, "p", "job")) == 2
    left = [await found(store, name, who) for name, who, _ in given]
    assert [one and one.id for one in left] == [None, None, "c", "d", "e"]


async def test_one_goes(store: Store) -> None:
    """Its principal's, once; the attempt that has it changes nothing after."""
    await put(store, made("d"), made("e"))
    [sending, _] = await claimed(store)
    removed = [
        await store.write(partial(deliveries.remove, principal=who, delivery_id=sending.id)) for who in "qpp"
    ]
    assert removed == [False, True, False]
    assert not await settled(store, sending, state="delivered", ended_at=2.0)
    assert await found(store, sending.id) is None


def test_what_is_sent() -> None:
    """The body of Standard Webhooks: type, time of the event, data as it was given."""
    delivery = deliveries.new("d", "p", HOOK, "job.succeeded", b'{"n": 1.0}', 1_700_000_000.25)
    assert (delivery.host, delivery.state, delivery.next_at) == (
        "hooks.example:8443",
        "pending",
        1_700_000_000.25,
    )
    assert delivery.body == (
        b'{"type":"job.succeeded","timestamp":"2023-11-14T22:13:20.250Z","data":{"n": 1.0}}'
    )


async def test_a_row_keeps_what_it_was_given(store: Store) -> None:
    """All of it; ids are taken once; principals see their own."""
    delivery = made("d")
    await put(store, delivery)
    assert await found(store, "d") == delivery
    assert await found(store, "d", "another") is None
    with pytest.raises(StoreConflict):
        await put(store, delivery)


async def test_a_claim_is_a_lease(store: Store) -> None:
    """Nobody else gets it until the lease is over; each claim is an attempt, the first begins the round."""
    await put(store, made("d"))
    assert await claimed(store, now=99.0) == []
    (first,) = await claimed(store)
    assert (first.attempts, first.next_at, first.since, first.body) == (1, 150.0, 100.0, made("d").body)
    assert await claimed(store, now=149.0) == []
    (again,) = await claimed(store, now=150.0)
    assert (again.id, again.attempts, again.since) == ("d", 2, 100.0)


async def test_a_late_attempt_changes_nothing(store: Store) -> None:
    """The fence: only the latest attempt ends a delivery, and it does so once."""
    await put(store, made("d"))
    (first,) = await claimed(store)
    (second,) = await claimed(store, now=150.0)
    assert not await settled(store, first, state="failed", ended_at=151.0)
    assert await settled(store, second, state="delivered", last_status=204, ended_at=152.0)
    assert not await settled(store, second, state="failed", ended_at=153.0)
    row = await found(store, "d")
    assert row is not None
    assert (row.state, row.last_status, row.ended_at) == ("delivered", 204, 152.0)
    assert await claimed(store, now=1000.0) == []


async def test_hosts_have_their_share(store: Store) -> None:
    """Many for one host do not fill a claim, and a host that is full is left out (faults.md 73)."""
    await put(store, *[made(f"a{n}", "a.example", now=50.0) for n in range(5)], made("b", "b.example"))
    taken = await claimed(store, limit=3, per_host=2)
    assert sorted(one.host for one in taken) == ["a.example", "a.example", "b.example"]
    assert await claimed(store, but=("a.example",)) == []
    assert len(await claimed(store, per_host=2)) == 2


async def test_principals_take_turns(store: Store) -> None:
    """A thousand hosts of one principal do not keep another's delivery waiting (faults.md 73)."""
    await put(
        store, *[made(f"a{n}", f"{n}.example", "a", 50.0) for n in range(9)], made("b", "x.example", "b")
    )
    assert {one.principal for one in await claimed(store, limit=2)} == {"a", "b"}


async def test_gateways_that_claim_at_once(store: Store, url: URL, metrics: Metrics) -> None:
    """Each row goes to one of them."""
    other = Store(url, metrics=metrics)
    await other.start()
    await put(store, *[made(f"d{n:02}", f"{n % 3}.example") for n in range(60)])
    batches: list[list[Delivery]] = []
    while not batches or any(batches[-2:]):
        batches += await asyncio.gather(claimed(store, limit=7), claimed(other, limit=7))
    ids = [one.id for batch in batches for one in batch]
    assert (len(ids), len(set(ids))) == (60, 60)
    await other.close()


async def test_retry(store: Store) -> None:
    """Whatever became of it: due now, in a round of its own, with the attempts that there were."""
    await put(store, made("d"))
    (first,) = await claimed(store)
    await settled(store, first, state="failed", last_status=500, ended_at=101.0)
    again = await store.write(lambda connection: deliveries.retry(connection, "p", "d", 500.0))
    assert again is not None
    assert (again.state, again.next_at, again.attempts, again.last_status, again.ended_at) == (
        *("pending", 500.0, 1, 500, None),
    )
    assert await store.write(lambda connection: deliveries.retry(connection, "q", "d", 500.0)) is None
    (second,) = await claimed(store, now=500.0)
    assert (second.attempts, second.since) == (2, 500.0)


async def test_pages(store: Store) -> None:
    """The newest first, without bodies, by state, from where the last page ended."""
    await put(store, *[made(f"d{n}", now=100.0 + n // 2) for n in range(5)], made("x", principal="q"))
    (first, *_) = await claimed(store, limit=1)
    await settled(store, first, state="delivered", ended_at=101.0)

    async def page(state: deliveries.DeliveryState | None, before: tuple[float, str] | None) -> list[str]:
        listed = await store.read(lambda connection: deliveries.page(connection, "p", state, before, 3))
        assert all(one.body == b"" for one in listed)
        return [one.id for one in listed]

    assert await page(None, None) == ["d4", "d3", "d2"]
    assert await page(None, (101.0, "d2")) == ["d1", "d0"]
    assert await page("delivered", None) == [first.id]


async def test_upkeep(store: Store) -> None:
    """What waits is counted with its age and the next turn; what ended long ago goes."""
    assert await store.read(deliveries.next_due) is None
    assert await store.read(deliveries.waiting) == (0, None)
    await put(store, made("a", now=90.0), made("b", now=100.0))
    assert await store.read(deliveries.next_due) == 90.0
    assert await store.read(deliveries.waiting) == (2, 90.0)
    (first, *_) = await claimed(store, limit=1)
    await settled(store, first, state="failed", ended_at=101.0)
    assert await store.write(lambda connection: deliveries.purge(connection, 101.0, 10)) == 0
    assert await store.write(lambda connection: deliveries.purge(connection, 102.0, 10)) == 1
    assert await store.read(deliveries.waiting) == (1, 100.0)
