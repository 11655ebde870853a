"""Calls: who, when, how it went, and how much audio. Operations for `Store.write` and `Store.read`."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.store.databases import Connection
from gateway.store.schema import SESSIONS


class SessionGap(msgspec.Struct, frozen=True, gc=False):
    """Seconds of the call's audio that no final covers, and why."""

    start: float
    stop: float
    reason: str


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A call as callers see it, while it goes on and after. Nothing of what was said is in it.

    Times are seconds since 1970 (UTC), durations seconds of audio. `stored`: there is a transcript with this
    id. `state` is that of docs/design.md, `closed` in the end. `lag`: audio that no result has reached yet.
    `connections` to Deepgram were opened, `breaks` of them lost; `resumes`: how often the client came back.
    Of `gaps` there are at most 1000, `gap_seconds` knows them all.
    """

    id: str
    principal: str
    request_id: str
    model: str
    region: str
    state: str = "closed"
    outcome: str | None = None
    continuity: str
    close_code: int | None = None
    stored: bool
    accepted_seconds: float
    sent_seconds: float
    replayed_seconds: float
    gap_seconds: float
    gaps: list[SessionGap]
    connections: int
    breaks: int
    resumes: int
    lag: float = 0.0
    max_lag: float
    created_at: float
    ended_at: float | None = None


async def save(connection: Connection, session: Session) -> bool:
    """One that is over; False where it was saved before."""
    row = {name: getattr(session, name) for name in _COLUMNS}
    row["gaps"] = msgspec.json.encode(session.gaps)
    return bool((await connection.execute(_SAVE[connection.dialect.name], row)).rowcount)


async def get(connection: Connection, principal: str, id: str) -> Session | None:
    """None where there is none, or it is another principal's."""
    statement = select(SESSIONS).where(SESSIONS.c.id == id, SESSIONS.c.principal == principal)
    found = (await connection.execute(statement)).one_or_none()
    if found is None:
        return None
    fields: dict[str, Any] = dict(found._mapping)
    return Session(**fields | {"gaps": msgspec.json.decode(found.gaps, type=list[SessionGap])})


_COLUMNS: Final = tuple(column.name for column in SESSIONS.c)
_SAVE: Final = {
    "sqlite": sqlite.insert(SESSIONS).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(SESSIONS).on_conflict_do_nothing(),
}
