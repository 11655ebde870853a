"""Clients that break the protocol hurt nobody but themselves (faults.md 29, 36, 37, M1)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from pathlib import Path

import pytest
import structlog

from gateway.app import Gateway
from gateway.emulator.sound import Format
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
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
from tests.fakes.wire_client import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    WireClient,
    fragments,
    frame,
)

TARGET = f"/v1/listen?{LISTEN}"


def counted(gateway: Gateway, name: str) -> float:
    """A sample of /metrics, 0 when it is not there yet."""
    lines = gateway.metrics.render("")[0].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(BINARY, b"x" * 70_000), 1009, id="a large message"),
        pytest.param(frame(BINARY, b"x" * 70_000)[:10], 1009, id="the head of a large message"),
        pytest.param(fragments(BINARY, b"x" * 70_000, range(1000, 70_000, 1000)), 1009, id="in fragments"),
        pytest.param(frame(TEXT, b"x" * 70_000), 1009, id="a large text"),
        pytest.param(frame(TEXT, b"\xff\xfe"), 1007, id="text that is not UTF-8"),
        pytest.param(frame(TEXT, b'{"type":"Ke\xe2\x82'), 1007, id="text that ends inside a character"),
        pytest.param(fragments(TEXT, b"ab\xffcd", (2, 3)), 1007, id="bad UTF-8 in fragments"),
        pytest.param(frame(BINARY, b"abc", mask=False), 1002, id="no mask"),
        pytest.param(frame(BINARY, b"abc", rsv=4), 1002, id="RSV1"),
        pytest.param(frame(BINARY, b"abc", rsv=1), 1002, id="RSV3"),
        pytest.param(frame(3, b"abc"), 1002, id="an unknown opcode"),
        pytest.param(frame(11, b"abc"), 1002, id="an unknown control opcode"),
        pytest.param(frame(CONT, b"abc"), 1002, id="a continuation of nothing"),
        pytest.param(
            frame(BINARY, b"a", fin=False) + frame(TEXT, b"{}"), 1002, id="a message inside another"
        ),
        pytest.param(frame(PING, b"a", fin=False), 1002, id="a ping in fragments"),
        pytest.param(frame(PING, b"a" * 126), 1002, id="a long ping"),
        pytest.param(frame(CLOSE, b"\x03"), 1002, id="half a close code"),
        pytest.param(frame(CLOSE, b"\x03\xed"), 1002, id="a close code that is not for the wire"),
    ],
)
async def test_a_broken_frame_closes_with_its_code(stand: Stand, data: bytes, code: int) -> None:
    """The close says what was wrong; what came before it is transcribed; others notice nothing."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"max_message_bytes": 65_536})
    audio, said = call()
    async with dial(gateway) as other:
        async with await WireClient.open(gateway.address, TARGET) as client:
            await client.send(frame(BINARY, b"\xff" * 1600), data)
            _, closed, _ = await client.messages()
        assert closed == code
        await send(other, audio)
        await other.send(CLOSE_STREAM)
        assert words(await read(other)) == said
    broken = emulator.connections[1]
    await eventually(lambda: not broken.open)
    assert broken.texts[-1:] == [CLOSE_STREAM]
    assert broken.audio.startswith(b"\xff" * 1600)
    assert b"abc" not in broken.audio
    assert counted(gateway, f'gw_client_protocol_errors_total{{code="{code}"}}') == 1
    await eventually(lambda: gateway.door.connections == gateway.metrics.sessions_active == 0)


async def test_a_message_at_the_limit_passes(stand: Stand) -> None:
    """The limit is the largest size that is allowed, whole or in fragments."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"max_message_bytes": 8000})
    async with await WireClient.open(gateway.address, TARGET) as client:
        whole = frame(BINARY, b"\xff" * 8000)
        await client.send(
            whole, fragments(BINARY, b"\xff" * 8000, (1, 4000)), frame(TEXT, CLOSE_STREAM.encode())
        )
        _, code, _ = await client.messages()
    assert code == 1000
    assert emulator.connections[0].audio_bytes == 16_000


async def test_fragments_with_pings_between(stand: Stand) -> None:
    """A message may come in any number of pieces with pings in between; each ping is answered at once."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with await WireClient.open(gateway.address, TARGET) as client:
        pieces = fragments(BINARY, audio, range(0, len(audio), 500), frame(PING, b"here?"))
        finalize = fragments(TEXT, b'{"type":"Finalize"}', (0, 1, 9, 9), frame(PONG, b"unasked"))
        await client.send(pieces)
        pongs = 0
        while pongs < len(audio) // 500:
            opcode, payload = await client.frame()
            pongs += opcode == PONG
            assert opcode != PONG or payload == b"here?"
        await client.send(finalize, fragments(TEXT, CLOSE_STREAM.encode(), (3,)))
        texts, code, _ = await client.messages()
    assert code == 1000
    assert words([json.loads(text) for text in texts]) == said
    (record,) = emulator.connections
    assert record.audio == audio
    assert record.texts == ['{"type":"Finalize"}', CLOSE_STREAM]


