"""Says a fixed text on a clock, whatever the audio holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gateway.emulator.engines.base import Ear, InstantEar, InstantEngine, Word
from gateway.emulator.sound import Format


@dataclass(frozen=True, slots=True)
class Script:
    """Sentences and their timing: seconds a word lasts, between words, between sentences."""

    sentences: Sequence[str]
    word: float
    gap: float
    pause: float
    loop: bool
    speakers: int

    def timed_words(self, sample_rate: int) -> Iterator[Word]:
        """The text as words on the clock; endless if it loops."""
        at, sentence, lines = self.pause / 2, 0, [line.split() for line in self.sentences if line.split()]
        while lines:
            for text in lines[sentence % len(lines)]:
                start, end = round(at * sample_rate), round((at + self.word) * sample_rate)
                yield Word(text, start, end, sentence % self.speakers)
                at += self.word + self.gap
            at += self.pause
            sentence += 1
            if sentence == len(lines) and not self.loop:
                return


class ScriptEar(InstantEar):
    """One channel; every channel says the same."""

    def __init__(self, fmt: Format, script: Script) -> None:
        super().__init__()
        self._frame = fmt.frame_bytes
        self._fed_bytes = 0
        self._coming = script.timed_words(fmt.sample_rate)
        self._next = next(self._coming, None)

    @property
    def heard(self) -> int:
        return self._fed_bytes // self._frame

    @property
    def pending_from(self) -> int | None:
        begun = self._next is not None and self._next.start < self.heard
        return self._next.start if begun and self._next is not None else None

    def feed(self, data: bytes) -> None:
        self._fed_bytes += len(data)
        while self._next is not None and self._next.end <= self.heard:
            self._words.append(self._next)
            self._next = next(self._coming, None)

    def flush(self, hard: bool) -> None:
        if hard and self.pending_from is not None and self._next is not None:
            self._words.append(self._next._replace(end=self.heard))
            self._next = next(self._coming, None)


class ScriptEngine(InstantEngine):
    """The `script` engine."""

    name = "script"

    def __init__(self, script: Script) -> None:
        self._script = script

    def listen(self, fmt: Format, channel: int, wake: Callable[[], None]) -> Ear:
        return ScriptEar(fmt, self._script)
