"""Containers as encoders write them: Ogg and WebM around packets of Opus, and the header of a WAV."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gateway.emulator.containers import PACKET_MS, checksum

SERIAL = b"\x01\x02\x03\x04"
OPUS_HEAD = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 312, 48_000, 0, 0)
UNKNOWN = b"\x01\xff\xff\xff\xff\xff\xff\xff"


def page(
    packets: Sequence[bytes],
    *,
    flags: int = 0,
    granule: int = 0,
    number: int = 0,
    serial: bytes = SERIAL,
    open_ended: bool = False,
) -> bytes:
    """One Ogg page; with `open_ended` its last packet goes on in the next."""
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
    if open_ended:
        lacing = lacing[:-1]
    head = struct.pack("<4sBBq4sI4xB", b"OggS", 0, flags, granule, serial, number, len(lacing)) + lacing
    whole = head + b"".join(packets)
    return whole[:22] + checksum(whole).to_bytes(4, "little") + whole[26:]


def ogg_header(tags: bytes = b"OpusTags" + bytes(8)) -> bytes:
    """The two pages before the audio."""
    return page([OPUS_HEAD], flags=2) + page([tags], number=1)


def ogg(packets: Sequence[bytes], *, per_page: int = 10, packet_ms: int = PACKET_MS) -> bytes:
    """A whole stream; every page ends with a packet."""
    out, granule = [ogg_header()], 0
    for number, some in enumerate(_in_groups(packets, per_page), 2):
        granule += len(some) * packet_ms * 48
        out.append(page(some, granule=granule, number=number))
    return b"".join(out)


def wav_header(rate: int, *, tag: int = 7, bits: int = 8, channels: int = 1, size: int = 0) -> bytes:
    """Up to the samples; their length is `size`, which streams don't know."""
    frame = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", size, b"WAVE", b"fmt ", 16)
        + fmt
        + struct.pack("<4sI", b"data", size)
    )


def element(name: str, body: bytes, size: bytes | None = None) -> bytes:
    """An EBML element by its id in hex; its size in four bytes unless given."""
    return bytes.fromhex(name) + (size or struct.pack(">I", 0x10000000 | len(body))) + body


def webm_header(codec: bytes = b"A_OPUS", private: bytes = OPUS_HEAD, track: int = 1) -> bytes:
    """EBML, Info and Tracks, in a Segment without a length, as a browser's MediaRecorder begins."""
    entry = (
        element("d7", bytes([track]), b"\x81")
        + element("73c5", b"\x07", b"\x81")
        + element("83", b"\x02", b"\x81")
        + element("86", codec)
        + element("63a2", private)
        + element("e1", element("b5", struct.pack(">f", 48_000), b"\x84") + element("9f", b"\1", b"\x81"))
    )
    info = element("1549a966", element("2ad7b1", struct.pack(">I", 1_000_000), b"\x84"))
    tracks = element("1654ae6b", element("ae", entry))
    return element("1a45dfa3", element("4282", b"webm")) + element("18538067", info + tracks, UNKNOWN)


def block(packet: bytes, ms: int = 0, track: int = 1, name: str = "a3") -> bytes:
    """A SimpleBlock, `ms` after its cluster's beginning."""
    return element(name, bytes([0x80 | track]) + struct.pack(">hB", ms, 0x80) + packet)


def cluster(blocks: bytes, at_ms: int, *, sized: bool = False) -> bytes:
    """A Cluster, without a length unless `sized`."""
    body = element("e7", struct.pack(">I", at_ms), b"\x84") + blocks
    return element("1f43b675", body, None if sized else UNKNOWN)


def webm(
    packets: Sequence[bytes], *, per_cluster: int = 20, packet_ms: int = PACKET_MS, sized: bool = False
) -> bytes:
    """A whole stream."""
    out, at_ms = [webm_header()], 0
    for some in _in_groups(packets, per_cluster):
        blocks = (block(packet, i * packet_ms) for i, packet in enumerate(some))
        out.append(cluster(b"".join(blocks), at_ms, sized=sized))
        at_ms += len(some) * packet_ms
    return b"".join(out)


def _in_groups(packets: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [packets[at : at + size] for at in range(0, len(packets), size)]
