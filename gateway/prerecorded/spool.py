"""Audio on disk, under a quota: a file without a name for each request, a named one for each job.

Whoever uploads writes, whoever sends to Deepgram reads after, at the same time and as often as needed: so an
upload is never in memory, and a retry has all of it again. The disk works behind: what was written last is
read from memory, a few pieces of it, and goes to the file in a thread once it is worth one's while, or once
somebody needs it there. In the loop a write would hold up every call whenever the kernel makes writers wait
(64 KiB into the page cache take 70 us, or milliseconds), and awaiting each in a thread makes an upload wait
for the scheduler as often as it has pieces. Reads come from the page cache and do not wait; those that would,
go to a thread.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, TypeVar

from gateway.errors import ConfigError, GatewayError
from gateway.threads import give_way

if TYPE_CHECKING:
    from _hashlib import HASH

CHUNK_BYTES: Final = 65_536
BATCH_BYTES: Final = 196_608
"""What is worth a thread's while, as long as nobody waits for the disk."""
MOST_BEHIND: Final = 2 * BATCH_BYTES
"""Bytes of one file that are in memory and not yet on disk, before its writer has to wait."""
THREADS: Final = 4
ORPHAN_SECONDS: Final = 3600.0
"""A named file younger than that may be one whose job is being written down, here or on another host."""
LOOK_SECONDS: Final = 1.0
"""Between two looks for files that others have deleted, while there is no room."""
NO_ROOM: Final = "uploads have all the space that prerecorded.spool_bytes gives them"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


class SpoolFull(GatewayError):
    """The quota is spent, or the disk is."""


class SpoolDown(GatewayError):
    """Where kept files are cannot be reached."""


