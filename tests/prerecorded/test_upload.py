"""A body that comes: how much of it, how fast, and what is no body."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.prerecorded import upload as module
from gateway.prerecorded.spool import Spool
from gateway.prerecorded.upload import UploadRefused, take, take_small


class Pieces:
    """A body in pieces, a pause before each."""

    def __init__(self, *pieces: bytes, pause: float = 0.0) -> None:
        self._pieces = list(pieces)
        self._pause = pause

    async def readany(self) -> bytes:
        await asyncio.sleep(self._pause)
        return self._pieces.pop(0) if self._pieces else b""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 1_000_000)


async def test_all_of_it_is_taken(spool: Spool) -> None:
    """Up to the limit itself."""
    async with spool.open() as file:
        await take(Pieces(b"abc", b"def"), file, limit=6, min_rate=0)
        assert (file.size, file.complete) == (6, False)
    assert await take_small(Pieces(b"abc", b"def"), limit=6, min_rate=0) == b"abcdef"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (Pieces(), 400, "empty"),
        (Pieces(b"abcd", b"ef"), 413, "too_large"),
    ],
)
async def test_what_is_not_taken(spool: Spool, body: Pieces, status: int, reason: str) -> None:
    """Each is refused with its status, and leaves no byte."""
    pieces = list(body._pieces)
    async with spool.open() as file:
        with pytest.raises(UploadRefused) as refused:
            await take(body, file, limit=5, min_rate=0)
    assert (refused.value.status, refused.value.reason) == (status, reason)
    with pytest.raises(UploadRefused) as refused:
        await take_small(Pieces(*pieces), limit=5, min_rate=0)
    assert (refused.value.status, refused.value.reason) == (status, reason)
    assert spool.used == 0


async def test_the_rate(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than the rate on average, after the grace, is too slow; more, and as it likes, is not."""
    monkeypatch.setattr(module, "GRACE", 0.05)
    async with spool.open() as file:
        with pytest.raises(UploadRefused) as refused:
            await take(Pieces(*[b"x"] * 100, pause=0.02), file, limit=1000, min_rate=1000)
        assert (refused.value.status, refused.value.reason) == (408, "too_slow")
        assert file.size < 20
    async with spool.open() as file:
        await take(Pieces(*[b"x" * 10] * 10, pause=0.02), file, limit=1000, min_rate=100)
        assert file.size == 100


async def test_the_whole_of_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it comes, it is over when its time is."""
    monkeypatch.setattr(module, "GRACE", 0.05)
    async with spool.open() as file:
        with pytest.raises(UploadRefused, match=r"takes longer than 0\.1 s") as refused:
            await take(Pieces(*[b"x" * 100] * 100, pause=0.02), file, limit=10_000, min_rate=10, seconds=0.1)
        assert (refused.value.status, refused.value.reason) == (408, "too_slow")
