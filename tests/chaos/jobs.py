"""Jobs while their workers are killed: how many were accepted, completed, lost, run twice, and told of.

`python -m tests.chaos.jobs [--jobs N] [--backends embedded fleet] [--every SECONDS] [--report FILE]`. Three
workers are processes of their own, which send callbacks as well; every two seconds one of them gets SIGKILL
and another takes its place. Exit code 1 for a job that did not end, or that nobody was told of.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import structlog
import uvloop

from gateway.config import JobsConfig
from gateway.store import jobs as rows
from gateway.store.job import STATES, Job
from tests.fakes import valkey
from tests.fakes.hosts import Host, HostProcess, Place
from tests.fakes.postgres import Postgres
from tests.fakes.receiver import Receiver

WORKERS = 3
WORK_SECONDS = 0.05
MOST = 100
"""Jobs that are handed in at once."""
PATIENCE = 60.0
"""Seconds without any job's end after which the rest is lost."""
LOOK = 0.2
ENOUGH = JobsConfig(lease=3.0, backoff_seconds=0.2, starts_per_minute=0, attempts=20)


class Found(NamedTuple):
    """`run_twice` are jobs begun more than once, `told_twice` callbacks that came more than once."""

    accepted: int
    completed: int
    lost: int
    run_twice: int
    told: int
    told_twice: int
    kills: int
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether each job was completed, and told of."""
        return self.accepted == self.completed == self.told


class Nemesis:
    """Workers at `place`, of which one dies every so many seconds."""

    def __init__(self, place: Place, journal: Path, every: float, rng: random.Random) -> None:
        self.kills = 0
        self._place = place
        self._journal = journal
        self._every = every
        self._rng = rng
        self._workers: list[HostProcess] = []
        self._killing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Nemesis:
        self._workers = [await self._worker() for _ in range(WORKERS)]
        self._killing = asyncio.create_task(self._kill())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._killing:
            self._killing.cancel()
            await asyncio.wait({self._killing})
        for worker in self._workers:
            await worker.kill()

    def begun(self) -> Counter[str]:
        """How often each job was."""
        return Counter(job_id for job_id, _ in self._workers[0].attempts)

    async def _worker(self) -> HostProcess:
        return await HostProcess.start(self._place, self._journal, WORK_SECONDS)

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            at = self._rng.randrange(WORKERS)
            await self._workers[at].kill()
            self.kills += 1
            self._workers[at] = await self._worker()


async def run(jobs: int, backend: str, every: float, seed: int = 1) -> Found:
    """All jobs to their end, and their callbacks to a receiver; `jobs` is a multiple of a hundred."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        receiver = await stack.enter_async_context(Receiver())
        place = Place(f"sqlite:///{folder}/gateway.db", ENOUGH, receiver.port)
        if backend == "fleet":
            store = stack.enter_context(Postgres()).database()
            server = stack.enter_context(valkey.single())
            place = Place(store, ENOUGH, receiver.port).change(backend="fleet", redis=(server.url,))
        asked = await Host.start(place, None)
        stack.push_async_callback(asked.stop)
        nemesis = Nemesis(place, folder / "journal", every, random.Random(seed))
        began = time.monotonic()
        async with nemesis:
            accepted: list[Job] = []
            while len(accepted) < jobs:
                accepted += await asked.submit(MOST, callback=receiver.url(), max_attempts=ENOUGH.attempts)
            counts = await _until_over(asked, receiver, jobs)
        told = Counter(json.loads(one.body)["data"]["id"] for one in receiver.received)
        return Found(
            accepted=len(accepted),
            completed=counts.get("succeeded", 0),
            lost=jobs - sum(counts.get(state, 0) for state in ("succeeded", "failed", "cancelled")),
            run_twice=sum(count > 1 for count in nemesis.begun().values()),
            told=len(told.keys() & {job.id for job in accepted}),
            told_twice=sum(count > 1 for count in told.values()),
            kills=nemesis.kills,
            seconds=time.monotonic() - began,
        )


async def _until_over(asked: Host, receiver: Receiver, jobs: int) -> dict[str, int]:
    """How many jobs are in each state, when all have ended and were told of, or nothing happens any more."""
    seen: tuple[int, int] | None = None
    end = 0.0
    while True:
        counts = await asked.store.read(lambda connection: rows.counts(connection, STATES))
        now = counts.get("succeeded", 0), len({one.headers["webhook-id"] for one in receiver.received})
        if now != seen:
            seen, end = now, time.monotonic() + PATIENCE
        if now == (jobs, jobs) or time.monotonic() > end:
            return counts
        await asyncio.sleep(LOOK)


def report(found: Found, backend: str, every: float) -> str:
    """A section of the report."""
    queue = "embedded, on SQLite" if backend == "embedded" else "BullMQ on one Valkey, rows in PostgreSQL"
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:,.0f} |" for name, value in found._asdict().items()
    )
    return f"## {queue}: a worker of {WORKERS} killed every {every:g} s\n\n| | |\n|---|---:|\n{rows}\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--backends", choices=("embedded", "fleet"), nargs="+", default=["embedded"])
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sections = ["# Jobs while their workers are killed\n\nBy `make chaos-jobs`.\n"]
    whole = True
    for backend in options.backends:
        found = uvloop.run(run(options.jobs, backend, options.every))
        print(
            f"{backend}:", ", ".join(f"{key.replace('_', ' ')} {n:g}" for key, n in found._asdict().items())
        )
        sections.append(report(found, backend, options.every))
        whole = whole and found.whole
    if options.report:
        options.report.write_text("\n".join(sections))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
