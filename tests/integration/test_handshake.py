"""What a client sees of its handshake, and what Deepgram sees of it (security.md S5)."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from websockets.exceptions import InvalidStatus

from tests.fakes.stand import (
    CLOSE_STREAM,
    FLUX,
    LISTEN,
    OWN_KEY,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    send,
    transcribe,
    words,
)
from tests.fakes.wire_client import ACCEPT, TEXT, WireClient, frame, upgrade

SECRET = "eyJhbGciOi.J9-secret_0"  # what stands in a client's credential here; a made-up one


@pytest.mark.parametrize("scheme", ["Token", "token", "TOKEN", "Bearer", "bearer", "BeArEr"])
async def test_schemes_are_read_in_any_case(stand: Stand, scheme: str) -> None:
    """With auth.upstream = "client" the credential goes up as the client spelled it."""
    emulator = await stand.emulator(api_keys=None)
    gateway = await stand.gateway(emulator.url, auth={"upstream": "client"})
    headers = [("Authorization", f"{scheme} {SECRET}")]
    async with await WireClient.open(gateway.address, f"/v1/listen?{LISTEN}", headers) as client:
        assert client.status == 101
    (record,) = emulator.connections
    assert record.headers["authorization"].startswith(f"{scheme} sha256:")


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        (f"token, {SECRET}", "token"),
        (f"bearer, {SECRET}", "bearer"),
        (f"token,{SECRET}, x-deepgram-session-id, 01970c39-92a1-79f0-9d6c-a0c1c0b3f1aa", "token"),
        (f"bearer, {SECRET}, x-deepgram-session-id, 01970c39-92a1-79f0-9d6c-a0c1c0b3f1aa", "bearer"),
    ],
)
async def test_subprotocol_is_answered_and_the_secret_is_not(stand: Stand, offered: str, answer: str) -> None:
    """Browsers give their key as a subprotocol: the answer is the scheme alone (security.md S5)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, auth={"upstream": "client"})
    headers = [("Sec-WebSocket-Protocol", offered)]
    async with await WireClient.open(gateway.address, f"/v1/listen?{LISTEN}", headers) as client:
        assert client.status == 101
        assert client.header("sec-websocket-protocol") == answer
        assert client.header("sec-websocket-accept") == ACCEPT
        assert SECRET not in repr(client.headers)
    (record,) = emulator.connections
    assert record.headers["authorization"].startswith(f"{answer} sha256:")
    assert "sec-websocket-protocol" not in record.headers


async def test_own_key_goes_up_and_the_clients_stays(stand: Stand) -> None:
    """With auth.upstream = "gateway" Deepgram sees the gateway's key, whatever the client brings."""
    emulator = await stand.emulator(api_keys=(OWN_KEY,))
    gateway = await stand.gateway(emulator.url)
    for key in ("some-clients-key", ""):
        async with dial(gateway, key=key) as ws:
            assert ws.response is not None
            assert ws.response.status_code == 101


@pytest.mark.parametrize(("path", "query"), [("/v1/listen", LISTEN), ("/v2/listen", FLUX)])
async def test_one_request_id_throughout(stand: Stand, path: str, query: str) -> None:
    """The 101 names a UUID, once, which every message repeats; and the session's own id beside it."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, _ = call()
    async with await WireClient.open(gateway.address, f"{path}?{query}") as client:
        request_id = client.header("dg-request-id")
        assert request_id == str(uuid.UUID(request_id)) == emulator.connections[0].request_id
        assert client.header("gw-session-id")
        await client.send(frame(2, audio), frame(TEXT, CLOSE_STREAM.encode()))
        texts, _, _ = await client.messages()
    found = [m.get("request_id") or m["metadata"]["request_id"] for m in map(json.loads, texts)]
    assert set(found) == {request_id}
    assert len(found) > 2


async def test_sessions_have_ids_of_their_own(stand: Stand) -> None:
    """Two calls never share an id; all of one process share its prefix."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    found = set()
    for _ in range(3):
        async with dial(gateway) as ws:
            assert ws.response is not None
            found.add(ws.response.headers["gw-session-id"])
    assert len(found) == 3
    assert len({name.partition("-")[0] for name in found}) == 1
    assert all(len(name.partition("-")[2]) == 32 for name in found)


