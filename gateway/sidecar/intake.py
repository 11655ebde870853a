"""What comes in to be transcribed: a form, audio, or JSON; received within limits, judged, refused."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.auth import Authenticator, Principal
from gateway.config import Config
from gateway.deepgram.errors import Refusal
from gateway.deepgram.query import ListenQuery
from gateway.errors import TargetBusy, TargetError
from gateway.metrics import Metrics
from gateway.prerecorded import probe
from gateway.prerecorded.request import BadField, TranscribeRequest, read
from gateway.prerecorded.spool import Spool, SpoolFile
from gateway.prerecorded.upload import GRACE, Body, UploadRefused, empty, take, take_small, too_large
from gateway.sidecar.guard import Guard
from gateway.sidecar.uploads import Uploads

JSON_BYTES: Final = 4_194_304
"""Of a request with many jobs: a thousand of them with 4 KiB each."""
FIELD_BYTES: Final = 65_536
"""Of a form's field beside the audio."""
MOST_PARTS: Final = 256
"""Of a form."""
AUDIO: Final = ("audio/", "video/", "application/octet-stream", "application/ogg")
MEDIA: Final = ("audio/*", "application/octet-stream", "multipart/form-data")
"""What is taken beside JSON."""
SLOW_DOWN: Final = 5
"""Seconds, for `Retry-After`."""

DOWN: Final = Refusal(503, "UNAVAILABLE", "Jobs cannot be taken or shown now.", retry_after=5)
SLOW_FORM: Final = Refusal(408, "SLOW_UPLOAD", f"A part of the form takes longer than {GRACE:g} s to begin.")

_MEDIA_TYPE: Final = re.compile(r"[!-~]{1,63}/[!-~]{1,63}( ?;[ -~]{0,255})?")
_KEY: Final = re.compile(r"[ -~]{0,255}")
ENCODED: Final = Refusal(415, "UNSUPPORTED_MEDIA_TYPE", "Content-Encoding: send the body as it is.")
NOT_ASCII: Final = Refusal(400, "Bad Request", "The query is not percent-encoded.")
NO_FORM: Final = Refusal(400, "INVALID_FORM", "The body is not the form that it says.")
BAD_KEY: Final = Refusal(
    400, "INVALID_FIELD", "Idempotency-Key: at most 255 visible ASCII characters are taken."
)
NO_MEDIA_TYPE: Final = Refusal(415, "UNSUPPORTED_MEDIA_TYPE", "Content-Type: is no media type.")

_NO_FORM: Final = (ValueError, AssertionError, LookupError, HttpProcessingError, web.RequestPayloadError)
"""What aiohttp's reader raises for what is no form, or none of its own boundary."""

Check = Callable[[str, str], Awaitable[object]]
"""Judges an address from outside that a principal named; raises TargetError."""


class Recording(msgspec.Struct, frozen=True):
    """A request whose audio, if it brought any, is in the spool."""

    wanted: TranscribeRequest
    file: SpoolFile | None = None
    media_type: str = ""


