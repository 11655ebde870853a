"""What stands before the routes of the HTTP API: who calls is known, what a handler raises is an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec
from aiohttp import web

from gateway.auth import Authenticator, Principal, parse_credential
from gateway.deepgram.errors import Refusal
from gateway.errors import ClientError, StoreError, TargetBusy
from gateway.prerecorded.request import BadField
from gateway.prerecorded.spool import SpoolDown, SpoolFull
from gateway.prerecorded.upload import UploadRefused
from gateway.sidecar.errors import refusal

STORE_DOWN: Final = Refusal(503, "UNAVAILABLE", "The store is down.", retry_after=5)
SPOOL_FULL: Final = Refusal(503, "SPOOL_FULL", "The gateway has no room for uploads.", retry_after=30)
SPOOL_DOWN: Final = Refusal(503, "UNAVAILABLE", "Recordings cannot be kept now.", retry_after=5)
LOOKUPS_BUSY: Final = Refusal(
    503, "UNAVAILABLE", "The gateway has as many names to look up as it takes.", retry_after=5
)

Handle = Callable[[web.Request, Principal], Awaitable[web.StreamResponse]]


class Wrong(msgspec.Struct, frozen=True):
    """What is wrong with one of many jobs, by its place among them."""

    index: int
    field: str
    message: str


class ManyRefused(msgspec.Struct, frozen=True):
    """Where many jobs are sent, none is taken when one is wrong; `errors` says which."""

    err_code: str
    err_msg: str
    request_id: str
    errors: list[Wrong] = []


class Refused(Exception):
    """Carries what to answer."""

    def __init__(self, problem: Refusal, errors: Sequence[Wrong] = ()) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.errors = list(errors)


class Guard:
    """`guard(handle)` is a route's handler. `down` is the answer while the store is."""

    def __init__(
        self, authenticator: Authenticator, new_request_id: Callable[[], str], down: Refusal = STORE_DOWN
    ) -> None:
        self._authenticator = authenticator
        self._new_request_id = new_request_id
        self._down = down

    def __call__(self, handle: Handle) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """`handle` for whoever may call."""

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                credential = parse_credential(request.headers.items())
                return await handle(request, self._authenticator.authenticate(credential))
            except Exception as exc:
                refused = self._refused(exc)
                if refused is None or request.writer.output_size:
                    raise  # an answer that has begun can only be broken off, which aiohttp does
            if not request.content.at_eof():
                refused.force_close()  # what is left of the body must not be taken for a request
            return refused

        return answer

    def _refused(self, exc: Exception) -> web.Response | None:
        """The answer to what a handler raised; None for what is a defect, or aiohttp's own."""
        request_id = self._new_request_id()
        match exc:
            case Refused() if exc.errors:
                response = refusal(exc.problem, request_id)
                many = ManyRefused(exc.problem.code, exc.problem.message, request_id, exc.errors)
                response.body = msgspec.json.encode(many)
                return response
            case Refused():
                problem = exc.problem
            case UploadRefused():
                problem = exc.refusal
            case BadField():
                problem = Refusal(400, "INVALID_FIELD", str(exc))
            case SpoolFull():
                problem = SPOOL_FULL
            case SpoolDown():
                problem = SPOOL_DOWN
            case TargetBusy():
                problem = LOOKUPS_BUSY
            case StoreError():
                problem = self._down
            case ClientError():
                problem = Refusal(exc.status, "INVALID_AUTH", str(exc))
            case _:
                return None
        return refusal(problem, request_id)


def json_answer(
    document: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A document as the API gives it."""
    body = msgspec.json.encode(document)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
