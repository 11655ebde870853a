"""Cut one channel's words into Deepgram's windows: interims that grow, finals that follow one another. Pure.

Everything is in samples of the connection. A window begins where the final before it ended; interims restate
it about once a second; it becomes final at a pause, at its full length, or when the client asks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gateway.emulator.engines.base import Ear, Word
from gateway.emulator.knobs import Knobs
from gateway.emulator.query import ListenOptions


class Window(NamedTuple):
    """One `Results`: samples [start, end) and the words in it."""

    start: int
    end: int
    words: tuple[Word, ...]
    is_final: bool
    speech_final: bool = False
    from_finalize: bool = False


class Onset(NamedTuple):
    """One `SpeechStarted`."""

    at: int


class Lull(NamedTuple):
    """One `UtteranceEnd`."""

    last_word_end: int


Event = Window | Onset | Lull


@dataclass(frozen=True, slots=True)
class Rules:
    """How windows are cut; lengths in samples."""

    interims: bool
    interim: int
    window_min: int
    window_max: int
    silence: int
    endpointing: int | None
    utterance_end: int | None
    onsets: bool
    onset_pause: int
    short_final: float
    revise: float

    @classmethod
    def of(cls, knobs: Knobs, options: ListenOptions, sample_rate: int) -> Rules:
        """The rules for a connection's query and sample rate."""

        def ms(value: int | None) -> int | None:
            return None if value is None else value * sample_rate // 1000

        return cls(
            interims=options.interim_results,
            interim=round(knobs.interim_interval * sample_rate),
            window_min=round(knobs.window_min * sample_rate),
            window_max=round(knobs.window_max * sample_rate),
            silence=round(knobs.silence_window * sample_rate),
            endpointing=ms(options.endpointing_ms),
            utterance_end=ms(options.utterance_end_ms),
            onsets=options.vad_events,
            onset_pause=round(0.3 * sample_rate),
            short_final=knobs.short_final,
            revise=knobs.revise,
        )


class Windows:
    """The windows of one channel."""

    def __init__(self, rules: Rules, ear: Ear, rng: random.Random) -> None:
        self._rules = rules
        self._ear = ear
        self._rng = rng
        self._words: list[Word] = []  # settled, not final yet; may lie ahead of the position
        self.start = 0
        self._next_interim = rules.interim
        self._limit = self._draw_limit()
        self._voiced_until: int | None = None
        self._told_lull = True
        self._onset_told_for = -1

    def _draw_limit(self) -> int:
        return self._rng.randint(self._rules.window_min, self._rules.window_max)

    def advance(self, at: int) -> Iterator[Event]:
        """What is to be said when listening has come to sample `at`."""
        self._words += self._ear.take()
        opened = self._open_word(at)
        seen = [word for word in self._words if word.end <= at]
        yield from self._onset(seen, opened)
        if seen:
            self._voiced_until, self._told_lull = max(seen[-1].end, self._voiced_until or 0), False
        yield from self._result(at, seen, opened)
        yield from self._lull(at, opened)

    def _open_word(self, at: int) -> int | None:
        """Where a word begins that is being spoken at `at`."""
        pending = self._ear.pending_from
        starts = [word.start for word in self._words if word.start < at < word.end]
        if pending is not None and pending < at:
            starts.append(pending)
        return min(starts, default=None)

    def _onset(self, seen: list[Word], opened: int | None) -> Iterator[Event]:
        until = self._voiced_until
        starts = [word.start for word in seen] + ([opened] if opened is not None else [])
        start = min((start for start in starts if until is None or start >= until), default=None)
        if start is None or start <= self._onset_told_for or not self._rules.onsets:
            return
        if until is None or start - until >= self._rules.onset_pause:
            self._onset_told_for = start
            yield Onset(start)

    def _result(self, at: int, seen: list[Word], opened: int | None) -> Iterator[Event]:
        if at <= self.start:
            return
        pause = at - max(self._voiced_until or 0, self.start)
        ended = opened is None and self._rules.endpointing is not None and pause >= self._rules.endpointing
        if seen and ended:
            yield self._final(at, speech_final=True)
        elif not seen and opened is None and at - self.start >= self._rules.silence:
            yield self._final(at, speech_final=ended)
        elif at - self.start >= self._limit and (seen or opened is None or opened > self.start):
            yield from self._full(at, seen, opened)
        elif at >= self._next_interim:
            yield from self._interim(at, seen)

    def _full(self, at: int, seen: list[Word], opened: int | None) -> Iterator[Event]:
        """The window is as long as it may be: cut it between words."""
        if len(seen) >= 2 and self._rng.random() < self._rules.short_final:
            yield from self._interim(at, seen)
            yield self._final((seen[-2].end + seen[-1].start) // 2)
        elif opened is None:
            yield self._final(at)
        else:
            yield self._final((max(seen[-1].end if seen else self.start, self.start) + opened) // 2)

    def _interim(self, at: int, seen: list[Word]) -> Iterator[Event]:
        self._next_interim = at + self._rules.interim
        if not self._rules.interims:
            return
        words = seen + [word for word in self._ear.tentative if word.start < at]
        if words and self._rng.random() < self._rules.revise:
            words[-1] = words[-1]._replace(text=f"mis{words[-1].text}", confidence=0.5)
        yield Window(self.start, at, tuple(words), is_final=False)

    def _final(self, end: int, *, speech_final: bool = False, from_finalize: bool = False) -> Window:
        words = tuple(word for word in self._words if word.end <= end)
        window = Window(self.start, end, words, True, speech_final, from_finalize)
        self._words = self._words[len(words) :]
        self.start, self._next_interim, self._limit = end, end + self._rules.interim, self._draw_limit()
        return window

    def _lull(self, at: int, opened: int | None) -> Iterator[Event]:
        wait, last = self._rules.utterance_end, self._voiced_until
        if wait is None or last is None or self._told_lull or opened is not None or at - last < wait:
            return
        self._told_lull = True
        yield Lull(last)

    def finalize(self, at: int, speech_final: bool, minimum: int) -> Iterator[Event]:
        """The client wants what there is: a final up to `at`, or up to the word being spoken there."""
        self._words += self._ear.take()
        opened = self._open_word(at)
        end = at if opened is None else max(opened, self.start)
        if end - self.start >= minimum:
            seen = [word for word in self._words if word.end <= end]
            self._note_voice(seen)
            yield self._final(end, speech_final=speech_final, from_finalize=True)

    def finish(self, at: int) -> Iterator[Event]:
        """The audio ended at `at`, and the ear is flushed."""
        self._words += self._ear.take()
        self._note_voice(self._words)
        if at > self.start or self._words:
            yield self._final(max([at, *(word.end for word in self._words)]), speech_final=True)

    def _note_voice(self, seen: list[Word]) -> None:
        if seen:
            self._voiced_until, self._told_lull = max(seen[-1].end, self._voiced_until or 0), False

    def skip_to(self, at: int) -> None:
        """The next window begins at `at`, and the words before are as if never said (a fault)."""
        self._words = [word for word in self._words + self._ear.take() if word.start >= at]
        self.start, self._next_interim = max(self.start, at), at + self._rules.interim
