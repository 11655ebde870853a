"""Each knob changes what a client sees."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from gateway.emulator import Emulator, Fault, Knobs
from gateway.emulator.knobs import changed, parse, schema
from gateway.errors import ConfigError
from tests.emulator.conftest import Starter
from tests.emulator.wire import (
    LISTEN,
    Message,
    call,
    check_contiguous,
    dial,
    heard,
    read,
    results,
    said,
    send,
    transcribe,
    until,
)

INTERIMS = f"{LISTEN}&interim_results=true"
NO_ENDPOINT = f"{INTERIMS}&endpointing=false"
SILENCE = b"\xff" * 8000


async def status_of(emulator: Emulator, query: str = LISTEN) -> tuple[int, Any, str | None]:
    """The refusal of one attempt: status, body, Retry-After."""
    with pytest.raises(InvalidStatus) as caught:
        await dial(emulator, query)
    response = caught.value.response
    return response.status_code, response.body, response.headers.get("retry-after")


def word_count(message: Message) -> int:
    """How many words a Results has."""
    return len(message["channel"]["alternatives"][0]["words"])


async def test_deny_everyone(start: Starter) -> None:
    """deny_status, deny_body and retry_after shape the refusal."""
    emulator = await start(deny_status=429, retry_after=7)
    status, body, after = await status_of(emulator)
    assert (status, json.loads(body)["err_code"], after) == (429, "TOO_MANY_REQUESTS", "7")
    emulator.patch(deny_status=502, deny_body="<html>")
    assert (await status_of(emulator))[:2] == (502, b"<html>")


async def test_max_connections(start: Starter) -> None:
    """One too many is 429; a place that is left is free again."""
    emulator = await start(max_connections=1)
    async with dial(emulator):
        assert (await status_of(emulator))[0] == 429
    async with asyncio.timeout(2):
        while True:
            try:
                async with dial(emulator):
                    break
            except InvalidStatus:
                await asyncio.sleep(0.01)


async def test_models(start: Starter) -> None:
    """models replaces the names that are known."""
    emulator = await start(models=("nova-3",))
    assert (await status_of(emulator, LISTEN.replace("nova-3", "nova-2")))[0] == 400
    async with dial(emulator):
        pass


async def test_handshake_delay_and_time_scale(start: Starter) -> None:
    """The answer waits; emulator seconds shrink by time_scale."""
    emulator = await start(handshake_delay=3.0, time_scale=10.0)
    began = time.monotonic()
    async with dial(emulator):
        assert 0.25 < time.monotonic() - began < 1.5


async def test_request_id_header(start: Starter) -> None:
    """The header can be left out, as a broken proxy would."""
    emulator = await start(request_id_header=False)
    async with dial(emulator) as ws:
        assert ws.response is not None
        assert "dg-request-id" not in ws.response.headers


@pytest.mark.parametrize("on", [True, False])
async def test_permessage_deflate(start: Starter, on: bool) -> None:
    """Compression is declined unless asked for, and works then."""
    emulator = await start(permessage_deflate=on)
    async with dial(emulator) as ws:
        assert ws.response is not None
        assert ("sec-websocket-extensions" in ws.response.headers) is on
        await send(ws, SILENCE)
        await ws.send(b"")
        assert (await read(ws))[-1]["duration"] == 1.0


async def test_interim_interval(start: Starter) -> None:
    """Interims come at the chosen cadence."""
    emulator = await start(interim_interval=0.5, silence_window=30.0)
    got = await transcribe(emulator, SILENCE * 2, INTERIMS)
    assert [m["duration"] for m in results(got, final=False)] == [0.5, 1.0, 1.5, 2.0]


async def test_step(start: Starter) -> None:
    """Nothing happens between steps of the recogniser's clock."""
    emulator = await start(step=1.0, interim_interval=0.25, silence_window=30.0)
    got = await transcribe(emulator, SILENCE * 3, INTERIMS)
    assert [m["duration"] for m in results(got, final=False)] == [1.0, 2.0, 3.0]


async def test_window_length(start: Starter) -> None:
    """Without endpoints finals come between window_min and window_max."""
    emulator = await start(window_min=2.0, window_max=2.5, short_final=0.0, silence_window=30.0)
    audio, tokens = call(40)
    got = await transcribe(emulator, audio, NO_ENDPOINT)
    lengths = [m["duration"] for m in results(got, final=True)][:-1]
    assert len(lengths) > 3
    assert all(1.5 < length < 3.2 for length in lengths)
    assert heard(got) == said(tokens)


