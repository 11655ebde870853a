"""Dials where names, handshakes and proxies are odd. More is in tests/integration/test_egress.py."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from gateway.config import DeepgramConfig, RegionConfig
from gateway.errors import UpstreamTimeout, UpstreamUnavailable
from gateway.live import dialer as dialling
from gateway.live.dialer import Dialer
from tests.fakes.egress_proxy import EgressProxy
from tests.fakes.stand import Stand, eventually
from tests.live.test_upstream import Owner, dial


async def test_last_good_addresses(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was found once is dialled while DNS fails, or is slow (faults.md 20)."""
    emulator = await stand.emulator()
    dialer = Dialer(DeepgramConfig(dial_timeout=2.0))
    region, owner = RegionConfig(url=f"http://localhost:{emulator.port}"), Owner()

    async def reach() -> None:
        await dialer.dial(region, owner.make)
        assert owner.leg is not None
        owner.leg.close(1000)

    async def fails(*_arguments: object, **_named: object) -> list[Any]:
        raise socket.gaierror("no such name")

    async def hangs(*_arguments: object, **_named: object) -> list[Any]:
        await asyncio.sleep(60)
        return []

    await reach()
    monkeypatch.setattr(dialling, "LOOKUP_PATIENCE", 0.05)
    for answer in (fails, hangs):
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
        await reach()
    assert len(emulator.connections) == 3
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fails)
    with pytest.raises(UpstreamUnavailable, match="no such name"):
        await Dialer(DeepgramConfig()).dial(region, owner.make)


async def test_headers_in_drips() -> None:
    """A handshake that goes on and on has the deadline of one that never begins (faults.md 13)."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n")
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.02)
        await asyncio.gather(ended, return_exceptions=True)
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        owner = Owner()
        with pytest.raises(UpstreamTimeout):
            await dial(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", owner, 0.3)
        await asyncio.wait_for(gone.wait(), 5)
    assert owner.opened == []


@pytest.mark.parametrize("agree", [b"204 No Content", b"200"])
async def test_a_proxy_agrees_by_any_2xx(stand: Stand, agree: bytes) -> None:
    """As RFC 9110 §9.3.6 has it."""
    emulator = await stand.emulator()
    async with EgressProxy(agree=agree) as proxy:
        dialer = Dialer(DeepgramConfig(proxy=f"http://127.0.0.1:{proxy.port}"))
        owner = Owner()
        await dialer.dial(RegionConfig(url=emulator.url), owner.make)
        assert owner.opened
        assert owner.leg is not None
        owner.leg.close(1000)
        await eventually(lambda: owner.closes)
