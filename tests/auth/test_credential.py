"""Credentials in every form that clients send them."""

from __future__ import annotations

import pytest

from gateway.auth.credential import offered_subprotocols, parse_credential, select_subprotocol


@pytest.mark.parametrize(
    ("headers", "scheme", "secret"),
    [
        ([("Authorization", "Token abc")], "token", "abc"),
        ([("authorization", "token abc")], "token", "abc"),
        ([("Authorization", "Bearer a.b-c_d")], "bearer", "a.b-c_d"),
        ([("AUTHORIZATION", " BEARER  abc ")], "bearer", "abc"),
        ([("Sec-WebSocket-Protocol", "token, abc")], "token", "abc"),
        ([("Sec-WebSocket-Protocol", "bearer,a.b.c")], "bearer", "a.b.c"),
        ([("Sec-WebSocket-Protocol", "token, abc, x-deepgram-session-id, 12-34")], "token", "abc"),
        ([("Sec-WebSocket-Protocol", "token"), ("sec-websocket-protocol", "abc")], "token", "abc"),
        ([("Sec-WebSocket-Protocol", "token, abc"), ("Authorization", "Token def")], "token", "def"),
    ],
)
def test_accepted(headers: list[tuple[str, str]], scheme: str, secret: str) -> None:
    """The header first, else the entry after the scheme among the subprotocols."""
    credential = parse_credential(headers)
    assert credential is not None
    assert (credential.scheme, credential.secret.reveal()) == (scheme, secret)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Token")],
        [("Authorization", "Token ")],
        [("Authorization", "abc")],
        [("Authorization", "Basic YTpi")],
        [("Authorization", "Token a b")],
        [("Authorization", "Token a\r\nX: y")],
        [("Authorization", "Token ключ")],
        [("Authorization", "Token abc"), ("Authorization", "Token def")],
        [("Authorization", "Basic x"), ("Sec-WebSocket-Protocol", "token, abc")],
        [("Sec-WebSocket-Protocol", "token")],
        [("Sec-WebSocket-Protocol", "abc, def")],
        [("Cookie", "token=abc")],
    ],
)
def test_not_accepted(headers: list[tuple[str, str]]) -> None:
    """Whatever is missing, unknown, ambiguous or unfit for a header is no credential."""
    assert parse_credential(headers) is None


def test_masked() -> None:
    """A credential that is printed does not show its secret."""
    credential = parse_credential([("Authorization", "Token abc123")])
    assert "abc123" not in f"{credential} {credential!r}"


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        (["token", "abc"], "token"),
        (["bearer", "abc", "x-deepgram-session-id", "1"], "bearer"),
        (["token", "bearer"], "token"),
        (["chat", "token", "abc"], "token"),
        (["chat"], None),
        ([], None),
        (["Token", "abc"], None),
    ],
)
def test_selected_subprotocol(offered: list[str], selected: str | None) -> None:
    """The answer is the scheme, and never the secret that follows it."""
    assert select_subprotocol(offered) == selected


def test_offers_of_several_headers() -> None:
    """Entries are taken in order from every header of that name."""
    headers = [("Sec-WebSocket-Protocol", "a, b"), ("Host", "x"), ("sec-websocket-protocol", "c")]
    assert offered_subprotocols(headers) == ["a", "b", "c"]
