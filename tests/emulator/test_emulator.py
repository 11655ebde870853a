"""The emulator as a whole, and its small parts that have no test of their own."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import uuid
from typing import Any

import pytest
import trustme
import uvloop
from websockets.asyncio.client import connect

from gateway.emulator import Emulator, Fault, Knobs, run
from gateway.emulator import tcp as tcp
from gateway.emulator.actions import Close, SendText
from gateway.emulator.batch import BatchError
from gateway.emulator.connection import Connection
from gateway.emulator.control import control_routes
from gateway.emulator.credentials import Credentials, credential
from gateway.emulator.door import Door
from gateway.emulator.emulator import ACTIONS
from gateway.emulator.engines import choice
from gateway.emulator.engines.tokens import TokenEngine
from gateway.emulator.host import Host
from gateway.emulator.intake import Intake, Undecodable
from gateway.emulator.listen import ListenStream
from gateway.emulator.oddities import odd
from gateway.emulator.outbox import Outbox
from gateway.emulator.pace import Cursor
from gateway.emulator.prerecorded import groups
from gateway.emulator.query import LISTEN_MODELS, QueryError, read_flux, read_listen
from gateway.emulator.records import Records, masked_headers
from gateway.emulator.refusals import standard
from gateway.emulator.sound import Format, sniff
from gateway.emulator.stream import Stream, decode
from gateway.emulator.windows import Rules
from gateway.emulator.wire import SpokenWord, created, f32
from gateway.errors import ConfigError
from tests.emulator.conftest import Starter
from tests.emulator.wire import LISTEN, call, dial, heard, read, said, send, transcribe, until


async def test_a_call_leaves_a_complete_record(start: Starter) -> None:
    """Every byte, every boundary, every text both ways, and how it ended."""
    emulator = await start()
    audio, _ = call(4)
    got = await transcribe(emulator, audio, f"{LISTEN}&tag=x")
    await until(lambda: emulator.connections[0].closed_at)
    (record,) = emulator.connections
    assert record.audio == audio
    assert record.boundaries == [1600] * (len(audio) // 1600) + [len(audio) % 1600]
    assert record.texts == ['{"type":"CloseStream"}']
    assert [json.loads(text) for text in record.sent] == got
    assert (record.path, record.query) == ("/v1/listen", f"{LISTEN}&tag=x")
    assert (record.close_code, record.close_reason, record.ended_by) == (1000, "", "emulator")
    assert record.sent_at == sorted(record.sent_at)
    assert record.request_id == got[-1]["request_id"]


async def test_a_client_that_closes_or_vanishes(start: Starter) -> None:
    """The record says that the client ended it, and with which code."""
    emulator = await start()
    async with dial(emulator) as ws:
        await ws.close(4002, "enough")
    async with dial(emulator) as ws:
        ws.transport.abort()
    await until(lambda: len(emulator.connections) == 2 and emulator.connections[1].closed_at)
    ends = [(r.ended_by, r.ended_how, r.close_code) for r in emulator.connections]
    assert ends == [("client", "close-frame", 4002), ("client", "lost", None)]


async def test_fragmented_messages_are_one_message(start: Starter) -> None:
    """A message in frames counts once."""
    emulator = await start()
    async with dial(emulator) as ws:
        await ws.send([b"\xff" * 100, b"\xff" * 200])
        await ws.send(["{", '"type":"CloseStream"}'])
        await read(ws)
    assert emulator.connections[0].boundaries == [300]
    assert emulator.connections[0].texts == ['{"type":"CloseStream"}']


async def test_tls(start: Starter) -> None:
    """The same over TLS, faults below the WebSocket included."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    emulator = Emulator(Knobs(ingest_speed=None))
    await emulator.start(ssl=server)
    url = f"{emulator.url.replace('https', 'wss')}/v1/listen?{LISTEN}"
    headers = {"Authorization": "Token k"}
    try:
        audio, tokens = call(4)
        async with connect(url, ssl=client, additional_headers=headers) as ws:
            await send(ws, audio)
            await ws.send(b"")
            assert heard(await read(ws)) == said(tokens)
        for kind in ("reset", "fin"):
            async with connect(url, ssl=client, additional_headers=headers) as ws:
                emulator.act(kind)
                await read(ws)
            assert ws.close_code == 1006
    finally:
        await emulator.stop()


