"""Where the audio of a stream comes from: a WAV file, raw samples, or standard input as either."""

from __future__ import annotations

import asyncio
import sys
import threading
import wave
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import BinaryIO, Self

from gateway.audio.clock import SAMPLE_BYTES
from gateway.errors import UsageError


class Source:
    """Headerless audio, and what its bytes mean; `parameters` are Deepgram's query parameters for it."""

    def __init__(
        self,
        name: str,
        encoding: str,
        sample_rate: int,
        channels: int,
        read_frames: Callable[[int], bytes],
        close: Callable[[], None],
    ) -> None:
        self._name = name
        self.parameters: Mapping[str, str] = {
            "encoding": encoding,
            "sample_rate": str(sample_rate),
            "channels": str(channels),
        }
        self._sample_rate = sample_rate
        self._frame_bytes = SAMPLE_BYTES[encoding] * channels
        self._read_frames = read_frames
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._close()

    def seconds(self, length_bytes: int) -> float:
        return length_bytes / (self._sample_rate * self._frame_bytes)

    async def read(self, seconds: float) -> bytes:
        """The next `seconds` of audio, less at the end, empty after it.

        From a daemon thread, not the loop's executor: Ctrl-C must not wait for standard input's next byte.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()

        def finish(data: bytes, error: str) -> None:
            if error and not done.cancelled():
                done.set_exception(UsageError(f"{self._name}: {error}"))
            elif not done.cancelled():
                done.set_result(data)

        def work() -> None:
            data, error = b"", ""
            try:
                data = self._read_frames(max(1, round(seconds * self._sample_rate)))
            except (OSError, EOFError, wave.Error) as failure:
                error = str(failure)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(finish, data, error)

        threading.Thread(target=work, daemon=True).start()
        return await done

    async def frames(self, seconds: float) -> AsyncGenerator[bytes, None]:
        """All of it in frames of `seconds`, at the pace of speech.

        The schedule is absolute: a frame that is late does not make the next one late.
        """
        loop = asyncio.get_running_loop()
        due = loop.time()
        while data := await self.read(seconds):
            await asyncio.sleep(due - loop.time())
            yield data
            due += self.seconds(len(data))


def open_source(path: str, encoding: str | None, sample_rate: int | None, channels: int) -> Source:
    """Open `path` (`-`: standard input): WAV without `encoding`, raw samples with it. Raises `UsageError`.

    The caller closes the source; use it in a `with` statement.
    """
    name = "standard input" if path == "-" else path
    try:
        file = open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-")  # noqa: SIM115 - the source closes it
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    try:
        return _raw(name, file, encoding, sample_rate, channels) if encoding else _wav(name, file)
    except UsageError:
        file.close()
        raise


def _raw(name: str, file: BinaryIO, encoding: str, sample_rate: int | None, channels: int) -> Source:
    if encoding not in SAMPLE_BYTES:
        raise UsageError(f"--encoding {encoding}: cannot be paced; use one of {', '.join(SAMPLE_BYTES)}")
    if not sample_rate:
        raise UsageError("--encoding needs --sample-rate")
    frame_bytes = SAMPLE_BYTES[encoding] * channels
    return Source(
        name, encoding, sample_rate, channels, lambda frames: file.read(frames * frame_bytes), file.close
    )


def _wav(name: str, file: BinaryIO) -> Source:
    try:
        wav = wave.open(file)  # noqa: SIM115 - the source closes it
    except (wave.Error, EOFError, OSError) as error:
        why = str(error) or "too short"
        problem = f"not a PCM WAV file ({why}); raw audio needs --encoding, other files `gateway transcribe`"
        raise UsageError(f"{name}: {problem}") from None
    if wav.getsampwidth() != 2:
        raise UsageError(f"{name}: {8 * wav.getsampwidth()}-bit WAV; only 16-bit PCM can be streamed")
    return Source(name, "linear16", wav.getframerate(), wav.getnchannels(), wav.readframes, file.close)
