"""Who may connect: keys and granted tokens. Pure but for the clock handed in."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import msgspec


def credential(headers: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Scheme (`token` or `bearer`) and secret, from header or subprotocols; empty if there is none."""
    found = {name.lower(): value for name, value in headers}
    scheme, _, secret = found.get("authorization", "").partition(" ")
    if scheme.lower() in ("token", "bearer") and secret.strip():
        return scheme.lower(), secret.strip()
    offered = [part.strip() for part in found.get("sec-websocket-protocol", "").split(",")]
    if len(offered) >= 2 and offered[0].lower() in ("token", "bearer"):
        return offered[0].lower(), offered[1]
    return "", ""


class Credentials:
    """Keys that are accepted, and tokens handed out."""

    def __init__(self) -> None:
        self._granted: dict[str, float] = {}

    def accept(self, scheme: str, secret: str, api_keys: tuple[str, ...] | None, now: float) -> bool:
        """Whether the secret opens the door; without a list of keys any secret but an expired token does."""
        expires = self._granted.get(secret)
        if expires is not None:
            return scheme == "bearer" and now < expires
        return bool(secret) and (api_keys is None or (scheme == "token" and secret in api_keys))

    def grant(self, ttl_seconds: int, now: float) -> str:
        """A new token, good for `ttl_seconds`."""
        self._granted = {token: expires for token, expires in self._granted.items() if expires > now - 3600}
        claims = {"exp": now + ttl_seconds, "n": len(self._granted)}
        parts = (b'{"alg":"none"}', msgspec.json.encode(claims), b"emulated")
        token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
        self._granted[token] = now + ttl_seconds
        return token
