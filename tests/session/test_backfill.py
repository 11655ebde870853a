"""Catching up beside the call: the contract of docs/continuity.md with two connections at work.

The properties are those of test_continuity.py, with the same models; a step may strike either connection.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ResumeConfig
from gateway.deepgram.listen import ListenV2
from gateway.deepgram.recogniser import Kind
from gateway.session.backfill import CatchUp
from gateway.session.events import Backfilled, Backfilling, Close, Deliver, Dial, Ended, Gap, HangUp, Restored
from gateway.session.seam import Strategy
from tests.playbook import (
    MULAW,
    RATE,
    Output,
    Playbook,
    Step,
    Up,
    audio,
    gone,
    heard,
    lost,
    opened,
    said,
    unreachable,
    wait,
)
from tests.session import test_continuity
from tests.session.model import Model
from tests.session.results import final, interim, metadata, told, window
from tests.session.test_continuity import (
    CLOSE_STREAM,
    LAYOUTS,
    LONGEST,
    PARTS,
    PAUSES,
    SCHEDULES,
    SLACK,
    STRATEGIES,
    Call,
    Setting,
    Told,
    menu,
    run,
)

ROOM = LONGEST + 1


class TwoConnections(Call):
    """A call whose holes are transcribed beside it. Upper bits of a step's channel say which it strikes."""

    def __init__(self, setting: Setting, *, ordered: bool = True, hold: float = 1000.0) -> None:
        self.ordered = ordered
        self.hold = hold
        self.live: dict[int, Model] = {}
        self.dialling: list[int] = []
        self.holes: list[Backfilling] = []
        self.filled: list[Backfilled] = []
        self.of_holes: set[int] = set()
        self.hole_said = 0
        self._seen = 0
        super().__init__(setting)

    def playbook(self) -> Playbook:
        setting = self.setting
        channels = f"mulaw&channels={setting.channels}&multichannel=true"
        encoding = "linear16" if setting.channels == 1 else channels
        interims = "&interim_results=true" if setting.interims == "asked" else ""
        return Playbook(
            f"encoding={encoding}&sample_rate={RATE}{interims}",
            catch_up=CatchUp(True, self.ordered),
            client_idle=0,
            seam_strategy=setting.strategy,
            overflow=setting.overflow,
            buffer=setting.buffer,
            force_interims=setting.interims == "forced",
            backfill_after=2.0,
            backfill_hold=self.hold,
        )

    def collect(self) -> None:
        self.book.out()
        new, self._seen = self.book.all[self._seen :], len(self.book.all)
        for _, epoch, output in new:
            match output:
                case Dial(dialled):
                    self.dialling.append(dialled)
                    backfill = self.book.session.backfill
                    if backfill is not None and backfill.stream.epoch == dialled:
                        self.of_holes.add(dialled)
                case HangUp(gone):
                    self.dialling = [e for e in self.dialling if e != gone]
                    self.leave_one(gone)
                case Up(bytes() as data):
                    self.live[epoch].take(data, self.book.said)
                case Up(str() as text):
                    was, self.open = self.open, self.live[epoch]
                    self.hear(text)
                    self.open = was
                case Deliver(raw, kind):
                    message = msgspec.json.decode(raw)
                    by, so_far = message.pop("by", 0), message.pop("heard", 0)
                    speaker = next((m for m in self.models if m.epoch == by), None)
                    self.told.append(Told(speaker, so_far, kind, message))
                case Backfilling():
                    self.holes.append(output)
                    self.hole_said = self.book.said
                case Backfilled():
                    self.filled.append(output)
                case Gap():
                    self.gaps.append(output)
                case Close() | Ended():
                    self.end.append(output)

    def leave(self) -> None:
        if self.open is not None:
            self.leave_one(self.open.epoch)

    def leave_one(self, epoch: int) -> None:
        model = self.live.pop(epoch, None)
        self.left = model or self.left
        if self.open is model:
            self.open = None

    def connect(self) -> None:
        while self.dialling and not self.over:
            self.connect_one(0)

    def connect_one(self, which: int) -> None:
        if not self.dialling or self.over:
            return
        epoch = self.dialling.pop(which % len(self.dialling))
        setting = self.setting
        model = Model(epoch, setting.layout, self.frame, setting.channels, setting.sigma)
        self.live[epoch] = model
        self.models.append(model)
        self.book.mute = self.mute = False
        self.do(opened(model.rid, epoch))

    def hears(self, raw: bytes, model: Model) -> None:
        if raw.endswith(b"}"):
            raw = raw[:-1] + b',"by":%d,"heard":%d}' % (model.epoch, model.heard)
        self.do(heard(raw, epoch=model.epoch))

    def step(self, name: str, value: Any, channel: int) -> None:
        epochs, which = sorted(self.live), channel >> 2
        self.open = self.live[epochs[which % len(epochs)]] if epochs else None
        match name:
            case "outage":
                for epoch in epochs:
                    self.open = self.live.get(epoch)
                    if self.open is not None:
                        self.breaks(1006, self.open)
                for _ in range(value):
                    super().step("long", 1.0, 0)
                self.connect_one(0)
            case "connect":
                self.connect_one(which)
            case "unreachable" | "refused" if self.dialling and not self.over:
                epoch = self.dialling.pop(which % len(self.dialling))
                self.do(turned_away(value, epoch) if value else unreachable(epoch))
            case "unreachable" | "refused":
                pass
            case _:
                super().step(name, value, channel)

    def breaks(self, code: int, model: Model) -> None:
        was_asked = bool(model.controls) and model.controls[-1][1] == CLOSE_STREAM
        super().breaks(1006 if code == 1000 and was_asked else code, model)  # or it were no break

    def finish(self) -> None:
        self.goodbye()
        endings = list(self.setting.endings)
        for _ in range(400):
            if self.over:
                return
            self.connect()
            self.mute = self.book.mute = False
            for epoch, model in list(self.live.items()):
                self.open = self.live.get(epoch)
                if self.open is None:
                    continue
                if model.controls and model.controls[-1][1] == CLOSE_STREAM:
                    model.has_it_all(self.hole_said if epoch in self.of_holes else self.book.said)
                    self.ends(endings.pop(0) if endings else "well", model)
                else:
                    self.goes_on_with(model)
            self.do(wait(0.5))
        raise AssertionError("the session does not come to its end")

    def goes_on_with(self, model: Model) -> None:
        for channel in range(self.setting.channels):
            if self.live.get(model.epoch) is model:
                self.open = model
                self.happens("pause", 1.0, channel, model)

    # The checks

    @property
    def edges(self) -> list[int]:
        return [round(hole.stop * RATE) for hole in self.holes]

    def results(self, kind: Kind, channel: int) -> list[Told]:
        """In the order of time; what one claims that its connection has not heard does not count there."""
        found = list(super().results(kind, channel))
        return found if self.ordered else sorted(found, key=place)

    def is_shortened(self, start: int, end: int) -> bool:
        at_edge = any(start <= edge + SLACK and edge - SLACK <= end for edge in self.edges)
        return at_edge or self.is_cut(start, end)

    def check(self) -> None:
        for model in self.models:
            if model.epoch in self.of_holes and model.controls and model.controls[-1][1] == CLOSE_STREAM:
                model.controls.pop()  # this one is not the client's
        super().check()
        assert len(self.filled) == len(self.holes)
        for hole, filled in zip(self.holes, self.filled, strict=True):
            inside = [g for g in self.gaps if hole.start <= g.start < hole.stop]
            whole = sum(g.stop - g.start for g in inside) + filled.seconds
            assert abs(whole - (hole.stop - hole.start)) < 1e-6

    def check_interims(self, channel: int) -> None:
        """I7; and none of a hole, which would take turns with the live ones."""
        if self.ordered:
            super().check_interims(channel)
        for model, *_ in self.results(Kind.INTERIM, channel):
            assert model is not None
            assert model.epoch not in self.of_holes

    def check_speech(self, channel: int) -> None:
        if self.ordered:
            super().check_speech(channel)

    def is_justified(self, gap: Gap) -> bool:
        return (gap.reason == "backfill_late" and self.hold < LONGEST) or super().is_justified(gap)


