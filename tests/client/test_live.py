"""The streaming client against a server that does exactly what the test says."""

from __future__ import annotations

import asyncio
import json
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve

from gateway.client import Event, LiveStream, Result, Source, listen_url, open_source
from gateway.errors import UpstreamError, UsageError

Behaviour = Callable[[ServerConnection], Awaitable[None]]


def result(start: float, duration: float, text: str, final: bool = True, channel: int = 0) -> str:
    alternatives = [{"transcript": text}]
    return json.dumps(
        {
            "type": "Results",
            "channel_index": [channel, 1],
            "start": start,
            "duration": duration,
            "is_final": final,
            "channel": {"alternatives": alternatives},
        }
    )


@asynccontextmanager
async def server(behave: Behaviour, **options: object) -> AsyncIterator[str]:
    listener: Server
    async with serve(behave, "127.0.0.1", 0, **options) as listener:  # type: ignore[arg-type]  # test options
        port = listener.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def half_a_second(tmp_path: Path) -> Iterator[Source]:
    path = tmp_path / "half.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(range(250)) * 32)
    with open_source(str(path), None, None, 1) as source:
        yield source


def stream_to(url: str, source: Source, key: str | None = None) -> LiveStream:
    return LiveStream(listen_url(url, {"model": "nova-3"}, source), source, key=key)


async def collect(stream: LiveStream) -> list[Result | Event]:
    return [message async for message in stream.messages()]


async def test_everything_arrives_at_the_pace_of_speech(half_a_second: Source) -> None:
    """The server gets each byte once, 50 ms at a time, then CloseStream; the client what it answers."""
    got: list[bytes | str] = []
    times: list[float] = []

    async def behave(socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.headers["Authorization"] == "Token k"
        assert socket.request.path == "/v1/listen?encoding=linear16&sample_rate=8000&channels=1&model=nova-3"
        async for message in socket:
            got.append(message)
            times.append(time.monotonic())
            if isinstance(message, str):
                await socket.send(result(0, 0.5, "hello"))
                await socket.send('{"type":"Metadata","duration":0.5}')
                await socket.close(1000, "done")

    async with server(behave) as url:
        stream = stream_to(url, half_a_second, key="k")
        messages = await collect(stream)
    assert b"".join(part for part in got if isinstance(part, bytes)) == bytes(range(250)) * 32
    assert [len(part) for part in got[:-1]] == [800] * 10
    assert got[-1] == '{"type":"CloseStream"}'
    assert 0.4 < times[-1] - times[0] < 0.8
    assert isinstance(messages[0], Result)
    assert (messages[0].final, messages[0].start, messages[0].end, messages[0].text) == (
        True,
        0,
        0.5,
        "hello",
    )
    assert 0 <= messages[0].latency < 0.3
    assert isinstance(messages[1], Event)
    assert messages[1].message == {"type": "Metadata", "duration": 0.5}
    assert (stream.complete, stream.close_code, stream.close_reason) == (True, 1000, "done")
    assert stream.audio_seconds == pytest.approx(0.5)


async def test_latency_counts_from_the_audio_it_is_about(half_a_second: Source) -> None:
    """A result for the first 100 ms, sent 300 ms later, is 300 ms late however much audio followed."""

    async def behave(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.recv()
        await asyncio.sleep(0.3)
        await socket.send(result(0, 0.1, "late", final=False))
        await socket.close()

    async with server(behave) as url:
        stream = stream_to(url, half_a_second)
        (message,) = await collect(stream)
    assert isinstance(message, Result)
    assert message.latency == pytest.approx(0.3, abs=0.1)
    assert not stream.complete


async def test_close_with_a_reason(half_a_second: Source) -> None:
    """The server's close code and reason are kept, and end the stream at once."""

    async def behave(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.close(1011, "net0001")

    async with server(behave) as url:
        stream = stream_to(url, half_a_second)
        assert await collect(stream) == []
    assert (stream.complete, stream.close_code, stream.close_reason) == (False, 1011, "net0001")


async def test_lost_connection(half_a_second: Source) -> None:
    """A connection that dies without a close frame is 1006."""

    async def behave(socket: ServerConnection) -> None:
        await socket.recv()
        socket.transport.abort()

    async with server(behave) as url:
        stream = stream_to(url, half_a_second)
        assert await collect(stream) == []
    assert stream.close_code == 1006


@pytest.mark.parametrize("text", ["not json", "[1]", '{"type":"Results"}'])
async def test_messages_that_are_not_deepgrams(half_a_second: Source, text: str) -> None:
    """A server that speaks another language is named as that."""

    async def behave(socket: ServerConnection) -> None:
        await socket.send(text)
        await socket.wait_closed()

    async with server(behave) as url:
        with pytest.raises(UpstreamError, match="not Deepgram's"):
            await collect(stream_to(url, half_a_second))


async def test_audio_that_cannot_be_read_ends_the_stream(half_a_second: Source) -> None:
    """A source that fails half-way is the error of the stream, not the close that follows."""
    reads = iter([bytes(800)])

    async def failing(_seconds: float) -> bytes:
        for data in reads:
            return data
        raise UsageError("half.wav: gone")

    async with server(ServerConnection.wait_closed) as url:
        source = half_a_second
        source.read = failing  # type: ignore[assignment,method-assign]  # a file cannot be made to fail
        stream = LiveStream(listen_url(url, {}, source), source, key=None)
        with pytest.raises(UsageError, match="gone"):
            await collect(stream)


@pytest.mark.parametrize(
    ("url", "model", "expected"),
    [
        ("http://h", "nova-3", "ws://h/v1/listen?encoding=linear16&sample_rate=8000&channels=1&model=nova-3"),
        (
            "https://h:1/",
            "nova-3",
            "wss://h:1/v1/listen?encoding=linear16&sample_rate=8000&channels=1&model=nova-3",
        ),
        ("ws://h/x?a=b", None, "ws://h/x?a=b&encoding=linear16&sample_rate=8000&channels=1"),
        (
            "http://h",
            "flux-general-en",
            "ws://h/v2/listen?encoding=linear16&sample_rate=8000&model=flux-general-en",
        ),
    ],
)
async def test_listen_url(half_a_second: Source, url: str, model: str | None, expected: str) -> None:
    """Scheme, path and query come from the base URL, the model and the audio."""
    assert listen_url(url, {"model": model}, half_a_second) == expected


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "http://"])
async def test_listen_url_refused(half_a_second: Source, url: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(UsageError, match="--url"):
        listen_url(url, {}, half_a_second)
