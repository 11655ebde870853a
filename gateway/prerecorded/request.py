"""What a caller may say to `POST /v1/transcribe`, from JSON, form fields or the query. Pure.

Names that are not the router's own are Deepgram's options: they go into the query that Deepgram is asked.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args
from urllib.parse import quote, unquote_plus

import msgspec

from gateway.deepgram.query import OWN_PREFIX, ListenQuery
from gateway.prerecorded.route import Mode
from gateway.store.job import FIRST_PRIORITY, LAST_PRIORITY

OWN: Final = ("id", "url", "mode", "duration", "priority", "callback", "metadata", "store")
MAX_METADATA_BYTES: Final = 16_384
MAX_SECONDS: Final = 7 * 86_400.0
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OPTION: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


class BadField(Exception):
    """A field that cannot be used; `str()` is one line that begins with its name."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class TranscribeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request. `query` is what Deepgram is asked; `duration`, in seconds, what the caller says."""

    query: str = ""
    id: str | None = None
    url: str | None = None
    mode: Mode = "auto"
    duration: float | None = None
    priority: int = 5
    callback: str | None = None
    metadata: msgspec.Raw | None = None
    store: bool = True


def read(fields: Mapping[str, Any], query: ListenQuery) -> TranscribeRequest:
    """From JSON or form `fields` and the request's own query; a field counts more. Raises `BadField`.

    Form fields and query values are text and mean what the same JSON would; metadata that is none is text.
    """
    said = {name: query.get(name) for name in OWN if query.get(name) is not None} | {
        name: value for name, value in fields.items() if name in OWN and value is not None
    }
    return TranscribeRequest(
        query=_options(fields, query),
        id=_text(said, "id", _ID, "letters, digits, '.', '_' and '-', at most 128"),
        url=_url(said, "url"),
        mode=_mode(said.get("mode", "auto")),
        duration=_duration(said.get("duration")),
        priority=_priority(said.get("priority", 5)),
        callback=_url(said, "callback"),
        metadata=_metadata(said.get("metadata")),
        store=_flag(said.get("store", True)) and _keeps_words(query),
    )


def _options(fields: Mapping[str, Any], query: ListenQuery) -> str:
    kept = query.keep(lambda name: name not in OWN and not name.startswith(OWN_PREFIX)).raw
    tokens = [token for token in kept.split("&") if token]
    named = {unquote_plus(token.partition("=")[0]) for token in tokens}
    for name, value in fields.items():
        if name in OWN:
            continue
        if name.startswith(OWN_PREFIX):
            raise BadField(name[:64], "is said in the query")
        if not _OPTION.fullmatch(name):
            raise BadField(name[:64], "is no option that Deepgram could have")
        if name in named:
            raise BadField(name, "is said twice, in the query and in the body")
        tokens += [f"{name}={_value(name, one)}" for one in _many(value)]
    return "&".join(tokens)


def _many(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _value(name: str, value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | str():
            return quote(str(value), safe="")
        case float() if math.isfinite(value):
            return quote(f"{value:g}", safe="")
        case _:
            raise BadField(name, "text, a number, true or false is needed, or a list of them")


def _text(said: Mapping[str, Any], name: str, pattern: re.Pattern[str], allowed: str) -> str | None:
    value = said.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadField(name, f"{allowed}")
    return value


def _url(said: Mapping[str, Any], name: str) -> str | None:
    value = said.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith(("https://", "http://")) or len(value) > 2048:
        raise BadField(name, "an http or https URL of at most 2048 characters is needed")
    return value


def _mode(value: Any) -> Mode:
    if value not in get_args(Mode):
        raise BadField("mode", f"one of {', '.join(get_args(Mode))} is needed")
    mode: Mode = value
    return mode


def _duration(value: Any) -> float | None:
    if value is None:
        return None
    seconds = _number("duration", value)
    if not 0 < seconds <= MAX_SECONDS:
        raise BadField("duration", "seconds of audio, more than 0, are needed")
    return seconds


def _priority(value: Any) -> int:
    number = _number("priority", value)
    if number != int(number) or not FIRST_PRIORITY <= number <= LAST_PRIORITY:
        raise BadField(
            "priority", f"a whole number from {FIRST_PRIORITY} (first) to {LAST_PRIORITY} is needed"
        )
    return int(number)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadField(name, "a number is needed")
    return number


def _metadata(value: Any) -> msgspec.Raw | None:
    if value is None:
        return None
    if isinstance(value, str):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            value = msgspec.json.decode(value)
    raw = msgspec.json.encode(value)
    if len(raw) > MAX_METADATA_BYTES:
        raise BadField("metadata", f"at most {MAX_METADATA_BYTES} bytes of JSON are kept")
    return msgspec.Raw(raw)


def _keeps_words(query: ListenQuery) -> bool:
    try:
        return query.keeps_words()
    except ValueError:
        raise BadField("gw_store", "true or false is needed") from None


def _flag(value: Any) -> bool:
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise BadField("store", "true or false is needed")
