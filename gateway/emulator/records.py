"""What happened on each connection, for tests to read afterwards."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MOST_UPLOADS = 1000
"""Pre-recorded requests that are kept on record, the latest."""
_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie")


def masked(secret: str) -> str:
    """A fingerprint of a secret: equal for equal secrets, useless otherwise."""
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()[:16]


def masked_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name, repeats joined by a comma, credentials masked."""
    found: dict[str, str] = {}
    for name, value in headers:
        name, value = name.lower(), _mask_value(name.lower(), value)
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _mask_value(name: str, value: str) -> str:
    if name in _SECRET_HEADERS:
        scheme, _, secret = value.partition(" ")
        return f"{scheme} {masked(secret.strip())}" if secret else masked(scheme)
    if name == "sec-websocket-protocol":
        offered = [part.strip() for part in value.split(",")]
        secret_follows = offered[0].lower() in ("token", "bearer")
        return ", ".join(
            masked(part) if secret_follows and i == 1 else part for i, part in enumerate(offered)
        )
    return value


class ConnectionRecord:
    """One attempt to open a WebSocket, and what became of it.

    Times are Unix seconds. `audio` and `boundaries` (the length of each binary message) are kept only with
    `capture_audio`, `texts` (received) and `sent` only with `capture_texts`; the counts are always kept.
    """

    def __init__(self, connection_id: str, attempt: int, request_id: str, opened_at: float) -> None:
        self.id = connection_id
        self.attempt = attempt
        self.request_id = request_id
        self.opened_at = opened_at
        self.path = ""
        self.query = ""
        self.headers: dict[str, str] = {}
        self.status: int | None = None
        self.first_audio_at: float | None = None
        self.closed_at: float | None = None
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self.ended_by: str | None = None
        self.ended_how: str | None = None
        self.audio_bytes = 0
        self.audio_messages = 0
        self.boundaries: list[int] = []
        self.texts: list[str] = []
        self.texts_at: list[float] = []
        self.text_count = 0
        self.sent: list[str] = []
        self.sent_at: list[float] = []
        self.sent_count = 0
        self.pings = 0
        self._audio = bytearray()

    @property
    def audio(self) -> bytes:
        """Every audio byte received, in order."""
        return bytes(self._audio)

    @property
    def open(self) -> bool:
        """Whether the connection is upgraded and not over."""
        return self.status == 101 and self.closed_at is None

    def keep_audio(self, data: bytes, keep: bool) -> None:
        """Note a binary message."""
        self.audio_bytes += len(data)
        self.audio_messages += 1
        if keep:
            self._audio += data
            self.boundaries.append(len(data))

    def keep_text(self, text: str, at: float, keep: bool) -> None:
        """Note a text message received."""
        self.text_count += 1
        if keep:
            self.texts.append(text)
            self.texts_at.append(at)

    def keep_sent(self, text: str, at: float, keep: bool) -> None:
        """Note a text message sent."""
        self.sent_count += 1
        if keep:
            self.sent.append(text)
            self.sent_at.append(at)

    def ended(self, by: str, how: str, at: float) -> None:
        """Note who ended it and how; the first to say so is right."""
        self.ended_by = self.ended_by or by
        self.ended_how = self.ended_how or how
        self.closed_at = self.closed_at or at

    def summary(self) -> dict[str, Any]:
        """The record without its contents, as JSON."""
        plain = (
            "id",
            "attempt",
            "request_id",
            "path",
            "query",
            "headers",
            "status",
            "opened_at",
            "first_audio_at",
        )
        end = ("closed_at", "close_code", "close_reason", "ended_by", "ended_how")
        counts = ("audio_bytes", "audio_messages", "text_count", "sent_count", "pings")
        return {name: getattr(self, name) for name in (*plain, *end, *counts)}

    def detail(self) -> dict[str, Any]:
        """The record with its messages, as JSON; the audio has a route of its own."""
        received = [{"at": at, "text": text} for at, text in zip(self.texts_at, self.texts, strict=True)]
        sent = [{"at": at, "text": text} for at, text in zip(self.sent_at, self.sent, strict=True)]
        return self.summary() | {"boundaries": self.boundaries, "texts": received, "sent": sent}


@dataclass(slots=True)
class UploadRecord:
    """One pre-recorded request. `ended` is "answered", "reset" by us, "left" by its client; None: not yet."""

    nth: int
    request_id: str
    query: str
    headers: dict[str, str]
    received: int = 0
    status: int | None = None
    ended: str | None = None


class Records:
    """All connections, oldest first; closed ones beyond the limit are forgotten, the oldest first."""

    def __init__(self) -> None:
        self._all: dict[str, ConnectionRecord] = {}
        self._closed = 0
        self.attempts = 0
        self.uploads: deque[UploadRecord] = deque(maxlen=MOST_UPLOADS)
        self.uploads_begun = 0

    def add_upload(self, request_id: str, query: str, headers: Iterable[tuple[str, str]]) -> UploadRecord:
        """A new pre-recorded request."""
        self.uploads_begun += 1
        record = UploadRecord(self.uploads_begun, request_id, query, masked_headers(headers))
        self.uploads.append(record)
        return record

    def add(self, record: ConnectionRecord) -> None:
        """A new attempt."""
        self._all[record.id] = record

    def all(self) -> list[ConnectionRecord]:
        """Every record that is kept, oldest first."""
        return list(self._all.values())

    def get(self, connection_id: str) -> ConnectionRecord | None:
        """One by its id."""
        return self._all.get(connection_id)

    def closed(self, keep: int) -> None:
        """One more is closed: forget the oldest closed ones above `keep`."""
        self._closed += 1
        if self._closed > keep:
            self.clear(keep)

    def clear(self, keep: int = 0) -> int:
        """Forget closed records but the last `keep`; returns how many went."""
        closed = [record.id for record in self._all.values() if record.closed_at is not None]
        gone = closed[: max(0, len(closed) - keep)]
        for connection_id in gone:
            del self._all[connection_id]
        self._closed = len(closed) - len(gone)
        return len(gone)
