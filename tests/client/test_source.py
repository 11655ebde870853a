"""Audio sources: what they read, and what they refuse."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from gateway.client import open_source
from gateway.errors import UsageError


def wav(path: Path, width: int = 2, channels: int = 1) -> str:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(b"\1" * width * channels * 1000)
    return str(path)


async def test_wav(tmp_path: Path) -> None:
    """A WAV file is its samples without its header; its header is the query."""
    with open_source(wav(tmp_path / "a.wav", channels=2), None, None, 1) as source:
        assert source.parameters == {"encoding": "linear16", "sample_rate": "16000", "channels": "2"}
        first, second, third = await source.read(0.05), await source.read(0.05), await source.read(0.05)
    assert (len(first), len(second), third) == (3200, 800, b"")
    assert source.seconds(4000) == pytest.approx(1000 / 16000)


async def test_raw(tmp_path: Path) -> None:
    """Raw audio is read in whole frames of every channel."""
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(1000))
    with open_source(str(path), "mulaw", 8000, 2) as source:
        assert len(await source.read(0.05)) == 800
    assert source.seconds(16000) == 1.0


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "not a PCM WAV"), (b"ID3 mp3", "not a PCM WAV"), (b"RIFF\0\0\0\0WAVE", "not a PCM WAV")],
)
def test_not_a_wav(tmp_path: Path, content: bytes, problem: str) -> None:
    """What is no WAV file is refused with its name."""
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^{path}: {problem}"):
        open_source(str(path), None, None, 1)


def test_eight_bit_wav(tmp_path: Path) -> None:
    """Only 16-bit samples have an encoding that Deepgram knows."""
    with pytest.raises(UsageError, match="8-bit WAV"):
        open_source(wav(tmp_path / "a.wav", width=1), None, None, 1)


@pytest.mark.parametrize(("encoding", "rate"), [("opus", 48000), ("mulaw", None)])
def test_unpaceable(tmp_path: Path, encoding: str, rate: int | None) -> None:
    """Audio whose bytes have no time cannot be sent at the pace of speech."""
    with pytest.raises(UsageError, match="--encoding"):
        open_source(wav(tmp_path / "a.wav"), encoding, rate, 1)


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is one line with its name."""
    with pytest.raises(UsageError, match=r"none\.wav: No such file"):
        open_source(str(tmp_path / "none.wav"), None, None, 1)


async def test_directory(tmp_path: Path) -> None:
    """A directory is refused like any unreadable file."""
    with pytest.raises(UsageError, match="Is a directory"):
        open_source(str(tmp_path), None, None, 1)
