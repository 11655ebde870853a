"""A live v1 connection on a good day."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from typing import Any

import pytest
from deepgram import AsyncDeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from gateway.emulator.sound import Format
from gateway.emulator.tokens import FRAGMENT, interleave
from tests.emulator.conftest import Starter
from tests.emulator.wire import (
    LISTEN,
    MULAW,
    call,
    check_contiguous,
    check_strictly,
    dial,
    heard,
    read,
    results,
    said,
    send,
    texts,
    transcribe,
)

EVERYTHING = (
    f"{LISTEN}&interim_results=true&vad_events=true&utterance_end_ms=1000&smart_format=true&diarize=true"
    "&detect_entities=true&search=hello&extra=call:42&language=multi"
)


@pytest.mark.parametrize(
    "fmt", [MULAW, Format("alaw", 8000), Format("linear16", 16000), Format("linear32", 8000)]
)
async def test_every_word_once_and_windows_without_holes(start: Starter, fmt: Format) -> None:
    """All tokens come back once, in windows that follow one another up to the end of the audio."""
    emulator = await start()
    audio, tokens = call(20, fmt)
    query = f"model=nova-3&encoding={fmt.encoding}&sample_rate={fmt.sample_rate}&interim_results=true"
    got = await transcribe(emulator, audio, query)
    assert heard(got) == said(tokens)
    check_contiguous(results(got, final=True))
    assert got[-1]["type"] == "Metadata"
    assert got[-1]["duration"] == pytest.approx(len(audio) / fmt.bytes_per_second, abs=1e-4)


async def test_messages_do_not_depend_on_the_chunks(start: Starter) -> None:
    """The same audio in other pieces gives the same results."""
    emulator = await start()
    audio, _ = call(8)
    sent: list[list[str]] = []
    for size_bytes in (160, 1999):
        async with dial(emulator, f"{LISTEN}&interim_results=true") as ws:
            await send(ws, audio, size_bytes)
            await ws.send('{"type":"CloseStream"}')
            sent.append([f"{m['start']} {m['duration']} {m['is_final']}" for m in results(await read(ws))])
    assert [line for line in sent[0] if line.endswith("True")] == [
        line for line in sent[1] if line.endswith("True")
    ]


async def test_every_message_type_is_valid_for_the_sdk(start: Starter) -> None:
    """Each kind of v1 message passes the SDK's models without coercion."""
    emulator = await start()
    audio, _ = call(6)
    async with dial(emulator, EVERYTHING) as ws:
        await send(ws, audio + b"\xff" * 16000)
        for text in ('{"type":"Finalize"}', '{"type":"Nonsense"}', '{"type":"Configure","keyterms":["a"]}'):
            await ws.send(text)
        many = json.dumps({"type": "Configure", "keyterms": ["x"] * 200})
        for text in (many, '{"type":"CloseStream"}'):
            await ws.send(text)
        got = await read(ws)
    check_strictly(got)
    kinds = {m["type"] for m in got}
    assert kinds == {
        "Results", "Metadata", "SpeechStarted", "UtteranceEnd", "Error",
        "ConfigureSuccess", "ConfigureFailure",
    }  # fmt: skip


async def test_key_order_and_field_values(start: Starter) -> None:
    """Results carry every field in the wire's order; seconds are float32; the request id is one."""
    emulator = await start()
    audio, _ = call(6)
    async with dial(emulator, EVERYTHING) as ws:
        assert ws.response is not None
        request_id = ws.response.headers["dg-request-id"]
        await send(ws, audio)
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws)
    finals = results(got, final=True)
    order = ["type", "channel_index", "duration", "start", "is_final", "speech_final", "channel", "metadata"]
    assert list(finals[0])[:9] == [*order, "from_finalize"]
    assert uuid.UUID(request_id).version == 7
    assert {m["metadata"]["request_id"] for m in results(got)} == {got[-1]["request_id"]} == {request_id}
    assert all(m["metadata"]["extra"] == {"call": "42"} for m in finals)
    for m in finals:
        assert struct.unpack("f", struct.pack("f", m["start"]))[0] == m["start"]
    words = [word for m in finals for word in m["channel"]["alternatives"][0]["words"]]
    assert words[0]["speaker"] == 0
    assert {word["speaker"] for word in words} == {0, 1}
    assert all(word["punctuated_word"] for word in words)


