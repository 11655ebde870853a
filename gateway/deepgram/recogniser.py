"""What a session must understand of a streaming dialect; `listen` has the two of Deepgram.

A recogniser says what a raw message does to a session (`read`), moves its times onto another clock
(`shift`), and names the control messages that it knows. It keeps no state.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Protocol

import msgspec

MAX_CHANNELS: Final = 20
"""Of a multichannel stream (developers.deepgram.com/docs/multichannel)."""
LONGEST: Final = 1e8
"""Seconds: three years. A time beyond it is nonsense, which must not reach arithmetic on samples."""
DECIMALS: Final = 6
"""A rebased time is rounded to the microsecond: a sample at 48 kHz lasts 21."""


class Kind(enum.IntEnum):
    """What a message means to a session, whatever its type is called."""

    INTERIM = 0
    FINAL = 1
    HELLO = 2
    """Sent once when a connection opens (Flux `Connected`)."""
    SUMMARY = 3
    """Sent at the end of a connection, also before an error close (v1 `Metadata`)."""
    SPEECH_BEGAN = 4
    SPEECH_ENDED = 5
    """v1 `SpeechStarted` and `UtteranceEnd`: `end` is the second they speak of, negative for none."""
    CONFIGURED = 6
    """The answer to a Configure, whatever it says."""
    OTHER = 7


INTERIM: Final = Kind.INTERIM
FINAL: Final = Kind.FINAL
"""By these names where every result comes by: before Python 3.12 an enum is slow to find its members."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """One message of a recogniser. Times are seconds since its connection's first audio.

    `start` is negative where a final does not say where it begins: it covers all since the last one.
    `accepted` is that of a Configure. `sequence` is negative where messages have no number.
    """

    kind: Kind
    channel: int = 0
    channels: int = 1
    start: float = 0.0
    end: float = 0.0
    from_finalize: bool = False
    ends_speech: bool = False
    request_id: str = ""
    begins_turn: bool = False
    may_end_turn: bool = False
    accepted: bool = False
    turn: int = 0
    sequence: int = -1


class Shift(msgspec.Struct, frozen=True):
    """How one connection's numbers become the session's.

    `seconds` is added to every time, and within a result `more` from some seconds on, where the client left
    audio out: (the second, how much); a result's own window is given whole (`start`, `end`), so that finals
    tile; `duration` replaces that of the summary; `speakers` and `turns` are added to labels and turn
    numbers, `sequence` replaces Flux's; with `in_turn` the client already knows that the turn began; with
    `resumes` it was told that the turn may be over, and must be told otherwise before it goes on.
    """

    seconds: float = 0.0
    start: float = 0.0
    end: float = 0.0
    duration: float = 0.0
    speakers: int = 0
    turns: int = 0
    sequence: int = 0
    in_turn: bool = False
    resumes: bool = False
    more: tuple[tuple[float, float], ...] = ()

    def at(self, second: float) -> float:
        """What to add to a time, or to both of something whose middle is `second`."""
        return self.seconds + sum(by for since, by in self.more if second >= since)


class Recogniser(Protocol):
    """What a session needs to know of a streaming dialect."""

    path: ClassVar[str]
    controls: ClassVar[frozenset[str]]
    keepalive: ClassVar[str | bytes]
    """The message that keeps an idle connection open; b"" stands for a WebSocket ping."""
    idle_close: ClassVar[bool]
    """Whether a client that sends nothing is closed like NET-0001."""
    close_stream: ClassVar[str]
    has_summary: ClassVar[bool]
    """Whether a finished connection says so in a message; else its close is all."""
    close_codes: ClassVar[frozenset[int]]
    """The close codes of a connection that ended as asked."""
    end_code: ClassVar[int | None]
    """The close code that a client sees at the end; None: a close frame without status."""
    has_windows: ClassVar[bool]
    """Whether results are windows of words that a cut can divide; a Flux turn is one whole."""

    def read(self, raw: bytes) -> Reading:
        """What `raw` means to a session.

        Raises `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError` when it is no JSON object with
        a `type`, or a result with a channel or a time that cannot be.
        """

    def shift(self, message: dict[str, Any], shift: Shift) -> None:
        """Changes the numbers of a decoded message; unknown fields stay.

        Raises `msgspec.ValidationError` for a time that cannot be.
        """

    def error(self, description: str, sequence: int) -> bytes:
        """The message that says that something went wrong; its number is `sequence` where they have one."""


def objects(parent: Any, name: str) -> Iterator[dict[str, Any]]:
    """The objects of the list `name` in `parent`: none where the message is not as documented."""
    items = parent.get(name) if isinstance(parent, dict) else None
    if isinstance(items, list):
        yield from (item for item in items if isinstance(item, dict))


# What changes numbers stays here, interpreted: to compiled code one of 400 digits is a TypeError.


def shift_times(items: Iterator[dict[str, Any]], shift: Shift) -> None:
    for item in items:
        if shift.more:
            times = [t for t in (item.get("start"), item.get("end")) if isinstance(t, int | float)]
            by = Shift(seconds=shift.at(sum(times) / max(1, len(times))))
        else:
            by = shift
        shift_field(item, "start", by)
        shift_field(item, "end", by)


def shift_field(item: dict[str, Any], name: str, shift: Shift) -> None:
    value = item.get(name)
    if isinstance(value, int | float) and value >= 0:  # UtteranceEnd has -1 for "already over"
        if not value < LONGEST:
            raise msgspec.ValidationError(f"{name} is no time")
        item[name] = round(value + shift.at(value), DECIMALS)


def shift_count(item: dict[str, Any], name: str, by: int) -> None:
    value = item.get(name)
    if isinstance(value, int):
        item[name] = value + by
