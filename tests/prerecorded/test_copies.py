"""The first of several same requests is transcribed; its copies wait for that."""

from __future__ import annotations

import asyncio

import pytest

from gateway.prerecorded import copies as module
from gateway.prerecorded.copies import Copies, Shared
from gateway.prerecorded.transcriber import Answer

WINDOW = 0.1


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
    assert copies.find(b"k") is None
    first = asyncio.create_task(copies.wait(copies.add(b"k", source.task)))
    found = copies.find(b"k")
    assert found is not None
    second = asyncio.create_task(copies.wait(found))
    assert copies.find(b"other") is None
    source.ready.set()
    answer = await first
    assert await second is answer
    found = copies.find(b"k")
    assert found is not None
    assert await copies.wait(found) is answer
    await asyncio.sleep(2 * WINDOW)
    assert copies.find(b"k") is None
    assert copies._kept == 0


async def test_the_others_wait_on() -> None:
    """Who leaves takes nothing from those who stay."""
    copies, source = Copies(WINDOW), Source()
    shared = copies.add(b"k", source.task)
    leaving, staying = (asyncio.create_task(copies.wait(shared)) for _ in range(2))
    await cancel(leaving)
    await asyncio.sleep(2 * WINDOW)
    source.ready.set()
    assert (await staying).ok


@pytest.mark.parametrize("comes_back", [True, False])
async def test_nobody_waits(comes_back: bool) -> None:
    """It goes on for the window; a copy that comes in time has it, else it is given up and forgotten."""
    copies, source = Copies(WINDOW), Source()
    await cancel(asyncio.create_task(copies.wait(copies.add(b"k", source.task))))
    await asyncio.sleep(WINDOW / 2)
    found = copies.find(b"k")
    assert found is not None
    if comes_back:
        again = asyncio.create_task(copies.wait(found))
        await asyncio.sleep(2 * WINDOW)
        source.ready.set()
        assert (await again).ok
    else:
        await asyncio.sleep(2 * WINDOW)
        assert source.task.cancelled()
        assert copies.find(b"k") is None


async def test_an_error_is_not_kept() -> None:
    """Those who waited get it; who asks after that asks Deepgram."""
    copies, source = Copies(WINDOW), Source(status=503)
    waiting = asyncio.create_task(copies.wait(copies.add(b"k", source.task)))
    source.ready.set()
    assert (await waiting).status == 503
    await asyncio.sleep(0)
    assert copies.find(b"k") is None


async def test_no_window() -> None:
    """Nothing is shared, and who leaves ends it."""
    copies, source = Copies(0), Source()
    waiting = asyncio.create_task(copies.wait(copies.add(b"k", source.task)))
    assert copies.find(b"k") is None
    await cancel(waiting)
    await asyncio.wait({source.task}, timeout=1)
    assert source.task.cancelled()


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answers go first; those on their way are nobody's to drop."""
    monkeypatch.setattr(module, "MOST_BYTES", 250)
    copies = Copies(WINDOW)
    pending: Shared = copies.add(b"pending", Source().task)
    for number in range(5):
        source = Source(size=100)
        source.ready.set()
        await copies.wait(copies.add(bytes([number]), source.task))
    assert [copies.find(bytes([number])) is not None for number in range(5)] == [False] * 3 + [True] * 2
    assert copies.find(b"pending") is pending
    await asyncio.sleep(2 * WINDOW)
    assert copies._kept == 0
    pending.task.cancel()
