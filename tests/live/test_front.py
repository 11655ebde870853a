"""Who may open calls from a browser, and how many connections are counted."""

from __future__ import annotations

import pytest

from gateway.live.front import SEND_BUFFER_BYTES, origin_allowed
from tests.fakes.stand import LISTEN, Stand, dial, eventually
from tests.fakes.wire_client import WireClient, upgrade

ALLOWED = ("https://app.example.com", "null")


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (None, True),
        ("https://app.example.com", True),
        ("https://APP.example.com", False),
        ("https://app.example.com/", False),
        ("https://app.example.com:443", False),
        ("https://app.example.com.evil.org", False),
        ("https://evil.org/https://app.example.com", False),
        ("null", True),
        ("", False),
        ("http://localhost", True),
        ("https://localhost:8443", True),
        ("http://LOCALHOST", True),
        ("http://localhost.", False),
        ("http://127.0.0.1:5173", True),
        ("http://127.8.9.1", True),
        ("http://[::1]", True),
        ("http://[::ffff:127.0.0.1]", False),
        ("http://[::1", False),
        ("http://127.0.0.1@evil.org", False),
        ("http://2130706433", False),
        ("localhost", False),
    ],
)
def test_origins(origin: str | None, wanted: bool) -> None:
    """Exactly what is listed, and pages of this machine; a program without an Origin is no page."""
    assert origin_allowed(origin, ALLOWED) is wanted


def test_null_must_be_listed() -> None:
    """A sandboxed frame or a local file is any page's to make."""
    assert not origin_allowed("null", ())
    assert origin_allowed("null", ("*",))


async def test_connections_are_counted_once(stand: Stand) -> None:
    """From TCP to the end of the call, through both hands, one connection is one."""
    emulator = await stand.emulator(handshake_delay=0.2)
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as client:
        await eventually(lambda: gateway.door.visitors == 1)
        assert gateway.door.connections == 1
        await client.send(upgrade(f"/v1/listen?{LISTEN}"))
        await eventually(lambda: gateway.door.visitors == 0)
        assert gateway.door.connections == 1
        await client.read_response()
        assert gateway.door.connections == 1
    await eventually(lambda: gateway.door.connections == 0)


async def test_sockets_are_tuned(stand: Stand) -> None:
    """No delay, a dead peer is noticed, and the kernel does not keep half an hour of results."""
    import socket

    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway):
        (live,) = gateway._exchange.calls.values()
        assert live._leg.transport is not None
        sock = live._leg.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SEND_BUFFER_BYTES
