"""The load of load.c for machines without gcc: the same arguments, marks and JSON, by asyncio.

It is late when it is busy, and busy with more than about 100 calls on a modern core: then its own lateness
(`late`) is in the latencies, and `load_core` near 1 says so. It cuts no connections (`--blackout`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
import struct
import sys
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

PERIOD: Final = 0.02
FRAME: Final = 160
RATE: Final = 8000
HEAD: Final = struct.Struct("<QIIQ")
"""A frame begins with a mark, its session, its number, and when it should have left (ns)."""
MAGIC: Final = 0x9E3779B97F4A7C15
FINAL_EVERY: Final = 8
IN_FLIGHT: Final = 32
GIVE_UP: Final = 30.0
DRAIN: Final = 0.7
LAST_WORDS: Final = 2.0
WORDS: Final = ["it", "was", "the", "best", "of", "times", "it", "was", "the", "worst"]
BOUNDS_MS: Final = [0.01 * 1.03**step for step in range(500)]


@dataclass
class Session:
    client: ClientConnection | None = None
    upstream: Upstream | None = None
    sent: int = 0
    next: int = 0
    ended: bool = False


@dataclass
class Upstream:
    socket: ServerConnection
    session: int = -1
    received: int = 0
    partial: bytes = b""
    final_end: float = 0.0
    results: int = 0


@dataclass
class Latencies:
    """Milliseconds."""

    seen: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        values = sorted(self.seen) or [0.0]
        bins = Counter(
            BOUNDS_MS[min(bisect_left(BOUNDS_MS, value), len(BOUNDS_MS) - 1)] for value in self.seen
        )
        p50, p99, p9999 = (values[min(int(q * len(values)), len(values) - 1)] for q in (0.5, 0.99, 0.9999))
        return {"count": len(self.seen), "p50": p50, "p99": p99, "p9999": p9999, "max": values[-1]} | {
            "bins": [[round(bound, 4), count] for bound, count in sorted(bins.items())]
        }


class Load:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sessions = [Session() for _ in range(options.calls)]
        self.arrived = 0
        self.all_arrived = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.counts: Counter[str] = Counter()
        self.latencies = {"up": Latencies(), "down": Latencies(), "late": Latencies()}
        self.window = (0, 0)
        self.running = True

    async def run(self) -> dict[str, Any]:
        options = self.options
        tls = None
        if options.cert:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(options.cert, options.key)
        async with serve(
            self.sink,
            "127.0.0.1",
            options.listen,
            ssl=tls,
            compression=None,
            ping_interval=None,
            process_response=with_request_id,
        ):
            mark("dial")
            if not await self.open_all():
                opened = sum(session.client is not None for session in self.sessions)
                what = f"{opened} of {options.calls} calls opened, and {self.arrived} connections came"
                return {"error": f"only {what}"}
            mark("open")
            await asyncio.sleep(0.3)
            began = time.process_time()
            await self.talk()
            core = (time.process_time() - began) / (options.seconds + options.warm_up)
            unfinal = self.unfinal_bytes()
            await asyncio.sleep(DRAIN)
            return await self.hang_up() | self.figures() | {"unfinal_bytes": unfinal, "load_core": core}

    # Deepgram

    async def sink(self, socket: ServerConnection) -> None:
        upstream = Upstream(socket)
        self.arrived += 1
        if self.arrived >= self.options.calls:
            self.all_arrived.set()
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                if isinstance(message, bytes):
                    self.audio(upstream, message)
                elif "CloseStream" in message:
                    await self.result(upstream, True, 0)
                    await socket.send(
                        json.dumps({"type": "Metadata", "request_id": "bench", "channels": 1} | META)
                    )
                    break

    def audio(self, upstream: Upstream, data: bytes) -> None:
        now = time.monotonic_ns()
        upstream.received += len(data)
        data = upstream.partial + data
        whole = len(data) - len(data) % FRAME
        upstream.partial = data[whole:]
        for at in range(0, whole, FRAME):
            magic, number, sequence, due = HEAD.unpack_from(data, at)
            if magic != MAGIC or upstream.session not in (-1, number):
                self.counts["crossed"] += 1
                continue
            session = self.sessions[number]
            upstream.session, session.upstream = number, upstream
            if sequence < session.next:
                self.counts["frames_repeated"] += 1
                continue
            self.counts["frames_lost"] += sequence - session.next
            self.counts["frames_received"] += 1
            session.next = sequence + 1
            self.observe("up", due, now)

    async def result(self, upstream: Upstream, final: bool, due: int) -> None:
        start, end = upstream.final_end, upstream.received / RATE
        if upstream.session < 0 or (end <= start and not final):
            return
        said = [*WORDS, f"T~{due:020}~{upstream.session}"]
        step = (end - start) / len(said)
        words = [
            {"word": w, "start": round(start + step * i, 3), "end": round(start + step * (i + 1), 3)}
            | {"confidence": 0.9921875, "punctuated_word": w}
            for i, w in enumerate(said)
        ]
        text = " ".join(said)
        message = {
            "type": "Results", "channel_index": [0, 1], "duration": end - start, "start": start,
            "is_final": final, "speech_final": final,
            "channel": {"alternatives": [{"transcript": text, "confidence": 0.98876953, "words": words}]},
            "metadata": {"request_id": "bench", "model_uuid": "bench"} | MODEL, "from_finalize": False,
        }  # fmt: skip
        upstream.results += 1
        self.counts["results_sent"] += 1
        if final:
            upstream.final_end = end
        await upstream.socket.send(json.dumps(message, separators=(",", ":")))

    # Softphones

    async def open_all(self) -> bool:
        limit, url = asyncio.Semaphore(IN_FLIGHT), f"ws://127.0.0.1:{self.options.target}{self.options.path}"

        async def dial(number: int) -> None:
            await asyncio.sleep(number / self.options.ramp)
            async with limit:
                client = await connect(url, compression=None, ping_interval=None, open_timeout=GIVE_UP)
            self.sessions[number].client = client
            self.tasks.append(asyncio.create_task(self.hear(number, client)))

        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.gather(*(dial(number) for number in range(self.options.calls)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.all_arrived.wait(), GIVE_UP)
        return self.all_arrived.is_set() and all(session.client for session in self.sessions)

    async def hear(self, number: int, client: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in client:
                assert isinstance(message, str)
                _, found, rest = message.partition("T~")
                if found:
                    due, session = rest.partition('"')[0].split("~")
                    self.counts["crossed"] += int(session) != number
                    self.counts["results_got"] += 1
                    self.observe("down", int(due), time.monotonic_ns())
                elif '"Metadata"' in message:
                    self.sessions[number].ended = True
        self.counts["closed_early"] += self.running

    async def talk(self) -> None:
        start = time.monotonic() + 0.05
        first = start + self.options.warm_up
        self.window = (round(first * 1e9), round((first + self.options.seconds) * 1e9))
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.options.calls):
                tasks.create_task(self.say(number, start + PERIOD * number / self.options.calls))
                tasks.create_task(
                    self.answer(number, start + number / self.options.calls / self.options.results)
                )
            await asyncio.sleep(first - time.monotonic())
            mark("window")
        mark("end")

    async def say(self, number: int, due: float) -> None:
        session = self.sessions[number]
        assert session.client
        with contextlib.suppress(ConnectionClosed):
            while (due_ns := round(due * 1e9)) < self.window[1]:
                await asyncio.sleep(due - time.monotonic())
                self.observe("late", due_ns, time.monotonic_ns())
                frame = HEAD.pack(MAGIC, number, session.sent, due_ns)
                session.sent += 1
                await session.client.send(frame + b"\x5a" * (FRAME - len(frame)))
                due += PERIOD

    async def answer(self, number: int, due: float) -> None:
        with contextlib.suppress(ConnectionClosed):
            while (due_ns := round(due * 1e9)) < self.window[1]:
                await asyncio.sleep(due - time.monotonic())
                if upstream := self.sessions[number].upstream:
                    await self.result(upstream, upstream.results % FINAL_EVERY == FINAL_EVERY - 1, due_ns)
                due += 1 / self.options.results

    async def hang_up(self) -> dict[str, Any]:
        self.running = False
        clients = [session.client for session in self.sessions if session.client]
        for client in clients:
            with contextlib.suppress(ConnectionClosed):
                await client.send('{"type":"CloseStream"}')
        await asyncio.wait(self.tasks, timeout=LAST_WORDS)
        answered = sum(session.ended for session in self.sessions)
        for client in clients:
            if not client.transport.is_closing():
                client.transport.write_eof()
        await asyncio.wait(self.tasks, timeout=LAST_WORDS)
        return {"answered": answered}

    # Figures

    def observe(self, which: str, due: int, now: int) -> None:
        if self.window[0] <= due < self.window[1]:
            self.latencies[which].seen.append(max(0, now - due) / 1e6)

    def unfinal_bytes(self) -> int:
        heard = [session.upstream for session in self.sessions if session.upstream]
        unfinal = sum(one.received - RATE * one.final_end for one in heard)
        return round(unfinal / len(self.sessions))

    def figures(self) -> dict[str, Any]:
        counts, tails = self.counts, sum(session.sent - session.next for session in self.sessions)
        return {
            **{which: latencies.figures() for which, latencies in self.latencies.items()},
            "generator": "python",
            "calls": self.options.calls,
            "seconds": self.options.seconds,
            "frames_sent": sum(session.sent for session in self.sessions),
            "frames_received": counts["frames_received"],
            "frames_lost": counts["frames_lost"] + tails,
            "frames_repeated": counts["frames_repeated"],
            "crossed": counts["crossed"],
            "bytes_skipped": 0,
            "results_sent": counts["results_sent"],
            "results_lost": counts["results_sent"] - counts["results_got"],
            "closed_early": counts["closed_early"],
        }


MODEL: Final = {"model_info": {"name": "general-nova-3", "version": "2024-12-20.0", "arch": "nova-3"}}
META: Final = {
    "transaction_key": "deprecated",
    "sha256": "0" * 64,
    "created": "2025-01-01T00:00:00Z",
    "duration": 1.0,
}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    return await Load(options).run()


def with_request_id(_socket: ServerConnection, _request: Request, response: Response) -> None:
    response.headers["dg-request-id"] = "bench"


def mark(name: str) -> None:
    print(f"MARK {name}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (
        ("calls", 50),
        ("seconds", 4),
        ("warm-up", 1),
        ("ramp", 500),
        ("results", 3),
        ("blackout", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument(
        "--path", default="/v1/listen?model=nova-3&encoding=mulaw&sample_rate=8000&interim_results=true"
    )
    options = parser.parse_args()
    if options.blackout:
        print('{"error": "a blackout needs the load in C: install gcc"}')
        return 1
    found = uvloop.run(run(options))
    print(json.dumps(found))
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
