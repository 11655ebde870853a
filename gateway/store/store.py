"""The store: one writer that takes all that waits into one transaction, and readers beside it.

SQLite commits with synchronous=FULL, so that an accepted job outlives a power cut: the writer waits for the
disk once a transaction, not once a row. While the database is gone everything is refused at once, and it is
looked for every second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar

import sqlalchemy
import structlog
from sqlalchemy import Executable, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from gateway.errors import ConfigError, StoreConflict, StoreError
from gateway.metrics import Metrics
from gateway.store import migrate
from gateway.store.databases import Connection, Op, connect, is_broken, is_down, line

A = TypeVar("A")
T = TypeVar("T")
Migrate = Literal["auto", "always", "never"]

MOST_AT_ONCE: Final = 500
"""Writes in one transaction, so that what comes behind it waits for tens of milliseconds."""
PROBE_SECONDS: Final = 1.0
WRITE: Final = text("UPDATE alembic_version SET version_num = version_num")
"""Changes nothing, but takes room: a full disk reads, and commits what is empty."""

QUICK_CHECK: Final = text("PRAGMA quick_check(1)")


JointOp = Callable[[Connection, Sequence[A]], Awaitable[Sequence[T]]]
"""An `Op` for many at once: a result for each, in their order."""


class _Waiting(NamedTuple):
    """What an operation is to be done for, and who waits for it."""

    op: JointOp[Any, Any]
    item: Any
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Put:
    """The operation that runs a statement; equal to any other of that statement."""

    statement: Executable

    async def __call__(
        self, connection: Connection, items: Sequence[Sequence[Mapping[str, Any]]]
    ) -> Sequence[None]:
        await connection.execute(self.statement, [row for rows in items for row in rows])
        return [None] * len(items)


class Store:
    """`await store.start()`, then `write`, `put` and `read`; `close` when nobody uses it any more."""

    def __init__(
        self,
        url: URL,
        *,
        metrics: Metrics,
        migrate: Migrate = "auto",
        limit: int = 20_000,
        calls: bool = False,
    ) -> None:
        """`url` as `location` gives it, `migrate` as in `[store]`; at most `limit` writes wait.

        `calls`: whether live calls are written, which other gateways on the database must leave alone.
        While it is not `healthy` nothing is taken. Raises ConfigError for a package that is missing.
        """
        self.healthy = False
        self._broken = False
        self.alone = False
        """Whether no other process wrote calls here when this one, which does, began to."""
        self._database = connect(url)
        self._migrate = migrate
        self._limit = limit
        self._calls = calls
        self._metrics = metrics
        self._log = structlog.get_logger()
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, url: URL, *, metrics: Metrics, **options: Any) -> Self:
        """A store that has been started."""
        store = cls(url, metrics=metrics, **options)
        await store.start()
        return store

    async def start(self) -> None:
        """Connects, and brings the tables to what this version needs.

        A database that cannot be reached is no error: it is looked for until it is there. Raises ConfigError
        for what only a person can change: tables of a newer version, or of an older one that must not be
        changed.
        """
        try:
            await self._connect()
        except StoreError as error:
            self._log.error("store.down", reason=str(error))
        except BaseException:
            await self._database.close()
            raise
        self._writing = asyncio.create_task(self._write(), name="store")

    async def write(self, op: Op[T]) -> T:
        """The result of `op`, after the commit of the transaction in which it was run beside others.

        Others cannot make it fail: it is run again without them. Raises what `op` raises, StoreConflict for a
        row that exists, StoreError when the store is down, full, or goes down meanwhile. Whoever stops
        waiting does not stop `op`.
        """
        result: T = await self._take(_each, op)
        return result

    async def write_jointly(self, op: JointOp[A, T], item: A) -> T:
        """The result of `op` for `item`, after the commit; errors as in `write`.

        `op` is called once with the items of all that wait for it, which is cheaper than once for each where
        statements take many rows. It may overtake what waits at the same time.
        """
        result: T = await self._take(op, item)
        return result

    async def put(self, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs `statement` for each of `rows`, after the commit; errors as in `write`.

        The rows of all that wait for the same statement object are one call of the driver: the fast way to
        insert. It may overtake what waits at the same time.
        """
        await self._take(_Put(statement), rows)

    async def read(self, op: Op[T]) -> T:
        """The result of `op`, which changes nothing. Raises StoreError, and what `op` raises."""
        if not self.healthy:
            raise StoreError("the store is down")
        try:
            return await self._database.read(op)
        except (SQLAlchemyError, OSError) as error:
            if is_down(error):
                self._lost(error)
            raise _meaning(error) from error

    async def close(self) -> None:
        """Writes what waits, then closes every connection."""
        self._closing = True
        self._wake.set()
        if self._writing is not None:
            await self._writing
        await self._database.close()

    async def _take(self, op: JointOp[Any, Any], item: Any) -> Any:
        if self._closing or not self.healthy:
            self._metrics.store_errors.add("down")
            raise StoreError("the store is down")
        if len(self._waiting) >= self._limit:
            self._metrics.store_errors.add("full")
            raise StoreError("the store has too much to do")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(op, item, done))
        self._metrics.store_queue_depth = len(self._waiting)
        self._wake.set()
        return await done

    async def _write(self) -> None:
        while True:
            if not self.healthy:
                if self._closing:
                    return
                await self._look_again()
            elif self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
                self._metrics.store_queue_depth = len(self._waiting)
                await self._commit(batch)
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        """All of `batch`; where that fails each half on its own, until it is known whose fault it is."""
        start = asyncio.get_running_loop().time()
        try:
            results = await self._database.transact(lambda connection: _run(connection, batch))
        except Exception as error:
            if is_down(error):
                self._lost(error)
            if not self.healthy:
                self._refuse(batch, StoreError("the store is down"), "down")
            elif len(batch) > 1:
                middle = len(batch) // 2
                await self._commit(batch[:middle])
                await self._commit(batch[middle:])
            else:
                meant = _meaning(error)
                self._refuse(batch, meant, "conflict" if isinstance(meant, StoreConflict) else "failed")
            return
        self._metrics.store_commit.observe(asyncio.get_running_loop().time() - start)
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(result)

    def _refuse(self, batch: Iterable[_Waiting], error: Exception, reason: str) -> None:
        for waiting in batch:
            self._metrics.store_errors.add(reason)
            if not waiting.done.done():
                waiting.done.set_exception(error)

    def _lost(self, error: Exception) -> None:
        """What waits is told at once: to wait for a dead database is no use to anyone."""
        if self.healthy:
            self._log.error("store.down", reason=line(error))
        self._broken |= is_broken(error)
        self.healthy = False
        self._metrics.store_up = self._metrics.store_queue_depth = 0
        self._refuse(self._waiting, StoreError("the store is down"), "down")
        self._waiting.clear()
        self._wake.set()

    async def _look_again(self) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), PROBE_SECONDS)
        try:
            await self._connect()
        except (ConfigError, StoreError) as error:
            self._log.debug("store.still_down", reason=str(error))
        else:
            self._log.info("store.up")

    async def _check(self, connection: Connection) -> None:
        await connection.run_sync(check, self._migrate)
        await connection.execute(WRITE)
        if self._broken:  # parts of the file may be as they should be, and it is down all the same
            found = (await connection.execute(QUICK_CHECK)).scalar()
            if found != "ok":
                raise StoreError(str(found))

    async def _connect(self) -> None:
        """Raises ConfigError and StoreError."""
        try:
            if self._calls:
                self.alone = await self._database.enter()
            await self._database.transact(self._check)
        except ConfigError:
            raise
        except Exception as error:  # before there is a connection, a driver's own errors come as they are
            raise StoreError(f"{self._database.name}: {line(error)}") from error
        self.healthy, self._broken = True, False
        self._metrics.store_up = 1


