"""The contract of docs/continuity.md, for random calls over connections that break at random points.

The recognisers here are models (model.py): they know which of the client's bytes they got and which words lie
in them. So what the client is told can be checked against what it said, and by whom it was heard.

A schedule is a string of bytes, three for each step: drawing it costs Hypothesis one choice, not a hundred.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
from hypothesis import given, note
from hypothesis import strategies as st

from gateway.deepgram.listen import ListenV2
from gateway.deepgram.recogniser import Kind
from gateway.session.events import Broke, Close, Deliver, Dial, Ended, Gap, HangUp
from gateway.session.seam import DOUBT
from gateway.session.timeline import float32_ulp
from tests.playbook import (
    MULAW,
    RATE,
    Playbook,
    Step,
    Up,
    audio,
    gone,
    heard,
    lost,
    opened,
    refused,
    said,
    sent,
    shut_down,
    unreachable,
    wait,
)
from tests.session.model import FRAGMENT, NOISE, TABLES, Model, Table, Token, float32
from tests.session.results import final, interim, metadata

CLOSE_STREAM = '{"type":"CloseStream"}'
CONTROLS = tuple(f'{{"type":"{name}"}}' for name in ("Finalize", "Configure", "Sync"))
FINALIZE = CONTROLS[0]
SLACK = 2  # samples by which rounding may move an end
LONGEST = 150.0  # seconds of a call
WORTH_A_DIAL = 1.0  # seconds without a final that a clean end may leave, if it says so
FINISH = 10.0  # seconds since Deepgram's last word before a dial in vain may end a call
OVERSHOOT = 7900  # samples by which a final may claim more than Deepgram got


class Setting(NamedTuple):
    """What kind of call it is, and how it ends."""

    layout: str = "mixed"
    channels: int = 1
    sigma: float = 0.0
    strategy: str = "hybrid"
    overflow: str = "drop_oldest"
    buffer: float = 120.0
    interims: str = "asked"
    """Or forced: by the operator, not for the client; or none."""
    rotate: float = 0.0
    late: bool = False
    """Whether the client is accepted before Deepgram has answered."""
    goodbye: str = "close"
    """Or gone, or restart: by the gateway."""
    endings: tuple[str, ...] = ()
    """How connections end that got CloseStream, before one ends as it should."""
    dials: tuple[str, ...] = ()
    """What becomes of dials after the client's last word, before one is answered at once."""
    spent: bool = False
    """Whether the call has redialled so often that it waits before each dial."""


class Told(NamedTuple):
    """What the client got; while `by` was speaking, which had heard up to sample `heard`."""

    by: Model | None
    heard: int
    kind: Kind
    message: dict[str, Any]


