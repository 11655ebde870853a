"""What a client shows to say who it is, from either of the two places where it can stand.

Deepgram takes `Authorization: Token KEY` or `Bearer JWT`; from browsers, which cannot set that header,
`Sec-WebSocket-Protocol: token, KEY` or `bearer, JWT`.
Source: developers.deepgram.com/docs/using-the-sec-websocket-protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, cast

import msgspec

from gateway.config import Secret

Scheme = Literal["token", "bearer"]
_SCHEMES: Final = ("token", "bearer")


class Credential(msgspec.Struct, frozen=True):
    """`scheme` in lower case, `spelling` as the client wrote it; the secret does not print itself."""

    scheme: Scheme
    secret: Secret
    spelling: str


def parse_credential(headers: Iterable[tuple[str, str]]) -> Credential | None:
    """The credential in a request's (name, value) pairs; None when there is none, or none that can be used.

    Two Authorization headers are none: which of them counts is exactly what an attacker would like to choose.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    authorizations = [value for name, value in pairs if name == "authorization"]
    if authorizations:
        scheme, _, secret = authorizations[0].strip().partition(" ")
        return _credential(scheme, secret.strip()) if len(authorizations) == 1 else None
    offered = offered_subprotocols(pairs)
    selected = select_subprotocol(offered)
    if selected is None:
        return None
    # js5 offers two more entries after the secret, so it is the one after the scheme, not the last.
    return _credential(selected, "".join(offered[offered.index(selected) + 1 :][:1]))


def offered_subprotocols(headers: Iterable[tuple[str, str]]) -> list[str]:
    """The entries of every Sec-WebSocket-Protocol header, in their order."""
    values = (value for name, value in headers if name.lower() == "sec-websocket-protocol")
    return [entry.strip() for value in values for entry in value.split(",")]


def select_subprotocol(offered: Sequence[str]) -> Scheme | None:
    """What the 101 answers: the scheme, and never the entry after it, which is the secret."""
    return next((cast(Scheme, entry) for entry in offered if entry in _SCHEMES), None)


def _credential(scheme: str, secret: str) -> Credential | None:
    # Visible ASCII only: what is passed on to Deepgram must not end a header line.
    usable = secret.isascii() and secret.isprintable() and " " not in secret and secret
    if scheme.lower() not in _SCHEMES or not usable:
        return None
    return Credential(cast(Scheme, scheme.lower()), Secret(secret), scheme)
