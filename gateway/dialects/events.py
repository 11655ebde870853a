"""What a client can say, whatever its wire language; audio is not among it: it goes by method call."""

from __future__ import annotations

import msgspec


class KeepAlive(msgspec.Struct, frozen=True):
    """The client is there but has no audio."""


class Finalize(msgspec.Struct, frozen=True):
    """Finalise what was said up to here; `text` as the client wrote it."""

    text: str


class CloseStream(msgspec.Struct, frozen=True):
    """No more audio will come; the rest of the results is wanted."""

    text: str


class Configure(msgspec.Struct, frozen=True):
    """Recognise differently from here on."""

    text: str


class Forward(msgspec.Struct, frozen=True):
    """Anything else: Deepgram's to understand or refuse."""

    text: str


ClientEvent = KeepAlive | Finalize | CloseStream | Configure | Forward
