"""The HTTP side: pre-recorded requests, grants, status, and the control routes."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from deepgram.types.listen_v1response import ListenV1Response

from gateway.emulator import Emulator
from gateway.emulator.containers import packets_of
from gateway.emulator.sound import Format
from gateway.emulator.tokens import id_for, interleave
from tests.emulator.conftest import Starter
from tests.emulator.wire import LISTEN, Message, call, dial, read, said, transcribe, until
from tests.fakes.muxer import webm

KEY = {"Authorization": "Token k"}
RAW = "model=nova-3&encoding=mulaw&sample_rate=8000"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a key."""
    async with aiohttp.ClientSession(headers=KEY) as session:
        yield session


async def post(
    http: aiohttp.ClientSession, emulator: Emulator, body: Any, query: str = RAW, **options: Any
) -> tuple[int, Message]:
    """One pre-recorded request: status and JSON."""
    async with http.post(f"{emulator.url}/v1/listen?{query}", data=body, **options) as response:
        assert response.headers["dg-request-id"]
        return response.status, await response.json()


def words_of(message: Message, channel: int = 0) -> list[int | None]:
    """The ids in a response."""
    words = message["results"]["channels"][channel]["alternatives"][0]["words"]
    return [id_for(word["word"]) for word in words]


async def test_an_upload_is_transcribed(start: Starter, http: aiohttp.ClientSession) -> None:
    """Raw bytes in, every word out, in a shape that the SDK's model takes."""
    emulator = await start()
    audio, tokens = call(20)
    query = (
        f"{RAW}&smart_format=true&utterances=true&diarize=true&search=hello&extra=a:b&tag=t&language=multi"
    )
    status, body = await post(http, emulator, audio, query)
    assert status == 200
    ListenV1Response.model_validate(body)
    assert words_of(body) == said(tokens)
    assert body["metadata"]["duration"] == pytest.approx(len(audio) / 8000, abs=1e-3)
    assert body["metadata"]["extra"] == {"a": "b"}
    utterances = body["results"]["utterances"]
    assert sum(len(utterance["words"]) for utterance in utterances) == len(tokens)
    assert body["results"]["channels"][0]["alternatives"][0]["paragraphs"]["paragraphs"]


async def test_an_upload_in_a_container(start: Starter, http: aiohttp.ClientSession) -> None:
    """Opus is opened; what is broken is refused."""
    emulator = await start()
    audio, tokens = call(10)
    _, body = await post(http, emulator, webm(packets_of(audio)), "model=nova-3")
    assert words_of(body) == said(tokens)
    assert body["metadata"]["duration"] == pytest.approx(len(audio) / 8000, abs=0.02)
    status, _ = await post(http, emulator, webm(packets_of(audio)) + bytes(100), "model=nova-3")
    assert status == 400


async def test_an_upload_in_chunks_and_channels(start: Starter, http: aiohttp.ClientSession) -> None:
    """A chunked body works; multichannel gives each channel its own."""
    emulator = await start()
    (left, left_tokens), (right, right_tokens) = call(5, seed=1), call(7, seed=2)
    audio = interleave([left, right], Format("mulaw", 8000, 2))

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(audio), 1000):
            yield audio[at : at + 1000]

    _, body = await post(http, emulator, chunks(), f"{RAW}&channels=2&multichannel=true")
    assert words_of(body, 0) == said(left_tokens)
    assert words_of(body, 1) == said(right_tokens)
    assert body["metadata"]["channels"] == 2


async def test_a_wav_file_ends_where_its_header_says(start: Starter, http: aiohttp.ClientSession) -> None:
    """What follows the samples in a file is not audio."""
    emulator = await start()
    audio, tokens = call(5, Format("linear16", 8000))
    layout = struct.pack("<IHHIIHH4sI", 16, 1, 1, 8000, 16000, 2, 16, b"data", len(audio))
    _, body = await post(
        http, emulator, b"RIFF\0\0\0\0WAVEfmt " + layout + audio + b"LIST" * 8000, "model=nova-3"
    )
    assert words_of(body) == said(tokens)
    assert body["metadata"]["duration"] == pytest.approx(len(audio) / 16000, abs=1e-3)


async def test_a_url_is_fetched(start: Starter, http: aiohttp.ClientSession) -> None:
    """{"url"} is fetched; what cannot be fetched or read is a 400 that says so."""
    emulator = await start()
    audio, tokens = call(4)

    async def give(request: web.Request) -> web.Response:
        return web.Response(body=audio)

    app = web.Application()
    app.add_routes([web.get("/call", give)])
    async with TestServer(app) as server:
        _, body = await post(http, emulator, None, json={"url": str(server.make_url("/call"))})
        assert words_of(body) == said(tokens)
        status, body = await post(http, emulator, None, json={"url": str(server.make_url("/none"))})
        assert (status, body["err_code"]) == (400, "REMOTE_CONTENT_ERROR")
    status, body = await post(http, emulator, None, json={"link": 1})
    assert (status, body["category"]) == (400, "INVALID_JSON")
    status, body = await post(http, emulator, None, json={"url": "file:///etc/passwd"})
    assert (status, body["err_code"]) == (400, "REMOTE_CONTENT_ERROR")


