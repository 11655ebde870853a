"""Who is calling, and whose credential Deepgram sees."""

from __future__ import annotations

import pytest

from gateway.auth import parse_credential
from gateway.auth.authenticator import ANONYMOUS, Authenticator, upstream_authorization
from gateway.config import AuthConfig
from gateway.errors import ClientError

CREDENTIAL = parse_credential([("Authorization", "bearer client.jwt")])


def test_without_authentication_everyone_is_anonymous() -> None:
    """Mode none takes any credential, and none."""
    authenticator = Authenticator(AuthConfig(mode="none"))
    assert authenticator.authenticate(None) == ANONYMOUS
    assert authenticator.authenticate(CREDENTIAL) == ANONYMOUS


@pytest.mark.parametrize("mode", ["keys", "jwt"])
def test_modes_of_later_versions_let_nobody_in(mode: str) -> None:
    """A mode that this version does not know fails closed, as Deepgram refuses a bad key."""
    authenticator = Authenticator(AuthConfig(mode=mode))  # type: ignore[arg-type]  # parametrized strings
    with pytest.raises(ClientError, match=r"^Invalid credentials\.$") as caught:
        authenticator.authenticate(CREDENTIAL)
    assert (caught.value.status, caught.value.close_code) == (401, 1008)


def test_the_gateways_key() -> None:
    """With the gateway's key Deepgram sees that, whatever the client showed; without one, nothing."""
    assert upstream_authorization("gateway", CREDENTIAL, "own") == "Token own"
    assert upstream_authorization("gateway", None, "own") == "Token own"
    assert upstream_authorization("gateway", CREDENTIAL, None) is None


def test_the_clients_own() -> None:
    """The client's credential goes on as it was written, and the gateway's never stands in for it."""
    assert upstream_authorization("client", CREDENTIAL, "own") == "bearer client.jwt"
    assert upstream_authorization("client", None, "own") is None
    browser = parse_credential([("Sec-WebSocket-Protocol", "token, abc")])
    assert upstream_authorization("client", browser, None) == "token abc"
