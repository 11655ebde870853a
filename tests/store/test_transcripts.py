"""Transcripts on both databases: finals as they come, lists, search, deletion."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest

from gateway.errors import StoreConflict
from gateway.store import transcripts
from gateway.store.databases import Connection
from gateway.store.store import Store
from gateway.store.transcripts import FinalResult, Source, Summary, Transcript, Wanted


def recording(id: str, text: str = "", principal: str = "p", at: float = 1.0, **more: Any) -> Transcript:
    settings = {"source": "sync", "result": b"{}", "ended_at": at + 1, **more}
    return Transcript(id=id, principal=principal, text=text, created_at=at, **settings)


def call(id: str, principal: str = "p", at: float = 1.0) -> Transcript:
    return Transcript(id=id, principal=principal, source="live", created_at=at)


def final(call: str, number: int, text: str, channel: int = 0) -> FinalResult:
    start = number * 2.0
    return FinalResult(
        transcript=call, number=number, channel=channel, start=start, duration=2.0, text=text, words=b"[]"
    )


async def save(store: Store, *saved: Transcript) -> None:
    await store.write(partial(transcripts.save, recordings=saved))


async def found(store: Store, q: str = "", principal: str = "p", limit: int = 10, **wanted: Any) -> list[str]:
    """The ids of a page."""
    asked = Wanted(terms=transcripts.terms(q), **wanted)
    page = await store.read(lambda c: transcripts.page(c, principal, asked, limit))
    return [summary.id for summary in page]


async def test_a_recording_comes_back_as_it_was(store: Store) -> None:
    """All of it; for its own principal, and once."""
    full = recording(
        "a",
        "Zoë said: 日本\n<hi>",
        metadata=b'{"a": 1}',
        duration=1.5,
        result=b'{"x": [1.0] }',
        query="model=x",
    )
    await save(store, full)
    assert await store.read(lambda c: transcripts.get(c, "p", "a")) == full
    assert await store.read(lambda c: transcripts.get(c, "q", "a")) is None
    assert await store.read(lambda c: transcripts.get(c, "p", "b")) is None
    with pytest.raises(StoreConflict):
        await save(store, recording("a", principal="q"))


async def test_text_that_a_database_cannot_hold(store: Store) -> None:
    """NUL is left out; everything beside it is kept."""
    await save(store, recording("a", "one\0two"))
    kept = await store.read(lambda c: transcripts.get(c, "p", "a"))
    assert kept is not None
    assert kept.text == "onetwo"


async def test_a_call_as_it_goes_on(store: Store) -> None:
    """Finals of many calls in one statement; written again they are there once, nobody's nowhere."""
    batch = [
        final("a", 0, "we met"),
        final("b", 0, "hello"),
        final("a", 1, "on friday"),
        final("none", 0, "x"),
    ]

    async def op(connection: Connection) -> None:
        await transcripts.begin(connection, [call("a"), call("b", "q")])
        await transcripts.append(connection, batch)

    await store.write(op)
    await store.write(op)
    assert await store.read(lambda c: transcripts.finals(c, "a")) == [batch[0], batch[2]]
    assert await store.read(lambda c: transcripts.finals(c, "none")) == []
    assert await found(store, "friday") == []
    await store.write(lambda c: transcripts.end(c, "a", 9.0, 4.0))
    assert await found(store, '"met on"') == ["a"]
    ended = await store.read(lambda c: transcripts.get(c, "p", "a"))
    assert ended == msgspec.structs.replace(call("a"), ended_at=9.0, duration=4.0, text="we met on friday")
    going_on = await store.read(lambda c: transcripts.get(c, "q", "b"))
    assert going_on == call("b", "q")


async def test_calls_whose_gateway_died(store: Store) -> None:
    """They are ended where their finals end; those that are young may go on."""

    async def op(connection: Connection) -> None:
        await transcripts.begin(connection, [call("old"), call("silent"), call("young", at=100.0)])
        await transcripts.append(connection, [final("old", 0, "one"), final("old", 1, "two")])

    await store.write(op)
    assert await store.write(lambda c: transcripts.end_abandoned(c, 50.0)) == 2
    assert await store.write(lambda c: transcripts.end_abandoned(c, 50.0)) == 0
    old = await store.read(lambda c: transcripts.get(c, "p", "old"))
    assert old is not None
    assert (old.ended_at, old.duration, old.text) == (5.0, 4.0, "one two")
    young = await store.read(lambda c: transcripts.get(c, "p", "young"))
    assert young is not None
    assert young.ended_at is None


