"""What a stream wants done by the shell that owns its socket."""

from __future__ import annotations

from typing import Literal, NamedTuple

Cut = Literal["reset", "fin", "half-open", "stop-reading", "resume"]


class SendText(NamedTuple):
    """A text message, whole."""

    text: str


class SendBinary(NamedTuple):
    """A binary message; Deepgram sends none, so it only comes from a fault."""

    data: bytes


class Close(NamedTuple):
    """A close frame, then the end of TCP; `code` None sends no status (Flux)."""

    code: int | None
    reason: str = ""


class Socket(NamedTuple):
    """Something below the WebSocket."""

    cut: Cut


Action = SendText | SendBinary | Close | Socket
