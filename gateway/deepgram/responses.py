"""Deepgram's HTTP bodies: pre-recorded transcripts, temporary tokens, the status of a self-hosted server.

Times are seconds of the file, confidences 0 to 1; `Maybe` as in `gateway.deepgram.messages`. The body of an
error is `gateway.deepgram.errors.ErrorBody`.

Sources: developers.deepgram.com/reference/speech-to-text/listen-pre-recorded, /docs/callback,
/guides/fundamentals/token-based-authentication, /docs/self-hosted-status-endpoint.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from gateway.deepgram.messages import DiarizeInfo, Entity, Maybe, ModelInfo, Search, Word


class _Part(msgspec.Struct, frozen=True, gc=False):
    """Plain data, without cycles."""


# POST /v1/listen


class Remote(_Part, frozen=True, gc=False):
    """The request for a file that Deepgram is to fetch."""

    url: str


class Accepted(_Part, frozen=True, gc=False):
    """The answer to a request with a callback; the transcript is delivered there."""

    request_id: str


class Sentence(_Part, frozen=True, gc=False):
    text: str
    start: float
    end: float


class Paragraph(_Part, frozen=True, gc=False):
    sentences: tuple[Sentence, ...]
    num_words: int
    start: float
    end: float
    speaker: Maybe[int] = UNSET


class Paragraphs(_Part, frozen=True, gc=False):
    """`transcript` is that of the alternative, with line breaks."""

    transcript: str
    paragraphs: tuple[Paragraph, ...]


class FileAlternative(_Part, frozen=True, gc=False):
    transcript: str
    confidence: float
    words: tuple[Word, ...] = ()
    paragraphs: Maybe[Paragraphs] = UNSET
    entities: Maybe[tuple[Entity, ...]] = UNSET
    summaries: Maybe[tuple[dict[str, Any], ...]] = UNSET
    topics: Maybe[tuple[dict[str, Any], ...]] = UNSET
    languages: Maybe[tuple[str, ...]] = UNSET
    languages_hinted: Maybe[tuple[str, ...]] = UNSET


class FileChannel(_Part, frozen=True, gc=False):
    """Each channel of the file has one with `multichannel`, else there is one for all."""

    alternatives: tuple[FileAlternative, ...]
    search: Maybe[tuple[Search, ...]] = UNSET
    detected_language: Maybe[str] = UNSET
    language_confidence: Maybe[float] = UNSET


class Utterance(_Part, frozen=True, gc=False):
    start: float
    end: float
    confidence: float
    channel: int
    transcript: str
    words: tuple[Word, ...]
    id: str
    speaker: Maybe[int] = UNSET
    languages: Maybe[tuple[str, ...]] = UNSET


class Summary(_Part, frozen=True, gc=False):
    """`result` is `success`, or why there is no summary."""

    result: str
    short: Maybe[str] = UNSET


class FileResults(_Part, frozen=True, gc=False):
    """`topics`, `intents` and `sentiments` stay as Deepgram wrote them: segments, and an average."""

    channels: tuple[FileChannel, ...]
    utterances: Maybe[tuple[Utterance, ...]] = UNSET
    summary: Maybe[Summary] = UNSET
    topics: Maybe[dict[str, Any]] = UNSET
    intents: Maybe[dict[str, Any]] = UNSET
    sentiments: Maybe[dict[str, Any]] = UNSET


class TokenCount(_Part, frozen=True, gc=False):
    """What a feature of audio intelligence was charged for."""

    model_uuid: Maybe[str] = UNSET
    input_tokens: Maybe[int] = UNSET
    output_tokens: Maybe[int] = UNSET


class FileMetadata(_Part, frozen=True, gc=False):
    """`duration` is that of the file; `created` is RFC 3339; `extra` and `tags` repeat the request's."""

    request_id: str
    created: str
    duration: float
    channels: int
    models: tuple[str, ...]
    model_info: dict[str, ModelInfo]
    transaction_key: Maybe[str] = UNSET
    sha256: Maybe[str] = UNSET
    extra: Maybe[dict[str, Any]] = UNSET
    tags: Maybe[tuple[str, ...]] = UNSET
    diarize_info: Maybe[DiarizeInfo] = UNSET
    summary_info: Maybe[TokenCount] = UNSET
    sentiment_info: Maybe[TokenCount] = UNSET
    topics_info: Maybe[TokenCount] = UNSET
    intents_info: Maybe[TokenCount] = UNSET


class Transcript(_Part, frozen=True, gc=False):
    """The answer to a pre-recorded request, or what its callback gets."""

    metadata: FileMetadata
    results: FileResults


# POST /v1/auth/grant


class GrantRequest(_Part, frozen=True, gc=False):
    """`ttl_seconds` from 1 to 3600; Deepgram takes 30 without it."""

    ttl_seconds: Maybe[int] = UNSET


class Grant(_Part, frozen=True, gc=False):
    """`access_token` is a JWT; `expires_in` in seconds."""

    access_token: str
    expires_in: float


# Self-hosted servers, GET /v1/status and /v1/status/engine


class SelfHostedStatus(_Part, frozen=True, gc=False):
    """`system_health`: Initializing, Ready, Healthy (over 90 % of requests succeed), Degraded, Critical."""

    system_health: str
    active_batch_requests: int
    active_stream_requests: int
    active_listen_v2_stream_requests: Maybe[int] = UNSET


class EngineStatus(_Part, frozen=True, gc=False):
    engine_connection_status: str