class Call:
    """A client, a session and as many models as it takes."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.frame = 2 if setting.channels == 1 else setting.channels
        self.book = self.playbook()
        self.models: list[Model] = []
        self.open: Model | None = None
        self.left: Model | None = None  # the last connection that is no longer open
        self.dials = 0
        self.said: list[tuple[int, str]] = []
        self.speaker: Model | None = None
        self.told: list[Told] = []
        self.gaps: list[Gap] = []
        self.end: list[object] = []
        self.mute = False
        self.poisoned = self.denied = self.abandoned = 0
        self.word_at = self.book.now
        self.out_of_time = False  # something came to nothing long after Deepgram's last word
        self.collect()

    def playbook(self) -> Playbook:
        setting = self.setting
        channels = f"mulaw&channels={setting.channels}&multichannel=true"
        encoding = "linear16" if setting.channels == 1 else channels
        interims = "&interim_results=true" if setting.interims == "asked" else ""
        return Playbook(
            f"encoding={encoding}&sample_rate={RATE}{interims}",
            spent=setting.spent,
            client_idle=0,
            seam_strategy=setting.strategy,
            overflow=setting.overflow,
            buffer=setting.buffer,
            rotate=setting.rotate,
            force_interims=setting.interims == "forced",
            finalize_after=3.0,
        )

    def do(self, step: Step) -> None:
        self.book >> step
        self.collect()

    def collect(self) -> None:
        for output in self.book.out():
            match output:
                case Dial(epoch):
                    self.dials = epoch
                    self.leave()
                case HangUp():
                    self.leave()
                case Up(bytes() as data):
                    assert self.open is not None
                    self.open.take(data, self.book.said)
                case Up(str() as text):
                    self.hear(text)
                case Deliver(raw, kind):
                    speaker = self.speaker
                    told = Told(speaker, speaker.heard if speaker else 0, kind, msgspec.json.decode(raw))
                    self.told.append(told)
                case Gap():
                    self.gaps.append(output)
                case Close() | Ended():
                    self.end.append(output)

    def leave(self) -> None:
        self.left, self.open = self.open or self.left, None

    def hear(self, text: str) -> None:
        model = self.open
        assert model is not None
        if text in CONTROLS or text == CLOSE_STREAM:
            model.controls.append((model.length, text))
        if text.startswith('{"type":"Finalize"'):
            asked = json.loads(text).get("channel")
            model.asked = [n + (asked in (None, channel)) for channel, n in enumerate(model.asked)]

    @property
    def over(self) -> bool:
        return bool(self.end)

    def connect(self) -> None:
        if self.dials and self.open is None and not self.over:
            setting = self.setting
            self.open = Model(self.dials, setting.layout, self.frame, setting.channels, setting.sigma)
            self.dials = 0
            self.models.append(self.open)
            self.book.mute = self.mute = False
            self.do(opened(self.open.rid))

    def begin(self) -> None:
        if self.setting.late:
            self.do(wait(3.0))
        else:
            self.connect()

    # What happens to it

    def step(self, name: str, value: Any, channel: int) -> None:
        channel %= self.setting.channels
        match name:
            case "audio":
                self.audio(value)
            case "long":
                self.audio(round(value * RATE) * self.frame)
                self.do(wait(value))
            case "control":
                self.control(CONTROLS[value])
            case "wait":
                self.do(wait(value))
            case "connect":
                self.connect()
            case "blocked":
                self.book.session.upstream_blocked(self.book.epoch, value, self.book.now)
            case "unreachable" if self.dials and self.open is None:
                self.dials = 0
                self.do(unreachable())
            case "refused" if self.dials and self.open is None:
                self.dials = 0
                self.denied += value == 403
                self.do(refused(value, Retry_After="2"))
            case "late" if self.left is not None:
                self.in_vain(self.too_late(self.left), self.left)
            case "unreachable" | "refused" | "late":
                pass
            case _:
                if self.open is not None and not self.over:
                    self.happens(name, value, channel, self.open)

    def happens(self, name: str, value: Any, channel: int, model: Model) -> None:
        """What happens on the open connection."""
        match name:
            case "break":
                self.breaks(value, model)
            case "mute":
                self.mute = True
                self.book.mute = value
            case _ if model.base < 0 or self.mute:
                pass
            case "final" | "interim" | "pause":
                self.deepgram_says(name, value, channel, model)
            case "speech":
                message = model.began(channel) if value else model.ended(channel)
                if message is not None:
                    self.hears(message, model)
            case "skip":
                model.skip(channel, model.boundary(channel, value))
            case "odd":
                self.in_vain(self.odd(value, channel, model), model)
            case "garbage":
                self.in_vain(value, model)

    def audio(self, length: int) -> None:
        if not self.book.session.reading:
            self.do(wait(0.5))
        if self.over or not self.book.session.reading or self.book.said > LONGEST * RATE * self.frame:
            return
        self.do(sent(NOISE[self.book.said : self.book.said + length]))

    def control(self, text: str) -> None:
        if not self.over:
            self.said.append((self.book.said, text))
            self.do(said(text))

    def hears(self, raw: bytes, model: Model) -> None:
        """The session hears `raw` of a connection, open or not."""
        self.speaker = model
        self.word_at = self.book.now
        self.do(heard(raw, epoch=model.epoch))
        self.speaker = None

    def in_vain(self, raw: bytes, model: Model) -> None:
        """The session hears what must have no effect."""
        before = len(self.told), len(self.gaps), self.book.epoch, self.over
        self.hears(raw, model)
        assert before == (len(self.told), len(self.gaps), self.book.epoch, self.over), "it had an effect"

    def deepgram_says(self, name: str, part: float, channel: int, model: Model) -> None:
        if name == "interim" and self.setting.interims == "none":
            return
        is_final = name != "interim"
        finalizes = is_final and part > 0.5 and model.answered[channel] < model.asked[channel]
        over = 0
        if finalizes:
            part = 1.0
            model.answered[channel] += 1
        elif part > 1.0:
            over = round((part - 1.0) * OVERSHOOT)
        stop = model.boundary(channel, min(part, 1.0))
        raw = model.result(
            channel,
            stop,
            is_final=is_final,
            finalized=finalizes,
            over=over if stop == model.heard and is_final else 0,
            ends_speech=name == "pause" and model.pauses(channel, stop),
        )
        self.hears(raw, model)

    def odd(self, value: str, channel: int, model: Model) -> bytes:
        """A result that cannot be (faults.md 24)."""
        end = (model.heard - model.first) / RATE
        claimed = model.claimed[channel] - model.first
        start, stop = {
            "negative": (-0.5, end),
            "beyond": (0.0, end + 1.1),
            "regressing": (claimed / RATE - 1.2, end),
        }[value]
        if value == "regressing" and start < 0:
            start, stop = 0.0, 1e9
        word = [("never", max(0.0, start), max(0.0, start) + 0.1)]
        return final(start, stop, rid=model.rid, words=word, channel_index=[channel, len(model.marks)])

    def breaks(self, code: int, model: Model) -> None:
        """Metadata comes before an error close too, and late results from a connection that is gone."""
        summary = self.metadata(model)
        if summary and code == 1011:
            self.hears(summary, model)
        self.poisoned += code == 1008
        self.leave()
        self.do(lost(code, "NET-0000", model.epoch))
        self.in_vain(self.too_late(model), model)

    def too_late(self, model: Model) -> bytes:
        return model.result(0, model.heard, is_final=True)

    def metadata(self, model: Model) -> bytes:
        return metadata(float32(model.length / self.frame / RATE), rid=model.rid)

    # How it ends

    def finish(self) -> None:
        """Say that it is over, and let Deepgram answer to the end."""
        self.goodbye()
        endings, dials = list(self.setting.endings), list(self.setting.dials)
        for _ in range(400):
            if self.over:
                return
            if dials and self.dials and self.open is None:
                self.is_dialled(dials.pop(0))
            else:
                self.connect()
            self.mute = self.book.mute = False
            self.book.session.upstream_blocked(self.book.epoch, False, self.book.now)
            model = self.open
            if model is not None and model.controls and model.controls[-1][1] == CLOSE_STREAM:
                model.has_it_all(self.book.said)
                self.ends(endings.pop(0) if endings else "well", model)
            else:
                self.goes_on()
                self.do(wait(0.5))
        raise AssertionError("the session does not come to its end")

    def goodbye(self) -> None:
        if self.over:
            return
        self.said.append((self.book.said, CLOSE_STREAM))
        self.word_at = self.book.now
        match self.setting.goodbye:
            case "close":
                self.do(said(CLOSE_STREAM))
            case "gone":
                self.do(gone())
            case "restart":
                self.do(shut_down())

    def is_dialled(self, how: str) -> None:
        if how == "slow":
            self.do(wait(4.9))
            self.connect()
        else:
            self.comes_to_nothing()
            self.step(how, 503, 0)

    def comes_to_nothing(self) -> None:
        self.out_of_time |= self.book.now - self.word_at >= FINISH

    def goes_on(self) -> None:
        for channel in range(self.setting.channels):
            if self.open is not None:
                self.step("pause", 1.0, channel)

    def ends(self, how: str, model: Model) -> None:
        """One connection, after CloseStream."""
        if how in ("well", "unclosed", "cut"):
            self.last_words(model)
        if self.open is not model:
            return  # what it said was not good enough
        if how in ("short", "stall"):
            self.abandoned += 1
            for channel in range(len(model.marks) if model.base >= 0 else 0):
                model.skip(channel, model.heard)
        summary = self.metadata(model)
        if summary and how in ("well", "unclosed", "short", "error"):
            self.hears(summary, model)
        match how:
            case "well" | "short":
                self.leave()
                self.do(lost(1000, "", model.epoch))
            case "error" | "cut" | "early":
                self.leave()
                self.comes_to_nothing()
                self.do(lost(1011 if how == "error" else 1006, "", model.epoch))
            case "unclosed" | "stall":
                self.waits_for(model)

    def waits_for(self, model: Model) -> None:
        for _ in range(60):
            if self.open is model and not self.over:
                self.do(wait(0.5))

    def last_words(self, model: Model) -> None:
        for channel in range(len(model.marks) if model.base >= 0 else 0):
            speaks = model.speaks(channel)
            if self.open is model:
                raw = model.result(channel, model.heard, is_final=True, ends_speech=speaks)
                self.hears(raw, model)

    # The checks

    @property
    def accepted(self) -> int:
        return self.book.said // self.frame

    @property
    def failed(self) -> bool:
        return self.end[-1] == Ended("failed")

    def check(self) -> None:
        for channel in range(self.setting.channels):
            self.check_finals(channel)
            self.check_interims(channel)
            self.check_speech(channel)
            if not self.setting.sigma:
                self.check_words(channel)
        self.check_gaps()
        self.check_controls()
        self.check_end()
        check_pace(self.book, RATE * self.frame)

    def results(self, kind: Kind, channel: int) -> Iterable[Told]:
        for told in self.told:
            if told.kind is kind and told.message["channel_index"][0] == channel:
                yield told

    def windows(self, channel: int) -> list[tuple[int, int]]:
        """The finals in samples. What one claims beyond the audio sent counts if the next begins there."""
        finals = list(self.results(Kind.FINAL, channel))
        spans = [window(told.message) for told in finals]
        for i, told in enumerate(finals):
            begin, end = spans[i]
            if begin == end:
                continue  # it says only that an utterance is over
            goes_on = i + 1 < len(finals) and finals[i + 1].by is told.by and spans[i + 1][0] >= end - SLACK
            spans[i] = begin, end if goes_on else min(end, told.heard + SLACK)
        return spans

    def check_finals(self, channel: int) -> None:
        """I1 coverage by who heard it, I2 tiling, I3, I13."""
        covered = [(round(gap.start * RATE), round(gap.stop * RATE)) for gap in self.gaps]
        end = 0
        spans = self.windows(channel)
        for (model, so_far, _, result), (start, stop) in zip(
            self.results(Kind.FINAL, channel), spans, strict=True
        ):
            claimed = window(result)[1]
            assert model is not None, "finals come from somewhere"
            assert model.first - SLACK <= start, "it did not hear that"
            assert claimed <= max(start, so_far + RATE) + SLACK, "it did not hear that"
            assert start >= end - SLACK, "finals must not go back"
            for word in words_of(result):
                assert start - SLACK <= word["start"] * RATE <= word["end"] * RATE <= claimed + SLACK
            assert result["metadata"]["request_id"] == self.book.session.request_id
            covered.append((start, stop))
            end = stop
        at = 0
        for start, stop in sorted(covered):
            assert start <= at + SLACK, ("nobody covers", at / RATE, start / RATE)
            at = max(at, stop)
        assert at >= self.accepted - SLACK, ("nobody covers the end", at / RATE)

    def check_interims(self, channel: int) -> None:
        """I7: no interim begins before what is final, and its words lie in it."""
        mark = 0
        for _, so_far, kind, result in self.told:
            if kind not in (Kind.INTERIM, Kind.FINAL) or result["channel_index"][0] != channel:
                continue
            start, stop = window(result)
            if kind is Kind.FINAL:
                mark = min(stop, so_far)
                continue
            assert self.setting.interims == "asked", "nobody wants to hear that"
            assert start >= mark - SLACK, "an interim of what is final"
            for word in words_of(result):
                assert start - SLACK <= word["start"] * RATE <= word["end"] * RATE <= stop + SLACK

    def check_words(self, channel: int) -> None:
        """I4: none lost, doubled, invented or out of place, except at the edge of a declared gap."""
        found: Counter[Token] = Counter()
        tokens = TABLES[self.setting.layout, channel]
        for told in self.results(Kind.FINAL, channel):
            for word in words_of(told.message):
                start, end = round(word["start"] * RATE), round(word["end"] * RATE)
                if word["word"] == FRAGMENT:
                    assert self.is_cut(start, end) or self.is_doubtful(start, channel), ("invented", word)
                    continue
                token = self.spoken(start, end, tokens)
                assert word["word"] == token.text
                assert self.is_shortened(start, end) or abs(start - token.start) <= SLACK
                found[token] += 1
        assert all(count == 1 for count in found.values()), "doubled"
        for token in tokens.around(0, self.accepted):
            assert found[token] or self.is_cut(token.start, token.end), ("lost", token, token.start / RATE)

    def spoken(self, start: int, end: int, tokens: Table) -> Token:
        """Which token a word is; one without length was heard just before the end of a gap."""
        if start == end and self.is_cut(start, end):
            since = start - DOUBT * RATE
            near = tokens.around(round(since), start)
            (token,) = (t for t in near if (t.start + t.end) / 2 >= since - SLACK)
            return token
        near = tokens.around(start, max(start + 1, end))
        half = [(t.end - t.start) / 2 - SLACK for t in near]
        (token,) = (t for t, h in zip(near, half, strict=True) if min(t.end, end) - max(t.start, start) > h)
        return token

    def is_shortened(self, start: int, end: int) -> bool:
        """Whether a word need not begin where it was spoken."""
        return self.is_cut(start, end)

    def is_cut(self, start: int, end: int) -> bool:
        """Whether a gap or the end of the call touches it."""
        edges = ((round(gap.start * RATE), round(gap.stop * RATE)) for gap in self.gaps)
        return end >= self.accepted - SLACK or any(
            a <= end + SLACK and start <= b + SLACK for a, b in edges if b > a
        )

    def is_doubtful(self, sample: int, channel: int) -> bool:
        """Whether a connection began within a word that ends hereabouts, and that another had heard whole.

        Only where it began just anywhere for this channel; what may come of that is measured, not promised.
        """
        if self.setting.strategy != "exact" and self.setting.channels == 1:
            return False
        tokens = TABLES[self.setting.layout, channel].around(sample - round(2 * DOUBT * RATE), sample + SLACK)
        return any(t.start < model.first < t.end for t in tokens for model in self.models)

    def check_speech(self, channel: int) -> None:
        """Section 5.4 of continuity.md: what began ends, on the client's clock, and nothing begins twice."""
        began, waits = -1.0, False
        for told in self.told:
            message = told.message
            if message["type"] == "SpeechStarted" and message["channel"][0] == channel:
                assert message["timestamp"] > began, "it began already"
                began, waits = message["timestamp"], True
                assert TABLES[self.setting.layout, channel].around(
                    round(began * RATE) - 1, round(began * RATE) + 2
                )
            elif message["type"] == "UtteranceEnd" and message["channel"][0] == channel:
                assert waits or not message.get("gateway"), "made up for nothing"
                waits = False
            elif told.kind is Kind.FINAL and message["channel_index"][0] == channel:
                waits = waits and not message["speech_final"]
        deaf = self.failed or self.abandoned  # then Deepgram did not say what it should have
        assert not waits or deaf, "the client waits for the end of speech"

    def check_gaps(self) -> None:
        """I5: each is said once; and none where there was room for everything."""
        for gap in self.gaps:
            assert self.is_justified(gap), gap
        spans = sorted((gap.start, gap.stop) for gap in self.gaps)
        if self.setting.channels == 1:
            assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(spans)), "declared twice"
            finals = self.windows(0)
            total = sum(b - a for a, b in finals) + sum(round((b - a) * RATE) for a, b in spans)
            assert abs(total - self.accepted) <= SLACK * (len(finals) + len(spans) + 1)
        noted = [gap for told in self.told for gap in told.message.get("gateway", {}).get("gaps", ())]
        if self.setting.goodbye != "gone":
            assert {gap["start"] for gap in noted} == {gap.start for gap in self.gaps}

    def is_justified(self, gap: Gap) -> bool:
        """Whether nothing better could be done."""
        small = self.setting.buffer < LONGEST
        match gap.reason:
            case "buffer_overflow":
                return small and self.setting.overflow == "drop_oldest"
            case "upstream_failed":
                return self.failed
            case "upstream_hole":
                start, stop = gap.start * RATE, gap.stop * RATE
                skips = [(m.epoch, a, b) for m in self.models for _, a, b in m.skipped]
                deaf = {e for e, a, b in skips if a <= stop + SLACK and start - SLACK <= b}
                at_end = stop >= self.accepted - SLACK and stop - start <= WORTH_A_DIAL * RATE + SLACK
                return len(deaf) > 1 or (bool(deaf) and (small or at_end))
        return False

    def check_controls(self) -> None:
        """I11: after all earlier audio and before any later, on each connection; one Finalize, one answer."""
        for model in self.models:
            left = list(self.said)
            for at, text in model.controls:
                place = max(0, model.base) + at
                fits = [
                    i
                    for i, (p, t) in enumerate(left)
                    if t == text and (p == place or (not at and p <= place))
                ]
                assert fits or model.base < 0, (place, text, self.said)
                del left[: fits[0] if fits else 0]
        asked = sum(text == FINALIZE for _, text in self.said)
        for channel in range(self.setting.channels):
            answers = [told for told in self.results(Kind.FINAL, channel) if told.message["from_finalize"]]
            assert len(answers) <= asked

    def check_end(self) -> None:
        """I12: one Metadata, last, with the whole call's duration and its gaps, then 1000."""
        setting = self.setting
        summaries = [told.message for told in self.told if told.message["type"] == "Metadata"]
        if self.failed:
            may_fail = setting.overflow == "fail" or self.poisoned > 1 or self.denied or self.abandoned > 1
            assert may_fail or self.out_of_time, self.end
            assert not summaries
            return
        if setting.goodbye == "gone":
            assert self.end[-1] == Ended("completed") or not self.book.said
            return
        close = Close(1012, "restart") if setting.goodbye == "restart" else Close(1000)
        assert self.end == [close, Ended("completed")]
        assert [summaries[-1]] == summaries == [self.told[-1].message]
        assert abs(summaries[0]["duration"] - self.book.said / self.frame / RATE) <= 1 / RATE
        notes = summaries[0].get("gateway", {})
        assert bool(notes.get("incomplete")) == bool(self.gaps)
        assert len(notes.get("gaps", ())) == len(self.gaps)
        if len(self.models) > 1:
            assert notes["upstream_request_ids"] == [model.rid for model in self.models]