async def test_silence_window(start: Starter) -> None:
    """Silence is acknowledged this often."""
    emulator = await start(silence_window=0.5)
    got = await transcribe(emulator, SILENCE * 2)
    assert [m["duration"] for m in results(got)] == [0.5] * 4


async def test_short_finals_hand_words_on(start: Starter) -> None:
    """A final may cover less than the interim before it; no word is lost by that."""
    audio, tokens = call(60)
    for share, expected in ((1.0, True), (0.0, False)):
        emulator = await start(short_final=share, revise=0.0)
        got = results(await transcribe(emulator, audio, NO_ENDPOINT))
        pairs = [(a, b) for a, b in pairwise(got) if not a["is_final"] and b["is_final"]]
        shrunk = [1 for a, b in pairs[:-1] if word_count(b) < word_count(a)]
        assert bool(shrunk) is expected
        assert heard(got) == said(tokens)
        check_contiguous(results(got, final=True))


async def test_revise(start: Starter) -> None:
    """Interims mishear their last word, finals do not."""
    audio, tokens = call(20)
    for share, expected in ((1.0, True), (0.0, False)):
        emulator = await start(revise=share)
        got = await transcribe(emulator, audio, NO_ENDPOINT)
        interim_text = " ".join(
            m["channel"]["alternatives"][0]["transcript"] for m in results(got, final=False)
        )
        assert ("mis" in interim_text) is expected
        assert heard(got) == said(tokens)


async def test_word_jitter(start: Starter) -> None:
    """Times of words are off by the chosen sigma, but stay in their window and in order."""
    audio, tokens = call(40)
    emulator = await start(word_jitter_ms=80.0)
    finals = results(await transcribe(emulator, audio), final=True)
    words = [word for m in finals for word in m["channel"]["alternatives"][0]["words"]]
    errors = [abs(w["start"] - t.start_sample / 8000) for w, t in zip(words, tokens, strict=True)]
    assert 0.02 < sum(errors) / len(errors) < 0.15
    for m in finals:
        for word in m["channel"]["alternatives"][0]["words"]:
            assert m["start"] - 1e-3 <= word["start"] <= word["end"] <= m["start"] + m["duration"] + 1e-3


@pytest.mark.parametrize(("reply", "answers"), [("always", 2), ("audio", 1), ("never", 0)])
async def test_finalize_reply(start: Starter, reply: str, answers: int) -> None:
    """Finalize is answered always, when there is audio, or never."""
    emulator = await start(finalize_reply=reply, silence_window=30.0)
    async with dial(emulator) as ws:
        await send(ws, SILENCE)
        for text in ("Finalize", "Finalize", "CloseStream"):
            await ws.send(json.dumps({"type": text}))
        got = await read(ws)
    assert sum(m["from_finalize"] for m in results(got)) == answers


async def test_finalize_minimum_and_speech_final(start: Starter) -> None:
    """How much audio is worth an answer, and whether the answer ends an utterance."""
    emulator = await start(finalize_minimum=2.0, finalize_speech_final=False, silence_window=30.0)
    async with dial(emulator) as ws:
        for _ in range(3):
            await send(ws, SILENCE)
            await ws.send('{"type":"Finalize"}')
        await ws.send(b"")
        got = results(await read(ws))
    assert [(m["duration"], m["from_finalize"], m["speech_final"]) for m in got] == [
        (2.0, True, False),
        (1.0, False, True),
    ]


@pytest.mark.parametrize("cuts", [True, False])
async def test_finalize_cuts_words(start: Starter, cuts: bool) -> None:
    """A word being spoken at Finalize is left whole, or cut in two by the knob."""
    emulator = await start(finalize_cuts_words=cuts)
    audio, tokens = call(6)
    middle = (tokens[3].start_sample + tokens[3].end_sample) // 2
    async with dial(emulator) as ws:
        await send(ws, audio[:middle])
        await ws.send('{"type":"Finalize"}')
        await send(ws, audio[middle:])
        await ws.send(b"")
        got = await read(ws)
    assert (heard(got) == said(tokens)) is not cuts
    check_contiguous(results(got, final=True))


async def test_speakers(start: Starter) -> None:
    """As many voices as the knob says, numbered from 0 on each connection."""
    emulator = await start(speakers=3)
    audio, _ = call(30)
    for _ in range(2):
        got = await transcribe(emulator, audio, f"{LISTEN}&diarize=true")
        words = [w for m in results(got, final=True) for w in m["channel"]["alternatives"][0]["words"]]
        assert list(dict.fromkeys(word["speaker"] for word in words)) == [0, 1, 2]


