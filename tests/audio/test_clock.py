"""What bytes mean in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio.clock import PACKETS, MediaClock, from_parameters

CLOCKS = st.builds(
    MediaClock,
    rate_hz=st.integers(1, 200_000),
    frame_bytes=st.integers(1, 80),
    joinable=st.just(True),
)


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "bytes_per_second"),
    [
        ("mulaw", "8000", None, 8000),
        ("alaw", "8000", "1", 8000),
        ("linear16", "16000", "2", 64000),
        ("LINEAR16", "8000", "", 16000),
        ("linear32", "48000", "20", 3_840_000),
    ],
)
def test_headerless_audio_has_a_byte_clock(
    encoding: str, rate: str, channels: str | None, bytes_per_second: int
) -> None:
    """Rate, sample width and channels say how many bytes are a second."""
    clock = from_parameters(encoding, rate, channels)
    assert clock is not None
    assert clock.timed
    assert clock.continuity == "exact"
    assert clock.joinable
    assert clock.bytes_per_second == bytes_per_second
    assert clock.seconds(bytes_per_second * 3) == 3.0


@pytest.mark.parametrize("encoding", ["opus", "speex", "amr-nb", "amr-wb", "g729", "flac", "mp7", ""])
def test_compressed_and_unknown_encodings_are_packets(encoding: str) -> None:
    """Their messages are neither joined nor timed."""
    assert from_parameters(encoding, "16000", "1") == PACKETS
    assert not PACKETS.timed
    assert PACKETS.continuity == "none"
    assert not PACKETS.joinable
    assert PACKETS.seconds(4000) == 0.0


@pytest.mark.parametrize("rate", [None, "", "0", "-8000", "8e3", "8000.5", " 8000", "²", "8" * 5000])
def test_a_nonsense_rate_is_for_deepgram_to_refuse(rate: str | None) -> None:
    """Until it does, nothing is assumed of the audio."""
    assert from_parameters("mulaw", rate, "1") == PACKETS


@pytest.mark.parametrize("channels", ["0", "two", "-1", "²", "9" * 5000])
def test_nonsense_channels_are_for_deepgram_to_refuse(channels: str) -> None:
    """Until it does, nothing is assumed of the audio."""
    assert from_parameters("mulaw", "8000", channels) == PACKETS


def test_without_encoding_the_bytes_must_tell() -> None:
    """Rate and channels are not read without `encoding`; Ogg has a header in any case."""
    assert from_parameters(None, "8000", "1") is None
    assert from_parameters("ogg-opus", "48000", "1") is None


@given(CLOCKS, st.integers(0, 10**10))
def test_audio_is_cut_between_samples(clock: MediaClock, offset: int) -> None:
    """No cut lies inside a sample or between the channels of one."""
    before, after = clock.offset(clock.samples(offset)), clock.offset(clock.first_sample(offset))
    assert before <= offset <= after
    assert after - before == (clock.frame_bytes if offset % clock.frame_bytes else 0)


@given(CLOCKS, st.integers(0, 100), st.integers(0, 10**6))
def test_a_header_is_no_audio(clock: MediaClock, length: int, offset: int) -> None:
    """It comes before the first sample, and to begin with that means to begin with it."""
    behind = clock.behind(bytes(length))
    assert behind.samples(length + offset) == clock.samples(offset)
    assert behind.first_sample(length + offset) == clock.first_sample(offset)
    assert behind.samples(length // 2) == behind.first_sample(length // 2) == 0
    for sample in (1, 7, offset):
        assert behind.offset(sample) == (length + clock.offset(sample) if sample else 0)
        assert behind.first_sample(behind.offset(sample)) == sample


@given(CLOCKS, st.floats(0, 1e5))
def test_length_is_whole_frames_that_fit(clock: MediaClock, seconds: float) -> None:
    """`length` and `seconds` agree to within one frame, and never on more than was asked for."""
    length = clock.length(seconds)
    assert length % clock.frame_bytes == 0
    assert clock.seconds(length) <= seconds + 1e-9
    assert clock.seconds(length + clock.frame_bytes) > seconds - 1e-9