@pytest.mark.parametrize("path", ["/v1/listen", "//v1/listen", "/v2/listen", "//v2/listen"])
async def test_paths_with_a_double_slash(stand: Stand, path: str) -> None:
    """A base URL that ends in a slash makes a double one; it is the same place."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    query = FLUX if "v2" in path else LISTEN
    async with dial(gateway, query, path):
        assert emulator.connections[0].path == path.replace("//", "/")


@pytest.mark.parametrize(
    "query",
    [
        LISTEN,
        f"keyterm=a+b&{LISTEN}&keyterm=c%20d&keyterm=a+b",
        f"{LISTEN}&x=%2B+%20&=&&y&z=a=b=c&%61=1",
        f"{LISTEN}&callback=https%3A%2F%2Fa.b%2Fc%3Fd%3De%26f&extra=gw_x:1&tag=gw_y",
        f"{LISTEN}&redact=pci&redact=&interim_results=true&interim_results=false",
    ],
)
async def test_query_goes_up_byte_for_byte(stand: Stand, query: str) -> None:
    """Order, repeats, `+`, `%20`, unknown and empty names are Deepgram's to understand."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"allow_callback": True})
    async with dial(gateway, query):
        assert emulator.connections[0].query == query


async def test_own_parameters_stay_here(stand: Stand) -> None:
    """What begins with gw_, also when spelled in percents, never reaches Deepgram; the rest is untouched."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    query = f"gw_resume=1&a=+&{LISTEN}&gw_x&%67w_y=2&b=%20&gw_z=%26"
    async with dial(gateway, query):
        assert emulator.connections[0].query == f"a=+&{LISTEN}&b=%20"


async def test_an_empty_query_goes_up_empty(stand: Stand) -> None:
    """Deepgram takes a default model; nothing is made up for it here."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.open(gateway.address, "/v1/listen", [("X-Own", "1")]) as client:
        assert client.status == 101
    assert emulator.connections[0].query == ""


async def test_which_headers_go_up(stand: Stand) -> None:
    """Who the SDK is goes up; cookies, addresses, origins and what a proxy added do not."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    headers = {
        "User-Agent": "sdk/1",
        "X-Client-Info": "b",
        "X-Deepgram-Session-Id": "c",
        "X-Fern-Language": "Python",
        "X-Fern-SDK-Version": "7",
    }
    others = {
        "Cookie": "a=b",
        "Origin": "http://localhost:3000",
        "X-Forwarded-For": "192.0.2.1",
        "Forwarded": "for=192.0.2.1",
        "Proxy-Authorization": "Basic eDp5",
        "Referer": "http://localhost/",
        "X-Anything": "1",
    }
    both = [*headers.items(), *others.items(), ("Authorization", f"Token {SECRET}")]
    async with await WireClient.open(gateway.address, f"/v1/listen?{LISTEN}", both) as client:
        assert client.status == 101
    seen = emulator.connections[0].headers
    assert {name: seen.get(name.lower()) for name in headers} == headers
    assert not {name.lower() for name in others} & set(seen)
    assert seen["host"] == emulator.url.removeprefix("http://")


async def test_compression_is_declined(stand: Stand) -> None:
    """Every SDK offers permessage-deflate; none gets it, on neither side (security.md S17)."""
    emulator = await stand.emulator(permessage_deflate=True)
    gateway = await stand.gateway(emulator.url)
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
    async with await WireClient.open(gateway.address, f"/v1/listen?{LISTEN}", offer) as client:
        assert client.status == 101
        assert client.header("sec-websocket-extensions") is None
    assert "sec-websocket-extensions" not in emulator.connections[0].headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example.com", 101),
        ("http://localhost:3000", 101),
        ("http://127.0.0.1", 101),
        ("http://[::1]:8080", 101),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("https://app.example.com.evil.example", 403),
        ("http://app.example.com", 403),
        ("https://app.example.com:8443", 403),
        ("http://localhost.evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("http://[::1", 403),
        ("file://", 403),
    ],
)
async def test_foreign_pages_open_no_calls(stand: Stand, origin: str, status: int) -> None:
    """A page from elsewhere is refused before anything is dialled (security.md S2, S4)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"origins": ["https://app.example.com"]})
    headers = [("Origin", origin)]
    async with await WireClient.open(gateway.address, f"/v1/listen?{LISTEN}", headers) as client:
        assert client.status == status
    if status == 403:
        assert json.loads(client.body)["err_code"] == "FORBIDDEN"
        assert emulator.connections == emulator.refusals == []


