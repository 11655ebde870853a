"""`make bench-reconnect`: how long no audio flows when the connection to Deepgram is reset.

    python -m bench.reconnect [--breaks 120] [--report bench/reconnect.md]

A few calls in real time; every half second one of them loses its upstream connection to a TCP reset. Both
ends of the gap are the emulator's: when it reset the connection, and when the first audio of the call came on
another one. Gateway's own clock and counters play no part.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from websockets.asyncio.client import connect

from bench.machine import commit, is_native, machine, others_load
from bench.stage import Emulated, gateway, run, token_emulator

CALLS: Final = 6
FRAME: Final = bytes([0xD5, 0x55]) * 80
"""20 ms that are no silence."""
BETWEEN: Final = 0.5
PATIENCE: Final = 20.0
TARGET_MS: Final = 300.0
QUERY: Final = "model=nova-3&encoding=mulaw&sample_rate=8000&interim_results=true"


class Gap(NamedTuple):
    """In milliseconds after the reset."""

    dialled: float
    """The next attempt to connect reached the emulator."""
    flowing: float
    """Its first audio did."""
    attempts: int


async def speak(port: int, tag: str) -> None:
    """A call in real time, until it is cancelled."""
    headers = {"Authorization": "Token bench"}
    async with connect(
        f"ws://127.0.0.1:{port}/v1/listen?{QUERY}&tag={tag}", additional_headers=headers
    ) as ws:
        hearing = asyncio.create_task(_hear(ws))
        began, number = time.monotonic(), 0
        try:
            while True:
                number += 1
                await asyncio.sleep(began + number * 0.02 - time.monotonic())
                await ws.send(FRAME)
        finally:
            hearing.cancel()


async def _hear(ws: Any) -> None:
    async for _ in ws:
        pass


async def strike(upstream: Emulated, tag: str) -> Gap:
    """Resets the call's connection, once it has brought results, and waits for audio on another."""
    end = time.monotonic() + PATIENCE
    while True:
        records = await _of(upstream, tag)
        if records and records[-1]["sent_count"] and records[-1]["closed_at"] is None:
            break
        _check(end, f"call {tag} has no healthy upstream connection")
        await asyncio.sleep(0.05)
    before = len(records)
    await asyncio.to_thread(upstream.act, records[-1]["id"], "reset")
    while True:
        records = await _of(upstream, tag)
        if len(records) > before and records[-1]["first_audio_at"]:
            break
        _check(end, f"call {tag} got no audio through again")
        await asyncio.sleep(0.05)
    cut, after = records[before - 1]["closed_at"], records[before:]
    dialled, flowing = after[0]["opened_at"] - cut, after[-1]["first_audio_at"] - cut
    return Gap(1000 * dialled, 1000 * flowing, len(after))


async def _of(upstream: Emulated, tag: str) -> list[dict[str, Any]]:
    records = await asyncio.to_thread(upstream.connections)
    return [record for record in records if record["query"].endswith(f"tag={tag}")]


def _check(end: float, what: str) -> None:
    if time.monotonic() > end:
        raise SystemExit(f"bench: {what} within {PATIENCE:.0f} s")


async def measure(breaks: int, tls: bool) -> list[Gap]:
    # Frequent results, so that a connection is soon healthy: only then is the first dial at once.
    knobs = {"interim_interval": 0.2, "silence_window": 0.5, "capture_texts": False, "capture_audio": False}
    found = []
    async with token_emulator(tls, keep_closed=10_000, **knobs) as upstream, gateway(upstream) as served:
        calls = [asyncio.create_task(speak(served.port, str(n))) for n in range(CALLS)]
        try:
            await asyncio.sleep(1.5)
            for number in range(breaks):
                found.append(await strike(upstream, str(number % CALLS)))
                await asyncio.sleep(BETWEEN)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    return found


def line(name: str, gaps: list[Gap]) -> str:
    flowing = sorted(gap.flowing for gap in gaps)
    dialled = statistics.median(gap.dialled for gap in gaps)
    p95 = flowing[int(len(flowing) * 0.95)]
    again = sum(gap.attempts > 1 for gap in gaps)
    return (
        f"| {name} | {len(gaps)} | {statistics.median(flowing):.1f} | {p95:.1f} | {flowing[-1]:.1f} "
        f"| {dialled:.1f} | {again} |"
    )


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reconnect", description=__doc__.partition("\n")[0])
    parser.add_argument("--breaks", type=int, default=120, help="of each kind of connection (default 120)")
    parser.add_argument("--report", type=Path, help="where to write the figures, as Markdown")
    options = parser.parse_args()
    load = others_load()
    plain = await measure(options.breaks, tls=False)
    secure = await measure(options.breaks, tls=True)
    text = f"""# From a lost upstream connection to audio on the next

Measured by `python -m bench.reconnect --breaks {options.breaks}`
on {machine()}, {commit(compiled=is_native())}, load {load:.1f} when it began.

{CALLS} calls in real time on loopback, one TCP reset every {BETWEEN} s and a little. Milliseconds from the
emulator's reset to the first audio that it gets on the call's next connection, by its own clock; *dialled* is
when the next attempt reached it (median). Target: a median of at most {TARGET_MS:.0f} ms, the first retry at
once.

| upstream | breaks | median | p95 | most | dialled | needed a second dial |
|---|---|---|---|---|---|---|
{line("plaintext", plain)}
{line("TLS", secure)}

Loopback has no round trip: over a network each connection costs one for TCP, one for TLS 1.3 and one for the
WebSocket handshake.
"""
    print(text)
    if options.report:
        options.report.write_text(text)
    worst = max(statistics.median(gap.flowing for gap in gaps) for gaps in (plain, secure))
    if worst > TARGET_MS:
        print(f"bench: a median of {worst:.0f} ms; {TARGET_MS:.0f} is the target")
    return int(worst > TARGET_MS)


if __name__ == "__main__":
    run(main())
