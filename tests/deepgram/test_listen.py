"""The two streaming dialects as a session understands them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.listen import ListenV1, ListenV2
from gateway.deepgram.messages import decode_flux, decode_live
from gateway.deepgram.recogniser import Kind, Reading, Shift

SAMPLES = Path(__file__).parent / "samples"
RID = "0f6c1f5e-7a3b-4c56-9d20-6b1f0a9e4c11"
V1, V2 = ListenV1(), ListenV2()
BOTH = pytest.mark.parametrize("recogniser", [V1, V2], ids=["v1", "v2"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def sample(name: str) -> bytes:
    return (SAMPLES / f"{name}.json").read_bytes()


def shifted(recogniser: ListenV1 | ListenV2, raw: bytes, shift: Shift) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(raw)
    recogniser.shift(message, shift)
    return message


def results(**changes: Any) -> bytes:
    return json.dumps({**json.loads(sample("live_s2c_results_final")), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("results_interim", Reading(Kind.INTERIM, end=1.08, request_id=RID)),
        ("results_final", Reading(Kind.FINAL, end=3.26, request_id=RID)),
        (
            "results_from_finalize",
            Reading(
                Kind.FINAL, start=6.9, end=6.9 + 0.62, from_finalize=True, ends_speech=True, request_id=RID
            ),
        ),
        ("results_multichannel_ch1of2", Reading(Kind.FINAL, 1, 2, end=3.2, ends_speech=True, request_id=RID)),
        ("metadata_full", Reading(Kind.SUMMARY, end=44.26, request_id=RID)),
        ("speech_started", Reading(Kind.SPEECH_BEGAN, end=9.54)),
        ("utterance_end", Reading(Kind.SPEECH_ENDED, end=2.395)),
        ("configure_success", Reading(Kind.CONFIGURED, accepted=True, request_id=RID)),
        ("error_schema", Reading(Kind.OTHER)),
    ],
)
def test_v1_readings(name: str, reading: Reading) -> None:
    """What each live message means to a session."""
    assert V1.read(sample(f"live_s2c_{name}")) == reading


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("connected", Reading(Kind.HELLO, sequence=0, request_id=RID)),
        ("turn_start", Reading(Kind.INTERIM, end=0.8, begins_turn=True, sequence=2, request_id=RID)),
        ("turn_eager_eot", Reading(Kind.INTERIM, end=1.6, may_end_turn=True, sequence=3, request_id=RID)),
        ("turn_resumed", Reading(Kind.INTERIM, end=2.0, sequence=4, request_id=RID)),
        ("turn_end", Reading(Kind.FINAL, start=-1.0, end=2.9, ends_speech=True, sequence=5, request_id=RID)),
        ("warning", Reading(Kind.OTHER, sequence=8, request_id=RID)),
        ("error", Reading(Kind.OTHER, sequence=9)),
    ],
)
def test_v2_readings(name: str, reading: Reading) -> None:
    """What each Flux message means: only the end of a turn is final, and it covers all since the last."""
    assert V2.read(sample(f"flux_s2c_{name}")) == reading


@BOTH
@pytest.mark.parametrize("kind", ["Success", "Failure"])
def test_configure_replies(recogniser: ListenV1 | ListenV2, kind: str) -> None:
    """Whether it was taken, whatever the order of the members."""
    reading = recogniser.read(json.dumps({"request_id": RID, "type": f"Configure{kind}"}).encode())
    assert (reading.kind, reading.accepted) == (Kind.CONFIGURED, kind == "Success")


@BOTH
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"{}", b'{"type":1}', b'{"type":"Results"'])
def test_what_is_no_message_raises(recogniser: ListenV1 | ListenV2, raw: bytes) -> None:
    """The session counts it and goes on."""
    with pytest.raises(msgspec.DecodeError):
        recogniser.read(raw)


@BOTH
def test_nesting_without_end_raises(recogniser: ListenV1 | ListenV2) -> None:
    """The stack is not exhausted."""
    with pytest.raises((RecursionError, msgspec.DecodeError)):
        recogniser.read(b'{"type":"Results","x":' + b"[" * 200_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_index": [5, 1]},
        {"channel_index": [-1, 1]},
        {"channel_index": [0, 0]},
        {"channel_index": [0, 10**9]},
        {"start": -1.0},
        {"duration": -1.0},
        {"start": 1e300},
    ],
)
def test_results_that_cannot_be_are_malformed(changes: dict[str, Any]) -> None:
    """Neither a channel that is not there nor a time beyond all days is counted with (faults.md 24)."""
    with pytest.raises(msgspec.ValidationError):
        V1.read(results(**changes))


@pytest.mark.parametrize("window", [(2.0, 1.0), (-1.0, 1.0), (0.0, 1e300)])
def test_turns_that_cannot_be_are_malformed(window: tuple[Any, Any]) -> None:
    """The same for Flux (faults.md 24)."""
    turn = json.loads(sample("flux_s2c_turn_end"))
    turn["audio_window_start"], turn["audio_window_end"] = window
    with pytest.raises(msgspec.ValidationError):
        V2.read(json.dumps(turn).encode())


@pytest.mark.parametrize(
    "changes", [{"channel_index": [0]}, {"start": "0"}, {"is_final": None}, {"metadata": 7}]
)
def test_results_of_another_shape_are_somebody_elses(changes: dict[str, Any]) -> None:
    """Well-formed, but not as we know it: passed on, not acted upon (faults.md 23)."""
    assert V1.read(results(**changes)) == Reading(Kind.OTHER)


def test_shifted_results_are_wholly_on_the_other_clock() -> None:
    """Window, words and search hits move; what is no time or not known here stays (continuity.md I3)."""
    message = json.loads(sample("live_s2c_results_final"))
    message["channel"]["search"] = [{"query": "x", "hits": [{"confidence": 1, "start": 1, "end": 2.5}]}]
    message["tomorrow"] = {"start": 1.0}
    raw = json.dumps(message).encode()
    moved = shifted(V1, raw, Shift(seconds=10.0, start=10.0, end=13.25))
    assert (moved["start"], moved["duration"]) == (10.0, 3.25)
    words = [(w["start"], w["end"]) for w in moved["channel"]["alternatives"][0]["words"]]
    assert words == [(10.4, 10.64), (10.64, 11.02)]
    assert moved["channel"]["search"][0]["hits"] == [{"confidence": 1, "start": 11, "end": 12.5}]
    for key in ("is_final", "channel_index", "metadata", "from_finalize", "tomorrow"):
        assert moved[key] == message[key]
    assert list(moved) == list(message)
    decode_live(json.dumps(moved))


def test_shifted_events() -> None:
    """Speech events move by the offset; -1 is no time; the summary gets the whole call's duration."""
    shift = Shift(seconds=10.0, duration=99.5)
    assert shifted(V1, sample("live_s2c_speech_started"), shift)["timestamp"] == 19.54
    assert shifted(V1, sample("live_s2c_utterance_end"), shift)["last_word_end"] == 12.395
    over = b'{"type":"UtteranceEnd","channel":[0,1],"last_word_end":-1}'
    assert shifted(V1, over, shift)["last_word_end"] == -1
    assert shifted(V1, sample("live_s2c_metadata_full"), shift)["duration"] == 99.5
    error = sample("live_s2c_error_schema")
    assert shifted(V1, error, shift) == json.loads(error)