async def test_uploads_that_are_refused(start: Starter, http: aiohttp.ClientSession) -> None:
    """Bytes that are no audio, wrong queries, no key, too many, too big."""
    emulator = await start(batch_max_bytes=20_000)
    status, body = await post(http, emulator, b"\x7f" * 100, "model=nova-3")
    assert (status, body["err_msg"][-27:]) == (400, "corrupt or unsupported data")
    assert (await post(http, emulator, b"x", "model=nova-9"))[0] == 400
    assert (await post(http, emulator, b"x", headers={"Authorization": ""}))[0] == 401
    assert (await post(http, emulator, bytes(20_001)))[0] == 413
    emulator.patch(batch_max_active=0, retry_after=3)
    assert (await post(http, emulator, b"x"))[0] == 429
    emulator.patch(deny_status=503)
    assert (await post(http, emulator, b"x"))[1]["error_code"] == "Service Unavailable"


async def test_batch_delay(start: Starter, http: aiohttp.ClientSession) -> None:
    """The answer takes its time."""
    emulator = await start(batch_delay=2.0, time_scale=10.0)
    began = time.monotonic()
    await post(http, emulator, b"\xff" * 800)
    assert time.monotonic() - began > 0.19


async def test_callback(start: Starter, http: aiohttp.ClientSession) -> None:
    """The request id at once; the transcript later, again until it is taken."""
    emulator = await start(
        callback_retry_after=1.0, time_scale=20.0, callback_retries=3, callback_token="kid"
    )
    audio, tokens = call(4)
    came: list[tuple[str | None, str | None, Message]] = []

    async def take(request: web.Request) -> web.Response:
        headers = request.headers
        came.append((headers.get("dg-token"), headers.get("authorization"), await request.json()))
        return web.Response(status=500 if len(came) < 3 else 204)

    app = web.Application()
    app.add_routes([web.put("/back", take)])
    async with TestServer(app) as server:
        url = str(server.make_url("/back")).replace("http://", "http://u:p@")
        _, body = await post(http, emulator, audio, f"{RAW}&callback={url}&callback_method=PUT")
        assert list(body) == ["request_id"]
        await until(lambda: len(came) >= 3)
        await asyncio.sleep(0.1)
    assert len(came) == 3
    assert {(token, auth) for token, auth, _ in came} == {("kid", "Basic dTpw")}
    assert came[0][2]["metadata"]["request_id"] == body["request_id"]
    assert words_of(came[0][2]) == said(tokens)


async def test_callback_retries_and_ports(start: Starter, http: aiohttp.ClientSession) -> None:
    """No more attempts than the knob says; Deepgram's ports only, if so wished."""
    emulator = await start(callback_retry_after=0.0, callback_retries=1, callback_any_port=False)
    status, body = await post(http, emulator, b"\xff", f"{RAW}&callback=http://127.0.0.1:8081/")
    assert (status, "port 8081" in body["err_msg"]) == (400, True)
    assert (await post(http, emulator, b"\xff", f"{RAW}&callback=ftp://127.0.0.1/"))[0] == 400
    emulator.patch(callback_any_port=True)
    came: list[str] = []

    async def refuse(request: web.Request) -> web.Response:
        came.append(request.path)
        return web.Response(status=503)

    app = web.Application()
    app.add_routes([web.post("/back", refuse)])
    async with TestServer(app) as server:
        await post(http, emulator, b"\xff", f"{RAW}&callback={server.make_url('/back')}")
        await until(lambda: len(came) == 2)
        await asyncio.sleep(0.05)
    assert len(came) == 2


async def test_a_granted_token_opens_a_stream_until_it_expires(
    start: Starter, http: aiohttp.ClientSession
) -> None:
    """A key is worth a token; a token is worth a stream, but no further token."""
    emulator = await start(api_keys=("k",))
    async with http.post(f"{emulator.url}/v1/auth/grant", json={"ttl_seconds": 60}) as response:
        granted = await response.json()
    assert granted["expires_in"] == 60
    bearer = {"Authorization": f"Bearer {granted['access_token']}"}
    assert (await post(http, emulator, b"\xff" * 80, headers=bearer))[0] == 200
    for headers, body, status in (
        (bearer, b"", 403),
        (KEY, b'{"ttl_seconds":0}', 400),
        ({"Authorization": ""}, b"", 401),
    ):
        async with http.post(f"{emulator.url}/v1/auth/grant", data=body, headers=headers) as response:
            assert response.status == status
    async with http.post(f"{emulator.url}/v1/auth/grant") as response:
        assert (await response.json())["expires_in"] == 30


