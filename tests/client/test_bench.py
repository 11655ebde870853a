"""The load test against the emulator: what it reports is what happened."""

from __future__ import annotations

import asyncio
import random
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console
from websockets.asyncio.server import ServerConnection

from gateway.client import listen_url, open_source
from gateway.client.bench import Audio, LoadTest, Report, check_cost, percentiles, watch
from gateway.emulator import Emulator, Fault, Knobs
from gateway.emulator.sound import Format
from gateway.emulator.tokens import ids, speech
from gateway.errors import UsageError
from tests.client.test_live import result, server

FRAME = 0.02


@asynccontextmanager
async def emulator(*faults: Fault) -> AsyncIterator[str]:
    running = Emulator(Knobs(faults=faults))
    await running.start(port=0)
    try:
        yield running.url
    finally:
        await running.stop()


def load(url: str, calls: int, seconds: float, audio: Audio | None = None, ramp: float = 100.0) -> LoadTest:
    audio = audio or Audio.noise(FRAME)
    address = listen_url(url, {"model": "nova-3", "interim_results": "true", **audio.parameters})
    return LoadTest(address, audio, key="k", calls=calls, seconds=seconds, ramp=ramp)


async def ended(test: LoadTest) -> Report:
    async with asyncio.timeout(30):
        return await test.run()


async def test_calls_that_lose_nothing(tmp_path: Path) -> None:
    """Every call speaks all its audio, a file over and over, in real time; all hear the same words."""
    rng = random.Random(1)
    said, _ = speech(ids(3, rng), Format("linear16", 8000), rng)
    path = tmp_path / "said.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(said)
    with open_source(str(path), None, None, 1) as source:
        audio = await Audio.read(source, FRAME)
    async with emulator() as url:
        test = load(url, 4, 2.0, audio)
        running = asyncio.create_task(ended(test))
        await asyncio.sleep(1.0)
        assert test.speaking == 4
        assert 0 < test.report().audio_seconds < 8
        report = await running
    assert (report.calls, report.completed, report.failed, report.errors) == (4, 4, 0, {})
    assert report.audio_seconds == 8.0
    assert (report.uncovered_seconds, report.repeated_seconds) == (0, 0)
    assert report.words_least == report.words_most > 0
    assert report.finals >= 4
    assert report.final_latency.p50 is not None
    assert 0 < report.final_latency.p50 < 1000
    assert test.speaking == 0


async def test_calls_that_fail_are_counted_by_their_reason() -> None:
    """A refusal and closes in mid-call, orderly or not, are told apart; the other calls are not touched."""
    faults = (
        Fault("refuse", nth=1, status=503),
        Fault("close", nth=2, after_seconds=0.5, code=1011),
        Fault("close", nth=3, after_seconds=0.5, code=1000),
    )
    async with emulator(*faults) as url:
        report = await ended(load(url, 5, 1.0, ramp=10))
    assert (report.completed, report.failed) == (2, 3)
    assert list(report.errors.values()) == [1, 1, 1]
    assert "closed in mid-call with 1000" in report.errors
    assert any("HTTP 503" in error for error in report.errors)
    assert any("closed in mid-call with 1011" in error for error in report.errors)


async def test_the_same_refusal_is_one_reason() -> None:
    """Each has a request id of its own, which is left out."""
    async with emulator(Fault("refuse", status=429)) as url:
        report = await ended(load(url, 3, 1.0))
    (error,) = report.errors
    assert report.errors[error] == 3
    assert "HTTP 429" in error


async def test_nobody_there() -> None:
    """All calls fail with one reason, and there is a report all the same."""
    report = await ended(load("http://127.0.0.1:1", 3, 1.0))
    assert report.errors == {"cannot connect to 127.0.0.1:1: Connection refused": 3}
    assert report.connect.p50 is None