async def test_any_origin_can_be_allowed(stand: Stand) -> None:
    """`"*"` opens the gateway to all pages."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"origins": ["*"]})
    headers = [("Origin", "https://elsewhere.example")]
    async with await WireClient.open(gateway.address, f"/v1/listen?{LISTEN}", headers) as client:
        assert client.status == 101


async def test_the_101_does_not_wait_for_a_slow_deepgram(stand: Stand) -> None:
    """After accept_wait_ms the client is let in; what it says is kept from byte 0 for the late upstream."""
    emulator = await stand.emulator(handshake_delay=0.6)
    gateway = await stand.gateway(emulator.url, session={"accept_wait_ms": 100})
    audio, said = call()
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with dial(gateway) as ws:
        assert 0.09 < loop.time() - start < 0.5
        assert emulator.connections == []
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
    assert ws.response is not None
    request_id = ws.response.headers["dg-request-id"]
    (record,) = emulator.connections
    assert record.audio == audio
    assert words(messages) == said
    # Deepgram's id came too late for the 101: the client sees the one that it was given, everywhere.
    assert record.request_id != request_id
    assert uuid.UUID(request_id).version == 7
    assert {m["metadata"]["request_id"] for m in of_type(messages, "Results")} == {request_id}
    assert [m["request_id"] for m in of_type(messages, "Metadata")] == [request_id]


async def test_the_101_waits_for_deepgrams_id(stand: Stand) -> None:
    """Within the wait it is Deepgram's answer that counts: its id is the client's."""
    emulator = await stand.emulator(handshake_delay=0.15)
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway) as ws:
        assert ws.response is not None
        assert ws.response.headers["dg-request-id"] == emulator.connections[0].request_id


async def test_a_deepgram_without_an_id(stand: Stand) -> None:
    """Some self-hosted ones send none on the 101: one is made, and the results carry it."""
    emulator = await stand.emulator(request_id_header=False)
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with dial(gateway) as ws:
        assert ws.response is not None
        request_id = ws.response.headers["dg-request-id"]
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
    assert words(messages) == said
    assert {m["metadata"]["request_id"] for m in of_type(messages, "Results")} == {request_id}


async def test_a_client_that_speaks_before_it_is_answered(stand: Stand) -> None:
    """Frames before the 101 break the protocol (RFC 6455 §4.1): the client is cut and its call is gone."""
    emulator = await stand.emulator(handshake_delay=0.5)
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as client:
        await client.send(upgrade(f"/v1/listen?{LISTEN}"), frame(1, CLOSE_STREAM.encode()))
        assert await client.ended(2.0) == b""
    await eventually(lambda: gateway.door.connections == gateway.metrics.sessions_active == 0)


async def test_a_client_that_leaves_while_it_waits(stand: Stand) -> None:
    """Nobody is left behind: the dial is given up, and no call remains."""
    emulator = await stand.emulator(handshake_delay=5.0)
    gateway = await stand.gateway(emulator.url, session={"accept_wait_ms": 5000})
    client = await WireClient.connect(gateway.address)
    await client.send(upgrade(f"/v1/listen?{LISTEN}"))
    await eventually(lambda: gateway.metrics.sessions_active == 1)
    await client.close()
    await eventually(lambda: gateway.metrics.sessions_active == gateway.door.connections == 0)
    assert gateway.metrics.dials["abandoned"] == 1
    assert emulator.connections == []


async def test_many_sdks_at_once(stand: Stand) -> None:
    """Calls do not see each other: each gets its own words and its own id."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    calls = [call(seed=seed) for seed in range(8)]
    heard = await asyncio.gather(*(transcribe(gateway, audio) for audio, _ in calls))
    assert [words(messages) for messages in heard] == [said for _, said in calls]
    assert len({of_type(messages, "Metadata")[0]["request_id"] for messages in heard}) == 8


async def test_refused_handshake_names_its_reason(stand: Stand) -> None:
    """An SDK that is refused can tell why from headers as from the body."""
    emulator = await stand.emulator(models=("nova-3",))
    gateway = await stand.gateway(emulator.url)
    with pytest.raises(InvalidStatus) as refused:
        await dial(gateway, "model=nova-99&encoding=mulaw&sample_rate=8000").__aenter__()
    assert refused.value.response.status_code == 400
