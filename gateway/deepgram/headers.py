"""Which headers go through to Deepgram, and which of its answers' headers come back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

FORWARDED_HEADERS: Final = ("user-agent", "x-client-info", "x-deepgram-session-id")
"""Client headers that Deepgram sees, with those that begin with `x-fern-`: they name the SDK, for support."""
FORWARDED_PREFIX: Final = "x-fern-"
RELAYED_HEADERS: Final = frozenset({"content-type", "dg-error", "dg-request-id", "retry-after"})
"""Of Deepgram's answers, in lower case; the rest is between it and us."""

Pairs = list[tuple[str, str]]


def forwarded(headers: Iterable[tuple[str, str]], authorization: str | None) -> Pairs:
    """What Deepgram gets of a client's headers, whose names are in lower case, after `authorization`."""
    kept = [
        (name, value)
        for name, value in headers
        if name in FORWARDED_HEADERS or name.startswith(FORWARDED_PREFIX)
    ]
    return [("Authorization", authorization), *kept] if authorization else kept


def relayed(headers: Iterable[tuple[str, str]]) -> Pairs:
    """What the client gets of an answer's headers."""
    return [(name, value) for name, value in headers if name.lower() in RELAYED_HEADERS]