@pytest.mark.parametrize(
    ("finals", "uncovered", "repeated"),
    [
        ([(0.0, 1.0)], 0.0, 0.0),
        ([(0.0, 0.4), (0.41, 0.59)], 0.0, 0.0),
        ([(0.0, 0.4), (0.6, 0.4)], 0.2, 0.0),
        ([(0.0, 0.4)], 0.6, 0.0),
        ([(0.0, 0.6), (0.4, 0.6)], 0.0, 0.2),
        ([], 1.0, 0.0),
    ],
)
async def test_audio_without_a_final_is_lost(
    finals: list[tuple[float, float]], uncovered: float, repeated: float
) -> None:
    """What finals leave out, and what two of them cover, in seconds; rounding is neither."""

    async def behave(socket: ServerConnection) -> None:
        async for message in socket:
            if isinstance(message, str):
                break
        for start, duration in finals:
            await socket.send(result(start, duration, "word"))
        await socket.send(result(0.0, 9.0, "an interim covers nothing", final=False))

    async with server(behave) as url:
        report = await ended(load(url, 1, 1.0))
    assert report.completed == 1
    assert report.uncovered_seconds == pytest.approx(uncovered, abs=0.011)
    assert report.repeated_seconds == pytest.approx(repeated, abs=0.011)
    assert report.words_most == len(finals)


async def test_a_channel_that_is_left_out() -> None:
    """The channel that fared worst counts."""

    async def behave(socket: ServerConnection) -> None:
        async for message in socket:
            if isinstance(message, str):
                break
        await socket.send(result(0.0, 0.5, "left", channel=0))
        await socket.send(result(0.0, 1.0, "right", channel=1))

    async with server(behave) as url:
        report = await ended(load(url, 1, 1.0))
    assert report.uncovered_seconds == 0.5


async def test_calls_have_phases_of_their_own() -> None:
    """Calls that begin together do not send together."""
    arrivals: list[float] = []

    async def behave(socket: ServerConnection) -> None:
        async for message in socket:
            if isinstance(message, str):
                break
            arrivals.append(asyncio.get_running_loop().time() % 0.1)

    async with server(behave) as url:
        await ended(load(url, 4, 1.0, Audio.noise(0.1), ramp=10_000_000))
    tenths = {round(at * 100) // 2 for at in arrivals}
    assert len(tenths) >= 3


async def test_the_view_tells_how_it_goes() -> None:
    """The last figures stay on the terminal."""
    console = Console(force_terminal=True, width=100, record=True)
    async with emulator() as url:
        report = await watch(load(url, 2, 0.5), console)
    assert report.completed == 2
    shown = console.export_text()
    assert "2 completed, 0 failed" in shown
    assert "connect" in shown


@pytest.mark.parametrize("url", ["https://api.deepgram.com", "wss://api.eu.deepgram.com/v1/listen"])
def test_many_calls_to_deepgram_want_a_yes(url: str) -> None:
    """More than five cost money, which must be said; five, or another host, need nothing."""
    check_cost(url, 5, 60, False)
    check_cost(url, 500, 60, True)
    check_cost("https://deepgram.com.example.org", 500, 60, False)
    with pytest.raises(UsageError, match="60 minutes that Deepgram bills; say --yes-i-pay"):
        check_cost(url, 60, 60, False)


async def test_what_cannot_be_done_is_said_before() -> None:
    """More calls than files, and audio shorter than a frame."""
    with pytest.raises(UsageError, match="open files; the limit is"):
        load("http://127.0.0.1:1", 100_000_000, 1.0)


async def test_audio_that_is_too_short(tmp_path: Path) -> None:
    """A file without a single frame cannot be spoken."""
    path = tmp_path / "short.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(200))
    with (
        open_source(str(path), None, None, 1) as source,
        pytest.raises(UsageError, match="less than one frame"),
    ):
        await Audio.read(source, FRAME)


def test_percentiles() -> None:
    """In milliseconds, of values that are there."""
    found = percentiles([i / 1000 for i in range(100)])
    assert (found.p50, found.p95, found.p99, found.most) == (50, 95, 99, 99)
    assert percentiles([]).p50 is None
