"""Every message of Deepgram's two WebSockets, `/v1/listen` and Flux, `/v2/listen`, as a type.

Times are seconds of the audio sent on one connection, confidences 0 to 1. `Maybe` marks what Deepgram leaves
out unless a feature asks for it; such a field is absent again when the message is encoded. Fields that
Deepgram adds later are ignored here: whoever passes a message on keeps its raw bytes.

Sources: developers.deepgram.com/reference/speech-to-text/listen-streaming and …/listen-flux, /docs/configure,
/docs/understand-endpointing-interim-results, /docs/finalize, /docs/utterance-end, /docs/flux.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType

_T = TypeVar("_T")
Maybe: TypeAlias = _T | UnsetType


class _Part(msgspec.Struct, frozen=True, gc=False):
    """Plain data: no message can refer to itself, so the collector need not look."""


class _Message(_Part, frozen=True, gc=False, tag_field="type", tag=True):
    """Told apart by `type`, which is the name of the class unless it says otherwise."""


# What live and pre-recorded results are made of


class ModelInfo(_Part, frozen=True, gc=False):
    name: str
    version: str
    arch: str


class DiarizeInfo(_Part, frozen=True, gc=False):
    model_uuid: str
    arch: str


class Word(_Part, frozen=True, gc=False):
    """`punctuated_word` comes with punctuation or smart formatting, `speaker` with diarisation."""

    word: str
    start: float
    end: float
    confidence: float
    punctuated_word: Maybe[str] = UNSET
    speaker: Maybe[int] = UNSET
    speaker_confidence: Maybe[float] = UNSET
    language: Maybe[str] = UNSET


class Hit(_Part, frozen=True, gc=False):
    confidence: float
    start: float
    end: float
    snippet: Maybe[str] = UNSET


class Search(_Part, frozen=True, gc=False):
    query: str
    hits: tuple[Hit, ...]


class Entity(_Part, frozen=True, gc=False):
    """`start_word` and `end_word` count words of the transcript, from 0."""

    label: str
    value: str
    raw_value: Maybe[str] = UNSET
    confidence: Maybe[float] = UNSET
    start_word: Maybe[int] = UNSET
    end_word: Maybe[int] = UNSET


class Alternative(_Part, frozen=True, gc=False):
    transcript: str
    confidence: float
    words: tuple[Word, ...] = ()
    languages: Maybe[tuple[str, ...]] = UNSET
    languages_hinted: Maybe[tuple[str, ...]] = UNSET


class Channel(_Part, frozen=True, gc=False):
    """Deepgram gives one alternative."""

    alternatives: tuple[Alternative, ...]
    search: Maybe[tuple[Search, ...]] = UNSET


# Live, /v1/listen, from the server


class ResultsMetadata(_Part, frozen=True, gc=False):
    request_id: str
    model_info: Maybe[ModelInfo] = UNSET
    model_uuid: Maybe[str] = UNSET
    extra: Maybe[dict[str, Any]] = UNSET
    diarize_info: Maybe[DiarizeInfo] = UNSET


class Results(_Message, frozen=True, gc=False):
    """What was said from `start` to `start + duration`; final windows of a channel follow each other.

    `channel_index` is (channel, number of channels). `speech_final`: a pause was found at the end.
    """

    channel_index: tuple[int, int]
    duration: float
    start: float
    channel: Channel
    metadata: ResultsMetadata
    is_final: Maybe[bool] = UNSET
    speech_final: Maybe[bool] = UNSET
    from_finalize: Maybe[bool] = UNSET
    entities: Maybe[tuple[Entity, ...]] = UNSET


class Metadata(_Message, frozen=True, gc=False):
    """Says that the connection ends; `duration` is that of its audio. Without audio it names no model."""

    request_id: str
    created: str
    duration: float
    channels: int
    transaction_key: Maybe[str] = UNSET
    sha256: Maybe[str] = UNSET
    models: Maybe[tuple[str, ...]] = UNSET
    model_info: Maybe[dict[str, ModelInfo]] = UNSET
    extra: Maybe[dict[str, Any]] = UNSET


class SpeechStarted(_Message, frozen=True, gc=False):
    channel: tuple[int, int]
    timestamp: float


class UtteranceEnd(_Message, frozen=True, gc=False):
    """`last_word_end` is -1 where the utterance was over already."""

    channel: tuple[int, int]
    last_word_end: float


class ConfigureSuccess(_Message, frozen=True, gc=False):
    request_id: str
    keyterms: Maybe[tuple[str, ...]] = UNSET


class ConfigureFailure(_Message, frozen=True, gc=False):
    request_id: str
    code: Maybe[str] = UNSET
    description: Maybe[str] = UNSET


class Error(_Message, frozen=True, gc=False):
    """A client message was not understood; the connection goes on. `message` is that client message."""

    variant: Maybe[str] = UNSET
    description: Maybe[str] = UNSET
    message: Maybe[str] = UNSET
    code: Maybe[str] = UNSET


# Live, from the client


class KeepAlive(_Message, frozen=True, gc=False):
    """There is no audio now; the connection is to stay open."""


class Finalize(_Message, frozen=True, gc=False):
    """Make what was said up to here final, on one channel or on all."""

    channel: Maybe[int] = UNSET


class CloseStream(_Message, frozen=True, gc=False):
    """No more audio will come. Also a message of Flux."""


class Configure(_Message, frozen=True, gc=False):
    """`keyterms` replaces the whole list; None or absent keeps it."""

    keyterms: Maybe[tuple[str, ...] | None] = UNSET
    features: Maybe[dict[str, Any]] = UNSET


# Flux, /v2/listen; `sequence_id` counts the server's messages from 0


class Connected(_Message, frozen=True, gc=False):
    request_id: str
    sequence_id: int


class TurnWord(_Part, frozen=True, gc=False):
    word: str
    confidence: float
    start: Maybe[float] = UNSET
    end: Maybe[float] = UNSET


class TurnInfo(_Message, frozen=True, gc=False):
    """The present turn, whole. `event`: Update, StartOfTurn, EagerEndOfTurn, TurnResumed or EndOfTurn."""

    request_id: str
    sequence_id: int
    event: str
    turn_index: int
    audio_window_start: float
    audio_window_end: float
    transcript: str
    words: tuple[TurnWord, ...]
    end_of_turn_confidence: float
    trigger: Maybe[str] = UNSET
    languages: Maybe[tuple[str, ...]] = UNSET
    languages_hinted: Maybe[tuple[str, ...]] = UNSET


class Thresholds(_Part, frozen=True, gc=False):
    """Confidences at which a turn ends, eagerly or for good, and the silence in ms that ends it anyway."""

    eager_eot_threshold: Maybe[float | None] = UNSET
    eot_threshold: Maybe[float | None] = UNSET
    eot_timeout_ms: Maybe[int | None] = UNSET


class FluxConfigureSuccess(_Message, frozen=True, gc=False, tag="ConfigureSuccess"):
    request_id: str
    sequence_id: int
    thresholds: Maybe[Thresholds] = UNSET
    keyterms: Maybe[tuple[str, ...]] = UNSET
    language_hints: Maybe[tuple[str, ...]] = UNSET
    numerals: Maybe[bool] = UNSET


class FluxConfigureFailure(_Message, frozen=True, gc=False, tag="ConfigureFailure"):
    request_id: str
    sequence_id: int
    code: Maybe[str] = UNSET
    description: Maybe[str] = UNSET


class FluxWarning(_Message, frozen=True, gc=False, tag="Warning"):
    request_id: str
    sequence_id: int
    code: str
    description: str


class FluxError(_Message, frozen=True, gc=False, tag="Error"):
    """The connection ends with this."""

    sequence_id: int
    code: str
    description: str
    request_id: Maybe[str] = UNSET


class FluxConfigure(_Message, frozen=True, gc=False, tag="Configure"):
    """From the client. What is absent stays as it was."""

    thresholds: Maybe[Thresholds] = UNSET
    keyterms: Maybe[tuple[str, ...] | None] = UNSET
    language_hints: Maybe[tuple[str, ...] | None] = UNSET
    numerals: Maybe[bool | None] = UNSET


class ForceEndTurn(_Message, frozen=True, gc=False):
    """From the client: the turn ends here."""


# Reading a message of either direction: no type is used in both


class Unknown(msgspec.Struct, frozen=True):
    """A message of a type that is not known here; `raw` as it came."""

    type: str
    raw: bytes | str


LiveMessage = Results | Metadata | SpeechStarted | UtteranceEnd | ConfigureSuccess | ConfigureFailure | Error
LiveControl = KeepAlive | Finalize | CloseStream | Configure
FluxMessage = Connected | TurnInfo | FluxConfigureSuccess | FluxConfigureFailure | FluxWarning | FluxError
FluxControl = CloseStream | FluxConfigure | ForceEndTurn


class _Typed(msgspec.Struct, gc=False):
    type: str


_typed: Final = msgspec.json.Decoder(_Typed)
_live: Final[msgspec.json.Decoder[LiveMessage | LiveControl]] = msgspec.json.Decoder(
    LiveMessage | LiveControl
)
_flux: Final[msgspec.json.Decoder[FluxMessage | FluxControl]] = msgspec.json.Decoder(
    FluxMessage | FluxControl
)


def _types(union: Any) -> frozenset[str]:
    return frozenset(str(kind.__struct_config__.tag) for kind in get_args(union))


_LIVE_TYPES: Final = _types(LiveMessage | LiveControl)
_FLUX_TYPES: Final = _types(FluxMessage | FluxControl)


def decode_live(raw: bytes | str) -> LiveMessage | LiveControl | Unknown:
    """A message of `/v1/listen`. Raises `msgspec.DecodeError` for what is no JSON object with a `type`, or
    lacks what its type must have; `UnicodeDecodeError` for bytes that are no UTF-8.
    """
    try:
        return _live.decode(raw)
    except msgspec.ValidationError:
        if (kind := _typed.decode(raw).type) in _LIVE_TYPES:
            raise
        return Unknown(kind, raw)


def decode_flux(raw: bytes | str) -> FluxMessage | FluxControl | Unknown:
    """A message of `/v2/listen`. Raises as `decode_live`."""
    try:
        return _flux.decode(raw)
    except msgspec.ValidationError:
        if (kind := _typed.decode(raw).type) in _FLUX_TYPES:
            raise
        return Unknown(kind, raw)
