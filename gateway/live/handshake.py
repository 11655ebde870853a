"""The server's side of a WebSocket handshake, in websockets' terms, and every refusal as HTTP."""

from __future__ import annotations

import http
from collections.abc import Sequence
from typing import Final

from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from gateway.auth import select_subprotocol
from gateway.deepgram.errors import Refusal
from gateway.live.head import Head

_LOOKED_AT: Final = ("connection", "upgrade", "sec-websocket-", "origin")


class ServerHandshake(ServerProtocol):
    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        chosen = select_subprotocol(subprotocols)
        return Subprotocol(chosen) if chosen else None


def asked(head: Head) -> Request:
    """The request of `head` with the headers that a handshake looks at: an SDK sends many more."""
    headers = Headers([field for field in head.headers if field[0].startswith(_LOOKED_AT)])
    return Request(head.path, headers, head.method, head.protocol)


def phrase(status: int) -> str:
    """The reason phrase of an HTTP status, also of one that Python does not know."""
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def plain_response(refusal: Refusal, request_id: str) -> bytes:
    """A whole HTTP response in Deepgram's form, for a connection that has no protocol yet."""
    body = refusal.body(request_id)
    headers = Headers(refusal_headers(refusal, request_id))
    headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    return Response(refusal.status, phrase(refusal.status), headers, body).serialize()


def refusal_headers(refusal: Refusal, request_id: str) -> list[tuple[str, str]]:
    """The headers that go with `refusal.body(request_id)`."""
    headers = [
        ("Content-Type", "application/json"),
        ("dg-error", refusal.message),
        ("dg-request-id", request_id),
    ]
    if refusal.retry_after is not None:
        headers.append(("Retry-After", str(refusal.retry_after)))
    return headers
