"""Recognises real speech with the small English model inside the moonshine-voice wheel.

The model knows no word times: they are spread over each line by the length of the words, and `model_info`
says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from moonshine_voice import ModelArch, Transcriber, get_model_path

from gateway.emulator.engines.base import Ear, EngineFull, SilentEar, Word
from gateway.emulator.sound import ALAW, MULAW, Format

_LAG_SECONDS = 1.2  # a line is known this long after it began, at the latest: results stay behind that
_PUNCTUATION = ".,?!;:\"'()"
_TABLES = {
    "mulaw": np.array(MULAW, dtype=np.float32) / 32768,
    "alaw": np.array(ALAW, dtype=np.float32) / 32768,
}


def _samples(data: bytes, fmt: Format, channel: int) -> Any:
    """One channel as float32 in [-1, 1]."""
    if fmt.encoding in _TABLES:
        mono = _TABLES[fmt.encoding][np.frombuffer(data, np.uint8)]
    elif fmt.encoding == "linear16":
        mono = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    else:
        mono = np.frombuffer(data, "<f4")
    return mono[channel :: fmt.channels]


def interpolated(text: str, start: int, end: int) -> list[Word]:
    """The words of a line between two samples, each as long as its letters."""
    written = text.split()
    letters = sum(len(word) + 1 for word in written) or 1
    words, passed = [], 0
    for word in written:
        begin, passed = passed, passed + len(word) + 1
        edges = [start + (end - start) * at // letters for at in (begin, passed)]
        plain = word.strip(_PUNCTUATION).lower()
        if plain:
            words.append(Word(plain, edges[0], edges[1], written=word))
    return words


class AsrEar:
    """One channel of speech; the model runs in a thread of its own, events come back to the loop."""

    def __init__(self, engine: AsrEngine, fmt: Format, channel: int, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._format = fmt
        self._channel = channel
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asr")
        self._stream: Any = None
        self._events: list[Any] = []
        self._base = 0  # sample at which the model's present stream began
        self._done = 0  # samples the model has been given
        self._floor = 0  # no word may begin before this one
        self._last_line = -1
        self._tail = b""
        self._words: list[Word] = []
        self._under_way = 0
        self._closed = False
        self.heard = 0
        self.pending_from: int | None = None
        self.tentative: list[Word] = []
        self.backlog_bytes = 0

    @property
    def settled(self) -> bool:
        return self._under_way == 0

    def feed(self, data: bytes) -> None:
        data = self._tail + data
        whole = len(data) - len(data) % self._format.frame_bytes
        self._tail, data = data[whole:], data[:whole]
        if data:
            self.backlog_bytes += len(data)
            self._submit(self._listen, data)

    def flush(self, hard: bool) -> None:
        self._submit(self._settle, b"")

    def take(self) -> list[Word]:
        words, self._words = self._words, []
        return words

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._thread.submit(self._drop)
            self._thread.shutdown(wait=False)
            self._engine.released(self._thread)

    # In the thread.

    def _listen(self, data: bytes) -> int:
        if self._closed:
            return 0  # nobody waits for it, and the ears that are still open need the processor
        if self._stream is None:
            self._stream = self._engine.open_stream(self._events.append)
        samples = _samples(data, self._format, self._channel)
        self._stream.add_audio(samples, self._format.sample_rate)
        return len(samples)

    def _settle(self, data: bytes) -> int:
        self._drop()
        return 0

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.stop()
            self._stream.close()
            self._stream = None

    # In the loop.

    def _submit(self, work: Callable[[bytes], int], data: bytes) -> None:
        if self._closed:
            return
        self._under_way += 1
        flushed = not data

        def back(future: Future[int]) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._back, future, len(data), flushed)

        self._thread.submit(work, data).add_done_callback(back)

    def _back(self, future: Future[int], size_bytes: int, flushed: bool) -> None:
        if self._closed:
            return
        self._under_way -= 1
        self.backlog_bytes -= size_bytes
        self._done += future.result()
        events, self._events[:] = list(self._events), []
        for event in events:
            self._line(event)
        if flushed:
            self._base, self._last_line = self._done, -1
            self.pending_from, self.tentative = None, []
        lag = 0 if flushed else round(_LAG_SECONDS * self._format.sample_rate)
        self.heard = max(self.heard, self._done - lag)
        self._wake()

    def _line(self, event: Any) -> None:
        line, rate = getattr(event, "line", None), self._format.sample_rate
        if line is None or line.line_id <= self._last_line:
            return
        begin = self._base + round(line.start_time * rate)
        start = max(begin, self._floor, self.heard if self.pending_from is None else 0)
        end = min(self._done, max(start + 1, self._base + round((line.start_time + line.duration) * rate)))
        words = interpolated(line.text or "", min(start, end), end)
        if line.is_complete:
            self._last_line = line.line_id
            self._complete(words, end)
        else:
            self.pending_from = start if self.pending_from is None else self.pending_from
            self.tentative = words

    def _complete(self, words: list[Word], end: int) -> None:
        if end > self._floor:
            self._words += words
            self._floor = end
        self.pending_from, self.tentative = None, []


class AsrEngine:
    """The `asr` engine: one model, up to `max_streams` ears at a time."""

    name = "asr"

    def __init__(self, max_streams: int) -> None:
        options = {"return_audio_data": "false"}
        path = str(get_model_path("tiny-en"))
        self._model = Transcriber(path, ModelArch.TINY, update_interval=0.5, options=options)
        self.max_streams: int | None = max_streams
        self._open = 0
        self._threads: list[ThreadPoolExecutor] = []

    def open_stream(self, listener: Callable[[Any], None]) -> Any:
        """A stream of the model; called in an ear's thread."""
        stream = self._model.create_stream()
        stream.add_listener(listener)
        stream.start()
        return stream

    def listen(self, fmt: Format, channel: int, wake: Callable[[], None]) -> Ear:
        if not fmt.timed:
            return SilentEar(fmt)
        if self.max_streams is not None and self._open >= self.max_streams:
            raise EngineFull
        self._open += 1
        return AsrEar(self, fmt, channel, wake)

    def released(self, thread: ThreadPoolExecutor) -> None:
        """An ear closed; its thread may still be busy."""
        self._open -= 1
        self._threads.append(thread)

    def model_name(self, model: str) -> str:
        return "moonshine-tiny-en (word times interpolated)"

    async def close(self) -> None:
        threads, self._threads = self._threads, []
        for thread in threads:
            await asyncio.get_running_loop().run_in_executor(None, thread.shutdown)
        self._model.close()
