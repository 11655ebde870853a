"""Audio that says which audio it is.

A token is a burst of 100-400 ms that spells a 24-bit id and 8 check bits in sample levels: a start mark,
sixteen digits of two bits, an end mark, each a run of equally many samples. The levels lie a factor of four
apart, so mu-law, A-law and both linear encodings carry them unharmed; anything below 1/128 of full scale is
silence. A token comes back only if every one of its samples arrived, in order, on one connection; what is
left of any other comes back as a fragment. Pure; for the emulator, its tests, load generators and checkers.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.emulator.sound import ALAW, MULAW, Format, encode_sample

FRAGMENT = "~frag"
"""The word that stands for a token whose audio was cut, spliced or overheard in part."""

UNITS = 18
MAX_ID = (1 << 24) - 1
_SILENCE, _START, _END, _DIGITS = b".", b"S", b"E", b"ABCD"
_LEVELS = {b"A": 0.25, b"B": -0.25, b"C": 0.0625, b"D": -0.0625, b"S": 1 / 64, b"E": -1 / 64, b".": 0.0}
_FRAGMENT_MS = 20  # a shorter scrap is inaudible: no recogniser makes a word of it
_JOIN_MS = 5  # scraps closer together than this are one fragment
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiu"


class Token(NamedTuple):
    """What was said: `id` and its samples [start_sample, end_sample)."""

    id: int
    start_sample: int
    end_sample: int


class Heard(NamedTuple):
    """What was recognised: `id` (None for a fragment) and the samples [start, end) it covers."""

    id: int | None
    start: int
    end: int

    @property
    def text(self) -> str:
        """The word on the wire."""
        return FRAGMENT if self.id is None else word_for(self.id)


def word_for(token_id: int) -> str:
    """The word of an id: four syllables of one of 16 consonants and one of 4 vowels."""
    syllables = [(token_id >> shift) & 0x3F for shift in (18, 12, 6, 0)]
    return "".join(_CONSONANTS[s >> 2] + _VOWELS[s & 3] for s in syllables)


def id_for(word: str) -> int | None:
    """The id of a word, whatever its case and punctuation; None if it is no token's word."""
    letters = word.strip(".,?! ").lower()
    if len(letters) != 8:
        return None
    token_id = 0
    for consonant, vowel in zip(letters[::2], letters[1::2], strict=True):
        high, low = _CONSONANTS.find(consonant), _VOWELS.find(vowel)
        if high < 0 or low < 0:
            return None
        token_id = token_id << 6 | high << 2 | low
    return token_id


def ids(count: int, rng: random.Random, repeat: float = 0.1) -> list[int]:
    """`count` random ids of which about `repeat` say the one before once more."""
    chosen: list[int] = []
    for _ in range(count):
        again = chosen and rng.random() < repeat
        chosen.append(chosen[-1] if again else rng.randint(0, MAX_ID))
    return chosen


def _check_bits(token_id: int) -> int:
    return zlib.crc32(token_id.to_bytes(3, "big")) & 0xFF


def _symbols_of(token_id: int) -> bytes:
    """The 18 symbols of a token."""
    value = token_id << 8 | _check_bits(token_id)
    digits = bytes(_DIGITS[(value >> shift) & 3] for shift in range(30, -1, -2))
    return _START + digits + _END


def burst(token_id: int, unit_samples: int, encoding: str) -> bytes:
    """The audio of one token: 18 runs of `unit_samples` samples."""
    runs = {symbol: encode_sample(level, encoding) * unit_samples for symbol, level in _LEVELS.items()}
    return b"".join(runs[bytes([symbol])] for symbol in _symbols_of(token_id))


def silence(samples: int, encoding: str) -> bytes:
    """`samples` samples of nothing."""
    return encode_sample(0.0, encoding) * samples


@dataclass(frozen=True, slots=True)
class Manner:
    """How tokens are spoken: burst and gap lengths in ms, and how often two follow without any gap."""

    burst_ms: tuple[int, int] = (100, 400)
    gap_ms: tuple[int, int] = (40, 500)
    no_gap: float = 0.15
    lead_ms: int = 200
    tail_ms: int = 300


