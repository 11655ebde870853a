"""What the store takes: rows in a second, and the processor's time for the finals of live calls.

`python -m bench.store [--url URL] [--calls N] [--seconds S]`, on a file in a temporary folder or on an empty
database. CPU time is the whole process's: the event loop, SQLAlchemy, and the writer's thread.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from sqlalchemy import func, select

from gateway.metrics import Metrics
from gateway.store import transcripts
from gateway.store.databases import location
from gateway.store.schema import FINALS, JOBS
from gateway.store.store import Store
from gateway.store.transcripts import FinalResult, Transcript

ROWS: Final = 5000
WAITING: Final = 50
"""Requests that are answered at once."""
FINALS_PER_SECOND: Final = 0.3
"""Of one call."""
FLUSH_SECONDS: Final = 0.5
"""How often finals go to the store."""
WORDS: Final = 12
"""In a final."""
INSERT: Final = JOBS.insert()


def job(number: int) -> dict[str, object]:
    row: dict[str, object] = {column.name: None for column in JOBS.columns}
    texts = ("query", "media_type", "route", "reason", "worker", "request_id")
    numbers = ("size_bytes", "attempts", "max_attempts", "reruns", "run_at", "created_at")
    row |= dict.fromkeys(texts, "x") | dict.fromkeys(numbers, 1)
    return row | {"id": f"job-{number}", "principal": "p", "state": "queued", "priority": 5, "stored": True}


def final(call: str, number: int) -> FinalResult:
    words = [
        {"word": "word", "start": 1.0, "end": 1.5, "confidence": 0.99, "punctuated_word": "Word."}
    ] * WORDS
    return FinalResult(
        transcript=call,
        number=number,
        channel=0,
        start=number * 3.0,
        duration=3.0,
        text="word " * WORDS,
        words=msgspec.json.encode(words),
    )


async def rows(name: str, metrics: Metrics, write: Callable[[int], Awaitable[object]]) -> None:
    """ROWS writes, WAITING of which wait at any time."""
    places = asyncio.Semaphore(WAITING)

    async def one(number: int) -> None:
        async with places:
            await write(number)

    before, wall, cpu = sum(metrics.store_commit.counts), time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(number) for number in range(ROWS)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    commits = sum(metrics.store_commit.counts) - before
    print(
        f"{name}: {ROWS / wall:,.0f}/s in {commits / wall:,.0f} transactions/s, "
        f"{cpu / ROWS * 1e6:.0f} us of CPU each"
    )


async def live(store: Store, calls: int, seconds: float) -> None:
    """Finals of all calls as they come; beside a loop that does nothing but look how late it is."""
    names = [f"call-{number}" for number in range(calls)]
    begun = [Transcript(id=name, principal="p", source="live", created_at=1.0) for name in names]
    await store.write(lambda connection: transcripts.begin(connection, begun))
    ticks = int(seconds / FLUSH_SECONDS)
    per_tick = int(calls * FINALS_PER_SECOND * FLUSH_SECONDS)
    batches = [
        [final(names[(tick * per_tick + n) % calls], tick) for n in range(per_tick)] for tick in range(ticks)
    ]

    async def append(batch: list[FinalResult]) -> None:
        await store.write(lambda connection: transcripts.append(connection, batch))

    idle, lags_of_nothing = await watched(batches, None)
    busy, lags = await watched(batches, append)
    share = (busy - idle) / (ticks * FLUSH_SECONDS)
    count = await store.read(lambda connection: connection.execute(select(func.count()).select_from(FINALS)))
    assert count.scalar_one() == per_tick * ticks
    print(
        f"finals of {calls} calls: {share:.2%} of a core for {per_tick / FLUSH_SECONDS:.0f}/s; "
        f"loop lag p99 {lags * 1e3:.1f} ms (without: {lags_of_nothing * 1e3:.1f} ms)"
    )


async def watched(
    batches: list[list[FinalResult]], append: Callable[[list[FinalResult]], Coroutine[Any, Any, None]] | None
) -> tuple[float, float]:
    """CPU seconds, and the 99th percentile of how late the loop is, while a batch goes off at each tick."""
    lags: list[float] = []
    cpu, start = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for tick, batch in enumerate(batches, 1):
            if append is not None:
                tasks.create_task(append(batch))
            while (now := time.perf_counter()) < start + tick * FLUSH_SECONDS:
                await asyncio.sleep(0.005)
                lags.append(time.perf_counter() - now - 0.005)
    return time.process_time() - cpu, sorted(lags)[int(len(lags) * 0.99)]


async def measure(url: str, calls: int, seconds: float) -> None:
    metrics = Metrics([], "bench")
    place = location(url, {})
    assert place is not None
    store = await Store.open(place, metrics=metrics)
    try:
        await rows("put", metrics, lambda number: store.put(INSERT, [job(number)]))

        async def insert(number: int) -> None:
            row = job(ROWS + number)
            await store.write(lambda connection: connection.execute(INSERT, row))

        await rows("write", metrics, insert)
        await live(store, calls, seconds)
    finally:
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty database (default: a new file of SQLite's)")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{Path(folder, 'bench.db')}"
        uvloop.run(measure(url, options.calls, options.seconds))


if __name__ == "__main__":
    main()
