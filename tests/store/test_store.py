"""Group commit: whose fault is whose, and what happens while the database is gone. On both databases."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import create_engine, event, make_url, select, text
from sqlalchemy.engine import URL

from gateway.errors import ConfigError, StoreConflict, StoreError
from gateway.metrics import Metrics
from gateway.store import migrate
from gateway.store.databases import Connection, connect, location
from gateway.store.schema import USAGE
from gateway.store.store import Migrate, Store, check
from tests.fakes.postgres import Postgres
from tests.fakes.stand import eventually

INSERT = USAGE.insert()


def row(principal: str) -> dict[str, Any]:
    seconds = {"accepted_seconds": 1.0, "sent_seconds": 1.0, "replayed_seconds": 0.0}
    return {"principal": principal, "day": date(2026, 1, 1), **seconds}


def adding(principal: str) -> Callable[[Connection], Awaitable[str]]:
    """An operation that inserts a row, and then sees it."""

    async def op(connection: Connection) -> str:
        await connection.execute(INSERT, row(principal))
        found = await connection.execute(select(USAGE.c.principal).where(USAGE.c.principal == principal))
        return str(found.scalar_one())

    return op


async def principals(connection: Connection) -> list[str]:
    return list((await connection.execute(select(USAGE.c.principal).order_by("principal"))).scalars())


def commits(metrics: Metrics) -> int:
    return sum(metrics.store_commit.counts)


async def test_what_is_written_can_be_read(store: Store, metrics: Metrics) -> None:
    """The result comes after the commit: another connection sees the row."""
    assert await store.write(adding("a")) == "a"
    assert await store.read(principals) == ["a"]
    assert (store.healthy, metrics.store_up, commits(metrics)) == (True, 1, 1)


async def test_what_waits_is_one_transaction(store: Store, metrics: Metrics) -> None:
    """Operations and rows alike; each has its own result."""
    names = [f"{i:03}" for i in range(40)]
    writes = [store.write(adding(name)) for name in names[:20]]
    puts = [store.put(INSERT, [row(name)]) for name in names[20:]]
    assert await asyncio.gather(*writes, *puts) == names[:20] + [None] * 20
    assert await store.read(principals) == names
    assert commits(metrics) == 1
    assert metrics.store_queue_depth == 0


async def test_what_is_written_jointly(store: Store, metrics: Metrics) -> None:
    """One call for all that waits, and a result for each; what fails does so without the others."""
    calls: list[list[str]] = []

    async def add(connection: Connection, names: Sequence[str]) -> list[str]:
        calls.append(list(names))
        await connection.execute(INSERT, [row(name) for name in names])
        return [name.upper() for name in names]

    first = [store.write_jointly(add, name) for name in "abc"]
    assert await asyncio.gather(*first, store.write(adding("d"))) == ["A", "B", "C", "d"]
    assert (calls, commits(metrics)) == ([["a", "b", "c"]], 1)
    found = await asyncio.gather(*(store.write_jointly(add, name) for name in "efag"), return_exceptions=True)
    assert [type(one) for one in found] == [str, str, StoreConflict, str]
    assert await store.read(principals) == list("abcdefg")


async def test_only_the_guilty_fail(store: Store, metrics: Metrics) -> None:
    """Those beside them are done, and done once; nothing is left of the others."""
    await store.write(adding("taken"))

    async def broken(connection: Connection) -> None:
        await adding("half")(connection)
        raise ValueError("mine")

    async def wrong(connection: Connection) -> None:
        await connection.execute(text("SELECT * FROM nothing"))

    found = await asyncio.gather(
        *(store.write(adding(f"good{i}")) for i in range(5)),
        store.write(broken),
        store.write(adding("taken")),
        store.put(INSERT, [row("new"), row("taken")]),
        store.write(wrong),
        store.put(INSERT, [row("good5")]),
        return_exceptions=True,
    )
    assert found[:5] == [f"good{i}" for i in range(5)]
    assert [type(error) for error in found[5:]] == [
        ValueError,
        StoreConflict,
        StoreConflict,
        StoreError,
        type(None),
    ]
    assert await store.read(principals) == [*(f"good{i}" for i in range(6)), "taken"]
    assert (metrics.store_errors["conflict"], metrics.store_errors["failed"], store.healthy) == (2, 2, True)


async def test_errors_do_not_tell_what_was_stored(store: Store) -> None:
    """An error ends in a log; what people said and who they are does not."""
    await store.write(adding("secret"))
    with pytest.raises(StoreConflict) as caught:
        await store.write(adding("secret"))
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError) as caught_reading:
        await store.read(lambda c: c.execute(text("SELECT :said FROM nothing"), {"said": "secret"}))
    assert "secret" not in str(caught_reading.value)


async def test_whoever_leaves_does_not_stop_it(store: Store) -> None:
    """A request that is cancelled has its row, or not; the writer goes on."""
    leaving = asyncio.create_task(store.write(adding("left")))
    staying = asyncio.create_task(store.write(adding("stayed")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == "stayed"
    assert await store.read(principals) == ["left", "stayed"]


async def test_it_refuses_when_too_much_waits(url: URL, metrics: Metrics) -> None:
    """A queue has an end; what is in it is written all the same."""
    store = await Store.open(url, metrics=metrics, limit=3)
    found = await asyncio.gather(*(store.write(adding(str(i))) for i in range(5)), return_exceptions=True)
    assert [str(one) for one in found] == ["0", "1", "2", *["the store has too much to do"] * 2]
    assert metrics.store_errors["full"] == 2
    await store.close()


async def test_close_writes_what_waits(url: URL, metrics: Metrics) -> None:
    """And takes nothing more."""
    store = await Store.open(url, metrics=metrics)
    waiting = [asyncio.create_task(store.write(adding(str(i)))) for i in range(3)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*waiting) == ["0", "1", "2"]
    with pytest.raises(StoreError):
        await store.write(adding("late"))
    again = await Store.open(url, metrics=metrics)
    assert await again.read(principals) == ["0", "1", "2"]
    await again.close()


async def test_tables_of_a_newer_version(url: URL, metrics: Metrics) -> None:
    """One line, and nothing is touched."""
    await (await Store.open(url, metrics=metrics)).close()
    database = connect(url)
    await database.transact(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    for migrate_when in get_args(Migrate):
        with pytest.raises(ConfigError, match=r"newer version \(9999; this one needs \d+\): update gateway"):
            await Store.open(url, metrics=metrics, migrate=migrate_when)
    await database.close()


async def test_tables_of_an_older_version(url: URL, metrics: Metrics) -> None:
    """PostgreSQL's are changed only when that is asked for: other hosts may still use them."""
    with pytest.raises(ConfigError, match=r"version none, this one needs \d+: `gateway db upgrade`$"):
        await Store.open(url, metrics=metrics, migrate="never")
    database = connect(url)
    await database.transact(lambda c: c.run_sync(migrate.upgrade, "0001"))
    if url.get_backend_name() != "sqlite":
        with pytest.raises(ConfigError, match=r"version 0001, this one needs \d+: `gateway db upgrade`$"):
            await Store.open(url, metrics=metrics)
        await (await Store.open(url, metrics=metrics, migrate="always")).close()
    await (await Store.open(url, metrics=metrics)).close()
    assert await database.read(lambda c: c.run_sync(migrate.current)) == migrate.head()
    await database.close()


