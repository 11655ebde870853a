"""How a stream looks: captions in a terminal, plain lines in a pipe, or JSON lines for a program."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from gateway.client.messages import Event, Result, Summary


class Display(Protocol):
    def show(self, message: Result | Event) -> None: ...
    def end(self, summary: Summary) -> None: ...
    def open(self) -> AbstractContextManager[object]: ...


class JsonLines:
    """Every message and the summary as one JSON object a line."""

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, message: Result | Event) -> None:
        _print(msgspec.json.encode(message).decode())

    def end(self, summary: Summary) -> None:
        _print(msgspec.json.encode(summary).decode())


class PlainLines:
    """Finals that say something, one a line; everything else goes to standard error."""

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, message: Result | Event) -> None:
        if isinstance(message, Result):
            if message.final and message.text:
                _print(caption(message))
        elif line := notice(message):
            print(line, file=sys.stderr)

    def end(self, summary: Summary) -> None:
        print(summary.line(), file=sys.stderr)


class Captions:
    """Finals scroll by; below them, each channel's interim is written over until its final comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._interims: dict[int, Text] = {}
        self._live = Live(console=console, transient=True, refresh_per_second=10)

    def open(self) -> AbstractContextManager[object]:
        return self._live

    def show(self, message: Result | Event) -> None:
        if not isinstance(message, Result):
            if line := notice(message):
                self._console.print(Text(line, style="yellow"))
            return
        self._interims.pop(message.channel, None)
        if message.final and message.text:
            self._console.print(Text(caption(message)))
        elif message.text:
            self._interims[message.channel] = Text(caption(message), style="dim")
        self._live.update(Text("\n").join(self._interims.values()))

    def end(self, summary: Summary) -> None:
        self._console.print(Text(summary.line(), style="bold"))


def caption(result: Result) -> str:
    """`[   1.20] text`; what could drive the terminal is left out."""
    channel = f" ({result.channel})" if result.channel else ""
    return f"[{result.start:7.2f}]{channel} {_printable(result.text)}"


def notice(event: Event) -> str:
    """The line for an event that a reader of captions must know of; empty for any other."""
    said = event.message
    match event.name:
        case "ConnectionLost":
            reason = f" ({_printable(said['reason'])})" if said["reason"] else ""
            return f"connection lost: {said['code']}{reason}; coming back"
        case "ConnectionResumed":
            how = "the session goes on" if said["recovered"] else "a new session, from the last final on"
            return f"connected again after {said['seconds']:.1f} s: {how}"
    return ""


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _print(line: str) -> None:
    print(line, flush=True)
