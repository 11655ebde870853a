"""One recording to Deepgram: what goes up, what comes back, what is tried again and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.config import DeepgramConfig, RegionConfig
from gateway.deepgram.query import ListenQuery
from gateway.emulator import BatchFault, Emulator
from gateway.errors import UpstreamTimeout, UpstreamUnavailable
from gateway.live.dialer import Dialer
from gateway.metrics import Metrics
from gateway.prerecorded import transcriber as module
from gateway.prerecorded.pools import Turn
from gateway.prerecorded.spool import Spool, SpoolFile
from gateway.prerecorded.transcriber import Answer, Remote, Request, Transcriber
from tests.fakes.deepgrams import Answering
from tests.fakes.egress_proxy import EgressProxy
from tests.fakes.stand import LISTEN, Stand, call, eventually
from tests.integration.test_egress import authority, ca_file, server_side

__all__ = ["authority"]
AUDIO, SAID = call(8)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 1 << 30)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_BASE", 0.01)


@contextlib.asynccontextmanager
async def transcriber(*urls: str, attempts: int = 3, **deepgram: Any) -> AsyncIterator[Transcriber]:
    regions = tuple(RegionConfig(name=f"r{i}", url=url) for i, url in enumerate(urls))
    config = DeepgramConfig(regions=regions, **deepgram)
    async with Transcriber(
        config,
        attempts=attempts,
        tls=Dialer(config).tls,
        metrics=Metrics([region.name for region in regions], "1"),
        log=structlog.get_logger(),
        random=lambda: 1.0,
    ) as made:
        yield made


async def filled(spool: Spool, audio: bytes = AUDIO) -> SpoolFile:
    file = spool.open()
    await file.write(audio)
    file.finish()
    return file


def request(recording: SpoolFile | Remote, query: str = LISTEN) -> Request:
    kind = "application/json" if isinstance(recording, Remote) else "audio/basic"
    return Request(recording, ListenQuery(query), [("Authorization", "Token k"), ("content-type", kind)])


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def transcript(answer: Answer) -> str:
    text: str = json.loads(answer.body)["results"]["channels"][0]["alternatives"][0]["transcript"]
    return text


async def test_a_recording_and_its_answer(stand: Stand, spool: Spool) -> None:
    """The query goes up byte for byte without our own parameters; the answer comes back as it was."""
    emulator = await stand.emulator()
    said = f"{LISTEN}&keyterm=a+b&keyterm=c%20d&gw_x=1&tag=%7E~&%67w_y=2"
    async with transcriber(emulator.url) as deepgram, await filled(spool) as file:
        answer = await deepgram.transcribe(request(file, said), soon())
    (upload,) = emulator.uploads
    assert upload.query == f"{LISTEN}&keyterm=a+b&keyterm=c%20d&tag=%7E~"
    assert upload.received == len(AUDIO)
    assert upload.headers["content-type"] == "audio/basic"
    assert upload.headers["content-length"] == str(len(AUDIO))
    assert not {"user-agent", "accept-encoding", "transfer-encoding"} & set(upload.headers)
    assert (answer.status, answer.ok, answer.attempts, answer.region) == (200, True, 1, "r0")
    assert answer.request_id == upload.request_id
    assert ("dg-request-id", upload.request_id) in answer.headers
    assert len(transcript(answer).split()) == len(SAID)


async def test_it_goes_up_while_it_comes(stand: Stand, spool: Spool) -> None:
    """Deepgram has all but the last piece before it is whole; without a length it goes in chunks."""
    emulator = await stand.emulator()
    async with transcriber(emulator.url) as deepgram, spool.open() as file:
        asking = asyncio.create_task(deepgram.transcribe(request(file), soon()))
        await file.write(AUDIO[:4000])
        await file.write(AUDIO[4000:])
        await eventually(lambda: emulator.uploads and emulator.uploads[0].received == 4000)
        assert not asking.done()
        file.finish()
        assert len(transcript(await asking).split()) == len(SAID)
    assert emulator.uploads[0].headers["transfer-encoding"] == "chunked"


async def test_a_url_goes_up_as_it_was_written(stand: Stand, spool: Spool) -> None:
    """Deepgram fetches it; what cannot be fetched is Deepgram's to say."""
    emulator = await stand.emulator()
    body = b'{ "url":"http://127.0.0.1:9/x.wav" , "more": 1}'
    async with transcriber(emulator.url) as deepgram:
        answer = await deepgram.transcribe(request(Remote(body)), soon())
        assert (answer.status, answer.attempts) == (400, 1)
        assert emulator.uploads[0].received == len(body)
    assert Remote.at('http://x/"').body == b'{"url":"http://x/\\""}'


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_may_fare_better_is_tried_again(stand: Stand, spool: Spool, status: int) -> None:
    """The whole recording goes up again, whatever of it had gone."""
    faults = (
        BatchFault("refuse", times=1, status=status),
        BatchFault("refuse", times=1, status=status, after_bytes=100),
    )
    emulator = await stand.emulator(batch_faults=faults)
    async with transcriber(emulator.url) as deepgram, await filled(spool) as file:
        answer = await deepgram.transcribe(request(file), soon())
    assert (answer.status, answer.attempts) == (200, 3)
    assert [upload.status for upload in emulator.uploads] == [status, status, 200]
    assert len(transcript(answer).split()) == len(SAID)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 504])
