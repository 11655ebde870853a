"""The resuming client against a gateway that breaks off in every way it can, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import wave
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Event, Result, ResumingStream, listen_url
from gateway.errors import SessionLost, UpstreamRejected, UpstreamUnavailable
from tests.fakes.resume_server import RATE, SAMPLE, Fault, ResumeServer, audio

README = Path(__file__).parents[2] / "README.md"
FRAME = RATE // 50
AUDIO = {"model": "nova-3", "encoding": "linear32", "sample_rate": str(RATE)}


async def speech(seconds: float = 1.0, pace: float = 4.0) -> AsyncIterator[bytes]:
    """Numbered samples, as from a microphone of a quick person."""
    for at in range(0, round(seconds * RATE), FRAME):
        yield audio(range(at, at + FRAME))
        await asyncio.sleep(FRAME / RATE / pace)


def stream_to(
    server: ResumeServer, said: AsyncIterator[bytes] | None = None, **options: Any
) -> ResumingStream:
    return ResumingStream(listen_url(server.url, AUDIO), said or speech(), key="k", **options)


async def collect(stream: ResumingStream) -> list[Result | Event]:
    async with asyncio.timeout(20):
        return [message async for message in stream.messages()]


def events(messages: Sequence[Result | Event]) -> list[str]:
    return [message.name for message in messages if isinstance(message, Event)]


def whole(messages: Sequence[Result | Event], seconds: float = 1.0) -> None:
    """Every sample is in one final, at its time."""
    finals = [message for message in messages if isinstance(message, Result) and message.final]
    words = [int(word) for final in finals for word in final.text.split()]
    assert words == list(range(round(seconds * RATE)))
    for final in finals:
        first = int(final.text.split()[0])
        assert final.start == pytest.approx(first / RATE, abs=1e-3)
        assert final.end == pytest.approx((first + len(final.text.split())) / RATE, abs=1e-3)


LOST, RESUMED = "ConnectionLost", "ConnectionResumed"


async def test_nothing_happens() -> None:
    """Without a fault it is a stream like any other; what is between client and gateway stays there."""
    async with ResumeServer() as server:
        stream = stream_to(server)
        messages = await collect(stream)
    whole(messages)
    assert events(messages) == ["Metadata"]
    assert [path.partition("gw_resume=")[2] for path in server.paths] == ["1"]
    assert (stream.complete, stream.close_code, stream.dropped_seconds) == (True, 1000, 0.0)
    assert stream.audio_seconds == 1.0


BREAKS = [
    Fault("cut"),
    Fault("torn"),
    *(Fault("close", code=code) for code in (1001, 1011, 1012, 1013, 4408)),
]


@pytest.mark.parametrize("fault", BREAKS, ids=lambda fault: f"{fault.kind}{fault.code or ''}")
async def test_a_lost_connection(fault: Fault) -> None:
    """However it ends, the session goes on where it was, at once and without a second word."""
    fault.after = RATE * SAMPLE // 3
    async with ResumeServer([fault, None]) as server:
        messages = await collect(stream_to(server))
    whole(messages)
    assert events(messages) == [LOST, RESUMED, "Metadata"]
    resumed = next(m for m in messages if isinstance(m, Event) and m.name == RESUMED)
    assert resumed.message["recovered"] is True
    assert resumed.message["seconds"] < 0.5
    (request,) = server.model.requests
    assert request["have_seq"] > 3
    assert 0 < request["oldest_audio_offset"] < fault.after


async def test_many_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers lost on their way, refusals, a restart: the timeline is one."""
    monkeypatch.setattr("gateway.client.resuming.LAST_CEILING", 0.2)
    some = RATE * SAMPLE // 5
    faults = [
        Fault("cut", some),
        Fault("before_answer"),
        Fault("lost_answer"),
        Fault("refuse", code=503),
        Fault("torn", some),
        Fault("cut", some, forget=True),
        Fault("refuse", code=429),
        Fault("close", some, code=1012, forget=True),
        Fault("cut", 0),
    ]
    async with ResumeServer([*faults]) as server:
        messages = await collect(stream_to(server, speech(2.0)))
    whole(messages, 2.0)
    recovered = [m.message["recovered"] for m in messages if isinstance(m, Event) and m.name == RESUMED]
    assert recovered.count(False) == 2
    assert len(server.paths) == 10
    metadata = next(m for m in messages if isinstance(m, Event) and m.name == "Metadata")
    assert metadata.message["duration"] == pytest.approx(2.0)


