"""The Deepgram wire as a client speaks it: JSON text messages beside binary audio.

Only messages that a session acts upon are told apart; SDKs differ in spaces and key order, so text is
parsed, never compared, and what goes upstream is the client's own text.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.dialects.events import (
    ClientEvent,
    CloseStream,
    Configure,
    Finalize,
    Forward,
    KeepAlive,
)


class _Control(msgspec.Struct, gc=False):
    type: str


_control: Final = msgspec.json.Decoder(_Control)

END_OF_AUDIO: Final = CloseStream('{"type":"CloseStream"}')
"""A binary message of length zero: the older way to say CloseStream. It must never go upstream as it is."""


def decode(text: str, known: frozenset[str]) -> ClientEvent:
    """What `text` says; `known` are the control messages of the recogniser that the client talks to.

    What is none of these is Deepgram's to refuse, JSON or not: its recognisers do so in ways of their own.
    """
    try:
        kind = _control.decode(text).type
    except (msgspec.DecodeError, RecursionError):
        return Forward(text)
    if kind not in known:
        return Forward(text)
    match kind:
        case "KeepAlive":
            return KeepAlive()
        case "Finalize":
            return Finalize(text)
        case "CloseStream":
            return CloseStream(text)
    return Configure(text)
