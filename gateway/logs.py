"""Logging: JSON lines that never wait for their reader, and never hold a secret.

Lines go through a bounded queue to one daemon thread. When whoever reads them stalls (a full pipe, journald),
lines are dropped and counted; the event loop goes on.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict

from gateway.threads import give_way

MAX_VALUE_CHARS: Final = 1000
PAUSE: Final = 0.02
"""Seconds that the writing thread rests after a write: lines that come meanwhile do not wake it. Each that
does takes the interpreter from the event loop for two switches of threads."""
_AT_ONCE: Final = 256  # lines
_FIRST: Final = ("timestamp", "level", "event")
"""What a line begins with, for people who look down a column of them."""
_MAX_DEPTH: Final = 4
_MAX_FRAMES: Final = 12
_SECRET_NAMES: Final = frozenset(
    ("authorization", "token", "api_key", "key", "secret", "password", "sec_websocket_protocol")
)
# C0, DEL, C1 and the two Unicode line ends: what can break a line or drive a terminal.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class LogWriter:
    """Takes lines from any thread without waiting and writes them to `stream` from a thread of its own.

    `dropped` counts the lines that were lost: the queue held `capacity` of them, or the stream is gone.
    """

    def __init__(self, stream: TextIO, capacity: int = 10_000) -> None:
        self.dropped = 0
        self._stream = stream
        self._capacity = capacity
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._drain, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line, which has no line end; never waits."""
        if self._queue.qsize() >= self._capacity:
            self.dropped += 1
        else:
            self._queue.put(line)

    def close(self, timeout: float = 1.0) -> None:
        """Write what is queued, for at most `timeout` seconds: a stalled reader does not hold up the exit."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(timeout)

    def _drain(self) -> None:
        give_way()
        while (line := self._queue.get()) is not None:
            lines = [line]
            while len(lines) < _AT_ONCE and not self._queue.empty():
                if (line := self._queue.get()) is None:
                    self._queue.put(None)
                    break
                lines.append(line)
            try:
                _write(self._stream, "".join(f"{line}\n" for line in lines))
            except (OSError, ValueError):  # ValueError: the stream was closed
                self.dropped += len(lines)
            if len(lines) < _AT_ONCE:
                self._closing.wait(PAUSE)


def configure(
    level: Literal["debug", "info", "warning", "error"], format: Literal["json", "console"], stream: TextIO
) -> LogWriter:
    """Set up structlog and the standard library's logging for this process; the caller closes the writer.

    `structlog.get_logger()` then logs each event as one JSON object on a line: `timestamp` (ISO 8601, UTC),
    `level`, `event` and the caller's fields. A call below `level` returns at once.
    """
    writer = LogWriter(stream)
    last = _render_json if format == "json" else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _timestamp,
            _exception,
            # JSON escapes control characters; the console renderer passes them on, as a second log line or a
            # command for the terminal.
            _clean if format == "json" else _clean_and_escape,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(writer),
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(level)
    return writer


class _Lines:
    """What structlog calls at the end of its chain: every level writes the rendered line."""

    def __init__(self, writer: LogWriter) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = writer.write


class Bridge(logging.Handler):
    """Records of the standard library's logging (asyncio, aiohttp, websockets) as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a library's own slip in a format string
            message = str(record.msg)
        log = structlog.get_logger()
        log.log(record.levelno, "library.log", logger=record.name, message=message, exc_info=record.exc_info)


def _route_standard_logging(level: str) -> None:
    # Never below WARNING: at DEBUG websockets logs frames, which is what people said.
    least = max(logging.WARNING, logging.getLevelName(level.upper()))
    logging.basicConfig(handlers=[Bridge(least)], level=least, force=True)
    for name in ("asyncio", "aiohttp", "websockets"):
        logging.getLogger(name).setLevel(least)
    logging.captureWarnings(True)


def _timestamp(_logger: object, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat()[:-6] + "Z"
    return event


def _exception(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Put an exception into one field, without local variables: they may be secrets or what people said."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
        event["exception"] = {
            "type": type(error).__name__,
            "message": str(error),
            "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        } | ({"cause": repr(error.__cause__)} if error.__cause__ else {})
    return event


def _clean(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Mask what is secret by its name and cut what is long."""
    return {name: _value(name, value, 0) for name, value in event.items()}


def _clean_and_escape(logger: object, method: str, event: EventDict) -> EventDict:
    cleaned = _clean(logger, method, event)
    return {
        name: value if isinstance(value, int | float) else _escape(str(value))
        for name, value in cleaned.items()
    }


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _value(name: str, value: Any, depth: int) -> Any:
    if _is_secret(name):
        return "***"
    if isinstance(value, str):
        return _cut(value)
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value  # JSON has no NaN or infinity; those go the way of all other objects
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {str(key): _value(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        return [_value("", item, depth + 1) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"  # audio, or a message: never in a log
    return _cut(repr(value))


@functools.lru_cache(256)
def _is_secret(name: str) -> bool:
    return name.lower().replace("-", "_") in _SECRET_NAMES


def _cut(text: str) -> str:
    cut = len(text) - MAX_VALUE_CHARS
    return f"{text[:MAX_VALUE_CHARS]}... {cut} more" if cut > 0 else text


def _render_json(_logger: object, _method: str, event: EventDict) -> str:
    first = {name: event.pop(name) for name in _FIRST if name in event}
    return json.dumps({**first, **event})  # ensure_ascii also escapes C1 controls and the Unicode line ends


def _write(stream: TextIO, text: str) -> None:
    """Write to the stream's descriptor where there is one.

    A thread that waits inside `stream.write` holds its lock, and the interpreter's exit would fail on that.
    """
    try:
        descriptor = stream.fileno()
    except OSError:  # io.UnsupportedOperation: no descriptor
        stream.write(text)
        return
    data = text.encode(errors="backslashreplace")
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # someone we share the pipe with made it non-blocking
            select.select([], [descriptor], [])
