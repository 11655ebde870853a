"""The client port speaks HTTP too: everything is answered in Deepgram's form, nothing hangs."""

from __future__ import annotations

import asyncio
import json
import ssl
import uuid

import pytest
import structlog

from tests.fakes.deepgrams import Answering
from tests.fakes.stand import LISTEN, Stand, dial, eventually
from tests.fakes.wire_client import Headers, WireClient, exchange, upgrade

NOWHERE = "http://127.0.0.1:9"


def check(status: int, headers: Headers, body: bytes, wanted: int) -> None:
    """It is `wanted`, in Deepgram's form."""
    assert status == wanted, body
    found = json.loads(body)
    assert set(found) == {"err_code", "err_msg", "request_id"}
    named = dict(headers)
    assert len(named) == len(headers), "a header came twice"
    assert named["dg-error"] == found["err_msg"]
    assert named["dg-request-id"] == found["request_id"] == str(uuid.UUID(found["request_id"]))
    assert named["content-type"].startswith("application/json")


def request(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(upgrade("/v1/nothing"), 404, id="an upgrade elsewhere"),
        pytest.param(upgrade("/"), 404, id="an upgrade of the root"),
        pytest.param(upgrade("/v1/listen/"), 404, id="an upgrade of almost the path"),
        pytest.param(upgrade("///v1/listen"), 404, id="three slashes"),
        pytest.param(upgrade("/v1/listen").replace(b"GET", b"POST"), 405, id="a POST upgrade"),
        pytest.param(upgrade("/v1/listen").replace(b"GET", b"get"), 405, id="a get upgrade"),
        pytest.param(upgrade("/v1/listen").replace(b"HTTP/1.1", b"HTTP/1.0"), 400, id="an HTTP/1.0 upgrade"),
        pytest.param(upgrade("/v1/listen", [("Upgrade", "notwebsocket")]), 400, id="another upgrade"),
        pytest.param(upgrade("/v1/listen", [("Sec-WebSocket-Version", "8")]), 400, id="an old version"),
        pytest.param(upgrade("/v1/listen", [("Sec-WebSocket-Key", "short")]), 400, id="a bad key"),
        pytest.param(upgrade("/v1/listen", [("Connection", "close")]), 400, id="no connection upgrade"),
        pytest.param(upgrade("/v1/listen", [("Bad Name", "1")]), 400, id="a name with a space"),
        pytest.param(upgrade("/v1/listen", [("X", "a\r\n b")]), 400, id="a folded header"),
        pytest.param(upgrade("/v1/listen", [("X", "a\nY: b")]), 400, id="a bare line feed"),
        pytest.param(upgrade("/v1/listen", [("X", "a\0b")]), 400, id="a null"),
        pytest.param(request("GET", "/v1/listen?" + "k=v&" * 3000), 414, id="a long request line"),
        pytest.param(upgrade("/v1/listen?" + "k=v&" * 3000), 414, id="a long upgrade line"),
        pytest.param(b"GET /" + b"x" * 9000, 414, id="a line without an end"),
        pytest.param(upgrade("/v1/listen", [("X", "y" * 9000)]), 431, id="a long header"),
        pytest.param(upgrade("/v1/listen", [(f"X-{i}", "y") for i in range(200)]), 431, id="many headers"),
        pytest.param(
            upgrade("/v1/listen", [(f"X-{i}", "y" * 4000) for i in range(20)]), 431, id="80 kB of headers"
        ),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400, id="a TLS hello"),
        pytest.param(b"SSH-2.0-x\r\n", 400, id="another protocol"),
        pytest.param(b"GET\r\n", 400, id="half a line"),
        pytest.param(b"GET http://x/v1/listen HTTP/1.1\r\n\r\n", 400, id="a proxy request"),
        pytest.param(upgrade("/v1/listen?a=b#c"), 400, id="a fragment"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\n", 400, id="HTTP/2"),
        pytest.param(request("GET", "/v1/listen"), 426, id="a GET of a listen path"),
        pytest.param(request("GET", "/v2/listen"), 426, id="a GET of the Flux path"),
        pytest.param(request("GET", "/v1/projects"), 404, id="a path of Deepgram's that is not here"),
        pytest.param(request("DELETE", "/v1/listen"), 405, id="a wrong method"),
        pytest.param(request("POST", "/v1/listen", b"RIFF"), 503, id="a POST of audio, and no Deepgram"),
        pytest.param(request("POST", "/v2/listen", b"RIFF"), 405, id="a POST of audio to Flux"),
        pytest.param(request("POST", "/v1/auth/grant", b"{}"), 404, id="a grant"),
        pytest.param(request("GET", "/healthz"), 404, id="the sidecar's paths are not here"),
        pytest.param(request("GET", "/metrics"), 404, id="nor are its metrics"),
    ],
)
async def test_every_answer_is_in_deepgrams_form(stand: Stand, data: bytes, wanted: int) -> None:
    """Whatever is wrong with a request, its answer has Deepgram's JSON body and headers."""
    gateway = await stand.gateway(NOWHERE, prerecorded={"attempts": 1})
    status, headers, body = await exchange(gateway.address, data)
    check(status, [pair for pair in headers if pair[0] != "retry-after"], body, wanted)
    await eventually(lambda: gateway.door.connections == 0)
    assert gateway.metrics.sessions_active == 0