def words_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result["channel"]["alternatives"][0]["words"]
    return found


def window(result: dict[str, Any]) -> tuple[int, int]:
    return round(result["start"] * RATE), round((result["start"] + result["duration"]) * RATE)


def check_pace(book: Playbook, rate: int) -> None:
    """I10: over any 5 s, one connection gets at most 1.25 times real time and one second."""
    for epoch in range(1, book.epoch + 1):
        log = [(t, len(o.message)) for t, e, o in book.all if e == epoch and isinstance(o, Up)]
        first = total = 0
        for t, length in log:
            total += length if length else 0
            while log[first][0] <= t - 5.0:
                total -= log[first][1]
                first += 1
            assert total <= rate * (1.25 * 5 + 1) + 400, (epoch, t - log[0][0], total / rate)


EVERY: Final = tuple(n / 20 for n in range(1, 20))
PARTS: Final = (0.0, *EVERY, *[1.0] * 15)
PAUSES: Final = (0.5, 1.0, 1.3, 3.0)
Steps = Sequence[tuple[str, Sequence[Any], int]]
STEPS: Final[Steps] = (  # what, how much of it, and how often; the first is the simplest
    ("wait", (0.01, 0.1, 1.0, 4.5), 2),
    ("connect", (0,), 6),
    ("audio", (1, 3, 160, 319, 320, 321, 1000, 2400, 16_000), 4),
    ("long", PAUSES, 8),
    ("final", (*PARTS, 1.0001, 1.3, 2.0), 6),
    ("pause", PARTS, 5),
    ("interim", PARTS, 3),
    ("control", (0, 0, 1, 2), 3),
    ("speech", (True, True, False), 5),
    ("break", (1000, 1006, 1006, 1011, 1011, 1012, 1005, 1008), 4),
    ("skip", PARTS, 1),
    ("mute", (True, False), 1),
    ("blocked", (True, False), 1),
    ("unreachable", (0,), 2),
    ("refused", (503, 429, 500, 408, 503, 429, 500, 403), 1),
    ("late", (0,), 1),
    ("odd", ("negative", "beyond", "regressing"), 1),
    ("garbage", (b"{", b"[]", b"\xff", b'{"type":"Results","channel_index":[7,2]}'), 1),
)
Menu = Sequence[tuple[str, Sequence[Any]]]


