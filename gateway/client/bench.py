"""A load test of anything that speaks Deepgram's live API: many paced calls at once.

Every call speaks the same audio on an absolute schedule, at a phase of its own, says CloseStream, and reads
until the server closes. Audio that no final covers at the end is lost.
"""

from __future__ import annotations

import asyncio
import random
import resource
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from websockets.exceptions import ConnectionClosed

from gateway.audio.clock import SAMPLE_BYTES
from gateway.client.connection import Connection, deepgrams, dial
from gateway.client.messages import Reader, Result
from gateway.client.source import Source
from gateway.errors import UpstreamError, UsageError

FREE_CALLS: Final = 5
"""At Deepgram itself, more are only made for those who say that they pay."""
LONGEST_AUDIO: Final = 600.0
"""Seconds of a file that are used; what is shorter than the calls is repeated."""
END_TIMEOUT: Final = 20.0
"""Seconds from CloseStream to the close: Deepgram's last results take a few."""
SPARE_FILES: Final = 64
ROUNDING: Final = 0.02
"""Seconds that the ends of two finals may lie apart or overlap: times have few digits."""
LATE: Final = 0.02
VIEWED: Final = 2000
"""Latencies that the figures on the way are taken from: looking must not make the calls late."""


class Audio(msgspec.Struct, frozen=True):
    """What every call says, over and over; `parameters` are Deepgram's for it."""

    parameters: Mapping[str, str]
    data: bytes
    frame_bytes: int
    frame: float
    """Seconds of one message."""

    @classmethod
    async def read(cls, source: Source, frame: float) -> Audio:
        """Raises `UsageError` for a source without a whole frame."""
        data = await source.read(LONGEST_AUDIO)
        sample = SAMPLE_BYTES[source.parameters["encoding"]] * int(source.parameters["channels"])
        frame_bytes = round(frame * int(source.parameters["sample_rate"])) * sample
        if len(data) < frame_bytes:
            raise UsageError(f"--audio: less than one frame of {1000 * frame:g} ms")
        return cls(source.parameters, data, frame_bytes, frame)

    @classmethod
    def noise(cls, frame: float) -> Audio:
        """Ten seconds of soft noise, G.711 at 8 kHz: nobody finds a word in it, but all of it is heard."""
        rng = random.Random(1)  # noqa: S311 (noise, not a secret)
        soft = [*range(0x70, 0x80), *range(0xF0, 0x100)]
        data = bytes(rng.choices(soft, k=80_000))
        parameters = {"encoding": "mulaw", "sample_rate": "8000", "channels": "1"}
        return cls(parameters, data, round(frame * 8000), frame)

    def message(self, number: int) -> bytes:
        whole = len(self.data) // self.frame_bytes
        at = number % whole * self.frame_bytes
        return self.data[at : at + self.frame_bytes]


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds; None without values."""

    p50: float | None
    p95: float | None
    p99: float | None
    most: float | None = msgspec.field(name="max")


class Report(msgspec.Struct, frozen=True):
    """What `gateway bench` prints, as one JSON object.

    `interim_latency` and `final_latency`: from the sending of the audio up to a result's end to the result.
    `uncovered_seconds` is audio sent that no final covers, `repeated_seconds` audio that two cover.
    `words_least` and `words_most`: in the finals of one call; calls that all ended well say the same.
    `late_frames`: sent more than 20 ms late by this program itself; then its latencies mean little.
    """

    calls: int
    completed: int
    failed: int
    errors: dict[str, int]
    audio_seconds: float
    uncovered_seconds: float
    repeated_seconds: float
    interims: int
    finals: int
    words_least: int
    words_most: int
    connect: Percentiles
    interim_latency: Percentiles
    final_latency: Percentiles
    late_frames: int


@dataclass
class _Call:
    sent: float = 0.0
    words: int = 0
    finals: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def uncovered(self) -> tuple[float, float]:
        """Seconds without a final and with two, of the channel that fared worst."""
        missing, twice = (0.0 if self.finals else self.sent), 0.0
        for spans in self.finals.values():
            lost = again = until = 0.0
            for start, end in [*sorted(spans), (self.sent, self.sent)]:
                lost += start - until if start - until > ROUNDING else 0.0
                again += min(until, end) - start if until - start > ROUNDING and end > start else 0.0
                until = max(until, end)
            missing, twice = max(missing, lost), max(twice, again)
        return missing, twice


class LoadTest:
    """`calls` calls of `seconds` each to `url`, which has the audio's parameters; `ramp` begin in a second.

    While `run` runs, `speaking`, `completed`, `errors` and `report()` tell how it goes.
    """

    def __init__(
        self, url: str, audio: Audio, *, key: str | None, calls: int, seconds: float, ramp: float
    ) -> None:
        """Raises `UsageError` when the system's limit of open files is below what so many calls need."""
        _allow_files(calls + SPARE_FILES)
        self.speaking = 0
        self.completed = 0
        self.errors: Counter[str] = Counter()
        self._url = url
        self._audio = audio
        self._key = key
        self._seconds = seconds
        self._ramp = ramp
        self._calls = [_Call() for _ in range(calls)]
        self._connect: list[float] = []
        self._latencies: dict[bool, list[float]] = {False: [], True: []}
        self._late = 0

    async def run(self) -> Report:
        async with asyncio.TaskGroup() as tasks:
            for number, call in enumerate(self._calls):
                # A phase of its own within a frame, so that no two calls send at the same time.
                phase = self._audio.frame * number / len(self._calls)
                tasks.create_task(self._run(call, number / self._ramp + phase))
        return self.report()

    def report(self, last: int = 0) -> Report:
        """With percentiles of the `last` values; 0: of all."""
        gaps = [call.uncovered() for call in self._calls]
        words = [call.words for call in self._calls]
        return Report(
            calls=len(self._calls),
            completed=self.completed,
            failed=self.errors.total(),
            errors=dict(self.errors.most_common()),
            audio_seconds=round(sum(call.sent for call in self._calls), 2),
            uncovered_seconds=round(sum(missing for missing, _ in gaps), 2),
            repeated_seconds=round(sum(twice for _, twice in gaps), 2),
            interims=len(self._latencies[False]),
            finals=len(self._latencies[True]),
            words_least=min(words),
            words_most=max(words),
            connect=percentiles(self._connect[-last:]),
            interim_latency=percentiles(self._latencies[False][-last:]),
            final_latency=percentiles(self._latencies[True][-last:]),
            late_frames=self._late,
        )

    async def _run(self, call: _Call, delay: float) -> None:
        await asyncio.sleep(delay)
        began = monotonic()
        try:
            socket = await dial(self._url, self._key)
            self._connect.append(monotonic() - began)
            self.speaking += 1
            try:
                await self._talk(call, socket)
            finally:
                self.speaking -= 1
                socket.transport.abort()
        except UpstreamError as error:
            # Without the id of the request, which would make each its own kind of error.
            self.errors[str(error).partition(" (request id ")[0]] += 1
        else:
            self.completed += 1

    async def _talk(self, call: _Call, socket: Connection) -> None:
        """One call, from its first frame to the server's close. Raises `UpstreamError` if it fails."""
        reader = Reader(monotonic())
        hearing = asyncio.create_task(self._hear(call, socket, reader))
        try:
            said_all = await self._say(call, socket, reader)
            async with asyncio.timeout(END_TIMEOUT):
                code, reason = await hearing
        except TimeoutError:
            raise UpstreamError(f"no close within {END_TIMEOUT:g} s of CloseStream") from None
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])
        if code not in (1000, 1005) or not said_all:
            early = "" if said_all else "in mid-call "
            raise UpstreamError(f"closed {early}with {code} {reason}".rstrip())

    async def _say(self, call: _Call, socket: Connection, reader: Reader) -> bool:
        frame = self._audio.frame
        began = monotonic()
        try:
            for number in range(max(1, round(self._seconds / frame))):
                due = began + number * frame
                await asyncio.sleep(due - monotonic())
                self._late += monotonic() - due > LATE
                await socket.send(self._audio.message(number))
                call.sent = (number + 1) * frame
                reader.sent(call.sent, monotonic())
            await socket.send('{"type":"CloseStream"}')
        except ConnectionClosed:
            return False  # who hears knows why
        return True

    async def _hear(self, call: _Call, socket: Connection, reader: Reader) -> tuple[int, str]:
        """The server's close code and reason."""
        try:
            while True:
                raw = await socket.recv(decode=False)
                with deepgrams(self._url):
                    message = reader.read(msgspec.json.decode(raw, type=dict[str, Any]), monotonic())
                if isinstance(message, Result):
                    self._latencies[message.final].append(message.latency)
                    if message.final:
                        call.finals[message.channel].append((message.start, message.end))
                        call.words += len(message.text.split())
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


