"""How long a recording is, told from real files in many forms."""

from __future__ import annotations

import io
import math
import wave
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import pytest

from gateway.deepgram.query import ListenQuery
from gateway.prerecorded import probe
from gateway.prerecorded.route import is_plausible

SECONDS = 12.5
NONE = ListenQuery("")


def recording(form: str, codec: str, rate: int, *, streamed: bool = False) -> io.BytesIO:
    """A tone in a container; `streamed`: as a browser records it, without a length."""
    file = io.BytesIO()
    options = {"live": "1"} if streamed else {}
    with av.open(file, mode="w", format=form, options=options) as container:
        stream = cast("Any", container.add_stream(codec, rate=rate, layout="mono"))
        tone = np.sin(2 * math.pi * 440 * np.arange(int(SECONDS * rate)) / rate)
        fifo = av.AudioFifo()
        frame = av.AudioFrame.from_ndarray((tone * 8000).astype(np.int16).reshape(1, -1), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        fifo.write(frame)
        while (part := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 8000),
        ("flac", "flac", 16000),
        ("mp3", "libmp3lame", 44100),
        ("ogg", "libopus", 48000),
        ("ipod", "aac", 44100),
        ("adts", "aac", 44100),
        ("webm", "libopus", 48000),
    ],
)
def test_formats(form: str, codec: str, rate: int) -> None:
    """Each within what its codec adds at the ends."""
    file = recording(form, codec, rate)
    assert probe.duration(file, len(file.getvalue()), NONE) == pytest.approx(SECONDS, abs=0.2)


def test_a_browsers_recording() -> None:
    """A live WebM has no length in its header: its packets are counted."""
    file = recording("webm", "libopus", 48000, streamed=True)
    assert probe.duration(file, len(file.getvalue()), NONE) == pytest.approx(SECONDS, abs=0.1)


def test_raw_audio() -> None:
    """Raw audio is as long as its bytes, by what the query says of them."""
    query = ListenQuery("encoding=mulaw&sample_rate=8000&channels=2")
    assert probe.duration(io.BytesIO(b""), 160_000, query) == 10.0


@pytest.mark.parametrize("data", [b"", b"RIFF", b"%PDF-1.7\n1 0 obj", b"\xff\xf1", b"\0" * 5000, b"ID3\x04"])
def test_what_is_no_audio(data: bytes) -> None:
    """Nothing is known of it, and nothing breaks."""
    assert probe.duration(io.BytesIO(data), len(data), NONE) is None


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [("wav", "pcm_s16le", 8000), ("wav", "pcm_mulaw", 8000), ("aiff", "pcm_s16be", 8000)],
)
def test_a_header_that_says_too_little(form: str, codec: str, rate: int) -> None:
    """Twenty minutes of samples behind a header of seconds are twenty minutes."""
    data = recording(form, codec, rate).getvalue()
    width = (len(data) - 100) / SECONDS
    data += bytes(int(1200 * width))
    found = probe.duration(io.BytesIO(data), len(data), NONE)
    assert found is not None
    assert found > 1200


def test_an_mp3_that_says_too_little() -> None:
    """Its own count of frames is not believed beyond the highest rate that MP3 has."""
    data = recording("mp3", "libmp3lame", 44100).getvalue() + b"\x55" * 20_000_000
    found = probe.duration(io.BytesIO(data), len(data), NONE)
    assert found is not None
    assert found > 480


def test_a_truncated_wav() -> None:
    """A header that promises a minute over one second of bytes is believed here, and not by the router."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(16_000 * 60))
    cut = file.getvalue()[:16_044]
    found = probe.duration(io.BytesIO(cut), len(cut), NONE)
    assert found == 60.0
    assert not is_plausible(found, len(cut))