class SpoolFile:
    """A recording on disk that may still be growing; see `Spool.open`.

    `size` is what is in it, `complete` whether no more will come. `close` gives its disk space back unless it
    was kept; a closed file cannot be read.
    """

    def __init__(
        self, spool: Spool, fd: int, *, size: int = 0, complete: bool = False, declared: int | None = None
    ) -> None:
        self.size = size
        self.complete = complete
        self.finished_at = 0.0  # on the loop's clock
        self._declared = declared
        self._spool = spool
        self._fd = fd
        self._charged = 0
        self._on_disk = size  # bytes
        self._hash = hashlib.sha1(usedforsecurity=False)  # of those; the fastest here that makes no mistakes
        self._behind: list[bytes] = []  # what follows on that
        self._caught_up = asyncio.Event()
        self._error: BaseException | None = None
        self._grown = asyncio.Event()
        self._held_back = 0
        self._writing = False
        self._using = 0  # threads that have the descriptor now
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()

    @property
    def length(self) -> int | None:
        """How much it is going to be, where that is known."""
        return self.size if self.complete else self._declared

    async def write(self, data: bytes) -> None:
        """Appends. Raises SpoolFull."""
        if self._closed:
            raise ValueError("the spool file is closed")
        self._spool.charge(len(data))
        self._charged += len(data)
        self._behind.append(data)
        self.size += len(data)
        if self._declared is None:
            self._held_back = len(data)
        else:  # the last byte makes it whole
            self._held_back = int(self.size >= self._declared)
        self._grown.set()
        self._write_behind(BATCH_BYTES)
        await self._until_behind(MOST_BEHIND)

    async def digest(self) -> bytes:
        """Of all that was written, to know the same again. Raises SpoolFull."""
        await self._until_behind(BATCH_BYTES)
        return _hashed(self._hash, self._behind).digest()

    def finish(self) -> None:
        """No more will come: who reads gets the rest."""
        self.complete = True
        self.finished_at = asyncio.get_running_loop().time()
        self._grown.set()

    def chunks(self) -> AsyncIterator[bytes]:
        """All of it from the beginning, as it comes.

        Nobody has a whole recording before `finish`: the end is held back, which is the last byte where the
        length is known, and else what was written last.
        """
        return _Chunks(self)

    async def read(self, at: int) -> bytes:
        """The next piece from there on, when there is one; b"" at the end."""
        while True:
            there = self.size if self.complete else self.size - self._held_back
            if at < there:
                return await self._read(at, there)
            if self.complete:
                return b""
            self._grown.clear()
            await self._grown.wait()

    async def link(self, path: Path) -> None:
        """Gives it a name, which is on disk when this returns. Raises FileExistsError, SpoolFull."""
        await self._until_behind(0)
        await self._in_thread(self._link, path)
        self._spool.kept(path.name, self._charged)
        self._charged = 0

    async def handle(self) -> BinaryIO:
        """An ordinary file with all that was written, for threads; whoever gets it closes it.

        Raises SpoolFull.
        """
        await self._until_behind(0)
        return os.fdopen(os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC), "rb")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._spool.charge(-self._charged)
        self._charged = 0
        self._behind.clear()
        self._caught_up.set()
        self._release()

    # Private

    async def _read(self, at: int, end: int) -> bytes:
        if at >= self._on_disk:
            return self._remembered(at - self._on_disk, end - self._on_disk)
        data = bytearray(min(CHUNK_BYTES, min(self._on_disk, end) - at))
        try:
            got = os.preadv(self._fd, [data], at, os.RWF_NOWAIT)
        except OSError:  # it would wait for the disk, or this file system cannot say
            got = await self._in_thread(os.preadv, self._fd, [data], at)
        if not got:
            raise OSError(errno.EIO, "the spool file is shorter than it was")
        return bytes(data) if got == len(data) else bytes(data[:got])

    def _remembered(self, at: int, end: int) -> bytes:
        """What one piece has of the bytes from `at` to `end`, counted from the first that is not on disk."""
        for piece in self._behind:
            if at < len(piece):
                return piece[at:end]
            at, end = at - len(piece), end - len(piece)
        raise AssertionError("read beyond the end")

    def _write_behind(self, least: int) -> None:
        """Has what is not on disk written, if it is that much and nothing is being written now."""
        is_open = not self._closed and self._error is None
        if is_open and not self._writing and self.size - self._on_disk >= least:
            self._writing = True
            pieces = tuple(self._behind)
            running = self._run(self._append, pieces, self._on_disk)
            running.add_done_callback(lambda _: self._written(running, pieces))

    def _written(self, running: asyncio.Future[HASH], pieces: tuple[bytes, ...]) -> None:
        self._writing = False
        self._error = running.exception()
        if self._error is None:
            self._hash = running.result()
            del self._behind[: len(pieces)]
            self._on_disk += sum(map(len, pieces))
            self._write_behind(BATCH_BYTES)
        self._caught_up.set()

    async def _until_behind(self, most: int) -> None:
        """Waits until only so many bytes are not on disk."""
        while self._error is None and not self._closed and self.size - self._on_disk > most:
            self._write_behind(1)
            self._caught_up.clear()
            await self._caught_up.wait()
        if isinstance(self._error, OSError) and self._error.errno in _NO_SPACE:
            raise SpoolFull(f"no space for uploads: {self._error.strerror}") from self._error
        if self._error is not None:
            raise self._error

    def _append(self, pieces: tuple[bytes, ...], at: int) -> HASH:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
        return _hashed(self._hash, pieces)

    def _link(self, path: Path) -> None:
        try:
            os.link(f"/proc/self/fd/{self._fd}", path, follow_symlinks=True)
            os.fsync(self._fd)
        except FileExistsError:
            raise
        except OSError:  # a file system without O_TMPFILE
            with open(f"/proc/self/fd/{self._fd}", "rb") as source, _new(path) as copy:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
        _sync_folder(path.parent)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.shield(self._run(work, *arguments))

    def _run(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """A descriptor that a thread has is closed after it."""
        self._using += 1
        running = self._spool.run(work, *arguments)
        running.add_done_callback(self._done)
        return running

    def _done(self, running: asyncio.Future[Any]) -> None:
        if not running.cancelled():
            running.exception()  # told to whoever waits, if anybody still does
        self._using -= 1
        self._release()

    def _release(self) -> None:
        if self._closed and not self._using and self._fd >= 0:
            self._spool.drop(self._fd)
            self._fd = -1


class _Chunks:
    """No generator: one that is given up half-way would have to be closed by somebody."""

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._at = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self._file.read(self._at)
        if not data:
            raise StopAsyncIteration
        self._at += len(data)
        return data


class Spool:
    """A folder of recordings; `used` is the bytes that this process has in it, kept files included."""

    def __init__(self, folder: Path, quota: int) -> None:
        """Makes the folder if it must. Raises ConfigError for one that cannot be, or is open to others."""
        self.folder = _private(folder)
        self._quota = quota
        self._threads = ThreadPoolExecutor(THREADS, "spool", give_way)
        self._kept = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
        self.used = sum(self._kept.values())
        self._look_at = 0.0

    def close(self) -> None:
        """Waits for what the threads do now; kept files stay."""
        self._threads.shutdown()

    def open(self, declared: int | None = None) -> SpoolFile:
        """An empty file without a name: however this process ends, it is gone. Raises SpoolFull.

        `declared` is the size that it is going to have, if whoever sends it has said.
        """
        self._find_room(declared or 0)
        try:
            return SpoolFile(self, _nameless(self.folder), declared=declared)
        except OSError as exc:
            if exc.errno not in _NO_SPACE:
                raise
            raise SpoolFull(f"no space for uploads: {exc.strerror}") from exc

    async def keep(self, file: SpoolFile, name: str) -> None:
        """Gives a file a name, under which it outlives the process; it is safe when this returns.

        From then on it belongs to whoever knows the name: the file's `close` leaves it. Raises
        FileExistsError, SpoolFull, SpoolDown.
        """
        await file.link(self.path(name))

    async def holds(self, name: str) -> bool:
        """Whether there is a kept file of that name. Raises SpoolDown."""
        return self.path(name).exists()

    async def recording(self, name: str) -> SpoolFile:
        """A kept file, to be read. Raises FileNotFoundError, SpoolFull, SpoolDown."""
        fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return SpoolFile(self, fd, size=os.fstat(fd).st_size, complete=True)

    async def delete(self, name: str) -> None:
        """Deletes a kept file, if there is one. Raises SpoolDown."""
        await self.run(self.path(name).unlink, True)
        self._forget([name])

    async def sweep(self, wanted: Callable[[list[str]], Awaitable[Collection[str]]], now: float) -> int:
        """Deletes the kept files that nobody wants, once they are an hour old; returns how many.

        `wanted` is given names and returns those that a job still needs. `now`: seconds since 1970. Raises
        SpoolDown, and what `wanted` raises.
        """
        self._forget(await self.run(self._gone, list(self._kept)))
        old = await self._old(now - ORPHAN_SECONDS)
        orphans = set(old) - set(await wanted(old)) if old else set()
        for name in orphans:
            await self.delete(name)
        return len(orphans)

    def path(self, name: str) -> Path:
        """Where the kept file of that name is."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name for a file: {name!r}")
        return self.folder / name

    async def _old(self, then: float) -> list[str]:
        """Kept files from before that time."""
        return await self.run(self._older_than, then)

    # What a SpoolFile says

    def charge(self, size: int) -> None:
        self._find_room(size)
        self.used += size

    def kept(self, name: str, size: int) -> None:
        self._kept[name] = size

    def drop(self, fd: int) -> None:
        """Closes it, which takes a millisecond for every 8 MiB that have no name."""
        self._threads.submit(os.close, fd)

    def run(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _find_room(self, size: int) -> None:
        if size > 0 and self.used + size > self._quota:
            if (now := time.monotonic()) >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                self._forget(self._gone(list(self._kept)))
            if self.used + size > self._quota:
                raise SpoolFull(NO_ROOM)

    def _gone(self, names: list[str]) -> list[str]:
        """Those that are not there any more: who runs a job deletes its audio, and may be another process."""
        return [name for name in names if not self.path(name).exists()]

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self.used -= self._kept.pop(name, 0)

    def _older_than(self, then: float) -> list[str]:
        entries = (entry for entry in os.scandir(self.folder) if entry.is_file(follow_symlinks=False))
        return [entry.name for entry in entries if entry.stat().st_mtime < then]


def default_folder(configured: str, env: Mapping[str, str]) -> Path:
    """`prerecorded.spool_dir`, or what stands for it where it is empty."""
    if configured:
        return Path(configured)
    state = env.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(state, "spool") if state else Path(tempfile.gettempdir(), f"gateway-spool-{os.getuid()}")


def _hashed(before: HASH, pieces: Iterable[bytes]) -> HASH:
    """`before`, which is left as it is, and then `pieces`."""
    after = before.copy()
    for piece in pieces:
        after.update(piece)
    return after


def _private(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as exc:
        raise ConfigError(f"prerecorded.spool_dir: {folder}: {exc.strerror}") from exc
    # In a folder for all, like /tmp, somebody else may have been there first.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"prerecorded.spool_dir: {folder}: must be a folder of this user alone (chmod 700)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"prerecorded.spool_dir: {folder}: cannot be written to")
    return folder


def _nameless(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, path = tempfile.mkstemp(dir=folder)
    os.unlink(path)
    return fd


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _sync_folder(folder: Path) -> None:
    """A name is on disk when its folder is."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
