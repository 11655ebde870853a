"""The first revision: it makes everything, and can be gone back from."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from sqlalchemy import inspect
from sqlalchemy.engine import URL

from gateway.errors import ConfigError
from gateway.store import migrate
from gateway.store.databases import Connection, connect


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
    head = migrate.head()
    assert found == [(head, True), (None, False), ("0001", True), (head, True)]
    with pytest.raises(ConfigError, match=r"^store: Can't locate revision"):
        await database.transact(lambda c: c.run_sync(migrate.downgrade, "nonsense"))
    await database.close()
