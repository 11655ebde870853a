"""What audio bytes mean: encodings, their widths, G.711 tables and the WAV header. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

WIDTHS = {"mulaw": 1, "alaw": 1, "linear16": 2, "linear32": 4}
"""Bytes per sample of the encodings that have a sample clock."""

_WAV_ENCODINGS = {(1, 16): "linear16", (3, 32): "linear32", (6, 8): "alaw", (7, 8): "mulaw"}
_CONTAINERS = (b"fLaC", b"ID3", b"\xff\xfb", b"\xff\xf1", b"#!AMR", b"FORM")


@dataclass(frozen=True, slots=True)
class Format:
    """Raw audio: `encoding` from `WIDTHS`, or `"packets"` (opus and the like: a byte counts as a sample)."""

    encoding: str
    sample_rate: int
    channels: int = 1

    @property
    def width(self) -> int:
        """Bytes of one sample of one channel."""
        return WIDTHS.get(self.encoding, 1)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.width * self.channels

    @property
    def bytes_per_second(self) -> int:
        """Bytes of one second of audio."""
        return self.frame_bytes * self.sample_rate

    @property
    def timed(self) -> bool:
        """Whether bytes are samples; if not the clock is an estimate."""
        return self.encoding in WIDTHS


def mulaw_to_linear(code: int) -> int:
    """Value in 16 bits of a mu-law byte (G.711)."""
    code = ~code & 0xFF
    magnitude = ((((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)) - 0x84
    return -magnitude if code & 0x80 else magnitude


def alaw_to_linear(code: int) -> int:
    """Value in 16 bits of an A-law byte (G.711)."""
    code ^= 0x55
    segment = (code & 0x70) >> 4
    magnitude = ((code & 0x0F) << 4) + (8 if segment == 0 else 0x108)
    magnitude <<= max(segment - 1, 0)
    return magnitude if code & 0x80 else -magnitude


MULAW = tuple(mulaw_to_linear(code) for code in range(256))
ALAW = tuple(alaw_to_linear(code) for code in range(256))


def encode_sample(value: float, encoding: str) -> bytes:
    """One sample in [-1, 1] as bytes; G.711 by the nearest code."""
    linear = max(-32768, min(32767, round(value * 32768)))
    if encoding == "linear16":
        return struct.pack("<h", linear)
    if encoding == "linear32":
        return struct.pack("<f", value)
    table = MULAW if encoding == "mulaw" else ALAW
    return bytes([min(range(256), key=lambda code: abs(table[code] - linear))])


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What the first bytes of a stream without `encoding` are.

    `format` is None for bytes that no decoder knows; `header_bytes` come before the first sample, and
    `data_bytes` of samples follow if the header tells (0 or more than there is: it does not). `container`:
    `format` is what comes out of that, see `gateway.emulator.containers`.
    """

    format: Format | None
    header_bytes: int = 0
    data_bytes: int = 0
    container: str = ""


def sniff(head: bytes, estimated_bytes_per_second: int) -> Sniffed | None:
    """Recognise a container from its first bytes; None means: more bytes are needed."""
    if head[:4] == b"RIFF":
        return _sniff_wav(head)
    if head[:4] == b"OggS":
        return _sniff_ogg(head, estimated_bytes_per_second)
    if head[:4] == b"\x1aE\xdf\xa3":
        return _sniff_webm(head, estimated_bytes_per_second)
    if head.startswith(_CONTAINERS) or head[4:8] == b"ftyp":
        return Sniffed(Format("packets", estimated_bytes_per_second))
    return None if len(head) < 12 else Sniffed(None)


def _sniff_ogg(head: bytes, estimated_bytes_per_second: int) -> Sniffed | None:
    """Opus by its first packet. A stream that begins in the middle is undecodable."""
    if len(head) < 27 or len(head) < 35 + head[26]:
        return None
    if not head[5] & 2:
        return Sniffed(None)
    if head[27 + head[26] :].startswith(b"OpusHead"):
        return Sniffed(Format("mulaw", 8000), container="ogg")
    return Sniffed(Format("packets", estimated_bytes_per_second))


def _sniff_webm(head: bytes, estimated_bytes_per_second: int) -> Sniffed | None:
    """Opus by the codec that is named before the first Cluster."""
    header, cluster, _ = head.partition(b"\x1f\x43\xb6\x75")
    if not cluster:
        return None if len(head) < 65536 else Sniffed(None)
    if b"A_OPUS" in header:
        return Sniffed(Format("mulaw", 8000), container="webm")
    return Sniffed(Format("packets", estimated_bytes_per_second))


def _sniff_wav(head: bytes) -> Sniffed | None:
    """Walk the RIFF chunks up to the samples; an unknown sample format counts as undecodable."""
    at, found = 12, None
    while at + 8 <= len(head):
        name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        if name == b"fmt ":
            found = _wav_format(head[at + 8 : at + 8 + size]) or Sniffed(None).format
        if name == b"data":
            return Sniffed(found, at + 8, size)
        at += 8 + size + size % 2
    return None if len(head) < 65536 else Sniffed(None)


def _wav_format(chunk: bytes) -> Format | None:
    if len(chunk) < 16:
        return None
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == 0xFFFE and len(chunk) >= 26:
        tag = int.from_bytes(chunk[24:26], "little")
    encoding = _WAV_ENCODINGS.get((tag, bits))
    return Format(encoding, rate, channels) if encoding and rate and channels else None


def to_floats(data: bytes, fmt: Format, channel: int) -> list[float]:
    """Samples of one channel in [-1, 1]; `data` holds whole frames."""
    if fmt.width == 1:
        table = MULAW if fmt.encoding == "mulaw" else ALAW
        return [table[code] / 32768 for code in data[channel :: fmt.channels]]
    if fmt.encoding == "linear16":
        values = struct.unpack(f"<{len(data) // 2}h", data)
        return [value / 32768 for value in values[channel :: fmt.channels]]
    return list(struct.unpack(f"<{len(data) // 4}f", data)[channel :: fmt.channels])