def speech(
    token_ids: Iterable[int], fmt: Format, rng: random.Random, manner: Manner | None = None
) -> tuple[bytes, list[Token]]:
    """Say the ids one after another: one channel of audio, and what was said where (in samples)."""
    manner = manner or Manner()
    per_ms = fmt.sample_rate / 1000
    at = round(manner.lead_ms * per_ms)
    audio, said = [silence(at, fmt.encoding)], []
    for token_id in token_ids:
        unit = max(_shortest_mark(fmt.sample_rate), round(rng.uniform(*manner.burst_ms) * per_ms) // UNITS)
        gap = 0 if rng.random() < manner.no_gap else round(rng.uniform(*manner.gap_ms) * per_ms)
        said.append(Token(token_id, at, at + UNITS * unit))
        audio += [burst(token_id, unit, fmt.encoding), silence(gap, fmt.encoding)]
        at += UNITS * unit + gap
    audio.append(silence(round(manner.tail_ms * per_ms), fmt.encoding))
    return b"".join(audio), said


def interleave(channels: Sequence[bytes], fmt: Format) -> bytes:
    """Several channels' audio as one stream of frames, the short ones padded with silence."""
    longest = max(len(channel) for channel in channels)
    out = bytearray(longest * len(channels))
    width, stride = fmt.width, fmt.width * len(channels)
    for number, channel in enumerate(channels):
        full = channel + silence((longest - len(channel)) // width, fmt.encoding)
        for byte in range(width):
            out[number * width + byte :: stride] = full[byte::width]
    return bytes(out)


def _shortest_mark(sample_rate: int) -> int:
    """Samples of the shortest start mark: 4 ms, which neither speech nor noise holds at one level."""
    return max(4, sample_rate // 250)


def _symbol_of(value: int) -> int:
    """The symbol of a sample in 16 bits."""
    size = abs(value)
    if size < 256:
        return _SILENCE[0]
    low, mid, high = (b"S", b"C", b"A") if value > 0 else (b"E", b"D", b"B")
    return (low if size < 1024 else mid if size < 4096 else high)[0]


def _float_symbol(top: int) -> int:
    """The symbol of a little-endian float32 by its top byte: sign and most of the exponent."""
    low, mid, high = (b"E", b"D", b"B") if top & 0x80 else (b"S", b"C", b"A")
    exponent = top & 0x7F
    if exponent < 60 or exponent == 0x7F:
        return _SILENCE[0]
    return (low if exponent == 60 else mid if exponent == 61 else high)[0]


_TABLES = {
    "mulaw": bytes(_symbol_of(value) for value in MULAW),
    "alaw": bytes(_symbol_of(value) for value in ALAW),
    "linear16": bytes(_symbol_of((byte - 256 if byte > 127 else byte) * 256 + 128) for byte in range(256)),
    "linear32": bytes(_float_symbol(byte) for byte in range(256)),
}
_VOICED = re.compile(rb"[^.]")


class Decoder:
    """Hear tokens in one channel of a stream, in chunks of any size."""

    def __init__(self, fmt: Format, channel: int = 0) -> None:
        self._frame = fmt.frame_bytes
        self._offset = channel * fmt.width + fmt.width - 1
        self._table = _TABLES[fmt.encoding]
        self._mark = re.compile(rb"S{%d,}" % _shortest_mark(fmt.sample_rate))
        join = max(1, fmt.sample_rate * _JOIN_MS // 1000)
        self._join = join
        self._scrap = re.compile(rb"[^.]+(?:\.{1,%d}[^.]+)*" % join)
        self._inaudible = fmt.sample_rate * _FRAGMENT_MS // 1000
        self._longest = fmt.sample_rate * 2
        self._tail = b""
        self._symbols = b""
        self._base = 0

    @property
    def heard(self) -> int:
        """Whole samples fed so far."""
        return self._base + len(self._symbols)

    @property
    def pending_from(self) -> int | None:
        """Where the burst begins of which the end has not come yet."""
        return self._base if self._symbols else None

    def feed(self, data: bytes) -> list[Heard]:
        """Take raw bytes (all channels interleaved); returns what is now recognised."""
        data = self._tail + data if self._tail else data
        whole = len(data) - len(data) % self._frame
        self._tail = data[whole:]
        self._symbols += data[self._offset : whole : self._frame].translate(self._table)
        return self._scan(last=False)

    def flush(self) -> list[Heard]:
        """Nothing more belongs to what is pending: it becomes a fragment."""
        return self._scan(last=True)

    def _scan(self, last: bool) -> list[Heard]:
        symbols, at = self._symbols, 0
        found: list[Heard] = []
        while voiced := _VOICED.search(symbols, at):
            at = voiced.start()
            heard = self._next(symbols, at, last)
            if heard is None:
                break
            at = heard.end
            if heard.id is not None or heard.end - heard.start >= self._inaudible:
                found.append(Heard(heard.id, heard.start + self._base, heard.end + self._base))
        else:
            at = len(symbols)
        self._symbols = symbols[at:]
        self._base += at
        return found

    def _next(self, symbols: bytes, at: int, last: bool) -> Heard | None:
        """The token or fragment at `at`; None if that cannot be told yet."""
        mark = self._mark.match(symbols, at)
        if mark is None:
            return self._fragment(symbols, at, at, last)
        unit = mark.end() - at
        end = at + UNITS * unit
        cut = symbols.find(_SILENCE, at, end) >= 0
        if not last and not cut and (mark.end() == len(symbols) or end > len(symbols)):
            return None
        token_id = _spelt(symbols[at:end], unit)
        if token_id is not None:
            return Heard(token_id, at, end)
        return self._fragment(symbols, at, mark.end(), last)

    def _fragment(self, symbols: bytes, at: int, search_from: int, last: bool) -> Heard | None:
        scrap = self._scrap.match(symbols, at)
        end = scrap.end() if scrap else at + 1
        mark = self._mark.search(symbols, search_from, end)
        if mark is not None:
            return Heard(None, at, mark.start())
        open_ended = end + self._join >= len(symbols)
        if open_ended and not last and len(symbols) - at < self._longest:
            return None
        return Heard(None, at, end)


def _spelt(piece: bytes, unit: int) -> int | None:
    """The id that a burst spells; None if one sample of it is out of place."""
    if len(piece) != UNITS * unit:
        return None
    spelt = piece[unit // 2 :: unit]
    if b"".join([spelt[i : i + 1] * unit for i in range(UNITS)]) != piece or spelt[-1:] != _END:
        return None
    digits = spelt[1:-1]
    if digits.strip(_DIGITS):
        return None
    value = int(digits.translate(bytes.maketrans(_DIGITS, b"0123")), 4)
    return value >> 8 if value & 0xFF == _check_bits(value >> 8) else None
