"""What is asked of the table of jobs, as functions of a connection.

Every change of a running job names its attempt, so that only the latest one changes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.engine import Row

from gateway.store.databases import Connection
from gateway.store.job import TERMINAL, Fence, Job, JobError, JobRoute, JobState
from gateway.store.schema import JOBS
from gateway.store.store import Store

Mark = tuple[JobState, int]
"""How far a job has come: its state, and how many attempts it took."""

_SETTLED: Final = (
    *("state", "max_attempts", "reruns", "run_at", "lease_until", "worker", "duration", "error", "result"),
    *("request_id", "ended_at"),
)
"""What the end of an attempt may change."""
_ADD: Final = insert(JOBS)
_SETTLE: Final = (  # made once: for a job, making it costs as much as running it
    update(JOBS)
    .where(JOBS.c.id == bindparam("ours"), JOBS.c.attempts == bindparam("latest"), JOBS.c.state == "running")
    .values({name: bindparam(name) for name in _SETTLED})
)
_BRIEF: Final = [column for column in JOBS.c if column.name != "result"]


def _claiming(due: Any) -> Any:
    return (
        update(JOBS)
        .where(JOBS.c.id.in_(select(due.with_for_update(skip_locked=True).cte("chosen").c.id)))
        .values(
            state="running",
            attempts=JOBS.c.attempts + 1,
            worker=bindparam("owner"),
            lease_until=bindparam("until"),
            started_at=func.coalesce(JOBS.c.started_at, _NOW),
        )
        .returning(*_BRIEF)
    )


_NOW: Final = bindparam("now", type_=JOBS.c.run_at.type)
_DUE: Final = select(JOBS.c.id).where(JOBS.c.state == "queued", JOBS.c.run_at <= _NOW)
_CLAIM: Final = _claiming(_DUE.order_by(JOBS.c.priority, JOBS.c.run_at).limit(bindparam("most")))
_CLAIM_ONE: Final = _claiming(_DUE.where(JOBS.c.id == bindparam("ours")))  # an order would have all looked at


async def add(store: Store, jobs: Sequence[Job]) -> None:
    """All or none; raises what `Store.put` does, StoreConflict for an id that is there."""
    await store.put(_ADD, [_values(job, job.__struct_fields__) for job in jobs])


async def claim(
    connection: Connection, worker: str, now: float, lease_until: float, limit: int, job_id: str | None
) -> list[Job]:
    """Makes due jobs `running` for `worker`, one attempt more each; returns them by priority, then by age.

    With a `job_id`, that one alone. What another connection is claiming at this moment is passed over.
    """
    statement, which = (_CLAIM_ONE, {"ours": job_id}) if job_id else (_CLAIM, {"most": limit})
    values = {"owner": worker, "now": now, "until": lease_until, **which}
    claimed = map(_job, await connection.execute(statement, values))
    return sorted(claimed, key=lambda job: (job.priority, job.run_at))


async def settle(connection: Connection, jobs: Sequence[Job]) -> list[bool]:
    """Writes how the attempt `job.attempts` left each job; False, and nothing, for one that is over."""
    running = select(JOBS.c.id, JOBS.c.created_at, JOBS.c.attempts).where(JOBS.c.state == "running")
    wanted = running.where(JOBS.c.id.in_([job.id for job in jobs]))
    # Locked in order, or two hosts may wait for each other.
    found = await connection.execute(wanted.order_by(JOBS.c.id).with_for_update())
    latest = {_fence(row) for row in found}
    written, rows = [], []
    for job in jobs:
        is_latest = job.fence in latest
        if is_latest:
            if job.state != "running":
                latest.remove(job.fence)  # it ends once; one that waits for a callback may still
            rows.append({"ours": job.id, "latest": job.attempts} | _values(job, _SETTLED))
        written.append(is_latest)
    if rows:
        await connection.execute(_SETTLE, rows)
    return written


async def redirect(
    connection: Connection, job: Job, route: JobRoute, reason: str, awaited: str | None = None
) -> bool:
    """Changes how the attempt `job.attempts`, and those after it, go; False, and nothing, if it is over."""
    is_it = and_(JOBS.c.id == job.id, JOBS.c.created_at == job.created_at)
    is_ours = and_(is_it, JOBS.c.attempts == job.attempts, JOBS.c.state == "running")
    statement = update(JOBS).where(is_ours).values(route=route, reason=reason, awaited=awaited)
    return (await connection.execute(statement)).rowcount == 1


async def renew(
    connection: Connection, worker: str, job_ids: Iterable[str], lease_until: float
) -> set[Fence]:
    """Prolongs the leases that `worker` still has of these jobs; returns their attempts."""
    is_ours = and_(JOBS.c.id.in_(list(job_ids)), JOBS.c.worker == worker, JOBS.c.state == "running")
    statement = update(JOBS).where(is_ours).values(lease_until=lease_until)
    found = await connection.execute(statement.returning(JOBS.c.id, JOBS.c.created_at, JOBS.c.attempts))
    return {_fence(row) for row in found}


async def cancel(connection: Connection, job_id: str, now: float) -> Job | None:
    """Ends a job that has not ended; None if it has, or is not there."""
    is_open = and_(JOBS.c.id == job_id, JOBS.c.state.in_(("queued", "running")))
    statement = update(JOBS).where(is_open)
    statement = statement.values(state="cancelled", ended_at=now, lease_until=None, worker="")
    return _one(await connection.execute(statement.returning(*JOBS.c)))


async def retry(
    connection: Connection,
    job_id: str,
    now: float,
    attempts: int,
    of: tuple[JobState, ...] = ("failed", "cancelled"),
) -> Job | None:
    """Queues a job that is in one of these states for so many more attempts; None if it is not."""
    is_over = and_(JOBS.c.id == job_id, JOBS.c.state.in_(of))
    statement = update(JOBS).where(is_over)
    statement = statement.values(
        state="queued", run_at=now, max_attempts=JOBS.c.attempts + attempts, error=None, ended_at=None
    )
    return _one(await connection.execute(statement.returning(*JOBS.c)))


async def remove(connection: Connection, job_id: str) -> Job | None:
    """Deletes a job that has ended; None if it has not, or is not there."""
    has_ended = and_(JOBS.c.id == job_id, JOBS.c.state.in_(sorted(TERMINAL)))
    return _one(await connection.execute(delete(JOBS).where(has_ended).returning(*_BRIEF)))


async def get(connection: Connection, job_id: str) -> Job | None:
    """The job with its result."""
    return _one(await connection.execute(select(JOBS).where(JOBS.c.id == job_id)))


async def marks(connection: Connection, job_ids: Iterable[str]) -> dict[str, Mark]:
    """How far those of these jobs that are there have come, by id."""
    wanted = select(JOBS.c.id, JOBS.c.state, JOBS.c.attempts).where(JOBS.c.id.in_(list(job_ids)))
    return {row.id: (row.state, row.attempts) for row in await connection.execute(wanted)}


async def find(connection: Connection, job_ids: Iterable[str]) -> dict[str, Job]:
    """Those of these jobs that are there, by id, without results."""
    found = await connection.execute(select(*_BRIEF).where(JOBS.c.id.in_(list(job_ids))))
    return {row.id: _job(row) for row in found}


async def needed(connection: Connection, names: Iterable[str]) -> set[str]:
    """Those of these files of the spool that a job has which may yet run."""
    may_run = and_(JOBS.c.spooled.in_(list(names)), JOBS.c.state.in_(("queued", "running", "failed")))
    found = await connection.execute(select(JOBS.c.spooled).where(may_run))
    return {row.spooled for row in found}


async def page(
    connection: Connection,
    principal: str,
    state: JobState | None,
    before: tuple[float, str] | None,
    limit: int,
) -> list[Job]:
    """A principal's jobs without results, the newest first, `before` the `created_at` and id of one."""
    wanted: list[ColumnElement[bool]] = [JOBS.c.principal == principal]
    if state:
        wanted.append(JOBS.c.state == state)
    if before:
        wanted.append(tuple_(JOBS.c.created_at, JOBS.c.id) < before)
    newest = (JOBS.c.created_at.desc(), JOBS.c.id.desc())
    return [
        _job(row)
        for row in await connection.execute(select(*_BRIEF).where(*wanted).order_by(*newest).limit(limit))
    ]


