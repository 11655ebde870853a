"""A client that does not read its results costs nobody else anything (faults.md 32)."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from gateway.emulator import Emulator
from tests.fakes.stand import CLOSE_STREAM, LISTEN, Stand, call, dial, eventually, read, send, words
from tests.fakes.wire_client import BINARY, CLOSE, TEXT, WireClient, frame, upgrade

QUERY = f"{LISTEN}&interim_results=true"
TALKATIVE: dict[str, Any] = {"interim_interval": 0.05, "step": 0.01, "window_min": 0.3, "window_max": 0.6}
PADDING = "x" * 20_000


async def deaf_client(address: tuple[str, int], query: str) -> WireClient:
    """A client with a small receive buffer that does not read after its handshake."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    reader, writer = await asyncio.open_connection(sock=sock, limit=2048)
    client = WireClient(reader, writer)
    await client.send(upgrade(f"/v1/listen?{query}"))
    await client.read_response()
    writer.transport.pause_reading()  # type: ignore[attr-defined] # asyncio types it as write-only
    return client


def shout(emulator: Emulator, connection: str, count: int) -> None:
    """Sends large messages of an unknown type, which are kept like finals."""
    for number in range(count):
        text = json.dumps({"type": "Surprise", "n": number, "padding": PADDING})
        emulator.act("garbage", connection, text=text)


async def test_interims_give_way_and_finals_stay(stand: Stand) -> None:
    """While a client does not read, the latest interim is enough; no final and nothing else is dropped."""
    emulator = await stand.emulator(**TALKATIVE)
    gateway = await stand.gateway(emulator.url, session={"client_slow": 30, "client_queue_bytes": 50_000_000})
    audio, said = call(30)
    client = await deaf_client(gateway.address, QUERY)
    (record,) = emulator.connections
    count = 400
    shout(emulator, record.id, count)  # 8 MB: more than all buffers on the way hold
    for at in range(0, len(audio), 8000):
        await client.send(frame(BINARY, audio[at : at + 8000]))
    await client.send(frame(TEXT, CLOSE_STREAM.encode()))
    await eventually(lambda: not record.open, 30)
    client.resume()
    texts, code, _ = await client.messages(20)
    await client.close()
    messages = [json.loads(text) for text in texts]
    sent = [json.loads(text) for text in record.sent]
    interims = sum(m.get("is_final") is False for m in sent)
    assert interims > 20
    assert sum(m.get("is_final") is False for m in messages) < interims / 2
    assert [m for m in messages if m.get("is_final")] == [m for m in sent if m.get("is_final")]
    assert words(messages) == said
    assert [m["n"] for m in messages if m["type"] == "Surprise"] == list(range(count))
    assert (messages[-1]["type"], code) == ("Metadata", 1000)


async def test_a_client_that_stays_slow_is_closed(stand: Stand) -> None:
    """After client_slow seconds it is closed with 1013, its Deepgram session too; others go on meanwhile."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"client_slow": 0.4})
    audio, said = call()
    client = await deaf_client(gateway.address, LISTEN)
    (record,) = emulator.connections
    async with dial(gateway) as other:
        shout(emulator, record.id, 60)
        await send(other, audio)
        await other.send(CLOSE_STREAM)
        assert words(await read(other)) == said
        assert gateway.metrics.client_slow <= 1
    await eventually(lambda: gateway.metrics.client_slow == 1)
    client.resume()
    close = b""
    async with asyncio.timeout(5):
        while not close:
            opcode, payload = await client.frame()
            close = payload if opcode == CLOSE else b""
    assert int.from_bytes(close[:2], "big") == 1013
    assert close[2:]
    await client.send(frame(CLOSE, close))
    await client.ended()
    await client.close()
    await eventually(lambda: not record.open)
    assert record.texts == [CLOSE_STREAM]
    await eventually(lambda: gateway.metrics.sessions_active == 0)


async def test_a_client_that_leaves_too_much_is_closed(stand: Stand) -> None:
    """More than client_queue_bytes waiting ends it without waiting for the time."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        session={"client_slow": 60, "client_queue_bytes": 200_000},
        resume={"journal_bytes": 200_000},
    )
    client = await deaf_client(gateway.address, LISTEN)
    shout(emulator, emulator.connections[0].id, 400)
    await eventually(lambda: gateway.metrics.client_slow == 1)
    await client.close()
    await eventually(lambda: gateway.metrics.sessions_active == 0)


async def test_a_client_that_catches_up_is_kept(stand: Stand) -> None:
    """Reading again in time clears the debt: the clock begins anew."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url, session={"client_slow": 1.0, "client_queue_bytes": 10_000_000}
    )
    client = await deaf_client(gateway.address, LISTEN)
    (record,) = emulator.connections
    shout(emulator, record.id, 200)
    await asyncio.sleep(0.5)
    client.resume()
    for _ in range(200):
        await client.frame()
    await asyncio.sleep(0.8)
    await client.send(frame(TEXT, CLOSE_STREAM.encode()))
    _, code, _ = await client.messages()
    await client.close()
    assert code == 1000
    assert gateway.metrics.client_slow == 0
