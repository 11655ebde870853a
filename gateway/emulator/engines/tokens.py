"""Recognises token audio (`gateway.emulator.tokens`); everything else is a fragment."""

from __future__ import annotations

from collections.abc import Callable

from gateway.emulator.engines.base import Ear, InstantEar, InstantEngine, SilentEar, Word
from gateway.emulator.sound import Format
from gateway.emulator.tokens import Decoder, Heard


class TokenEar(InstantEar):
    """One channel of token audio."""

    def __init__(self, fmt: Format, channel: int, speakers: int) -> None:
        super().__init__()
        self._decoder = Decoder(fmt, channel)
        self._speakers = speakers

    @property
    def heard(self) -> int:
        return self._decoder.heard

    @property
    def pending_from(self) -> int | None:
        return self._decoder.pending_from

    def _word(self, heard: Heard) -> Word:
        voice = (heard.id or 0) % self._speakers
        confidence = 0.25 if heard.id is None else 0.9 + (heard.id % 100) / 1024
        return Word(heard.text, heard.start, heard.end, voice, confidence)

    def feed(self, data: bytes) -> None:
        self._words += map(self._word, self._decoder.feed(data))

    def flush(self, hard: bool) -> None:
        if hard:
            self._words += map(self._word, self._decoder.flush())


class TokenEngine(InstantEngine):
    """The `tokens` engine."""

    name = "tokens"

    def __init__(self, speakers: int) -> None:
        self._speakers = speakers

    def listen(self, fmt: Format, channel: int, wake: Callable[[], None]) -> Ear:
        return TokenEar(fmt, channel, self._speakers) if fmt.timed else SilentEar(fmt)
