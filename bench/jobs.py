"""Jobs in a second, accepted and finished, with work that takes no time.

`python -m bench.jobs [--jobs N] [--clients N]`: over HTTP with the embedded queue on SQLite, one job
and many in a request; with BullMQ on one Valkey behind the same rows; and BullMQ alone. Client and
gateway are two processes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from typing import Any, Final

import aiohttp
import structlog
import uvloop
from bullmq import Queue
from bullmq import Worker as QueueWorker

from gateway.app import Gateway
from gateway.config import JobsConfig
from gateway.prerecorded.fleet import connect
from tests.fakes import valkey
from tests.fakes.hosts import ROOT, done
from tests.fakes.stand import settings

JOB: Final = {"url": "https://1.1.1.1/a.wav", "model": "nova-3"}
MANY: Final = 100
"""Jobs in a request, where it brings many."""


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


async def over_http(jobs: int, clients: int, in_request: int, redis: str = "") -> tuple[float, float, float]:
    """Seconds until all were accepted, until all were finished, and of the gateway's processor time."""
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
        return accepted, over, spent


async def metric(session: aiohttp.ClientSession, name: str) -> float:
    async with session.get("/metrics") as response:
        lines = (line.rpartition(" ") for line in (await response.text()).splitlines())
    return next(float(value) for found, _, value in lines if found == name)


async def bullmq_alone(jobs: int, url: str) -> float:
    """Seconds for adding all, one by one by ten, and running them."""
    config = JobsConfig(redis=(url,))
    ended = asyncio.Event()
    count = 0

    async def process(_job: Any, _token: str) -> None:
        nonlocal count
        count += 1
        if count == jobs:
            ended.set()

    queue = Queue("bench", {"connection": connect(config), "prefix": "{bench}"})
    began = time.monotonic()
    worker = QueueWorker(
        "bench", process, {"connection": connect(config), "prefix": "{bench}", "concurrency": 50}
    )
    left = iter(range(jobs))

    async def add() -> None:
        for number in left:
            await queue.add("job", {}, {"jobId": f"job-{number}", "removeOnComplete": True})

    await asyncio.gather(*(add() for _ in range(10)))
    await ended.wait()
    over = time.monotonic() - began
    await worker.close()
    await queue.close()
    return over


async def measure(jobs: int, clients: int) -> None:
    print(f"{jobs} jobs, {clients} clients", flush=True)
    for in_request in (1, MANY):
        said(f"embedded, {in_request} in a request", jobs, *await over_http(jobs, clients, in_request))
    with valkey.single(fsync="everysec") as server:  # as it is installed
        figures = await over_http(jobs, clients, 1, server.url)
        said("BullMQ on one Valkey behind rows in SQLite, 1 in a request", jobs, *figures)
        alone = await bullmq_alone(jobs, server.url)
        print(f"BullMQ alone: {jobs / alone:.0f} jobs/s added and run", flush=True)


def said(what: str, jobs: int, accepted: float, over: float, spent: float) -> None:
    print(
        f"{what}: {jobs / accepted:.0f} jobs/s accepted, {jobs / over:.0f} jobs/s finished, "
        f"{1000 * spent / jobs:.2f} ms of processor each",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--serve", metavar="FOLDER")
    parser.add_argument("--redis", default="")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if options.serve:
        uvloop.run(serve(options.serve, options.redis))
    else:
        uvloop.run(measure(options.jobs, options.clients))


if __name__ == "__main__":
    main()