async def test_a_body_may_come_in_pieces(stand: Stand) -> None:
    """A POST whose head and body arrive byte by byte is answered when it is complete, by HTTP's rules."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    whole = request("POST", f"/v1/listen?{LISTEN}", b"x" * 40, "Content-Type: audio/wav")
    at = whole.index(b"\r\n\r\n") + 2  # in the middle of the empty line
    found = await exchange(gateway.address, whole[:5], whole[5:at], whole[at : at + 20], whole[at + 20 :])
    assert found[0] == 200
    head = "Transfer-Encoding: chunked"
    chunked = request("POST", f"/v1/listen?{LISTEN}", b"", head) + b"4\r\nRIFF\r\n0\r\n\r\n"
    assert (await exchange(gateway.address, chunked[:-12], chunked[-12:-6], chunked[-6:]))[0] == 200
    assert [upload.received for upload in emulator.uploads] == [40, 4]


async def test_a_connection_is_kept_for_more_requests(stand: Stand) -> None:
    """Keep-alive works on the client port as on any HTTP server."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as client:
        for target, wanted in (("/v1/listen", 426), ("/x", 404), ("/v1/listen", 426)):
            await client.send(request("GET", target))
            await client.read_response()
            check(client.status, client.headers, client.body, wanted)
        await client.send(request("POST", f"/v1/listen?{LISTEN}", b"y" * 30_000))
        await client.read_response()
        assert client.status == 200
    await eventually(lambda: gateway.door.connections == 0)


async def test_two_requests_in_one_packet(stand: Stand) -> None:
    """What follows the first request is the next one's."""
    gateway = await stand.gateway(NOWHERE)
    async with await WireClient.connect(gateway.address) as client:
        await client.send(request("GET", "/v1/listen") + request("GET", "/v2/none"))
        await client.read_response()
        first = client.status
        await client.read_response()
        assert (first, client.status) == (426, 404)