class Intake:
    """`check` judges an address from outside, `check_callback` one to be called; `closed` says why nothing is
    taken now."""

    def __init__(
        self,
        spool: Spool,
        uploads: Uploads,
        config: Config,
        *,
        authenticator: Authenticator,
        metrics: Metrics,
        new_request_id: Callable[[], str],
        check: Check,
        check_callback: Check,
        closed: Callable[[], Refusal | None],
    ) -> None:
        self.uploads = uploads
        self._spool = spool
        self._metrics = metrics
        self._config = config
        self.guarded = Guard(authenticator, new_request_id, DOWN)
        self._checks = {"url": check, "callback": check_callback}
        self._closed = closed

    def may_come(self, request: web.Request) -> None:
        """What can be said before a byte of the body is read. Raises UploadRefused."""
        if problem := self._closed():
            raise UploadRefused("draining", problem)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UploadRefused("encoded", ENCODED)
        if not request.raw_path.isascii():
            raise UploadRefused("malformed", NOT_ASCII)
        idempotency_key(request)
        limit = self._config.jobs.max_upload_bytes
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        if not request.can_read_body:
            raise empty()

    async def json(self, request: web.Request) -> Any:
        """The body of a request that brings JSON."""
        rate = self._config.prerecorded.min_upload_rate
        body = await take_small(request.content, limit=JSON_BYTES, min_rate=rate)
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            problem = Refusal(400, "INVALID_JSON", f"The body is no JSON: {exc}")
            raise UploadRefused("malformed", problem) from None

    @contextlib.asynccontextmanager
    async def recording(self, request: web.Request, query: ListenQuery) -> AsyncIterator[Recording]:
        """What a request with audio, as it is or in a form, wants; its file is closed in the end."""
        if request.content_type == "multipart/form-data":
            async with contextlib.AsyncExitStack() as stack:
                yield await self._form(request, query, stack)
            return
        if not request.content_type.startswith(AUDIO):
            text = f"Content-Type: {request.content_type} is no audio."
            raise UploadRefused("no_audio", Refusal(415, "UNSUPPORTED_MEDIA_TYPE", text))
        media_type = _checked(request.content_type)
        wanted = read({}, query)
        if wanted.url:
            raise BadField("url", "there is audio in the request")
        async with self._spool.open(request.content_length) as file:
            await self._receive(request.content, file)
            await self._judge(file, wanted, "body")
            yield Recording(wanted, file, media_type)

    async def check(self, caller: Principal, wanted: TranscribeRequest) -> None:
        """Whether the addresses in a request may be gone to. Raises BadField."""
        for field in self._checks:
            address = getattr(wanted, field)
            if address and (problem := await self.problem(caller, field, address)):
                raise BadField(field, problem)

    async def problem(self, caller: Principal, field: str, address: str) -> str:
        """What is wrong with the `url` or `callback` of a request; nothing if it may be gone to.

        Raises TargetBusy.
        """
        try:
            await self._checks[field](caller.id, address)
        except TargetBusy:
            raise
        except TargetError as exc:
            return str(exc)
        return ""

    async def _form(
        self, request: web.Request, query: ListenQuery, stack: contextlib.AsyncExitStack
    ) -> Recording:
        """A form with one file and, before or after it, fields."""
        fields: dict[str, list[str]] = {}
        rate = self._config.prerecorded.min_upload_rate
        file: SpoolFile | None = None
        media_type = name = ""
        try:
            reader = await request.multipart()
            for _ in range(MOST_PARTS):
                async with asyncio.timeout(GRACE):
                    part = await reader.next()
                if part is None:
                    break
                if not isinstance(part, BodyPartReader) or not part.name:
                    raise BadField("form", "each part needs a name")
                if part.filename is None:
                    text = await take_small(_Part(part), limit=FIELD_BYTES, min_rate=rate)
                    fields.setdefault(part.name, []).append(text.decode())
                elif file is None:
                    media_type = _checked(part.headers.get("Content-Type", "application/octet-stream"))
                    name = part.name
                    file = await stack.enter_async_context(self._spool.open())
                    await self._receive(_Part(part), file)
                else:
                    raise BadField(part.name, "one file is taken in a request")
            else:
                raise BadField("form", f"at most {MOST_PARTS - 1} parts are taken")
        except TimeoutError:
            raise UploadRefused("too_slow", SLOW_FORM) from None
        except _NO_FORM:
            raise UploadRefused("malformed", NO_FORM) from None
        wanted = read({n: values[0] if len(values) == 1 else values for n, values in fields.items()}, query)
        if file is None:
            raise BadField("file", "a part with a file name is needed, with the audio")
        if wanted.url:
            raise BadField("url", "there is audio in the request")
        await self._judge(file, wanted, name)
        return Recording(wanted, file, media_type)

    async def _judge(self, file: SpoolFile, wanted: TranscribeRequest, name: str) -> None:
        """Refuses what nobody could transcribe. `name` is the audio's field."""
        query = ListenQuery(wanted.query)
        with await file.handle() as handle:
            problem = await self._spool.run(probe.flaw, handle, file.size, query)
        if problem:
            refused = Refusal(415, "UNSUPPORTED_MEDIA_TYPE", f"{name}: {problem}.")
            raise UploadRefused("no_audio", refused)

    async def _receive(self, body: Body, file: SpoolFile) -> None:
        jobs, rate = self._config.jobs, self._config.prerecorded.min_upload_rate
        try:
            await take(body, file, limit=jobs.max_upload_bytes, min_rate=rate, seconds=jobs.upload_timeout)
        finally:
            self._metrics.upload_bytes += file.size
        file.finish()


def idempotency_key(request: web.Request) -> str:
    """The caller's own name for this very request, "" for none. Raises UploadRefused."""
    key = request.headers.get("Idempotency-Key", "")
    if not _KEY.fullmatch(key):
        raise UploadRefused("malformed", BAD_KEY)
    return key


def _checked(media_type: str) -> str:
    """One that can be stored and sent on. Raises UploadRefused."""
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise UploadRefused("malformed", NO_MEDIA_TYPE)
    return media_type


class _Part:
    """A part of a form as a body."""

    def __init__(self, part: BodyPartReader) -> None:
        self._part = part

    async def readany(self) -> bytes:
        return bytes(await self._part.read_chunk(65_536))
