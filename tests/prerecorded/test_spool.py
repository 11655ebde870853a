"""Recordings on disk: nobody else can read them, nobody gets more than the quota, nothing is left over."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
import threading
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.prerecorded.spool import (
    MOST_BEHIND,
    ORPHAN_SECONDS,
    Spool,
    SpoolFile,
    SpoolFull,
    default_folder,
)
from tests.fakes.stand import eventually

QUOTA = 1_000_000
PIECE = bytes(range(256)) * 300  # more than one chunk


@pytest.fixture(params=["tmpfile", "named"])
async def spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Spool]:
    """Twice: on a file system with O_TMPFILE, and on one without."""
    if request.param == "named":
        real = os.open

        def without(path: Path, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
            return real(path, flags, mode)

        monkeypatch.setattr(os, "open", without)
    made = Spool(tmp_path / "spool", QUOTA)
    yield made
    made.close()


async def read(file: SpoolFile) -> bytes:
    return b"".join([piece async for piece in file.chunks()])


def files(spool: Spool) -> list[str]:
    return sorted(os.listdir(spool.path("x").parent))


async def test_what_is_written_is_read_while_it_comes(spool: Spool) -> None:
    """Two readers, one early and one late, get every byte in order; the last one only at the end."""
    async with spool.open() as file:
        early = asyncio.create_task(read(file))
        reader = file.chunks()
        first = asyncio.ensure_future(anext(reader))
        await file.write(PIECE)
        await file.digest()  # it is on disk
        await asyncio.sleep(0.01)
        assert not first.done()
        await file.write(PIECE)
        got = await first
        while len(got) < len(PIECE):
            got += await anext(reader)
        assert got == PIECE
        await asyncio.sleep(0.01)
        assert not early.done()
        file.finish()
        assert await early == await read(file) == PIECE + PIECE
        assert (file.size, file.length) == (2 * len(PIECE), 2 * len(PIECE))


async def test_the_last_byte_makes_it_whole(spool: Spool) -> None:
    """Where the length is known all else is given as it comes."""
    async with spool.open(2 * len(PIECE)) as file:
        reader = file.chunks()
        await file.write(PIECE)
        assert await anext(reader) == PIECE
        await file.write(PIECE)
        assert await anext(reader) == PIECE[:-1]
        rest = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0.01)
        assert not rest.done()
        file.finish()
        assert await rest == PIECE[-1:]


@pytest.mark.parametrize("seed", range(5))
async def test_every_byte_in_order(spool: Spool, seed: int) -> None:
    """Whatever the pieces, and however far the disk is behind them."""
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.choice((1, 10, 5000, 70_000))) for _ in range(20)]
    async with spool.open() as file:
        readers = [asyncio.create_task(read(file)) for _ in range(2)]
        for piece in pieces:
            await file.write(piece)
            await asyncio.sleep(rng.choice((0, 0.001)))
        file.finish()
        assert [await reader for reader in readers] == [b"".join(pieces)] * 2


async def test_a_file_has_no_name(spool: Spool) -> None:
    """Nothing of it is in the folder, its mode is 0600, and the space comes back."""
    file = spool.open()
    await file.write(PIECE)
    assert files(spool) == []
    assert stat.S_IMODE(os.fstat(file._fd).st_mode) == 0o600
    assert os.fstat(file._fd).st_nlink == 0
    assert spool.used == len(PIECE)
    file.close()
    file.close()
    assert spool.used == 0
    with pytest.raises(ValueError, match="closed"):
        await file.write(b"x")


async def test_the_same_again_is_known(spool: Spool) -> None:
    """The digest is of the content, however it came in pieces."""
    async with spool.open() as one, spool.open() as other:
        await one.write(PIECE)
        await other.write(PIECE[:7])
        assert await one.digest() != await other.digest()
        await other.write(PIECE[7:])
        assert await one.digest() == await other.digest()


async def test_the_quota(spool: Spool) -> None:
    """It counts over all files; what is declared is looked at first; closing makes room."""
    with pytest.raises(SpoolFull, match="spool_bytes"):
        spool.open(QUOTA + 1)
    async with spool.open(QUOTA) as one:
        await one.write(b"x" * (QUOTA - 10))
        async with spool.open() as other:
            await other.write(b"y" * 10)
            with pytest.raises(SpoolFull):
                await other.write(b"y")
    assert spool.used == 0
    async with spool.open() as again:
        await again.write(b"x" * QUOTA)


async def test_a_full_disk(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same to callers as a quota that is spent, and charges nothing that lasts (faults.md 49)."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with spool.open() as file:
        monkeypatch.setattr(os, "pwrite", full)
        await file.write(PIECE)  # too little to be worth a look at the disk
        for again in (
            file.write(bytes(MOST_BEHIND)),
            file.digest(),
            spool.keep(file, "x"),
            file.write(PIECE),
        ):
            with pytest.raises(SpoolFull, match="No space left"):
                await again
    assert spool.used == 0


async def test_kept_files(spool: Spool, tmp_path: Path) -> None:
    """A kept file is there after close and for another process, until it is deleted."""
    async with spool.open() as file:
        await file.write(PIECE)
        file.finish()
        await spool.keep(file, "job-1")
        with pytest.raises(FileExistsError):
            await spool.keep(file, "job-1")
    assert (files(spool), spool.used) == (["job-1"], len(PIECE))
    assert stat.S_IMODE(spool.path("job-1").stat().st_mode) == 0o600
    after = Spool(tmp_path / "spool", QUOTA)
    assert after.used == len(PIECE)
    async with await after.recording("job-1") as kept:
        assert kept.length == len(PIECE)
        await after.delete("job-1")  # who reads it has it to the end
        assert await read(kept) == PIECE
    await after.delete("job-1")
    assert (files(spool), after.used) == ([], 0)
    after.close()
    with pytest.raises(FileNotFoundError):
        await spool.recording("job-1")


async def test_what_others_delete_makes_room(spool: Spool) -> None:
    """Workers in other processes delete the audio of the jobs that they run."""
    for name in ("one", "two"):
        async with spool.open() as file:
            await file.write(b"x" * (QUOTA // 2))
            await spool.keep(file, name)
    with pytest.raises(SpoolFull):
        spool.open(1)
    spool.path("one").unlink()
    spool._look_at = 0.0
    spool.open(QUOTA // 2).close()
    assert spool.used == QUOTA // 2
    spool.path("two").unlink()
    await spool.sweep(lambda names: asyncio.sleep(0, set(names)), 0.0)
    assert spool.used == 0


async def test_orphans_are_swept(spool: Spool) -> None:
    """What no job wants goes, once it is old; what is new may be a job that is being written down."""
    for name in ("wanted", "orphan", "new"):
        async with spool.open() as file:
            await file.write(b"abc")
            await spool.keep(file, name)
    for name in ("wanted", "orphan"):
        os.utime(spool.path(name), (1000.0, 1000.0))
    asked: list[str] = []

    async def wanted(names: list[str]) -> Collection[str]:
        asked.extend(names)
        return {"wanted"}

    assert await spool.sweep(wanted, 999.0 + ORPHAN_SECONDS) == 0
    assert await spool.sweep(wanted, 1001.0 + ORPHAN_SECONDS) == 1
    assert (files(spool), sorted(asked)) == (["new", "wanted"], ["orphan", "wanted"])
    assert spool.used == 6


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "x" * 200])
async def test_names_stay_in_the_folder(spool: Spool, name: str) -> None:
    """A name is a file's, never a path."""
    with pytest.raises(ValueError, match="not a name"):
        spool.path(name)