def test_on_uvloop() -> None:
    """Everything works on uvloop as well: a call, an upload, a reset."""

    async def main() -> None:
        emulator = Emulator(Knobs(ingest_speed=None, faults=(Fault("reset", nth=2, after_bytes=1),)))
        await emulator.start()
        audio, tokens = call(4)
        assert heard(await transcribe(emulator, audio)) == said(tokens)
        assert await transcribe(emulator, audio) == []
        reader, writer = await asyncio.open_connection("127.0.0.1", emulator.port)
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"Healthy" in await reader.read()
        writer.close()
        await emulator.stop()

    uvloop.run(main())


async def test_run_serves_until_it_is_cancelled() -> None:
    """`run` says where it listens, and lets go of the port."""
    told: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(run(Knobs(), "script", "127.0.0.1", 0, told.put_nowait))
    url = await told.get()
    async with connect(
        f"{url.replace('http', 'ws')}/v1/listen", additional_headers={"Authorization": "Token k"}
    ):
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


async def test_stop_drops_who_is_still_there(start: Starter) -> None:
    """Clients in the middle of a call, or of nothing, do not hold it."""
    emulator = await start()
    _, idle = await asyncio.open_connection("127.0.0.1", emulator.port)
    async with dial(emulator) as ws:
        await emulator.stop()
        await read(ws)
    assert ws.close_code == 1006
    idle.close()


@pytest.mark.parametrize("action", sorted(set(ACTIONS) - {"resume"}))
async def test_actions_are_faults(start: Starter, action: Any) -> None:
    """Each documented action can be done to an open connection."""
    emulator = await start()
    async with dial(emulator) as ws:
        assert emulator.act(action, connection="c1") == 1
        assert emulator.act(action, connection="c9") == 0
        ws.transport.abort()


def test_engines_that_do_not_exist() -> None:
    """A wrong engine is a ConfigError."""
    with pytest.raises(ConfigError):
        Emulator(Knobs(), engine="oracle")  # type: ignore[arg-type]  # the mistake under test


async def test_an_engine_of_ones_own() -> None:
    """What it calls its model is what `model_info` says."""

    class Parrot(TokenEngine):
        def model_name(self, model: str) -> str:
            return "parrot"

    emulator = Emulator(Knobs(ingest_speed=None), Parrot(2))
    await emulator.start()
    async with dial(emulator) as ws:
        await ws.send(b"\xff" * 8000)
        await ws.send('{"type":"CloseStream"}')
        results = json.loads(await ws.recv())
        assert results["metadata"]["model_info"]["name"] == "parrot"
    await emulator.stop()


def test_the_cursor_keeps_its_pace() -> None:
    """A backlog is worked off at the speed; after a pause only a little credit is left."""
    cursor = Cursor(1.25, 0.0)
    assert cursor.advance(0.0, 80000, 8000) == 0
    assert cursor.reaches(10000, 8000) == pytest.approx(1.0)
    assert cursor.advance(1.0, 80000, 8000) == 10000
    assert cursor.advance(100.0, 80000, 8000) == 80000
    assert cursor.advance(200.0, 90000, 8000) == 80000 + 2500
    assert Cursor(None, 0.0).advance(0.0, 5, 8000) == 5


def test_the_outbox_keeps_order() -> None:
    """What is delayed holds back what comes after it; what is muted is gone."""
    outbox = Outbox(Knobs(result_delay=1.0), random.Random(1))
    result = {"type": "Results", "duration": 1.0, "is_final": False}
    outbox.message(result, 0.0, 0.0)
    outbox.queue(Close(1000), 0.5, False)
    outbox.release(0.9)
    assert (outbox.out, outbox.next_due) == ([], 1.0)
    outbox.release(1.0)
    assert [type(action) for action in outbox.out] == [SendText, Close]
    outbox.muted_until = 9.0
    outbox.message(result, 5.0, 0.0)
    outbox.release(9.0)
    assert len(outbox.out) == 2


def test_credentials() -> None:
    """Keys from headers and subprotocols; granted tokens until they expire."""
    assert credential([("Authorization", "token  abc")]) == ("token", "abc")
    assert credential([("Sec-WebSocket-Protocol", "bearer, a.b-c")]) == ("bearer", "a.b-c")
    assert credential([("Authorization", "Basic abc")]) == ("", "")
    credentials = Credentials()
    token = credentials.grant(30, 100.0)
    assert credentials.accept("bearer", token, ("k",), 129.0)
    assert not credentials.accept("bearer", token, ("k",), 130.0)
    assert not credentials.accept("token", token, None, 101.0)
    assert not credentials.accept("bearer", "k", ("k",), 0.0)
    assert not credentials.accept("", "", None, 0.0)


