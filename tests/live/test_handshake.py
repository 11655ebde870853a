"""The server's side of a handshake, and refusals."""

from __future__ import annotations

import json

import pytest

from gateway.deepgram.errors import Refusal
from gateway.live.handshake import ServerHandshake, asked, phrase, plain_response, refusal_headers
from gateway.live.head import Head, parse
from tests.fakes.wire_client import upgrade

BUSY = Refusal(503, "Service Unavailable", "Full.", retry_after=5)


def test_a_plain_response() -> None:
    """For a connection that has no protocol yet: the same form."""
    head, _, body = plain_response(BUSY, "rid").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 5" in head
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert json.loads(body) == {"err_code": "Service Unavailable", "err_msg": "Full.", "request_id": "rid"}
    assert dict(refusal_headers(BUSY, "rid"))["dg-error"] == "Full."


def test_phrases() -> None:
    """Deepgram's odd statuses have one too."""
    assert (phrase(404), phrase(499)) == ("Not Found", "Unknown")


@pytest.mark.parametrize(("offered", "chosen"), [("token, key", "token"), ("chat", None)])
def test_the_subprotocol_that_carries_a_key_is_echoed(offered: str, chosen: str | None) -> None:
    """A browser cannot send `Authorization`, and leaves a server that agrees to nothing it offered."""
    head = parse(upgrade("/v1/listen", [("Sec-WebSocket-Protocol", offered), ("X-Other", "1")]))
    assert isinstance(head, Head)
    request = asked(head)
    assert "X-Other" not in request.headers
    response = ServerHandshake().accept(request)
    assert response.status_code == 101
    assert response.headers.get("Sec-WebSocket-Protocol") == chosen