def test_shifted_speakers() -> None:
    """Labels of another connection are other labels (continuity.md I3)."""
    message = json.loads(sample("live_s2c_results_final"))
    words = message["channel"]["alternatives"][0]["words"]
    words[0]["speaker"], words[1]["speaker"] = 0, 1
    moved = shifted(V1, json.dumps(message).encode(), Shift(speakers=2))
    assert [word["speaker"] for word in moved["channel"]["alternatives"][0]["words"]] == [2, 3]


def test_shifted_turns() -> None:
    """Flux counts turns and messages; both go on."""
    raw = sample("flux_s2c_turn_end")
    moved = shifted(V2, raw, Shift(seconds=10.0, turns=3, sequence=45))
    assert (moved["audio_window_start"], moved["audio_window_end"]) == (10.0, 12.9)
    assert (moved["turn_index"], moved["sequence_id"]) == (3, 45)
    assert moved["words"][0]["start"] == 10.1
    decode_flux(json.dumps(moved))
    assert shifted(V2, sample("flux_s2c_error"), Shift(sequence=49))["sequence_id"] == 49


@pytest.mark.parametrize(
    ("name", "in_turn", "event"),
    [
        ("turn_start", False, "StartOfTurn"),
        ("turn_start", True, "Update"),
        ("turn_resumed", True, "TurnResumed"),
        ("turn_end", True, "EndOfTurn"),
    ],
)
def test_a_turn_begins_once(name: str, in_turn: bool, event: str) -> None:
    """Only the start of a turn that the client knows is an update."""
    assert shifted(V2, sample(f"flux_s2c_{name}"), Shift(in_turn=in_turn))["event"] == event


@BOTH
@given(
    st.sampled_from(["Results", "Metadata", "SpeechStarted", "UtteranceEnd", "TurnInfo", "Connected", "New"]),
    st.dictionaries(
        st.sampled_from(
            ["channel", "start", "duration", "is_final", "channel_index", "metadata", "request_id", "event",
             "words", "turn_index", "sequence_id", "audio_window_end", "timestamp", "last_word_end"]
        ),
        JSON | st.fixed_dictionaries({"alternatives": JSON, "search": JSON}) | st.lists(st.integers(-2, 3)),
    ),
)  # fmt: skip
def test_no_json_object_of_deepgrams_can_break_a_call(
    recogniser: ListenV1 | ListenV2, kind: str, members: dict[str, Any]
) -> None:
    """Any object with a `type` is read and shifted, whatever its members are (faults.md 23)."""
    raw = json.dumps({**members, "type": kind}).encode()
    try:
        reading = recogniser.read(raw)
    except msgspec.DecodeError:
        return  # numbers beyond what msgspec reads
    assert reading.kind not in (Kind.INTERIM, Kind.FINAL) or 0 <= reading.end < 1e8
    assert shifted(recogniser, raw, Shift(seconds=1.5, speakers=1, turns=1))["type"] == kind
