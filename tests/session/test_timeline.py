"""Deepgram's seconds and the client's samples."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio.clock import PACKETS, MediaClock
from gateway.deepgram.recogniser import Kind, Reading
from gateway.session.timeline import Timeline, float32_ulp

CLOCK = MediaClock(rate_hz=8000, frame_bytes=1, joinable=True)


def float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def final(start: float, end: float, channel: int = 0, channels: int = 1) -> Reading:
    return Reading(Kind.FINAL, channel, channels, start, end)


@given(st.floats(2**-20, 2**20, width=32))
def test_ulp_is_float32s(value: float) -> None:
    """The next float32 is that far away."""
    (bits,) = struct.unpack("I", struct.pack("f", value))
    (following,) = struct.unpack("f", struct.pack("I", bits + 1))
    assert float32_ulp(value) == following - value


def test_the_watermark_is_that_of_the_slowest_channel() -> None:
    """Both must be final before a sample is."""
    line = Timeline(CLOCK, 2)
    line.commit(final(0, 2.0, 0, 2), 80_000)
    assert line.watermark == 0
    line.commit(final(0, 1.5, 1, 2), 80_000)
    assert line.watermark == 12_000


def test_channels_that_the_query_did_not_announce() -> None:
    """They are counted from the base of the connection, first seen in a result or in a commit."""
    line = Timeline(CLOCK, 1)
    line.forgive(8000)
    line.rebase(8000)
    reading = final(0, 1.0, 1, 2)
    assert line.window(reading) == (1.0, 2.0)
    line.commit(reading, 80_000)
    assert line.committed == [8000, 16_000]


def test_a_final_never_reaches_beyond_what_was_sent() -> None:
    """Rounded past the last sample, or claimed far past it."""
    line = Timeline(CLOCK, 1)
    line.commit(final(0, 99.0), 8000)
    assert line.watermark == 8000


def test_finals_never_go_back() -> None:
    """An older or repeated one moves nothing."""
    line = Timeline(CLOCK, 1)
    line.commit(final(0, 2.0), 80_000)
    assert line.commit(final(0, 1.0), 80_000) is None
    assert line.watermark == 16_000


def test_a_skipped_stretch_is_reported() -> None:
    """As samples; rounding is no skip (continuity.md I2)."""
    line = Timeline(CLOCK, 1)
    assert line.commit(final(0, 1.0), 80_000) is None
    assert line.commit(final(1.5, 2.0), 80_000) == (8000, 12_000)
    assert line.commit(final(2.0001, 3.0), 80_000) is None


def test_a_final_without_start_covers_all_since_the_last() -> None:
    """Flux names the turn's window, not the silence before it."""
    line = Timeline(CLOCK, 1)
    line.commit(final(-1.0, 1.0), 80_000)
    assert line.commit(final(-1.0, 3.0), 80_000) is None
    assert line.watermark == 24_000


@given(
    st.integers(1, 400_000_000),
    st.integers(1, 300_000_000),
    st.lists(st.integers(1, 400_000), min_size=1, max_size=20),
)
def test_shifted_finals_tile(base: int, first: int, windows: list[int]) -> None:
    """However far into the call: each begins where the last one ended, float32 or not (continuity.md I2)."""
    line, at, mark = Timeline(CLOCK, 1), 0, base
    line.forgive(base)
    line.rebase(base)
    windows = [first, *windows]
    sent = base + sum(windows)
    for length in windows:
        reading = final(float32(at / 8000), float32((at + length) / 8000))
        start, end = line.window(reading)
        assert line.commit(reading, sent) is None
        tolerance = max(1, 4 * float32_ulp((at + length) / 8000) * 8000)
        assert start == round(mark / 8000, 6)
        assert abs(end - line.watermark / 8000) <= tolerance / 8000
        assert abs(line.watermark - base - at - length) <= tolerance
        at, mark = at + length, line.watermark
    assert line.watermark == sent


def test_without_samples_the_cursor_is_the_clock() -> None:
    """A new connection goes on where results had come to."""
    line = Timeline(PACKETS, 1)
    line.follow(final(0, 2.5))
    assert line.commit(final(0, 2.5), 0) is None
    assert line.unsaid == (2.5, 2.5)
    line.rebase(0)
    assert line.window(final(0.5, 1.0)) == (3.0, 3.5)
    assert not line.overlap(final(0.0, 1.0))
    assert line.ahead(final(0.0, 99.0), 0) < 0
    assert line.lag(final(0, 1.0), 99) == 0.0


def test_lag() -> None:
    """Received beyond what the result covers, never negative."""
    line = Timeline(CLOCK, 1)
    line.rebase(8000)
    assert line.lag(final(0, 1.0), 24_000) == 1.0
    assert line.lag(final(0, 9.0), 24_000) == pytest.approx(0.0)


@pytest.mark.parametrize(("start", "overlaps"), [(0.0, True), (0.4, True), (0.49999, False), (0.5, False)])
def test_results_that_reach_back(start: float, overlaps: bool) -> None:
    """By more than rounding."""
    line = Timeline(CLOCK, 1)
    line.commit(final(0, 1.5), 80_000)
    line.rebase(8000)
    assert line.overlap(final(start, 1.0)) is overlaps


def test_ahead_of_the_audio() -> None:
    """By how much a result claims audio that never went up (faults.md 24)."""
    line = Timeline(CLOCK, 1)
    line.rebase(8000)
    assert line.ahead(final(0, 2.0), 16_000) == 1.0
    assert line.ahead(final(0, 0.5), 16_000) == -0.5


def test_what_is_forgiven_is_behind() -> None:
    """Dropped audio will have no finals; later finals stand (continuity.md I5)."""
    line = Timeline(CLOCK, 2)
    line.commit(final(0, 2.0, 0, 2), 80_000)
    line.forgive(12_000)
    assert line.committed == [16_000, 12_000]
