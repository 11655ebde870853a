"""`gateway db`: which tables the store has, and the way to others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from gateway.config import Config
from gateway.errors import ConfigError, StoreError
from gateway.store import migrate
from gateway.store.databases import Connection, connect, line, location

Way = Literal["upgrade", "downgrade", "current"]
_GO: Final = {"upgrade": migrate.upgrade, "downgrade": migrate.downgrade}


async def go(config: Config, environment: Mapping[str, str], way: Way, revision: str) -> str:
    """Goes to `revision` where `way` is not "current"; returns the one that there is then, in words.

    Raises ConfigError for a revision that is not known, StoreError for a database that cannot be used.
    """
    url = location(config.store.url, environment)
    if url is None:
        raise ConfigError("store.url: is 'none', so there are no tables")

    async def op(connection: Connection) -> str:
        if way in _GO:
            await connection.run_sync(_GO[way], revision)
        return await connection.run_sync(migrate.current) or "no tables"

    database = connect(url)
    try:
        return await database.transact(op)
    except ConfigError:
        raise
    except Exception as error:
        raise StoreError(f"{database.name}: {line(error)}") from error
    finally:
        await database.close()
