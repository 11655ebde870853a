"""One WebSocket connection to a gateway or to Deepgram; what goes wrong while it opens, as our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from gateway.deepgram.errors import error_text
from gateway.errors import UpstreamError, UpstreamRejected, UpstreamTimeout, UpstreamUnavailable, reason

OPEN_TIMEOUT = 10.0
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


class Connection(ClientConnection):
    """`heard` counts bytes from the server. Any of them, a pong's too, is a sign of life."""

    heard = 0

    def data_received(self, data: bytes) -> None:
        self.heard += len(data)
        super().data_received(data)


async def dial(
    url: str,
    key: str | None,
    *,
    ping_interval: float = 20.0,
    ping_timeout: float | None = 20.0,
    close_timeout: float = 10.0,
) -> Connection:
    """An open connection. Raises `UpstreamError`; `ping_timeout` None: a missing pong ends nothing."""
    try:
        connection = await connect(
            url,
            additional_headers={"Authorization": f"Token {key}"} if key else {},
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            open_timeout=OPEN_TIMEOUT,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            close_timeout=close_timeout,
            create_connection=Connection,
        )
    except InvalidStatus as error:
        raise _rejected(url, error) from None
    except TimeoutError:
        raise UpstreamTimeout(f"{host_of(url)} did not answer within {OPEN_TIMEOUT:g} s") from None
    except (OSError, InvalidHandshake, EOFError) as error:
        raise UpstreamUnavailable(f"cannot connect to {host_of(url)}: {reason(error)}") from None
    assert isinstance(connection, Connection)
    return connection


@contextmanager
def deepgrams(url: str) -> Iterator[None]:
    """What is read inside must be Deepgram's language; else `UpstreamError`."""
    try:
        yield
    except (msgspec.DecodeError, LookupError, TypeError, ValueError) as error:
        raise UpstreamError(f"{host_of(url)} sent a message that is not Deepgram's: {error}") from None


def host_of(url: str) -> str:
    """Host and port, without credentials."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _rejected(url: str, error: InvalidStatus) -> UpstreamRejected:
    response = error.response
    body = bytes(response.body or b"")
    rejected = UpstreamRejected(response.status_code, list(response.headers.raw_items()), body)
    text = error_text(body) or response.headers.get("dg-error") or response.reason_phrase
    request_id = response.headers.get("dg-request-id")
    rejected.args = (
        f"{host_of(url)} refused {urlsplit(url).path} with HTTP {response.status_code}: {text}"
        + (f" (request id {request_id})" if request_id else ""),
    )
    return rejected