def menu(steps: Steps) -> Menu:
    return tuple((name, values) for name, values, often in steps for _ in range(often))


CALL: Final = menu(STEPS)


def schedules(few: int, many: int) -> st.SearchStrategy[bytes]:
    """Schedules, about half of them short."""
    return st.binary(min_size=3, max_size=3 * few) | st.binary(min_size=3 * few, max_size=3 * many)


SCHEDULES: Final = schedules(15, 45)
STRATEGIES = st.sampled_from(["hybrid", "hybrid", "preroll", "exact"])
LAYOUTS = st.sampled_from(["pauses", "none", "mixed"])
ENDINGS = st.lists(st.sampled_from(["early", "cut", "error", "short", "unclosed", "stall"]), max_size=3)
DIALS = st.lists(st.sampled_from(["refused", "unreachable", "slow"]), max_size=3)
EXACT = st.builds(
    lambda **setting: Setting(**setting),
    layout=LAYOUTS,
    channels=st.sampled_from([1, 1, 2, 3, 4]),
    strategy=STRATEGIES,
    interims=st.sampled_from(["asked", "asked", "asked", "forced", "none"]),
    rotate=st.sampled_from([0.0, 0.0, 3.0]),
    late=st.booleans(),
    goodbye=st.sampled_from(["close", "close", "close", "restart", "gone"]),
    endings=st.just(()) | ENDINGS.map(tuple),
    dials=st.just(()) | DIALS.map(tuple),
    spent=st.sampled_from([False, False, True]),
)


