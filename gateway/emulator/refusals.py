"""Deepgram's HTTP errors: status, code and text. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer instead of an upgrade or a transcript."""

    status: int
    code: str
    text: str
    body: str | None = None
    retry_after: int | None = None

    def body_bytes(self, request_id: str) -> bytes:
        """The JSON body; the same text goes into `dg-error`."""
        if self.body is not None:
            return self.body.encode()
        key = "error_code" if self.status == 503 else "err_code"
        return msgspec.json.encode({key: self.code, "err_msg": self.text, "request_id": request_id})

    def headers(self, request_id: str) -> list[tuple[str, str]]:
        """`dg-error`, `dg-request-id`, `Retry-After` and the content type."""
        found = [("content-type", "application/json"), ("dg-request-id", request_id), ("dg-error", self.text)]
        if self.retry_after is not None:
            found.append(("retry-after", str(self.retry_after)))
        return found


_STANDARD = {
    400: ("Bad Request", "Bad Request: failed to process audio: corrupt or unsupported data"),
    401: ("INVALID_AUTH", "Invalid credentials."),
    402: (
        "ASR_PAYMENT_REQUIRED",
        "Project does not have enough credits for an ASR request and does not have an overage agreement.",
    ),
    403: ("INSUFFICIENT_PERMISSIONS", "Project does not have access to the requested model."),
    404: ("NOT_FOUND", "Not found."),
    405: ("METHOD_NOT_ALLOWED", "Method not allowed."),
    408: ("SLOW_UPLOAD", "Request timed out."),
    411: ("LENGTH_REQUIRED", "Length required."),
    413: ("PAYLOAD_TOO_LARGE", "Payload too large."),
    414: ("URI_TOO_LONG", "URI too long."),
    429: ("TOO_MANY_REQUESTS", "Too many requests. Please try again later"),
    500: ("INTERNAL_SERVER_ERROR", "Internal server error."),
    502: ("BAD_GATEWAY", "Bad gateway."),
    503: ("Service Unavailable", "Please try again later"),
    504: ("GATEWAY_TIMEOUT", "Gateway timeout."),
}


def standard(status: int, body: str | None = None, retry_after: int | None = None) -> Refusal:
    """Deepgram's answer with this status."""
    code, text = _STANDARD.get(status, ("ERROR", f"HTTP {status}"))
    return Refusal(status, code, text, body, retry_after)


def no_such_model() -> Refusal:
    """Unknown model, version or language, or a combination that does not exist."""
    return Refusal(400, "Bad Request", "Bad Request: No such model/version combination found.")


def bad_parameter(why: str) -> Refusal:
    """A query value that cannot be read."""
    return Refusal(400, "INVALID_QUERY_PARAMETER", f"Failed to deserialize query parameters: {why}")
