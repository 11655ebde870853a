"""The gateway adds nothing, leaves nothing out, and changes nothing (continuity.md I19)."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any, NamedTuple

import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import Config
from gateway.emulator import ConnectionRecord
from gateway.emulator.engines import EngineName
from gateway.emulator.sound import Format
from gateway.emulator.tokens import ids, interleave, speech
from tests.fakes import stand as stands
from tests.fakes.stand import BRISK, Stand
from tests.fakes.wire_client import BINARY, PING, TEXT, WireClient, fragments, frame

BRISK_WINDOWS: dict[str, Any] = {
    "window_min": 0.3,
    "window_max": 0.6,
    "interim_interval": 0.15,
    "silence_window": 0.2,
    "step": 0.02,
    "finalize_minimum": 0.02,
    "script_word": 0.09,
    "script_gap": 0.02,
    "script_pause": 0.15,
}
"""Windows so short that a second of audio brings all there is: interims, finals, onsets, lulls."""
V1_TEXTS = (
    '{"type":"KeepAlive"}',
    '{"type": "KeepAlive"}',
    '{"type":"Finalize"}',
    '{ "type": "Finalize", "channel": 0 }',
    '{"channel":1,"type":"Finalize"}',
    '{"type":"Finalize","channel":"one"}',
    '{"type":"Configure","keyterms":["Höhe","b"]}',
    '{"type":"Configure","keyterms":7}',
    '{"type":"Sync"}',
    '{"type":"KeepAlive "}',
    '{"type":"Surprise","n":[1,2.50,null]}',
    '{"kind":"Finalize"}',
    '["Finalize"]',
    "5",
)
NO_JSON = ("", "Finalize", '{"type":"Finalize"', "\N{WAVING HAND SIGN}", '{"type":NaN}')
FLUX_TEXTS = (
    '{"type":"ForceEndTurn"}',
    '{"type":"Configure","thresholds":{"eot_threshold":0.8}}',
    '{"type":"Configure","thresholds":{"eot_threshold":8}}',
    '{"type":"Configure","keyterms":["a","b"],"numerals":true}',
)
V1_OPTIONS = (
    "interim_results=true",
    "vad_events=true",
    "interim_results=true&utterance_end_ms=1000",
    "endpointing=false",
    "endpointing=50",
    "smart_format=true",
    "diarize=true",
    "search=good+morning",
    "extra=a:1&extra=b:2",
    "unheard_of=%20+x",
)
FLUX_OPTIONS = ("eager_eot_threshold=0.4", "eot_threshold=0.6", "eot_timeout_ms=500", "keyterm=a+b&keyterm=c")


class Case(NamedTuple):
    """One conversation; everything random in it follows from `seed`."""

    path: str
    engine: EngineName
    encoding: str
    channels: int
    multichannel: bool
    options: tuple[str, ...]
    texts: tuple[str, ...]
    empty_end: bool
    seed: int

    @property
    def query(self) -> str:
        model = "model=nova-3" if self.path == "/v1/listen" else "model=flux-general-en"
        raw = f"encoding={self.encoding}&sample_rate=8000&channels={self.channels}"
        parts = [model, *self.options]
        parts += [] if self.encoding == "wav" else [raw]
        parts += ["multichannel=true"] if self.multichannel else []
        return "&".join(parts)


v1_cases = st.builds(
    Case,
    path=st.just("/v1/listen"),
    engine=st.sampled_from(["tokens", "script"]),
    encoding=st.sampled_from(["mulaw", "alaw", "linear16", "linear32", "wav", "opus"]),
    channels=st.sampled_from([1, 1, 2]),
    multichannel=st.booleans(),
    options=st.lists(st.sampled_from(V1_OPTIONS), max_size=4, unique=True).map(tuple),
    texts=st.lists(st.sampled_from(V1_TEXTS + NO_JSON), max_size=6).map(tuple),
    empty_end=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
flux_cases = st.builds(
    Case,
    path=st.just("/v2/listen"),
    engine=st.sampled_from(["tokens", "script"]),
    encoding=st.sampled_from(["mulaw", "linear16", "opus"]),
    channels=st.just(1),
    multichannel=st.just(False),
    options=st.lists(st.sampled_from(FLUX_OPTIONS), max_size=3, unique=True).map(tuple),
    texts=st.lists(st.sampled_from(FLUX_TEXTS), max_size=4).map(tuple),
    empty_end=st.just(False),
    seed=st.integers(0, 2**32 - 1),
)


class Heard(NamedTuple):
    """What came of a conversation, as its client heard it."""

    messages: list[Any]
    code: int
    reason: str
    request_id: str


def recording(case: Case, rng: random.Random) -> bytes:
    """About a second and a half of audio."""
    fmt = Format("linear16" if case.encoding == "wav" else case.encoding, 8000)
    if case.encoding == "opus":
        return rng.randbytes(6000)
    one = [speech(ids(10, rng), fmt, rng, BRISK)[0] for _ in range(case.channels)]
    audio = interleave(one, fmt)
    if case.encoding == "wav":
        size = len(audio).to_bytes(4, "little")
        form = b"\x01\0" + case.channels.to_bytes(2, "little") + (8000).to_bytes(4, "little")
        form += (16000 * case.channels).to_bytes(4, "little") + b"\x02\0\x10\0"
        return b"RIFF" + size + b"WAVEfmt \x10\0\0\0" + form + b"data" + size + audio
    return audio


def conversation(case: Case) -> bytes:
    """Every byte that the client sends after its handshake."""
    rng = random.Random(case.seed)
    audio = recording(case, rng)
    # The first message holds the header whole: what a container is, is told from the first message.
    first = 44 if case.encoding == "wav" else 1
    cuts = sorted({*(rng.randrange(first, len(audio)) for _ in range(rng.randrange(1, 60))), len(audio)})
    steps: list[tuple[int, bytes]] = []
    at = 0
    for cut in cuts:
        steps.append((BINARY, audio[at:cut]))
        at = cut
    for text in case.texts:
        steps.insert(rng.randrange(len(steps) + 1), (TEXT, text.encode()))
    steps.append((BINARY, b"") if case.empty_end else (TEXT, stands.CLOSE_STREAM.encode()))
    out = b""
    for opcode, payload in steps:
        if payload and rng.random() < 0.3:
            pieces = [rng.randrange(len(payload) + 1) for _ in range(rng.randrange(1, 5))]
            out += fragments(opcode, payload, pieces, frame(PING, b"?") if rng.random() < 0.5 else b"")
        else:
            out += frame(opcode, payload)
    return out


async def converse(address: tuple[str, int], case: Case, timing: int) -> Heard:
    rng = random.Random(case.seed + timing)
    key = [("Authorization", "Token k")]
    async with await WireClient.open(address, f"{case.path}?{case.query}", key) as client:
        assert client.status == 101, client.body
        speaking = asyncio.create_task(client.dribble(conversation(case), rng))
        texts, code, reason = await client.messages()
        await speaking
        request_id = client.header("dg-request-id")
    assert request_id
    return Heard([json.loads(text) for text in texts], code, reason, request_id)


async def compare(case: Case, **config: Any) -> None:
    """The same conversation straight to an emulator, and through a gateway to its twin."""
    stand = Stand()
    try:
        straight = await stand.emulator(case.engine, seed=case.seed, **BRISK_WINDOWS)
        twin = await stand.emulator(case.engine, seed=case.seed, **BRISK_WINDOWS)
        gateway = await stand.run(unpaced(stands.settings(twin.url, **config)))
        wanted = await converse((straight.host, straight.port), case, 0)
        got = await converse(gateway.address, case, 1)
        (direct,), (carried,) = straight.connections, twin.connections
    finally:
        await stand.close()
    check_results(wanted, got)
    check_upstream(case, direct, carried)


def unpaced(config: Config) -> Config:
    """The pace is not the subject here, and a second of burst would make every example take one."""
    session = msgspec.structs.replace(config.session, pace=1000.0, catch_up_pace=1000.0)
    return msgspec.structs.replace(config, session=session)


def check_results(wanted: Heard, got: Heard) -> None:
    for heard in (wanted, got):
        assert set(request_ids(heard.messages)) <= {heard.request_id}
    # Text that is no JSON is answered by the gateway itself: the same answer in other words, and not always
    # between the same two results.
    assert [m["message"] for m in wanted.messages if not_json(m)] == [
        m["message"] for m in got.messages if not_json(m)
    ]
    assert without_ids(wanted) == without_ids(got)
    assert (wanted.code, wanted.reason) == (got.code, got.reason)


def check_upstream(case: Case, direct: ConnectionRecord, carried: ConnectionRecord) -> None:
    assert carried.query == direct.query
    assert carried.audio == direct.audio
    ending = [stands.CLOSE_STREAM] if case.empty_end else []
    assert carried.texts == [t for t in direct.texts if not keepalive(t)] + ending
    if case.encoding == "opus":
        assert carried.boundaries == [size for size in direct.boundaries if size]


def not_json(message: Any) -> bool:
    return message["type"] == "Error" and message.get("message") in NO_JSON


def keepalive(text: str) -> bool:
    try:
        message = json.loads(text)
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("type") == "KeepAlive"


def request_ids(value: Any) -> list[str]:
    """Every request_id at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in request_ids(item)]
    if not isinstance(value, dict):
        return []
    own = [value["request_id"]] if "request_id" in value else []
    return own + [found for item in value.values() for found in request_ids(item)]


