"""Build Deepgram's JSON messages, with the field order seen on the wire. Pure.

Seconds are rounded through float32 as Deepgram's are.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
MODEL_VERSION = "2026-01-15.0"


def f32(value: float) -> float:
    """The value as a float32 holds it."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def created(unix_seconds: float) -> str:
    """RFC 3339 with milliseconds and Z."""
    moment = datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model answered."""

    uuid: str
    name: str
    arch: str

    def object(self) -> Message:
        """The `model_info` entry."""
        return {"name": self.name, "version": MODEL_VERSION, "arch": self.arch}


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word as it goes out: text, seconds, and what the query asked for besides."""

    text: str
    start: float
    end: float
    confidence: float
    punctuated: str | None = None
    speaker: int | None = None
    language: str | None = None

    def object(self) -> Message:
        """The entry of `words`."""
        word: Message = {
            "word": self.text,
            "start": f32(self.start),
            "end": f32(self.end),
            "confidence": f32(self.confidence),
        }
        if self.punctuated is not None:
            word["punctuated_word"] = self.punctuated
        if self.speaker is not None:
            word["speaker"] = self.speaker
        if self.language is not None:
            word["language"] = self.language
        return word


def transcript(words: Sequence[SpokenWord]) -> str:
    """The words in a row."""
    return " ".join(word.text if word.punctuated is None else word.punctuated for word in words)


def confidence(words: Sequence[SpokenWord]) -> float:
    """Their mean, 0 for none."""
    return f32(sum(word.confidence for word in words) / len(words)) if words else 0.0


def alternative(words: Sequence[SpokenWord], languages: Message | None = None) -> Message:
    """One entry of `alternatives`."""
    return {
        "transcript": transcript(words),
        "confidence": confidence(words),
        "words": [word.object() for word in words],
        **(languages or {}),
    }


def results(
    channel_index: tuple[int, int],
    start: float,
    end: float,
    channel: Message,
    metadata: Message,
    *,
    is_final: bool,
    speech_final: bool,
    from_finalize: bool,
) -> Message:
    """A `Results` message; seconds."""
    return {
        "type": "Results",
        "channel_index": list(channel_index),
        "duration": f32(end - start),
        "start": f32(start),
        "is_final": is_final,
        "speech_final": speech_final,
        "channel": channel,
        "metadata": metadata,
        "from_finalize": from_finalize,
    }


def metadata(
    request_id: str, created_at: str, duration: float, channels: int, model: ModelInfo | None, extra: Message
) -> Message:
    """The `Metadata` that ends a stream; without audio there is no model."""
    message: Message = {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": "incomplete",
        "created": created_at,
        "duration": f32(duration),
        "channels": channels,
    }
    if model is not None:
        message |= {"models": [model.uuid], "model_info": {model.uuid: model.object()}}
    return message | ({"extra": extra} if extra else {})


def speech_started(channel_index: tuple[int, int], at: float) -> Message:
    """A `SpeechStarted` message."""
    return {"type": "SpeechStarted", "channel": list(channel_index), "timestamp": f32(at)}


def utterance_end(channel_index: tuple[int, int], last_word_end: float) -> Message:
    """An `UtteranceEnd` message."""
    return {"type": "UtteranceEnd", "channel": list(channel_index), "last_word_end": f32(last_word_end)}


def schema_error(description: str, text: str) -> Message:
    """The answer to a text message that cannot be read."""
    return {"type": "Error", "variant": "SchemaError", "description": description, "message": text}


def configure_success(request_id: str, keyterms: Sequence[str] | None) -> Message:
    """v1 `ConfigureSuccess`."""
    message: Message = {"type": "ConfigureSuccess", "request_id": request_id}
    return message if keyterms is None else message | {"keyterms": list(keyterms)}


def configure_failure(request_id: str, code: str, description: str) -> Message:
    """v1 `ConfigureFailure`."""
    return {"type": "ConfigureFailure", "request_id": request_id, "code": code, "description": description}
