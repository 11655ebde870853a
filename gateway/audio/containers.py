"""Audio that carries its own header: where that ends, and where a stream may begin anew.

A container's bytes are read along as they come, split anywhere. Nothing in it is believed: what cannot be
followed any more only loses its clock (`timed`), and so do headers and stretches without audio beyond a
bound. Opus is timed by its packets (RFC 6716 section 3.1), not by the container's own times: they say what a
decoder will put out, can only grow, and need no trust.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator
from typing import Final

import msgspec

from gateway.audio.clock import PACKETS, Continuity, MediaClock

LONGEST_HEADER: Final = 65_536
"""Bytes that may come before the first audio."""
LONGEST_STRAY: Final = 4 << 20
"""Bytes without a place to begin at after which a container is no longer followed."""
RESOLUTION: Final = 4_800
"""Samples between two remembered places: 0.1 s."""
MOST_PLACES: Final = 8_192
"""Remembered places; with more, every other one is forgotten."""

_MAGIC: Final = (
    (b"RIFF", "wav"),
    (b"RF64", "wav"),
    (b"OggS", "ogg"),
    (b"\x1aE\xdf\xa3", "webm"),
    (b"fLaC", "flac"),
    (b"ID3", "mp3"),
    (b"FORM", "aiff"),
    (b"#!AMR", "amr"),
    (b".snd", "au"),
)
# Samples in a frame by the TOC's configuration number, RFC 6716 table 2.
_FRAME: Final = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
_SAMPLES_TAGS: Final = {1, 3, 6, 7}  # PCM, float, A-law, mu-law
_EXTENSIBLE: Final = 0xFFFE

_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_TRACKS, _TRACK_ENTRY, _TRACK_NUMBER, _CODEC_ID, _CODEC_PRIVATE = 0x1654AE6B, 0xAE, 0xD7, 0x86, 0x63A2
_TIMESTAMP, _BLOCK_GROUP, _BLOCK, _SIMPLE_BLOCK = 0xE7, 0xA0, 0xA1, 0xA3
_NEW_CLUSTER: Final = _CLUSTER.to_bytes(4, "big") + b"\x01" + b"\xff" * 7  # of unknown length
_ENTERED: Final = {_SEGMENT, _CLUSTER, _TRACKS, _TRACK_ENTRY, _BLOCK_GROUP}
_OF_A_TRACK: Final = {_TRACK_NUMBER, _CODEC_ID, _CODEC_PRIVATE}

Steps = Generator[None, None, None]
Taking = Generator[None, None, bytes]


class Lost(Exception):
    """The container can't be followed."""


class Source:
    """Bytes that came and were not read yet. `at` is the offset of the next one."""

    def __init__(self) -> None:
        self.at = 0
        self._data = bytearray()

    @property
    def received(self) -> int:
        return self.at + len(self._data)

    def append(self, data: bytes) -> None:
        self._data += data

    def take(self, length: int) -> Taking:
        while len(self._data) < length:
            yield
        taken = bytes(self._data[:length])
        del self._data[:length]
        self.at += length
        return taken

    def skip(self, length: int) -> Steps:
        stop = self.at + length
        while self.received < stop:
            self.at = self.received
            self._data.clear()
            yield
        del self._data[: stop - self.at]
        self.at = stop


class Places:
    """Bytes and the samples that belong to them, both growing; the latest is always among them."""

    __slots__ = ("_offsets", "_samples")

    def __init__(self) -> None:
        self._offsets = [0]
        self._samples = [0]

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def latest(self) -> int:
        """The offset of the last place."""
        return self._offsets[-1]

    def add(self, offset: int, sample: int) -> None:
        if len(self) > 1 and sample - self._samples[-2] < RESOLUTION:
            self._offsets[-1], self._samples[-1] = offset, sample
            return
        self._offsets.append(offset)
        self._samples.append(sample)
        if len(self) > MOST_PLACES:
            del self._offsets[1:-1:2], self._samples[1:-1:2]

    def sample_before(self, offset: int) -> int:
        """The sample of the last place at or before `offset`."""
        return self._samples[max(0, bisect_right(self._offsets, offset) - 1)]

    def sample_after(self, offset: int) -> int:
        """The sample of the first place at or after `offset`, or of the last there is."""
        return self._samples[min(len(self) - 1, bisect_left(self._offsets, offset))]

    def before_sample(self, sample: int) -> int:
        """The offset of the last place at or before `sample` that will stay: where one connection begins, the
        next must find the same sample."""
        at = bisect_right(self._samples, sample) - 1
        if at == len(self) - 1 and at and self._samples[at] - self._samples[at - 1] < RESOLUTION:
            at -= 1
        return self._offsets[max(0, at)]

    def forget(self, offset: int) -> None:
        """Nothing before `offset` will be asked for."""
        passed = bisect_right(self._offsets, offset) - 1
        if passed > 0:
            del self._offsets[:passed], self._samples[:passed]


