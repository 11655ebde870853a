"""What is asked of the table of callbacks, as functions of a connection.

A delivery is `pending` until it is `delivered` or `failed`. Whoever sends it claims it first: that counts an
attempt and moves `next_at` behind the time that one may take, which is its lease; if the sender dies, it is
simply due again. What an attempt does to a row names that attempt, so that a late one changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, select, tuple_, update
from sqlalchemy import insert as into

from gateway.store.databases import Connection
from gateway.store.schema import DELIVERIES

DeliveryState = Literal["pending", "delivered", "failed"]

LOOKED_AT: Final = 4000
"""Due rows that a claim puts in order, the oldest first; with 100 000 it held the writer for 0.5 s."""
_BRIEF: Final = [column for column in DELIVERIES.c if column.name != "body"]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A callback. Times are seconds since 1970 (UTC). `since` is when the attempts of this round began.

    `subject` is the id of the job or the session that it tells of.
    """

    id: str
    principal: str
    url: str
    host: str
    event: str
    body: bytes = b""
    state: DeliveryState = "pending"
    attempts: int = 0
    next_at: float
    since: float | None = None
    last_status: int | None = None
    last_error: str | None = None
    created_at: float
    ended_at: float | None = None
    subject: str | None = None


class _Body(msgspec.Struct, frozen=True):
    type: str
    timestamp: str
    data: msgspec.Raw


def new(
    delivery_id: str,
    principal: str,
    url: str,
    event: str,
    data: bytes,
    now: float,
    subject: str | None = None,
) -> Delivery:
    """A callback that is due now. `data` is JSON, `event` a name like job.succeeded; no dot in the id."""
    when = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Delivery(
        id=delivery_id,
        principal=principal,
        url=url,
        host=urlsplit(url).netloc.lower(),
        event=event,
        body=msgspec.json.encode(_Body(event, when, msgspec.Raw(data))),
        next_at=now,
        created_at=now,
        subject=subject,
    )


async def insert(connection: Connection, delivery: Delivery) -> None:
    """Whoever calls it in a transaction of its own wakes the notifier when that is committed."""
    await connection.execute(into(DELIVERIES), msgspec.structs.asdict(delivery))


async def claim(
    connection: Connection, now: float, lease_until: float, limit: int, per_host: int, but: Collection[str]
) -> list[Delivery]:
    """Takes what is due, at most `limit`, of no host more than `per_host`, nothing for the hosts in `but`.

    Principals take turns, and within one of them its hosts, so that neither many deliveries nor many hosts
    keep others waiting. What another gateway claims at this moment is left to it: on PostgreSQL its rows are
    looked at again when it is done, and are not due any more.
    """
    is_due = and_(DELIVERIES.c.state == "pending", DELIVERIES.c.next_at <= now)
    others = [DELIVERIES.c.host.not_in(but)] if but else []
    looked_at = select(DELIVERIES.c.id, DELIVERIES.c.host, DELIVERIES.c.principal, DELIVERIES.c.next_at)
    due = looked_at.where(is_due, *others).order_by(DELIVERIES.c.next_at).limit(LOOKED_AT).subquery()
    rank = func.row_number
    turn = rank().over(partition_by=due.c.host, order_by=due.c.next_at).label("turn")
    hosts = select(due.c.id, due.c.principal, due.c.next_at, turn).subquery()
    order = (hosts.c.turn, hosts.c.next_at)
    share = rank().over(partition_by=hosts.c.principal, order_by=order).label("share")
    principals = select(hosts.c.id, hosts.c.next_at, share).where(hosts.c.turn <= per_host).subquery()
    first = select(principals.c.id).order_by(principals.c.share, principals.c.next_at).limit(limit)
    still_due = DELIVERIES.c.next_at + 0 <= now  # + 0 keeps SQLite from going through all that is due
    statement = update(DELIVERIES).where(DELIVERIES.c.id.in_(first), still_due)
    statement = statement.values(
        next_at=lease_until,
        attempts=DELIVERIES.c.attempts + 1,
        since=func.coalesce(DELIVERIES.c.since, now),
    )
    return _all(await connection.execute(statement.returning(*DELIVERIES.c)))


