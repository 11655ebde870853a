"""Two hundred calls at once for a minute: nothing lost, nothing left over (continuity.md I4, I8, I22)."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import resource
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes.daemon import ROOT, Daemon
from tests.fakes.stand import get

CALLS = 200
SECONDS = 60.0
WARM_UP = 20.0
ROOM = 5
"""What may differ from the baseline afterwards."""
SLOPE_LIMIT = 1_000_000 / 600
"""Bytes per second: 1 MB in 10 minutes."""
RUNS = 4
"""At most. What a busy machine adds to the memory of one minute (late audio waits in it) is gone in another;
a leak shows in every one."""
GROWTH_LIMIT = 6_000_000
"""Bytes by which the last third after the warm-up may exceed the first one, noise or not."""


@asynccontextmanager
async def emulator(folder: Path) -> AsyncIterator[str]:
    """`gateway emulate` as a process that keeps no audio."""
    knobs = folder / "knobs.json"
    knobs.write_text(json.dumps({"capture_audio": False, "capture_texts": False, "keep_closed": 1000}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "emulate", "--port", "0", "--knobs", str(knobs)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = await process.stdout.readline()
        yield line.decode().split()[-1]
    finally:
        process.kill()
        await process.wait()


async def load(port: int, calls: int, seconds: float) -> dict[str, Any]:
    """Callers in a process of their own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fakes.load", str(port)),
        *("--calls", str(calls), "--seconds", str(seconds)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds + 60):
            out, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


async def counts(daemon: Daemon, url: str) -> dict[str, int]:
    """What a call takes: sessions, connections on either side, file descriptors, threads."""
    _, _, body = await get(daemon.sidecar_address, "/metrics")
    samples = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    host, _, port = url.removeprefix("http://").partition(":")
    _, _, records = await get((host, int(port)), "/emulator/connections")
    folder = Path(f"/proc/{daemon.pid}")
    names = ("gw_sessions_active", "deepgram_active_connections", "gw_client_connections")
    return {name: int(float(samples[name])) for name in names} | {
        "upstream": sum(
            record["status"] == 101 and record["closed_at"] is None for record in json.loads(records)
        ),
        "descriptors": len(os.listdir(folder / "fd")),
        "threads": len(os.listdir(folder / "task")),
    }


def resident(pid: int) -> float:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * float(resource.getpagesize())


async def sample(daemon: Daemon, into: list[tuple[float, float]]) -> None:
    """Resident bytes of the gateway, four times a second."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while True:
        into.append((loop.time() - start, resident(daemon.pid)))
        await asyncio.sleep(0.25)


def trend(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares slope and its standard error, in bytes per second.

    Neighbours are not independent, so the residuals' autocorrelation at lag 1 widens the error
    (effective number of samples, Bayley and Hammersley 1946).
    """
    times, sizes = zip(*samples, strict=True)
    slope, offset = statistics.linear_regression(times, sizes)
    rest = [size - slope * time - offset for time, size in samples]
    power = sum(r * r for r in rest) or 1.0
    memory = max(0.0, min(0.99, sum(a * b for a, b in itertools.pairwise(rest)) / power))
    independent = max(3.0, len(rest) * (1 - memory) / (1 + memory))
    spread = math.sqrt(sum((time - statistics.fmean(times)) ** 2 for time in times) / len(times))
    return slope, math.sqrt(power / len(rest) / (independent - 2)) / spread


@pytest.mark.parametrize("leak", [0.0, 100_000.0])
def test_the_trend_sees_a_leak(leak: float) -> None:
    """A jump up and down is noise; a hundred kilobytes a second are not."""
    samples = [(t / 4, 1e8 + leak * t / 4 + (200_000 if t % 40 < 13 else 0)) for t in range(160)]
    slope, error = trend(samples)
    assert (slope - 2 * error > SLOPE_LIMIT) is (leak > 0)


async def test_two_hundred_calls(tmp_path: Path, record_property: Any) -> None:
    """Every token once; memory does not grow; afterwards everything is as it was before (faults.md 60)."""
    async with emulator(tmp_path) as url:
        text = f'[server]\nport = 0\n[sidecar]\nport = 0\n[[deepgram.regions]]\nurl = "{url}"\n'
        async with await Daemon.start(tmp_path, text, DEEPGRAM_API_KEY="k") as daemon:
            await load(daemon.address[1], 5, 0.5)  # what is made once has been made
            await asyncio.sleep(0.5)
            before = await counts(daemon, url)
            growths: list[Growth] = []
            while len(growths) < RUNS and not any(growth.is_none for growth in growths):
                growths.append(growth_of(await two_hundred_calls(daemon)))
                await back_to(before, daemon, url)
            daemon.signal()
            assert await daemon.wait() == 0
    assert daemon.noise == []
    report = "; ".join(map(str, growths))
    record_property("rss", report)
    print(report)
    assert growths[-1].is_none, report


async def two_hundred_calls(daemon: Daemon) -> list[tuple[float, float]]:
    """A minute of them, every word once; returns the gateway's memory meanwhile."""
    memory: list[tuple[float, float]] = []
    sampling = asyncio.create_task(sample(daemon, memory))
    found = await load(daemon.address[1], CALLS, SECONDS)
    sampling.cancel()
    assert found["mistakes"] == {"lost": 0, "doubled_or_invented": 0}
    assert found["said"] > CALLS * SECONDS
    assert found["codes"] == {"1000": CALLS}
    assert found["summaries"] == CALLS
    return memory


async def back_to(before: dict[str, int], daemon: Daemon, url: str) -> None:
    """Waits until every count is within ROOM of what it was."""
    after: dict[str, int] = {}
    for _ in range(40):
        after = await counts(daemon, url)
        if all(abs(after[name] - before[name]) <= ROOM for name in before):
            return
        await asyncio.sleep(0.25)
    pytest.fail(f"before: {before}, after: {after}")


class Growth(NamedTuple):
    """Of resident memory in one run, in bytes and seconds; `by_thirds`: from the first to the last one."""

    slope: float
    error: float
    by_thirds: float
    size: float

    @property
    def is_none(self) -> bool:
        """The slope is below the limit, as far as the noise lets it be told; and nothing jumped for good."""
        return self.slope - 2 * self.error < SLOPE_LIMIT and self.by_thirds < GROWTH_LIMIT

    def __str__(self) -> str:
        slope, error = self.slope * 600 / 1e6, self.error * 600 / 1e6
        return (
            f"{self.size / 1e6:.1f} MB, {slope:+.2f} ± {error:.2f} MB per 10 min, "
            f"{self.by_thirds / 1e6:+.2f} MB by thirds"
        )


def growth_of(memory: list[tuple[float, float]]) -> Growth:
    # The first seconds are the making of tracks and the handshakes; the last ones the end of the calls.
    end = memory[-1][0] - 5
    steady = [(time, size) for time, size in memory if WARM_UP <= time <= end]
    third = len(steady) // 3
    first, last = (statistics.median(s for _, s in part) for part in (steady[:third], steady[-third:]))
    return Growth(*trend(steady), last - first, steady[-1][1])
