"""What calls share, and their port."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from pathlib import Path

import pytest

from gateway.app import Gateway
from gateway.app.calls import ClientPort, make_exchange, mint_request_id
from gateway.errors import ConfigError
from gateway.metrics import Metrics
from tests.fakes.stand import (  # noqa: F401 - pytest finds fixtures by name
    CLOSE_STREAM,
    Stand,
    dial,
    eventually,
    of_type,
    read,
    settings,
    stand,
)


def test_request_ids_look_like_deepgrams() -> None:
    """UUIDv7: by time, and never twice."""
    found = [mint_request_id() for _ in range(1000)]
    assert len(set(found)) == 1000
    assert {uuid.UUID(text).version for text in found} == {7}
    assert all(str(uuid.UUID(text)) == text for text in found)
    assert abs((uuid.UUID(found[0]).int >> 80) / 1000 - time.time()) < 5


async def test_a_listening_socket_from_outside(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """The client port can be one that somebody else opened."""
    emulator = await stand.emulator()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            gateway = Gateway(settings(emulator.url), "k", tasks)
            await gateway.start(sock)
            assert gateway.address == sock.getsockname()
            async with dial(gateway) as ws:
                await ws.send(CLOSE_STREAM)
                await read(ws)
            await gateway.stop(0)
            await gateway.close()


async def test_a_taken_port_raises(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """For the command line to say it in one line, with the keys to change."""
    first = await stand.gateway("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"^server\.host, server\.port: .* in use$"):
        await stand.gateway("http://127.0.0.1:1", server={"port": first.address[1]})


async def test_gateways_share_a_port(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """Where each is told to; the kernel deals out the calls, and every one of them is served."""
    emulator = await stand.emulator()
    first = await stand.gateway(emulator.url, server={"reuse_port": True})
    second = await stand.gateway(emulator.url, server={"reuse_port": True, "port": first.address[1]})
    assert first.address == second.address
    for _ in range(32):
        async with dial(first) as ws:
            await ws.send(CLOSE_STREAM)
            assert of_type(await read(ws), "Metadata")
    served = [gateway.metrics.sessions["completed"] for gateway in (first, second)]
    assert sum(served) == 32
    assert all(served)


async def test_a_bad_ca_file_raises_before_anything_listens(tmp_path: Path) -> None:
    """The message names the key."""
    path = tmp_path / "ca.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    config = settings("http://127.0.0.1:1", deepgram={"ca_file": str(path)})
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(ConfigError, match=r"^deepgram\.ca_file: "):
            make_exchange(config, None, Metrics(["r0"], "1"), tasks)


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        (("0.0.0.0", 1), ("127.0.0.1", 1)),  # noqa: S104 - nothing listens
        (("::", 1), ("[::1]", 1)),
        (("::2", 1), ("[::2]", 1)),
        (("10.0.0.1", 1), ("10.0.0.1", 1)),
    ],
)
async def test_the_port_is_reached_from_here(address: tuple[str, int], reached: tuple[str, int]) -> None:
    """Where it listens on every address, this machine's own; IPv6 as it is written in a URL."""
    async with asyncio.TaskGroup() as tasks:
        exchange = make_exchange(settings("http://127.0.0.1:1"), None, Metrics(["r0"], "1"), tasks)
        port = ClientPort(exchange, None)  # type: ignore[arg-type]  # nobody connects
        port.address = address
        assert port.reachable_at() == reached


async def test_connections_are_measured(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """With each scrape."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway):
        await eventually(lambda: "gw_client_connections 1.0" in gateway.metrics.render("")[0].decode())
