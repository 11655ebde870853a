"""Seconds of audio by principal and day (UTC). Operations for `Store.write` and `Store.read`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.store.databases import Connection
from gateway.store.schema import USAGE

SECONDS: Final = ("accepted_seconds", "sent_seconds", "replayed_seconds")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Audio taken from a principal in a day, sent to Deepgram, and of that sent once more after a break."""

    principal: str
    day: date
    accepted_seconds: float = 0.0
    sent_seconds: float = 0.0
    replayed_seconds: float = 0.0


async def add(connection: Connection, used: Sequence[Usage]) -> None:
    """Adds to what there is; what is written twice counts twice."""
    rows = sorted(map(msgspec.structs.asdict, used), key=lambda row: (row["principal"], row["day"]))
    await connection.execute(
        _ADD[connection.dialect.name], rows
    )  # in order, or two hosts may wait for each other


async def of(connection: Connection, principal: str, first: date, last: date) -> list[Usage]:
    """The days from `first` to `last` with any, in order."""
    statement = (
        select(USAGE)
        .where(USAGE.c.principal == principal, USAGE.c.day.between(first, last))
        .order_by(USAGE.c.day)
    )
    return [Usage(**row._mapping) for row in await connection.execute(statement)]


def _add(insert: Any) -> Any:
    added = insert(USAGE)
    sums = {name: USAGE.c[name] + added.excluded[name] for name in SECONDS}
    return added.on_conflict_do_update(index_elements=["principal", "day"], set_=sums)


_ADD: Final = {"sqlite": _add(sqlite.insert), "postgresql": _add(postgresql.insert)}
