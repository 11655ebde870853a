"""Deepgram's callbacks to us: an address for each attempt that awaits one, and what comes there.

Deepgram posts the response of a request to its `callback=`, or the error, with the submitting key's
identifier in `dg-token`; what is not answered 2xx it repeats up to ten times, half a minute apart
(developers.deepgram.com/docs/callback).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from gateway.config import CallbackConfig
from gateway.deepgram.errors import ErrorBody
from gateway.prerecorded.transcriber import Answer
from gateway.prerecorded.work import TOO_LONG, Failed, Outcome, judged
from gateway.store.job import Job, JobError

PATH: Final = "/v1/callbacks/deepgram/"
PORTS: Final = (80, 443, 8080, 8443)
"""Deepgram calls no other."""
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class Address(NamedTuple):
    """Where Deepgram is to call; the job's row keeps only the token's `digest`."""

    url: str
    digest: str


class Receiver:
    """`mint` gives secrets that fit into a path."""

    def __init__(self, config: CallbackConfig, mint: Callable[[], str]) -> None:
        self._base = config.public_url.rstrip("/")
        self._key_id = config.key_id
        self._mint = mint

    @property
    def problem(self) -> str | None:
        """Why Deepgram cannot call back, if it cannot."""
        if not self._base:
            return "callback.public_url is not set, so that Deepgram cannot call back"
        url = urlsplit(self._base)
        if (url.port or _DEFAULT_PORTS.get(url.scheme)) not in PORTS:
            return f"callback.public_url: Deepgram calls no port but {', '.join(map(str, PORTS))}"
        return None

    def address(self, job: Job) -> Address:
        """A new one for each attempt. Nobody who has not got it can guess it."""
        token = f"{job.id}.{self._mint()}"
        return Address(self._base + PATH + token, digest(token))

    def is_deepgram(self, dg_token: str) -> bool:
        """Whether whoever calls shows the key's identifier, where one is set."""
        return not self._key_id or hmac.compare_digest(dg_token.encode(), self._key_id.encode())


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def job_id(token: str) -> str:
    """Whose attempt an address was made for."""
    return token.rpartition(".")[0]


def awaits(job: Job, token: str) -> bool:
    """Whether that is the address of the latest attempt at `job`, which may be over."""
    return hmac.compare_digest(digest(token), job.awaited or "")


def told(body: bytes, request_id: str) -> Outcome:
    """What became of the attempt: a response, or an error that names its status in words."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        error = ErrorBody()
    status = _status(error.code) if error.code else 200
    if status == TOO_LONG:
        return Failed(JobError("TOO_LONG", error.text or "Deepgram gave up: it takes too long.", status))
    return judged(Answer(status, [], body, request_id, ""))


def _status(code: str) -> int:
    """The HTTP status that Deepgram would have answered; 500 where its word for it is not known."""
    wanted = code.replace("_", " ").casefold()
    return next((int(status) for status in HTTPStatus if status.phrase.casefold() == wanted), 500)
