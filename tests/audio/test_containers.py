"""Containers are read along, however they are split, and never believed."""

from __future__ import annotations

import struct
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio.clock import PACKETS, MediaClock
from gateway.audio.containers import (
    LONGEST_HEADER,
    LONGEST_STRAY,
    MOST_PLACES,
    Opening,
    OpusClock,
    Places,
    packet_samples,
)
from tests.fakes.muxer import (
    OPUS_HEAD,
    UNKNOWN,
    block,
    cluster,
    element,
    ogg,
    ogg_header,
    page,
    webm,
    webm_header,
)

SAMPLES = Path(__file__).parent / "samples"
SKIP = 312  # samples that decoders drop, in the muxer's header and in libopus's
PACKET = b"\x08" + bytes(40)  # 20 ms
STREAMS = {
    "ogg": ogg([PACKET] * 100),
    "webm": webm([PACKET] * 100),
    "webm with lengths": webm([PACKET] * 100, sized=True),
    "tone.ogg": (SAMPLES / "tone.ogg").read_bytes(),
    "tone.webm": (SAMPLES / "tone.webm").read_bytes(),
}


def wav(fmt: bytes | None = None, *, extra: bytes = b"", size: int = 0, magic: bytes = b"RIFF") -> bytes:
    """A header up to the samples."""
    fmt = struct.pack("<HHIIHH", 1, 2, 16_000, 64_000, 4, 16) if fmt is None else fmt
    head = magic + struct.pack("<I", size) + b"WAVE" + extra
    return head + b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size)


def fmt(tag: int, channels: int, rate: int, bits: int, more: bytes = b"") -> bytes:
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits) + more


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % len(data) for cut in cuts} - {0}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def opened(messages: list[bytes]) -> MediaClock | OpusClock | None:
    """The clock that the messages tell, which then has seen them all."""
    opening, clock = Opening(), None
    for i, message in enumerate(messages):
        if clock is None:
            clock = opening.take(message)
            assert opening.messages == messages[: i + 1]
        elif isinstance(clock, OpusClock):
            clock.feed(message)
    return clock


def opus(*messages: bytes) -> OpusClock:
    clock = opened(list(messages))
    assert isinstance(clock, OpusClock)
    return clock


class TestWav:
    @pytest.mark.parametrize(
        ("header", "rate", "frame"),
        [
            (wav(), 16_000, 4),
            (wav(fmt(1, 1, 8000, 8)), 8000, 1),
            (wav(fmt(1, 1, 44_100, 24)), 44_100, 3),
            (wav(fmt(3, 1, 8000, 32)), 8000, 4),
            (wav(fmt(6, 1, 8000, 8)), 8000, 1),
            (wav(fmt(7, 2, 8000, 8, b"\0\0")), 8000, 2),
            (wav(fmt(0xFFFE, 6, 48_000, 32, struct.pack("<HHIH", 22, 32, 0, 1) + bytes(14))), 48_000, 24),
            (wav(size=0xFFFFFFFF, magic=b"RF64", extra=b"ds64\x1c\0\0\0" + bytes(28)), 16_000, 4),
            (wav(size=4, extra=b"LIST\x03\0\0\0abc\0"), 16_000, 4),
        ],
    )
    def test_the_header_says_what_a_second_is(self, header: bytes, rate: int, frame: int) -> None:
        """PCM of all widths, float, G.711, extensible and RF64; odd chunks are padded; no length counts."""
        clock = opened([header + bytes(50)])
        assert isinstance(clock, MediaClock)
        assert (clock.container, clock.joinable) == ("wav", True)
        assert (clock.rate_hz, clock.frame_bytes, clock.preamble) == (rate, frame, header)

    @given(st.lists(st.integers(0, 200), max_size=20))
    def test_however_it_is_split(self, cuts: list[int]) -> None:
        """The same clock comes out."""
        header = wav(extra=b"LIST\x03\0\0\0abc\0")
        clock = opened(pieces(header + bytes(100), cuts))
        assert clock == opened([header])

    @pytest.mark.parametrize(
        "header",
        [
            wav(fmt(0x11, 1, 8000, 4)),  # ADPCM
            wav(fmt(0x55, 2, 44_100, 0)),  # MP3
            wav(fmt(1, 1, 0, 16)),
            wav(fmt(1, 0, 8000, 16)),
            wav(struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 3, 16)),
            wav(b"\x01\0"),
            wav(fmt(0xFFFE, 1, 8000, 16)),
            b"RIFF\0\0\0\0AVI " + bytes(100),
            b"RIFF\0\0\0\0WAVEdata\0\0\0\0",
            b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\xff",
            b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 8200,
        ],
    )
    def test_what_has_no_clock(self, header: bytes) -> None:
        """Compressed samples, nonsense, and headers without end: joined, but not timed."""
        clock = opened([header])
        assert isinstance(clock, MediaClock)
        assert (clock.container, clock.joinable, clock.rate_hz) == ("wav", True, 0)


