"""What the client is told after a connection was lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio.clock import PACKETS, MediaClock
from gateway.deepgram.listen import ListenV1, ListenV2
from gateway.deepgram.recogniser import Kind, Recogniser
from gateway.session.events import Gap
from gateway.session.seam import Strategy
from gateway.session.transcript import Transcript
from tests.session.results import final, interim, metadata

RATE = 8000
CLOCK = MediaClock(rate_hz=RATE, frame_bytes=1, joinable=True)
ALL = 10**9  # samples: whatever is claimed was sent


class Teller:
    """A transcript and the recogniser that feeds it."""

    def __init__(
        self,
        recogniser: Recogniser | None = None,
        clock: MediaClock = CLOCK,
        *,
        strategy: Strategy = "hybrid",
        diarized: bool = False,
        annotate: bool = True,
    ) -> None:
        self.recogniser = recogniser or ListenV1()
        self.connections = 1
        self.transcript = Transcript(
            self.recogniser, clock, 1, strategy=strategy, preroll=0.5, diarized=diarized, annotate=annotate
        )
        self.transcript.begin_epoch(0)

    def reconnect(self, kept: int = 0) -> int:
        self.connections += 1
        base = self.transcript.begin_epoch(kept)
        self.transcript.begin_again(self.connections)
        return base

    def hears(self, raw: bytes, sent: int = ALL) -> dict[str, Any] | None:
        reading = self.recogniser.read(raw)
        last = self.transcript.as_it_came(reading, sent) if reading.kind is Kind.INTERIM else -1
        if not self.transcript.is_plausible(reading, sent):
            assert last < 0
            return None
        told = self.transcript.result(reading, raw, sent)
        if last >= 0:
            assert told == raw
            assert max(0, sent - last) / RATE == self.transcript.timeline.lag(reading, sent)
        return json.loads(told) if told is not None else None

    def hears_aside(self, raw: bytes) -> dict[str, Any] | None:
        told = self.transcript.other(self.recogniser.read(raw), raw)
        return json.loads(told) if told is not None else None

    def must_hear(self, raw: bytes) -> dict[str, Any]:
        told = self.hears(raw)
        assert told is not None
        return told


def speech(kind: str, second: float, channel: int = 0) -> bytes:
    field = "timestamp" if kind == "SpeechStarted" else "last_word_end"
    return json.dumps({"type": kind, "channel": [channel, 2], field: second}).encode()


def turn(event: str, index: int, sequence: int, start: float, end: float) -> bytes:
    window = {"audio_window_start": start, "audio_window_end": end, "words": []}
    return json.dumps(
        {"type": "TurnInfo", "event": event, "turn_index": index, "sequence_id": sequence, **window}
    ).encode()


@pytest.mark.parametrize(
    ("strategy", "last", "kept", "base"),
    [
        ("exact", 9.0, 0, 80_000),
        ("preroll", 9.0, 0, 76_000),
        ("hybrid", 9.0, 0, 76_000),
        ("hybrid", 9.6, 0, 78_400),
        ("hybrid", 9.9, 0, 76_000),
        ("hybrid", 9.9, 78_000, 80_000),  # part of the pre-roll is worse than none
        ("hybrid", 9.9, 88_000, 88_000),
    ],
)
def test_where_the_next_connection_begins(strategy: Strategy, last: float, kept: int, base: int) -> None:
    """As the strategy says, if that audio is still there."""
    teller = Teller(strategy=strategy)
    teller.hears(final(0, 10, words=[("a", last - 0.3, last)]))
    assert teller.reconnect(kept) == base


def test_the_first_result_after_a_seam_says_so_once() -> None:
    """In one extra key, on the wire as any other."""
    teller = Teller()
    assert teller.must_hear(final(0, 1)).get("gateway") is None
    teller.reconnect()
    assert "gateway" not in teller.must_hear(interim(0, 1)), "the next one may take its place unseen"
    assert teller.must_hear(final(0, 1))["gateway"] == {"epoch": 2}
    assert teller.must_hear(interim(0, 1.5)).get("gateway") is None


def test_nothing_is_said_where_it_is_not_wanted() -> None:
    """`annotate` off: only Deepgram's own fields."""
    teller = Teller(annotate=False)
    teller.reconnect(8000)
    assert "gateway" not in teller.must_hear(final(0, 1))
    raw = metadata(1.0)
    assert "gateway" not in json.loads(teller.transcript.summary(raw, 2.0, ["a"]))


