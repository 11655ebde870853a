"""A recording's container, opened by PyAV (extra `media`) so that what is written in it opens nothing else.

To FFmpeg playlists, session descriptions and lists of files are containers too, and what they name it reads:
files of this host, its open descriptors, addresses inside its network.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Final

FORMATS: Final = (
    *("wav", "w64", "aiff", "au", "caf"),
    *("mp3", "aac", "ac3", "eac3", "flac", "amr", "amrnb", "amrwb"),
    *("ogg", "mov", "mp4", "matroska", "webm", "asf", "avi", "flv", "mpeg", "mpegts"),
)
"""Those that hold their audio themselves."""
_OPTIONS: Final = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}


def opened(file: BinaryIO) -> Any:
    """A context manager with PyAV's container of `file`. Blocking. Raises av.FFmpegError, ValueError."""
    import av  # 23 MB, and optional

    file.seek(0)
    return av.open(file, mode="r", options=_OPTIONS)