def without_ids(heard: Heard) -> list[Any]:
    """The messages, without what must differ between two connections."""
    if heard.code == 1005 and heard.messages:
        # The emulator guesses this one differently for audio that came in one piece or in two.
        heard.messages[-1].pop("end_of_turn_confidence", None)
    texts = [
        json.dumps({k: v for k, v in m.items() if k != "created"}) for m in heard.messages if not not_json(m)
    ]
    return [json.loads(text.replace(heard.request_id, "<request id>")) for text in texts]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(v1_cases)
def test_listen_is_transparent(case: Case) -> None:
    """Whatever a v1 client says, however it is cut: same results, same order, same bytes upstream."""
    uvloop.run(compare(case))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(flux_cases)
def test_flux_is_transparent(case: Case) -> None:
    """The same for Flux: Connected first, turns as they come, the end without a status."""
    uvloop.run(compare(case))


@pytest.mark.parametrize("batch_ms", [0, 20])
async def test_paced_audio_is_transparent(batch_ms: int) -> None:
    """The real pace and the joining of frames change when audio goes up, not what comes back."""
    options = ("interim_results=true", "vad_events=true")
    texts = ('{"type":"Finalize"}',) * 3
    case = Case("/v1/listen", "tokens", "mulaw", 1, False, options, texts, False, 7)
    await compare(case, server={"batch_ms": batch_ms})
