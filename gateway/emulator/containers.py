"""Ogg and WebM with Opus, opened as by a strict decoder: the header, then whole pages or elements. Pure.

No Opus is decoded. A packet is as much silence as its first bytes say, unless `packets_of` made it: that one
carries its samples as they are, so that token audio can be heard in a container, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gateway.emulator.sound import Format

OPENED = Format("mulaw", 8000)
"""What comes out of a container."""
PACKET_MS = 20

_CARRIED = b"\x08mulaw:"  # the first byte of an Opus packet of 20 ms, narrow band and mono; then a mark
_SILENCE = b"\xff"
_SAMPLES_PER_MS = 8
# Tenths of milliseconds in a frame: by the upper five bits of a packet's first byte (RFC 6716, table 2).
_FRAMES = [
    *(100, 200, 400, 600) * 3,
    *(100, 200) * 2,
    *(25, 50, 100, 200) * 4,
]
_KNOWN_ELEMENTS = {
    *(0x1A45DFA3, 0x18538067, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1F43B675),
    *(0xE7, 0xA7, 0xAB, 0xA0, 0xA1, 0xA3, 0x9B, 0xFB, 0x75A2, 0xEC, 0xBF),
}
_PARENTS = {0x18538067, 0x1F43B675, 0xA0}
_EBML, _CLUSTER, _TRACKS, _BLOCKS = 0x1A45DFA3, 0x1F43B675, 0x1654AE6B, (0xA1, 0xA3)


class Garbage(Exception):
    """What came is no such container, or not one that begins at its beginning."""


class Opener(Protocol):
    """A container being opened."""

    def feed(self, data: bytes) -> bytes:
        """The audio, as `OPENED`, that became complete. Raises Garbage."""


def packets_of(audio: bytes) -> list[bytes]:
    """Packets of 20 ms that carry audio in the format `OPENED`; the last is filled up with silence."""
    size = PACKET_MS * _SAMPLES_PER_MS
    return [_CARRIED + audio[at : at + size].ljust(size, _SILENCE) for at in range(0, len(audio), size)]


def opener(name: str) -> Opener:
    """One for `ogg` or `webm`."""
    return _Ogg() if name == "ogg" else _Webm()


def checksum(page: bytes) -> int:
    """The CRC of an Ogg page whose own field for it is zero: polynomial 04c11db7, nothing reflected."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC[crc >> 24 ^ byte]
    return crc


def _crc_of(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc


_CRC = [_crc_of(byte) for byte in range(256)]


def _heard(packet: bytes) -> bytes:
    """The samples of a packet."""
    if packet.startswith(_CARRIED):
        return packet[len(_CARRIED) :]
    if not packet:
        return b""
    code = packet[0] % 4
    frames = (1, 2, 2, packet[1] % 64 if len(packet) > 1 else 0)[code]
    return _SILENCE * (frames * _FRAMES[packet[0] // 8] * _SAMPLES_PER_MS // 10)


class _Trimmed:
    """What a decoder puts out: all but the first samples, as many as the header's "pre-skip" says."""

    def __init__(self) -> None:
        self._drop = 0

    def head(self, opus_head: bytes) -> None:
        self._drop = int.from_bytes(opus_head[10:12], "little") * _SAMPLES_PER_MS // 48

    def trim(self, heard: bytes) -> bytes:
        kept = heard[self._drop :]
        self._drop -= len(heard) - len(kept)
        return kept


class _Ogg:
    """Every page is checked; a packet whose beginning is missing is dropped."""

    def __init__(self) -> None:
        self._data = b""
        self._packet: bytes | None = b""
        self._headers = 0
        self._output = _Trimmed()

    def feed(self, data: bytes) -> bytes:
        self._data += data
        packets = (packet for page in self._pages() for packet in self._packets(page))
        return self._output.trim(b"".join(map(_heard, packets)))

    def _pages(self) -> Iterator[bytes]:
        while len(self._data) >= 27:
            if self._data[:5] != b"OggS\0":
                raise Garbage
            segments = self._data[27 : 27 + self._data[26]]
            size = 27 + self._data[26] + sum(segments)
            if len(segments) < self._data[26] or len(self._data) < size:
                return
            page, self._data = self._data[:size], self._data[size:]
            if checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
                raise Garbage
            yield page

    def _packets(self, page: bytes) -> Iterator[bytes]:
        if page[5] & 1 == 0:
            self._packet = b""
        elif not self._packet:
            self._packet = None
        at = 27 + page[26]
        for size in page[27:at]:
            if self._packet is not None:
                self._packet += page[at : at + size]
            at += size
            if size < 255:
                packet, self._packet = self._packet, b""
                if packet is not None and not self._is_header(packet):
                    yield packet

    def _is_header(self, packet: bytes) -> bool:
        if self._headers == 2:
            return False
        if not packet.startswith((b"OpusHead", b"OpusTags")[self._headers]):
            raise Garbage
        if not self._headers:
            self._output.head(packet)
        self._headers += 1
        return True


class _Webm:
    """Elements that a header or a cluster can hold; anything else means that the stream was cut badly."""

    def __init__(self) -> None:
        self._data = b""
        self._begun = self._has_track = False
        self._output = _Trimmed()

    def feed(self, data: bytes) -> bytes:
        self._data += data
        heard = bytearray()
        at = 0
        while (element := _element(self._data, at)) is not None:
            name, begin, end = element
            self._check(name)
            if name in _PARENTS:
                end = begin
            elif end is None:
                raise Garbage
            elif end > len(self._data):
                break
            if name == _TRACKS:
                self._has_track = b"A_OPUS" in self._data[begin:end]
                self._output.head(b"OpusHead" + self._data[begin:end].partition(b"OpusHead")[2])
            elif name in _BLOCKS:
                heard += _heard(self._data[begin + 4 : end])
            at, self._begun = end, True
        self._data = self._data[at:]
        return self._output.trim(bytes(heard))

    def _check(self, name: int) -> None:
        if name not in _KNOWN_ELEMENTS or (name == _EBML) is self._begun:
            raise Garbage
        if name == _CLUSTER and not self._has_track:
            raise Garbage


def _element(data: bytes, at: int) -> tuple[int, int, int | None] | None:
    """Id, first byte and end of the element at `at`; the end is None if unknown. None: more is needed."""
    if len(data) < at + 2:
        return None
    id_length = 9 - data[at].bit_length()
    size_at = at + id_length
    if id_length > 4:
        raise Garbage
    if size_at >= len(data):
        return None
    size_length = 9 - data[size_at].bit_length()
    begin = size_at + size_length
    if size_length > 8:
        raise Garbage
    if begin > len(data):
        return None
    size = int.from_bytes(data[size_at:begin], "big") - (1 << 7 * size_length)
    is_unknown = size == (1 << 7 * size_length) - 1
    return int.from_bytes(data[at:size_at], "big"), begin, None if is_unknown else begin + size
