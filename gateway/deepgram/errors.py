"""Deepgram's refusals: HTTP bodies before the upgrade, close codes after it.

Sources: developers.deepgram.com/docs/errors and
/docs/stt-troubleshooting-websocket-data-and-net-errors.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
INVALID_DATA: Final = 1007
POLICY: Final = 1008
INTERNAL: Final = 1011
RESTART: Final = 1012
TRY_LATER: Final = 1013

NET_0001: Final = (
    "Deepgram did not receive audio data or a text message within the timeout window. "
    "See https://dpgr.am/net0001"
)
"""The reason of the close 1011 that follows 10-12 s without a client frame, word for word."""

MAX_REASON_BYTES: Final = 123
"""A close frame's payload is at most 125 bytes, two of which are the code (RFC 6455 §5.5)."""

_NET_CODE = re.compile(r"(net|data)-?(000\d)", re.IGNORECASE)


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON body of a refusal. Some of Deepgram's have `error_code` or `category` for `err_code`."""

    err_code: str = ""
    err_msg: str = ""
    request_id: str = ""
    error_code: str = ""
    category: str = ""
    message: str = ""
    details: str = ""

    @property
    def code(self) -> str:
        return self.err_code or self.error_code or self.category

    @property
    def text(self) -> str:
        return self.err_msg or self.message or self.details


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP answer of ours in Deepgram's form; `retry_after` in seconds."""

    status: int
    code: str
    message: str
    retry_after: int | None = None

    def body(self, request_id: str) -> bytes:
        return msgspec.json.encode({"err_code": self.code, "err_msg": self.message, "request_id": request_id})


INVALID_AUTH: Final = Refusal(401, "INVALID_AUTH", "Invalid credentials.")


def error_text(body: bytes) -> str:
    """What a refusal's body says in words; empty when it is not Deepgram's JSON."""
    try:
        return msgspec.json.decode(body, type=ErrorBody).text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def named_code(reason: str) -> str:
    """`NET-0001`, `DATA-0000`, … when a close reason names one; the code alone does not say which it was."""
    found = _NET_CODE.search(reason)
    return f"{found[1].upper()}-{found[2]}" if found else ""


def close_reason(text: str) -> str:
    """`text` cut, at a whole character, to what a close frame holds."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