async def test_a_connection_that_only_looks_alive() -> None:
    """Nothing comes, not even a pong: it is given up in bounded time, although TCP stands."""
    async with ResumeServer([Fault("mute", RATE * SAMPLE // 4), None]) as server:
        messages = await collect(stream_to(server, silence=0.3))
    whole(messages)
    lost = next(m for m in messages if isinstance(m, Event) and m.name == LOST)
    assert lost.message == {"type": LOST, "code": 1006, "reason": "nothing came for 0.3 s"}
    assert server.opened[1] - server.opened[0] < 2


async def test_pongs_are_signs_of_life() -> None:
    """A gateway that has nothing to say for longer than `silence` keeps its connection."""

    async def hesitant() -> AsyncIterator[bytes]:
        yield audio(range(FRAME))
        await asyncio.sleep(1.0)

    async with ResumeServer() as server:
        messages = await collect(stream_to(server, hesitant(), silence=0.3))
    assert events(messages) == ["Metadata"]


async def test_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """While no audio comes the gateway is told, in time, that the client is there."""
    monkeypatch.setattr("gateway.client.resuming.KEEPALIVE_EVERY", 0.1)

    async def hesitant() -> AsyncIterator[bytes]:
        yield audio(range(FRAME))
        await asyncio.sleep(0.55)

    async with ResumeServer() as server:
        await collect(stream_to(server, hesitant()))
    assert 3 <= server.model.keepalives <= 5


async def test_too_much_to_keep() -> None:
    """What was said beyond `keep_bytes` while nobody listened is declared, and the rest is in its place."""
    faults = [Fault("cut", RATE * SAMPLE // 4), *(Fault("refuse", code=503) for _ in range(2)), None]
    async with ResumeServer([*faults]) as server:
        stream = stream_to(server, speech(4.0, 8.0), keep_bytes=RATE * SAMPLE // 20)
        messages = await collect(stream)
    words = [int(w) for m in messages if isinstance(m, Result) and m.final for w in m.text.split()]
    assert stream.dropped_seconds > 0
    assert len(words) == len(set(words)) == round((4.0 - stream.dropped_seconds) * RATE)
    assert words[-1] == 4 * RATE - 1
    metadata = next(m for m in messages if isinstance(m, Event) and m.name == "Metadata")
    assert metadata.message["duration"] == pytest.approx(4.0)
    assert not stream.complete


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (4409, "with 4409: another connection has taken the session"),
        (4500, "with 4500: what was sent is not in the protocol"),
        (4501, "with 4501: the token is wrong"),
        (1008, "with 1008: policy violation"),
        (4999, "with 4999: "),
    ],
)
async def test_stay_away(code: int, why: str) -> None:
    """Where coming back would end the same way, the stream ends with one clear line and no further dial."""
    async with ResumeServer([Fault("close", FRAME * SAMPLE, code=code)]) as server:
        stream = stream_to(server)
        with pytest.raises(SessionLost, match=why):
            await collect(stream)
    assert len(server.paths) == 1
    assert stream.close_code == code


async def test_a_missing_result() -> None:
    """A hole in the numbers is an error, not a shorter transcript."""
    async with ResumeServer([Fault("hole", FRAME * SAMPLE)]) as server:
        with pytest.raises(SessionLost, match="number 999 came after 0"):
            await collect(stream_to(server))


async def test_no_gateway() -> None:
    """A server that answers in another language, refuses, or is not there, is an error at once."""
    async with ResumeServer(
        [Fault("nonsense"), Fault("refuse", code=401), Fault("refuse", code=503)]
    ) as server:
        with pytest.raises(SessionLost, match="does not offer to resume"):
            await collect(stream_to(server))
        for status in (401, 503):
            with pytest.raises(UpstreamRejected, match=f"HTTP {status}"):
                await collect(stream_to(server))
    with pytest.raises(UpstreamUnavailable, match="Connect"):
        await collect(stream_to(server))


async def test_refused_for_good_later() -> None:
    """Credentials that were withdrawn meanwhile end it; so does the end of patience."""
    async with ResumeServer([Fault("cut", FRAME * SAMPLE), Fault("refuse", code=401)]) as server:
        with pytest.raises(UpstreamRejected, match="HTTP 401"):
            await collect(stream_to(server))
    refusals = [Fault("refuse", code=503) for _ in range(50)]
    async with ResumeServer([Fault("cut", FRAME * SAMPLE), *refusals]) as server:
        with pytest.raises(UpstreamRejected, match="HTTP 503"):
            await collect(stream_to(server, patience=0.5))
    assert 2 <= len(server.paths) < 20, "the first retry is immediate, the others are not"


async def test_a_microphone_that_breaks() -> None:
    """What the audio raises comes at the end, after everything that was said before it."""

    async def broken() -> AsyncIterator[bytes]:
        async for frame in speech(0.5):
            yield frame
        raise RuntimeError("unplugged")

    heard: list[Result | Event] = []

    async def read(stream: ResumingStream) -> None:
        async for message in stream.messages():
            heard.append(message)

    async with ResumeServer() as server:
        stream = stream_to(server, broken())
        with pytest.raises(RuntimeError, match="unplugged"):
            await read(stream)
    whole(heard, 0.5)
    assert not stream.complete


async def test_leaving_early() -> None:
    """A consumer that leaves says so with close 1000, and leaves nothing behind."""
    async with ResumeServer() as server:
        stream = stream_to(server, speech(60))
        async with contextlib.aclosing(stream.messages()) as messages:
            async for _ in messages:
                break
        (session,) = server.model.sessions.values()
        assert not session.finished
        assert not [task for task in asyncio.all_tasks() if "ResumingStream" in repr(task)]
        await asyncio.sleep(0.05)
    assert server.closes == [1000]


async def test_the_readme(tmp_path: Path) -> None:
    """The program in the README runs as it is, but for the address."""
    found = re.search(r"\n### Resume\n.+?```python\n(.+?)```", README.read_text(), re.DOTALL)
    assert found
    with wave.open(str(tmp_path / "call.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(2 * RATE)  # two of its samples are one of the fake's
        file.writeframes(audio(range(RATE // 2)))
    async with ResumeServer([Fault("cut", RATE), None]) as server:
        program = found[1].replace("http://127.0.0.1:8080", server.url)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, cwd=tmp_path, env={"PYTHONPATH": str(README.parent)}, stdout=-1
        )
        async with asyncio.timeout(30):
            out, _ = await process.communicate()
    assert process.returncode == 0
    words = [word for line in out.decode().splitlines() for word in line.split()[1:]]
    assert words == [str(number) for number in range(RATE // 2)]
