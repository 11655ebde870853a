"""Where the database is, and what an operation on it may do."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.engine import URL

from gateway.errors import ConfigError
from gateway.store.databases import Connection, connect, location


@pytest.mark.parametrize(
    ("url", "environment", "found"),
    [
        ("", {"STATE_DIRECTORY": "/var/lib/a:/b"}, "sqlite:////var/lib/a/gateway.db"),
        ("", {"XDG_STATE_HOME": "/x", "HOME": "/h"}, "sqlite:////x/gateway/gateway.db"),
        ("", {"HOME": "/h"}, "sqlite:////h/.local/state/gateway/gateway.db"),
        ("sqlite:///a.db", {}, "sqlite:///a.db"),
        ("postgresql://u:p@h/d", {}, "postgresql+asyncpg://u:p@h/d"),
        ("postgres://h/d", {}, "postgresql+asyncpg://h/d"),
    ],
)
def test_where_it_is(url: str, environment: dict[str, str], found: str) -> None:
    """systemd's folder, else the user's, unless it is said."""
    assert location(url, environment) == make_url(found)


def test_nowhere() -> None:
    assert location("none", {}) is None


@pytest.mark.parametrize("url", ["/var/lib/x.db", "sqlite://", "sqlite:///:memory:", "mysql://h/d", "://"])
def test_what_is_no_place(url: str) -> None:
    """One line that names the key."""
    with pytest.raises(ConfigError, match=r"^store\.url: .*sqlite:///"):
        location(url, {})


def test_postgresql_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(
        ConfigError, match=r"^store\.url: PostgreSQL needs asyncpg; .* pip install '\.\[fleet\]'$"
    ):
        connect(make_url("postgresql+asyncpg://h/d"))


async def test_files_are_their_owners(tmp_path: Path) -> None:
    """Nobody else reads what people said, whatever the umask."""
    path = tmp_path / "state" / "gateway.db"
    database = connect(make_url(f"sqlite:///{path}"))
    await database.transact(lambda c: c.execute(text("CREATE TABLE t (a)")))
    modes = {found.name: found.stat().st_mode & 0o777 for found in (path.parent, *path.parent.iterdir())}
    assert modes == {"state": 0o700, "gateway.db": 0o600, "gateway.db-wal": 0o600, "gateway.db-shm": 0o600}
    await database.close()


async def test_others_come_and_go(tmp_path: Path) -> None:
    """Whoever opens the file beside us and closes it leaves us the log that both write to."""
    path = tmp_path / "x.db"
    database = connect(make_url(f"sqlite:///{path}"))
    await database.transact(lambda c: c.execute(text("CREATE TABLE t (a INTEGER)")))
    write = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES (2)'); "
        "c.commit(); c.close()"
    )
    for _ in range(2):
        await database.transact(lambda c: c.execute(text("INSERT INTO t VALUES (1)")))
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", write, path)
        assert await other.wait() == 0
    await database.close()
    with sqlite3.connect(path) as left:
        assert left.execute("SELECT a FROM t ORDER BY a").fetchall() == [(1,), (1,), (2,), (2,)]
    left.close()


async def test_who_comes_first_is_alone(tmp_path: Path) -> None:
    """Until all that came have gone, or have died."""
    url = make_url(f"sqlite:///{tmp_path}/state/x.db")
    first, second, third = connect(url), connect(url), connect(url)
    assert [await one.enter() for one in (first, second, first)] == [True, False, True]
    await first.close()
    assert not await third.enter()
    await second.close()
    await third.close()
    code = (
        "import asyncio, sys; from sqlalchemy import make_url; from gateway.store.databases import connect\n"
        "async def main():\n"
        "    print(await connect(make_url(sys.argv[1])).enter(), flush=True); sys.stdin.read()\n"
        "asyncio.run(main())"
    )
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, url.render_as_string()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout
    assert await other.stdout.readline() == b"True\n"
    beside = connect(url)
    assert not await beside.enter()
    await beside.close()
    other.kill()
    await other.wait()
    after = connect(url)
    assert await after.enter()
    await after.close()


async def test_tables_change_inside_a_transaction(url: URL) -> None:
    """A migration that fails half way leaves nothing."""

    async def half(connection: Connection) -> None:
        await connection.execute(text("CREATE TABLE t (a INTEGER)"))
        raise ValueError("half")

    database = connect(url)
    with pytest.raises(ValueError, match=r"^half$"):
        await database.transact(half)
    await database.transact(lambda c: c.execute(text("CREATE TABLE t (a INTEGER)")))
    await database.close()


async def test_sqlites_settings(tmp_path: Path) -> None:
    """On disk at each commit, readers beside the writer, and keys that hold."""
    database = connect(make_url(f"sqlite:///{tmp_path}/x.db"))

    async def settings(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [(await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in names]

    assert await database.transact(settings) == ["wal", 2, 1, 5000]
    assert await database.read(settings) == ["wal", 2, 1, 5000]
    await database.close()


async def test_an_operation_may_not_wait(tmp_path: Path) -> None:
    """In SQLite's thread there is no event loop: a mistake that shows at the first try."""
    database = connect(make_url(f"sqlite:///{tmp_path}/x.db"))
    with pytest.raises(RuntimeError, match="nothing but its connection"):
        await database.transact(lambda _connection: asyncio.sleep(0))
    await database.close()
