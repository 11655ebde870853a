"""What a recogniser is to the emulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.emulator.sound import Format


class Word(NamedTuple):
    """A recognised word on its connection's clock: samples [start, end).

    `voice` tells speakers apart; `written` is the punctuated form, if the engine knows one.
    """

    text: str
    start: int
    end: int
    voice: int = 0
    confidence: float = 0.99
    written: str = ""


class EngineFull(Exception):
    """The engine takes no further stream; the client is answered 429."""


class Ear(Protocol):
    """One channel of one connection."""

    @property
    def heard(self) -> int:
        """Samples that have been listened to; results may reach up to here."""

    @property
    def pending_from(self) -> int | None:
        """Where a word or phrase begins that is not settled yet; no final may reach past it."""

    @property
    def tentative(self) -> list[Word]:
        """What the unsettled phrase sounds like so far; for interims only."""

    def feed(self, data: bytes) -> None:
        """Take raw bytes, all channels interleaved, in chunks of any size."""

    def take(self) -> list[Word]:
        """The words settled since the last call, in order."""

    def flush(self, hard: bool) -> None:
        """Settle what is pending; `settled` says when that is done.

        `hard`: the audio ends here, a word in the middle is cut. Otherwise a word being spoken may go on.
        """

    @property
    def settled(self) -> bool:
        """Whether nothing is under way in another thread."""

    @property
    def backlog_bytes(self) -> int:
        """Audio taken but not listened to yet."""

    def close(self) -> None:
        """Give back what the ear holds."""


class Engine(Protocol):
    """A kind of recogniser; makes one ear for each channel of each connection."""

    name: str

    def listen(self, fmt: Format, channel: int, wake: Callable[[], None]) -> Ear:
        """An ear for `channel` of raw audio; `wake` is called when it has news outside of `feed`.

        Raises EngineFull.
        """

    @property
    def max_streams(self) -> int | None:
        """How many live connections it can serve; None for any number."""

    def model_name(self, model: str) -> str:
        """The name in `model_info`, so that a reader sees who did the listening."""

    async def close(self) -> None:
        """Let go of everything."""


class InstantEar:
    """What all ears have in common that hear in `feed` itself."""

    def __init__(self) -> None:
        self.tentative: list[Word] = []
        self.settled = True
        self.backlog_bytes = 0
        self._words: list[Word] = []

    def take(self) -> list[Word]:
        words, self._words = self._words, []
        return words

    def close(self) -> None:
        """Nothing is held."""


class SilentEar(InstantEar):
    """Hears nothing, yet keeps time; for encodings this engine cannot decode."""

    def __init__(self, fmt: Format) -> None:
        super().__init__()
        self.pending_from: int | None = None
        self._frame = fmt.frame_bytes
        self._fed_bytes = 0

    @property
    def heard(self) -> int:
        return self._fed_bytes // self._frame

    def feed(self, data: bytes) -> None:
        self._fed_bytes += len(data)

    def flush(self, hard: bool) -> None:
        """Nothing is ever pending."""


class InstantEngine:
    """What all engines have in common whose ears are instant: no limit, and nothing to let go of."""

    max_streams = None

    def model_name(self, model: str) -> str:
        return model

    async def close(self) -> None:
        """Nothing is held."""