class TestMagic:
    @pytest.mark.parametrize(
        ("head", "container"),
        [
            (b"fLaC\0", "flac"),
            (b"ID3\x04", "mp3"),
            (b"FORM\0", "aiff"),
            (b"#!AMR-WB\n", "amr"),
            (b".snd\0", "au"),
            (b"\0\0\0\x20ftypM4A ", "mp4"),
        ],
    )
    def test_other_containers_have_no_clock(self, head: bytes, container: str) -> None:
        """They may be joined, and that is all."""
        clock = opened([head])
        assert clock == MediaClock(rate_hz=0, frame_bytes=1, joinable=True, container=container)

    @pytest.mark.parametrize("head", [b"\xff\xfb\x90", bytes(20), b"oggs", b"xxxxftp", b"OgGS"])
    def test_what_is_not_recognised_is_packets(self, head: bytes) -> None:
        """To join what one does not know could break it."""
        assert opened([head]) == PACKETS

    def test_a_magic_number_may_come_in_pieces(self) -> None:
        """The messages are kept as they came, for packets must not be joined."""
        opening = Opening()
        assert opening.take(b"O") is None
        assert opening.unknown == PACKETS
        assert opening.take(b"gg") is None
        assert opening.take(b"x") == PACKETS
        assert opening.messages == [b"O", b"gg", b"x"]

    def test_a_header_that_does_not_end_is_given_up(self) -> None:
        """By the bound, whatever comes in it (and quickly)."""
        for first, more in (
            (
                ogg_header()[: -len(page([b"OpusTags" + bytes(8)], number=1))],
                page([b"t" * 255], open_ended=True),
            ),
            (webm_header(), element("ec", b"", b"\x80")),
            (b"RIFF\0\0\0\0WAVE", b"junk\0\0\0\0"),
        ):
            opening, sent, began = Opening(), 0, time.process_time()
            clock = opening.take(first)
            while clock is None:
                clock = opening.take(more)
                sent += len(more)
                assert sent < LONGEST_HEADER + 1000
            assert isinstance(clock, MediaClock)
            assert (clock.rate_hz, bool(clock.container)) == (0, True)
            assert time.process_time() - began < 2