def test_audio_that_is_gone_is_a_gap_once() -> None:
    """From the watermark to what is still there (continuity.md I5)."""
    teller = Teller(strategy="exact")
    teller.hears(final(0, 1))
    assert teller.reconnect(12_000) == 12_000
    gap = {"start": 1.0, "stop": 1.5, "reason": "buffer_overflow"}
    assert teller.must_hear(final(0, 1))["gateway"] == {"epoch": 2, "gaps": [gap]}
    assert teller.must_hear(final(1, 2)).get("gateway") is None
    notes = json.loads(teller.transcript.summary(metadata(1.0), 3.5, ["a", "b"]))["gateway"]
    assert (notes["incomplete"], notes["gaps"], notes["upstream_request_ids"]) == (True, [gap], ["a", "b"])
    assert teller.transcript.gaps == [Gap(1.0, 1.5, "buffer_overflow")]


@pytest.mark.parametrize("strategy", ["exact", "hybrid", "preroll"])
def test_each_channel_is_cut_at_its_own_watermark(strategy: Strategy) -> None:
    """The connection begins with the slowest; the others hear again what they had (continuity.md I4)."""
    teller = Teller(strategy=strategy)
    words = [("one", 0.1, 0.9), ("two", 1.2, 1.8)]
    teller.hears(final(0, 1, channel_index=[0, 2], words=words[:1]))
    teller.hears(final(0, 2, channel_index=[1, 2], words=words))
    offset = teller.reconnect() / 8000
    later = [("two", 1.2 - offset, 1.8 - offset), ("six", 2.0 - offset, 2.4 - offset)]
    assert offset <= 1.0
    told = teller.must_hear(final(0, 2.5 - offset, channel_index=[1, 2], words=later))
    (word,) = told["channel"]["alternatives"][0]["words"]
    assert (word["word"], word["start"], told["start"]) == ("six", 2.0, 2.0)
    assert teller.transcript.timeline.committed == [8000, 20_000]


def test_a_repeated_final_is_swallowed() -> None:
    """Also on one and the same connection; and it moves nothing."""
    teller = Teller()
    teller.hears(final(0, 2, words=[("a", 0.1, 0.5)]))
    assert teller.hears(final(1.5, 2, words=[("a", 1.6, 1.8)])) is None
    assert teller.transcript.repeated == 1
    assert teller.transcript.timeline.watermark == 16_000


def test_a_result_is_cut_by_the_last_words_that_were_said() -> None:
    """Those of this connection, if it said some."""
    teller = Teller(strategy="exact")
    teller.hears(final(0, 1, words=[("a", 0.5, 1.0)]))
    teller.reconnect()
    teller.hears(final(0, 1, words=[("no", 0.9, 1.0)]))
    told = teller.must_hear(final(0.9, 2, words=[("no", 0.9, 1.0), ("no", 1.0, 1.1)]))
    assert [word["start"] for word in told["channel"]["alternatives"][0]["words"]] == [2.0]


def test_finals_that_say_nothing_are_not_remembered() -> None:
    """However many there are, the last word is known when it is heard again."""
    teller = Teller(strategy="preroll")
    teller.hears(final(0, 1, words=[("a", 0.5, 1.0)]))
    for start in (1.0, 1.01, 1.02, 1.03):
        teller.hears(final(start, start + 0.01))
    teller.reconnect()  # at 0.54 s
    told = teller.must_hear(final(0, 2, words=[("a", 0.36, 0.46), ("b", 0.96, 1.06)]))
    assert [word["word"] for word in told["channel"]["alternatives"][0]["words"]] == ["b"]