def test_sqlite_without_search() -> None:
    """Told at the start, and not by the first search."""
    engine = create_engine("sqlite://")

    @event.listens_for(engine, "connect")
    def without_fts5(connection: Any, _record: Any) -> None:
        connection.create_function("sqlite_compileoption_used", 1, lambda _name: 0)

    with engine.connect() as connection, pytest.raises(ConfigError, match="SQLite has no FTS5"):
        check(connection, "auto")
    engine.dispose()


async def test_postgresql_goes_and_comes_back(metrics: Metrics) -> None:
    """In flight all is refused at once; what was acknowledged is there afterwards."""
    with Postgres() as server:
        place = location(server.database(), {})
        assert place is not None
        store = await Store.open(place, metrics=metrics)
        await store.write(adding("kept"))
        server.stop()
        for ask in (store.write(adding("lost")), store.write(adding("lost")), store.read(principals)):
            with pytest.raises(StoreError):
                await asyncio.wait_for(ask, 3)
        assert (store.healthy, metrics.store_up) == (False, 0)
        assert metrics.store_errors["down"] >= 1
        server.start()
        await eventually(lambda: store.healthy, 10)
        await store.write(adding("later"))
        assert await store.read(principals) == ["kept", "later"]
        server.stop()
        await asyncio.wait_for(store.close(), 5)


async def test_postgresql_restarts_while_nobody_writes(metrics: Metrics) -> None:
    """A connection that died in the meantime costs nobody a write."""
    with Postgres() as server:
        place = location(server.database(), {})
        assert place is not None
        store = await Store.open(place, metrics=metrics)
        server.stop()
        server.start()
        assert await store.write(adding("a")) == "a"
        await store.close()


async def test_a_database_that_is_not_there_yet(tmp_path: Path, metrics: Metrics) -> None:
    """The start goes on without it; it is used as soon as it can be."""
    (tmp_path / "state").write_text("in the way")
    store = await Store.open(make_url(f"sqlite:///{tmp_path}/state/gateway.db"), metrics=metrics)
    assert not store.healthy
    with pytest.raises(StoreError):
        await store.write(adding("early"))
    (tmp_path / "state").unlink()
    await eventually(lambda: store.healthy, 10)
    assert await store.write(adding("a")) == "a"
    await store.close()


async def test_a_full_disk(tmp_path: Path, metrics: Metrics) -> None:
    """It stays down until there is room again, and does not flap."""
    store = await Store.open(make_url(f"sqlite:///{tmp_path}/gateway.db"), metrics=metrics)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (tmp_path / "gateway.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(StoreError):
            await store.write(adding("a"))
        for _ in range(25):
            await asyncio.sleep(0.1)
            assert not store.healthy
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await eventually(lambda: store.healthy, 10)
    assert await store.write(adding("a")) == "a"
    await store.close()


async def test_close_while_it_is_down(tmp_path: Path, metrics: Metrics) -> None:
    """It does not wait for the database."""
    (tmp_path / "state").write_text("in the way")
    store = await Store.open(make_url(f"sqlite:///{tmp_path}/state/gateway.db"), metrics=metrics)
    await asyncio.wait_for(store.close(), 0.5)


async def test_a_file_that_is_broken(tmp_path: Path, metrics: Metrics) -> None:
    """Is a store that is down, and says so, until somebody has mended it (faults.md 74)."""
    path = tmp_path / "gateway.db"
    store = await Store.open(make_url(f"sqlite:///{path}"), metrics=metrics)
    await store.close()
    store = await Store.open(make_url(f"sqlite:///{path}"), metrics=metrics)
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xa5" * (len(data) - 100))
    with pytest.raises(StoreError):
        await store.write(lambda c: c.execute(text("DELETE FROM jobs")))
    assert (store.healthy, metrics.store_up) == (False, 0)
    await asyncio.sleep(1.5)
    assert not store.healthy
    await store.close()
