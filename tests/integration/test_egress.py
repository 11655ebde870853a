"""How Deepgram is reached: TLS that is verified, a proxy, deadlines, another region."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from structlog.testing import capture_logs

from gateway.emulator import Emulator, Knobs
from gateway.errors import ConfigError
from tests.fakes.deepgrams import Answering
from tests.fakes.egress_proxy import EgressProxy
from tests.fakes.stand import (
    CLOSE_STREAM,
    OWN_KEY,
    Stand,
    call,
    dial,
    eventually,
    get,
    read,
    send,
    transcribe,
    words,
)
from tests.fakes.wire_client import WireClient, upgrade

QUICK: dict[str, Any] = {"accept_wait_ms": 100, "backoff_base": 0.05, "backoff_cap": 0.1, "finish": 0.3}


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def server_side(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """TLS of a Deepgram with a certificate for `names`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def ca_file(authority: trustme.CA, folder: Path) -> str:
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def reasons(logs: list[Any]) -> str:
    """What the log says of dials that failed."""
    return " ".join(entry["error"] for entry in logs if entry["event"] == "upstream.unreachable")


async def test_tls_with_an_authority_of_ones_own(stand: Stand, authority: trustme.CA, tmp_path: Path) -> None:
    """A self-hosted Deepgram's own CA is trusted by deepgram.ca_file, by name and by address."""
    emulator = await stand.emulator(ssl=server_side(authority, "127.0.0.1", "localhost"))
    audio, said = call()
    for host in ("127.0.0.1", "localhost"):
        gateway = await stand.gateway(
            f"https://{host}:{emulator.port}", deepgram={"ca_file": ca_file(authority, tmp_path)}
        )
        assert words(await transcribe(gateway, audio)) == said


@pytest.mark.parametrize("known", ["nothing", "another authority", "another host"])
async def test_tls_that_cannot_be_verified(
    stand: Stand, authority: trustme.CA, tmp_path: Path, known: str
) -> None:
    """No connection, no key, no audio; the log names the reason (faults.md 22)."""
    name = "deepgram.example" if known == "another host" else "127.0.0.1"
    emulator = await stand.emulator(ssl=server_side(authority, name))
    trusted = {"nothing": None, "another authority": trustme.CA(), "another host": authority}[known]
    deepgram = {"ca_file": ca_file(trusted, tmp_path)} if trusted else {}
    with capture_logs() as logs:
        gateway = await stand.gateway(emulator.url, deepgram=deepgram, session=QUICK)
        async with dial(gateway) as ws:
            await ws.send(b"\xff" * 800)
            await eventually(lambda: reasons(logs))
    assert emulator.connections == emulator.refusals == []
    wanted = "is not valid for '127.0.0.1'" if known == "another host" else "certificate verify failed"
    assert wanted in reasons(logs)
    assert OWN_KEY not in repr(logs)


async def test_a_plain_server_behind_https(stand: Stand) -> None:
    """A server that does not speak TLS is never spoken to in the clear."""
    emulator = await stand.emulator()
    with capture_logs() as logs:
        secure = emulator.url.replace("http", "https")
        gateway = await stand.gateway(secure, deepgram={"dial_timeout": 0.5}, session=QUICK)
        async with dial(gateway):
            await eventually(lambda: reasons(logs))
    assert emulator.connections == emulator.refusals == []


async def test_a_ca_file_that_is_none(stand: Stand, tmp_path: Path) -> None:
    """It is a mistake in the settings, named before anything listens."""
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"deepgram\.ca_file"):
        await stand.gateway("https://127.0.0.1:1", deepgram={"ca_file": str(path)})


@pytest.mark.parametrize("login", ["", "user:p%40ss w%3Ard"])
@pytest.mark.parametrize("secure", [False, True])
async def test_through_a_proxy(
    stand: Stand, authority: trustme.CA, tmp_path: Path, login: str, secure: bool
) -> None:
    """Dials go through CONNECT, with the proxy's own login; TLS is end to end, so it sees neither key."""
    tls = server_side(authority, "127.0.0.1") if secure else None
    emulator = await stand.emulator(ssl=tls)
    audio, said = call()
    plain = login.replace("%40", "@").replace("%3A", ":")
    quoted = login.replace(" ", "%20")
    async with EgressProxy(plain) as proxy:
        deepgram = {"proxy": f"http://{quoted + '@' if login else ''}127.0.0.1:{proxy.port}"}
        deepgram |= {"ca_file": ca_file(authority, tmp_path)} if secure else {}
        gateway = await stand.gateway(emulator.url, deepgram=deepgram)
        assert words(await transcribe(gateway, audio)) == said
        assert proxy.tunnels == 1
        assert proxy.requests[0].startswith(f"CONNECT 127.0.0.1:{emulator.port} HTTP/1.1\r\n".encode())
        assert OWN_KEY.encode() not in b"".join(proxy.requests)