@pytest.mark.parametrize(
    ("raw", "plausible"),
    [
        (final(4.0, 6.0), True),
        (final(3.9, 6.0), False),
        (final(5.0, 7.0), True),
        (final(5.0, 7.1), False),
        (interim(3.9, 6.0), False),
    ],
)
def test_implausible_results(raw: bytes, plausible: bool) -> None:
    """More than a second back, or beyond the audio; it does not count for the next (faults.md 24)."""
    teller = Teller()
    teller.hears(final(0, 5), 40_000)
    reading = teller.recogniser.read(raw)
    assert teller.transcript.is_plausible(reading, 48_000) is plausible
    assert teller.transcript.quarantined == (not plausible)
    assert teller.transcript.is_plausible(teller.recogniser.read(final(5, 5.9)), 48_000) or plausible


def test_labels_of_speakers_do_not_collide() -> None:
    """Another connection's speaker 0 is not known to be the first's."""
    teller = Teller(diarized=True, strategy="exact")
    word = {"word": "a", "start": 0.1, "end": 0.2}
    for speakers, expected in (((0, 1), [0, 1]), ((0,), [2]), ((1, 0), [4, 3])):
        words = [{**word, "speaker": speaker} for speaker in speakers]
        told = teller.must_hear(final(0, 1, channel={"alternatives": [{"words": words}]}))
        assert [w["speaker"] for w in told["channel"]["alternatives"][0]["words"]] == expected
        if expected != [0, 1]:
            assert told["gateway"]["speaker_epoch"] == teller.connections
        teller.reconnect()


def test_a_label_that_is_none() -> None:
    """The result passes as it came; others do not count from there."""
    teller = Teller(diarized=True, strategy="exact")
    word = {"word": "a", "start": 0.1, "end": 0.2, "speaker": 0}
    raw = final(0, 1, channel={"alternatives": [{"words": [word]}]})
    huge = raw.replace(b'"speaker": 0', b'"speaker": ' + b"9" * 5000)
    assert huge != raw
    assert teller.transcript.result(teller.recogniser.read(huge), huge, ALL) == huge
    teller.reconnect()
    told = teller.must_hear(raw)
    assert told["channel"]["alternatives"][0]["words"][0]["speaker"] == 0


@pytest.mark.parametrize(
    ("kind", "second", "told"),
    [
        ("SpeechStarted", 0.0, False),  # 3.5: the connection begins within the speech that is known
        ("SpeechStarted", 0.5, False),
        ("SpeechStarted", 0.6, True),
        ("UtteranceEnd", 0.0, True),  # 3.5: the client was not told yet
        ("UtteranceEnd", -1, True),
    ],
)
def test_speech_is_told_of_once(kind: str, second: float, told: bool) -> None:
    """After a seam nothing is repeated, and nothing is lost."""
    teller = Teller()
    assert teller.hears_aside(speech("SpeechStarted", 3.0))
    assert teller.hears_aside(speech("UtteranceEnd", 2.0))
    teller.hears(final(0, 4.0, words=[("a", 3.0, 3.9)]))
    assert teller.reconnect() == 28_000
    found = teller.hears_aside(speech(kind, second))
    assert (found is not None) is told
    if found and second >= 0:
        assert (found.get("timestamp") or found["last_word_end"]) == pytest.approx(3.5 + second)


@pytest.mark.parametrize("kind", ["SpeechStarted", "UtteranceEnd"])
@pytest.mark.parametrize(("later", "told"), [(1e-6, False), (0.05, False), (0.2, True)])
def test_connections_differ_about_the_same_speech(kind: str, later: float, told: bool) -> None:
    """By the rounding of their times at the least: it is told of once all the same."""
    teller = Teller(strategy="exact")
    assert teller.hears_aside(speech(kind, 3.0))
    teller.hears(final(0, 2.0))
    assert teller.reconnect() == 16_000
    assert (teller.hears_aside(speech(kind, 1.0 + later)) is not None) is told