async def test_what_would_be_the_same_again_is_not(stand: Stand, spool: Spool, status: int) -> None:
    """Deepgram's refusal comes back at once, body and headers unchanged."""
    emulator = await stand.emulator(deny_status=status, deny_body='{"a": [1 ,2]}')
    async with transcriber(emulator.url) as deepgram, await filled(spool) as file:
        answer = await deepgram.transcribe(request(file), soon())
    assert (answer.status, answer.body, answer.attempts) == (status, b'{"a": [1 ,2]}', 1)
    assert {name.lower() for name, _ in answer.headers} == {"content-type", "dg-request-id", "dg-error"}
    assert len(emulator.uploads) == 1


async def test_attempts_end(stand: Stand, spool: Spool) -> None:
    """The last answer is what is returned; a single try is one whatever comes of it."""
    emulator = await stand.emulator(batch_faults=[BatchFault("refuse", status=503)])
    async with transcriber(emulator.url, attempts=2) as deepgram, await filled(spool) as file:
        answer = await deepgram.transcribe(request(file), soon())
        assert (answer.status, answer.attempts, len(emulator.uploads)) == (503, 2, 2)
        assert (await deepgram.once(request(file), soon())).retryable
        assert len(emulator.uploads) == 3


async def test_retry_after_is_waited_for(stand: Stand, spool: Spool) -> None:
    """As long as Deepgram asks; not at all when that is past the deadline."""
    emulator = await stand.emulator(batch_faults=[BatchFault("refuse", times=2, status=429, retry_after=1)])
    loop = asyncio.get_running_loop()
    async with transcriber(emulator.url) as deepgram, await filled(spool) as file:
        began = loop.time()
        answer = await deepgram.transcribe(request(file), soon(0.9))
        assert (answer.status, answer.retry_after) == (429, 1.0)
        assert loop.time() - began < 0.5
        assert (await deepgram.transcribe(request(file), soon())).status == 200
        assert loop.time() - began > 1.0


async def test_retry_after_may_be_a_date() -> None:
    """It counts from the date of the answer, whatever our clock says."""
    head = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\nRetry-After: "
    dates = "Sun, 06 Nov 1994 08:49:40 GMT\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
    for said, wanted in ((dates, 3.0), ("soon\r\n\r\n", None), ("-1\r\n\r\n", None)):
        async with Answering((head + said).encode(), "close") as server, transcriber(server.url) as deepgram:
            answer = await deepgram.once(request(Remote(b"{}")), soon())
            assert (answer.status, answer.retry_after) == (429, wanted)


async def test_a_connection_that_breaks(stand: Stand, spool: Spool) -> None:
    """In the middle of the upload or instead of an answer: all of it goes up again."""
    faults = (BatchFault("reset", times=1, after_bytes=1), BatchFault("reset", times=1))
    emulator = await stand.emulator(batch_faults=faults)
    async with transcriber(emulator.url) as deepgram, await filled(spool, AUDIO * 40) as file:
        answer = await deepgram.transcribe(request(file), soon())
    assert (answer.status, answer.attempts) == (200, 3)
    assert [upload.ended for upload in emulator.uploads] == ["reset", "reset", "answered"]
    assert emulator.uploads[2].received == len(AUDIO) * 40


