"""`make bench-memory`: what a call takes of the gateway's memory, beside audio that has no final yet.

    python -m bench.memory [--calls 200] [--report bench/memory.md]

The proportional set size (PSS) of the gateway's process, by the kernel: before, with that many calls that
have said one message, and with the same calls when each has spoken for some seconds and has its finals; at
last when all have spoken at once. A first batch of calls comes and goes before it all, so that what Python
keeps for itself is not counted as a call's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import time
from pathlib import Path
from typing import Final, NamedTuple, cast

from bench.machine import commit, is_native, machine, others_load
from bench.stage import Emulated, gateway, run, token_emulator
from gateway.emulator.sound import Format
from gateway.emulator.tokens import ids, speech
from tests.fakes.wire_client import BINARY, TEXT, frame, upgrade

QUERY: Final = "model=nova-3&encoding=mulaw&sample_rate=8000&interim_results=true"
MESSAGE: Final = 0.1
"""Seconds of audio in one message."""
SPEECH: Final = 5.0
WARM_UP: Final = 50
AT_ONCE: Final = 25
"""Calls that are opened together."""
KEEPALIVE: Final = frame(TEXT, b'{"type":"KeepAlive"}')
FINALIZE: Final = frame(TEXT, b'{"type":"Finalize"}')
TARGET_KIB: Final = {"plaintext": 12.0, "TLS": 50.0}


class Call(asyncio.Protocol):
    """A client that reads nothing of what it gets but the answer to its upgrade."""

    def __init__(self) -> None:
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(upgrade(f"/v1/listen?{QUERY}"))

    def data_received(self, data: bytes) -> None:
        self._last = data[-125:]  # as much as a close frame holds
        if not self.accepted.done():
            assert data.startswith(b"HTTP/1.1 101"), data
            self.accepted.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def send(self, data: bytes) -> None:
        if self.transport is None:
            raise SystemExit(f"bench: a call ended that should have gone on, with {self._last!r}")
        self.transport.write(data)

    def hang_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Figures(NamedTuple):
    """KiB of one call."""

    quiet: float
    spoken: float
    together: float
    process: float
    """MiB of the whole process with all calls."""
    unfinal: int
    """Bytes of the audio sent that no final had covered at the second measurement, the most of any call."""


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise SystemExit("bench: this kernel tells no PSS")


async def settled_pss(pid: int) -> int:
    """The smallest of a few, a second apart: a frame on its way is nobody's."""
    found = []
    for _ in range(4):
        await asyncio.sleep(1.0)
        found.append(pss_kib(pid))
    return min(found)


async def open_calls(count: int, port: int) -> list[Call]:
    loop = asyncio.get_running_loop()
    calls: list[Call] = []
    while len(calls) < count:
        more = min(AT_ONCE, count - len(calls))
        dials = [loop.create_connection(Call, "127.0.0.1", port) for _ in range(more)]
        opened = [call for _, call in await asyncio.gather(*dials)]
        await asyncio.gather(*(asyncio.wait_for(call.accepted, 20) for call in opened))
        calls += opened
    return calls


async def speak(calls: list[Call], messages: list[bytes], at_once: int) -> None:
    """So many calls after another speak in real time, then ask for the rest with Finalize."""
    for first in range(0, len(calls), at_once):
        speaking, began = calls[first : first + at_once], time.monotonic()
        for number, message in enumerate(messages):
            await asyncio.sleep(max(0.0, began + number * MESSAGE - time.monotonic()))
            for call in speaking:
                call.send(message)
        for call in speaking:
            call.send(FINALIZE)


async def keep_alive(calls: list[Call]) -> None:
    while True:
        for call in calls:
            call.send(KEEPALIVE)
        await asyncio.sleep(3.0)


