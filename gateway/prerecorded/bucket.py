"""Recordings of jobs in an object store, where hosts that share no folder have them all.

An upload is in the spool folder of the host that takes it in, like any other, until it is whole; then it goes
to the bucket, in parts, and the folder's copy is gone with the request. Whoever runs the job fetches it into
a file of its own spool, without a name. Credentials, region and endpoint come from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from gateway.errors import ConfigError
from gateway.prerecorded.spool import NO_ROOM, Spool, SpoolDown, SpoolFile, SpoolFull

PART_BYTES: Final = 5_242_880
"""Of an upload; 10 000 of them at most, which is 48 GiB."""
UPLOADS: Final = 8
"""To the store at once, each with a part at a time: 20 MiB of memory, whatever their size."""
PIECE_BYTES: Final = 262_144
CONNECT_SECONDS: Final = 2.0
STILL_SECONDS: Final = 60.0
"""Without a byte from the store, which is also the longest that it may take to swallow a part."""
LONGEST_SECONDS: Final = 7200.0
RETRIES: Final = 2
COUNT_SECONDS: Final = 60.0
"""Between two looks at all that is in the bucket, while there is no room."""
_OURS: Final = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{40}")
"""How recordings of jobs are called; whatever else is in the bucket is let alone."""


class BucketSpool(Spool):
    """A spool whose kept files are in a bucket, where those of all hosts together have the same quota."""

    def __init__(self, folder: Path, quota: int, url: str, *, insecure: bool) -> None:
        """`url`: s3://BUCKET/PREFIX. `insecure`: whether the endpoint may be http. Raises ConfigError."""
        super().__init__(folder, quota)
        try:
            self._bucket = S3Store.from_url(
                url,
                client_options={
                    "allow_http": insecure,
                    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                    "read_timeout": timedelta(seconds=STILL_SECONDS),
                    "timeout": timedelta(seconds=LONGEST_SECONDS),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=STILL_SECONDS)},
            )
        except (BaseError, ValueError) as exc:
            raise ConfigError(f"prerecorded.spool_url: {_line(exc)}") from None
        self._going_up = asyncio.Semaphore(UPLOADS)
        self._stored = 0
        self._count_at = 0.0

    async def keep(self, file: SpoolFile, name: str) -> None:
        if await self.holds(name):
            raise FileExistsError(name)
        await self._find_place(file.size)
        async with self._going_up:
            with await file.handle() as whole, _reaching():
                await obstore.put_async(self._bucket, name, whole, chunk_size=PART_BYTES, max_concurrency=1)
        self._stored += file.size

    async def holds(self, name: str) -> bool:
        with _reaching():
            try:
                await obstore.head_async(self._bucket, name)
            except FileNotFoundError:
                return False
        return True

    async def recording(self, name: str) -> SpoolFile:
        with _reaching():
            found = await obstore.get_async(self._bucket, name)
        file = self.open(found.meta["size"])
        try:
            with _reaching():
                async for piece in found.stream(PIECE_BYTES):
                    await file.write(bytes(piece))
            if file.size != found.meta["size"]:
                raise SpoolDown("the object store: a recording was cut short")
            file.finish()
        except BaseException:
            file.close()
            raise
        return file

    async def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _reaching():
            await obstore.delete_async(self._bucket, name)

    async def _old(self, then: float) -> list[str]:
        old, self._stored = [], 0
        with _reaching():
            async for batch in obstore.list(self._bucket):
                for found in batch:
                    if _OURS.fullmatch(found["path"]):
                        self._stored += found["size"]
                        if found["last_modified"].timestamp() < then:
                            old.append(found["path"])
        return old

    async def _find_place(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._stored + size > self._quota and now >= self._count_at:
            self._count_at = now + COUNT_SECONDS
            await self._old(0.0)  # others have deleted some of it
        if self._stored + size > self._quota:
            raise SpoolFull(NO_ROOM)


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """FileNotFoundError is what it says; whatever else the store answers, or does not, is SpoolDown."""
    try:
        yield
    except BaseError as exc:
        raise SpoolDown(f"the object store: {_line(exc)}") from exc


def _line(error: Exception) -> str:
    """The library's errors go on for a page."""
    return str(error).partition("\n")[0]
