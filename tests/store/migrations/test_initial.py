"""The first revision: what it makes, and that it can be gone back from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.engine import URL

from gateway.errors import ConfigError
from gateway.store import migrate
from gateway.store.databases import Connection, connect
from gateway.store.migrations import initial
from gateway.store.schema import METADATA


def differences(connection: sqlalchemy.Connection) -> list[Any]:
    """What a migration would have to do to come from the database to the tables of the code."""
    options = {"compare_type": True, "compare_server_default": True, "include_name": _known}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


def _known(name: str | None, _kind: str, _parents: Any) -> bool:
    """The index for search is the migrations' alone."""
    return name is None or not (name.startswith("transcripts_text") or name == "ix_transcripts_text")


async def test_what_it_makes_is_the_schema(url: URL) -> None:
    """Every table, column, type, key and index."""
    database = connect(url)
    await database.transact(lambda c: c.run_sync(migrate.upgrade, initial.revision))
    assert await database.transact(lambda c: c.run_sync(differences)) == []
    await database.transact(lambda c: c.execute(text("DROP INDEX ix_jobs_ended_at")))
    assert [kind for kind, _ in await database.transact(lambda c: c.run_sync(differences))] == ["add_index"]
    await database.close()


async def test_up_down_and_up_again(url: URL) -> None:
    """Down to nothing: not a table is left, its index for search included."""
    database = connect(url)

    async def go(way: Callable[..., None], revision: str, connection: Connection) -> None:
        await connection.run_sync(way, revision)

    found = []
    for way, revision in (
        (migrate.upgrade, "head"),
        (migrate.downgrade, "base"),
        (migrate.upgrade, "0001"),
        (migrate.upgrade, "head"),
    ):
        await database.transact(functools.partial(go, way, revision))
        tables = await database.read(lambda c: c.run_sync(lambda sync: inspect(sync).get_table_names()))
        found.append((await database.read(lambda c: c.run_sync(migrate.current)), len(tables) > 1))
    assert found == [("0001", True), (None, False), ("0001", True), ("0001", True)]
    with pytest.raises(ConfigError, match=r"^store: Can't locate revision"):
        await database.transact(lambda c: c.run_sync(migrate.downgrade, "nonsense"))
    await database.close()
