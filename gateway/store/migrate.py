"""Which tables a database has, and the way to others: Alembic, on a connection that is handed in.

All of a way is one transaction, which the caller commits; on PostgreSQL a lock keeps two hosts from going it
at once. The functions are synchronous: `await connection.run_sync(upgrade, "head")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from gateway.errors import ConfigError

_FOLDER: Final = Path(__file__).with_name("migrations")
_LOCK: Final = 0x67617465
"""Any number that no other program asks PostgreSQL for."""


def head() -> str:
    """The revision that this code needs."""
    found = _script().get_current_head()
    assert found
    return found


def current(connection: Connection) -> str | None:
    """The revision that the database has; None: it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def known(revision: str) -> bool:
    """Whether this code has heard of `revision`; if not, a newer one has made it."""
    return revision in {script.revision for script in _script().walk_revisions()}


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Goes up to `revision`; nothing happens where the database is there already. Raises ConfigError."""
    _go(connection, "_upgrade_revs", revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Goes down to `revision`, "base" for none, or "-1" for one less. Raises ConfigError."""
    _go(connection, "_downgrade_revs", revision)


def _script() -> ScriptDirectory:
    return ScriptDirectory(_FOLDER, version_locations=[_FOLDER])


def _go(connection: Connection, direction: str, revision: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    steps = getattr(_script(), direction)  # what `alembic upgrade` and `downgrade` ask, too

    def way(now: Any, _context: MigrationContext) -> Any:
        return steps(revision, now)

    options = {"fn": way, "render_as_batch": connection.dialect.name == "sqlite"}
    context = MigrationContext.configure(connection, opts=options)
    try:
        with Operations.context(context):
            context.run_migrations()
    except CommandError as error:
        raise ConfigError(f"store: {error}") from None
