"""Gateways and emulators on one loop, for as long as a test runs."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.app import Gateway
from gateway.config import Config
from gateway.config.rules import validate
from gateway.emulator import Emulator, Knobs
from gateway.emulator.engines import EngineName
from gateway.emulator.sound import Format
from gateway.emulator.tokens import Manner, id_for, ids, speech
from tests.fakes.wire_client import exchange

Message = dict[str, Any]
OWN_KEY = "the-gateways-own-key"
MULAW = Format("mulaw", 8000)
LISTEN = "model=nova-3&encoding=mulaw&sample_rate=8000"
FLUX = "model=flux-general-en&encoding=mulaw&sample_rate=8000"
CLOSE_STREAM = '{"type":"CloseStream"}'
BRISK = Manner(burst_ms=(72, 90), gap_ms=(10, 60), lead_ms=20, tail_ms=60)
"""Tokens as short as they can be heard, so that a test of many words is over soon."""


def settings(*urls: str, **sections: Mapping[str, Any]) -> Config:
    """Checked settings with free ports, no store and these regions, r0, r1, …"""
    regions = [{"name": f"r{i}", "url": url} for i, url in enumerate(urls)]
    tree: dict[str, dict[str, Any]] = {
        "server": {"port": 0},
        "sidecar": {"port": 0},
        "deepgram": {"regions": regions},
        "session": {"finish": 2.0},
        "store": {"url": "none"},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    config = msgspec.convert(tree, Config)
    validate(config)
    return config


class Stand:
    """Starts emulators and gateways, and ends them with the test."""

    def __init__(self) -> None:
        self._emulators: list[Emulator] = []
        self._over = asyncio.Event()
        self._hosts: list[asyncio.Task[None]] = []

    async def emulator(self, engine: EngineName = "tokens", ssl: Any = None, **knobs: Any) -> Emulator:
        """An emulator that hears as fast as audio comes, unless `knobs` say otherwise."""
        made = Emulator(Knobs(**{"ingest_speed": None, "close_timeout": 1.0, **knobs}), engine)
        await made.start(ssl=ssl)
        self._emulators.append(made)
        return made

    async def gateway(self, *urls: str, key: str | None = OWN_KEY, **sections: Mapping[str, Any]) -> Gateway:
        """A gateway in front of these regions; see `settings`."""
        return await self.run(settings(*urls, **sections), key)

    async def run(self, config: Config, key: str | None = OWN_KEY) -> Gateway:
        """A gateway with this configuration."""
        ready: asyncio.Future[Gateway] = asyncio.get_running_loop().create_future()
        host = asyncio.create_task(self._host(config, key, ready))
        self._hosts.append(host)
        return await ready

    async def close(self) -> None:
        """Ends everything; raises what went wrong in a gateway's own tasks."""
        self._over.set()
        await asyncio.gather(*self._hosts)
        for emulator in self._emulators:
            await emulator.stop()

    async def _host(self, config: Config, key: str | None, ready: asyncio.Future[Gateway]) -> None:
        async with asyncio.TaskGroup() as tasks:
            try:
                gateway = Gateway(config, key, tasks)
            except Exception as exc:
                ready.set_exception(exc)
                return
            try:
                await gateway.start()
            except Exception as exc:
                await gateway.close()
                ready.set_exception(exc)
                return
            ready.set_result(gateway)
            await self._over.wait()
            await gateway.stop(0)
            await gateway.close()


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    made = Stand()
    gc.freeze()
    yield made
    await made.close()
    # What a test leaves unclosed warns here, in the test that left it; older objects are not looked at.
    gc.collect()
    gc.unfreeze()


def dial(
    server: Gateway | Emulator, query: str = LISTEN, path: str = "/v1/listen", key: str = "k", **options: Any
) -> connect:
    """A client of the `websockets` library; `server` is a gateway or, straight, an emulator."""
    host, port = server.address if isinstance(server, Gateway) else (server.host, server.port)
    headers = {"Authorization": f"Token {key}"} if key else {}
    return connect(f"ws://{host}:{port}{path}?{query}", additional_headers=headers, **options)


def call(
    count: int = 8, seed: int = 1, fmt: Format = MULAW, manner: Manner | None = BRISK
) -> tuple[bytes, list[int]]:
    """Token audio, and the ids that it says."""
    rng = random.Random(seed)
    audio, said = speech(ids(count, rng), fmt, rng, manner)
    return audio, [token.id for token in said]


async def send(ws: ClientConnection, audio: bytes, size: int = 800) -> None:
    """Audio in messages, as fast as the server takes it."""
    for at in range(0, len(audio), size):
        await ws.send(audio[at : at + size])


async def read(ws: ClientConnection, seconds: float = 10.0) -> list[Message]:
    """Everything up to the close."""
    got: list[Message] = []
    async with asyncio.timeout(seconds):
        try:
            async for text in ws:
                got.append(json.loads(text))
        except ConnectionClosed:
            pass
    return got


async def read_until(ws: ClientConnection, wanted: Callable[[Message], bool]) -> list[Message]:
    """Everything up to the first message that is `wanted`."""
    got: list[Message] = []
    async with asyncio.timeout(10):
        while not (got and wanted(got[-1])):
            got.append(json.loads(await ws.recv()))
    return got


async def transcribe(
    server: Gateway | Emulator, audio: bytes, query: str = LISTEN, path: str = "/v1/listen", **options: Any
) -> list[Message]:
    """A whole call: audio, CloseStream, and everything that comes back."""
    async with dial(server, query, path, **options) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        return await read(ws)


def words(messages: list[Message], channel: int = 0) -> list[int | None]:
    """The token ids of the finals; None for what was no whole token."""
    finals = [m for m in messages if m["type"] == "Results" and m.get("is_final")]
    return [
        id_for(word["word"])
        for m in finals
        if m["channel_index"][0] == channel
        for word in m["channel"]["alternatives"][0]["words"]
    ]


def of_type(messages: list[Message], name: str) -> list[Message]:
    """The messages of one type."""
    return [message for message in messages if message["type"] == name]


async def eventually(holds: Callable[[], object], seconds: float = 5.0, what: str = "") -> None:
    """Waits until `holds()` is true; for facts that nobody announces."""
    end = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < end, what or "it did not come true in time"
        await asyncio.sleep(0.005)


async def scrape(gateway: Gateway) -> str:
    """The sidecar's /metrics as text."""
    status, _, body = await get(gateway.sidecar_address, "/metrics")
    assert status == 200
    return body.decode()


async def get(address: tuple[str, int], path: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """One HTTP GET: status, headers with lower-case names, body."""
    return await exchange(
        address, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