BACKFILLS: Final = menu(
    (
        ("wait", (0.01, 0.1, 1.0, 4.5), 2),
        ("connect", (0,), 6),
        ("audio", (1, 3, 160, 319, 320, 321, 1000, 2400), 3),
        ("long", PAUSES, 6),
        ("outage", (1, 3, 4, 6, 9), 6),
        ("final", (*PARTS, 1.0001, 1.3), 6),
        ("pause", PARTS, 5),
        ("interim", PARTS, 3),
        ("control", (0, 0, 1, 2), 3),
        ("speech", (True, True, False), 5),
        ("break", (1000, 1006, 1006, 1011, 1012, 1005), 4),
        ("mute", (True, False), 1),
        ("unreachable", (0,), 1),
        ("refused", (429, 503), 1),
        ("late", (0,), 1),
        ("odd", ("negative", "beyond", "regressing"), 1),
    )
)
SETTINGS = st.builds(
    lambda **setting: Setting(**setting),
    layout=LAYOUTS,
    channels=st.sampled_from([1, 1, 2, 3, 4]),
    strategy=STRATEGIES,
    buffer=st.just(ROOM),
    interims=st.sampled_from(["asked", "asked", "asked", "forced", "none"]),
    late=st.booleans(),
    goodbye=st.sampled_from(["close", "close", "restart", "gone"]),
    endings=st.lists(st.sampled_from(["early", "cut", "error", "unclosed"]), max_size=3).map(tuple),
)