async def counts(connection: Connection, states: Collection[JobState]) -> dict[str, int]:
    """How many jobs there are in each of these states that has any; it takes as long as there are many."""
    number = func.count().label("number")
    statement = select(JOBS.c.state, number).where(JOBS.c.state.in_(list(states))).group_by(JOBS.c.state)
    found = await connection.execute(statement)
    return {row.state: row.number for row in found}


async def next_due(connection: Connection) -> float | None:
    """When the first queued job is, or was, due."""
    found = await connection.execute(select(func.min(JOBS.c.run_at)).where(JOBS.c.state == "queued"))
    due: float | None = found.scalar()
    return due


async def expired(connection: Connection, now: float, limit: int) -> list[Job]:
    """Running jobs whose worker let its lease run out."""
    is_lost = and_(JOBS.c.state == "running", JOBS.c.lease_until < now)
    found = await connection.execute(select(*_BRIEF).where(is_lost).limit(limit))
    return [_job(row) for row in found]


async def overdue(connection: Connection, before: float, after_id: str, limit: int) -> list[Job]:
    """Queued jobs that were due `before`, by id after `after_id`: a queue may have forgotten them."""
    is_late = and_(JOBS.c.state == "queued", JOBS.c.run_at < before, JOBS.c.id > after_id)
    found = await connection.execute(select(*_BRIEF).where(is_late).order_by(JOBS.c.id).limit(limit))
    return [_job(row) for row in found]


async def purge(connection: Connection, ended_before: float, failed_before: float, limit: int) -> list[Job]:
    """Deletes what ended that long ago, dead letters by their own measure; returns what is gone."""
    state = JOBS.c.state.concat("")  # keeps SQLite from going by state, through the results of all that ended
    is_old = and_(
        JOBS.c.ended_at < max(ended_before, failed_before),
        or_(
            and_(state.in_(("succeeded", "cancelled")), JOBS.c.ended_at < ended_before),
            and_(state == "failed", JOBS.c.ended_at < failed_before),
        ),
    )
    old = select(JOBS.c.id).where(is_old).limit(limit)
    found = await connection.execute(delete(JOBS).where(JOBS.c.id.in_(old)).returning(*_BRIEF))
    return [_job(row) for row in found]


def _values(job: Job, fields: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in fields}
    if values.get("error") is not None:
        values["error"] = msgspec.json.encode(job.error)
    for name in ("metadata", "result"):
        if values.get(name) is not None:
            values[name] = bytes(values[name])
    return values


def _job(row: Row[Any]) -> Job:
    values: dict[str, Any] = dict(row._mapping)
    if values["error"] is not None:
        values["error"] = msgspec.json.decode(values["error"], type=JobError)
    for name in ("metadata", "result"):
        if values.get(name) is not None:
            values[name] = msgspec.Raw(values[name])
    return Job(**values)


def _fence(row: Row[Any]) -> Fence:
    return row.id, row.created_at, row.attempts


def _one(found: Any) -> Job | None:
    row = found.first()
    return None if row is None else _job(row)
