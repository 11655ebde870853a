"""What a stranger sends as audio is read itself, and nothing that it names."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from gateway.deepgram.query import ListenQuery
from gateway.prerecorded import container, probe, split
from tests.prerecorded.test_probe import recording

HEADER = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\n"


@contextlib.contextmanager
def secret(folder: Path) -> Iterator[list[str]]:
    """Names of recordings of this host's: a file, and a descriptor of one without a name, as in the spool."""
    path = folder / "secret.wav"
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(b"\1\2" * 8000)
    fd = os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o600)
    try:
        os.write(fd, path.read_bytes())
        yield [os.path.relpath(path), os.path.relpath(f"/proc/self/fd/{fd}", "/"), f"file://{path}"]
    finally:
        os.close(fd)


def is_refused(data: bytes) -> None:
    assert probe.duration(io.BytesIO(data), len(data), ListenQuery("")) is None
    decoded = io.BytesIO()
    with pytest.raises(split.Unsplittable):
        split.decode(io.BytesIO(data), decoded)
    assert decoded.getvalue() == b""


def test_other_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a list of files nor by a playlist, nor what another upload has open."""
    monkeypatch.chdir("/")
    with secret(tmp_path) as names:
        for name in names:
            is_refused(f"ffconcat version 1.0\nfile {name}\n".encode())
            is_refused(f"{HEADER}{name}\n#EXT-X-ENDLIST\n".encode())


def test_nothing_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a playlist nor a manifest: nobody knocks at the address that they name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        is_refused(f"{HEADER}{url}\n#EXT-X-ENDLIST\n".encode())
        is_refused(f"ffconcat version 1.0\nfile {url}\n".encode())
        is_refused(
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT10S"><Period duration="PT10S"><AdaptationSet mimeType="audio/mp4">'
            f'<Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet>'
            "</Period></MPD>".encode()
        )
        with pytest.raises(BlockingIOError):
            server.accept()


def test_nothing_is_listened_on() -> None:
    """A session description opens no port, at which a thread would wait for what never comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] & ~1
    lines = [
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        "s=x",
        "c=IN IP4 127.0.0.1",
        "t=0 0",
        f"m=audio {port} RTP/AVP 0",
    ]
    data = ("\n".join(lines) + "\n").encode()
    asked = threading.Thread(target=is_refused, args=(data,))
    asked.start()
    asked.join(0.2)
    heard = [line.split()[1] for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    assert not any(address.endswith(f":{port:04X}") for address in heard)
    asked.join()


@pytest.mark.parametrize(
    "form", ["wav", "flac", "mp3", "ogg", "ipod", "adts", "webm", "aiff", "caf", "mpegts"]
)
def test_recordings_are_opened(form: str) -> None:
    """What people record is none of that."""
    codecs = {
        "wav": "pcm_s16le",
        "caf": "pcm_s16le",
        "aiff": "pcm_s16be",
        "flac": "flac",
        "mp3": "libmp3lame",
    }
    codec = codecs.get(form, "libopus" if form in ("ogg", "webm") else "aac")
    with container.opened(recording(form, codec, 48000)) as held:
        assert len(held.streams.audio) == 1


def test_every_format_is_known() -> None:
    """A name that FFmpeg does not have would allow nothing."""
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(container.FORMATS) <= known
