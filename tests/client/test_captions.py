"""What the three displays print."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from gateway.client import Event, Result, summarise
from gateway.client.captions import Captions, JsonLines, PlainLines

INTERIM = Result(False, 0, 0.0, 1.0, "hel", 1.1, 0.1)
FINAL = Result(True, 0, 0.0, 1.5, "hello\x1b[2J", 1.7, 0.2)
EMPTY = Result(True, 1, 1.5, 2.0, "", 2.2, 0.2)
METADATA = Event("Metadata", 2.3, {"type": "Metadata"})
LOST = Event("ConnectionLost", 2.3, {"type": "ConnectionLost", "code": 1006, "reason": "no\x1bpong"})
RESUMED = Event("ConnectionResumed", 2.5, {"recovered": True, "seconds": 0.24})
ANEW = Event("ConnectionResumed", 2.5, {"recovered": False, "seconds": 0.24})
SUMMARY = summarise([INTERIM, FINAL, EMPTY], 2.0, 1000, "")


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is one object with its type; nothing is left out."""
    display = JsonLines()
    for message in (INTERIM, FINAL, METADATA):
        display.show(message)
    display.end(SUMMARY)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["result", "result", "event", "summary"]
    assert lines[0] == {
        "type": "result",
        "final": False,
        "channel": 0,
        "start": 0.0,
        "end": 1.0,
        "text": "hel",
        "received": 1.1,
        "latency": 0.1,
    }
    assert lines[2]["message"] == {"type": "Metadata"}


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets finals with words only, without control characters; the summary is not among them."""
    display = PlainLines()
    for message in (INTERIM, FINAL, EMPTY, METADATA, LOST, RESUMED, ANEW):
        display.show(message)
    display.end(SUMMARY)
    printed = capsys.readouterr()
    assert printed.out == "[   0.00] hello [2J\n"
    assert printed.err.splitlines()[:3] == [
        "connection lost: 1006 (no pong); coming back",
        "connected again after 0.2 s: the session goes on",
        "connected again after 0.2 s: a new session, from the last final on",
    ]
    assert "2.0 s of audio, 2 finals, 1 interims, latency 100 ms median" in printed.err


def shown(display: Captions) -> list[str]:
    return [text.plain for text in display._interims.values()]


def test_captions() -> None:
    """In a terminal a final takes the place of its interim."""
    output = io.StringIO()
    display = Captions(Console(file=output, force_terminal=True, width=120))
    with display.open():
        display.show(INTERIM)
        assert shown(display) == ["[   0.00] hel"]
        display.show(FINAL)
        assert shown(display) == []
        display.show(INTERIM)
        display.show(LOST)
        assert shown(display) == ["[   0.00] hel"]
    display.end(SUMMARY)
    assert "hello [2J" in output.getvalue()
    assert "connection lost: 1006" in output.getvalue()
    assert "closed 1000" in output.getvalue()