def run(call: Call, schedule: bytes, steps: Menu = CALL) -> None:
    call.begin()
    for at in range(0, len(schedule) - 2, 3):
        name, values = steps[schedule[at] % len(steps)]
        value = values[schedule[at + 1] % len(values)]
        note(f"{name} {value} {schedule[at + 2] % 4}")
        call.step(name, value, schedule[at + 2])
    call.finish()
    call.check()


@given(SCHEDULES, EXACT)
def test_no_word_is_lost_or_heard_twice(schedule: bytes, setting: Setting) -> None:
    """Whatever breaks and whenever: see the checks of `Call`.

    continuity.md I1, continuity.md I2, continuity.md I3, continuity.md I4, continuity.md I7,
    continuity.md I10, continuity.md I11, continuity.md I12, continuity.md I13
    """
    run(Call(setting._replace(buffer=LONGEST + 1)), schedule)


@given(SCHEDULES, EXACT)
def test_windows_tile_when_words_wander(schedule: bytes, setting: Setting) -> None:
    """A recogniser whose word times err by 30 ms: coverage, one clock and order all the same.

    continuity.md I1, continuity.md I2, continuity.md I3
    """
    run(Call(setting._replace(sigma=0.03, buffer=LONGEST + 1)), schedule)


@given(SCHEDULES, EXACT, st.sampled_from(["drop_oldest", "drop_oldest", "pause", "fail"]))
def test_what_does_not_fit_is_declared(schedule: bytes, setting: Setting, overflow: str) -> None:
    """A buffer of 5 s: what has no final is in exactly one gap, and the client knows (continuity.md I5)."""
    run(Call(setting._replace(overflow=overflow, buffer=5.0)), schedule)


