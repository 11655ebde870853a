"""Jobs in a second, accepted and finished, with work that takes no time.

`python -m bench.jobs [--jobs N] [--clients N] [--report FILE]`: the queue of a fleet alone, through our
`JobQueue` and on one Valkey, but without rows; then over HTTP: BullMQ behind rows in SQLite, and the embedded
queue, one job and many in a request. Client, gateway and Valkey are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
import structlog
import uvloop

from bench.machine import commit, machine, others_load
from gateway.app import Gateway
from gateway.config import JobsConfig
from gateway.metrics import Metrics
from gateway.prerecorded.fleet import FleetQueue
from gateway.prerecorded.pools import Pools
from gateway.store.job import Job
from tests.fakes import valkey
from tests.fakes.hosts import ROOT, done
from tests.fakes.stand import settings

JOB: Final = {"url": "https://1.1.1.1/a.wav", "model": "nova-3"}
MANY: Final = 100
"""Jobs in a request, where it brings many."""
TITLE: Final = "# Jobs in a second\n"
NOTES: Final = """\
By `make bench-jobs`. Work that takes no time, 50 jobs at once, no limit of starts. "Alone": enqueued, claimed
and ended through our `JobQueue` on one Valkey, without rows or HTTP. Over HTTP the rows are in SQLite:
each is committed when its job is accepted, claimed and ended. Processor time is that of the process with the
gateway (alone: with the queue), and of Valkey. The target is 1000 jobs/s for the queue alone.
"""
HEADER: Final = """\
| | accepted/s | finished/s | ms of processor a job | of Valkey |
|---|---:|---:|---:|---:|"""


class Found(NamedTuple):
    """Seconds until all were accepted, until all were finished, and of processor time."""

    accepted: float
    over: float
    spent: float
    valkey: float | None = None

    def row(self, what: str, jobs: int) -> str:
        each = [1000 * seconds / jobs for seconds in (self.spent, self.valkey) if seconds is not None]
        cells = [f"{jobs / self.accepted:,.0f}", f"{jobs / self.over:,.0f}", *(f"{ms:.2f}" for ms in each)]
        return "| " + " | ".join([what, *cells, *[""] * (4 - len(cells))]) + " |"


async def serve(folder: str, redis: str) -> None:
    """A gateway whose work is none; says its sidecar's address."""
    fleet = {"backend": "fleet", "redis": [redis]} if redis else {}
    config = settings(
        "http://127.0.0.1:1",
        store={"url": f"sqlite:///{folder}/gateway.db"},
        prerecorded={"spool_dir": f"{folder}/spool"},
        jobs={"starts_per_minute": 0, "concurrency": 50, **fleet},
    )
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(config, "k", tasks)
        assert gateway.jobs
        gateway.jobs.jobs.worker._attempt = done
        await gateway.start()
        print(*gateway.sidecar_address, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await gateway.stop(1)
        await gateway.close()


async def over_http(jobs: int, clients: int, in_request: int, redis: str = "") -> Found:
    """All of it, as callers see it."""
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.jobs", "--serve", folder, "--redis", redis),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        assert process.stdin
        host, port = (await process.stdout.readline()).decode().split()
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            began, spent = time.monotonic(), await metric(session, "process_cpu_seconds_total")
            left = iter(range(0, jobs, in_request))

            async def submit() -> None:
                for _ in left:
                    body: Any = JOB if in_request == 1 else [JOB] * in_request
                    async with session.post("/v1/jobs", json=body) as response:
                        assert response.status == 202, await response.text()
                        await response.read()

            await asyncio.gather(*(submit() for _ in range(clients)))
            accepted = time.monotonic() - began
            while await metric(session, 'gw_jobs_ended_total{state="succeeded"}') < jobs:  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.05)
            over = time.monotonic() - began
            spent = await metric(session, "process_cpu_seconds_total") - spent
        process.stdin.close()
        await process.wait()
        return Found(accepted, over, spent)


async def metric(session: aiohttp.ClientSession, name: str) -> float:
    async with session.get("/metrics") as response:
        lines = (line.rpartition(" ") for line in (await response.text()).splitlines())
    return next(float(value) for found, _, value in lines if found == name)


class Rowless:
    """In place of a store and a worker: every job that comes has succeeded, and no row is written."""

    def __init__(self, jobs: int) -> None:
        self.pools = Pools(1, 50, 3)
        self._left = jobs
        self._none: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    def wait(self) -> float:
        return 0.0

    async def beat(self) -> None:
        await self._none

    async def claim(self, limit: int = 1, job_id: str | None = None) -> list[Job]:
        return [Job(id=job_id or "", principal="p", state="running", attempts=1)]

    def run(self, job: Job) -> asyncio.Future[Job]:
        ended: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        ended.set_result(msgspec.structs.replace(job, state="succeeded"))
        self._left -= 1
        if not self._left:
            self.over.set()
        return ended

    async def drain(self, seconds: float) -> None:
        pass

    async def read(self, _: Any) -> list[Job]:
        return []


async def alone(jobs: int, at_once: int, server: valkey.Valkey) -> Found:
    """A fleet's queue without rows: ten enqueue, `at_once` in a call, while jobs are claimed and ended."""
    config = JobsConfig(backend="fleet", redis=(server.url,), redis_prefix=f"{{alone-{at_once}}}")
    rowless: Any = Rowless(jobs)
    log = structlog.get_logger()
    queue = FleetQueue(rowless, rowless, config, metrics=Metrics([], "0"), log=log, clock=time.time)
    await queue.start()
    made = iter([Job(id=f"job-{number}", principal="p") for number in range(jobs)])
    with server.client() as client:
        used = client.info("cpu")
        began, spent = time.monotonic(), time.process_time()

        async def add() -> None:
            while batch := list(itertools.islice(made, at_once)):
                await queue.enqueue(batch)

        await asyncio.gather(*(add() for _ in range(10)))
        accepted = time.monotonic() - began
        await rowless.over.wait()
        over, spent = time.monotonic() - began, time.process_time() - spent
        now = client.info("cpu")
    await queue.drain(0)
    await queue.close()
    valkeys = sum(now[name] - used[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return Found(accepted, over, spent, valkeys)


async def measure(jobs: int, clients: int) -> list[str]:
    """The rows of the table."""
    table = []

    def say(what: str, found: Found) -> None:
        table.append(found.row(what, jobs))
        print(table[-1], flush=True)

    with valkey.single(fsync="everysec") as server:  # as it is installed
        for at_once in (1, MANY):
            say(f"queue of a fleet alone, {at_once} at once", await alone(jobs, at_once, server))
        say("fleet over HTTP, 1 in a request", await over_http(jobs, clients, 1, server.url))
        say(f"fleet over HTTP, {MANY} in a request", await over_http(jobs, clients, MANY, server.url))
    for at_once in (1, MANY):
        say(f"embedded over HTTP, {at_once} in a request", await over_http(jobs, clients, at_once))
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--serve", metavar="FOLDER")
    parser.add_argument("--redis", default="")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if options.serve:
        uvloop.run(serve(options.serve, options.redis))
        return
    load = others_load()
    head = f"{machine()}; {commit()}; load before {load:.1f}; {options.jobs} jobs, {options.clients} clients"
    print(f"{head}\n\n{HEADER}", flush=True)
    table = uvloop.run(measure(options.jobs, options.clients))
    if options.report:
        options.report.write_text("\n".join([TITLE, head + ".", "", NOTES, HEADER, *table]) + "\n")


if __name__ == "__main__":
    main()