async def test_status_models_and_nothing(start: Starter, http: aiohttp.ClientSession) -> None:
    """The self-hosted status counts streams; other paths are 404."""
    emulator = await start()
    async with dial(emulator), http.get(f"{emulator.url}/v1/status") as response:
        assert (await response.json())["active_stream_requests"] == 1
    async with http.get(f"{emulator.url}/v1/models") as response:
        assert "nova-3" in {model["name"] for model in (await response.json())["stt"]}
    async with http.get(f"{emulator.url}/nowhere") as response:
        assert response.status == 404


async def test_knobs_over_http(start: Starter, http: aiohttp.ClientSession) -> None:
    """Knobs are read, changed and replaced; mistakes are 400 and one line of JSON."""
    emulator = await start()
    url = f"{emulator.url}/emulator/knobs"
    async with http.patch(url, json={"deny_status": 503}) as response:
        assert (await response.json())["deny_status"] == 503
    assert emulator.knobs.deny_status == 503
    assert emulator.knobs.ingest_speed is None
    async with http.put(url, json={"faults": [{"kind": "mute"}]}) as response:
        assert (await response.json())["deny_status"] is None
    async with http.get(url) as response:
        assert (await response.json())["faults"] == [{"kind": "mute"}]
    for body in ('{"step":0}', "[]", "{", '{"surprise":1}'):
        async with http.patch(url, data=body) as response:
            text = await response.text()
            assert (response.status, text.count("\n")) == (400, 1)
            assert json.loads(text)["error"]
    async with http.get(f"{emulator.url}/emulator/schema") as response:
        assert "Fault" in (await response.json())["$defs"]


async def test_records_over_http(start: Starter, http: aiohttp.ClientSession) -> None:
    """A connection's record: what it asked for, every byte and message, and how it ended."""
    emulator = await start()
    audio, _ = call(3)
    await transcribe(emulator, audio)
    await until(lambda: emulator.connections[0].closed_at)
    async with http.get(f"{emulator.url}/emulator/connections") as response:
        (summary,) = await response.json()
    async with http.get(f"{emulator.url}/emulator/connections/{summary['id']}") as response:
        detail = await response.json()
    async with http.get(f"{emulator.url}/emulator/connections/{summary['id']}/audio") as response:
        assert await response.read() == audio
    assert (detail["path"], detail["query"], detail["close_code"]) == ("/v1/listen", LISTEN, 1000)
    assert (detail["ended_by"], sum(detail["boundaries"])) == ("emulator", len(audio))
    assert [entry["text"] for entry in detail["texts"]] == ['{"type":"CloseStream"}']
    assert json.loads(detail["sent"][-1]["text"])["type"] == "Metadata"
    assert detail["headers"]["authorization"].startswith("Token sha256:")
    async with http.delete(f"{emulator.url}/emulator/connections") as response:
        assert await response.json() == {"forgotten": 1}
    async with http.get(f"{emulator.url}/emulator/connections/c1") as response:
        assert response.status == 404


async def test_actions_over_http(start: Starter, http: aiohttp.ClientSession) -> None:
    """An action on one connection, or on all."""
    emulator = await start()
    async with dial(emulator) as first, dial(emulator) as second:
        one = emulator.connections[0].id
        async with http.post(
            f"{emulator.url}/emulator/connections/{one}/close", json={"code": 4001}
        ) as response:
            assert await response.json() == {"done": 1}
        await read(first)
        assert first.close_code == 4001
        async with http.post(f"{emulator.url}/emulator/actions/fin") as response:
            assert response.status == 200
        await read(second)
        assert second.close_code == 1006
        async with dial(emulator), http.post(f"{emulator.url}/emulator/actions/unheard-of") as response:
            assert response.status == 400


async def test_many_requests_on_one_connection(start: Starter, http: aiohttp.ClientSession) -> None:
    """The HTTP side keeps its connections alive, and a request may come in pieces."""
    emulator = await start()
    for _ in range(3):
        assert (await post(http, emulator, b"\xff" * 8000))[0] == 200
    reader, writer = await asyncio.open_connection("127.0.0.1", emulator.port)
    for piece in (b"GET /v1/sta", b"tus HTTP/1.1\r\nHost: a\r\nConnec", b"tion: close\r\n\r\n"):
        writer.write(piece)
        await asyncio.sleep(0.01)
    assert b"system_health" in await reader.read()
    writer.close()