def test_a_word_just_before_the_end_of_a_gap() -> None:
    """Another connection happens to hear it: it is told, once, where the gap ends (continuity.md I4)."""
    call = Call(Setting(layout="none", buffer=5.0))
    call.begin()
    for seconds in (1.3, 1.3, 0.5, 1.3, 1.0):
        call.step("long", seconds, 0)
    for name, value in (("skip", 0.65), ("final", 0.0), ("break", 1000)):
        call.step(name, value, 0)
    call.finish()
    call.check()
    (gap,) = call.gaps
    words = [word for told in call.results(Kind.FINAL, 0) for word in words_of(told.message)]
    assert words[0]["start"] == words[0]["end"] == gap.stop


class FluxCall(Call):
    """The same with turns."""

    def playbook(self) -> Playbook:
        query = f"model=flux-general-en&encoding=linear16&sample_rate={RATE}"
        return Playbook(query, ListenV2())

    def deepgram_says(self, name: str, part: float, channel: int, model: Model) -> None:
        stop = model.boundary(0, part)
        if stop == model.marks[0]:
            return
        if part < 0.2 and not model.in_turn:
            event = "Update"
        elif not model.in_turn:
            event = "StartOfTurn"
        else:
            event = "Update" if name == "interim" else "EndOfTurn"
        self.hears(model.turn(event, stop), model)

    def too_late(self, model: Model) -> bytes:
        return model.turn("EndOfTurn", model.heard)

    def metadata(self, model: Model) -> bytes:
        return b""

    def last_words(self, model: Model) -> None:
        if model.heard > model.marks[0]:
            if not model.in_turn:
                self.hears(model.turn("StartOfTurn", model.heard), model)
            self.hears(model.turn("EndOfTurn", model.heard), model)

    def check(self) -> None:
        turns = [(kind, m) for _, _, kind, m in self.told if m["type"] == "TurnInfo"]
        ids = [m["sequence_id"] for _, m in turns]
        assert all(a < b for a, b in pairwise(ids)), ids
        began = [m["turn_index"] for _, m in turns if m["event"] == "StartOfTurn"]
        ended = [m["turn_index"] for _, m in turns if m["event"] == "EndOfTurn"]
        assert began == ended == list(range(len(ended)))
        at = 0
        for _, turn in turns:
            start, stop = round(turn["audio_window_start"] * RATE), round(turn["audio_window_end"] * RATE)
            assert start >= at - SLACK
            at = stop if turn["event"] == "EndOfTurn" else at
        tokens = [t.text for t in TABLES[self.setting.layout, 0].around(0, at)]
        words = [w["word"] for kind, m in turns if kind is Kind.FINAL for w in m["words"]]
        assert [w for w in words[: len(tokens) - 1]] == tokens[: len(tokens) - 1]
        assert len(words) == len(tokens)
        assert at >= self.accepted - SLACK
        assert self.end == [Close(None), Ended("completed")]
        assert not self.gaps


