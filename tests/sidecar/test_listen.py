"""`POST /v1/listen`, and whatever else may be sent there: all of it is answered, nothing is left of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.prerecorded import upload
from tests.fakes.stand import LISTEN, Stand, call, eventually, scrape, stand
from tests.fakes.wire_client import Headers, WireClient, exchange

__all__ = ["stand"]
TARGET = f"/v1/listen?{LISTEN}"
AUDIO, SAID = call(6)
LENGTH = f"Content-Length: {len(AUDIO)}"
LIMIT = 1_000_000
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


def head(*headers: str, target: str = TARGET) -> bytes:
    return "\r\n".join([f"POST {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def json_body(text: bytes) -> bytes:
    return head(JSON, f"Content-Length: {len(text)}") + text


def check(found: tuple[int, Headers, bytes], status: int) -> str:
    """The message of a refusal, which is in Deepgram's form."""
    got, headers, body = found
    assert got == status, body
    said = json.loads(body)
    assert set(said) == {"err_code", "err_msg", "request_id"}
    named = dict(headers)
    assert (named["dg-error"], named["dg-request-id"]) == (said["err_msg"], said["request_id"])
    return str(said["err_msg"])


async def nothing_left(gateway: Gateway) -> None:
    await eventually(lambda: not gateway.http.uploads.active)
    await eventually(lambda: not gateway.recordings.sync._running)
    await eventually(lambda: gateway.door.connections == 0)
    assert gateway.recordings.spool.used == 0


@pytest.mark.parametrize("port", ["client", "sidecar"])
async def test_both_ports_take_recordings(stand: Stand, port: str) -> None:
    """The very same route, with one or two slashes."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, prerecorded={"copies": 0})
    address = gateway.address if port == "client" else gateway.sidecar_address
    for target in (TARGET, "/" + TARGET):
        status, headers, body = await exchange(address, head(LENGTH, target=target) + AUDIO)
        assert (status, dict(headers)["content-type"]) == (200, "application/json")
        assert dict(headers)["dg-request-id"] == json.loads(body)["metadata"]["request_id"]
    assert len(emulator.uploads) == 2
    await nothing_left(gateway)


BAD = [
    pytest.param(head(), 400, "body is empty", id="no body"),
    pytest.param(head("Content-Length: 0"), 400, "body is empty", id="a body of no bytes"),
    pytest.param(head(CHUNKED) + b"0\r\n\r\n", 400, "body is empty", id="an empty body in chunks"),
    pytest.param(head(JSON, CHUNKED) + b"0\r\n\r\n", 400, "body is empty", id="JSON of no bytes"),
    pytest.param(json_body(b"{"), 400, "not JSON with a url", id="half of an object"),
    pytest.param(json_body(b"[1]"), 400, "not JSON with a url", id="an array"),
    pytest.param(json_body(b"{}"), 400, "url", id="no url"),
    pytest.param(json_body(b'{"url": 5}'), 400, "url", id="a number for a url"),
    pytest.param(json_body(b'{"url": ""}'), 400, "url", id="an empty url"),
    pytest.param(json_body(b'"\xff"'), 400, "not JSON", id="not UTF-8"),
    pytest.param(json_body(b"[" * 60_000), 400, "not JSON", id="deep JSON"),
    pytest.param(json_body(b" " * 70_000), 413, "65536 bytes", id="much JSON"),
    pytest.param(
        head("Content-Length: 3000000000") + b"x" * 1000, 413, f"{LIMIT} bytes", id="3 GB, announced"
    ),
    pytest.param(head("Content-Encoding: gzip", LENGTH) + AUDIO, 415, "Content-Encoding", id="gzip"),
    pytest.param(head("Content-Encoding: br", LENGTH) + AUDIO, 415, "Content-Encoding", id="brotli"),
    pytest.param(
        head(LENGTH, target=TARGET + "&gw_store=False") + AUDIO, 400, "gw_store", id="a misspelt wish"
    ),
    pytest.param(
        head("Origin: https://evil.example", LENGTH) + AUDIO, 403, "Origin", id="another site's page"
    ),
]


@pytest.mark.parametrize(("data", "status", "text"), BAD)
async def test_bad_requests(stand: Stand, data: bytes, status: int, text: str) -> None:
    """A 4xx that says what is wrong; Deepgram is asked nothing, no file is left."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, prerecorded={"max_sync_bytes": LIMIT})
    assert text in check(await exchange(gateway.address, data), status)
    await nothing_left(gateway)
    assert all(upload.status is None for upload in emulator.uploads)