class OpusClock:
    """Ogg or WebM with Opus: an index of bytes and samples at 48 kHz, made while they pass.

    `preamble` is the header. `timed` ends when the container can't be followed. Samples are the decoder's,
    less those that it drops at first.
    """

    rate_hz: Final = 48_000
    bytes_per_second: Final = 0
    frame_bytes: Final = 1
    joinable: Final = True
    exact: Final = False
    slack: Final = RESOLUTION

    def __init__(self, container: str) -> None:
        self.container = container
        self.preamble = b""
        self.timed = True
        self._source = Source()
        self._decoded = 0
        self._dropped = 0  # samples that a decoder drops at the beginning of every stream ("pre-skip")
        self._track = 0
        self._ends = Places()  # complete samples up to here
        self._starts = self._ends if container == "ogg" else Places()
        self._clusters: list[tuple[int, bytes]] = []  # where one begins, and its timestamp as an element
        self._header: bytearray | None = bytearray()
        self._steps = self._ogg() if container == "ogg" else self._webm()

    @property
    def continuity(self) -> Continuity:
        return "best_effort" if self.timed else "none"

    @property
    def ready(self) -> bool:
        """The header is complete."""
        return self._header is None

    def feed(self, data: bytes) -> None:
        """More of the container; after it was lost nothing happens."""
        if not self.timed:
            return
        source = self._source
        source.append(data)
        if self._header is not None:
            self._header += data
        try:
            next(self._steps)
            bound = self._starts.latest + LONGEST_STRAY if self.ready else LONGEST_HEADER
            self.timed = source.received <= bound
        except (Lost, StopIteration):
            self.timed = False
        if not self.timed:
            self._source, self._header = Source(), None

    def seconds(self, length: int) -> float:
        """Bytes alone say nothing here."""
        return 0.0

    def length(self, seconds: float) -> int:
        """Nor do seconds."""
        return 0

    def samples(self, offset: int) -> int:
        """Samples that are complete within the first `offset` bytes."""
        return max(0, self._ends.sample_before(offset) - self._dropped)

    def first_sample(self, offset: int) -> int:
        """The first sample heard by a connection that begins at or after the byte `offset`, where it may.

        Its decoder drops samples, too: what it puts out first is not the first sample of its first packet.
        """
        return self._starts.sample_after(offset)

    def offset(self, sample: int) -> int:
        """The byte to begin with in order to hear from `sample` on."""
        return self._starts.before_sample(sample)

    def lead_in(self, offset: int) -> bytes:
        """What goes up before the byte `offset`, where a connection begins.

        A browser's cluster can last 30 s. What begins within one is put into a new one of the same timestamp.
        """
        if not offset:
            return b""
        at = bisect_right(self._clusters, offset, key=lambda cluster: cluster[0]) - 1
        if at < 0 or self._clusters[at][0] == offset:
            return self.preamble
        return self.preamble + _NEW_CLUSTER + self._clusters[at][1]

    def forget(self, offset: int) -> None:
        """Audio before `offset` is kept no longer."""
        self._ends.forget(offset)
        self._starts.forget(offset)
        passed = bisect_right(self._clusters, offset, key=lambda cluster: cluster[0]) - 1
        del self._clusters[: max(0, passed)]

    # Private

    def _begin_audio(self, at: int) -> None:
        assert self._header is not None
        self.preamble, self._header = bytes(self._header[:at]), None

    def _ogg(self) -> Steps:
        """Pages as in RFC 3533, mapped to Opus as in RFC 7845."""
        source, serial, packet = self._source, b"", b""
        while True:
            head = yield from source.take(27)
            first = not serial
            if head[:5] != b"OggS\0" or bool(head[5] & 2) is not first:
                raise Lost
            if not first and head[14:18] != serial:
                raise Lost  # two streams at once, or one after the other
            serial, at = head[14:18], 0
            lacing = yield from source.take(head[26])
            body = yield from source.take(sum(lacing))
            packets: list[bytes] = []
            for size in lacing:
                packet = (packet + body[at : at + size])[:16]
                at += size
                if size < 255:
                    packets.append(packet)
                    packet = b""
            if first:
                if len(packets) != 1 or not packets[0].startswith(b"OpusHead") or len(packets[0]) < 12:
                    raise Lost
                self._dropped = int.from_bytes(packets[0][10:12], "little")
            elif self.ready:
                self._decoded += sum(map(packet_samples, packets))
                if not packet:
                    self._ends.add(source.at, self._decoded)
            elif packets:
                if packets[0][:8] != b"OpusTags" or len(packets) > 1 or packet:
                    raise Lost
                self._begin_audio(source.at)

    def _webm(self) -> Steps:
        """EBML elements as in RFC 8794 and RFC 9559, read without their nesting: ids tell enough."""
        source, track = self._source, _Track()
        cluster = begun = 0
        while True:
            start = source.at
            name = yield from self._element_id()
            size = yield from self._element_size()
            if name == _CLUSTER:
                if not self.ready:
                    if not self._track:
                        raise Lost
                    self._begin_audio(start)
                cluster, begun = start, self._decoded
                self._starts.add(start, begun)
            elif name == _TRACK_ENTRY:
                track = _Track()
            elif name in (_SIMPLE_BLOCK, _BLOCK_GROUP) and self._decoded > begun and self._clusters:
                begun = self._decoded
                self._starts.add(start, begun)
            if name in _ENTERED:
                continue
            if size < 0 or (name == _EBML and start) or (not self.ready and size > LONGEST_HEADER):
                raise Lost
            if self.ready and name in (_SIMPLE_BLOCK, _BLOCK):
                yield from self._block(size)
            elif self.ready and name == _TIMESTAMP:
                yield from self._timestamp(cluster, size)
            elif not self.ready and name in _OF_A_TRACK:
                track.learn(name, (yield from source.take(size)))
                if track.codec == b"A_OPUS" and track.number:
                    self._track, self._dropped = track.number, track.dropped
            else:
                yield from source.skip(size)

    def _timestamp(self, cluster: int, size: int) -> Steps:
        if size > 8 or len(self._clusters) >= MOST_PLACES:
            raise Lost
        value = yield from self._source.take(size)
        self._clusters.append((cluster, bytes([_TIMESTAMP, 0x80 | size]) + value))

    def _block(self, size: int) -> Steps:
        source = self._source
        end = source.at + size
        head = yield from source.take(min(size, 16))
        length = _vint_length(head[0]) if head else 0
        if length + 3 > len(head):
            raise Lost
        flags, packet = head[length + 2], head[length + 3 :]
        yield from source.skip(end - source.at)
        if _vint(head[:length]) == self._track:
            if flags & 6:
                raise Lost  # several packets in one block: nobody does that with Opus
            self._decoded += packet_samples(packet)
            self._ends.add(end, self._decoded)

    def _element_id(self) -> Generator[None, None, int]:
        head = yield from self._source.take(1)
        length = _vint_length(head[0])
        if length > 4:
            raise Lost
        return int.from_bytes(head + (yield from self._source.take(length - 1)), "big")

    def _element_size(self) -> Generator[None, None, int]:
        """Bytes of an element; -1: unknown."""
        head = yield from self._source.take(1)
        rest = yield from self._source.take(_vint_length(head[0]) - 1)
        value = _vint(head + rest)
        return -1 if value == (1 << 7 * (1 + len(rest))) - 1 else value