@pytest.mark.parametrize("encoding", ["mulaw", "opus"])
async def test_an_empty_frame_means_close_stream(stand: Stand, encoding: str) -> None:
    """It ends the call in order and never reaches Deepgram as it is (faults.md 29)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    query = f"model=nova-3&encoding={encoding}&sample_rate=8000"
    async with await WireClient.open(gateway.address, f"/v1/listen?{query}") as client:
        await client.send(frame(BINARY, b"\xff" * 800), frame(BINARY, b""), frame(BINARY, b"too late"))
        texts, code, _ = await client.messages()
    assert code == 1000
    assert json.loads(texts[-1])["type"] == "Metadata"
    (record,) = emulator.connections
    assert (record.audio, record.texts) == (b"\xff" * 800, [CLOSE_STREAM])
    assert 0 not in record.boundaries
    assert counted(gateway, "gw_empty_frames_total") == 1


async def test_empty_fragments_are_no_empty_frame(stand: Stand) -> None:
    """Only a message that is empty as a whole says CloseStream."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.open(gateway.address, TARGET) as client:
        await client.send(fragments(BINARY, b"\xff" * 800, (0, 0, 800)), frame(TEXT, CLOSE_STREAM.encode()))
        _, code, _ = await client.messages()
    assert code == 1000
    assert emulator.connections[0].audio_bytes == 800
    assert counted(gateway, "gw_empty_frames_total") == 0


async def test_text_that_is_no_json(stand: Stand) -> None:
    """Deepgram answers it, and the call goes on."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with dial(gateway) as ws:
        await ws.send("Finalize!")
        error = json.loads(await ws.recv())
        assert (error["type"], error["variant"], error["message"]) == ("Error", "SchemaError", "Finalize!")
        assert error["description"]
        deep = '{"deep":' + "[" * 100_000
        await ws.send(deep)
        assert json.loads(await ws.recv())["variant"] == "SchemaError"
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws)) == said
    assert emulator.connections[0].texts == ["Finalize!", deep, CLOSE_STREAM]


async def test_a_flood_of_pings_is_cut(stand: Stand) -> None:
    """A client that asks and never listens is cut at the write-buffer guard; memory stays (faults.md M1)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        server={"write_buffer_bytes": 262_144},
        session={"max_messages_per_second": 1e9},  # else it is slowed so much that this takes long
    )
    audio, said = call()
    before = resident()
    async with dial(gateway) as other:
        client = await WireClient.open(gateway.address, TARGET)
        client.pause()
        flood = frame(PING, b"p" * 125) * 500
        with contextlib.suppress(OSError):  # a reset or a broken pipe, as the kernel has it
            async with asyncio.timeout(20):
                while True:
                    await client.send(flood)
        await eventually(lambda: gateway.metrics.sessions_active == 1)
        client.writer.transport.abort()
        await send(other, audio)
        await other.send(CLOSE_STREAM)
        assert words(await read(other)) == said
    assert resident() - before < 30_000_000
    assert counted(gateway, 'gw_client_aborted_total{reason="write_buffer"}') == 1
    await eventually(lambda: gateway.door.connections == 0)


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(frame(BINARY, b"\xff"), id="single bytes"),
        pytest.param(frame(TEXT, b'{"type":"KeepAlive"}'), id="texts"),
        pytest.param(frame(PING, b"?"), id="pings"),
        pytest.param(frame(CONT, b"\xff", fin=False), id="fragments"),
    ],
)
async def test_a_flood_of_tiny_frames_is_slowed(stand: Stand, flood: bytes) -> None:
    """200 000 come at once, and are left with their sender; that is told once (faults.md 38)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    with structlog.testing.capture_logs() as lines:
        async with dial(gateway) as other, await WireClient.open(gateway.address, TARGET) as client:
            begun = frame(BINARY, b"", fin=False) if flood[0] == CONT else b""
            sending = asyncio.create_task(client.send(begun, flood * 200_000))
            await eventually(lambda: counted(gateway, 'gw_client_floods_total{what="messages"}') == 1)
            await send(other, audio)
            await other.send(CLOSE_STREAM)
            assert words(await read(other)) == said
            (flooded,) = gateway._exchange.calls.values()
            assert not flooded.session.reading
            assert emulator.connections[1].audio_bytes < 100_000
            sending.cancel()
            client.writer.transport.abort()
    assert [line["what"] for line in lines if line["event"] == "client.floods"] == ["messages"]


async def test_who_is_not_read_hears_all_the_same(stand: Stand) -> None:
    """What a flood acknowledges counts, however small its segments are in the kernel (faults.md 38)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"max_messages_per_second": 50})
    async with await WireClient.open(gateway.address, TARGET) as client:
        await client.send(frame(BINARY, b"\xff" * 160))
        await eventually(lambda: emulator.connections and emulator.connections[0].audio_bytes)
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(1000):
            await client.send(frame(TEXT, b'{"type":"KeepAlive"}'))
        (unread,) = gateway._exchange.calls.values()
        await eventually(lambda: not unread.session.reading)
        for _ in range(1000):
            client.writer.write(frame(BINARY, b"\xff" * 320))
            await asyncio.sleep(0.001)
        for number in range(200):
            emulator.act("garbage", text=f'{{"type":"Surprise","number":{number}}}')
            opcode, text = await client.frame(2)
            assert opcode == TEXT
            assert json.loads(text)["number"] == number
        client.writer.transport.abort()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(frame(BINARY, b"\xff" * 1600)[:900], id="inside a frame"),
        pytest.param(frame(BINARY, b"\xff" * 1600)[:3], id="inside a frame's head"),
        pytest.param(frame(BINARY, b"\xff" * 100, fin=False), id="between fragments"),
        pytest.param(b"", id="between frames"),
    ],
)
@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_client_that_dies(stand: Stand, last: bytes, how: str) -> None:
    """What it said whole is transcribed: Deepgram gets CloseStream, and both connections end."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    client = await WireClient.open(gateway.address, TARGET)
    await client.send(frame(BINARY, b"\xff" * 4000), last)
    await eventually(lambda: emulator.connections[0].audio_bytes >= 4000)
    if how == "reset":
        client.writer.transport.abort()
    await client.close()
    record = emulator.connections[0]
    await eventually(lambda: not record.open)
    assert record.texts == [CLOSE_STREAM]
    assert record.audio == b"\xff" * 4000
    assert (record.ended_by, record.close_code) == ("emulator", 1000)
    await eventually(lambda: gateway.door.connections == gateway.metrics.sessions_active == 0)


async def test_a_client_that_only_closes(stand: Stand) -> None:
    """A close frame without CloseStream ends the call the same way, and is answered."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway) as ws:
        await ws.send(b"\xff" * 1600)
        await ws.close()
        assert ws.close_code == 1000
    record = emulator.connections[0]
    await eventually(lambda: not record.open)
    assert (record.texts, record.audio_bytes) == ([CLOSE_STREAM], 1600)