@pytest.mark.parametrize(
    ("login", "refuse", "reason"),
    [
        ("user:secret", b"", "407"),
        ("", b"HTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        ("", b"nonsense\r\n\r\n", "refused"),
        ("", b"HTTP/1.1 200", "no HTTP answer"),
    ],
)
async def test_a_proxy_that_refuses(stand: Stand, login: str, refuse: bytes, reason: str) -> None:
    """The dial fails with the proxy's reason in the log, and never goes around it."""
    emulator = await stand.emulator()
    async with EgressProxy(login, refuse) as proxy:
        deepgram = {"proxy": f"http://user:wrong-word@127.0.0.1:{proxy.port}"}
        with capture_logs() as logs:
            gateway = await stand.gateway(emulator.url, deepgram=deepgram, session=QUICK)
            async with dial(gateway):
                await eventually(lambda: reasons(logs))
    assert reason in reasons(logs)
    assert "wrong-word" not in repr(logs)
    assert emulator.connections == emulator.refusals == []


@pytest.mark.parametrize(
    ("answer", "then"),
    [
        pytest.param(None, "wait", id="silence"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgr", "wait", id="half a handshake"),
        pytest.param(None, "close", id="a close"),
        pytest.param(None, "reset", id="a reset"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgr", "close", id="half, then a close"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "wait", id="a 101 of nothing"),
        pytest.param(b"220 smtp.example ESMTP\r\n\r\n", "wait", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000 + b"\r\n\r\n", "wait", id="a giant header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "wait", id="many headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000, "wait", id="a header without an end"),
    ],
)
async def test_a_handshake_that_fails_goes_to_the_next_region(
    stand: Stand, answer: bytes | None, then: str
) -> None:
    """Whatever the first region does wrong, the second serves the call; no connection is left behind
    (faults.md 13)."""
    emulator = await stand.emulator()
    audio, said = call()
    async with Answering(answer, then) as broken:
        gateway = await stand.gateway(
            broken.url, emulator.url, deepgram={"dial_timeout": 1.0}, session={"backoff_base": 0.05}
        )
        assert words(await transcribe(gateway, audio)) == said
        assert broken.connections == 1
        # The region that failed is left alone for a while: the next call does not try it.
        assert words(await transcribe(gateway, audio)) == said
        assert broken.connections == 1
        await eventually(lambda: not broken.open)
    await eventually(lambda: gateway.metrics.deepgram_connections == 0)


@pytest.mark.parametrize("status", [500, 503])
async def test_a_5xx_goes_to_the_next_region(stand: Stand, status: int) -> None:
    """So does a region that answers and cannot (faults.md 11)."""
    first = await stand.emulator(deny_status=status)
    second = await stand.emulator()
    audio, said = call()
    gateway = await stand.gateway(first.url, second.url, session={"backoff_base": 0.05})
    assert words(await transcribe(gateway, audio)) == said
    assert len(first.refusals) == len(second.connections) == 1


async def test_a_dial_has_a_deadline(stand: Stand) -> None:
    """Who never answers is given up after dial_timeout and tried again; readiness says so (faults.md 12)."""
    async with Answering(None) as deepgram:
        gateway = await stand.gateway(
            deepgram.url, deepgram={"dial_timeout": 0.2}, session=QUICK | {"finish": 0.5}
        )
        async with dial(gateway) as ws:
            await ws.send(b"\xff")  # without audio there is no hurry
            await eventually(lambda: deepgram.connections >= 3)
            status, _, body = await get(gateway.sidecar_address, "/readyz")
            assert (status, b"region" in body) == (503, True)
        await eventually(lambda: gateway.metrics.sessions_active == 0)
        await eventually(lambda: not deepgram.open)


async def test_a_deepgram_that_is_not_there(stand: Stand) -> None:
    """A refused TCP connection is a failed dial, not the client's error; audio waits for better times."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    gateway = await stand.gateway(f"http://127.0.0.1:{port}", session=QUICK)
    audio, said = call()
    emulator = Emulator(Knobs(ingest_speed=None))
    async with dial(gateway) as ws:
        await ws.send(audio)
        await asyncio.sleep(0.3)
        await emulator.start(port=port)
        await ws.send('{"type":"CloseStream"}')
        assert words(await read(ws)) == said
    await emulator.stop()


async def test_a_name_that_moves(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """New dials follow the name to its new address; the call that is up stays where it is (faults.md 21)."""
    old, new = await stand.emulator(), await stand.emulator()
    at = old
    loop = asyncio.get_running_loop()
    numbers = loop.getaddrinfo  # uvloop asks for them, too

    async def lookup(host: str, port: int, **named: Any) -> list[Any]:
        if host != "deepgram.test":
            return await numbers(host, port, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", at.port))]

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    gateway = await stand.gateway("http://deepgram.test")
    audio, said = call()
    async with dial(gateway) as ws:
        await send(ws, audio)
        at = new
        assert words(await transcribe(gateway, audio)) == said
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws)) == said
    assert (len(old.connections), len(new.connections)) == (1, 1)


async def test_what_is_dialled_is_what_is_configured(stand: Stand) -> None:
    """Neither Host nor what stands in the query changes where a call goes (security.md S33)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as client:
        await client.send(
            upgrade("/v1/listen?x=@evil.example/&y=http://evil.example", [("Host", "evil.example")])
        )
        await client.read_response()
        assert client.status == 101
    assert emulator.connections[0].headers["host"] == emulator.url.removeprefix("http://")
    assert emulator.connections[0].query.startswith("x=@evil.example/")