async def test_the_first_second_is_silent(start: Starter) -> None:
    """Nothing is said on connect; interims grow from one start about once a second."""
    emulator = await start(silence_window=30.0)
    async with dial(emulator, f"{LISTEN}&interim_results=true") as ws:
        await send(ws, b"\xff" * 8000 * 4)
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws)
    interims = results(got, final=False)
    assert [m["duration"] for m in interims] == [1.0, 2.0, 3.0, 4.0]
    assert {m["start"] for m in interims} == {0.0}


async def test_silence_is_acknowledged(start: Starter) -> None:
    """Empty finals cover silence."""
    emulator = await start()
    got = await transcribe(emulator, b"\xff" * 8000 * 7)
    finals = results(got, final=True)
    check_contiguous(finals)
    assert len(finals) >= 3
    assert texts(got) == []


async def test_without_interim_results_there_are_only_finals(start: Starter) -> None:
    """interim_results is off unless asked for."""
    emulator = await start()
    audio, _ = call()
    assert results(await transcribe(emulator, audio), final=False) == []


async def test_channels_have_their_own_windows(start: Starter) -> None:
    """multichannel gives each channel its words and its own watermark."""
    emulator = await start()
    (left, left_tokens), (right, right_tokens) = call(10, seed=1), call(14, seed=2)
    audio = interleave([left, right], Format("mulaw", 8000, 2))
    got = await transcribe(emulator, audio, f"{LISTEN}&channels=2&multichannel=true")
    assert heard(got, channel=0) == said(left_tokens)
    assert heard(got, channel=1) == said(right_tokens)
    assert {tuple(m["channel_index"]) for m in results(got)} == {(0, 2), (1, 2)}
    cuts = [[m["start"] for m in results(got, final=True, channel=c)] for c in (0, 1)]
    assert cuts[0] != cuts[1]
    for channel in (0, 1):
        check_contiguous(results(got, final=True, channel=channel))


async def test_speech_started_and_utterance_end(start: Starter) -> None:
    """Voice begins are told once each; the end of an utterance names its last word's end."""
    emulator = await start()
    audio, _ = call(3)
    got = await transcribe(
        emulator,
        audio + b"\xff" * 16000,
        f"{LISTEN}&interim_results=true&vad_events=true&utterance_end_ms=1000",
    )
    begins = [m["timestamp"] for m in got if m["type"] == "SpeechStarted"]
    assert begins
    assert begins == sorted(set(begins))
    ends = [m["last_word_end"] for m in got if m["type"] == "UtteranceEnd"]
    words = [w for m in results(got, final=True) for w in m["channel"]["alternatives"][0]["words"]]
    assert ends == [words[-1]["end"]]


async def test_finalize_flushes_up_to_where_it_was_sent(start: Starter) -> None:
    """The final covers the audio before the message, and says so."""
    emulator = await start(silence_window=30.0)
    async with dial(emulator) as ws:
        await send(ws, b"\xff" * 12345)
        await ws.send('{"type": "Finalize"}')
        await send(ws, b"\xff" * 8000)
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws)
    first, second = results(got)
    assert (first["from_finalize"], first["speech_final"]) == (True, True)
    assert first["duration"] == pytest.approx(12345 / 8000, abs=1e-4)
    assert (second["from_finalize"], second["start"]) == (False, first["duration"])


async def test_finalize_of_one_channel(start: Starter) -> None:
    """A channel in Finalize concerns that channel."""
    emulator = await start(silence_window=30.0)
    async with dial(emulator, f"{LISTEN}&channels=2&multichannel=true") as ws:
        await send(ws, b"\xff" * 16000)
        await ws.send('{"type":"Finalize","channel":1}')
        message = json.loads(await ws.recv())
        await ws.send('{"type":"CloseStream"}')
        rest = await read(ws)
    assert (message["channel_index"], message["from_finalize"]) == ([1, 2], True)
    assert [m["channel_index"] for m in results(rest)] == [[0, 2]]


