"""Recordings in an object store: a real one, of a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.prerecorded import bucket
from gateway.prerecorded.bucket import PART_BYTES, BucketSpool
from gateway.prerecorded.spool import ORPHAN_SECONDS, Spool, SpoolDown, SpoolFull
from tests.fakes.s3 import URL, ObjectStore, object_store

NAMES = [f"{number:032x}.{number:040x}" for number in range(4)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(tmp_path / "objects") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def spool(tmp_path: Path, host: str = "a", quota: int = 1 << 30) -> BucketSpool:
    return BucketSpool(tmp_path / host, quota, URL, insecure=True)


async def keep(made: Spool, name: str, audio: bytes = b"audio") -> None:
    async with made.open() as file:
        await file.write(audio)
        file.finish()
        await made.keep(file, name)


async def test_another_host_has_it(server: ObjectStore, tmp_path: Path) -> None:
    """All of it, in as many parts as it takes; no host's own spool has anything left of it."""
    one, other = spool(tmp_path), spool(tmp_path, "b")
    audio = os.urandom(2 * PART_BYTES + 5)
    await keep(one, NAMES[0], audio)
    assert (one.used, await other.holds(NAMES[0])) == (0, True)
    async with await other.recording(NAMES[0]) as file:
        assert file.length == other.used == len(audio)
        assert b"".join([piece async for piece in file.chunks()]) == audio
    assert other.used == 0
    await other.delete(NAMES[0])
    await other.delete(NAMES[0])
    assert not await one.holds(NAMES[0])
    with pytest.raises(FileNotFoundError):
        await one.recording(NAMES[0])
    assert server.objects == set()


async def test_a_name_is_given_once(server: ObjectStore, tmp_path: Path) -> None:
    """As in a folder: it is how the same request is known again."""
    made = spool(tmp_path)
    await keep(made, NAMES[0])
    with pytest.raises(FileExistsError):
        await keep(made, NAMES[0])


async def test_what_nobody_needs_is_deleted(server: ObjectStore, tmp_path: Path) -> None:
    """When it is an hour old; what is not of jobs is not ours to delete."""
    made = spool(tmp_path)
    for name in NAMES[:3]:
        await keep(made, name)
    for path in (server.folder / NAMES[1], server.folder / NAMES[2], server.folder / "notes.txt"):
        path.write_bytes(b"audio")
        os.utime(path, (1000.0, 1000.0))

    async def wanted(names: list[str]) -> set[str]:
        assert sorted(names) == NAMES[1:3]
        return {NAMES[2]}

    assert await made.sweep(wanted, 1001.0 + ORPHAN_SECONDS) == 1
    assert server.objects == {NAMES[0], NAMES[2], "notes.txt"}


async def test_all_hosts_have_one_quota(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a host put there counts at once, what others did and deleted when it is looked for."""
    monkeypatch.setattr(bucket, "COUNT_SECONDS", 0.0)
    one, other = spool(tmp_path, quota=20), spool(tmp_path, "b", quota=20)
    await keep(one, NAMES[0], b"x" * 12)
    await other.sweep(lambda names: asyncio.sleep(0, set(names)), 0.0)
    for host in (one, other):
        with pytest.raises(SpoolFull):
            await keep(host, NAMES[1], b"x" * 12)
    await other.delete(NAMES[0])
    await keep(one, NAMES[1], b"x" * 12)


async def test_a_store_that_is_away(server: ObjectStore, tmp_path: Path) -> None:
    """One line, whatever is asked of it; and then it is back."""
    made = spool(tmp_path)
    await keep(made, NAMES[0])
    server.kill()
    for asked in (
        keep(made, NAMES[1]),
        made.recording(NAMES[0]),
        made.holds(NAMES[0]),
        made.delete(NAMES[0]),
        made.sweep(lambda names: asyncio.sleep(0, set(names)), 0.0),
    ):
        with pytest.raises(SpoolDown, match=r"^the object store: [^\n]+$"):
            await asked
    assert made.used == 0
    server.start()
    assert await made.holds(NAMES[0])


async def test_a_wrong_key(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a store that cannot be used, and not a recording that is not there."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SpoolDown):
        await spool(tmp_path).recording(NAMES[0])


def test_a_url_that_is_none(tmp_path: Path) -> None:
    """One line that names the setting."""
    with pytest.raises(ConfigError, match=r"^prerecorded\.spool_url: [^\n]+$"):
        BucketSpool(tmp_path / "a", 1, "s3://", insecure=False)