def test_secrets_are_masked() -> None:
    """Equal secrets look equal, and none can be read."""
    headers = [
        ("Authorization", "Token s3cret"),
        ("Sec-WebSocket-Protocol", "token, s3cret, x-id, 7"),
        ("A", "1"),
    ]
    masked = masked_headers([*headers, ("a", "2")])
    assert "s3cret" not in str(masked)
    fingerprint = masked["authorization"].removeprefix("Token ")
    assert masked["sec-websocket-protocol"] == f"token, {fingerprint}, x-id, 7"
    assert masked["a"] == "1, 2"


def test_request_ids_are_version_7() -> None:
    """Time-ordered UUIDs."""
    host = Host(Knobs(), object())  # type: ignore[arg-type]  # no engine is needed here
    assert {uuid.UUID(host.request_id()).version for _ in range(20)} == {7}
    assert {uuid.UUID(host.request_id()).variant for _ in range(20)} == {uuid.RFC_4122}


def test_sniffing() -> None:
    """Containers by their first bytes; too little is no answer."""
    assert sniff(b"RIFF", 1000) is None
    assert sniff(b"fLaC", 1000) == sniff(b"ID3.....", 1000)
    garbage = sniff(b"\x00" * 12, 1000)
    assert garbage is not None
    assert garbage.format is None
    assert Format("linear16", 8000, 2).bytes_per_second == 32000


def test_the_intake_counts_samples() -> None:
    """Headers are no audio, halves of samples wait, and garbage is refused."""
    intake = Intake(choice.engine_for("tokens", Knobs()), lambda: None, 1000)
    intake.take(b"\x00" * 3)
    assert intake.recognise() is None
    intake.open(Format("linear16", 8000, 2), 2)
    assert (len(intake.ears), intake.feed(), intake.received_samples) == (2, 0, 0)
    intake.take(b"\x00" * 6)
    assert (intake.feed(), intake.received_samples, intake.bytes_until(10)) == (2, 2, 40)
    intake = Intake(choice.engine_for("tokens", Knobs()), lambda: None, 1000)
    intake.take(b"\x00" * 12)
    with pytest.raises(Undecodable):
        intake.recognise()


def test_queries() -> None:
    """Repeats, last values, and limits."""
    options = read_listen("model=nova-3&keyterm=a+b&keyterm=c&extra=k:1&extra=k:2:3&endpointing=false", None)
    assert options.keyterms == ("a b", "c")
    assert options.extra == {"k": "2:3"}
    assert options.endpointing_ms is None
    assert read_listen("endpointing=300", None).endpointing_ms == 300
    assert {"base", "nova-2-meeting", "nova-3-medical"} <= LISTEN_MODELS
    assert read_flux("model=flux-general-en&eot_timeout_ms=700", None).eot_timeout_ms == 700
    for wrong in ("keyterm=a&model=nova-2", f"tag={'x' * 129}", f"extra=a:{'x' * 2100}", "endpointing=soon"):
        with pytest.raises(QueryError):
            read_listen(wrong, None)


def test_small_things() -> None:
    """Times, float32, JSON, groups, refusals, oddities and forgetting."""
    assert created(0.5) == "1970-01-01T00:00:00.500Z"
    assert f32(0.1) != 0.1
    assert decode("{") is None
    words = [SpokenWord("a", 0.0, 1.0, 1.0), SpokenWord("b", 1.1, 2.0, 1.0), SpokenWord("c", 3.0, 4.0, 1.0)]
    assert [len(group) for group in groups(words, 0.8)] == [2, 1]
    assert standard(418).text == "HTTP 418"
    assert odd({"start": 9.0}, "regressing", {"start": 8.0}, 10.0)["start"] == 3.0
    assert Records().clear() == 0
    assert BatchError(standard(413)).refusal.status == 413


def test_the_parts_fit() -> None:
    """The classes that only whole calls exercise are the ones this file names."""
    assert issubclass(Door, asyncio.Protocol)
    assert issubclass(Connection, asyncio.Protocol)
    assert Rules.of(Knobs(), read_listen("", None), 8000).interim == 8000
    assert callable(control_routes)
    assert callable(tcp.reset)
    assert issubclass(ListenStream, Stream)