@given(SCHEDULES, SETTINGS, st.booleans())
def test_no_word_is_lost_or_heard_twice(schedule: bytes, setting: Setting, ordered: bool) -> None:
    """Both connections break at any point, or are refused: see the checks of `Call`.

    continuity.md I1, continuity.md I2, continuity.md I3, continuity.md I4, continuity.md I7,
    continuity.md I10, continuity.md I11, continuity.md I12, continuity.md I13
    """
    run(TwoConnections(setting, ordered=ordered), schedule, BACKFILLS)


@given(SCHEDULES, SETTINGS, st.booleans())
def test_windows_tile_when_words_wander(schedule: bytes, setting: Setting, ordered: bool) -> None:
    """Word times that err by 30 ms: coverage, one clock and order all the same.

    continuity.md I1, continuity.md I2, continuity.md I3
    """
    run(TwoConnections(setting._replace(sigma=0.03), ordered=ordered), schedule, BACKFILLS)


@given(SCHEDULES, SETTINGS, st.booleans(), st.sampled_from([1.0, 4.0]))
def test_a_hole_that_takes_too_long_is_declared(
    schedule: bytes, setting: Setting, ordered: bool, hold: float
) -> None:
    """What has no final then is in exactly one gap, and the call goes on (continuity.md I5, I12)."""
    run(TwoConnections(setting, ordered=ordered, hold=hold), schedule, BACKFILLS)


@given(SCHEDULES, SETTINGS, st.booleans(), st.sampled_from(["drop_oldest", "drop_oldest", "pause"]))
def test_what_does_not_fit_is_declared(
    schedule: bytes, setting: Setting, ordered: bool, overflow: str
) -> None:
    """Both share one bound of 7 s (continuity.md I5, I8)."""
    run(Crowded(setting._replace(overflow=overflow, buffer=7.0), ordered=ordered), schedule, BACKFILLS)


