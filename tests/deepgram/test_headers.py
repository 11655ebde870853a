"""Two closed lists: what goes up with a request, and what comes back with an answer."""

from __future__ import annotations

from gateway.deepgram.headers import forwarded, relayed


def test_headers_for_deepgram() -> None:
    """The list of what goes up is closed; the credential stands first."""
    said = (("user-agent", "u"), ("x-fern-a", "1"), ("cookie", "c"), ("x-fernando", "2"), ("user-agent", "v"))
    kept = [("user-agent", "u"), ("x-fern-a", "1"), ("user-agent", "v")]
    assert forwarded(said, "Token k") == [("Authorization", "Token k"), *kept]
    assert forwarded(said, None) == kept


def test_headers_for_the_client() -> None:
    """Deepgram's ids and errors come back, in whatever letters; its cookies and servers do not."""
    said = [
        ("Content-Type", "a/b"),
        ("DG-Error", "e"),
        ("dg-request-id", "i"),
        ("Server", "s"),
        ("Set-Cookie", "c"),
    ]
    assert relayed([*said, ("Retry-After", "3")]) == [*said[:3], ("Retry-After", "3")]
