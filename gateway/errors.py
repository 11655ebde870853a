"""Every error that crosses a package boundary, as one tree.

GatewayError
├── ConfigError            the operator's: a setting is wrong; one line says which and what to do
├── ClientError            the client's: answered with an HTTP status before the 101, a close code after it
├── UpstreamError          Deepgram's or the network's; `retryable` says whether the same dial may work later
│   ├── UpstreamRejected       an HTTP answer other than 101
│   ├── UpstreamUnavailable    no connection: DNS, TCP, TLS, proxy
│   ├── UpstreamTimeout        no answer inside the dial deadline
│   └── SessionLost            a client's session cannot be gone on with
├── TargetError            an address from outside that the gateway may not, or cannot, connect to
│   └── TargetBusy             nobody can be asked for it now: too many names are being looked up
├── StoreError             the database's: what was asked is not done, or nobody knows whether it is
│   └── StoreConflict          there is such a row already, or not the one that it belongs to
└── UsageError             the command line's user: one line, exit code 2

Library errors are mapped to these once, where the library is called. A broken invariant is an `assert`.
"""

from __future__ import annotations

import os


class GatewayError(Exception):
    """Base of all errors that Gateway raises on purpose; `str()` is one line fit for a user."""


class ConfigError(GatewayError):
    """A setting that cannot be used. The message begins with where it stands (file:line or variable)."""


class UsageError(GatewayError):
    """A command was called in a way that cannot work."""


class TargetError(GatewayError):
    """What is wrong with a URL that somebody outside named, as a clause that follows the field's name."""


class TargetBusy(TargetError):
    """It could not be looked up, since others take their time; that says nothing about the URL."""


class ClientError(GatewayError):
    """The client broke the protocol or asked for something that cannot be had.

    `status` is the HTTP status before the upgrade, `close_code` the WebSocket code after it.
    """

    def __init__(self, message: str, *, status: int, close_code: int) -> None:
        super().__init__(message)
        self.status = status
        self.close_code = close_code


class UpstreamError(GatewayError):
    """A Deepgram connection could not be opened."""

    retryable = True


class UpstreamRejected(UpstreamError):
    """Deepgram answered the upgrade with HTTP `status`; `headers` keep their order, `body` is capped."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        super().__init__(f"Deepgram answered HTTP {status}")
        self.status = status
        self.headers = headers
        self.body = body
        self.retryable = status in (408, 425, 429) or status >= 500


class UpstreamUnavailable(UpstreamError):
    """No connection to Deepgram: name resolution, TCP, TLS or the egress proxy failed."""


class UpstreamTimeout(UpstreamError):
    """Deepgram did not answer inside the dial deadline."""


class SessionLost(UpstreamError):
    """A client's session with a gateway cannot be gone on with; coming back would end the same way."""

    retryable = False


class StoreError(GatewayError):
    """The store is down, or has too much to do: try again later. After a lost commit it may yet be done."""


class StoreConflict(StoreError):
    """A row with this key exists, or the row that it belongs to does not; trying again does not help."""


def reason(error: Exception) -> str:
    """Why the system, or a library, would not: a few words on one line."""
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)  # asyncio's own text is "Connect call failed" and a tuple
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__