async def test_ingest_speed(start: Starter) -> None:
    """Audio sent at once becomes results no faster than the knob allows."""
    audio = SILENCE * 4
    emulator = await start(ingest_speed=1.25, time_scale=8.0)
    began = time.monotonic()
    await transcribe(emulator, audio)
    assert 0.3 < time.monotonic() - began < 1.5
    emulator = await start(ingest_speed=None, time_scale=8.0)
    began = time.monotonic()
    await transcribe(emulator, audio)
    assert time.monotonic() - began < 0.3


async def test_audio_at_its_own_pace_is_not_held_back(start: Starter) -> None:
    """Audio in real time has its results on time."""
    emulator = await start(ingest_speed=1.25, time_scale=4.0, silence_window=0.5)
    async with dial(emulator) as ws:
        lags: list[float] = []
        began = time.monotonic()

        async def receive() -> None:
            async for text in ws:
                m = json.loads(text)
                if m["type"] == "Results":
                    lags.append((time.monotonic() - began) * 4 - m["start"] - m["duration"])

        listening = asyncio.create_task(receive())
        for i in range(20):
            await ws.send(SILENCE[:800])
            await asyncio.sleep(max(0.0, began + (i + 1) * 0.025 - time.monotonic()))
        await ws.send(b"")
        await listening
    assert len(lags) >= 4
    assert max(lags) < 0.5


async def test_result_delay(start: Starter) -> None:
    """Results come later by the delay, the Metadata behind them."""
    emulator = await start(result_delay=0.2)
    began = time.monotonic()
    got = await transcribe(emulator, SILENCE)
    assert 0.2 <= time.monotonic() - began < 2.0
    assert [m["type"] for m in got] == ["Results", "Metadata"]


async def test_result_delay_jitter(start: Starter) -> None:
    """Some results come later than others, never in another order."""
    emulator = await start(result_delay_jitter=0.3, silence_window=0.5)
    began = time.monotonic()
    got = results(await transcribe(emulator, SILENCE * 8))
    assert 0.15 < time.monotonic() - began < 2.0
    check_contiguous(got)


async def test_duplicate(start: Starter) -> None:
    """Every result may come twice."""
    emulator = await start(duplicate=1.0)
    got = results(await transcribe(emulator, SILENCE * 3))
    assert got[::2] == got[1::2]


async def test_net0001(start: Starter) -> None:
    """No frame for ten seconds: Metadata, then 1011 with the reason; KeepAlive holds it off."""
    emulator = await start(net0001_after=0.5)
    async with dial(emulator) as ws:
        await send(ws, SILENCE)
        for _ in range(4):
            await asyncio.sleep(0.2)
            await ws.send('{"type": "KeepAlive"}')
        began = time.monotonic()
        got = await read(ws)
    assert 0.4 < time.monotonic() - began < 2.0
    assert got[-1]["type"] == "Metadata"
    assert ws.close_code == 1011
    assert ws.close_reason == (
        "Deepgram did not receive audio data or a text message within the timeout window. "
        "See https://dpgr.am/net0001"
    )


async def test_net0000(start: Starter) -> None:
    """KeepAlives without audio do not hold a stream for ever."""
    emulator = await start(net0001_after=5.0, net0000_after=0.5)
    async with dial(emulator) as ws:
        for _ in range(3):
            await asyncio.sleep(0.1)
            await ws.send('{"type": "KeepAlive"}')
        got = await read(ws)
    assert [m["type"] for m in got] == ["Metadata"]
    assert (ws.close_code, "net0000" in (ws.close_reason or "")) == (1011, True)


async def test_max_message_bytes(start: Starter) -> None:
    """A message that is too big ends the connection with 1009."""
    emulator = await start(max_message_bytes=1000)
    async with dial(emulator) as ws:
        await ws.send(bytes(1001))
        await read(ws)
    assert ws.close_code == 1009


