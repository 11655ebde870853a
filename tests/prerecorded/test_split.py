"""Recordings in parts: all of it once, cut in pauses, and an answer with the times of the whole."""

from __future__ import annotations

import io
import itertools
import math
import random
import struct
import sys
import wave
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.query import ListenQuery
from gateway.prerecorded import split
from gateway.prerecorded.split import Encoding, Samples
from tests.prerecorded import test_probe as probed

RATE = 8000
LOUD: dict[Encoding, tuple[bytes, bytes]] = {
    "linear16": (struct.pack("<h", 9000), b"\0\0"),
    "mulaw": (b"\x90", b"\xff"),
    "alaw": (b"\x95", b"\xd5"),
}


def recording(encoding: Encoding, seconds: float, pauses: list[float]) -> bytes:
    """Noise with pauses of half a second."""
    rng = random.Random(7)
    loud, quiet = LOUD[encoding]
    samples = []
    for n in range(int(seconds * RATE)):
        silent = any(at <= n / RATE < at + 0.5 for at in pauses)
        samples.append(quiet if silent or rng.random() < 0.1 else loud)
    return b"".join(samples)


@pytest.mark.parametrize("encoding", ["linear16", "mulaw", "alaw"])
def test_cuts_lie_in_pauses(encoding: Encoding) -> None:
    """A part ends in the pause of its last fifth, not at its greatest length."""
    audio = recording(encoding, 25.0, [4.0, 9.0, 17.5])
    query = ListenQuery(f"encoding={encoding}&sample_rate={RATE}")
    samples = split.find_samples(io.BytesIO(audio), len(audio), query)
    assert samples is not None
    found = list(split.parts(io.BytesIO(audio), samples, 10.0))
    assert [part.start for part in found] == pytest.approx([0.0, 9.25, 17.75], abs=0.15)
    assert found[-1].begin + found[-1].size == len(audio)


@given(
    size=st.integers(0, 200_000),
    longest=st.floats(0.2, 5.0),
    channels=st.integers(1, 2),
    encoding=st.sampled_from(["linear16", "mulaw"]),
)
def test_parts_tile_the_recording(size: int, longest: float, channels: int, encoding: Encoding) -> None:
    """No byte is in two parts or in none; no part is longer than allowed; cuts are between samples."""
    samples = Samples(encoding, RATE, channels, 11, size)
    found = list(split.parts(io.BytesIO(random.Random(size).randbytes(size + 11)), samples, longest))
    assert found[0].begin == 11
    assert all(a.begin + a.size == b.begin for a, b in itertools.pairwise(found))
    assert found[-1].begin + found[-1].size == 11 + size
    assert all(samples.seconds(part.size) <= longest + 1e-9 for part in found)
    assert all(part.size % samples.frame_bytes == 0 for part in found[:-1])
    assert all(part.size > 0 for part in found) or size == 0


def test_a_wav_and_its_parts() -> None:
    """The samples of a WAV are found; a part with a header of its own is a WAV of just these samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(bytes(range(256)) * 1000)
    samples = split.find_samples(file, len(file.getvalue()), ListenQuery(""))
    assert samples == Samples("linear16", RATE, 2, 44, 256_000)
    *_, last = split.parts(file, samples, 3.0)
    data = file.getvalue()[last.begin :][: last.size]
    with wave.open(io.BytesIO(samples.header(last.size) + data)) as part:
        assert part.getparams()[:4] == (2, 2, RATE, last.size // 4)
        assert part.readframes(part.getnframes()) == data


def test_a_wav_whose_header_was_written_first() -> None:
    """Recorders that stream leave a length that is not true: what is there counts."""
    header = Samples("mulaw", RATE, 1, 0, 0).header(0x7FFFFFFF)
    samples = split.find_samples(io.BytesIO(header + bytes(999)), len(header) + 999, ListenQuery(""))
    assert samples == Samples("mulaw", RATE, 1, len(header), 999)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF\0\0\0\0WAVE",
        b"ID3",
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + bytes(16),
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1",
    ],
)
def test_what_has_no_samples_to_find(data: bytes) -> None:
    """Nothing is found, and nothing breaks."""
    assert split.find_samples(io.BytesIO(data), len(data), ListenQuery("")) is None


def test_decoded() -> None:
    """Compressed audio is decoded; what is no audio says so."""
    into = io.BytesIO()
    samples = split.decode(probed.recording("mp3", "libmp3lame", 44100), into)
    assert samples.seconds(samples.size) == pytest.approx(probed.SECONDS, abs=0.2)
    values = struct.unpack("<1600h", into.getvalue()[64_000:67_200])
    assert math.sqrt(sum(v * v for v in values) / 1600) == pytest.approx(8000 / math.sqrt(2), rel=0.1)
    with pytest.raises(split.Unsplittable, match="cannot be decoded"):
        split.decode(io.BytesIO(b"%PDF-1.7"), io.BytesIO())


def test_decoded_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `media` does not install it."""
    recording = probed.recording("flac", "flac", 16000)
    monkeypatch.setitem(sys.modules, "numpy", None)
    into = io.BytesIO()
    samples = split.decode(recording, into)
    assert samples.size == len(into.getvalue()) == probed.SECONDS * 32_000


def answer(start: float, words: list[tuple[str, float, int]]) -> dict[str, Any]:
    spoken = [
        {"word": w, "start": at, "end": at + 0.5, "confidence": 0.9, "speaker": who} for w, at, who in words
    ]
    text = " ".join(w for w, _, _ in words)
    alternative = {
        "transcript": text,
        "confidence": 0.9 if words else 0.0,
        "words": spoken,
        "entities": [
            {"label": "NAME", "value": w, "start_word": n, "end_word": n + 1}
            for n, (w, _, _) in enumerate(words)
        ],
    }
    utterances = [
        {"start": w["start"], "end": w["end"], "transcript": w["word"], "channel": 0} for w in spoken
    ]
    return {
        "metadata": {"duration": 10.0, "request_id": f"r{start}"},
        "results": {"channels": [{"alternatives": [alternative]}], "utterances": utterances},
    }


def test_joined() -> None:
    """Times are the recording's, speakers of different parts are never one, entities point at their words."""
    parts = [
        (0.0, answer(0, [("one", 1.0, 0), ("two", 2.0, 1)])),
        (9.5, answer(1, [])),
        (19.0, answer(2, [("three", 0.5, 0)])),
    ]
    joined = split.join(parts)
    (alternative,) = joined["results"]["channels"][0]["alternatives"]
    assert alternative["transcript"] == "one two three"
    assert [(w["word"], w["start"], w["speaker"]) for w in alternative["words"]] == [
        ("one", 1.0, 0),
        ("two", 2.0, 1),
        ("three", 19.5, 2),
    ]
    assert alternative["confidence"] == pytest.approx(0.9)
    assert [(e["value"], e["start_word"], e["end_word"]) for e in alternative["entities"]] == [
        ("one", 0, 1),
        ("two", 1, 2),
        ("three", 2, 3),
    ]
    assert [u["start"] for u in joined["results"]["utterances"]] == [1.0, 2.0, 19.5]
    assert joined["metadata"] == {"duration": 29.0, "request_id": "r0"}


def test_options_about_the_whole() -> None:
    """A summary of parts is no summary of the recording."""
    assert split.why_not(ListenQuery("model=nova-3&punctuate=true")) is None
    assert split.why_not(ListenQuery("summarize=v2")) == "summarize is about the whole recording"
