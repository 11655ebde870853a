"""Deepgram's own SDK against the gateway's base URL, and what becomes of a request that goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
from deepgram import AsyncDeepgramClient, DeepgramClient, DeepgramClientEnvironment
from deepgram.core.api_error import ApiError
from structlog.testing import capture_logs

from gateway.app import Gateway
from gateway.deepgram.query import ListenQuery
from gateway.emulator import BatchFault, Emulator
from gateway.emulator.tokens import id_for
from gateway.prerecorded import transcriber
from gateway.prerecorded.sync import Order
from gateway.prerecorded.transcriber import Answer
from tests.fakes.stand import LISTEN, OWN_KEY, Stand, call, eventually

# What the SDK imports from websockets is on its way out there.
pytestmark = pytest.mark.filterwarnings("ignore:websockets:DeprecationWarning")
AUDIO, SAID = call(8)
OPTIONS: dict[str, Any] = {
    "model": "nova-3",
    "request_options": {"additional_query_parameters": {"encoding": "mulaw", "sample_rate": "8000"}},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcriber, "BACKOFF_BASE", 0.01)


def base(server: Gateway | Emulator) -> str:
    return server.url if isinstance(server, Emulator) else f"http://127.0.0.1:{server.address[1]}"


def environment(server: Gateway | Emulator) -> DeepgramClientEnvironment:
    url = base(server)
    return DeepgramClientEnvironment(base=url, production=url, agent=url, agent_rest=url)


@contextlib.asynccontextmanager
async def sdk(server: Gateway | Emulator, seconds: float = 10.0) -> AsyncIterator[Any]:
    """The SDK's client for recordings; it leaves its connections open unless they are ours."""
    async with httpx.AsyncClient(timeout=seconds) as http:
        client = AsyncDeepgramClient(
            api_key="k", environment=environment(server), httpx_client=http, timeout=seconds
        )
        yield client.listen.v1.media


@contextlib.contextmanager
def plain_sdk(server: Gateway | Emulator) -> Iterator[Any]:
    """The same, synchronous: for a thread."""
    with httpx.Client() as http:
        client = DeepgramClient(api_key="k", environment=environment(server), httpx_client=http)
        yield client.listen.v1.media


def heard(response: Any) -> list[int | None]:
    return [id_for(word.word) for word in response.results.channels[0].alternatives[0].words]


async def post(
    server: Gateway | Emulator, audio: Any = AUDIO, query: str = LISTEN, **headers: str
) -> tuple[int, bytes]:
    headers = {"Authorization": "Token k", "Content-Type": "audio/basic", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{base(server)}/v1/listen?{query}", data=audio, headers=headers) as response,
    ):
        return response.status, await response.read()


def quiet(gateway: Gateway) -> bool:
    """Nothing is left of any request."""
    return not (
        gateway.recordings.spool.used or gateway.recordings.sync._running or gateway.http.uploads.active
    )


# The SDK