async def silent_client(emulator: Emulator) -> socket.socket:
    """A client that upgrades and then neither reads nor writes."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", emulator.port))
    head = (
        f"GET /v1/listen?{LISTEN} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Authorization: Token k\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    )
    await loop.sock_sendall(sock, head.encode())
    await until(lambda: emulator.connections)
    return sock


@pytest.mark.parametrize(("limit_bytes", "dropped"), [(1000, True), (16_000_000, False)])
async def test_max_send_buffer_bytes(start: Starter, limit_bytes: int, dropped: bool) -> None:
    """A client that leaves more than this unread is reset."""
    fault = Fault("oversized", size_bytes=12_000_000)
    emulator = await start(max_send_buffer_bytes=limit_bytes, faults=(fault,))
    with await silent_client(emulator):
        await asyncio.sleep(0.1)
        (record,) = emulator.connections
        assert record.ended_how == ("reset" if dropped else None)


@pytest.mark.parametrize(("seconds", "dropped"), [(0.1, True), (5.0, False)])
async def test_close_timeout(start: Starter, seconds: float, dropped: bool) -> None:
    """A client that does not answer the close is dropped after the timeout."""
    emulator = await start(close_timeout=seconds, faults=(Fault("close"),))
    with await silent_client(emulator) as sock:
        await asyncio.sleep(0.3)
        received = sock.recv(4096)
        assert b"101 Switching" in received
        try:
            gone = sock.recv(4096) == b""
        except BlockingIOError:
            gone = False
        assert gone is dropped


async def test_max_keyterms(start: Starter) -> None:
    """Too many keyterms are a ConfigureFailure."""
    emulator = await start(max_keyterms=1)
    async with dial(emulator) as ws:
        await ws.send('{"type":"Configure","keyterms":["a","b"]}')
        assert json.loads(await ws.recv())["code"] == "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"


async def test_script_knobs(start: Starter) -> None:
    """Text, tempo and repetition of the script."""
    emulator = await start(
        "script", script=("a b",), script_word=0.2, script_gap=0.1, script_pause=0.4, script_loop=True
    )
    got = await transcribe(emulator, bytes(8000 * 2))
    words = [w for m in results(got, final=True) for w in m["channel"]["alternatives"][0]["words"]]
    assert [w["word"] for w in words[:4]] == ["a", "b", "a", "b"]
    starts = [w["start"] for w in words[:4]]
    assert starts == pytest.approx([0.2, 0.5, 1.2, 1.5])


async def test_the_seed_decides(start: Starter) -> None:
    """One seed, one behaviour; another seed, another."""
    audio, _ = call(30)
    seen = []
    for seed in (1, 1, 2):
        emulator = await start(seed=seed)
        got = await transcribe(emulator, audio, NO_ENDPOINT)
        seen.append([(m["start"], m["is_final"]) for m in results(got)])
    assert seen[0] == seen[1] != seen[2]


async def test_records_can_be_light(start: Starter) -> None:
    """Without capture only counts are kept."""
    emulator = await start(capture_audio=False, capture_texts=False)
    await transcribe(emulator, SILENCE)
    (record,) = emulator.connections
    assert (record.audio, record.boundaries, record.texts, record.sent) == (b"", [], [], [])
    assert (record.audio_bytes, record.audio_messages, record.text_count, record.sent_count) == (
        8000,
        5,
        1,
        2,
    )


async def test_keep_closed(start: Starter) -> None:
    """Only the last closed records are kept."""
    emulator = await start(keep_closed=2)
    for _ in range(4):
        await transcribe(emulator, b"\xff")
    await until(lambda: [record.id for record in emulator.connections] == ["c3", "c4"])


async def test_a_path_that_does_not_exist(start: Starter) -> None:
    """There are no other WebSockets."""
    emulator = await start()
    with pytest.raises(InvalidStatus) as refused:
        await dial(emulator, path="/v3/listen")
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"window_min": 9.0},
        {"step": 0},
        {"short_final": 2},
        {"surprise": 1},
        {"faults": [{"kind": "unheard-of"}]},
        {"faults": [{"kind": "reset", "nth": 0}]},
        {"ingest_speed": float("inf")},
        {"deny_status": 200},
    ],
)
def test_knobs_that_do_not_fit(changes: dict[str, Any]) -> None:
    """Wrong knobs are one line that names them."""
    with pytest.raises(ConfigError) as caught:
        changed(Knobs(), changes)
    assert "\n" not in str(caught.value)


def test_knobs_from_json_and_back() -> None:
    """A file of knobs is read as it was written."""
    knobs = Knobs(faults=(Fault("close", nth=2, code=1012, after_audio=1.5),), time_scale=3.0)
    assert parse(msgspec.json.encode(knobs)) == knobs
    with pytest.raises(ConfigError):
        parse(b"[]")
    assert "faults" in schema()["$defs"]["Knobs"]["properties"]