TURNS: Final[Steps] = (
    ("wait", (0.01, 0.1, 1.0, 4.5), 1),
    ("connect", (0,), 4),
    ("long", (0.3, 1.0, 2.0), 4),
    ("final", PARTS, 4),
    ("interim", PARTS, 3),
    ("break", (1006, 1011), 3),
    ("mute", (True, False), 1),
    ("unreachable", (0,), 1),
    ("refused", (503, 429), 1),
    ("late", (0,), 1),
)


@given(schedules(10, 40), LAYOUTS, st.booleans(), st.lists(st.sampled_from(["early", "cut"]), max_size=2))
def test_turns_go_on(schedule: bytes, layout: str, late: bool, endings: list[str]) -> None:
    """Flux: each turn begins and ends once, turns and messages are counted on, and no word is lost.

    continuity.md I1, continuity.md I4
    """
    run(FluxCall(Setting(layout=layout, late=late, endings=tuple(endings))), schedule, menu(TURNS))


@given(schedules(10, 40))
def test_the_pace_holds_for_any_client(schedule: bytes) -> None:
    """Bursts, pauses and breaks: no connection is ever sent too much (continuity.md I10)."""
    book = Playbook(MULAW, client_idle=0) << ... >> opened() << ...
    for at in range(0, len(schedule) - 2, 3):
        length, pause, fate = schedule[at : at + 3]
        if book.session.reading:
            book = book >> audio((length + 0.1) * 3 / 256) << ...
        if fate % 10 == 9:
            book = book >> lost() << ...
        book = book >> wait(pause / 64) << ... >> opened() << ...
    book >> wait(30) << ...
    check_pace(book, RATE)