def test_speech_whose_end_lies_beyond_the_edge() -> None:
    """The last final of a hole is cut before it; the live side was done by then (5.4 of continuity.md)."""
    call = TwoConnections(Setting(layout="pauses"))
    call.begin()
    for name, value in (("outage", 4), ("final", 1.0), ("break", 1000), ("connect", 0), ("speech", True)):
        call.step(name, value, 0)
    call.step("wait", 4.5, 0)
    call.finish()
    call.check()
    assert [told.message["type"] for told in call.told][-2:] == ["UtteranceEnd", "Metadata"]


@pytest.mark.parametrize("strategy", ["hybrid", "preroll"])
def test_a_final_that_reaches_beyond_what_is_heard_again(strategy: Strategy) -> None:
    """A connection that is still in its pre-roll has nothing new to say, whatever its windows claim."""
    call = TwoConnections(Setting(strategy=strategy), ordered=False)
    call.begin()
    steps = (("long", 1.0), ("final", 0.95), *[("wait", 0.01)] * 5, ("outage", 1), ("final", 1.3))
    for name, value in steps:
        call.step(name, value, 0)
    call.finish()
    call.check()


def place(told: Told) -> tuple[int, int]:
    start, end = test_continuity.window(told.message)
    return start, min(end, told.heard)


MAIN, HOLE = 2, 3  # epochs after the outage
UTTERANCE = b'{"type":"SpeechStarted","channel":[0,1],"timestamp":0.75}'


def after_an_outage(query: str = MULAW, *, ordered: bool = True, **settings: Any) -> Playbook:
    """A second with its final, then six without Deepgram, which is there again: the edge is at 6.5 s."""
    how = {"client_idle": 0, "backfill_after": 2, "seam_strategy": "exact", **settings}
    book = Playbook(query, catch_up=CatchUp(True, ordered), **how) << ... >> opened("one") << ...
    book = book >> audio(1.0) << ... >> heard(final(0, 1)) << ... >> lost() << ...
    for _ in range(6):
        book = book >> audio(1.0) << ... >> wait(1) << ...
    book >> opened("two", MAIN) << Backfilling(1.0, 6.5) << Dial(HOLE) << Restored(MAIN, 0.0)
    return book << ...


def turned_away(status: int, epoch: int) -> Step:
    return lambda book: book.session.dial_refused(epoch, status, [], b"", book.now)


def outcome(book: Playbook) -> list[Output]:
    return [output for output in book.out() if not isinstance(output, Up)]


def types(outputs: list[Output]) -> list[str]:
    """Messages to the client by their type; everything else by its own."""
    return [json.loads(o.raw)["type"] if isinstance(o, Deliver) else type(o).__name__ for o in outputs]


def messages(book: Playbook) -> list[dict[str, Any]]:
    return [json.loads(output.raw) for output in book.out() if isinstance(output, Deliver)]


def words_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = message["channel"]["alternatives"][0]["words"]
    return found


def said_in(outputs: list[Output]) -> list[tuple[str, float, float]]:
    results = [json.loads(output.raw) for output in outputs if isinstance(output, Deliver)]
    return [(w["word"], w["start"], w["end"]) for result in results for w in words_of(result)]


