"""A receiver of Gateway's callbacks that believes only what is signed.

`WEBHOOK_SECRET=whsec_… python receiver.py` needs nothing but Python; put a proxy with TLS before it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

TOLERANCE = 300
"""Seconds that the time of an attempt may differ from ours."""
MOST_BYTES = 64 * 1024 * 1024
REMEMBERED = 10_000
"""Deliveries; keep them in your database if doing one twice would hurt."""


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether Gateway signed this, lately. `headers` has names in lower case."""
    try:
        delivery, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        given = headers["webhook-signature"].encode().split()
        if abs(now - int(timestamp)) > TOLERANCE:
            return False
    except (KeyError, ValueError):
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{delivery}.{timestamp}.".encode() + body
    wanted = b"v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
    return any(hmac.compare_digest(wanted, one) for one in given)


class Receiver(BaseHTTPRequestHandler):
    secret = os.environ.get("WEBHOOK_SECRET", "")
    seen: ClassVar[OrderedDict[str, None]] = OrderedDict()

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", "0"))
        if size > MOST_BYTES:
            return self.answer(413)
        body = self.rfile.read(size)
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not verify(self.secret, headers, body, time.time()):
            return self.answer(401)
        delivery = headers["webhook-id"]
        if delivery not in self.seen:
            self.work(json.loads(body))
            self.seen[delivery] = None
            if len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
        self.answer(204)

    def work(self, event: dict[str, Any]) -> None:
        """Yours. Be quick, or put it into a queue: Gateway waits ten seconds."""
        print(event["type"], event["data"].get("id"))

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 9000), Receiver).serve_forever()
