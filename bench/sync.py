"""`make bench-sync`: what the gateway adds to a recording that is answered at once, in time and memory.

    python -m bench.sync [--requests 200] [--uploads 20] [--report bench/sync.md]

The same POST of 1 MiB goes straight to the emulator and through the gateway, in turns, each on a connection
of its own kind that is kept open; every body is another, so that none is taken for a copy. Memory is the
proportional set size (PSS) of the gateway's process while uploads of 32 MiB are in flight, all of their bytes
sent but the last, less that before them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import aiohttp

from bench.machine import commit, is_native, machine, others_load
from bench.memory import pss_kib, settled_pss
from bench.stage import emulator, gateway, run

TARGET: Final = "/v1/listen?model=nova-3&encoding=mulaw&sample_rate=8000"
SMALL: Final = 1 << 20
LARGE: Final = 32 << 20
PIECE: Final = 65_536
WARM_UP: Final = 20
MOST_ADDED_MS: Final = 5.0
MOST_KIB: Final = 1024.0


def bodies(size: int) -> Iterator[bytes]:
    for number in itertools.count():
        yield number.to_bytes(8, "big") + b"\xff" * (size - 8)


async def timed(session: aiohttp.ClientSession, body: bytes) -> float:
    began = time.perf_counter()
    async with session.post(TARGET, data=body, headers={"Content-Type": "audio/basic"}) as response:
        await response.read()
        if response.status != 200:
            raise SystemExit(f"bench: HTTP {response.status}")
    return (time.perf_counter() - began) * 1000


async def latency(straight: str, through: str, requests: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each request, straight and through the gateway."""
    content = bodies(SMALL)
    found: tuple[list[float], list[float]] = ([], [])
    headers = {"Authorization": "Token bench"}
    async with (
        aiohttp.ClientSession(straight, headers=headers) as one,
        aiohttp.ClientSession(through, headers=headers) as other,
    ):
        for number in range(WARM_UP + requests):
            took = await timed(one, next(content)), await timed(other, next(content))
            if number >= WARM_UP:
                for list_, one_took in zip(found, took, strict=True):
                    list_.append(one_took)
    return found


@contextlib.asynccontextmanager
async def held(url: str, count: int) -> AsyncIterator[None]:
    """So many uploads, all but finished, until the end of the block."""
    sent, going = [asyncio.Event() for _ in range(count)], asyncio.Event()

    async def upload(number: int) -> AsyncIterator[bytes]:
        piece = secrets.token_bytes(8) + b"\xff" * (PIECE - 8)  # no copy of any other
        for _ in range(LARGE // PIECE):
            yield piece
        sent[number].set()
        await going.wait()
        yield b"\xff"

    async with aiohttp.ClientSession(url) as session:
        posts = [asyncio.create_task(session.post(TARGET, data=upload(number))) for number in range(count)]
        async with asyncio.timeout(120):
            await asyncio.gather(*(one.wait() for one in sent))
        await asyncio.sleep(1.0)
        yield
        going.set()
        for response in await asyncio.gather(*posts):
            response.release()
            if response.status != 200:
                raise SystemExit(f"bench: HTTP {response.status}")


async def memory(url: str, pid: int, uploads: int) -> tuple[float, float]:
    """KiB that each upload adds to the process: at most while they come, and when all but a byte is there."""
    async with held(url, 2):
        pass  # what Python keeps for itself is no upload's
    before = await settled_pss(pid)
    most = before

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, pss_kib(pid))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    async with held(url, uploads):
        watching.cancel()
        after = await settled_pss(pid)
    return (most - before) / uploads, (after - before) / uploads


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sync", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="each way (default 200)")
    parser.add_argument("--uploads", type=int, default=20, help="in flight at once (default 20)")
    parser.add_argument("--report", type=Path, help="where to write the figures, as Markdown")
    options = parser.parse_args()
    load = others_load()
    command = ("-m", "gateway", "emulate", "--engine", "script")
    async with (
        emulator(*command, capture_audio=False, ingest_speed=None) as upstream,
        gateway(upstream) as served,
    ):
        straight, through = await latency(upstream.url, served.url, options.requests)
        most, still = await memory(served.url, served.pid, options.uploads)
    added = statistics.median(through) - statistics.median(straight)
    rows = "\n".join(
        f"| {name} | {min(took):.2f} | {lower:.2f} | {median:.2f} | {upper:.2f} |"
        for name, took in (("straight to the emulator", straight), ("through the gateway", through))
        for lower, median, upper in [statistics.quantiles(took, n=4)]
    )
    text = f"""# What a recording costs that is answered at once

Measured by `python -m bench.sync --requests {options.requests} --uploads {options.uploads}`
on {machine()}, {commit(compiled=is_native())}, load {load:.1f} when it began.

Milliseconds of a POST of 1 MiB with its answer, one after another:

| | least | 25 % | median | 75 % |
|---|---|---|---|---|
{rows}

The gateway adds **{added:.2f} ms** at the median; the target is {MOST_ADDED_MS:g} ms.

Each of {options.uploads} uploads of 32 MiB at once adds **{most:.0f} KiB** to the PSS of the gateway's
process while they come, at most, and {still:.0f} KiB when all but their last byte is there; the target
is {MOST_KIB:.0f} KiB.
"""
    print(text)
    if options.report:
        options.report.write_text(text)
    over = added > MOST_ADDED_MS or max(most, still) > MOST_KIB
    if over:
        print("bench: more than the target")
    return int(over)


if __name__ == "__main__":
    run(main())
