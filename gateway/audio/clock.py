"""What a call's bytes mean in time: an exact clock, or none at all. See `containers` for those between.

Deepgram reads `encoding`, `sample_rate` and `channels` for headerless audio only; without `encoding` the
audio must carry its own header (developers.deepgram.com/docs/encoding).
"""

from __future__ import annotations

import functools
from typing import Final, Literal

Continuity = Literal["exact", "best_effort", "none"]
"""What may be relied on when a connection breaks: see docs/continuity.md."""

SAMPLE_BYTES = {"linear16": 2, "linear32": 4, "mulaw": 1, "alaw": 1}
"""Bytes per sample of the encodings in which every byte has its place in time."""


_NAMES: Final = ("container", "frame_bytes", "joinable", "preamble", "rate_hz")


class MediaClock:
    """How many bytes are a second.

    `frame_bytes` is one sample of every channel. `rate_hz` is 0 where bytes have no place in time.
    `joinable`: consecutive messages may be joined; otherwise every message is a packet of its own. `preamble`
    are the bytes before the first sample.
    """

    __slots__ = _NAMES

    def __init__(
        self, rate_hz: int, frame_bytes: int, joinable: bool, container: str = "", preamble: bytes = b""
    ) -> None:
        self.rate_hz: Final = rate_hz
        self.frame_bytes: Final = frame_bytes
        self.joinable: Final = joinable
        self.container: Final = container
        self.preamble: Final = preamble

    def behind(self, preamble: bytes) -> MediaClock:
        """The same after these bytes."""
        return MediaClock(self.rate_hz, self.frame_bytes, self.joinable, self.container, preamble)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MediaClock):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _NAMES)

    @property
    def timed(self) -> bool:
        """Whether audio has its place in time, so that results can be put beside it."""
        return self.rate_hz > 0

    @property
    def exact(self) -> bool:
        """Whether every byte has its place."""
        return self.timed

    @property
    def slack(self) -> int:
        """Samples at the end that may never have a result of their own."""
        return 0

    @property
    def continuity(self) -> Continuity:
        return "exact" if self.timed else "none"

    @property
    def bytes_per_second(self) -> int:
        return self.rate_hz * self.frame_bytes

    def seconds(self, length: int) -> float:
        """How long `length` bytes last; 0 without an exact clock."""
        return length / (self.rate_hz * self.frame_bytes) if self.rate_hz else 0.0

    def length(self, seconds: float) -> int:
        """The whole frames, in bytes, that fit into `seconds`."""
        return int(seconds * self.rate_hz) * self.frame_bytes

    def samples(self, offset: int) -> int:
        """The samples that end at or before the byte `offset`."""
        return max(0, offset - len(self.preamble)) // self.frame_bytes

    def first_sample(self, offset: int) -> int:
        """The first sample that begins at or after the byte `offset`."""
        return max(0, -((len(self.preamble) - offset) // self.frame_bytes))

    def offset(self, sample: int) -> int:
        """The byte to begin with in order to hear from `sample` on."""
        return len(self.preamble) + sample * self.frame_bytes if sample else 0

    def lead_in(self, offset: int) -> bytes:
        """What goes up before the byte `offset`, where a connection begins."""
        return self.preamble if offset else b""

    def forget(self, offset: int) -> None:
        """Audio before `offset` is kept no longer."""


PACKETS = MediaClock(rate_hz=0, frame_bytes=1, joinable=False)
"""Compressed audio whose every message is one packet, and anything we do not recognise."""


@functools.lru_cache(256)  # the calls of one phone system share theirs
def from_parameters(encoding: str | None, sample_rate: str | None, channels: str | None) -> MediaClock | None:
    """The clock that the query announces, or None when the first bytes must be looked at.

    Values come as on the wire. Nonsense is Deepgram's to refuse; until then it is `PACKETS`.
    """
    if encoding is None or encoding.lower() == "ogg-opus":
        return None
    width = SAMPLE_BYTES.get(encoding.lower())
    rate = positive(sample_rate)
    count = positive(channels or "1")
    if width is None or not rate or not count:
        return PACKETS
    return MediaClock(rate_hz=rate, frame_bytes=width * count, joinable=True)


def positive(text: str | None) -> int:
    """The number that a parameter says, up to seven digits; 0 for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 8 else 0