class TestOneRuleAtATime:
    def test_finals_wait_and_interims_do_not(self) -> None:
        """Until the hole has been told; what is live is told as it was heard."""
        book = after_an_outage() >> heard(interim(0, 1), MAIN) << window(6.5, 7.0, Kind.INTERIM)
        book >> heard(final(0, 1), MAIN) >> heard(UTTERANCE, MAIN)
        book = book >> opened("three", HOLE) << ... >> wait(6) << ...
        book >> heard(interim(0, 4), HOLE) >> heard(final(0, 4), HOLE) << window(1, 5)
        book >> heard(final(4, 6), HOLE) << window(5, 6.5) >> lost(1000, epoch=HOLE) << HangUp(HOLE)
        book << Backfilled("complete", 5.5) << window(6.5, 7.0)
        book << told(type="SpeechStarted", timestamp=6.75)

    def test_a_word_at_the_edge_has_one_owner(self) -> None:
        """Its middle says which, whatever either connection heard of it."""
        book = after_an_outage() >> opened("three", HOLE) << ... >> wait(6) << ...
        word = [("left", 5.3, 5.6), ("right", 5.45, 5.75)]
        book >> heard(final(0, 6, words=word), HOLE)
        assert said_in(book.out()) == [("left", 6.3, 6.5)]
        book = book >> lost(1000, epoch=HOLE) << ...
        book >> heard(final(0, 1.0, words=[("left", 0.3, 0.6), ("right", 0.45, 0.75)]), MAIN)
        assert said_in(book.out()) == [("right", 6.5, 6.75)]

    def test_too_much_to_hold(self) -> None:
        """Half of what a client's own queue may hold; then the hole is given up."""
        book = after_an_outage(client_queue_bytes=65_536)
        long = "x" * 20_000
        book >> heard(final(0, 0.7, extra=long), MAIN) >> heard(final(0.7, 0.9, extra=long), MAIN)
        book << Gap(1.0, 6.5, "backfill_late") << HangUp(HOLE) << Backfilled("late", 0.0)
        book << told(start=6.5) << told(start=6.7)

    def test_the_hold_is_bounded(self) -> None:
        """Also while Deepgram refuses the connection; what came in time stays."""
        book = after_an_outage(backfill_hold=10) >> turned_away(429, HOLE) >> wait(1) << Dial(4)
        book = book >> opened("three", 4) << ... >> wait(4) << ... >> heard(final(0, 2), 4) << window(1, 3)
        book = book >> lost(epoch=4) << ... >> turned_away(429, 5) << ...
        assert outcome(book >> wait(5.1))[-3:] == [
            Gap(3.0, 6.5, "backfill_late"),
            HangUp(book.epoch),
            Backfilled("late", 2.0),
        ]

    def test_the_hole_is_refused_for_good(self) -> None:
        """The call is not."""
        book = after_an_outage() >> turned_away(403, HOLE) << Gap(1.0, 6.5, "upstream_failed")
        book << HangUp(HOLE) << Backfilled("failed", 0.0) >> heard(final(0, 1), MAIN)
        book << told(gateway={"gaps": [{"start": 1.0, "stop": 6.5, "reason": "upstream_failed"}], "epoch": 2})

    def test_the_end_waits_for_the_hole(self) -> None:
        """One Metadata, after everything else (continuity.md I12)."""
        book = after_an_outage() >> wait(2) << ... >> said(CLOSE_STREAM) << ...
        book >> heard(final(0, 1), MAIN) >> heard(metadata(1.0, rid="two"), MAIN) >> lost(1000, epoch=MAIN)
        book = book << HangUp(MAIN) >> wait(20) << ... >> opened("three", HOLE) << ... >> wait(6) << ...
        book = book >> heard(final(0, 6), HOLE) << window(1, 6.5)
        book >> lost(1000, epoch=HOLE) << HangUp(HOLE) << Backfilled("complete", 5.5) << window(6.5, 7.0)
        book << told(type="Metadata", duration=7.0) << Close(1000) << HangUp(MAIN) << Ended("completed")

    def test_the_end_does_not_wait_for_ever(self) -> None:
        """Nor where its client has gone."""
        book = after_an_outage() >> wait(2) << ... >> gone() << ...
        book = book >> heard(final(0, 1), MAIN) >> lost(1000, epoch=MAIN)
        ended = types(outcome(book << HangUp(MAIN) >> wait(120)))
        assert ended == ["Gap", "HangUp", "Backfilled", "Results", "Close", "HangUp", "Ended"]

    def test_the_call_fails(self) -> None:
        """What both lack is declared, once, and the client knows."""
        book = after_an_outage() >> wait(1) << ... >> lost(epoch=MAIN) << ... >> wait(6) << ...
        ended = types(outcome(book >> turned_away(404, 4)))
        assert ended == ["Gap", "HangUp", "Backfilled", "Gap", "Error", "Close", "HangUp", "Ended"]

    def test_the_call_is_cut_short_while_only_the_hole_is_missing(self) -> None:
        """A gateway that must stop does not wait for it; what there is, is told."""
        book = after_an_outage() >> wait(2) << ... >> said(CLOSE_STREAM) << ...
        book = book >> heard(final(0, 1), MAIN) >> heard(metadata(1.0, rid="two"), MAIN)
        book = book >> lost(1000, epoch=MAIN) << HangUp(MAIN)
        book >> (lambda book: book.session.stream_failed(1012, "restart"))
        book << Gap(1.0, 6.5, "upstream_failed") << HangUp(HOLE) << Backfilled("failed", 0.0)
        book << window(6.5, 7.0) << told(type="Metadata") << Close(1000) << HangUp(MAIN) << Ended("completed")

    def test_labels_do_not_meet(self) -> None:
        """Speakers of two connections are different ones, as far as anybody knows."""
        book = after_an_outage(MULAW + "&diarize=true", ordered=False)
        book = book >> opened("three", HOLE) << ... >> wait(6) << ...
        speaker = {"word": "a", "start": 0.6, "end": 0.9, "speaker": 1}
        channel: dict[str, Any] = {"channel": {"alternatives": [{"transcript": "a", "words": [speaker]}]}}
        labels = set()
        for epoch in (MAIN, HOLE):
            book >> heard(final(0, 1, **channel), epoch)
            labels |= {word["speaker"] for message in messages(book) for word in words_of(message)}
        assert len(labels) == 2

    def test_out_of_order(self) -> None:
        """Only finals of the hole, marked; its turns of speech are over."""
        book = after_an_outage(ordered=False) >> opened("three", HOLE) << ... >> wait(6) << ...
        book >> heard(final(0, 1), MAIN) << window(6.5, 7.0) >> heard(UTTERANCE, HOLE)
        book >> heard(final(0, 1), HOLE) << told(start=1.0, gateway={"epoch": 3, "backfill": True})

    def test_a_client_that_may_come_back(self) -> None:
        """Numbers are given as results are told; nothing of the hole is acknowledged (continuity.md I14)."""
        book = after_an_outage(resume=ResumeConfig()) >> heard(final(0, 1), MAIN) >> wait(1.5)
        assert book.session.resumption is not None
        assert book.session.resumption.seq == 1
        assert all(m["final"] <= RATE for m in messages(book) if m["type"] == "GatewayAck")
        book = book >> turned_away(403, HOLE) << ... >> wait(1.5)
        (ack, *_) = (m for m in messages(book) if m["type"] == "GatewayAck")
        assert (ack["final"], ack["seq"]) == (7 * RATE, 2)

    @pytest.mark.parametrize(
        "query", ["model=flux-general-en&encoding=mulaw&sample_rate=8000", "encoding=opus"]
    )
    def test_what_cannot_be_divided(self, query: str) -> None:
        """Turns, and audio without a clock, are caught up with on one connection."""
        recogniser = ListenV2() if "flux" in query else None
        book = Playbook(query, recogniser, catch_up=CatchUp(True), client_idle=0, backfill_after=2) << Dial(1)
        book = book >> opened() << ... >> lost() << ...
        for _ in range(6):
            book = book >> audio(1.0) << ... >> wait(1) << ...
        book >> opened("two")
        assert not any(isinstance(output, Backfilling) for output in book.out())


class Crowded(TwoConnections):
    """It looks at the memory, too."""

    def collect(self) -> None:
        super().collect()
        session = self.book.session
        held = len(session.stream.uplink.buffer)
        if session.backfill is not None:
            held += len(session.backfill.stream.uplink.buffer)
        assert held <= (self.setting.buffer + 1.0 + 3.0) * RATE * self.frame