def later(seconds: float) -> Step:
    """Time passes at one go: an hour of `wait` takes seconds."""

    def step(book: Playbook) -> None:
        book.now += seconds
        book.session.handle_timer(book.now)

    return step


def test_a_day_at_the_telephone() -> None:
    """12 h: finals stay contiguous and times are the wire's, though these are float32 (continuity.md I2)."""
    book = Playbook(MULAW, client_idle=0, rotate=0, seam_strategy="exact") << Dial(1) >> opened() << ...
    at = 0.0
    for n in range(1, 12 * 450 + 1):
        for _ in range(10):
            book = book >> sent(bytes(RATE * 8 // 10)) << ... >> later(0.8) << ...
        start, stop = float32(at), 8.0 * n - 0.3
        raw = final(start, 0, duration=float32(stop - at))
        (deliver,) = (book >> heard(raw)).out()
        assert isinstance(deliver, Deliver)
        assert deliver.raw is raw
        at = stop
        book.all.clear()
        assert abs(len(book.session.stream.uplink.buffer) - 0.3 * RATE) <= max(
            1, 4 * float32_ulp(stop) * RATE
        )
    (broke, *_) = (book >> lost()).out()
    assert isinstance(broke, Broke)
    assert abs(broke.owed - 0.3) <= 4 * float32_ulp(at)
    book = book >> opened("two") << ... >> wait(2) << ...
    (deliver,) = (book >> heard(interim(0, 0.25, rid="two"))).out()
    assert isinstance(deliver, Deliver)
    assert abs(json.loads(deliver.raw)["start"] - at) <= 4 * float32_ulp(at)
    (deliver,) = (book >> heard(final(0, 0.3, rid="two"))).out()
    assert isinstance(deliver, Deliver)
    assert abs(json.loads(deliver.raw)["start"] - at) <= 4 * float32_ulp(at)
