"""The index of calls without an end."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import event, make_url
from sqlalchemy.engine import URL, Engine

from gateway.store import migrate, transcripts
from gateway.store.databases import Connection, connect
from gateway.store.migrations import open_calls


async def test_up_and_down(url: URL) -> None:
    """It can be taken back."""
    database = connect(url)

    async def go(connection: Connection) -> list[str | None]:
        found = []
        for way, revision in (
            (migrate.upgrade, "0001"),
            (migrate.upgrade, "0002"),
            (migrate.downgrade, "-1"),
        ):
            await connection.run_sync(way, revision)
            found.append(await connection.run_sync(migrate.current))
        return found

    assert await database.transact(go) == ["0001", open_calls.revision, "0001"]
    await database.close()


async def test_who_looks_for_them_uses_it(tmp_path: Path) -> None:
    """Of all that was ever said only what has no end is read."""
    database, asked = connect(make_url(f"sqlite:///{tmp_path}/x.db")), []
    await database.transact(lambda c: c.run_sync(migrate.upgrade))

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    await database.transact(lambda c: transcripts.end_abandoned(c, 1.0))
    event.remove(Engine, "before_cursor_execute", note)
    statement, parameters = asked[-1]

    async def plan(connection: Connection) -> str:
        said = await connection.run_sync(
            lambda c: c.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        )
        return str(said.all())

    assert "ix_transcripts_open" in await database.read(plan)
    await database.close()
