"""`POST /v1/listen`, as Deepgram has it: audio or `{"url": …}` in, Deepgram's own answer out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.auth import Authenticator, parse_credential, upstream_authorization
from gateway.config import Config
from gateway.deepgram.errors import Refusal
from gateway.deepgram.headers import forwarded
from gateway.deepgram.query import ListenQuery
from gateway.errors import ClientError, UpstreamError, UpstreamTimeout
from gateway.metrics import Metrics
from gateway.prerecorded.spool import SpoolFull
from gateway.prerecorded.sync import Order, Sync
from gateway.prerecorded.transcriber import Answer, Remote
from gateway.prerecorded.upload import UploadRefused, empty, take_small, too_large
from gateway.sidecar.api import IDEMPOTENCY, Operation
from gateway.sidecar.errors import refusal
from gateway.sidecar.intake import ENCODED, NOT_ASCII, idempotency_key
from gateway.sidecar.uploads import BUSY, Uploads

MAX_JSON_BYTES: Final = 65_536
SPOOL_FULL: Final = Refusal(
    503, "Service Unavailable", "The gateway has no room for uploads.", retry_after=30
)
UNREACHABLE: Final = Refusal(503, "Service Unavailable", "The gateway cannot reach Deepgram.", retry_after=5)
LATE: Final = Refusal(504, "GATEWAY_TIMEOUT", "Deepgram has not answered in time.")
CALLBACK: Final = Refusal(
    400, "Bad Request", "callback: the answer goes to the caller only; see session.allow_callback."
)


class RecordingUrl(msgspec.Struct):
    url: str


class Listen:
    """The route."""

    def __init__(
        self,
        sync: Sync,
        uploads: Uploads,
        config: Config,
        *,
        authenticator: Authenticator,
        api_key: str | None,
        metrics: Metrics,
        new_request_id: Callable[[], str],
        closed: Callable[[], Refusal | None],
    ) -> None:
        """`closed` says why nothing is taken now, if so."""
        self._sync = sync
        self._uploads = uploads
        self._config = config
        self._authenticator = authenticator
        self._api_key = api_key
        self._metrics = metrics
        self._new_request_id = new_request_id
        self._closed = closed

    def operations(self) -> list[Operation]:
        """Twice: a double slash is what an SDK makes of a base URL that ends in one."""
        text = "Transcribes a recording at once; the query and all answers are Deepgram's."
        media = ("audio/*", "application/octet-stream")
        return [
            Operation(
                *("POST", path, self.handle, text),
                body=RecordingUrl,
                headers=IDEMPOTENCY,
                media=media,
                answers={200: Any},
                expect=self._expect,
            )
            for path in ("/v1/listen", "//v1/listen")
        ]

    async def handle(self, request: web.Request) -> web.Response:
        try:
            with self._uploads.one():
                response = await self._answer(request)
        except UploadRefused as exc:
            response = refusal(exc.refusal, self._new_request_id())
        except SpoolFull:
            response = refusal(SPOOL_FULL, self._new_request_id())
        except ClientError as exc:
            response = self._refuse(Refusal(exc.status, "INVALID_AUTH", str(exc)), "credential")
        except UpstreamTimeout:
            response = refusal(LATE, self._new_request_id())
        except UpstreamError:
            response = refusal(UNREACHABLE, self._new_request_id())
        if not request.content.at_eof():
            response.force_close()  # what is left of the body must not be taken for a request
        return response

    async def _expect(self, request: web.Request) -> web.Response | None:
        """Before a client sends a large body it may ask whether to."""
        objection = UploadRefused("busy", BUSY) if self._uploads.full else self._objection(request)
        if objection is not None:
            return self._refuse(objection.refusal, objection.reason)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
        return None

    async def _answer(self, request: web.Request) -> web.Response:
        limits = self._config.prerecorded
        headers = [(name.lower(), value) for name, value in request.headers.items()]
        credential = parse_credential(headers)
        principal = self._authenticator.authenticate(credential)
        objection = self._objection(request)
        if objection is not None:
            raise objection
        query = ListenQuery(request.raw_path.partition("?")[2])
        self._may_ask(query)
        authorization = upstream_authorization(self._config.auth.upstream, credential, self._api_key)
        up = forwarded(headers, authorization)
        up += [(name, value) for name, value in headers if name == "content-type"]
        order = Order(principal, query, up, idempotency_key(request))
        if request.content_type == "application/json":
            body = await take_small(request.content, limit=MAX_JSON_BYTES, min_rate=limits.min_upload_rate)
            return relay(await self._sync.fetch(order, _checked(body)))
        return relay(await self._sync.upload(order, request.content, request.content_length))

    def _objection(self, request: web.Request) -> UploadRefused | None:
        """What can be said before a byte of the body is read."""
        limits = self._config.prerecorded
        closed = self._closed()
        if closed is not None:
            return UploadRefused("draining", closed)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            return UploadRefused("encoded", ENCODED)
        if not request.raw_path.isascii():
            return UploadRefused("malformed", NOT_ASCII)
        if (request.content_length or 0) > limits.max_sync_bytes:
            return too_large(limits.max_sync_bytes)
        return None if request.can_read_body else empty()

    def _may_ask(self, query: ListenQuery) -> None:
        """Raises UploadRefused."""
        own_key = self._config.auth.upstream == "gateway"
        if own_key and query.has("callback") and not self._config.session.allow_callback:
            raise UploadRefused("callback", CALLBACK)
        try:
            query.keeps_words()
        except ValueError as exc:
            raise UploadRefused("malformed", Refusal(400, "Bad Request", str(exc))) from None

    def _refuse(self, problem: Refusal, reason: str) -> web.Response:
        self._metrics.uploads_refused.add(reason)
        return refusal(problem, self._new_request_id())


def relay(answer: Answer) -> web.Response:
    """Deepgram's answer, unchanged."""
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


def _checked(body: bytes) -> Remote:
    try:
        source = msgspec.json.decode(body, type=RecordingUrl)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        problem = Refusal(400, "INVALID_JSON", f"The body is not JSON with a url: {exc}")
        raise UploadRefused("malformed", problem) from exc
    if not source.url:
        raise UploadRefused("malformed", Refusal(400, "INVALID_JSON", "url: is empty."))
    return Remote(body)
