"""SQLite and PostgreSQL behind one face: an operation, run in a transaction or for reading.

SQLite's is the synchronous driver in threads: one hop for a whole operation. The asyncio driver for SQLite
hops at each step of each statement; that was measured at a quarter of the writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy
from sqlalchemy import CursorResult, Dialect, Executable, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.errors import ConfigError
from gateway.threads import give_way

T = TypeVar("T")

CONNECT_SECONDS: Final = 5.0
"""For a connection; in SQLite for the lock, which `gateway db` or a backup may have."""
COMMAND_SECONDS: Final = 30.0
"""For one statement in PostgreSQL: a network that swallows packets must not hold the writer for ever."""
READERS: Final = 4
_SQLITE_ERROR: Final = 1
"""SQLite's code for a statement that is wrong; other codes are about the file."""
_SQLITE_BROKEN: Final = (11, 26)
"""SQLITE_CORRUPT and SQLITE_NOTADB; the lowest byte of a code tells."""
_GONE: Final = ("08", "53", "57", "58", "25006")
"""How PostgreSQL's codes begin for: no connection, no resources, shutting down, the system, a standby."""


class Connection(Protocol):
    """What an operation has to work with: SQLAlchemy's AsyncConnection, or what is like it."""

    @property
    def dialect(self) -> Dialect: ...

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]: ...

    async def run_sync(self, function: Callable[..., T], /, *arguments: Any) -> T: ...


Op = Callable[[Connection], Awaitable[T]]
"""Statements and what is made of their rows; fit to run again, and it awaits nothing but its connection."""


class Database(Protocol):
    """`transact` and `read` raise what the operation raises; the driver's errors as they are: `is_down`."""

    name: str

    async def transact(self, op: Op[T]) -> T:
        """The result of `op` after its commit; one at a time."""
        ...

    async def read(self, op: Op[T]) -> T:
        """The result of `op`, each of whose statements stands alone."""
        ...

    async def enter(self) -> bool:
        """Marks this process as one whose calls are written here, for as long as it lives.

        Whether no other one that lives had done so: only then calls that were left open are nobody's. Where
        that cannot be told, it is False.
        """
        ...

    async def close(self) -> None:
        """Drops every connection; what comes next opens new ones."""
        ...


def location(url: str, environment: Mapping[str, str]) -> URL | None:
    """The database that `[store] url` names; None for "none". Raises ConfigError."""
    if url == "none":
        return None
    if not url:
        state = environment.get("STATE_DIRECTORY", "").partition(":")[0]
        home = environment.get("XDG_STATE_HOME") or str(
            Path(environment.get("HOME") or Path.home(), ".local", "state")
        )
        return URL.create("sqlite", database=str(Path(state or Path(home, "gateway"), "gateway.db")))
    try:
        named = make_url(url)
    except ArgumentError:
        raise ConfigError("store.url: must be sqlite:///PATH, postgresql://… or 'none'") from None
    match named.drivername:
        case "sqlite" if named.database not in (None, "", ":memory:"):
            return named
        case "sqlite":
            raise ConfigError(
                "store.url: sqlite:/// needs a file's path, as in sqlite:////var/lib/gateway.db"
            )
        case "postgresql" | "postgres":
            return named.set(drivername="postgresql+asyncpg")
    raise ConfigError(f"store.url: {named.drivername}: must be sqlite:///PATH, postgresql://… or 'none'")


def connect(url: URL) -> Database:
    """The database at `url`, as `location` gives it; nothing is opened yet. Raises ConfigError."""
    return _Sqlite(url) if url.get_backend_name() == "sqlite" else _Postgres(url)