async def test_an_empty_message_ends_the_stream(start: Starter) -> None:
    """The old end-of-stream still works."""
    emulator = await start()
    async with dial(emulator) as ws:
        await send(ws, b"\xff" * 8000)
        await ws.send(b"")
        got = await read(ws)
    assert [m["type"] for m in got] == ["Results", "Metadata"]
    assert (ws.close_code, ws.close_reason) == (1000, "")


async def test_unreadable_text_is_answered_and_forgiven(start: Starter) -> None:
    """A wrong type is a SchemaError in Deepgram's words; KeepAlive and the stream go on."""
    emulator = await start()
    async with dial(emulator) as ws:
        await ws.send('{"type":"KeepAlive "}')
        error = json.loads(await ws.recv())
        await ws.send('{"type":"KeepAlive"}')
        await ws.send('{"type":"CloseStream"}')
        got = await read(ws)
    assert error["description"] == (
        "Could not deserialize last text message: unknown variant `KeepAlive `, expected one of "
        "`CloseStream`, `Configure`, `Sync`, `KeepAlive`, `Finalize` at line 1 column 20"
    )
    assert (error["variant"], error["message"]) == ("SchemaError", '{"type":"KeepAlive "}')
    assert [m["type"] for m in got] == ["Metadata"]
    assert "models" not in got[0]


async def test_configure_needs_nova_3(start: Starter) -> None:
    """Keyterms on another model are a ConfigureFailure."""
    emulator = await start()
    async with dial(emulator, LISTEN.replace("nova-3", "nova-2")) as ws:
        await ws.send('{"type":"Configure","keyterms":["a"]}')
        assert json.loads(await ws.recv())["code"] == "CONFIGURE_KEYTERMS_NOT_SUPPORTED"


@pytest.mark.parametrize("path", ["/v1/listen", "//v1/listen"])
async def test_both_spellings_of_the_path(start: Starter, path: str) -> None:
    """A base URL that ends in a slash works."""
    emulator = await start()
    assert (await transcribe(emulator, b"\xff" * 800, path=path))[-1]["type"] == "Metadata"


async def test_a_wav_tells_its_own_format(start: Starter) -> None:
    """Without encoding the RIFF header is read, and is no audio."""
    emulator = await start()
    audio, tokens = call(5, Format("linear16", 16000))
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16, b"data", 0
    )
    got = await transcribe(emulator, head + audio, "model=nova-3")
    assert heard(got) == said(tokens)
    assert got[-1]["duration"] == pytest.approx(len(audio) / 32000, abs=1e-4)


async def test_packets_have_an_estimated_clock(start: Starter) -> None:
    """Flac is taken, and its clock runs by the knob."""
    emulator = await start(estimated_bytes_per_second=1000)
    got = await transcribe(emulator, b"fLaC" + bytes(4996), "model=nova-3")
    assert got[-1]["duration"] == 5.0
    check_contiguous(results(got, final=True))


async def test_bytes_that_are_no_audio_end_with_1008(start: Starter) -> None:
    """Without encoding and without a known container there is nothing to decode."""
    emulator = await start()
    async with dial(emulator, "model=nova-3") as ws:
        await ws.send(b"\x7f" * 100)
        await read(ws)
    assert ws.close_code == 1008
    assert "DATA-0000" in (ws.close_reason or "")


async def test_a_stream_cut_within_a_token_shows_a_fragment(start: Starter) -> None:
    """What came in part is visible."""
    emulator = await start()
    audio, tokens = call(4)
    got = await transcribe(emulator, audio[: tokens[-1].end_sample - 300])
    assert texts(got)[-1] == FRAGMENT


async def test_the_script_is_said_whatever_comes(start: Starter) -> None:
    """The script engine needs only a clock."""
    emulator = await start("script", script=("good morning",), script_loop=False)
    got = await transcribe(emulator, bytes(8000 * 3))
    assert texts(got) == ["good", "morning"]