Clock = MediaClock | OpusClock


class _Track(msgspec.Struct):
    """What a TrackEntry says."""

    number: int = 0
    codec: bytes = b""
    dropped: int = 0

    def learn(self, name: int, value: bytes) -> None:
        if name == _TRACK_NUMBER:
            self.number = int.from_bytes(value, "big")
        elif name == _CODEC_ID:
            self.codec = value.rstrip(b"\0")
        else:
            self.dropped = int.from_bytes(value[10:12], "little")  # an OpusHead, as in Ogg


class Opening:
    """The first messages of audio without `encoding`, until they say what it is."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.container = ""
        self._magic = b""
        self._opus: OpusClock | None = None
        self._source = Source()
        self._wav = _wav(self._source)

    def take(self, data: bytes) -> Clock | None:
        """The clock, once it is known; `messages` are then all that came."""
        self.messages.append(data)
        if not self.container:
            self._magic += data[:16]
            if any(magic.startswith(self._magic) and magic != self._magic for magic, _ in _MAGIC):
                return None
            self.container = container_of(self._magic)
            data = b"".join(self.messages)
        if self.container in ("ogg", "webm"):
            return self._take_opus(data)
        return self._take_wav(data) if self.container == "wav" else self.unknown

    @property
    def unknown(self) -> MediaClock:
        """The clock when no more comes, or nothing that helps."""
        return untimed(self.container) if self.container else PACKETS

    def _take_opus(self, data: bytes) -> Clock | None:
        if self._opus is None:
            self._opus = OpusClock(self.container)
        self._opus.feed(data)
        if not self._opus.timed:
            return self.unknown
        return self._opus if self._opus.ready else None

    def _take_wav(self, data: bytes) -> MediaClock | None:
        self._source.append(data)
        try:
            next(self._wav)
        except Lost:
            return self.unknown
        except StopIteration as done:
            clock: MediaClock = done.value
            preamble = b"".join(self.messages)[: self._source.at]
            return clock.behind(preamble)
        return self.unknown if self._source.received > LONGEST_HEADER else None


def container_of(head: bytes) -> str:
    """The container that begins with these bytes; empty if none does."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    return "mp4" if head[4:8] == b"ftyp" else ""


