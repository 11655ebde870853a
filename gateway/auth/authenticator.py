"""One authenticator for both ports, and which credential Deepgram gets to see."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from gateway.auth.credential import Credential
from gateway.config import AuthConfig
from gateway.deepgram.errors import INVALID_AUTH, POLICY
from gateway.errors import ClientError


class Principal(msgspec.Struct, frozen=True):
    """Who is calling: `id` is unique among those of one `kind`, and no secret."""

    id: str
    kind: Literal["anonymous", "key", "jwt"]


ANONYMOUS: Final = Principal("anonymous", "anonymous")


class Authenticator:
    """Decides who a credential belongs to; holds settings, does no I/O."""

    def __init__(self, config: AuthConfig) -> None:
        self._mode = config.mode

    def authenticate(self, credential: Credential | None) -> Principal:
        """Raises `ClientError` (401, close code 1008) for one that is not known.

        Mode 'none' takes any credential and none; the other modes are not in this version and refuse all.
        """
        if self._mode == "none":
            return ANONYMOUS
        raise ClientError(INVALID_AUTH.message, status=INVALID_AUTH.status, close_code=POLICY)


def upstream_authorization(
    upstream: Literal["gateway", "client"], credential: Credential | None, key: str | None
) -> str | None:
    """The Authorization header for Deepgram, None to send none (`auth.upstream` says whose credential it is).

    A client's own goes on in the client's spelling, and never is the gateway's key put in its place.
    """
    if upstream == "client":
        return f"{credential.spelling} {credential.secret.reveal()}" if credential else None
    return f"Token {key}" if key else None
