"""The head of an HTTP request, as far as the client port must read it to know whose it is."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from gateway.deepgram.errors import Refusal

MAX_LINE_BYTES: Final = 8192
"""websockets' own limit of a line; aiohttp's is 8190. Deepgram answers 414 to too many keyterms too."""
MAX_HEAD_BYTES: Final = 65_536
MAX_HEADERS: Final = 128
"""websockets' own limit of their count."""
HEAD_END: Final = b"\r\n\r\n"
LISTEN_PATHS: Final = {"/v1/listen": 1, "//v1/listen": 1, "/v2/listen": 2, "//v2/listen": 2}
"""Paths of live sessions; the double slash is what an SDK makes of a base URL that ends in one."""

URI_TOO_LONG: Final = Refusal(414, "URI_TOO_LONG", f"The request line is longer than {MAX_LINE_BYTES} bytes.")
HEAD_TOO_LARGE: Final = Refusal(431, "HEADERS_TOO_LARGE", "The request's headers are too large.")
NOT_HTTP: Final = Refusal(400, "Bad Request", "That is not an HTTP/1.1 request.")
TLS: Final = Refusal(400, "Bad Request", "This port has no TLS: it takes ws:// and http://.")

_CLIENT_HELLO: Final = b"\x16"
"""How TLS begins (RFC 8446 §5.1), and no request."""
_NAME: Final = r"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
# Of a target there is no fragment (RFC 9112 §3.2), and no URL for Deepgram has one.
_REQUEST_LINE: Final = re.compile(rf'{_NAME} /[!"$-~]* HTTP/1\.[01]'.encode())
_BEGINNING: Final = re.compile(rf"{_NAME}(?: [ -~]*)?\r?".encode())
"""What may become a request line, or the line and half of what ends it."""
# RFC 9110 §5.1, §5.5. What two readers could read differently (a folded line, a bare line feed) is neither's.
_FIELD: Final = re.compile(rf"{_NAME}:[\t\x20-\x7e\x80-\xff]*")


class Head(msgspec.Struct, frozen=True):
    """`path` and `query` as the client wrote them; `headers` in order, names in lower case."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    protocol: str = "HTTP/1.1"

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def wants_websocket(self) -> bool:
        return "websocket" in (self.get("upgrade") or "").lower()

    @property
    def has_body(self) -> bool:
        """Whether more than the head is announced."""
        return any(
            name == "transfer-encoding" or (name == "content-length" and value != "0")
            for name, value in self.headers
        )


def parse(data: bytes) -> Head | Refusal | None:
    """The head in `data`, why there cannot be one, or None while more must come."""
    if data.startswith(_CLIENT_HELLO):
        return TLS
    line, ended, _ = data.partition(b"\r\n")
    if len(line) > MAX_LINE_BYTES:
        return URI_TOO_LONG
    head, complete, _ = data.partition(HEAD_END)
    if len(head) > MAX_HEAD_BYTES:
        return HEAD_TOO_LARGE
    if not (_REQUEST_LINE if ended else _BEGINNING).fullmatch(line):
        return NOT_HTTP if data else None
    if not complete:
        return None
    method, target, protocol = line.decode("ascii").split(" ")
    path, _, query = target.partition("?")
    fields = head.decode("latin-1").split("\r\n")[1:]
    if len(fields) > MAX_HEADERS or max(map(len, fields), default=0) > MAX_LINE_BYTES:
        return HEAD_TOO_LARGE
    if not all(map(_FIELD.fullmatch, fields)):
        return NOT_HTTP
    pairs = (field.partition(":") for field in fields)
    headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    return Head(method, path, query, headers, protocol)
