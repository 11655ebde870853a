"""A recording that is too long for one request: cut where it is quietest, and the answers joined.

Raw audio and WAV are cut as they are; anything else is decoded by PyAV (extra `media`) to 16 kHz linear PCM
first. Blocking: for a thread.
"""

from __future__ import annotations

import importlib.util
import itertools
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, Literal

import msgspec

from gateway.deepgram.query import ListenQuery
from gateway.prerecorded import container

Encoding = Literal["linear16", "mulaw", "alaw"]
SAMPLE_BYTES: Final[dict[Encoding, int]] = {"linear16": 2, "mulaw": 1, "alaw": 1}
WAV_CODES: Final[dict[int, Encoding]] = {1: "linear16", 6: "alaw", 7: "mulaw"}
DECODED_HZ: Final = 16_000
FRAME: Final = 0.02
"""Seconds whose loudness is one number."""
QUIET: Final = 0.3
"""Seconds of quiet that are looked for: pauses between words are shorter, those between sentences longer."""
SEARCHED: Final = 0.2
"""The share of a part's length, at its end, in which the cut is looked for."""


WHOLE: Final = ("summarize", "topics", "intents", "sentiment", "custom_topic", "custom_intent")
"""Options whose answer is about the whole recording: that of its parts would be another."""


class Unsplittable(Exception):
    """Audio whose samples cannot be had; `str()` says why in a few words."""


class Samples(msgspec.Struct, frozen=True):
    """`size` bytes of samples from byte `begin` of a file."""

    encoding: Encoding
    rate_hz: int
    channels: int
    begin: int
    size: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return SAMPLE_BYTES[self.encoding] * self.channels

    def offset(self, seconds: float) -> int:
        return int(seconds * self.rate_hz) * self.frame_bytes

    def seconds(self, size: int) -> float:
        return size / (self.rate_hz * self.frame_bytes)

    def header(self, size: int) -> bytes:
        """A WAV header for `size` bytes of these samples."""
        code = next(code for code, encoding in WAV_CODES.items() if encoding == self.encoding)
        width = SAMPLE_BYTES[self.encoding]
        rate = self.rate_hz * self.frame_bytes
        fmt = struct.pack("<HHIIHH", code, self.channels, self.rate_hz, rate, self.frame_bytes, 8 * width)
        return b"RIFF%sWAVEfmt \x10\0\0\0%sdata%s" % (
            struct.pack("<I", 36 + size),
            fmt,
            struct.pack("<I", size),
        )


class Part(msgspec.Struct, frozen=True):
    """Samples from `start` seconds on: `size` bytes at `begin` of the file."""

    start: float
    begin: int
    size: int


def why_not(query: ListenQuery) -> str | None:
    """Why the answers to parts could not be joined; None where they can."""
    name = next((name for name in WHOLE if query.has(name)), None)
    return f"{name} is about the whole recording" if name else None


def find_samples(file: BinaryIO, size_bytes: int, query: ListenQuery) -> Samples | None:
    """Where the samples of raw audio or of a WAV are; None for anything else."""
    encoding = query.get("encoding")
    if encoding in SAMPLE_BYTES:
        rate, channels = query.get("sample_rate") or "", query.get("channels") or "1"
        if not (rate.isdecimal() and channels.isdecimal() and int(rate) and int(channels)):
            return None
        return Samples(encoding, int(rate), int(channels), 0, size_bytes)
    return _wav(file, size_bytes) if encoding is None else None


def decode(file: BinaryIO, into: BinaryIO) -> Samples:
    """Decodes any other audio, as linear PCM, `into` a file. Raises `Unsplittable`."""
    if not importlib.util.find_spec("av"):
        raise Unsplittable("only raw audio and WAV can be split without the extra 'media'")
    import av

    try:
        with container.opened(file) as held:
            if not held.streams.audio:
                raise Unsplittable("there is no audio in it")
            stream = held.streams.audio[0]
            channels = 2 if stream.codec_context.channels == 2 else 1
            layout = "stereo" if channels == 2 else "mono"
            resampler = av.AudioResampler(format="s16", layout=layout, rate=DECODED_HZ)
            for frame in itertools.chain(held.decode(stream), (None,)):
                for part in resampler.resample(frame):
                    # Less the padding. PyAV's own way needs numpy, which the extra does not bring.
                    into.write(bytes(part.planes[0])[: part.samples * channels * SAMPLE_BYTES["linear16"]])
    except (av.FFmpegError, ValueError) as error:
        raise Unsplittable(f"it cannot be decoded: {error}") from error
    return Samples("linear16", DECODED_HZ, channels, 0, into.tell())


def parts(file: BinaryIO, samples: Samples, longest: float) -> Iterator[Part]:
    """Cuts into parts of at most `longest` seconds, each at the quietest place of its last fifth."""
    done = 0
    while samples.seconds(samples.size - done) > longest:
        latest = done + samples.offset(longest)
        earliest = done + samples.offset(longest * (1 - SEARCHED))
        file.seek(samples.begin + earliest)
        cut = earliest + _quietest(file.read(latest - earliest), samples)
        yield Part(samples.seconds(done), samples.begin + done, cut - done)
        done = cut
    yield Part(samples.seconds(done), samples.begin + done, samples.size - done)