class TestOpus:
    @pytest.mark.parametrize(
        ("packet", "milliseconds"),
        [
            (b"", 0), (b"\x00", 10), (b"\x08", 20), (b"\x18", 60), (b"\x60", 10), (b"\x78", 20),
            (b"\x80", 2.5), (b"\xf8", 20), (b"\xfc", 20), (b"\xf9", 40), (b"\xfa", 40), (b"\xfb\x03", 60),
            (b"\xfb\x83", 60), (b"\xfb", 0), (b"\x1b\x3f", 120),
        ],
    )  # fmt: skip
    def test_a_packet_says_how_long_it_is(self, packet: bytes, milliseconds: float) -> None:
        """At most 120 ms, whatever it says."""
        assert packet_samples(packet) == milliseconds * 48

    @pytest.mark.parametrize("name", STREAMS)
    @given(cuts=st.lists(st.integers(0, 20_000), max_size=40))
    def test_however_it_is_split(self, name: str, cuts: list[int]) -> None:
        """The same clock comes out, and it can only grow."""
        stream = STREAMS[name]
        clock = opus(*pieces(stream, cuts))
        lengths = [0, 17, len(stream) // 3, len(stream) // 2, len(stream)]
        reference = opus(stream)
        assert [clock.samples(n) for n in lengths] == sorted(reference.samples(n) for n in lengths)
        for sample in (0, 40_000, 70_000):
            assert clock.offset(sample) == reference.offset(sample)
        assert clock.preamble == reference.preamble == stream[: len(clock.preamble)]

    @pytest.mark.parametrize(("name", "seconds"), [("tone.ogg", 4.0), ("tone.webm", 4.0)])
    def test_a_real_encoder(self, name: str, seconds: float) -> None:
        """Its header ends where its audio begins; its length is right to within its last packet."""
        clock = opus(STREAMS[name])
        assert seconds <= clock.samples(len(STREAMS[name])) / 48_000 < seconds + 0.06
        begin = clock.offset(2 * 48_000)
        assert STREAMS[name][begin:].startswith(
            b"OggS" if name.endswith("ogg") else (b"\x1f\x43\xb6\x75", b"\xa3")
        )
        assert 0 <= 2 * 48_000 - clock.first_sample(begin) <= 48_000

    def test_packets_agree_with_the_times_of_the_container(self) -> None:
        """What a real encoder wrote beside them, to within the padding at the end and a millisecond."""
        stream = STREAMS["tone.ogg"]
        last = stream.rindex(b"OggS")
        granule = int.from_bytes(stream[last + 6 : last + 14], "little")
        assert 0 <= opus(stream).samples(len(stream)) - (granule - SKIP) < 960
        stream = STREAMS["tone.webm"]
        at, seen = opus(stream).offset(0), 0
        at = stream.index(b"\x1f\x43\xb6\x75", at)  # the first
        while (at := stream.find(b"\x1f\x43\xb6\x75", at + 1)) >= 0:
            timestamp = stream.index(b"\xe7", at)
            length = stream[timestamp + 1] & 0x7F
            milliseconds = int.from_bytes(stream[timestamp + 2 : timestamp + 2 + length], "big")
            assert abs((opus(stream[:at]).samples(at) + SKIP) / 48 - milliseconds) <= 1
            seen += 1
        assert seen >= 4

    def test_places_of_pages(self) -> None:
        """A page that has come whole counts; one may begin with any."""
        stream = STREAMS["ogg"]
        clock = opus(stream)
        head, size = len(ogg_header()), len(page([PACKET] * 10))
        assert clock.preamble == ogg_header()
        assert clock.samples(head + size - 1) == 0
        assert clock.samples(head + size) == 9600 - SKIP
        assert clock.samples(len(stream)) == 96_000 - SKIP
        assert clock.offset(9599) == 0
        assert clock.offset(9600) == head + size
        assert clock.first_sample(head + size) == 9600
        assert clock.first_sample(head + size + 1) == 19_200

    def test_places_of_clusters(self) -> None:
        """One may begin with a block, too, in a cluster of its own with the timestamp of the other."""
        stream = STREAMS["webm"]
        clock = opus(stream)
        head, size = len(webm_header()), len(cluster(block(PACKET) * 20, 0))
        assert clock.preamble == webm_header()
        assert clock.samples(head + size // 2) in range(4800, 9600)
        assert clock.offset(19_200) == head + size
        assert clock.lead_in(head + size) == webm_header()
        within = clock.offset(30_000)
        before = stream[:within]
        assert stream[within : within + 1] == b"\xa3"
        assert clock.first_sample(within) == before.count(PACKET) * 960
        assert 30_000 - 4800 - 960 < clock.first_sample(within) <= 30_000
        lead_in = clock.lead_in(within)
        assert lead_in == webm_header() + cluster(b"", 400)
        again = opus(lead_in + stream[within:])
        assert again.samples(len(stream)) == 96_000 - SKIP - clock.first_sample(within)
        clock.forget(within)
        assert clock.lead_in(within) == lead_in
        assert clock.lead_in(0) == b""

    def test_a_packet_on_two_pages(self) -> None:
        """Nobody can begin between them."""
        long = b"\x08" + bytes(300)
        first = page([PACKET] * 5 + [long[:255]], open_ended=True)
        second = page([long[255:], *[PACKET] * 4], flags=1)
        third = page([PACKET])
        clock = opus(ogg_header() + first + second + third)
        head = len(ogg_header())
        assert clock.samples(head + len(first)) == 0
        assert clock.samples(head + len(first + second)) == 9600 - SKIP
        assert clock.first_sample(head + 1) == 9600

    def test_tags_on_several_pages(self) -> None:
        """The header ends with the page on which they end."""
        tags = b"OpusTags" + bytes(502)
        parts = page([tags[:255]], open_ended=True), page([tags[255:]], flags=1)
        clock = opus(page([OPUS_HEAD], flags=2), *parts, page([PACKET] * 5))
        assert clock.preamble == page([OPUS_HEAD], flags=2) + b"".join(parts)

    def test_a_block_group_and_another_track(self) -> None:
        """Blocks in groups count, other tracks do not."""
        body = element("a0", block(PACKET, name="a1")) + block(PACKET, track=2) + block(PACKET) * 4
        stream = webm_header() + cluster(body, 0)
        clock = opus(stream)
        assert clock.samples(10_000) == 4800 - SKIP
        group = opus(stream + element("a0", block(PACKET, name="a1")))
        assert group.first_sample(len(stream)) == 4800

    @pytest.mark.parametrize(
        "stream",
        [
            page([b"\x01vorbis"], flags=2) + bytes(100),
            page([b"OpusHead"], flags=2),
            page([OPUS_HEAD]),
            page([OPUS_HEAD], flags=2) + page([PACKET]),
            page([OPUS_HEAD], flags=2) + page([b"OpusTags", PACKET]),
            ogg([PACKET])[100:],
            webm_header(codec=b"A_VORBIS") + cluster(b"", 0),
            webm_header() + element("a3", b"", b"\xff"),
            webm_header() + element("ec", b"", struct.pack(">Q", (1 << 56) + (1 << 40))),
            b"\x1aE\xdf\xa3\x00" + bytes(50),
            b"OggS" + bytes(200),
        ],
    )
    def test_what_can_not_be_followed_from_the_start(self, stream: bytes) -> None:
        """Other codecs, other orders, other sizes: no clock, and nothing is raised."""
        clock = opened([stream])
        assert isinstance(clock, MediaClock)
        assert clock.rate_hz == 0

    @pytest.mark.parametrize(
        ("start", "more"),
        [
            (ogg([PACKET] * 20), b"garbage" * 10),
            (ogg([PACKET] * 20), ogg([PACKET])),
            (ogg([PACKET] * 20), page([PACKET], serial=b"else")),
            (webm([PACKET] * 20), webm([PACKET])),
            (webm([PACKET] * 20), b"\0" * 10),
            (webm([PACKET] * 20), element("1254c367", b"", UNKNOWN)),
            (webm([PACKET] * 20), element("a3", b"\x81\0\0\x02" + PACKET)),
            (webm([PACKET] * 20), element("a3", b"")),
            (webm([PACKET] * 20), cluster(b"", 0) * MOST_PLACES),
            (webm([PACKET] * 20), element("e7", bytes(9))),
            (webm([PACKET] * 20), element("a3", b"\x81\0")),
            (webm([PACKET] * 20), element("ec", bytes(LONGEST_STRAY))),
            (webm([PACKET] * 20), element("ec", bytes(95)) * (LONGEST_STRAY // 100 + 1)),
            (webm([PACKET] * 20), block(b"v" * 60_000, track=2) * 71),
        ],
    )
    def test_what_can_not_be_followed_any_more(self, start: bytes, more: bytes) -> None:
        """Garbage, a second stream, a megabyte without audio: what was known stays, the rest has no clock."""
        clock = opus(start)
        known, at_first = clock.samples(len(start)), clock.timed
        for at in range(0, len(more), 10_000):
            clock.feed(more[at : at + 10_000])
        assert (at_first, clock.timed) == (True, False)
        clock.feed(start)
        assert (clock.samples(1 << 30), clock.preamble) == (known, opus(start).preamble)

    @given(
        st.sampled_from(sorted(STREAMS)),
        st.integers(0, 5000),
        st.binary(max_size=40),
        st.lists(st.integers(0, 20_000), max_size=5),
    )
    def test_damage_is_never_an_error(self, name: str, at: int, damage: bytes, cuts: list[int]) -> None:
        """Whatever comes, the clock grows and stays within what the bytes can hold."""
        stream = STREAMS[name]
        stream = stream[:at] + damage + stream[at + len(damage) // 2 :]
        clock = opened(pieces(stream, cuts))
        if isinstance(clock, OpusClock):
            told = [clock.samples(offset) for offset in range(0, len(stream) + 1, 13)]
            assert told == sorted(told)
            assert told[-1] <= len(stream) * 5760


class TestPlaces:
    @given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9000)), max_size=60), st.data())
    def test_they_are_close_enough(self, steps: list[tuple[int, int]], data: st.DataObject) -> None:
        """What is told lies before the truth, by less than the resolution and one step; the last is exact."""
        places, truth = Places(), [(0, 0)]
        for length, samples in steps:
            truth.append((truth[-1][0] + length, truth[-1][1] + samples))
            places.add(*truth[-1])
        assert places.latest == truth[-1][0]
        assert places.sample_before(truth[-1][0]) == truth[-1][1]
        offset, sample = data.draw(st.sampled_from(truth))
        assert sample - 4800 - 9000 <= places.sample_before(offset) <= sample
        assert places.before_sample(sample) <= max(o for o, s in truth if s <= sample)
        places.forget(offset)
        assert sample - 4800 - 9000 <= places.sample_before(offset) <= sample
        assert places.sample_before(truth[-1][0]) == truth[-1][1]

    @given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9000)), max_size=60))
    def test_one_that_was_told_stays(self, steps: list[tuple[int, int]]) -> None:
        """A connection that began there, and is lost, is followed by one that hears no less."""
        places, told, offset, sample = Places(), [], 0, 0
        for length, samples in steps:
            offset, sample = offset + length, sample + samples
            places.add(offset, sample)
            told.append((places.before_sample(sample), sample))
            assert all(places.sample_after(begin) <= wanted for begin, wanted in told)

    def test_there_are_never_too_many(self) -> None:
        """A day of audio that nobody forgets is remembered more coarsely."""
        places = Places()
        for n in range(1, 5 * MOST_PLACES):
            places.add(n * 100, n * 4800)
        assert len(places) <= MOST_PLACES
        assert places.latest == (5 * MOST_PLACES - 1) * 100
        n = 2 * MOST_PLACES
        assert (n - 64) * 4800 < places.sample_before(n * 100) <= n * 4800