async def test_close_stream_twice(stand: Stand) -> None:
    """The second one changes nothing, and there is one Metadata."""
    emulator = await stand.emulator(result_delay=0.1)
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with dial(gateway) as ws:
        await send(ws, audio)
        await ws.send(CLOSE_STREAM)
        await ws.send(CLOSE_STREAM)
        await ws.send(b"")
        messages = await read(ws)
        assert ws.close_code == 1000
    assert words(messages) == said
    assert len(of_type(messages, "Metadata")) == 1
    assert emulator.connections[0].texts == [CLOSE_STREAM]


async def test_odd_frame_sizes(stand: Stand) -> None:
    """A frame may end in the middle of a sample (faults.md 39)."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, said = call(fmt=Format("linear16", 8000))
    query = "model=nova-3&encoding=linear16&sample_rate=8000"
    async with dial(gateway, query) as ws:
        await send(ws, audio, 333)
        await ws.send(CLOSE_STREAM)
        assert words(await read(ws)) == said
    assert emulator.connections[0].audio == audio


async def test_packets_are_never_joined(stand: Stand) -> None:
    """With opus and what we do not know every message is one packet, forwarded one to one."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"batch_ms": 100})
    sizes = [1, 60, 3, 2000, 1, 1, 70_000, 20]
    async with await WireClient.open(gateway.address, "/v1/listen?encoding=opus&sample_rate=48000") as client:
        packets = [frame(BINARY, b"o" * size) for size in sizes]
        await client.send(*packets, frame(TEXT, CLOSE_STREAM.encode()))
        await client.messages()
    assert emulator.connections[0].boundaries == sizes


async def test_linear_audio_may_be_joined(stand: Stand) -> None:
    """With batch_ms frames go up in fewer messages, none longer than Deepgram advises, none lost."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, server={"batch_ms": 100})
    audio, said = call()
    messages = await transcribe(gateway, audio[:6400])
    record = emulator.connections[0]
    assert record.audio == audio[:6400]
    assert len(record.boundaries) < 6400 // 800
    assert max(record.boundaries) <= 2000
    assert said[0] in words(messages)