def untimed(container: str) -> MediaClock:
    """A container whose bytes have no known place in time."""
    return MediaClock(rate_hz=0, frame_bytes=1, joinable=True, container=container)


def packet_samples(packet: bytes) -> int:
    """Samples at 48 kHz in an Opus packet, of which the first two bytes are enough."""
    if not packet:
        return 0
    code = packet[0] & 3
    count = 1 if code == 0 else 2 if code < 3 else packet[1] & 63 if len(packet) > 1 else 0
    return min(5_760, count * _FRAME[packet[0] >> 3])


def _wav(source: Source) -> Generator[None, None, MediaClock]:
    """The chunks up to the samples. What the header says of their length is not believed: streams lie."""
    head = yield from source.take(12)
    if head[8:] != b"WAVE":
        raise Lost
    fmt = b""
    while True:
        chunk = yield from source.take(8)
        name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if name == b"data":
            return _wav_clock(fmt)
        if size > LONGEST_HEADER:
            raise Lost
        if name == b"fmt ":
            fmt = yield from source.take(size)
            yield from source.skip(size % 2)
        else:
            yield from source.skip(size + size % 2)


def _wav_clock(fmt: bytes) -> MediaClock:
    if len(fmt) < 16:
        raise Lost
    tag, channels = int.from_bytes(fmt[:2], "little"), int.from_bytes(fmt[2:4], "little")
    rate, frame, bits = (int.from_bytes(fmt[i:j], "little") for i, j in ((4, 8), (12, 14), (14, 16)))
    if tag == _EXTENSIBLE:
        tag = int.from_bytes(fmt[24:26], "little")
    if tag not in _SAMPLES_TAGS or not 0 < rate < 10_000_000 or not frame or frame * 8 != channels * bits:
        raise Lost
    return MediaClock(rate_hz=rate, frame_bytes=frame, joinable=True, container="wav")


def _vint_length(first: int) -> int:
    """Bytes of an EBML number that begins with `first`."""
    if not first:
        raise Lost
    return 9 - first.bit_length()


def _vint(data: bytes) -> int:
    return int.from_bytes(data, "big") & ((1 << 7 * len(data)) - 1)
