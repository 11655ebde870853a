"""What was said, in recordings and in calls. Operations for `Store.write` and `Store.read`.

A recording's transcript is saved at once, with Deepgram's response. A call begins one, gets finals, and
ends it: from then on it can be searched, since a phrase may go over two finals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    column,
    delete,
    exists,
    func,
    literal_column,
    select,
    table,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from gateway.store.databases import Connection
from gateway.store.schema import DELIVERIES, FINALS, JOBS, SESSIONS, TRANSCRIPTS

Source = Literal["live", "sync", "async", "stream", "callback"]
PREVIEW: Final = 200
"""Characters of a transcript in a list."""
_FTS5: Final = table("transcripts_text", column("rowid"), column("transcripts_text"))
_GIN: Final = "to_tsvector('simple'::regconfig, left(transcripts.text, 500000))"


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `transcripts`. `metadata` and `result` are JSON; `ended_at` is None while a call goes on."""

    id: str
    principal: str
    source: Source
    request_id: str = ""
    query: str = ""
    metadata: bytes | None = None
    duration: float | None = None
    text: str = ""
    result: bytes | None = None
    created_at: float
    ended_at: float | None = None


class FinalResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What Deepgram said for good of a stretch of the call `transcript`; `number` counts them from 0.

    `words` is Deepgram's JSON array of them, as it came.
    """

    transcript: str
    number: int
    channel: int
    start: float
    duration: float
    text: str
    words: bytes


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A transcript in a list; `preview` is how its text begins."""

    id: str
    source: Source
    request_id: str
    duration: float | None
    created_at: float
    ended_at: float | None
    preview: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which transcripts: those with all `terms`, created in [start, end), of one source.

    `before` is (created_at, id) of the last one of the page before.
    """

    terms: tuple[str, ...] = ()
    source: Source | None = None
    start: float | None = None
    end: float | None = None
    before: tuple[float, str] | None = None


async def save(connection: Connection, recordings: Sequence[Transcript]) -> None:
    """Raises StoreConflict, from the writer, where there is one with an id of theirs."""
    await connection.execute(_INSERT, [_row(transcript) for transcript in recordings])


async def begin(connection: Connection, calls: Sequence[Transcript]) -> None:
    """Calls that may have finals from now on; those that have begun already are left alone."""
    await connection.execute(_BEGIN[connection.dialect.name], [_row(call) for call in calls])


async def append(connection: Connection, finals: Sequence[FinalResult]) -> None:
    """Finals of any number of calls, in one statement.

    What is there already is left alone, so that a batch can be written again; what belongs to no transcript,
    or to one that was deleted meanwhile, is dropped.
    """
    rows = [msgspec.structs.asdict(final) | {"text": _clean(final.text)} for final in finals]
    await connection.execute(_APPEND[connection.dialect.name], rows)


async def end(connection: Connection, call: str, ended_at: float, duration: float) -> None:
    """Ends a call's transcript, which can be found by its words from now on; `duration` of its audio."""
    said = await connection.execute(_TEXTS, {"call": call})
    await connection.execute(
        _END,
        {
            "call": call,
            "ended_at": ended_at,
            "duration": duration,
            "text": " ".join(text for text in said.scalars() if text),
        },
    )


async def end_abandoned(connection: Connection, before: float) -> int:
    """Ends the calls begun before that time whose gateway did not; returns how many, at most 100."""
    said = select(func.max(FINALS.c.start + FINALS.c.duration)).where(FINALS.c.transcript == TRANSCRIPTS.c.id)
    statement = (
        select(TRANSCRIPTS.c.id, TRANSCRIPTS.c.created_at, said.scalar_subquery())
        .where(TRANSCRIPTS.c.ended_at.is_(None), TRANSCRIPTS.c.created_at < before)
        .order_by(TRANSCRIPTS.c.created_at)  # the order of the index of open calls
        .limit(100)
    )
    found: Sequence[Any] = (await connection.execute(statement)).all()
    for call, created_at, duration in found:
        await end(connection, call, created_at + (duration or 0.0), duration or 0.0)
    return len(found)


async def get(connection: Connection, principal: str, id: str) -> Transcript | None:
    """None where there is none, or it is another principal's."""
    names = Transcript.__struct_fields__
    statement = select(*(TRANSCRIPTS.c[name] for name in names)).where(_is(principal, id))
    found = (await connection.execute(statement)).one_or_none()
    return Transcript(**found._mapping) if found else None


async def finals(
    connection: Connection, call: str, after: int = -1, limit: int | None = None
) -> list[FinalResult]:
    """Those of a call, in the order in which they were said; the first `limit` after number `after`."""
    found = await connection.execute(
        select(FINALS)
        .where(FINALS.c.transcript == call, FINALS.c.number > after)
        .order_by(FINALS.c.number)
        .limit(limit)
    )
    return [FinalResult(**row._mapping) for row in found]