@pytest.mark.parametrize(
    ("query", "status", "code", "text"),
    [
        ("encoding=mulaw", 400, "INVALID_QUERY_PARAMETER", "sample_rate"),
        ("model=nova-9", 400, "Bad Request", "No such model/version combination found."),
        ("model=nova-3&language=english", 400, "Bad Request", "No such model"),
        ("model=nova-3&keywords=a:1", 400, "INVALID_QUERY_PARAMETER", "Please use `keyterm` instead."),
        ("model=flux-general-en", 400, "Bad Request", "No such model"),
        ("utterance_end_ms=1000", 400, "INVALID_QUERY_PARAMETER", "interim_results"),
        ("encoding=mulaw&sample_rate=8k", 400, "INVALID_QUERY_PARAMETER", "invalid digit found in string"),
        ("encoding=mulaw&sample_rate=8000&channels=21", 400, "INVALID_QUERY_PARAMETER", "channels"),
        ("punctuate=yes", 400, "INVALID_QUERY_PARAMETER", "punctuate"),
        ("encoding=mp9&sample_rate=8000", 400, "INVALID_QUERY_PARAMETER", "mp9"),
        ("diarize_model=v2", 400, "INVALID_QUERY_PARAMETER", "diarize_model"),
        ("model=whisper-large", 405, "METHOD_NOT_ALLOWED", "Whisper"),
    ],
)
async def test_queries_that_are_refused(
    start: Starter, query: str, status: int, code: str, text: str
) -> None:
    """Refusals carry a JSON body, the same text in dg-error, and a request id."""
    emulator = await start()
    with pytest.raises(InvalidStatus) as caught:
        await dial(emulator, query)
    response = caught.value.response
    body: dict[str, Any] = json.loads(response.body)
    assert (response.status_code, body["err_code"]) == (status, code)
    assert text in body["err_msg"]
    assert response.headers["dg-error"] == body["err_msg"]
    assert response.headers["dg-request-id"] == body["request_id"] == emulator.refusals[0].request_id


async def test_unknown_parameters_are_ignored(start: Starter) -> None:
    """What Deepgram does not know it does not mind."""
    emulator = await start()
    got = await transcribe(emulator, b"\xff" * 800, f"{LISTEN}&surprise=1&tag=a&tag=b")
    assert got[-1]["type"] == "Metadata"


async def test_no_credentials_no_stream(start: Starter) -> None:
    """A missing key is 401; so is a wrong one where keys are listed."""
    emulator = await start(api_keys=("right",))
    for key in ("", "wrong"):
        with pytest.raises(InvalidStatus) as caught:
            await dial(emulator, key=key)
        assert caught.value.response.status_code == 401
    async with dial(emulator, key="right"):
        assert emulator.connections[0].headers["authorization"].startswith("Token sha256:")


async def test_the_subprotocol_is_the_scheme_alone(start: Starter) -> None:
    """A key offered beside `token` opens the door and is never echoed."""
    emulator = await start(api_keys=("secret",))
    offered = [Subprotocol(name) for name in ("token", "secret")]
    async with connect(f"ws://127.0.0.1:{emulator.port}/v1/listen?{LISTEN}", subprotocols=offered) as ws:
        assert ws.subprotocol == "token"
    assert "secret" not in str(emulator.connections[0].detail())


@pytest.mark.filterwarnings("ignore:websockets:DeprecationWarning")  # the SDK's own use of old names
async def test_the_sdk_holds_a_conversation(start: Starter) -> None:
    """deepgram-sdk 7 dials, sends, listens and closes."""
    emulator = await start()
    audio, tokens = call(6)
    ws_url = emulator.url.replace("http", "ws")
    environment = DeepgramClientEnvironment(
        base=emulator.url, production=ws_url, agent=ws_url, agent_rest=emulator.url
    )
    client = AsyncDeepgramClient(api_key="k", environment=environment)
    got: list[Any] = []
    async with client.listen.v1.connect(model="nova-3", encoding="mulaw", sample_rate=8000) as connection:
        connection.on(EventType.MESSAGE, got.append)
        listening = asyncio.create_task(connection.start_listening())
        for at in range(0, len(audio), 800):
            await connection.send_media(audio[at : at + 800])
        await connection.send_close_stream()
        await asyncio.wait_for(listening, 5)
    finals = [message for message in got if message.type == "Results" and message.is_final]
    assert heard([json.loads(message.json()) for message in finals]) == said(tokens)
    assert got[-1].type == "Metadata"
