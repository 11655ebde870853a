"""The first of several same requests is transcribed; its copies wait for that."""

from __future__ import annotations

import asyncio

import pytest

from gateway.prerecorded import copies as module
from gateway.prerecorded.copies import Copies, Identity, Shared
from gateway.prerecorded.transcriber import Answer
from gateway.prerecorded.upload import UploadRefused

WINDOW = 0.1
K = Identity(b"k", b"k")
NAMED = Identity(b"slot", b"k")


class Source:
    """Answers when it is told to."""

    def __init__(self, size: int = 10, status: int = 200) -> None:
        self.ready = asyncio.Event()
        self.task = asyncio.create_task(self._answer(Answer(status, [], b"x" * size, "id", "r0")))

    async def _answer(self, answer: Answer) -> Answer:
        await self.ready.wait()
        return answer


async def cancel(waiting: asyncio.Task[Answer]) -> None:
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_copies_get_the_same_answer() -> None:
    """While it is on its way, and for the window after; then the next request is a first one again."""
    copies, source = Copies(WINDOW), Source()
    assert copies.find(K) is None
    first = asyncio.create_task(copies.wait(copies.add(K, source.task)))
    found = copies.find(K)
    assert found is not None
    second = asyncio.create_task(copies.wait(found))
    assert copies.find(Identity(b"other", b"other")) is None
    source.ready.set()
    answer = await first
    assert await second is answer
    found = copies.find(K)
    assert found is not None
    assert await copies.wait(found) is answer
    await asyncio.sleep(2 * WINDOW)
    assert copies.find(K) is None
    assert copies._kept == 0


async def test_the_others_wait_on() -> None:
    """Who leaves takes nothing from those who stay."""
    copies, source = Copies(WINDOW), Source()
    shared = copies.add(K, source.task)
    leaving, staying = (asyncio.create_task(copies.wait(shared)) for _ in range(2))
    await cancel(leaving)
    await asyncio.sleep(2 * WINDOW)
    source.ready.set()
    assert (await staying).ok


@pytest.mark.parametrize("comes_back", [True, False])
async def test_nobody_waits(comes_back: bool) -> None:
    """It goes on for the window; a copy that comes in time has it, else it is given up and forgotten."""
    copies, source = Copies(WINDOW), Source()
    await cancel(asyncio.create_task(copies.wait(copies.add(K, source.task))))
    await asyncio.sleep(WINDOW / 2)
    found = copies.find(K)
    assert found is not None
    if comes_back:
        again = asyncio.create_task(copies.wait(found))
        await asyncio.sleep(2 * WINDOW)
        source.ready.set()
        assert (await again).ok
    else:
        await asyncio.sleep(2 * WINDOW)
        assert source.task.cancelled()
        assert copies.find(K) is None


async def test_an_error_is_not_kept() -> None:
    """Those who waited get it; who asks after that asks Deepgram."""
    copies, source = Copies(WINDOW), Source(status=503)
    waiting = asyncio.create_task(copies.wait(copies.add(K, source.task)))
    source.ready.set()
    assert (await waiting).status == 503
    await asyncio.sleep(0)
    assert copies.find(K) is None


async def test_no_window() -> None:
    """Nothing is shared, and who leaves ends it."""
    copies, source = Copies(0), Source()
    waiting = asyncio.create_task(copies.wait(copies.add(K, source.task)))
    assert copies.find(K) is None
    await cancel(waiting)
    await asyncio.wait({source.task}, timeout=1)
    assert source.task.cancelled()


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answers go first; those on their way are nobody's to drop."""
    monkeypatch.setattr(module, "MOST_BYTES", 250 + 2 * module.OVERHEAD_BYTES)
    copies = Copies(WINDOW)
    waits, *keys = (Identity(name, name) for name in (b"pending", b"0", b"1", b"2", b"3", b"4"))
    pending: Shared = copies.add(waits, Source().task)
    for key in keys:
        source = Source(size=100)
        source.ready.set()
        await copies.wait(copies.add(key, source.task))
    assert [copies.find(key) is not None for key in keys] == [False] * 3 + [True] * 2
    assert copies.find(waits) is pending
    await asyncio.sleep(2 * WINDOW)
    assert copies._kept == 0
    pending.task.cancel()


@pytest.mark.parametrize("window", [0, WINDOW])
async def test_a_name_lasts(window: float) -> None:
    """For a day, whatever the window; meanwhile another request by that name is told so."""
    copies, source = Copies(window), Source()
    first = asyncio.create_task(copies.wait(copies.add(NAMED, source.task)))
    for _ in range(2):
        with pytest.raises(UploadRefused) as refused:
            copies.find(Identity(NAMED.slot, b"other"))
        assert (refused.value.refusal.status, refused.value.reason) == (422, "key_reused")
        found = copies.find(NAMED)
        assert found is not None
        source.ready.set()
        assert await copies.wait(found) is await first
        await asyncio.sleep(2 * WINDOW)
    assert copies.find(K) is None
    assert module.NAMED_SECONDS == 24 * 3600


async def test_a_name_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time, after an error, and when others need the room: for any request."""
    monkeypatch.setattr(module, "NAMED_SECONDS", WINDOW)
    other = Identity(NAMED.slot, b"other")
    copies = Copies(0)
    for status in (503, 200):
        source = Source(status=status)
        source.ready.set()
        await copies.wait(copies.add(NAMED, source.task))
        await asyncio.sleep(2 * WINDOW * (status == 200))
        assert copies.find(other) is None
    monkeypatch.setattr(module, "NAMED_SECONDS", 3600.0)
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    source = Source()
    source.ready.set()
    shared = copies.add(other, source.task)
    await copies.wait(shared)
    assert copies.find(NAMED) is None
    assert copies._kept == 0
    assert shared.timer is not None
    assert shared.timer.cancelled()  # for an hour it would have kept the answer


async def test_who_fails_before_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between an attempt's end and what is done about it others may be in need of room, or come again."""
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    copies, source, failed = Copies(WINDOW), Source(), Source(status=503)
    copies.add(K, failed.task)
    shared = copies.add(NAMED, source.task)
    source.ready.set()
    failed.ready.set()
    assert (await copies.wait(shared)).ok
    assert copies.find(K) is None
    assert copies.find(NAMED) is None  # it is the one that takes room
