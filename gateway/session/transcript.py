"""What the client is told: the messages of every connection on one clock, each thing said once.

Until a connection has been lost a message passes as the bytes that came. After that its numbers are shifted,
results that reach back over the watermark lose what is final already, and labels go on where they stopped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec

from gateway.audio.containers import Clock
from gateway.deepgram.recogniser import FINAL, Kind, Reading, Recogniser, Shift, objects
from gateway.session import seam
from gateway.session.events import Gap
from gateway.session.timeline import Timeline

FURTHEST: Final = 1.0
"""Seconds by which a result may reach beyond the audio sent; more is no rounding (faults.md 24)."""
REMEMBERED_FINALS: Final = 3
"""Finals with words kept per channel, as bytes, to know the last words when a connection is lost."""

APART: Final = 100
"""Speaker labels between those of two connections that work at the same time: nobody knows how many the one
that began first will need."""

SAME: Final = 0.1
"""Seconds by which two connections may differ about when the same speech began or ended."""

NOBODY: Final[frozenset[int]] = frozenset()
"""No channel. Four empty sets of its own would be a kilobyte of each call."""

_DECIMALS: Final = 6

_SPEECH: Final = (Kind.SPEECH_BEGAN, Kind.SPEECH_ENDED)
_WORD = re.compile(rb'"words":\s*\[\s*\{')
_SPEAKER = re.compile(rb'"speaker":\s*(\d{1,6})\b')  # a longer one is no label to count from
_decode: Final = msgspec.json.Decoder(dict[str, Any])
_encode: Final = msgspec.json.Encoder().encode


_NAMES: Final = (  # noqa: SIM905 (forty names, one to a line, say no more)
    "_annotate _as_it_comes _clock _diarized _edge _epoch _finals _forsaken _is_aside _latest _moved "
    "_notes _overdue _paused _preroll _reached _recogniser _said _seams _sequence _speaker_base "
    "_speakers _speaking _spoken _strategy _turn _turn_base _turn_paused _turn_resumes _turn_told gaps "
    "quarantined repeated stop timeline"
).split()


class Transcript:
    """`gaps`: all that was declared; `quarantined` and `repeated` count results that were not passed on.

    `stop` is the sample up to which results are told, the rest being another transcript's.
    """

    # With more than thirty names an instance has a dict of its own, of 1.5 KiB.
    __slots__ = _NAMES

    def __init__(
        self,
        recogniser: Recogniser,
        clock: Clock,
        channels: int,
        *,
        strategy: seam.Strategy,
        preroll: float,
        diarized: bool,
        annotate: bool,
    ) -> None:
        self.timeline = Timeline(clock, channels)
        self.gaps: list[Gap] = []
        self.quarantined = 0
        self.repeated = 0
        self.stop = sys.maxsize
        self._recogniser = recogniser
        self._clock = clock
        self._strategy: seam.Strategy = strategy if recogniser.has_windows else "exact"
        self._preroll = preroll
        self._diarized = diarized
        self._annotate = annotate
        self._epoch = 1
        # Whether an interim needs nothing but to be plausible, until messages need other numbers.
        self._as_it_comes = clock.exact and recogniser.has_windows and not diarized
        self._moved = False  # whether messages need other numbers than they came with
        self._edge = (-1, 0)  # the sample before which another transcript tells, and the first one heard here
        self._is_aside = False
        self._finals: dict[int, list[bytes]] = {}
        self._said: dict[int, list[seam.Word]] = {}
        self._reached: dict[int, float] = {}  # the last final's end per channel, on this connection's clock
        self._notes: dict[str, Any] = {}
        self._speakers = 0  # labels in use so far,
        self._speaker_base = 0  # and those of them that earlier connections used
        self._seams: dict[int, float] = {}  # the second per channel up to which speech was told of before
        self._speaking = NOBODY  # channels whose speech began, as far as the client knows,
        self._forsaken = NOBODY  # of these, those where only a lost connection knew of it,
        self._overdue = NOBODY  # and those where nobody will say that it ended
        self._paused = NOBODY  # channels whose last final ended an utterance
        self._spoken: dict[tuple[Kind, int], float] = {}  # the latest second told, by channel
        self._turn = 0  # the present or next one
        self._turn_told = False  # the client knows that it began
        self._turn_paused = False  # it was said that it may be over,
        self._turn_resumes = False  # by a connection that is gone
        self._turn_base = 0
        self._sequence = -1  # the number of the last message, as the client has it,
        self._latest = -1  # and as the present connection has it

    @property
    def keep_from(self) -> int:
        """The sample with which a new connection might want to begin."""
        watermark = self.timeline.watermark
        if watermark == self._edge[0]:
            return self._edge[1]
        preroll = self._preroll if self._strategy != "exact" else 0.0
        return max(0, watermark - round(preroll * self._clock.rate_hz))

    def hand_over(self, edge: int, begin: int, *, is_aside: bool) -> Transcript:
        """Another transcript tells what lies before sample `edge`; this one the rest, heard from `begin` on.

        `is_aside`: what the other one tells is told out of order.
        """
        other = Transcript(  # what `copy` cannot make of a compiled object; all of it is then replaced
            self._recogniser,
            self._clock,
            0,
            strategy=self._strategy,
            preroll=self._preroll,
            diarized=self._diarized,
            annotate=self._annotate,
        )
        for name in _NAMES:
            setattr(other, name, getattr(self, name))
        other.timeline = self.timeline.hand_over(edge)
        other.stop = edge
        other.quarantined = other.repeated = 0
        other._is_aside = is_aside
        other._annotate |= is_aside  # who asked for it must know it
        other._notes = {}
        other._finals = self._finals.copy()
        other._said, other._reached = {}, {}
        # Speech that has begun ends in what the other one hears, unless that is where it is cut.
        self._speaking = self._forsaken = self._overdue = self._paused = NOBODY
        other._spoken = self._spoken.copy()
        other._speakers += APART
        self._edge = (edge, begin)
        self._follow_seams()
        return other

    def take_back(self, other: Transcript) -> None:
        """The other transcript has said its last."""
        self.quarantined += other.quarantined
        self.repeated += other.repeated
        self._speakers = max(self._speakers, other._speakers)
        untold = other._notes.get("gaps", [])
        if untold:
            self._notes["gaps"] = untold + self._notes.get("gaps", [])
        unended = other._speaking - self._paused
        self._speaking |= unended
        self._forsaken |= unended

    def begin_epoch(self, kept: int) -> int:
        """A connection opens; audio from sample `kept` on is still there. Returns its first sample."""
        timeline = self.timeline
        self._latest = -1
        if not self._clock.timed:
            timeline.rebase(0)
            return 0
        lost = min(kept, self.stop)
        if lost > timeline.watermark:
            self.declare_gap(timeline.watermark, lost, "buffer_overflow")
            timeline.forgive(lost)
        base = self._first_sample()
        if base < kept:
            base = max(kept, timeline.watermark)  # a pre-roll that begins just anywhere helps nobody
        base = self._clock.first_sample(self._clock.offset(base))  # where audio can be cut
        timeline.rebase(base)
        self._moved = self._moved or base > 0
        return base

    def begin_again(self, epoch: int) -> None:
        """From here on it is connection `epoch`'s words that come, which did not hear all of the call."""
        self._epoch = epoch
        self._moved = True
        self._reached.clear()
        self._speaker_base = self._speakers
        self._follow_seams()
        self._turn_resumes = self._turn_paused
        self._turn_base = self._turn
        self._note("epoch", epoch)

    def declare_gap(self, start: int, stop: int, reason: str) -> None:
        """Samples that no final will cover."""
        for seconds in self.timeline.pieces(start, stop):
            self._declare(Gap(*seconds, reason))
        self._overdue |= self._speaking

    def lose_track(self, reason: str) -> None:
        """Without a clock: some audio will have no final, and nobody knows how much.

        The gap lies where results had come to. That is the least it can be, perhaps nothing at all.
        """
        start, stop = self.timeline.unsaid
        self._declare(Gap(round(start, _DECIMALS), round(stop, _DECIMALS), reason))
        self._overdue |= self._speaking

    def leave_out(self, sample: int, length: int) -> None:
        """The client has no audio for `length` samples before `sample`, and goes on after them."""
        timeline = self.timeline
        self._moved = self._moved or self._clock.exact
        # Without a clock nobody knows for how long, but it is said all the same.
        seconds = timeline.leave_out(sample, length) if self._clock.exact else timeline.unsaid[1:] * 2
        self._declare(Gap(*seconds, "client_discarded"))

    def is_plausible(self, reading: Reading, sent: int) -> bool:
        """Whether an interim or final can be; one that cannot is counted, and must have no effect."""
        if self._is_implausible(reading, sent):
            self.quarantined += 1
            return False
        return True

    def as_it_came(self, reading: Reading, sent: int) -> int:
        """The sample that an interim reaches, if it goes to the client as it came and nothing else comes of
        it: news of audio that went up, in a call without a break. Else -1."""
        if self._moved or not self._as_it_comes:
            return -1
        channel, rate, committed = reading.channel, self._clock.rate_hz, self.timeline.committed
        if reading.channels > len(committed) or round(reading.start * rate) < committed[channel]:
            return -1
        last = round(reading.end * rate)
        return last if last <= sent and reading.start >= self._reached.get(channel, 0.0) - FURTHEST else -1

    def result(self, reading: Reading, raw: bytes, sent: int) -> bytes | None:
        """An interim or final for the client, or None when it says nothing new; finals are committed."""
        timeline, is_final = self.timeline, reading.kind is FINAL
        if 0 <= reading.sequence <= self._latest:
            self.repeated += 1
            return None
        timeline.follow(reading)
        # A connection that is still in its pre-roll has nothing new to say, whatever its windows claim.
        is_old = self._recogniser.has_windows and sent < timeline.mark(reading)
        overlaps = self._recogniser.has_windows and timeline.overlap(reading)
        if self._moved or overlaps or is_old:
            message = self._shifted(reading, raw)
            if not self._cut_after(message):
                timeline.commit(reading, min(sent, self.stop))
                return None
            if reading.ends_speech and not message.get("speech_final", True):
                reading = msgspec.structs.replace(reading, ends_speech=False)  # that end lies beyond `stop`
            is_silent = not any(_words(message))
            if is_old:
                message["start"], message["duration"] = timeline.second(timeline.mark(reading)), 0.0
            if is_old or (overlaps and not self._cut(message, reading)):
                self.repeated += 1
                self._hear(reading.channel, is_silent=is_silent, is_final=False)
                return self._late_end(message, reading)
            self._hear(reading.channel, is_silent=is_silent, is_final=is_final)
            raw = _encode(message)
        if self._diarized:
            labels = max(map(int, _SPEAKER.findall(raw)), default=-1) + 1
            self._speakers = max(self._speakers, labels)
        if not self._recogniser.has_windows:
            self._follow_turn(reading)
        if not is_final:
            return raw
        self._follow_utterance(reading)
        self._remember(reading, raw)
        skipped = timeline.commit(reading, min(sent, self.stop))
        if skipped:
            self.declare_gap(*skipped, "upstream_hole")
        if self._is_aside:
            self._note("backfill", True)
        return self._annotated(raw)

    def other(self, reading: Reading, raw: bytes) -> bytes | None:
        """Any other message for the client, or None when it was said before the connection was lost."""
        if self._moved:
            if reading.kind in _SPEECH:
                self._forsaken -= {reading.channel}
                if self._was_spoken(reading):
                    return None
            raw = _encode(self._shifted(reading, raw))
        elif reading.kind in _SPEECH:
            self._was_spoken(reading)
        if reading.kind is Kind.SPEECH_BEGAN:
            self._speaking |= {reading.channel}
        elif reading.kind is Kind.SPEECH_ENDED:
            self._speaking -= {reading.channel}
        self._count(reading)
        return raw

    def broke(self) -> None:
        """The connection is gone that was to tell when present speech ends."""
        self._forsaken |= self._speaking

    def ended(self) -> None:
        """No connection will say any more."""
        self._overdue |= self._forsaken

    def overdue_ends(self) -> list[bytes]:
        """An end for speech whose own will not come: clients wait for one once they saw it begin."""
        ends: list[bytes] = []
        if not self._overdue:
            return ends
        for channel in sorted(self._overdue & self._speaking):
            said = self._last_words(channel)
            end: dict[str, Any] = {
                "type": "UtteranceEnd",
                "channel": [channel, len(self.timeline.committed)],
                "last_word_end": round(said[-1].end, _DECIMALS) if said else -1,
                "gateway": {"synthetic": True},
            }
            ends.append(_encode(end))
        self._speaking -= self._overdue
        self._forsaken -= self._overdue
        self._overdue = NOBODY
        return ends

    def failure(self, description: str) -> bytes | None:
        """What a client must still know when there will be no result to put it beside."""
        if "gaps" not in self._notes or not self._annotate:
            return None
        self._note("incomplete", True)
        return self._annotated(self._recogniser.error(description, self._sequence + 1))

    def summary(self, raw: bytes, seconds: float, request_ids: list[str]) -> bytes:
        """The one Metadata of the whole session, which lasted `seconds`."""
        if self._moved:
            message = _decode.decode(raw)
            self._recogniser.shift(message, Shift(duration=round(seconds, 6)))
            raw = _encode(message)
            self._note("upstream_request_ids", request_ids)
            self._note("synthetic_fields", ["duration"])
        if self.gaps:
            self._note("incomplete", True)
            self._note("gaps", sorted(self.gaps, key=lambda gap: gap.start))
        return self._annotated(raw)

    def duration(self, reading: Reading) -> float:
        """What the summaries of all connections count together, where there is no clock of our own."""
        return round(reading.end + self.timeline.place(reading)[0], 6)

    # Private

    def _declare(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self._notes.setdefault("gaps", []).append(gap)

    def _follow_seams(self) -> None:
        marks = self.timeline.committed if self._clock.timed else []
        self._seams = {channel: self.timeline.second(mark) for channel, mark in enumerate(marks)}

    def _first_sample(self) -> int:
        timeline = self.timeline
        watermark = timeline.watermark
        if watermark == self._edge[0]:
            return self._edge[1]
        if not watermark:
            return 0
        behind = [
            self._last_words(channel) for channel, mark in enumerate(timeline.committed) if mark == watermark
        ]
        begin = seam.begin(self._strategy, timeline.second(watermark), behind, self._preroll)
        return min(watermark, timeline.shortly_before(begin, watermark))

    def _shifted(self, reading: Reading, raw: bytes) -> dict[str, Any]:
        start, end = self.timeline.window(reading)
        seconds, more = self.timeline.place(reading)
        message: dict[str, Any] = _decode.decode(raw)
        shift = Shift(
            seconds=seconds,
            more=more,
            start=start,
            end=end,
            speakers=self._speaker_base,
            turns=self._turn_base,
            sequence=self._sequence + 1,
            in_turn=self._turn_told,
            resumes=self._turn_resumes,
        )
        self._recogniser.shift(message, shift)
        return message

    def _cut(self, message: dict[str, Any], reading: Reading) -> bool:
        mark, edge = (self.timeline.second(at) for at in (self.timeline.mark(reading), self._edge[0]))
        return seam.cut(message, mark, self._last_words(reading.channel), edge)

    def _cut_after(self, message: dict[str, Any]) -> bool:
        return self.stop == sys.maxsize or seam.cut_after(message, self.timeline.second(self.stop, ends=True))

    def _last_words(self, channel: int) -> list[seam.Word]:
        if channel not in self._said:
            self._said[channel] = seam.tail(_readable(self._finals.get(channel, ())))
        return self._said[channel]

    def _is_implausible(self, reading: Reading, sent: int) -> bool:
        """Whether Deepgram cannot mean it: audio that it never got, or a second it had left behind."""
        if self.timeline.ahead(reading, sent) > FURTHEST:
            return True
        if reading.start < 0:
            return False
        reached = self._reached.get(reading.channel, 0.0)
        if reading.start < reached - FURTHEST:
            return True
        if reading.kind is FINAL:
            self._reached[reading.channel] = max(reached, reading.end)
        return False

    def _late_end(self, message: dict[str, Any], reading: Reading) -> bytes | None:
        """Of a result that says nothing new: that the last utterance is over, if the client does not know."""
        said, (_, end) = self._last_words(reading.channel), self.timeline.window(reading)
        is_last = not said or said[-1].end <= end + seam.DOUBT
        if reading.kind is not Kind.FINAL or not reading.ends_speech or reading.channel in self._paused:
            return None
        if not is_last or self.timeline.mark(reading) == self._edge[0]:  # or it is the other transcript's
            return None
        self._follow_utterance(reading)
        seam.empty(message)
        message["from_finalize"] = False  # that was answered when what it finalised was told
        return self._annotated(_encode(message))

    def _follow_utterance(self, reading: Reading) -> None:
        """The client gets a final, and with it what it says of the utterance."""
        if reading.ends_speech:
            self._paused |= {reading.channel}
            self._speaking -= {reading.channel}
            self._forsaken -= {reading.channel}
        else:
            self._paused -= {reading.channel}

    def _hear(self, channel: int, *, is_silent: bool, is_final: bool) -> None:
        """A connection that hears words tells their end too; one that hears silence knows of no speech."""
        if channel not in self._forsaken:
            return
        if not is_silent:
            self._forsaken -= {channel}
        elif is_final:
            self._overdue |= {channel}

    def _remember(self, reading: Reading, raw: bytes) -> None:
        if self._recogniser.has_windows and _WORD.search(raw):
            latest = [*self._finals.get(reading.channel, ()), raw]
            self._finals[reading.channel] = latest[-REMEMBERED_FINALS:]
            self._said.pop(reading.channel, None)

    def _was_spoken(self, reading: Reading) -> bool:
        """Whether a SpeechStarted or UtteranceEnd for this second was told before."""
        if reading.end < 0:
            return False
        second = round(reading.end + self.timeline.place(reading)[0], 6)
        what = (reading.kind, reading.channel)
        known = self._spoken.get(what, -1.0) + SAME
        if reading.kind is Kind.SPEECH_BEGAN:
            known = max(known, self._seams.get(reading.channel, -1.0))
        if (self._epoch > 1 or self._edge[0] >= 0) and second <= known:
            self.repeated += 1
            return True
        if self.stop < sys.maxsize and second > self.timeline.second(self.stop):
            return True
        self._spoken[what] = second
        return False

    def _follow_turn(self, reading: Reading) -> None:
        is_over = reading.kind is Kind.FINAL
        self._turn = reading.turn + self._turn_base + is_over
        self._turn_paused, self._turn_resumes = reading.may_end_turn, False
        self._turn_told = not is_over and (self._turn_told or reading.begins_turn)
        self._count(reading)

    def _count(self, reading: Reading) -> None:
        """A message goes to the client, under the next number if it has one."""
        if reading.sequence >= 0:
            self._latest = reading.sequence
            self._sequence = self._sequence + 1 if self._moved else reading.sequence

    def _note(self, name: str, value: Any) -> None:
        self._notes[name] = value

    def _annotated(self, raw: bytes) -> bytes:
        """`raw` with what is to be said beside it, in one extra key at the end."""
        if not self._notes:
            return raw
        notes, self._notes = self._notes, {}
        if not self._annotate:
            return raw
        if self._diarized and "epoch" in notes:
            notes["speaker_epoch"] = self._epoch
        return raw.rstrip()[:-1] + b',"gateway":' + _encode(notes) + b"}"


def _readable(finals: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """They went to the client as they came, of which some could not be read."""
    for raw in finals:
        with suppress(msgspec.DecodeError, RecursionError):
            yield _decode.decode(raw)


def _words(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for alternative in objects(message.get("channel"), "alternatives"):
        yield from objects(alternative, "words")
