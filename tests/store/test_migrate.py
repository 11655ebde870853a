"""Which revisions there are, and where they lead."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.engine import URL

from gateway.store import migrate
from gateway.store.databases import connect
from gateway.store.schema import METADATA


def differences(connection: sqlalchemy.Connection) -> list[Any]:
    """What a migration would have to do to come from the database to the tables of the code."""
    options = {"compare_type": True, "compare_server_default": True, "include_name": _known}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


def _known(name: str | None, _kind: str, _parents: Any) -> bool:
    """The index for search is the migrations' alone."""
    return name is None or not (name.startswith("transcripts_text") or name == "ix_transcripts_text")


async def test_they_lead_to_the_schema(url: URL) -> None:
    """Every table, column, type, key and index."""
    database = connect(url)
    await database.transact(lambda c: c.run_sync(migrate.upgrade))
    assert await database.transact(lambda c: c.run_sync(differences)) == []
    await database.transact(lambda c: c.execute(text("DROP INDEX ix_jobs_ended_at")))
    assert [kind for kind, _ in await database.transact(lambda c: c.run_sync(differences))] == ["add_index"]
    await database.close()


def test_the_head_is_known() -> None:
    """And what a newer version made is not."""
    assert migrate.known(migrate.head())
    assert not migrate.known("9999")
