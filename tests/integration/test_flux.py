"""Flux, `/v2/listen`, through the same front door."""

from __future__ import annotations

import json

import pytest

from gateway.emulator import Fault
from gateway.emulator.tokens import id_for
from tests.fakes.stand import (
    CLOSE_STREAM,
    FLUX,
    Message,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    read_until,
    send,
)
from tests.fakes.wire_client import BINARY, TEXT, WireClient, frame

PATH = "/v2/listen"


def turn_ended(message: Message) -> bool:
    return message.get("event") == "EndOfTurn"


async def test_connected_comes_first(stand: Stand) -> None:
    """Unlike v1 it greets before any audio, under the id of the 101."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway, FLUX, PATH) as ws:
        hello = json.loads(await ws.recv())
        assert ws.response is not None
        request_id = ws.response.headers["dg-request-id"]
    assert hello == {"type": "Connected", "request_id": request_id, "sequence_id": 0}


async def test_turns_are_passed_on(stand: Stand) -> None:
    """Every message as it came, in its order, numbered without a hole."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, _ = call()
    async with dial(gateway, FLUX, PATH) as ws:
        await send(ws, audio + b"\xff" * 6000)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
    assert [m["sequence_id"] for m in messages] == list(range(len(messages)))
    assert [json.dumps(m) for m in messages] == [
        json.dumps(json.loads(t)) for t in emulator.connections[0].sent
    ]
    assert {m["event"] for m in of_type(messages, "TurnInfo")} >= {"StartOfTurn", "Update", "EndOfTurn"}


async def test_text_that_is_no_json(stand: Stand) -> None:
    """Flux answers in its own way and ends its connection; the call goes on with another one."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with dial(gateway, FLUX, PATH) as ws:
        await ws.send("hello")
        (*_, error) = await read_until(ws, lambda message: message["type"] == "Error")
        assert error["code"] == "UNPARSABLE_CLIENT_MESSAGE"
        await send(ws, audio + b"\xff" * 6000)
        heard = await read_until(ws, turn_ended)
        await ws.send(CLOSE_STREAM)
        await read(ws)
    assert [id_for(word["word"]) for word in heard[-1]["words"]] == said
    assert [record.texts for record in emulator.connections] == [["hello"], [CLOSE_STREAM]]


async def test_the_end_has_no_status(stand: Stand) -> None:
    """After CloseStream come the remaining updates and a close frame without a code; no Metadata."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.open(gateway.address, f"{PATH}?{FLUX}") as client:
        await client.send(frame(BINARY, b"\xff" * 1600), frame(TEXT, CLOSE_STREAM.encode()))
        texts, code, _ = await client.messages()
    assert code == 1005
    assert {json.loads(text)["type"] for text in texts} <= {"Connected", "TurnInfo"}
    await eventually(lambda: gateway.metrics.sessions_active == 0)
    assert 'gw_sessions_total{outcome="completed"} 1' in gateway.metrics.render("")[0].decode()


async def test_force_end_turn(stand: Stand) -> None:
    """What only Deepgram understands is forwarded at its place."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, _ = call()
    async with dial(gateway, FLUX, PATH) as ws:
        await send(ws, audio)
        await ws.send('{"type":"ForceEndTurn"}')
        messages = await read_until(ws, turn_ended)
        assert messages[-1]["trigger"] == "manual"
        await ws.send(CLOSE_STREAM)
        await read(ws)
    assert emulator.connections[0].texts == ['{"type":"ForceEndTurn"}', CLOSE_STREAM]


async def test_a_silent_client_is_not_closed(stand: Stand) -> None:
    """The 10 s rule is v1's; here pings keep the connection (test_idleness.py)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"client_idle": 0.3})
    async with dial(gateway, FLUX, PATH) as ws:
        await ws.send(b"\xff" * 160)
        with pytest.raises(TimeoutError):
            await read(ws, 0.8)
        assert ws.close_code is None
        await ws.send(CLOSE_STREAM)
        await read(ws)


async def test_a_lost_upstream(stand: Stand) -> None:
    """The call goes on: one Connected, every word of the turns, still no status at the end."""
    emulator = await stand.emulator(faults=(Fault("reset", nth=1, after_audio=0.8),))
    gateway = await stand.gateway(emulator.url, session={"backoff_base": 0.05})
    audio, said = call(10)
    async with await WireClient.open(gateway.address, f"{PATH}?{FLUX}") as client:
        pause = b"\xff" * 6000  # so that the last turn ends by itself
        await client.send(frame(BINARY, audio + pause), frame(TEXT, CLOSE_STREAM.encode()))
        texts, code, _ = await client.messages()
    messages = [json.loads(text) for text in texts]
    assert code == 1005
    assert len(of_type(messages, "Connected")) == 1
    assert len(emulator.connections) == 2
    ends = [m for m in messages if turn_ended(m)]
    assert [id_for(word["word"]) for m in ends for word in m["words"]] == said