async def test_the_sdk_with_a_file(stand: Stand) -> None:
    """transcribe_file, asynchronous and synchronous, whole and in pieces: only the base URL is changed."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)

    async def pieces() -> AsyncIterator[bytes]:
        yield AUDIO[:1000]
        yield AUDIO[1000:]

    def parts() -> Iterator[bytes]:
        yield AUDIO

    async with sdk(gateway) as media:
        for request in (AUDIO, pieces()):
            assert heard(await media.transcribe_file(request=request, **OPTIONS)) == SAID
    with plain_sdk(gateway) as media:
        for whole in (AUDIO, parts()):
            send = functools.partial(media.transcribe_file, request=whole, **OPTIONS)
            assert heard(await asyncio.to_thread(send)) == SAID
    assert gateway.metrics.requests == {("completed", "nova-3", "r0"): 1}  # the others were copies of it
    assert gateway.metrics.upload_copies == 3
    assert "user-agent" in emulator.uploads[0].headers
    await eventually(lambda: quiet(gateway))


async def test_the_sdk_with_a_url(stand: Stand) -> None:
    """transcribe_url: Deepgram fetches the recording."""

    async def serve(_: Any) -> aiohttp.web.Response:
        return aiohttp.web.Response(body=AUDIO)

    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    app = aiohttp.web.Application()
    app.router.add_get("/a.raw", serve)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/a.raw"
    try:
        async with sdk(gateway) as media:
            assert heard(await media.transcribe_url(url=url, **OPTIONS)) == SAID
        with plain_sdk(gateway) as media:
            fetch = functools.partial(media.transcribe_url, url=url, **OPTIONS)
            assert heard(await asyncio.to_thread(fetch)) == SAID
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [400, 413, 429])
async def test_the_sdk_sees_deepgrams_errors(stand: Stand, status: int) -> None:
    """Status, body and headers are the same as straight from Deepgram."""
    emulator = await stand.emulator(deny_status=status)
    gateway = await stand.gateway(emulator.url, prerecorded={"attempts": 1})
    options: dict[str, Any] = {
        **OPTIONS,
        "request_options": {**OPTIONS["request_options"], "max_retries": 0},
    }
    errors = []
    for server in (emulator, gateway):
        async with sdk(server) as media:
            with pytest.raises(ApiError) as refused:
                await media.transcribe_file(request=AUDIO, **options)
        errors.append(refused.value)
    straight, through = errors
    assert through.status_code == straight.status_code == status
    assert {**through.body, "request_id": ""} == {**straight.body, "request_id": ""}
    assert through.headers
    assert straight.headers
    assert through.headers["dg-error"] == straight.headers["dg-error"]


# Copies


async def test_a_client_that_waits_too_short(stand: Stand) -> None:
    """It asks again after each timeout, and that costs one transcription."""
    emulator = await stand.emulator(batch_delay=1.0)
    gateway = await stand.gateway(emulator.url)
    async with sdk(gateway, seconds=0.4) as media:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                await media.transcribe_file(request=AUDIO, **OPTIONS)
    async with sdk(gateway) as media:
        assert heard(await media.transcribe_file(request=AUDIO, **OPTIONS)) == SAID
    whole = [upload for upload in emulator.uploads if upload.received == len(AUDIO)]
    assert len(whole) == 1
    assert gateway.metrics.upload_copies >= 1
    assert gateway.metrics.requests == {("completed", "nova-3", "r0"): 1}


async def test_what_makes_a_copy(stand: Stand) -> None:
    """The same audio, query, credential and idempotency key; anything else is another request."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, auth={"upstream": "client"})
    answers = [await post(gateway) for _ in range(2)]
    assert answers[0] == answers[1]
    assert gateway.metrics.upload_copies == 1
    await post(gateway, AUDIO + b"\xff")
    await post(gateway, query=LISTEN + "&tag=x")
    await post(gateway, query=LISTEN + "&gw_x=1")
    await post(gateway, **{"Authorization": "Token other"})
    await post(gateway, **{"Idempotency-Key": "1"})
    await post(gateway, **{"Idempotency-Key": "2"})
    assert gateway.metrics.upload_copies == 1
    await post(gateway, **{"Idempotency-Key": "2"})
    assert gateway.metrics.upload_copies == 2


async def test_a_key_lasts(stand: Stand) -> None:
    """Beyond the window; for another recording or query it is refused, of another caller it is not."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, auth={"upstream": "client"}, prerecorded={"copies": 0})
    key = {"Idempotency-Key": '"8e03978e-40d5"'}
    first = await post(gateway, **key)
    assert await post(gateway, **key) == first
    for again in (post(gateway, AUDIO * 2, **key), post(gateway, query=LISTEN + "&tag=x", **key)):
        status, body = await again
        assert (status, b"came with another request" in body) == (422, True)
    assert gateway.metrics.upload_copies == 1
    assert gateway.metrics.uploads_refused["key_reused"] == 2
    assert (await post(gateway, AUDIO * 2, Authorization="Token other", **key))[0] == 200
    assert (await post(gateway, **{"Idempotency-Key": "x" * 256}))[0] == 400
    assert gateway.metrics.requests == {("completed", "nova-3", "r0"): 2}
    await eventually(lambda: quiet(gateway))


async def test_copies_that_come_at_once(stand: Stand) -> None:
    """Ten uploads of the same end as one; the other nine never were whole at Deepgram."""
    emulator = await stand.emulator(batch_delay=2.0)
    gateway = await stand.gateway(emulator.url)
    posts = [asyncio.create_task(post(gateway, AUDIO * 20)) for _ in range(10)]
    await eventually(lambda: gateway.metrics.upload_copies == 9)
    await eventually(lambda: gateway.metrics.deepgram_connections == 1, 1.0)
    assert not any(waiting.done() for waiting in posts)
    found = await asyncio.gather(*posts)
    assert {status for status, _ in found} == {200}
    assert len({body for _, body in found}) == 1
    assert sum(upload.received == len(AUDIO) * 20 for upload in emulator.uploads) == 1
    assert gateway.metrics.requests == {("completed", "nova-3", "r0"): 1}
    await eventually(lambda: quiet(gateway))


# What goes wrong


@pytest.mark.parametrize("kind", ["refuse", "reset"])
async def test_a_failure_half_way_is_not_seen(stand: Stand, kind: Any) -> None:
    """Whatever had gone up goes up again, though its sender has sent it once."""
    faults = (BatchFault(kind, times=1, after_bytes=30_000), BatchFault(kind, times=1))
    emulator = await stand.emulator(batch_faults=faults)
    gateway = await stand.gateway(emulator.url)

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield AUDIO
            await asyncio.sleep(0.02)

    status, _ = await post(gateway, slowly())
    assert status == 200
    assert emulator.uploads[2].received == len(AUDIO) * 10
    assert len(emulator.uploads) == 3
    await eventually(lambda: quiet(gateway))


async def test_a_refusal_does_not_wait_for_the_upload(stand: Stand) -> None:
    """When Deepgram has refused before it had all, so has the gateway."""
    emulator = await stand.emulator(batch_faults=[BatchFault("refuse", status=400, after_bytes=1)])
    gateway = await stand.gateway(emulator.url)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield AUDIO
            await asyncio.sleep(0.02)

    async with asyncio.timeout(5):
        status, body = await post(gateway, endless())
    assert (status, b"err_code" in body) == (400, True)
    await eventually(lambda: quiet(gateway))


async def test_a_client_that_leaves_while_it_sends(stand: Stand) -> None:
    """Deepgram's connection ends too; nothing is left on disk."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)

    async def half() -> AsyncIterator[bytes]:
        yield AUDIO
        await asyncio.sleep(0.05)
        yield AUDIO
        await asyncio.Event().wait()

    sending = asyncio.create_task(post(gateway, half()))
    await eventually(lambda: emulator.uploads and emulator.uploads[0].received)
    sending.cancel()
    await asyncio.wait({sending})
    await eventually(lambda: emulator.uploads[0].ended == "left")
    await eventually(lambda: quiet(gateway))
    assert gateway.metrics.requests == {("abandoned", "nova-3", "other"): 1}