def check(connection: sqlalchemy.Connection, may_migrate: Migrate) -> None:
    """Brings the tables to this version where that is allowed. Raises ConfigError where it is not."""
    sqlite = connection.dialect.name == "sqlite"
    if sqlite and not connection.scalar(text("SELECT sqlite_compileoption_used('ENABLE_FTS5')")):
        raise ConfigError("store.url: this Python's SQLite has no FTS5 for search; use PostgreSQL, or 'none'")
    found, wanted = migrate.current(connection), migrate.head()
    if found == wanted:
        return
    if found is not None and not migrate.known(found):
        raise ConfigError(
            f"store: its tables are of a newer version ({found}; this one needs {wanted}): update gateway, "
            f"or let the newer one `gateway db downgrade {wanted}`"
        )
    if may_migrate == "never" or (may_migrate == "auto" and found is not None and not sqlite):
        raise ConfigError(
            f"store: its tables are of version {found or 'none'}, this one needs {wanted}: "
            "`gateway db upgrade`"
        )
    migrate.upgrade(connection)


async def _run(connection: Connection, batch: Sequence[_Waiting]) -> list[Any]:
    """The results in the order of `batch`; what stands alone comes after what goes together."""
    places: dict[JointOp[Any, Any], list[int]] = {}
    for place, waiting in enumerate(batch):
        places.setdefault(waiting.op, []).append(place)
    results: list[Any] = [None] * len(batch)
    for op in sorted(places, key=lambda op: op is _each):
        found = await op(connection, [batch[place].item for place in places[op]])
        for place, result in zip(places[op], found, strict=True):
            results[place] = result
    return results


async def _each(connection: Connection, ops: Sequence[Op[Any]]) -> list[Any]:
    return [await op(connection) for op in ops]


def _meaning(error: Exception) -> Exception:
    """A library's error as one of ours; others are left alone."""
    if isinstance(error, IntegrityError):
        return StoreConflict(line(error))
    return StoreError(line(error)) if isinstance(error, SQLAlchemyError | OSError) else error