def is_down(error: Exception) -> bool:
    """Whether `error` is the database's fault and not the operation's."""
    if isinstance(error, OSError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or str(getattr(error.orig, "sqlstate", "")).startswith(_GONE):
        return True
    if is_broken(error):
        return True
    wrong = getattr(error.orig, "sqlite_errorcode", None) == _SQLITE_ERROR
    return isinstance(error, OperationalError | InterfaceError) and not wrong


def is_broken(error: Exception) -> bool:
    """Whether what SQLite read is no database, or no longer."""
    code = getattr(error.orig, "sqlite_errorcode", 0) if isinstance(error, DBAPIError) else 0
    return code & 0xFF in _SQLITE_BROKEN


def line(error: Exception) -> str:
    """What went wrong, in one line and without what was to be stored."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    said = str(cause).splitlines()  # PostgreSQL's details, with the key of a row, are on the next ones
    return said[0] if said else type(cause).__name__


class _Postgres:
    def __init__(self, url: URL) -> None:
        self.name = url.render_as_string()
        try:
            self._engine = create_async_engine(
                url,
                connect_args={"timeout": CONNECT_SECONDS, "command_timeout": COMMAND_SECONDS},
                hide_parameters=True,  # they are what people said
                pool_size=READERS + 1,
                pool_pre_ping=True,
            )
        except ModuleNotFoundError:
            raise ConfigError(
                "store.url: PostgreSQL needs asyncpg; in Gateway's source: pip install '.[fleet]'"
            ) from None
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    async def transact(self, op: Op[T]) -> T:
        async with self._engine.begin() as connection:
            return await op(connection)

    async def read(self, op: Op[T]) -> T:
        async with self._reading.connect() as connection:
            return await op(connection)

    async def enter(self) -> bool:
        return False

    async def close(self) -> None:
        await self._engine.dispose()


class _Sqlite:
    def __init__(self, url: URL) -> None:
        self.name = url.render_as_string()
        self._path = Path(url.database or "")
        self._mark: int | None = None
        self._alone = False
        self._engine = create_engine(
            url,
            # None: the driver begins no transactions of its own, which would leave out what changes tables.
            connect_args={"isolation_level": None, "timeout": CONNECT_SECONDS},
            hide_parameters=True,
            pool_size=READERS + 1,
        )
        event.listen(self._engine, "connect", _set_up)
        self._writer = ThreadPoolExecutor(1, "store-writer", give_way)
        self._readers = ThreadPoolExecutor(READERS, "store-reader", give_way)

    async def transact(self, op: Op[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._transact, op)

    async def read(self, op: Op[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, op)

    async def enter(self) -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._enter)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._engine.dispose)
        self._writer.shutdown()
        self._readers.shutdown()
        if self._mark is not None:
            os.close(self._mark)

    def _transact(self, op: Op[T]) -> T:
        self._make()
        with self._engine.begin() as connection:
            # IMMEDIATE: what reads first and writes then would be refused if another process wrote between.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return _drive(op(_Direct(connection)))

    def _make(self) -> None:
        """Only its owner may read what people said; SQLite gives its other files the rights of this one.

        A file that is there is not opened: a process that closes any descriptor of it loses SQLite's locks
        on it, and another one that closes it after that deletes the log that we write to.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def _enter(self) -> bool:
        """A lock that all hold, and only who comes first can have alone; the kernel lets go of it.

        In a file of its own: no descriptor of the database's may be closed.
        """
        if self._mark is None:
            self._make()
            self._mark = os.open(f"{self._path}-calls", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._alone = True
            fcntl.flock(self._mark, fcntl.LOCK_SH)
        return self._alone

    def _read(self, op: Op[T]) -> T:
        with self._engine.connect() as connection:
            return _drive(op(_Direct(connection)))


class _Direct:
    """A synchronous connection in a thread of its own: what is awaited is there already."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        return self._connection.dialect

    async def execute(self, statement: Executable, parameters: Any = None, /) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    async def run_sync(self, function: Callable[..., T], /, *arguments: Any) -> T:
        return function(self._connection, *arguments)


def _drive(awaitable: Awaitable[T]) -> T:
    """Runs to its end what never has to wait."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("an operation on the store may await nothing but its connection")


def _set_up(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