@pytest.mark.parametrize("pieces", [1, 2])
async def test_broken_chunks(stand: Stand, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """What is no HTTP ends in a 400; once a body has begun, aiohttp tells nobody, and it is too late."""
    monkeypatch.setattr(upload, "GRACE", 0.2)
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as client:
        good, bad = head(CHUNKED) + b"8\r\nRIFFRIFF\r\n", b"4\r\nRIFFxx\r\nnonsense"
        if pieces == 1:
            await client.send(good + bad)
        else:
            await client.send(good)
            await asyncio.sleep(0.05)
            await client.send(b"8\r\nRIFFRIFF\r\n")
            await eventually(lambda: emulator.uploads and emulator.uploads[0].received)
            await client.send(bad)
        await client.read_response()
        assert client.status == (400 if pieces == 1 else 408)
        await client.ended()
    await nothing_left(gateway)
    assert all(upload.ended == "left" for upload in emulator.uploads)


async def test_audio_that_is_none(stand: Stand) -> None:
    """Whether a PDF, or a WAV that ends in its head, is audio is Deepgram's to say."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    for body in (b"%PDF-1.7 " * 100, b"RIFF\x00\x00"):
        data = head(f"Content-Length: {len(body)}", target="/v1/listen?model=nova-3") + body
        assert "corrupt or unsupported" in check(await exchange(gateway.address, data), 400)
    await nothing_left(gateway)


async def test_a_bomb_is_not_opened(stand: Stand) -> None:
    """A megabyte that would become a gigabyte stays what it is, in memory and on disk."""
    gateway = await stand.gateway("http://127.0.0.1:9")
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    assert len(gzip.decompress(bomb)) == 1 << 26
    for encoding in ("gzip", "deflate", "zstd", "GZIP, gzip"):
        data = head(f"Content-Encoding: {encoding}", f"Content-Length: {len(bomb)}") + bomb
        check(await exchange(gateway.address, data), 415)
    assert 'gw_uploads_refused_total{reason="encoded"} 4.0' in await scrape(gateway)
    await nothing_left(gateway)


async def test_more_than_the_limit(stand: Stand) -> None:
    """Found out in the middle: Deepgram's request is given up, and who still sends gets to see the answer."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, prerecorded={"max_sync_bytes": LIMIT})
    async with await WireClient.connect(gateway.address) as client:

        async def send() -> None:
            await client.send(head(CHUNKED))
            for _ in range(60):
                await client.send(b"8000\r\n" + b"\xff" * 0x8000 + b"\r\n")

        sending = asyncio.create_task(send())
        await client.read_response()
        check((client.status, client.headers, client.body), 413)
        assert client.header("connection") == "close"
        await asyncio.wait({sending})
        sending.exception()
    await eventually(lambda: all(upload.ended == "left" for upload in emulator.uploads))
    assert all(upload.received <= LIMIT for upload in emulator.uploads)
    await nothing_left(gateway)
    assert gateway.metrics.uploads_refused["too_large"] == 1


@pytest.mark.parametrize("kind", ["audio", "JSON"])
async def test_a_slow_drip(stand: Stand, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A body that comes too slowly is given up with 408, and so is one that stops."""
    monkeypatch.setattr(upload, "GRACE", 0.2)
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    for pieces in (30, 1):
        async with await WireClient.connect(gateway.address) as client:
            await client.send(head("Content-Length: 50000", *([JSON] if kind == "JSON" else [])))

            async def drip(client: WireClient = client, pieces: int = pieces) -> None:
                for _ in range(pieces):
                    await client.send(b"x")
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            await client.read_response(5)
            check((client.status, client.headers, client.body), 408)
            dripping.cancel()
            await asyncio.wait({dripping})
    await nothing_left(gateway)


async def test_a_body_that_breaks_off(stand: Stand) -> None:
    """Fewer bytes than announced are no recording."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as client:
        await client.send(head("Content-Length: 5000"), b"x" * 2000)
        await asyncio.sleep(0.05)
        await client.send(b"x" * 2999)
        await eventually(lambda: emulator.uploads)
    await nothing_left(gateway)
    await eventually(lambda: [upload.ended for upload in emulator.uploads] == ["left"])


async def test_expect_continue(stand: Stand) -> None:
    """curl asks before it sends a megabyte: it is told to go on, or not to."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, prerecorded={"max_sync_bytes": LIMIT})
    async with await WireClient.connect(gateway.address) as client:
        await client.send(head(LENGTH, "Expect: 100-continue"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(AUDIO)
        await client.read_response()
        assert client.status == 200
    too_much = head("Content-Length: 2000000", "Expect: 100-continue")
    check(await exchange(gateway.address, too_much), 413)
    await nothing_left(gateway)


async def test_room(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond max_uploads, or the spool's quota: 503, and when to come again."""
    emulator = await stand.emulator(batch_delay=0.3)
    settings: dict[str, Any] = {"max_uploads": 1, "spool_bytes": 1_048_576}
    gateway = await stand.gateway(emulator.url, prerecorded=settings)
    first = asyncio.create_task(exchange(gateway.address, head(LENGTH) + AUDIO))
    await eventually(lambda: emulator.uploads)
    found = await exchange(gateway.address, head(LENGTH) + AUDIO)
    check(found, 503)
    assert dict(found[1])["retry-after"] == "5"
    assert (await first)[0] == 200
    for declared in (True, False):
        body = b"\xff" * 2_000_000
        chunks = b"".join(
            b"c350\r\n" + body[at : at + 50_000] + b"\r\n" for at in range(0, len(body), 50_000)
        )
        data = head(f"Content-Length: {len(body)}") + body if declared else head(CHUNKED) + chunks
        async with await WireClient.connect(gateway.address) as client:
            sending = asyncio.create_task(client.send(data))
            await client.read_response()
            check((client.status, client.headers, client.body), 503)
            await asyncio.wait({sending})
            sending.exception()
    await nothing_left(gateway)
    refused = gateway.metrics.uploads_refused
    assert (refused["busy"], refused["spool_full"]) == (1, 2)


async def test_callbacks_need_leave(stand: Stand) -> None:
    """With our key Deepgram calls nobody that a caller names, as on live calls; with the caller's it does."""
    emulator = await stand.emulator()
    wish = head(LENGTH, "Authorization: Token k", target=TARGET + "&callback=http://127.0.0.1:80/x") + AUDIO
    gateway = await stand.gateway(emulator.url)
    assert "session.allow_callback" in check(await exchange(gateway.address, wish), 400)
    assert not emulator.uploads
    theirs = await stand.gateway(emulator.url, auth={"upstream": "client"})
    assert (await exchange(theirs.address, wish))[0] == 200


async def test_callbacks_are_deepgrams(stand: Stand) -> None:
    """Where it is allowed, `callback=` goes through as it is, and Deepgram judges the address."""
    emulator = await stand.emulator(callback_any_port=False)
    gateway = await stand.gateway(emulator.url, session={"allow_callback": True})
    good = head(LENGTH, target=TARGET + "&callback=http://127.0.0.1:80/x") + AUDIO
    status, _, body = await exchange(gateway.address, good)
    assert (status, set(json.loads(body))) == (200, {"request_id"})
    bad = head(LENGTH, target=TARGET + "&callback=http://127.0.0.1:81/x") + AUDIO
    assert "callback: port 81" in check(await exchange(gateway.address, bad), 400)
