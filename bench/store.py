"""What the store takes: rows in a second; and what the finals of live calls cost, in processor and loop lag.

`python -m bench.store [--url URL] [--calls N] [--seconds S] [--report FILE]`, on a file in a temporary folder
or on an empty database. CPU time is the whole process's: the event loop, SQLAlchemy, and the writer's thread.

Finals go the way of a gateway's: from a call's `Record` to the `Recorder`, which writes four times a second.
They come evenly to a loop that otherwise only looks how late it is, in turns with rounds in which they come
and nothing is kept; what they cost is the difference.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
import uvloop
from sqlalchemy import func, select

from bench.machine import commit, machine, others_load
from gateway.live.record import Record, Recorder
from gateway.metrics import Metrics
from gateway.store.databases import location
from gateway.store.schema import FINALS, JOBS
from gateway.store.store import Store
from gateway.store.transcripts import Transcript

ROWS: Final = 5000
WAITING: Final = 50
"""Requests that are answered at once."""
FINALS_PER_SECOND: Final = 0.3
"""Of one call."""
WORDS: Final = 12
"""In a final."""
LOOK_SECONDS: Final = 0.005
"""Between two looks at how late the loop is; it cannot be told finer than a millisecond, uvloop's own."""
ROUNDS: Final = 3
"""Of each kind."""
MOST_OF_A_CORE: Final = 0.03
MOST_LAG_MS: Final = 2.0
INSERT: Final = JOBS.insert()


def job(number: int) -> dict[str, object]:
    row: dict[str, object] = {column.name: None for column in JOBS.columns}
    texts = ("query", "media_type", "route", "reason", "worker", "request_id")
    numbers = ("size_bytes", "attempts", "max_attempts", "reruns", "run_at", "created_at")
    row |= dict.fromkeys(texts, "x") | dict.fromkeys(numbers, 1)
    return row | {"id": f"job-{number}", "principal": "p", "state": "queued", "priority": 5, "stored": True}


def final(number: int) -> bytes:
    """A result as Deepgram sends it, some 1500 bytes."""
    words = [
        {"word": "word", "start": 1.0, "end": 1.5, "confidence": 0.99, "punctuated_word": "Word."}
    ] * WORDS
    alternative = {"transcript": "word " * WORDS, "confidence": 0.99, "words": words}
    said = {"type": "Results", "channel_index": [0, 1], "start": number * 3.0, "duration": 3.0}
    return msgspec.json.encode(
        said | {"is_final": True, "speech_final": True, "channel": {"alternatives": [alternative]}}
    )


async def rows(name: str, metrics: Metrics, write: Callable[[int], Awaitable[object]]) -> str:
    """ROWS writes, WAITING of which wait at any time: what that takes, in words."""
    places = asyncio.Semaphore(WAITING)

    async def one(number: int) -> None:
        async with places:
            await write(number)

    before, wall, cpu = sum(metrics.store_commit.counts), time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(number) for number in range(ROWS)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    commits = sum(metrics.store_commit.counts) - before
    return (
        f"- {name}: {ROWS / wall:,.0f}/s in {commits / wall:,.0f} transactions/s, "
        f"{cpu / ROWS * 1e6:.0f} us of CPU each"
    )


class Cost(NamedTuple):
    """Of the finals of live calls: `core` is a share of one, the lags are 99th percentiles."""

    core: float
    lag_ms: float
    own_lag_ms: float
    """Of the same without a store."""

    @property
    def is_over(self) -> bool:
        return self.core > MOST_OF_A_CORE or self.lag_ms - self.own_lag_ms > MOST_LAG_MS