async def test_the_next_region(stand: Stand, spool: Spool) -> None:
    """One that cannot be reached, or answers 5xx, is left alone for a while."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        ill, well = await stand.emulator(deny_status=500), await stand.emulator()
        async with transcriber(nowhere, ill.url, well.url) as deepgram, await filled(spool) as file:
            answer = await deepgram.transcribe(request(file), soon())
            assert (answer.region, answer.attempts) == ("r2", 3)
            assert (await deepgram.transcribe(request(file), soon())).attempts == 1
    assert len(ill.uploads) == 1


async def test_nobody_there(spool: Spool) -> None:
    """No attempt answered: that is what is raised, within the attempts."""
    async with transcriber("http://127.0.0.1:9") as deepgram, await filled(spool) as file:
        with pytest.raises(UpstreamUnavailable):
            await deepgram.transcribe(request(file), soon())


async def test_a_deepgram_that_does_not_answer(stand: Stand, spool: Spool) -> None:
    """The deadline ends it, whether the upload stands still or the answer does, and leaves nothing open."""
    emulator = await stand.emulator(
        batch_faults=[BatchFault("stall", nth=1, after_bytes=1), BatchFault("stall")]
    )
    async with transcriber(emulator.url) as deepgram, await filled(spool, b"\xff" * (8 << 20)) as file:
        for _ in range(2):
            with pytest.raises(UpstreamTimeout):
                await deepgram.transcribe(request(file), soon(0.3))
        await eventually(lambda: emulator.uploads[1].ended == "left")
    assert deepgram._metrics.deepgram_connections == 0
    assert deepgram._metrics.recording_attempts["timeout"] == 2


async def test_a_deadline_is_never_the_connections_fault(stand: Stand) -> None:
    """Whenever it comes, though a timer may be early by the clock that it was set by."""
    emulator = await stand.emulator(batch_faults=[BatchFault("stall")])
    async with transcriber(emulator.url, attempts=1) as deepgram:
        for number in range(40):
            with pytest.raises(UpstreamTimeout):
                await deepgram.transcribe(request(Remote(b"{}")), soon(0.02 + number * 0.0001))


async def test_a_connection_has_its_own_deadline(spool: Spool) -> None:
    """A server that never completes TLS is given up after dial_timeout, and tried again."""
    async with Answering(None) as server:
        secure = server.url.replace("http", "https")
        async with transcriber(secure, attempts=2, dial_timeout=0.1) as deepgram:
            with pytest.raises(UpstreamUnavailable, match=r"no connection in 0\.1 s"):
                await deepgram.transcribe(request(Remote(b"{}")), soon())
        assert server.connections == 2


async def test_an_answer_that_is_cut_off(spool: Spool) -> None:
    """Half an answer is none."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
    async with Answering(head, "close") as server, transcriber(server.url, attempts=2) as deepgram:
        with pytest.raises(UpstreamUnavailable):
            await deepgram.transcribe(request(Remote(b"{}")), soon())
        assert server.connections == 2


async def test_an_answer_without_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken into memory beyond its bound."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    body = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001
    async with Answering(body, "close") as server, transcriber(server.url, attempts=1) as deepgram:
        with pytest.raises(UpstreamUnavailable, match="above 1000 bytes"):
            await deepgram.transcribe(request(Remote(b"{}")), soon())


async def test_no_redirects(spool: Spool) -> None:
    """Neither key nor audio goes where a server points."""
    async with Answering(None) as other:
        head = f"HTTP/1.1 307 Go\r\nLocation: {other.url}/v1/listen\r\nContent-Length: 0\r\n\r\n"
        async with Answering(head.encode()) as server, transcriber(server.url) as deepgram:
            assert (await deepgram.transcribe(request(Remote(b"{}")), soon())).status == 307
        assert other.connections == 0


@pytest.mark.parametrize("login", ["", "user:p%40ss w%3Ard"])
async def test_tls_and_a_proxy(
    stand: Stand, spool: Spool, authority: Any, tmp_path: Path, login: str
) -> None:
    """As for live calls: an authority of one's own, and CONNECT with the proxy's login."""
    emulator: Emulator = await stand.emulator(ssl=server_side(authority, "127.0.0.1"))
    async with EgressProxy(login.replace("%40", "@").replace("%3A", ":")) as proxy:
        where = f"http://{login.replace(' ', '%20') + '@' if login else ''}127.0.0.1:{proxy.port}"
        async with (
            transcriber(emulator.url, ca_file=ca_file(authority, tmp_path), proxy=where) as deepgram,
            await filled(spool) as file,
        ):
            assert (await deepgram.transcribe(request(file), soon())).status == 200
        assert proxy.tunnels == 1
        assert b"Token" not in b"".join(proxy.requests)
    async with transcriber(emulator.url, attempts=1) as untrusting, await filled(spool) as file:
        with pytest.raises(UpstreamUnavailable, match="certificate"):
            await untrusting.transcribe(request(file), soon())
    assert len(emulator.uploads) == 1


async def test_jobs_have_places_in_each_region() -> None:
    """What has none goes to the next; a region that is in trouble is passed over, too."""
    async with (
        Answering(None) as first,
        Answering(None) as second,
        transcriber(first.url, second.url) as deepgram,
    ):

        def ask(at: int) -> asyncio.Task[Answer]:
            wanted = replace(request(Remote.at("https://a.example/")), turn=Turn(at, 2))
            return asyncio.create_task(deepgram.once(wanted, soon(60)))

        def asked() -> tuple[int, int]:
            return first.connections, second.connections

        asking = [ask(0), ask(0), ask(0)]
        await eventually(lambda: asked() == (2, 1))
        asking.append(ask(1))
        await eventually(lambda: asked() == (2, 2))
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        deepgram._regions.failed("r0", asyncio.get_running_loop().time())
        last = ask(0)
        await eventually(lambda: asked() == (2, 3))
        last.cancel()
        await asyncio.wait({last})
        assert deepgram._taken == [0, 0]
