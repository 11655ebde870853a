"""Read the query of a listen request as Deepgram does: known names checked, unknown ones ignored. Pure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl

from gateway.emulator.refusals import Refusal, bad_parameter, no_such_model
from gateway.emulator.sound import WIDTHS, Format

T = TypeVar("T")
MAX_CHANNELS = 20
_TEN_MS: int | None = 10

_PACKETS = ("flac", "amr-nb", "amr-wb", "opus", "ogg-opus", "speex", "g729")
_FLUX_ENCODINGS = (*WIDTHS, "opus", "ogg-opus")
_PLAIN = "general meeting phonecall finance conversationalai voicemail video custom"
_FAMILIES = {
    "nova-3": "general medical",
    "nova-2": "general meeting finance conversationalai voicemail video medical drivethru automotive",
    "nova": "general phonecall medical",
    "enhanced": "general meeting phonecall finance",
    "base": "general meeting phonecall finance conversationalai voicemail video",
}
LISTEN_MODELS = frozenset(
    [*_PLAIN.split(), *_FAMILIES]
    + [f"{family}-{kind}" for family, kinds in _FAMILIES.items() for kind in kinds.split()]
)
FLUX_MODELS = frozenset({"flux-general-en", "flux-general-multi"})
_LANGUAGE = re.compile(r"multi|[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class QueryError(Exception):
    """The query cannot be served; `refusal` is the answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class Query:
    """Names and values, repeats kept."""

    def __init__(self, raw: str) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in parse_qsl(raw, keep_blank_values=True):
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> list[str]:
        """Every value of a name, in order."""
        return self._values.get(name, [])

    def one(self, name: str, read: Callable[[str], T], default: T) -> T:
        """The last value of a name, read; QueryError if it cannot be."""
        values = self.all(name)
        if not values:
            return default
        try:
            return read(values[-1])
        except ValueError as error:
            raise QueryError(bad_parameter(f"{name}: {error}")) from error

    def text(self, name: str, default: str = "") -> str:
        """The last value of a name."""
        return self.one(name, str, default)

    def flag(self, name: str) -> bool:
        """A boolean, false unless given."""
        return self.one(name, _flag, False)


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("provided string was not `true` or `false`")
    return value == "true"


