"""Request ids in the form that Deepgram uses: UUIDs, version 7 (RFC 9562 §5.7)."""

from __future__ import annotations


def uuid7(unix_ms: int, random_bits: int) -> str:
    """`unix_ms` milliseconds since 1970, `random_bits` at least 74 random bits; 36 lower-case characters."""
    bits = (unix_ms & 0xFFFF_FFFF_FFFF) << 80
    bits |= 0x7 << 76 | (random_bits >> 62 & 0xFFF) << 64
    bits |= 0x2 << 62 | random_bits & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