async def live(store: Store, metrics: Metrics, calls: int, seconds: float) -> Cost:
    """Each of ROUNDS lasts so many `seconds`, once without and once with the store."""
    recorder = Recorder(store, metrics=metrics, tell=lambda _session: None, told=lambda: None)
    recorder.start()
    names = [f"call-{number}" for number in range(calls)]
    for name in names:
        recorder.began(Transcript(id=name, principal="p", source="live", created_at=1.0))
    kept, unkept = ([Record(name, 1.0, keeper) for name in names] for keeper in (recorder, None))
    spent: dict[bool, float] = {True: 0.0, False: 0.0}
    lags: dict[bool, list[float]] = {True: [], False: []}
    said = 0
    for _ in range(ROUNDS):
        for is_kept, records in ((False, unkept), (True, kept)):
            await asyncio.sleep(1.0)  # what the last round left is written
            count, cpu, late = await spoken(records, seconds)
            spent[is_kept] += cpu
            lags[is_kept] += late
            said += count * is_kept
    await recorder.close()
    written = await store.read(lambda c: c.execute(select(func.count()).select_from(FINALS)))
    assert written.scalar_one() == said  # none was dropped
    return Cost((spent[True] - spent[False]) / (ROUNDS * seconds), p99_ms(lags[True]), p99_ms(lags[False]))


async def spoken(records: Sequence[Record], seconds: float) -> tuple[int, float, list[float]]:
    """How many finals came, one call after the other; CPU seconds; and how late the loop was at each look."""
    raws = [final(number) for number in range(100)]
    count, late = 0, []
    cpu, start = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        for number in range(count, int((now - start) * len(records) * FINALS_PER_SECOND)):
            records[number % len(records)].final(raws[number % len(raws)])
            count += 1
        before = time.perf_counter()
        await asyncio.sleep(LOOK_SECONDS)
        late.append(time.perf_counter() - before - LOOK_SECONDS)
    return count, time.process_time() - cpu, late


def p99_ms(lags: Sequence[float]) -> float:
    return 1000 * sorted(lags)[int(len(lags) * 0.99)]


async def measure(url: str, calls: int, seconds: float) -> tuple[str, Cost]:
    metrics = Metrics([], "bench")
    place = location(url, {})
    assert place is not None
    store = await Store.open(place, metrics=metrics)
    try:
        put = await rows("put", metrics, lambda number: store.put(INSERT, [job(number)]))

        async def insert(number: int) -> None:
            row = job(ROWS + number)
            await store.write(lambda connection: connection.execute(INSERT, row))

        written = await rows("write", metrics, insert)
        cost = await live(store, metrics, calls, seconds)
    finally:
        await store.close()
    return f"{put}\n{written}", cost


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="an empty database (default: a new file of SQLite's)")
    parser.add_argument("--calls", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round (default: %(default)g)")
    parser.add_argument("--report", type=Path, help="where to write the figures, as Markdown")
    options = parser.parse_args()
    load = others_load()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{Path(folder, 'bench.db')}"
        taken, cost = uvloop.run(measure(url, options.calls, options.seconds))
    more_ms, each_second = cost.lag_ms - cost.own_lag_ms, options.calls * FINALS_PER_SECOND
    text = f"""# What the store takes

Measured by `python -m bench.store --calls {options.calls} --seconds {options.seconds:g}` on
{urlsplit(url).scheme}, {machine()}, {commit()}, load {load:.1f} when it began.

Jobs as rows, {WAITING} of which wait at any time; `put` is the fast way, `write` an operation each:

{taken}

Finals of {options.calls} live calls, {each_second:.0f} a second, in {ROUNDS} rounds with a store and {ROUNDS}
without one:

- **{cost.core:.2%}** of one core, the writer's thread included; the target is {MOST_OF_A_CORE:.0%}.
- loop lag p99 {cost.lag_ms:.2f} ms, without a store {cost.own_lag_ms:.2f} ms: **{more_ms:.2f} ms** more; the
  target is {MOST_LAG_MS:g} ms.
"""
    print(text)
    if options.report:
        options.report.write_text(text)
    if cost.is_over:
        print("bench: more than the target")
    return int(cost.is_over)


if __name__ == "__main__":
    raise SystemExit(main())