async def test_a_slow_disk_does_not_hold_up_the_loop(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes wait in a thread; a file closed meanwhile keeps its descriptor until the thread is done."""
    going, real = threading.Event(), os.pwrite

    def slow(fd: int, data: bytes, at: int) -> int:
        assert going.wait(5)
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", slow)
    file = spool.open()
    fd = file._fd
    await file.write(PIECE)
    writing = asyncio.create_task(file.write(bytes(MOST_BEHIND)))
    await asyncio.sleep(0.02)
    assert not writing.done()  # no more is held in memory
    assert await anext(file.chunks()) == PIECE  # which is read from there
    writing.cancel()
    await asyncio.wait({writing})
    file.close()
    assert os.fstat(fd).st_size == 0  # still open
    going.set()
    await eventually(lambda: not file._using)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert spool.used == 0


async def test_a_handle_on_a_slow_disk(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has all that was written, whenever it was: `write` returns before the disk has it."""
    going, real = threading.Event(), os.pwrite

    def slow(fd: int, data: bytes, at: int) -> int:
        assert going.wait(5)
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", slow)
    async with spool.open() as file:
        await file.write(PIECE)
        asyncio.get_running_loop().call_later(0.02, going.set)
        with await file.handle() as handle:
            assert handle.read() == PIECE


def test_the_folder_is_private(tmp_path: Path) -> None:
    """It is made with mode 0700; one that others can look into, or that is a link, is refused."""
    Spool(tmp_path / "a" / "b", QUOTA).close()
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for name in ("open", "link", "file", "file/under"):
        with pytest.raises(ConfigError, match=r"prerecorded\.spool_dir"):
            Spool(tmp_path / name, QUOTA)


def test_where_the_folder_is() -> None:
    """As configured, else in the service's state directory, else among temporary files."""
    assert default_folder("/x/y", {"STATE_DIRECTORY": "/s"}) == Path("/x/y")
    assert default_folder("", {"STATE_DIRECTORY": "/s:/t"}) == Path("/s/spool")
    assert default_folder("", {}).name == f"gateway-spool-{os.getuid()}"