def test_before_a_seam_speech_is_deepgrams() -> None:
    """Nothing is swallowed."""
    teller = Teller()
    assert teller.hears_aside(speech("SpeechStarted", 1.0))
    assert teller.hears_aside(speech("SpeechStarted", 1.0))


def test_a_cut_turn_goes_on() -> None:
    """Flux: the same turn, known to have begun; messages are counted on."""
    teller = Teller(ListenV2())
    for raw in (
        turn("StartOfTurn", 0, 1, 0, 1),
        turn("EndOfTurn", 0, 2, 0, 2),
        turn("StartOfTurn", 1, 3, 2, 3),
    ):
        teller.hears(raw)
    assert teller.reconnect() == 16_000
    found = [
        teller.must_hear(raw)
        for raw in (
            turn("StartOfTurn", 0, 1, 0, 1),
            turn("EndOfTurn", 0, 2, 0, 2),
            turn("StartOfTurn", 1, 3, 2, 3),
        )
    ]
    assert [(m["event"], m["turn_index"], m["sequence_id"]) for m in found] == [
        ("Update", 1, 4),
        ("EndOfTurn", 1, 5),
        ("StartOfTurn", 2, 6),
    ]
    assert found[1]["audio_window_end"] == 4.0


@pytest.mark.parametrize("breaks", [1, 2])
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Update StartOfTurn Update EndOfTurn", "TurnResumed Update Update EndOfTurn"),
        ("StartOfTurn EagerEndOfTurn TurnResumed", "TurnResumed EagerEndOfTurn TurnResumed"),
        ("EndOfTurn StartOfTurn", "EndOfTurn StartOfTurn"),
    ],
)
def test_a_turn_that_seemed_to_be_over_goes_on(breaks: int, said: str, told: str) -> None:
    """Flux: after EagerEndOfTurn a client hears TurnResumed or EndOfTurn, and no Update before that."""
    teller = Teller(ListenV2())
    teller.hears(turn("StartOfTurn", 0, 1, 0, 1))
    teller.hears(turn("EagerEndOfTurn", 0, 2, 0, 2))
    for _ in range(breaks):
        teller.reconnect()
    turns = (turn(event, 0, n, 0, 1 + n / 4) for n, event in enumerate(said.split(), start=1))
    assert [teller.must_hear(raw)["event"] for raw in turns] == told.split()


def test_a_turn_that_had_not_begun_begins() -> None:
    """Updates before the start of a turn are none of it."""
    teller = Teller(ListenV2())
    teller.hears(turn("Update", 0, 1, 0, 0.2))
    teller.reconnect()
    told = teller.must_hear(turn("StartOfTurn", 0, 1, 0, 1))
    assert (told["event"], told["turn_index"], told["sequence_id"]) == ("StartOfTurn", 0, 2)


@pytest.mark.parametrize("breaks", [0, 1, 2])
def test_a_turn_is_told_once(breaks: int) -> None:
    """Flux numbers its messages: one that comes again says nothing, whatever it says (continuity.md I4)."""
    teller = Teller(ListenV2())
    for _ in range(breaks):
        teller.reconnect()
    for event in ("StartOfTurn", "EndOfTurn"):
        raw = turn(event, 0, 1 + (event == "EndOfTurn"), 0, 1)
        assert teller.hears(raw)
        assert teller.hears(raw) is None
    assert teller.transcript.repeated == 2


def hello(sequence: int = 0) -> bytes:
    return json.dumps({"type": "Connected", "request_id": "rid", "sequence_id": sequence}).encode()


