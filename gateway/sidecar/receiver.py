"""`/v1/callbacks/deepgram/{token}`: where Deepgram brings the results of jobs that it calls back for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.deepgram.errors import Refusal
from gateway.errors import StoreError
from gateway.prerecorded.queue import Jobs
from gateway.prerecorded.receiver import PATH, Receiver, awaits, job_id, told
from gateway.prerecorded.transcriber import MAX_ANSWER_BYTES
from gateway.prerecorded.upload import Clock, UploadRefused, too_large
from gateway.sidecar.api import Operation
from gateway.sidecar.errors import refusal

STRANGER: Final = Refusal(401, "INVALID_AUTH", "dg-token: is not the identifier of our key.")
NOT_AWAITED: Final = Refusal(404, "NOT_FOUND", "Nothing is awaited here.")
UNAVAILABLE: Final = Refusal(503, "UNAVAILABLE", "The result cannot be kept now.", retry_after=5)


class Received(msgspec.Struct, frozen=True):
    """`received` is false where the job had ended, and nothing was changed."""

    received: bool


class ReceiverRoutes:
    """The route, for both methods that Deepgram knows."""

    def __init__(
        self, receiver: Receiver, jobs: Jobs, *, min_rate: int, new_request_id: Callable[[], str]
    ) -> None:
        """`min_rate` in bytes per second."""
        self._receiver = receiver
        self._jobs = jobs
        self._min_rate = min_rate
        self._new_request_id = new_request_id

    def operations(self) -> list[Operation]:
        text, answers = "Takes a result from Deepgram.", {200: Received}
        return [
            Operation(method, PATH + "{token}", self.handle, text, body=Any, answers=answers)
            for method in ("POST", "PUT")
        ]

    async def handle(self, request: web.Request) -> web.Response:
        try:
            response = await self._receive(request)
        except UploadRefused as exc:
            response = refusal(exc.refusal, self._new_request_id())
        except StoreError:
            response = refusal(UNAVAILABLE, self._new_request_id())
        if not request.content.at_eof():
            response.force_close()  # what is left of the body must not be taken for a request
        return response

    async def _receive(self, request: web.Request) -> web.Response:
        token = request.match_info["token"]
        if not self._receiver.is_deepgram(request.headers.get("dg-token", "")):
            return refusal(STRANGER, self._new_request_id())
        job = await self._jobs.awaiting(job_id(token))
        if job is None or not awaits(job, token):
            return refusal(NOT_AWAITED, self._new_request_id())
        body = await self._body(request)
        if is_new := job.state == "running":
            await self._jobs.finish(job, told(body, request.headers.get("dg-request-id", "")))
        return web.Response(body=msgspec.json.encode(Received(is_new)), content_type="application/json")

    async def _body(self, request: web.Request) -> bytes:
        clock, body = Clock(self._min_rate), bytearray()
        while data := await clock.next(request.content):
            body += data
            if len(body) > MAX_ANSWER_BYTES:
                raise too_large(MAX_ANSWER_BYTES)
        return bytes(body)
