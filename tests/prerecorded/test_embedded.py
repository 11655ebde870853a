"""The embedded queue looks when there is something to do, and seldom otherwise."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gateway.config import JobsConfig
from gateway.prerecorded.embedded import POLL_SECONDS, EmbeddedQueue
from gateway.store.job import Job
from tests.fakes.hosts import Host, Place, done

QUIET = JobsConfig(starts_per_minute=0)


async def test_no_storm_while_nothing_is_due(tmp_path: Path) -> None:
    """A look a second, and one at once for a new job."""
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", QUIET), done)
    assert isinstance(host.queue, EmbeddedQueue)
    looks: list[float] = []
    claim = host.worker.claim

    async def counting(limit: int = 1, job_id: str | None = None) -> list[Job]:
        looks.append(time.monotonic())
        return await claim(limit, job_id)

    host.worker.claim = counting  # type: ignore[method-assign]  # to count what goes through
    await asyncio.sleep(1.5)
    assert len(looks) <= 1.5 / POLL_SECONDS + 1
    began = time.monotonic()
    [job] = await host.submit()
    await host.until_ended([job])
    assert time.monotonic() - began < POLL_SECONDS / 2
    await host.stop()


async def test_a_later_job_is_run_when_it_is_due(tmp_path: Path) -> None:
    """Not a poll later."""
    host = await Host.start(Place(f"sqlite:///{tmp_path}/gateway.db", QUIET), done)
    [job] = await host.submit(run_at=time.time() + 0.4)
    [ended] = await host.until_ended([job])
    assert ended.ended_at
    assert 0.0 <= ended.ended_at - job.run_at < 0.4
    await host.stop()