async def settle(connection: Connection, delivery: Delivery) -> bool:
    """Writes how the attempt `delivery.attempts` left it; False, and nothing, if there is a later one."""
    is_ours = and_(
        DELIVERIES.c.id == delivery.id,
        DELIVERIES.c.attempts == delivery.attempts,
        DELIVERIES.c.state == "pending",
    )
    changed = ("state", "next_at", "last_status", "last_error", "ended_at")
    values = {name: getattr(delivery, name) for name in changed}
    return bool((await connection.execute(update(DELIVERIES).where(is_ours).values(values))).rowcount)


async def retry(connection: Connection, principal: str, delivery_id: str, now: float) -> Delivery | None:
    """Makes it due now, whatever became of it, for another round of attempts; None if it is not there."""
    is_it = and_(DELIVERIES.c.id == delivery_id, DELIVERIES.c.principal == principal)
    statement = (
        update(DELIVERIES).where(is_it).values(state="pending", next_at=now, since=None, ended_at=None)
    )
    found = _all(await connection.execute(statement.returning(*_BRIEF)))
    return found[0] if found else None


async def get(connection: Connection, principal: str, delivery_id: str) -> Delivery | None:
    """With its body."""
    is_it = and_(DELIVERIES.c.id == delivery_id, DELIVERIES.c.principal == principal)
    found = _all(await connection.execute(select(DELIVERIES).where(is_it)))
    return found[0] if found else None


async def remove(connection: Connection, principal: str, delivery_id: str) -> bool:
    """Deletes one, whatever became of it; whether there was one. An attempt under way changes nothing."""
    is_it = and_(DELIVERIES.c.id == delivery_id, DELIVERIES.c.principal == principal)
    return bool((await connection.execute(delete(DELIVERIES).where(is_it))).rowcount)


async def remove_of(connection: Connection, principal: str, subject: str) -> int:
    """Deletes all that tell of `subject`, whatever became of them; returns how many."""
    is_of = and_(DELIVERIES.c.subject == subject, DELIVERIES.c.principal == principal)
    return (await connection.execute(delete(DELIVERIES).where(is_of))).rowcount


async def page(
    connection: Connection,
    principal: str,
    state: DeliveryState | None,
    before: tuple[float, str] | None,
    limit: int,
) -> list[Delivery]:
    """A principal's, without bodies, the newest first; `before`: `created_at` and id of the last one seen."""
    wanted: list[ColumnElement[bool]] = [DELIVERIES.c.principal == principal]
    if state:
        wanted.append(DELIVERIES.c.state == state)
    if before:
        wanted.append(tuple_(DELIVERIES.c.created_at, DELIVERIES.c.id) < before)
    newest = (DELIVERIES.c.created_at.desc(), DELIVERIES.c.id.desc())
    return _all(await connection.execute(select(*_BRIEF).where(*wanted).order_by(*newest).limit(limit)))


async def next_due(connection: Connection) -> float | None:
    """When the first one is, or was, due."""
    first = select(func.min(DELIVERIES.c.next_at)).where(DELIVERIES.c.state == "pending")
    due: float | None = (await connection.execute(first)).scalar()
    return due


async def waiting(connection: Connection) -> tuple[int, float | None]:
    """How many are pending, and when the oldest of them was made."""
    count = select(func.count().label("count"), func.min(DELIVERIES.c.created_at).label("oldest"))
    row = (await connection.execute(count.where(DELIVERIES.c.state == "pending"))).one()._mapping
    return row["count"], row["oldest"]


async def purge(connection: Connection, ended_before: float, limit: int) -> int:
    """Deletes what ended that long ago; returns how many."""
    old = select(DELIVERIES.c.id).where(DELIVERIES.c.ended_at < ended_before).limit(limit)
    return (await connection.execute(delete(DELIVERIES).where(DELIVERIES.c.id.in_(old)))).rowcount


def _all(rows: Iterable[Any]) -> list[Delivery]:
    return [Delivery(**row._mapping) for row in rows]