async def page(connection: Connection, principal: str, wanted: Wanted, limit: int) -> list[Summary]:
    """The newest first."""
    of = TRANSCRIPTS.c
    statement: Select[Any] = select(
        of.id,
        of.source,
        of.request_id,
        of.duration,
        of.created_at,
        of.ended_at,
        func.substr(of.text, 1, PREVIEW).label("preview"),
    ).where(of.principal == principal)
    if wanted.terms:
        statement = statement.where(_matches(connection.dialect.name, wanted.terms))
    if wanted.source is not None:
        statement = statement.where(of.source == wanted.source)
    if wanted.start is not None:
        statement = statement.where(of.created_at >= wanted.start)
    if wanted.end is not None:
        statement = statement.where(of.created_at < wanted.end)
    if wanted.before is not None:
        statement = statement.where(tuple_(of.created_at, of.id) < wanted.before)
    statement = statement.order_by(of.created_at.desc(), of.id.desc()).limit(limit)
    return [Summary(**row._mapping) for row in await connection.execute(statement)]


def terms(q: str) -> tuple[str, ...]:
    """The words and "phrases in quotes" of a search, all of which must be there."""
    found = re.findall(r'"([^"]*)"|([^\s"]+)', q)
    return tuple(term for pair in found if re.search(r"\w", term := pair[0] or pair[1]))


async def remove(connection: Connection, principal: str, id: str) -> bool:
    """Deletes one with all its finals; whether there was one. What its call says from then on is dropped."""
    return bool((await connection.execute(delete(TRANSCRIPTS).where(_is(principal, id)))).rowcount)


async def remove_all(connection: Connection, principal: str, before: float, most: int) -> tuple[int, bool]:
    """Deletes at most `most` transcripts that a principal made before that time, as many of its sessions, and
    of its jobs and callbacks that are over: they hold words, too.

    Returns how many transcripts that were, and whether there may be more of anything.
    """
    gone = []
    for stored, key in (
        (TRANSCRIPTS, TRANSCRIPTS.c.number),
        (SESSIONS, SESSIONS.c.id),
        (JOBS, JOBS.c.id),
        (DELIVERIES, DELIVERIES.c.id),
    ):
        own = select(key).where(stored.c.principal == principal, stored.c.created_at <= before)
        if stored in (JOBS, DELIVERIES):
            own = own.where(stored.c.ended_at.is_not(None))
        found = await connection.execute(delete(stored).where(key.in_(own.limit(most))))
        gone.append(found.rowcount)
    return gone[0], max(gone) == most


async def expire(connection: Connection, before: float, most: int) -> int:
    """Deletes at most `most` transcripts, and as many sessions, that are older; 0: there were none."""
    gone = 0
    for stored, key in ((SESSIONS, SESSIONS.c.id), (TRANSCRIPTS, TRANSCRIPTS.c.number)):
        old = select(key).where(stored.c.created_at < before).limit(most)
        gone = max(gone, (await connection.execute(delete(stored).where(key.in_(old)))).rowcount)
    return gone


def _is(principal: str, id: str) -> ColumnElement[bool]:
    return (TRANSCRIPTS.c.id == id) & (TRANSCRIPTS.c.principal == principal)


def _matches(dialect: str, wanted: Sequence[str]) -> ColumnElement[bool]:
    """Each term as a phrase, so that what is inside a word (don't, 3.5) is no syntax of the database's."""
    if dialect == "sqlite":
        phrases = " ".join(f'"{term}"' for term in wanted)  # a term has no quotes in it
        found = select(_FTS5.c.rowid).where(_FTS5.c.transcripts_text.op("MATCH")(phrases))
        return TRANSCRIPTS.c.number.in_(found)
    query: ColumnElement[Any] = func.phraseto_tsquery(literal_column("'simple'::regconfig"), wanted[0])
    for term in wanted[1:]:
        query = query.op("&&")(func.phraseto_tsquery(literal_column("'simple'::regconfig"), term))
    return literal_column(_GIN).op("@@")(query)


def _row(transcript: Transcript) -> dict[str, Any]:
    return msgspec.structs.asdict(transcript) | {"text": _clean(transcript.text)}


def _clean(said: str) -> str:
    """PostgreSQL has no place for NUL in a text."""
    return said.replace("\0", "")


def _append(insert: Any) -> Any:
    """Finals of transcripts that exist; without a look for each of them first."""
    names = [column.name for column in FINALS.c]
    values = select(*(bindparam(name, type_=FINALS.c[name].type) for name in names))
    there = exists(select(TRANSCRIPTS.c.id).where(TRANSCRIPTS.c.id == bindparam("transcript")))
    return insert(FINALS).on_conflict_do_nothing().from_select(names, values.where(there))


# Made once: to put a statement together costs more than to run it.
_DIALECTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_INSERT: Final = TRANSCRIPTS.insert()
_BEGIN: Final = {name: insert(TRANSCRIPTS).on_conflict_do_nothing() for name, insert in _DIALECTS.items()}
_APPEND: Final = {name: _append(insert) for name, insert in _DIALECTS.items()}
_TEXTS: Final = (
    select(FINALS.c.text).where(FINALS.c.transcript == bindparam("call")).order_by(FINALS.c.number)
)
_END: Final = (
    update(TRANSCRIPTS)
    .where(TRANSCRIPTS.c.id == bindparam("call"), TRANSCRIPTS.c.ended_at.is_(None))
    .values(ended_at=bindparam("ended_at"), duration=bindparam("duration"), text=bindparam("text"))
)
