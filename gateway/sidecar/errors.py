"""Every refusal of an HTTP port in Deepgram's form."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.deepgram.errors import Refusal

_NO_HEADER: Final = re.compile(r"[^ -~]")
"""What callers put into names, and messages quote, must not begin another header."""

_HINTS: Final = {404: "the sidecar's /openapi.json has all paths of both ports"}


def refusal(problem: Refusal, request_id: str, headers: dict[str, str] | None = None) -> web.Response:
    """Deepgram's JSON body, with its id and its text in the headers that Deepgram's clients read."""
    own = {"dg-request-id": request_id, "dg-error": _NO_HEADER.sub("?", problem.message)}
    if problem.retry_after is not None:
        own["Retry-After"] = str(problem.retry_after)
    return web.Response(
        status=problem.status,
        body=problem.body(request_id),
        content_type="application/json",
        headers=own | (headers or {}),
    )


def in_deepgrams_form(new_request_id: Callable[[], str]) -> Middleware:
    """Middleware that puts aiohttp's refusals (404, 405, …), and a handler's failure, into that form."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            phrase = HTTPStatus(error.status).phrase
            kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            # Nothing of the request is repeated: it would be a stranger's text in a header and a log.
            hint = f"use {kept['Allow']}" if kept else _HINTS.get(error.status, "")
            text = f"{phrase}: {hint}." if hint else f"{phrase}."
            return refusal(Refusal(error.status, _code(phrase), text), new_request_id(), kept)
        except Exception:
            request_id = new_request_id()
            structlog.get_logger().exception("http.failed", path=request.path, request_id=request_id)
            return refusal(Refusal(500, "INTERNAL_SERVER_ERROR", "Internal Server Error."), request_id)

    return answer


def _code(phrase: str) -> str:
    return phrase.upper().replace(" ", "_")