async def test_a_client_that_leaves_while_it_waits(stand: Stand) -> None:
    """For a while it may be back; then what it asked for is given up."""
    emulator = await stand.emulator(batch_delay=30.0)
    gateway = await stand.gateway(emulator.url, prerecorded={"copies": 0.3})
    waiting = asyncio.create_task(post(gateway))
    await eventually(lambda: emulator.uploads and emulator.uploads[0].received == len(AUDIO))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.sleep(0.1)
    assert emulator.uploads[0].ended is None
    await eventually(lambda: emulator.uploads[0].ended == "left")
    await eventually(lambda: quiet(gateway))
    assert gateway.metrics.requests == {("abandoned", "nova-3", "other"): 1}


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_the_gateways_own_key(stand: Stand, status: int) -> None:
    """What Deepgram thinks of it is the operator's affair; of a client's own it is the client's."""
    emulator = await stand.emulator(deny_status=status)
    gateway = await stand.gateway(emulator.url)
    with capture_logs() as logs:
        found, body = await post(gateway)
    assert (found, b"The gateway cannot reach Deepgram now." in body) == (503, True)
    assert [entry["log_level"] for entry in logs if entry.get("status") == status] == ["critical"]
    assert OWN_KEY not in repr(logs)
    passing = await stand.gateway(emulator.url, auth={"upstream": "client"})
    assert (await post(passing))[0] == status


async def test_a_deadline(stand: Stand) -> None:
    """504 in Deepgram's form."""
    emulator = await stand.emulator(batch_delay=30.0)
    gateway = await stand.gateway(emulator.url, prerecorded={"deadline": 0.3})
    status, body = await post(gateway)
    assert (status, b"GATEWAY_TIMEOUT" in body) == (504, True)
    await eventually(lambda: quiet(gateway))
    assert gateway.metrics.requests == {("failed", "nova-3", "other"): 1}


async def test_results_are_told(stand: Stand) -> None:
    """Once for each transcription that there was."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    told: list[tuple[Order, Answer]] = []
    gateway.recordings.sync.on_result = lambda order, answer: told.append((order, answer))
    _, body = await post(gateway)
    await post(gateway)
    await post(gateway, b"", "model=nova-3")
    ((order, answer),) = told
    assert answer.body == body
    assert (order.principal.id, order.query.get("model")) == ("anonymous", "nova-3")
    assert isinstance(order.query, ListenQuery)


async def test_the_gateway_drains(stand: Stand) -> None:
    """An upload in flight has its answer before the gateway ends; a new one is refused."""
    emulator = await stand.emulator(batch_delay=0.5)
    gateway = await stand.gateway(emulator.url)
    async with aiohttp.ClientSession(base(gateway)) as session:
        first = asyncio.create_task(post(gateway))
        async with session.post("/v1/listen") as kept:
            assert kept.status == 400
        await eventually(lambda: emulator.uploads)
        stopping = asyncio.create_task(gateway.stop(5.0))
        await asyncio.sleep(0)
        async with session.post(f"/v1/listen?{LISTEN}", data=AUDIO) as second:
            assert (second.status, second.headers["Retry-After"]) == (503, "1")
        assert (await first)[0] == 200
        await stopping
