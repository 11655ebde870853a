"""How long a recording is, as far as can be told without decoding it. Blocking: for a thread.

tinytag reads WAV, MP3, FLAC, Ogg, M4A, AIFF and WMA. PyAV (extra `media`) reads the rest: WebM, AMR, raw AAC.
Headers can lie. Where the codec tells how long so many bytes are at least, less is not believed; what others
say `route.is_plausible` holds against the bytes.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, BinaryIO, Final

from tinytag import TinyTag, TinyTagException

from gateway.audio.clock import from_parameters
from gateway.deepgram.query import ListenQuery
from gateway.prerecorded import container
from gateway.prerecorded.split import find_samples

NO_AUDIO: Final = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
"""What people send by mistake, by how it begins."""
MIN_WAV_BYTES: Final = 44
UNKNOWN_BYTES: Final = 0x7FFF_0000
"""A header that is written before the length is known names that many bytes or more, or none."""
MPEG_BYTES_PER_SECOND: Final = 40_000.0
"""The highest rate of MP3 (ISO/IEC 11172-3), which is 320 kbit/s."""
MAX_PACKETS: Final = 2_000_000
"""More are not counted: eleven hours of 20 ms each."""


def duration(file: BinaryIO, size_bytes: int, query: ListenQuery) -> float | None:
    """Seconds of audio in `file`, left anywhere; None where that cannot be told."""
    clock = from_parameters(query.get("encoding"), query.get("sample_rate"), query.get("channels"))
    if clock is not None:
        return clock.seconds(size_bytes) or None
    file.seek(0)
    start = file.read(3)
    if not _is_adts(start[:2]):  # of which tinytag counts no more than the first frames
        fastest = MPEG_BYTES_PER_SECOND if start == b"ID3" or start[:1] == b"\xff" else None
        seconds = _by_tags(file, size_bytes, fastest)
        if seconds is not None:
            return seconds
    return _by_packets(file) if importlib.util.find_spec("av") else None


def flaw(file: BinaryIO, size_bytes: int, query: ListenQuery) -> str | None:
    """What is wrong with a recording that nobody could transcribe, as a clause that follows its name."""
    if query.get("encoding") is not None:
        return None  # raw audio may look like anything
    file.seek(0)
    start = file.read(12)
    name = next((name for magic, name in NO_AUDIO.items() if start.startswith(magic)), None)
    if name is not None:
        return f"is {name}, not audio"
    if start[:4] != b"RIFF":
        return None
    if size_bytes < MIN_WAV_BYTES or start[8:] != b"WAVE":
        return "is a WAV file that ends within its header"
    samples = find_samples(file, size_bytes, query)
    if samples is not None and not samples.size:
        return "is a WAV file without a sample"
    said = int.from_bytes(start[4:8], "little") + 8
    if size_bytes < said < UNKNOWN_BYTES:
        return f"is a WAV file that was cut off: {size_bytes} bytes of {said} have come"
    return None


def _is_adts(start: bytes) -> bool:
    """Raw AAC: twelve sync bits and layer 0 (ISO/IEC 13818-7), where an MPEG layer is 1 to 3."""
    return len(start) == 2 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0


def _by_tags(file: BinaryIO, size_bytes: int, fastest: float | None) -> float | None:
    """What the header says; or as long as the bytes are at least, `fastest` of them a second, if longer."""
    file.seek(0)
    try:
        found = TinyTag.get(file_obj=file, tags=False)
        if found.samplerate and found.channels and found.bitdepth:  # no codec without loss takes more
            fastest = found.samplerate * found.channels * found.bitdepth / 8
    except (TinyTagException, OSError, ValueError, ArithmeticError, LookupError):
        return None  # what it cannot read it says by more than its own exception
    seconds = _sane(found.duration)
    return seconds if seconds is None or fastest is None else max(seconds, size_bytes / fastest)


def _by_packets(file: BinaryIO) -> float | None:
    """By the container's own word, else by where its last packet ends: live recordings have no length."""
    import av

    try:
        with container.opened(file) as held:
            if not held.streams.audio:
                return None
            stream = held.streams.audio[0]
            if stream.duration is not None and stream.time_base is not None:
                return _sane(float(stream.duration * stream.time_base))
            if held.duration is not None:
                return _sane(held.duration / av.time_base)
            return _sane(max(map(_end, _first(held.demux(stream))), default=0.0))
    except (av.FFmpegError, OSError, ValueError, ArithmeticError):
        return None


def _first(packets: Any) -> Any:
    return (packet for packet, _ in zip(packets, range(MAX_PACKETS), strict=False))


def _end(packet: Any) -> float:
    """Seconds at which a packet ends; the last one of all is empty and has no time."""
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _sane(seconds: float | None) -> float | None:
    return seconds if seconds is not None and math.isfinite(seconds) and seconds > 0 else None
