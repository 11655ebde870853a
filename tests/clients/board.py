"""A bull-board, the npm package, on the Redis of our jobs: it shows them, and its retry runs them again.

`make test-board`, and a part of `make test-clients`. Valkey, a worker and the board are real; what is asked
of the board goes over its HTTP API. pytest does not collect it: it needs an environment that `make test` does
not make. Nothing leaves 127.0.0.1, and nothing is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog

from gateway.config import JobsConfig
from gateway.prerecorded.fleet import NAME
from gateway.prerecorded.work import Failed, Outcome
from gateway.store.job import Job, JobError
from tests.fakes import valkey
from tests.fakes.hosts import ROOT, Host, Place, done

DRIVER: Final = ROOT / "tests" / "clients" / "drivers" / "board.cjs"
MODULES: Final = ROOT / ".clients" / "js-board" / "node_modules"
PATIENCE: Final = 20.0
REASON: Final = "corrupt or unsupported data"
JOBS: Final = 3


@contextlib.asynccontextmanager
async def board(redis: str, prefix: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with a board that looks at our queue there."""
    process = await asyncio.create_subprocess_exec(
        *(shutil.which("node") or "node", str(DRIVER), redis, NAME, prefix),
        env={**os.environ, "NODE_PATH": str(MODULES)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        async with asyncio.timeout(PATIENCE):
            port = (await process.stdout.readline()).decode().strip()
        assert port, "the board has not come up"
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def shown(session: aiohttp.ClientSession, state: str) -> dict[str, dict[str, Any]]:
    """The jobs that the board lists in `state`, by id."""
    query = {"activeQueue": NAME, "status": state, "page": "1", "jobsPerPage": "25"}
    async with session.get("/api/queues", params=query) as response:
        assert response.status == 200, await response.text()
        [queue] = (await response.json())["queues"]
    return {job["id"]: job for job in queue["jobs"]}


async def until_shown(session: aiohttp.ClientSession, state: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    end = time.monotonic() + PATIENCE
    while (jobs := await shown(session, state)).keys() != ids:
        assert time.monotonic() < end, f"the board shows {sorted(jobs)} as {state}, not {sorted(ids)}"
        await asyncio.sleep(0.05)
    return jobs


async def check() -> None:
    """Failed jobs are shown with the reason; one that is retried there succeeds, and the others stay."""
    mended = False

    async def attempt(job: Job) -> Outcome:
        return await done(job) if mended else Failed(JobError("DEEPGRAM_ERROR", REASON, 400))

    with valkey.single(fsync="everysec") as server, tempfile.TemporaryDirectory() as folder:
        config = JobsConfig(backend="fleet", redis=(server.url,), starts_per_minute=0)
        host = await Host.start(Place(f"sqlite:///{Path(folder)}/gateway.db", config), attempt)
        try:
            async with board(server.url, config.redis_prefix) as session:
                jobs = await host.submit(JOBS)
                ids = {job.id for job in jobs}
                failed = await until_shown(session, "failed", ids)
                reasons = {job["failedReason"] for job in failed.values()}
                assert reasons == {REASON}, reasons

                mended = True
                retried, *rest = jobs
                async with session.put(f"/api/queues/{NAME}/{retried.id}/retry") as response:
                    assert response.status == 204, await response.text()
                ended = await host.until(retried, lambda job: job.state == "succeeded", PATIENCE)
                assert ended.attempts == 2, ended
                await until_shown(session, "completed", {retried.id})
                await until_shown(session, "failed", {job.id for job in rest})
                assert {(await host.get(job)).state for job in rest} == {"failed"}
        finally:
            await host.stop()


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    began = time.monotonic()
    asyncio.run(check())
    print(
        f"bull-board: {JOBS} failed jobs shown with their reason, one retried to its success, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
