"""Logging: whole, on one line, without secrets, and never in the way."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from gateway.config import Secret
from gateway.logs import MAX_VALUE_CHARS, Bridge, LogWriter, configure

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def logged() -> Lines:
    """Call it to end logging and get the objects that were written, one a line."""
    stream = io.StringIO()
    writer = configure("info", "json", stream)

    def lines() -> list[dict[str, Any]]:
        writer.close()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return lines


def test_an_event_is_an_object(logged: Lines) -> None:
    """Time in UTC, level, event and then the caller's fields; what was bound before is there too."""
    structlog.get_logger().bind(session="s-1").warning("upstream.lost", code=1006, owed=0.5)
    (line,) = logged()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "upstream.lost",
        "level": "warning",
        "session": "s-1",
        "code": 1006,
        "owed": 0.5,
    }


def test_level(logged: Lines) -> None:
    """What is below the level is not written."""
    structlog.get_logger().debug("a")
    structlog.get_logger().info("b")
    assert [line["event"] for line in logged()] == ["b"]


@pytest.mark.parametrize(
    "name",
    ["authorization", "Authorization", "token", "api_key", "key", "secret", "Sec-WebSocket-Protocol"],
)
def test_secrets_by_name(logged: Lines, name: str) -> None:
    """A field with the name of a secret is masked at every depth."""
    structlog.get_logger().info("x", **{name: "abc123"}, headers=[{name: ["abc123"]}])
    (line,) = logged()
    assert line[name] == "***"
    assert "abc123" not in json.dumps(line)


def test_secret_values(logged: Lines) -> None:
    """A Secret is masked whatever its field is called."""
    structlog.get_logger().info("x", value=Secret("abc123"), inside={"a": (Secret("abc123"),)})
    assert "abc123" not in json.dumps(logged())


@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[2J", "\x9b2J", "\u2028", "\r", "\x00"])
@pytest.mark.parametrize("style", ["json", "console"])
def test_control_characters(hostile: str, style: Any) -> None:
    """Nothing that a caller logs can begin a line or drive a terminal."""
    stream = io.StringIO()
    writer = configure("info", style, stream)
    structlog.get_logger().info(f"event{hostile}", field=hostile, nested=[hostile])
    writer.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert hostile not in text[:-1]


def test_long_values(logged: Lines) -> None:
    """A long value is cut, and says by how much; bytes are not shown at all."""
    structlog.get_logger().info("x" * 5000, field="y" * 5000, audio=bytes(160))
    (line,) = logged()
    assert line["field"] == "y" * MAX_VALUE_CHARS + f"... {5000 - MAX_VALUE_CHARS} more"
    assert len(line["event"]) < MAX_VALUE_CHARS + 20
    assert line["audio"] == "<160 bytes>"


def test_numbers_that_json_lacks(logged: Lines) -> None:
    """Infinity and NaN do not make a line that strict parsers refuse."""
    structlog.get_logger().info("x", lag=float("inf"), other=float("nan"))
    (line,) = logged()
    assert (line["lag"], line["other"]) == ("inf", "nan")


def test_exceptions_are_one_field(logged: Lines) -> None:
    """An exception is its type, its text and where it came from, without local variables."""
    password_in_a_local = "abc123"
    try:
        try:
            {0: ""}[len(password_in_a_local)]
        except KeyError as error:
            raise ValueError("two\nlines") from error
    except ValueError:
        structlog.get_logger().exception("call.failed")
    (line,) = logged()
    assert line["exception"]["type"] == "ValueError"
    assert line["exception"]["message"] == "two\nlines"
    assert line["exception"]["cause"] == "KeyError(6)"
    assert "test_exceptions_are_one_field" in line["exception"]["at"][-1]
    assert "abc123" not in json.dumps(line)


def test_library_records(logged: Lines) -> None:
    """Libraries' warnings come along as events; their debug output, which would show frames, does not."""
    logging.getLogger("websockets.server").debug("< TEXT what people said")
    logging.getLogger("asyncio").info("nothing")
    logging.getLogger("aiohttp.server").error("%s failed", "it", exc_info=ValueError("x"))
    lines = logged()
    assert [line["logger"] for line in lines] == ["aiohttp.server"]
    assert (lines[0]["message"], lines[0]["level"]) == ("it failed", "error")
    assert lines[0]["exception"]["type"] == "ValueError"


def test_python_warnings() -> None:
    """A warning is an event too, not text of its own on standard error."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        writer = configure("info", "json", stream)
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1)
        logging.captureWarnings(False)
    writer.close()
    assert json.loads(stream.getvalue())["logger"] == "py.warnings"


def test_a_librarys_slip(logged: Lines) -> None:
    """A record whose arguments do not fit its text is logged as it is."""
    record = logging.LogRecord("odd", logging.WARNING, "f.py", 1, "%d", ("x",), None)
    next(handler for handler in logging.getLogger().handlers if isinstance(handler, Bridge)).emit(record)
    assert [line["message"] for line in logged()] == ["%d"]


def test_debug_level_keeps_libraries_quiet() -> None:
    """Even at level debug no library logs below warning."""
    writer = configure("debug", "json", io.StringIO())
    assert not logging.getLogger("websockets.client").isEnabledFor(logging.INFO)
    writer.close()


async def test_a_stalled_reader_is_not_waited_for() -> None:
    """With a full pipe the loop goes on, dropped lines are counted, closing does not hang (faults.md 58)."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    writer = LogWriter(stream, capacity=100)
    start = time.monotonic()
    for _ in range(5000):
        writer.write("x" * 200)
    assert time.monotonic() - start < 0.5
    await asyncio.sleep(0)
    assert writer.dropped > 0
    writer.close(timeout=0.1)
    assert time.monotonic() - start < 1
    written = 0
    os.set_blocking(reading, False)
    deadline = time.monotonic() + 5
    while written + writer.dropped < 5000 and time.monotonic() < deadline:
        try:
            written += os.read(reading, 1 << 20).count(b"\n")
        except BlockingIOError:
            await asyncio.sleep(0.01)
    assert written + writer.dropped == 5000
    os.close(reading)
    stream.close()


def test_a_reader_that_is_gone() -> None:
    """Lines for a closed pipe are dropped and counted; the writer lives on."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        writer = LogWriter(stream)
        writer.write("a")
        writer.close()
        assert writer.dropped == 1


def test_a_pipe_that_does_not_block() -> None:
    """A descriptor that someone set to non-blocking loses nothing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as source:
        writer = LogWriter(stream)
        for _ in range(2000):
            writer.write("x" * 99)
        received = b""
        while len(received) < 200_000:
            received += source.read1(65536)
        writer.close()
        assert writer.dropped == 0