@pytest.mark.parametrize(
    ("before", "turns", "sequence"),
    [
        ([], 0, 1),
        ([turn("StartOfTurn", 0, 1, 0, 1)], 0, 2),
        ([turn("StartOfTurn", 0, 1, 0, 1), turn("EndOfTurn", 0, 2, 0, 2)], 1, 3),
    ],
)
def test_flux_is_counted_on_from_its_greeting(before: list[bytes], turns: int, sequence: int) -> None:
    """Without a hole in either number, and what has no number takes none."""
    teller = Teller(ListenV2())
    assert teller.hears_aside(hello())
    for raw in before:
        teller.hears(raw)
    teller.reconnect()
    assert teller.hears_aside(b'{"type":"Surprise"}')
    told = teller.must_hear(turn("Update", 0, 1, 0, 1))
    assert (told["turn_index"], told["sequence_id"]) == (turns, sequence)


def test_without_samples_times_go_on() -> None:
    """From where results had come to."""
    teller = Teller(clock=PACKETS)
    teller.hears(final(0, 2.5))
    teller.reconnect()
    told = teller.must_hear(final(0, 1))
    assert (told["start"], told["duration"]) == (2.5, 1.0)
    assert teller.transcript.duration(teller.recogniser.read(metadata(1.5))) == 4.0


def test_without_samples_a_loss_lies_between_the_finals_and_the_results() -> None:
    """What is declared once is not declared again."""
    teller = Teller(clock=PACKETS)
    teller.hears(final(0, 2.5))
    teller.hears(interim(2.5, 3.25))
    teller.transcript.lose_track("not_replayable")
    teller.reconnect()
    assert teller.must_hear(interim(0, 1))["start"] == 3.25
    teller.transcript.lose_track("upstream_failed")
    gaps = [(gap.start, gap.stop, gap.reason) for gap in teller.transcript.gaps]
    assert gaps == [(2.5, 3.25, "not_replayable"), (3.25, 4.25, "upstream_failed")]


def test_finals_without_length_say_nothing_of_the_last_words() -> None:
    """Finalize may bring several; what was said before them is still known at the seam."""
    teller = Teller(strategy="preroll")
    teller.must_hear(final(0, 1, words=[("yes", 0.7, 0.99)]))
    for _ in range(3):
        teller.must_hear(final(1, 1))
    teller.reconnect()
    heard = teller.must_hear(final(0, 1, words=[("yes", 0.3, 0.6), ("no", 0.6, 0.9)]))
    assert [word["word"] for word in heard["channel"]["alternatives"][0]["words"]] == ["no"]


SECONDS = st.integers(0, 40).map(lambda n: n / 8)


@given(
    st.lists(st.tuples(SECONDS, SECONDS, st.sampled_from([0, 0, 0, 1, 2]), SECONDS), max_size=20),
    st.booleans(),
)
def test_what_passes_as_it_came_would_have_anyway(
    heard: list[tuple[float, float, int, float]], d: bool
) -> None:
    """Interims, finals, some nonsense, and perhaps a break: `hears` compares both ways."""
    teller = Teller(diarized=d)
    for start, length, what, sent in heard:
        if what == 2:
            teller.reconnect()
        else:
            say = final if what else interim
            teller.hears(say(start, start + length), sent=round(sent * RATE))


def test_most_interims_pass_as_they_came() -> None:
    """But none once numbers have moved, or of channels that were not announced."""
    teller, read = Teller(), ListenV1().read
    assert teller.transcript.as_it_came(read(interim(0, 1)), RATE) == RATE
    assert teller.transcript.as_it_came(read(interim(0, 1)), RATE - 1) == -1
    assert teller.transcript.as_it_came(read(interim(0, 1, channel_index=[0, 2])), RATE) == -1
    teller.hears(final(0, 1))
    assert teller.transcript.as_it_came(read(interim(0.5, 2)), ALL) == -1
    assert teller.transcript.as_it_came(read(interim(1, 2)), ALL) == 2 * RATE
    teller.reconnect()
    assert teller.transcript.as_it_came(read(interim(1, 2)), ALL) == -1