def join(answers: Sequence[tuple[float, Any]]) -> Any:
    """One response out of those of the parts, each with the second at which its part starts; changes them.

    Everything keeps its order and gets the recording's times. Nobody knows whether speaker 0 of one part is
    speaker 0 of the next, so each part's speakers get numbers of their own. The metadata is the first part's,
    but for the duration.
    """
    _, joined = answers[0]
    for start, answer in answers[1:]:
        joined["metadata"]["duration"] = start + answer["metadata"]["duration"]
        results, more = joined["results"], answer["results"]
        _move(more, start, 1 + max(_speakers(results), default=-1))
        for channel, other in zip(results["channels"], more["channels"], strict=True):
            for one, two in zip(channel["alternatives"][:1], other["alternatives"][:1], strict=True):
                _append(one, two)
            channel["alternatives"] = channel["alternatives"][:1]
            channel["search"] = _searched(channel.get("search", ()), other.get("search", ()))
            if not channel["search"]:
                del channel["search"]
        if "utterances" in results:
            results["utterances"] += more.get("utterances", [])
    return joined


def _wav(file: BinaryIO, size_bytes: int) -> Samples | None:
    file.seek(0)
    if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
        return None
    encoding, channels, rate = None, 0, 0
    while len(head := file.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            begin = file.tell()
            size = min(size, size_bytes - begin)  # a header written before the end says anything
            if encoding is None or not rate or not channels:
                return None
            samples = Samples(encoding, rate, channels, begin, size)
            return msgspec.structs.replace(samples, size=size - size % samples.frame_bytes)
        if name == b"fmt " and size >= 16:
            fmt = file.read(16)
            if len(fmt) < 16:
                return None
            code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", fmt)
            encoding = WAV_CODES.get(code)
            if encoding is not None and bits != 8 * SAMPLE_BYTES[encoding]:
                return None
            size -= 16
        file.seek(size + size % 2, 1)
    return None


def _quietest(data: bytes, samples: Samples) -> int:
    """The offset of the middle of the quietest `QUIET` seconds in `data`."""
    step = samples.offset(FRAME)
    loudness = [
        _loudness(data[at : at + step], samples.encoding) for at in range(0, len(data) - step + 1, step)
    ]
    width = max(1, round(QUIET / FRAME))
    if len(loudness) <= width:
        return len(data) - len(data) % samples.frame_bytes
    sums = [sum(loudness[:width])]
    for at in range(width, len(loudness)):
        sums.append(sums[-1] + loudness[at] - loudness[at - width])
    return (min(range(len(sums)), key=sums.__getitem__) + width // 2) * step


def _loudness(data: bytes, encoding: Encoding) -> float:
    if encoding == "linear16":
        return sum(map(abs, array("h", data[: len(data) & ~1]))) / max(1, len(data) // 2)
    # Both laws are logarithmic, so that a byte less its sign is as loud as it sounds (ITU-T G.711).
    flip = 0x7F if encoding == "mulaw" else 0x55
    return sum((byte ^ flip) & 0x7F for byte in data) / max(1, len(data))


def _append(one: Any, two: Any) -> None:
    one["transcript"] = " ".join(filter(None, (one["transcript"], two["transcript"])))
    many, more = len(one["words"]), len(two["words"])
    if more:
        one["confidence"] = (one["confidence"] * many + two["confidence"] * more) / (many + more)
    one["words"] += two["words"]
    if "paragraphs" in one and "paragraphs" in two:
        texts = (one["paragraphs"]["transcript"].strip(), two["paragraphs"]["transcript"].strip())
        one["paragraphs"]["transcript"] = "\n" + "\n\n".join(filter(None, texts))
        one["paragraphs"]["paragraphs"] += two["paragraphs"]["paragraphs"]
    if "entities" in two:
        for entity in two["entities"]:
            entity["start_word"] += many
            entity["end_word"] += many
        one["entities"] = [*one.get("entities", ()), *two["entities"]]


def _searched(one: Sequence[Any], two: Sequence[Any]) -> list[Any]:
    return [
        found | {"hits": [*found["hits"], *other["hits"]]} for found, other in zip(one, two, strict=False)
    ]


def _speakers(value: Any) -> Iterator[int]:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _speakers(inner)
    if isinstance(value, dict) and isinstance(value.get("speaker"), int):
        yield value["speaker"]


def _move(value: Any, seconds: float, speakers: int) -> None:
    """Adds to every `start`, `end` and `speaker` within."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _move(inner, seconds, speakers)
    if isinstance(value, dict):
        for name in {"start", "end"} & value.keys():
            value[name] = round(value[name] + seconds, 6)
        if "speaker" in value:
            value["speaker"] += speakers