async def unfinal_bytes(upstream: Emulated, calls: int) -> int:
    """By the emulator's record of one call in ten: audio received less the end of the last final sent."""
    most = 0
    for record in (await asyncio.to_thread(upstream.connections))[-calls::10]:
        sent = (await asyncio.to_thread(upstream.record, record["id"]))["sent"]
        ends = [_end(message["text"]) for message in sent if '"is_final":true' in message["text"]]
        most = max(most, record["audio_bytes"] - round(8000 * max(ends, default=0.0)))
    return most


def _end(text: str) -> float:
    message = json.loads(text)
    return float(message["start"] + message["duration"])


async def measure(count: int, tls: bool) -> Figures:
    rng = random.Random(1)  # noqa: S311 (the same speech every time)
    audio, _ = speech(ids(60, rng), Format("mulaw", 8000), rng)
    step = round(8000 * MESSAGE)
    messages = [frame(BINARY, audio[at : at + step]) for at in range(0, round(8000 * SPEECH), step)]
    async with (
        token_emulator(tls, capture_audio=False, keep_closed=10) as upstream,
        gateway(upstream) as served,
    ):
        for call in await open_calls(WARM_UP, served.port):
            call.send(messages[0])
            call.hang_up()
        await asyncio.sleep(2.0)
        before = await settled_pss(served.pid)
        calls = await open_calls(count, served.port)
        living = asyncio.create_task(keep_alive(calls))
        for call in calls:
            call.send(messages[0])
        quiet = await settled_pss(served.pid)
        await speak(calls, messages[1:], AT_ONCE)
        await asyncio.sleep(3.0)
        spoken = await settled_pss(served.pid)
        unfinal = await unfinal_bytes(upstream, count)
        for _ in range(2):
            await speak(calls, messages, len(calls))
        await asyncio.sleep(3.0)
        together = await settled_pss(served.pid)
        if living.done():
            living.result()
        living.cancel()
        for call in calls:
            call.hang_up()
    a, b, c = ((kib - before) / count for kib in (quiet, spoken, together))
    return Figures(a, b, c, together / 1024, unfinal)


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=200, help="at a time (default 200)")
    parser.add_argument("--report", type=Path, help="where to write the figures, as Markdown")
    options = parser.parse_args()
    needed = 4 * options.calls + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))  # children inherit it
    load = others_load()
    found = {name: await measure(options.calls, name == "TLS") for name in TARGET_KIB}
    unfinal = max(f.unfinal for f in found.values())
    lines = "\n".join(
        f"| {name} | {f.quiet:.1f} | {f.spoken:.1f} | {kib:.0f} | {f.together:.1f} | {f.process:.0f} |"
        for (name, f), kib in zip(found.items(), TARGET_KIB.values(), strict=True)
    )
    text = f"""# Memory of a call

Measured by `python -m bench.memory --calls {options.calls}`
on {machine()}, {commit(compiled=is_native())}, load {load:.1f} when it began.

KiB that each of {options.calls} calls adds to the PSS of the gateway's process: one that has said a single
message of 100 ms, and one that has spoken for {SPEECH:.0f} s of G.711, {AT_ONCE} calls at a time, has its
results, and asked for the rest with `Finalize`. Up to two seconds of final audio, 16 KiB, are kept for a new
connection to begin with (`[session] preroll`) and are in the figures. What the kernel holds for sockets is
not.

| upstream | quiet | after speech | target | after all spoke at once | process then, MiB |
|---|---|---|---|---|---|
{lines}

When *after speech* was measured, the call with the most audio without a final had {unfinal} bytes of it, by
the emulator's record of one call in ten. *After all spoke at once* the audio is gone as well, but the heap
stays as large as it was with the audio of all calls in it: the allocator keeps it for the next that speaks.
"""
    print(text)
    if options.report:
        options.report.write_text(text)
    over = [name for name, f in found.items() if max(f.quiet, f.spoken) > TARGET_KIB[name]]
    if over:
        print(f"bench: more than the target: {', '.join(over)}")
    return int(bool(over))


if __name__ == "__main__":
    run(main())
