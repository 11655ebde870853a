"""The reference client loses its connection to a real gateway: each word is heard once, on one clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.app import Gateway
from gateway.client import Event, Result, ResumingStream, listen_url
from gateway.emulator.tokens import id_for
from tests.fakes.fault_proxy import FaultProxy, Link
from tests.fakes.stand import Stand, call
from tests.integration.test_transparency import BRISK_WINDOWS

FRAME = 160
AUDIO = {"model": "nova-3", "encoding": "mulaw", "sample_rate": "8000", "interim_results": "true", "tag": "t"}


@asynccontextmanager
async def network(gateway: Gateway) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy(gateway.address)
    await proxy.start()
    yield proxy
    await proxy.stop()


async def microphone(audio: bytes) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, len(audio), FRAME):
        yield audio[at : at + FRAME]
        await asyncio.sleep(began + (at + FRAME) / 8000 - loop.time())


async def listen(stream: ResumingStream) -> list[Result | Event]:
    async with asyncio.timeout(40):
        return [message async for message in stream.messages()]


def check(messages: Sequence[Result | Event], audio: bytes, said: list[int]) -> list[bool]:
    """Every token once and in order; finals follow one another to the end; says what was recovered."""
    finals = [message for message in messages if isinstance(message, Result) and message.final]
    assert [id_for(word) for final in finals for word in final.text.split()] == said
    at = 0.0
    for final in finals:
        assert final.start == pytest.approx(at, abs=2e-3)
        at = final.end
    assert at == pytest.approx(len(audio) / 8000, abs=2e-3)
    events = [message for message in messages if isinstance(message, Event)]
    (metadata,) = (event for event in events if event.name == "Metadata")
    assert metadata.message["duration"] == pytest.approx(len(audio) / 8000, abs=2e-3)
    return [event.message["recovered"] for event in events if event.name == "ConnectionResumed"]


BREAKS: tuple[Callable[[Link], None], ...] = (
    Link.reset,
    lambda link: link.reset_after(777),  # inside a frame
    Link.fin,
    lambda link: link.half_open(60),
    Link.reset,
    lambda link: link.reset_after(333),
)


async def test_many_lost_connections(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resets, ends of TCP, half-open silence, frames torn apart: nobody who reads the results can tell."""
    monkeypatch.setattr("gateway.client.resuming.LAST_CEILING", 0.2)
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url)
    audio, said = call(40)
    async with network(gateway) as proxy:
        stream = ResumingStream(listen_url(proxy.url, AUDIO), microphone(audio), key="k", silence=0.5)
        listening = asyncio.create_task(listen(stream))
        for fault in BREAKS:
            await asyncio.sleep(0.6)
            if link := proxy.open_link("t"):
                fault(link)
        messages = await listening
    recovered = check(messages, audio, said)
    assert len(recovered) >= 4
    assert all(recovered)
    assert (stream.complete, stream.close_code, stream.dropped_seconds) == (True, 1000, 0.0)


async def test_silence_that_nobody_explains(stand: Stand) -> None:
    """The gateway takes a half-open network for idleness; who comes back has its session (faults.md 30)."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, session={"client_idle": 0.5})
    audio, said = call(20)
    async with network(gateway) as proxy:
        stream = ResumingStream(listen_url(proxy.url, AUDIO), microphone(audio), key="k", silence=1.5)
        listening = asyncio.create_task(listen(stream))
        await asyncio.sleep(0.6)
        link = proxy.open_link("t")
        assert link
        link.half_open(60)
        messages = await listening
    assert check(messages, audio, said) == [True]
    assert (stream.complete, stream.close_code) == (True, 1000)


async def test_a_restarted_gateway(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process answers, which knows nothing: what had no final is heard anew, times go on."""
    monkeypatch.setattr("gateway.client.resuming.LAST_CEILING", 0.2)
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateways = [await stand.gateway(emulator.url) for _ in range(3)]
    audio, said = call(40)
    async with network(gateways[0]) as proxy:
        stream = ResumingStream(listen_url(proxy.url, AUDIO), microphone(audio), key="k")
        listening = asyncio.create_task(listen(stream))
        for gateway in gateways[1:]:
            await asyncio.sleep(1.5)
            proxy.target = gateway.address
            for link in proxy.all():
                link.reset()
        messages = await listening
    recovered = check(messages, audio, said)
    assert recovered == [False, False]
    assert (stream.complete, stream.close_code) == (True, 1000)


async def test_the_last_words_are_lost(stand: Stand) -> None:
    """CloseStream arrives, and nothing that follows it does: the client comes back for the end."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url)
    audio, said = call(10)
    async with network(gateway) as proxy:
        stream = ResumingStream(listen_url(proxy.url, AUDIO), microphone(audio), key="k", silence=0.8)
        listening = asyncio.create_task(listen(stream))
        await asyncio.sleep(len(audio) / 8000 - 0.2)
        link = proxy.open_link("t")
        assert link
        link.down.hold(asyncio.get_running_loop().time() + 60)
        messages = await listening
    assert check(messages, audio, said) == [True]
    assert (stream.complete, stream.close_code) == (True, 1000)