async def test_pages(store: Store) -> None:
    """The newest first, by time and then by id; each once, whatever came meanwhile."""
    await save(store, *(recording(f"t{i}", at=float(i // 2)) for i in range(5)))
    first = await store.read(lambda c: transcripts.page(c, "p", Wanted(), 2))
    assert [one.id for one in first] == ["t4", "t3"]
    await save(store, recording("new", at=9.0))
    last = first[-1]
    assert await found(store, before=(last.created_at, last.id)) == ["t2", "t1", "t0"]
    assert await found(store, start=1.0, end=2.0) == ["t3", "t2"]
    assert await found(store, principal="q") == []


async def test_a_page_tells_how_a_text_begins(store: Store) -> None:
    """Not all of it: a page of long recordings would be megabytes."""
    await save(store, recording("a", "x" * 1000, source="async", request_id="r", duration=3.0))
    page = await store.read(lambda c: transcripts.page(c, "p", Wanted(source="async"), 5))
    assert page == [
        Summary(
            id="a",
            source="async",
            request_id="r",
            duration=3.0,
            created_at=1.0,
            ended_at=2.0,
            preview="x" * transcripts.PREVIEW,
        )
    ]
    sources: list[Source] = ["live", "sync"]
    assert [await found(store, source=source) for source in sources] == [[], []]


@pytest.mark.parametrize(
    ("q", "ids"),
    [
        ("refund", ["b", "a"]),
        ("REFUND", ["b", "a"]),
        ("refund order", ["a"]),
        ('"the refund"', ["a"]),
        ('"refund the"', []),
        ("don't", ["b"]),
        ("3.5", ["b"]),
        ("zoë", ["c"]),
        ("refund OR", []),
        ("refund -order", ["a"]),
        ("ref*", []),
        ('"', ["c", "b", "a"]),
        ("NEAR(refund order) text:the ^a", []),
    ],
)
async def test_search(store: Store, q: str, ids: list[str]) -> None:
    """Words and phrases, all of which must be there; nothing in a search is the database's own syntax."""
    await save(
        store,
        recording("a", "I want the refund for my order.", at=1.0),
        recording("b", "No refund, don't ask: 3.5 percent", at=2.0),
        recording("c", "Zoë", at=3.0),
        recording("theirs", "refund", principal="q", at=4.0),
    )
    assert await found(store, q) == ids


def test_what_is_searched_for() -> None:
    """Words and phrases; punctuation alone is nothing."""
    assert transcripts.terms('one  "two three" don\'t - "" "open end') == (
        "one",
        "two three",
        "don't",
        "open",
        "end",
    )


async def test_deletion(store: Store) -> None:
    """By its principal only, with its finals and its place in the search; what comes later is dropped."""
    await save(store, recording("a", "secret"), recording("theirs", "secret", principal="q"))

    async def op(connection: Connection) -> None:
        await transcripts.begin(connection, [call("live")])
        await transcripts.append(connection, [final("live", 0, "secret")])

    await store.write(op)
    ids = ("theirs", "live", "no")
    removed = [await store.write(partial(transcripts.remove, principal="p", id=id)) for id in ids]
    assert removed == [False, True, False]
    await store.write(lambda c: transcripts.append(c, [final("live", 1, "more")]))
    await store.write(lambda c: transcripts.end(c, "live", 2.0, 1.0))
    assert await store.read(lambda c: transcripts.finals(c, "live")) == []
    assert await found(store, "secret") == ["a"]
    assert await store.write(lambda c: transcripts.remove_all(c, "p", 1e12, 10)) == (1, False)
    assert (await found(store, "secret"), await found(store, "secret", "q")) == ([], ["theirs"])


async def test_what_is_old_goes(store: Store) -> None:
    """A few at a time, so that nobody waits for a sweep."""
    await save(store, *(recording(f"t{i}", "word", at=float(i)) for i in range(5)))
    assert await store.write(lambda c: transcripts.expire(c, 3.0, 2)) == 2
    assert await store.write(lambda c: transcripts.expire(c, 3.0, 2)) == 1
    assert await found(store, "word") == ["t4", "t3"]
