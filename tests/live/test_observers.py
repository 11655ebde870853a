"""Those who watch a call, as its sinks."""

from __future__ import annotations

import asyncio

from gateway.deepgram.recogniser import Kind
from gateway.live.observers import MOST_BYTES, Observer
from gateway.session.events import Deliver
from tests.store.test_sessions import session


async def rest(observer: Observer) -> list[tuple[int | None, bytes]]:
    async with asyncio.timeout(5):
        return [one async for one in observer]


async def test_everything_once_and_in_order() -> None:
    """Finals by their numbers; of interims that wait those that nothing has replaced."""
    observer = Observer(7)
    for kind, channel, raw in (
        (Kind.INTERIM, 0, b"a"),
        (Kind.INTERIM, 1, b"b"),
        (Kind.INTERIM, 0, b"c"),
        (Kind.FINAL, 0, b"d"),
        (Kind.OTHER, 0, b"e"),
        (Kind.INTERIM, 0, b"f"),
        (Kind.INTERIM, 1, b"g"),
        (Kind.FINAL, 1, b"h"),
    ):
        observer.deliver(Deliver(raw, kind, channel))
    over = session()
    observer.end(over)
    observer.deliver(Deliver(b"late", Kind.FINAL))
    assert await rest(observer) == [(None, b"c"), (7, b"d"), (None, b"f"), (None, b"g"), (8, b"h")]
    assert observer.session is over


async def test_it_waits_for_news() -> None:
    observer = Observer(0)
    waiting = asyncio.create_task(rest(observer))
    await asyncio.sleep(0)
    observer.deliver(Deliver(b"a", Kind.FINAL))
    await asyncio.sleep(0)
    observer.end(None)
    assert await waiting == [(0, b"a")]


async def test_one_that_does_not_keep_up_is_cut() -> None:
    """What waits is bounded: it ends without an end of the call."""
    observer = Observer(0)
    for _ in range(4):
        observer.deliver(Deliver(bytes(MOST_BYTES // 3), Kind.FINAL))
    observer.end(session())
    assert await rest(observer) == []
    assert observer.session is None


async def test_interims_alone_cut_nobody() -> None:
    """They replace each other."""
    observer = Observer(0)
    for _ in range(100):
        observer.deliver(Deliver(bytes(MOST_BYTES // 3), Kind.INTERIM))
    observer.end(session())
    assert [number for number, _ in await rest(observer)] == [None]
