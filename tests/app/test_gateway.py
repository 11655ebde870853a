"""How a gateway begins and how it ends; as a process in integration/test_shutdown.py."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.errors import ConfigError
from tests.fakes.stand import (
    CLOSE_STREAM,
    Stand,
    call,
    dial,
    eventually,
    get,
    read,
    send,
    settings,
    words,
)


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    made = Stand()
    yield made
    await made.close()


async def test_readiness_follows_the_regions(stand: Stand) -> None:
    """While no region can be reached there is no use in sending calls here."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gateway = await stand.gateway(f"http://127.0.0.1:{nobody.getsockname()[1]}", session={"finish": 0.1})
    assert gateway.ready() == (True, "")
    async with dial(gateway):
        assert gateway.ready() == (False, "no usable region")
        status, _, body = await get(gateway.sidecar_address, "/readyz")
        assert (status, json.loads(body)["reason"]) == (503, "no usable region")


async def test_stop_waits_for_calls_and_no_longer(stand: Stand) -> None:
    """It returns when the last call has ended, not at the deadline."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with dial(gateway) as ws:
        await send(ws, audio)
        start = time.monotonic()
        stopping = asyncio.create_task(gateway.stop(30))
        await eventually(lambda: gateway.ready() == (False, "draining"))
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws)) == said
        await stopping
        assert time.monotonic() - start < 5


async def test_stop_cuts_what_cannot_end(stand: Stand) -> None:
    """A Deepgram that does not answer any more delays the end by `finish`, not for ever."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"finish": 0.3})
    async with dial(gateway) as ws:
        await ws.send(b"\xff" * 800)
        await eventually(lambda: emulator.connections[0].audio_bytes == 800)
        emulator.act("mute")
        start = time.monotonic()
        await gateway.stop(0)
        assert time.monotonic() - start < 3
        await read(ws)
        assert ws.close_code in (1011, 1012)
    assert gateway.metrics.sessions_active == 0


class Told:
    """A part that writes down what is done with it."""

    def __init__(self, name: str, events: list[str], fails: bool = False) -> None:
        self.name, self.events, self.fails = name, events, fails

    async def start(self) -> None:
        self.events.append(f"start {self.name}")
        if self.fails:
            raise ConfigError(self.name)

    async def close(self) -> None:
        self.events.append(f"close {self.name}")


async def test_what_starts_first_ends_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails to start is closed too; those after it have never been."""
    events: list[str] = []
    parts = [Told("a", events), Told("b", events, fails=True), Told("c", events)]
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(settings("http://127.0.0.1:1"), None, tasks)
        monkeypatch.setattr(gateway, "_parts", lambda: parts)
        with pytest.raises(ConfigError, match="b"):
            await gateway.start()
        await gateway.close()
        await gateway.close()
    assert events == ["start a", "start b", "close b", "close a"]


async def test_the_parts_in_their_order(tmp_path: Path) -> None:
    """The store is there before all others; calls come when all is there, and never to a worker."""
    kept = {
        "store": {"url": f"sqlite:///{tmp_path}/gateway.db"},
        "prerecorded": {"spool_dir": str(tmp_path / "spool")},
    }
    async with asyncio.TaskGroup() as tasks:

        def names(worker: bool, **sections: Any) -> list[str]:
            made = Gateway(settings("http://127.0.0.1:1", **sections), None, tasks, worker=worker)
            return [type(part).__name__ for part in made._parts()]

        assert names(False) == ["Storage", "Recordings", "HttpPorts", "Callbacks", "ClientPort"]
        assert names(True, **kept) == ["Storage", "Recordings", "JobRoom", "HttpPorts", "Callbacks"]