def _whole(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ValueError("invalid digit found in string")
    return int(value)


def _endpointing(value: str) -> int | None:
    if value == "false":
        return None
    return 10 if value == "true" else _whole(value)


def _fraction(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("invalid float literal") from None


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """What a v1 request asks for. `format` is None if the container is to tell it."""

    model: str = "base"
    format: Format | None = None
    multichannel: bool = False
    interim_results: bool = False
    endpointing_ms: int | None = 10
    utterance_end_ms: int | None = None
    vad_events: bool = False
    punctuate: bool = False
    diarize: bool = False
    detect_entities: bool = False
    language: str = "en"
    language_hints: tuple[str, ...] = ()
    keyterms: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)
    utterances: bool = False
    paragraphs: bool = False
    utt_split: float = 0.8
    detect_language: bool = False
    callback: str = ""
    callback_method: str = "POST"


def read_listen(raw: str, models: tuple[str, ...] | None, streaming: bool = True) -> ListenOptions:
    """The options of a v1 query; raises QueryError."""
    query = Query(raw)
    model = _listen_model(query, models, streaming)
    _check_combination(query, model, streaming)
    smart = query.flag("smart_format")
    return ListenOptions(
        model=model,
        format=_format(query, tuple(WIDTHS), _PACKETS) if streaming else _batch_format(query),
        multichannel=query.flag("multichannel"),
        interim_results=query.flag("interim_results"),
        endpointing_ms=query.one("endpointing", _endpointing, _TEN_MS),
        utterance_end_ms=query.one("utterance_end_ms", _optional_whole, None),
        vad_events=query.flag("vad_events"),
        punctuate=smart or query.flag("punctuate") or query.flag("detect_entities"),
        diarize=query.flag("diarize") or bool(query.text("diarize_model")),
        detect_entities=query.flag("detect_entities"),
        language=query.text("language", "en"),
        language_hints=tuple(query.all("language_hint")),
        keyterms=tuple(query.all("keyterm")),
        search=tuple(query.all("search")),
        tags=tuple(query.all("tag")),
        extra=_extra(query),
        utterances=query.flag("utterances"),
        paragraphs=query.flag("paragraphs") or smart,
        utt_split=query.one("utt_split", _fraction, 0.8),
        detect_language="detect_language" in query._values and query.text("detect_language") != "false",
        callback=query.text("callback"),
        callback_method=query.text("callback_method", "POST").upper(),
    )


def _optional_whole(value: str) -> int | None:
    return _whole(value)


def _listen_model(query: Query, models: tuple[str, ...] | None, streaming: bool) -> str:
    """The model, known and allowed here."""
    model = query.text("model", "base")
    if streaming and model.startswith("whisper"):
        raise QueryError(
            Refusal(405, "METHOD_NOT_ALLOWED", "Whisper models are not available for streaming.")
        )
    custom = _UUID.fullmatch(model) is not None or (not streaming and model.startswith("whisper"))
    if not custom and model not in (LISTEN_MODELS if models is None else models):
        raise QueryError(no_such_model())
    if not _LANGUAGE.fullmatch(query.text("language", "en")):
        raise QueryError(no_such_model())
    return model


def _check_combination(query: Query, model: str, streaming: bool) -> None:
    """What Deepgram rejects although each value alone is fine."""
    if model.startswith("nova-3") and query.all("keywords"):
        text = "Keywords are not supported for Nova-3. Please use `keyterm` instead."
        raise QueryError(Refusal(400, "INVALID_QUERY_PARAMETER", text))
    if query.all("keyterm") and not model.startswith("nova-3"):
        raise QueryError(bad_parameter("keyterm: only Nova-3 models support keyterms"))
    if streaming and query.all("utterance_end_ms") and not query.flag("interim_results"):
        raise QueryError(bad_parameter("utterance_end_ms: needs interim_results=true"))
    if streaming and query.text("diarize_model") == "v2":
        raise QueryError(bad_parameter("diarize_model: v2 is not available for streaming"))
    if any(len(tag) > 128 for tag in query.all("tag")):
        raise QueryError(bad_parameter("tag: longer than 128 characters"))


def _format(query: Query, timed: tuple[str, ...], packets: tuple[str, ...]) -> Format | None:
    """The raw audio's format; None if it brings its own header."""
    encoding = query.text("encoding")
    if not encoding:
        return None
    if encoding not in timed + packets:
        raise QueryError(bad_parameter(f"encoding: unknown variant `{encoding}`"))
    rate = query.one("sample_rate", _whole, 0)
    channels = query.one("channels", _whole, 1)
    if encoding in timed and not rate:
        raise QueryError(bad_parameter("sample_rate: required when encoding is given"))
    if not 1 <= channels <= MAX_CHANNELS:
        raise QueryError(bad_parameter(f"channels: must be from 1 to {MAX_CHANNELS}"))
    if encoding == "ogg-opus":
        return None
    return Format(encoding, rate, channels) if encoding in timed else Format("packets", 0)


def _batch_format(query: Query) -> Format | None:
    """Raw uploads may name encoding and rate; without a rate the body must be a container."""
    given = query.all("encoding") and query.all("sample_rate")
    return _format(query, tuple(WIDTHS), _PACKETS) if given else None


def _extra(query: Query) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in query.all("extra"):
        if len(pair) > 2048:
            raise QueryError(bad_parameter("extra: longer than 2048 characters"))
        key, _, value = pair.partition(":")
        found[key] = value
    return found


@dataclass(frozen=True, slots=True)
class FluxOptions:
    """What a v2 request asks for."""

    model: str
    format: Format | None
    eot_threshold: float = 0.7
    eager_eot_threshold: float | None = None
    eot_timeout_ms: int = 5000
    keyterms: tuple[str, ...] = ()
    language_hints: tuple[str, ...] = ()
    numerals: bool = False


def read_flux(raw: str, models: tuple[str, ...] | None) -> FluxOptions:
    """The options of a v2 query; raises QueryError."""
    query = Query(raw)
    model = query.text("model")
    if model not in (FLUX_MODELS if models is None else models):
        raise QueryError(bad_parameter("missing field `model`") if not model else no_such_model())
    eager = query.one("eager_eot_threshold", _within(0.3, 0.9), None)
    return FluxOptions(
        model=model,
        format=_format(query, tuple(WIDTHS), _FLUX_ENCODINGS[len(WIDTHS) :]),
        eot_threshold=query.one("eot_threshold", _within(0.5, 1.0), None) or 0.7,
        eager_eot_threshold=eager,
        eot_timeout_ms=round(query.one("eot_timeout_ms", _within(500, 60000), None) or 5000),
        keyterms=tuple(query.all("keyterm")),
        language_hints=tuple(query.all("language_hint")),
        numerals=query.flag("numerals"),
    )


def _within(low: float, high: float) -> Callable[[str], float | None]:
    def read(value: str) -> float | None:
        number = _fraction(value)
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return read


def model_uuid(model: str) -> str:
    """The same made-up id for the same model, always."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://emulator.invalid/models/{model}"))