async def test_an_upgrade_after_a_request_is_no_call(stand: Stand) -> None:
    """HTTP and WebSocket never share a connection (security.md S15)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as client:
        await client.send(request("GET", "/v1/listen"))
        await client.read_response()
        await client.send(upgrade(f"/v1/listen?{LISTEN}", [("Host", "localhost")]))
        await client.read_response()
        assert client.status == 426
    assert emulator.connections == []


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b""], id="silence"),
        pytest.param([b"GET /v1/listen HTTP/1.1\r\n", b"X: y\r\n"], id="a header at a time"),
        pytest.param([b"GET /", b"a"], id="a letter at a time"),
        pytest.param([upgrade("/v1/listen")[:-2], b""], id="an upgrade without its end"),
    ],
)
async def test_a_slow_handshake_is_cut(stand: Stand, pieces: list[bytes]) -> None:
    """The whole head has one deadline, however busy its sender is (faults.md 40, M4)."""
    gateway = await stand.gateway(NOWHERE, server={"handshake_timeout": 0.4})
    loop = asyncio.get_running_loop()
    async with await WireClient.connect(gateway.address) as client:
        start = loop.time()

        async def drip() -> None:
            for piece in pieces + pieces[-1:] * 100:
                await client.send(piece)
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        await client.ended(5.0)
        took = loop.time() - start
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
    assert 0.3 < took < 2.0
    assert 'gw_client_aborted_total{reason="handshake_timeout"} 1' in gateway.metrics.render("")[0].decode()
    await eventually(lambda: gateway.door.connections == 0)


async def test_tls_to_the_plain_port(stand: Stand) -> None:
    """It is answered at once and named: nobody looks for a network that hangs (faults.md 40)."""
    gateway = await stand.gateway(NOWHERE)
    with structlog.testing.capture_logs() as lines, pytest.raises(ssl.SSLError):
        await asyncio.open_connection(*gateway.address, ssl=ssl.create_default_context())
    assert lines == [{"event": "client.spoke_tls", "peer": "127.0.0.1", "log_level": "warning"}]
    assert 'gw_client_aborted_total{reason="tls"} 1' in gateway.metrics.render("")[0].decode()
    await eventually(lambda: gateway.door.connections == 0)


async def test_what_is_no_http(stand: Stand) -> None:
    """Audio without a request, say: 400 without waiting for the end of a line."""
    gateway = await stand.gateway(NOWHERE)
    status, headers, body = await exchange(gateway.address, b"\xff" * 160)
    check(status, headers, body, 400)
    assert 'gw_client_aborted_total{reason="not_http"} 1' in gateway.metrics.render("")[0].decode()


async def test_an_accepted_call_has_no_such_deadline(stand: Stand) -> None:
    """The deadline is the handshake's; a call that waits for Deepgram, or that is silent, outlives it."""
    emulator = await stand.emulator(handshake_delay=0.4)
    gateway = await stand.gateway(emulator.url, server={"handshake_timeout": 0.2})
    async with dial(gateway) as ws:
        await asyncio.sleep(0.3)
        await ws.ping()
        assert ws.close_code is None


async def test_a_full_house(stand: Stand) -> None:
    """Beyond max_connections the answer is 503 with Retry-After; who leaves makes room."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"max_connections": 3})
    async with dial(gateway), await WireClient.connect(gateway.address) as silent:
        await eventually(lambda: gateway.door.connections == 2)
        async with dial(gateway):
            async with await WireClient.connect(gateway.address) as client:
                await client.read_response()
                check(client.status, without(client, "retry-after"), client.body, 503)
                assert int(client.header("retry-after") or 0) > 0
            await eventually(lambda: gateway.door.connections == 3)
        await eventually(lambda: gateway.door.connections == 2)
        async with dial(gateway):
            assert len(emulator.connections) == 3
        await silent.close()


def without(client: WireClient, name: str) -> Headers:
    return [(key, value) for key, value in client.headers if key != name]


async def test_http_connections_count(stand: Stand) -> None:
    """Kept HTTP connections take room too."""
    gateway = await stand.gateway(NOWHERE, server={"max_connections": 1})
    async with await WireClient.connect(gateway.address) as kept:
        await kept.send(request("GET", "/x"))
        await kept.read_response()
        async with await WireClient.connect(gateway.address) as client:
            await client.read_response()
            assert client.status == 503
    await eventually(lambda: gateway.door.connections == 0)


async def test_refusals_dial_nobody(stand: Stand) -> None:
    """What is refused here costs Deepgram nothing (security.md S4)."""
    async with Answering(None) as deepgram:
        gateway = await stand.gateway(deepgram.url)
        for data in (upgrade("/v1/nothing"), request("POST", "/v1/listen"), b"nonsense\r\n"):
            await exchange(gateway.address, data)
        await asyncio.sleep(0.05)
        assert deepgram.connections == 0