def percentiles(seconds: list[float]) -> Percentiles:
    values = sorted(seconds)
    if not values:
        return Percentiles(None, None, None, None)
    picked = [values[min(int(q * len(values)), len(values) - 1)] for q in (0.5, 0.95, 0.99, 1.0)]
    return Percentiles(*(round(1000 * value, 1) for value in picked))


async def watch(test: LoadTest, console: Console) -> Report:
    """Runs it, with figures that follow it on the console."""
    with Live(console=console, refresh_per_second=1, get_renderable=lambda: view(test)):
        return await test.run()


def view(test: LoadTest) -> Table:
    report = test.report(last=VIEWED)
    table = Table(show_header=False, box=None)
    table.add_row("calls", f"{test.speaking} speaking, {report.completed} completed, {report.failed} failed")
    table.add_row(
        "audio", f"{report.audio_seconds:.0f} s sent, {report.uncovered_seconds:.1f} s without a final"
    )
    rows = (
        ("connect", report.connect),
        ("interims", report.interim_latency),
        ("finals", report.final_latency),
    )
    for name, found in rows:
        if found.p50 is not None:
            table.add_row(
                name, f"{found.p50} / {found.p95} / {found.p99} / {found.most} ms (p50, p95, p99, max)"
            )
    if report.late_frames:
        table.add_row("late", f"{report.late_frames} frames left this program more than 20 ms late")
    for error, count in report.errors.items():
        table.add_row("error", f"{count} x {error}")
    return table


def check_cost(url: str, calls: int, seconds: float, pays: bool) -> None:
    """Raises `UsageError` for many calls to Deepgram itself by who did not say that they pay."""
    host = urlsplit(url).hostname or ""
    if pays or calls <= FREE_CALLS or not f".{host.rstrip('.')}".endswith(".deepgram.com"):
        return
    minutes = calls * seconds / 60
    raise UsageError(
        f"{calls} calls of {seconds:g} s to {host} are {minutes:.0f} minutes that Deepgram bills; "
        f"say --yes-i-pay, or --calls {FREE_CALLS} at most"
    )


def _allow_files(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(f"--calls needs {needed} open files; the limit is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
