"""What is decoded of every streaming message: the few members that say what it means to a session."""

from __future__ import annotations

from typing import Final

import msgspec


class Typed(msgspec.Struct, gc=False):
    type: str


class ResultMetadata(msgspec.Struct, frozen=True, gc=False):
    request_id: str = ""


class V1Head(msgspec.Struct, gc=False):
    type: str
    channel_index: tuple[int, int] = (0, 1)
    start: float = 0.0
    duration: float = 0.0
    is_final: bool = False
    speech_final: bool = False
    from_finalize: bool = False
    request_id: str = ""
    timestamp: float = 0.0
    last_word_end: float = 0.0
    metadata: ResultMetadata = ResultMetadata()


class V1Speech(msgspec.Struct, gc=False):
    channel: tuple[int, int] = (0, 1)


class V2Head(msgspec.Struct, gc=False):
    type: str
    event: str = ""
    turn_index: int = 0
    sequence_id: int = -1
    audio_window_start: float = 0.0
    audio_window_end: float = 0.0
    request_id: str = ""


typed: Final = msgspec.json.Decoder(Typed).decode
v1_head: Final = msgspec.json.Decoder(V1Head).decode
v2_head: Final = msgspec.json.Decoder(V2Head).decode
v1_speech: Final = msgspec.json.Decoder(V1Speech).decode
