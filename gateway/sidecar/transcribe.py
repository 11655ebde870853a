"""`POST /v1/transcribe`: a recording, and the way it takes: at once, as a job, live, or by callback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from gateway.auth import Principal, parse_credential, upstream_authorization
from gateway.config import Config
from gateway.deepgram.errors import Refusal
from gateway.deepgram.headers import Pairs, forwarded
from gateway.deepgram.query import ListenQuery
from gateway.errors import TargetError, UpstreamError, UpstreamTimeout
from gateway.prerecorded import live, probe
from gateway.prerecorded.detours import way_out
from gateway.prerecorded.receiver import Receiver
from gateway.prerecorded.request import BadField, TranscribeRequest, read
from gateway.prerecorded.route import Choice, Mode, Route, Size, choose
from gateway.prerecorded.spool import Spool, SpoolFile
from gateway.prerecorded.sync import Order, Sync
from gateway.prerecorded.targets import Targets
from gateway.prerecorded.transcriber import Answer, Remote
from gateway.prerecorded.upload import too_large
from gateway.prerecorded.work import TOO_LONG
from gateway.sidecar.api import IDEMPOTENCY, Operation
from gateway.sidecar.errors import refusal
from gateway.sidecar.guard import Refused
from gateway.sidecar.intake import MEDIA, Intake, Recording, idempotency_key
from gateway.sidecar.jobs import NOT_KEPT, JobDocument, JobRoutes, accepted
from gateway.sidecar.listen import LATE, UNREACHABLE, relay
from gateway.store.job import JobRoute

PROBE_SECONDS: Final = 5.0
"""For finding out how long a recording is; after that its size tells."""
PING_SECONDS: Final = 15.0
SEND_SECONDS: Final = 30.0
"""For a client that does not read its events."""
AGAIN: Final = Choice("sync", "answered before, by its Idempotency-Key")
NO_STORE: Final = Refusal(422, "NO_JOBS", "store.url is 'none': there are no jobs.")


class TranscribeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """A recording by its URL; further fields are Deepgram's options."""

    url: str
    mode: Mode = "auto"
    duration: float | None = None
    id: str | None = None
    priority: int = 5
    callback: str | None = None
    metadata: Any = None
    store: bool = True


class Transcript(msgspec.Struct, frozen=True):
    """What was transcribed at once. `result` is Deepgram's response."""

    route: Route
    reason: str
    result: msgspec.Raw


class Transcribe:
    """The route."""

    def __init__(
        self,
        intake: Intake,
        jobs: JobRoutes | None,
        sync: Sync,
        spool: Spool,
        targets: Targets,
        receiver: Receiver,
        config: Config,
        *,
        api_key: str | None,
        new_request_id: Callable[[], str],
        client_port: Callable[[], tuple[str, int]],
    ) -> None:
        """`jobs` is None where there is no store; `client_port` is where live sessions are taken."""
        self._intake = intake
        self._jobs = jobs
        self._sync = sync
        self._spool = spool
        self._targets = targets
        self._receiver = receiver
        self._config = config
        self._api_key = api_key
        self._new_request_id = new_request_id
        self._client_port = client_port

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "POST",
                "/v1/transcribe",
                self._intake.guarded(self._handle),
                "Transcribes a recording at once or as a job, whichever suits it; mode=stream: by events.",
                query={"mode": Mode, "duration": float, "priority": int, "callback": str, "store": bool},
                headers=IDEMPOTENCY,
                body=TranscribeBody,
                media=MEDIA,
                answers={200: Transcript, 202: JobDocument},
            )
        ]

    async def _handle(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        with self._intake.uploads.one():
            self._intake.may_come(request)
            return await self._take(request, caller)

    async def _take(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        query = ListenQuery(request.raw_path.partition("?")[2])
        if request.content_type == "application/json":
            said = await self._intake.json(request)
            wanted = read(said if isinstance(said, dict) else {}, query)
            if not wanted.url:
                raise BadField("url", "is needed where no audio is sent")
            return await self._route(request, caller, Recording(wanted))
        async with self._intake.recording(request, query) as recording:
            return await self._route(request, caller, recording)

    async def _route(
        self, request: web.Request, caller: Principal, recording: Recording
    ) -> web.StreamResponse:
        wanted, key = recording.wanted, idempotency_key(request)
        self._may_be_called(wanted, key)
        order = Order(caller, _with_wish(wanted), self._headers(request, recording), key)
        if key and (before := await self._before(order, recording)):
            return before
        await self._intake.check(caller, wanted)
        choice = await self._choose(recording)
        if choice.route == "stream":
            return await self._stream(request, caller, recording, choice)
        if choice.route == "sync":
            return await self._at_once(order, recording, choice)
        return await self._submit(order, recording, choice.route, choice.reason)

    async def _before(self, order: Order, recording: Recording) -> web.StreamResponse | None:
        """The answer to a request that came before by its key, whichever way it took then."""
        key = order.idempotency_key
        if self._jobs is not None and not self._no_jobs and await self._jobs.knows(order.principal, key):
            return await self._submit(order, recording, "async", "")
        answer = await self._sync.again(order, _source(recording))
        return self._transcript(AGAIN, answer) if answer is not None else None

    def _may_be_called(self, wanted: TranscribeRequest, key: str) -> None:
        if key and wanted.mode == "stream":
            raise BadField("Idempotency-Key", "the answer of mode=stream is given once")
        if wanted.callback and wanted.mode in ("sync", "stream"):
            raise BadField("callback", f"the answer of mode={wanted.mode} comes at once")
        if wanted.mode == "callback" and (problem := self._receiver.problem):
            raise Refused(Refusal(422, "NO_CALLBACK", f"mode: {problem}."))
        if wanted.mode in ("async", "callback") and (refusal := self._no_jobs):
            raise Refused(refusal)

    @property
    def _no_jobs(self) -> Refusal | None:
        """Why these settings allow no jobs, if so."""
        if self._config.auth.upstream == "client":
            return NOT_KEPT
        return NO_STORE if self._jobs is None else None

    async def _choose(self, recording: Recording) -> Choice:
        wanted, file = recording.wanted, recording.file
        most = self._config.prerecorded.max_sync_bytes
        if wanted.mode == "sync" and file is not None and file.size > most:
            raise too_large(most)
        if wanted.mode == "auto" and self._no_jobs:
            return Choice("sync", "there are no jobs here")
        if wanted.mode == "auto" and wanted.callback:
            return Choice("async", "a callback was asked for")
        choice = choose(wanted.mode, await self._size(recording), self._config.route)
        if choice.route == "sync" and file is not None and file.size > most:
            return Choice("async", f"{choice.reason}; but larger than {most} bytes")
        return choice

    async def _size(self, recording: Recording) -> Size:
        wanted, file = recording.wanted, recording.file
        size = None if file is None else file.size
        if wanted.duration is not None or file is None or wanted.mode != "auto":
            return Size(wanted.duration, "as the request says", size)
        with await file.handle() as handle:
            query = ListenQuery(wanted.query)
            probing = self._spool.run(probe.duration, handle, file.size, query)
            try:
                seconds = await asyncio.wait_for(probing, PROBE_SECONDS)
            except TimeoutError:
                seconds = None  # the thread ends when it reads on in the closed file
        return Size(seconds, "probed", size)

    # At once

    async def _at_once(self, order: Order, recording: Recording, choice: Choice) -> web.StreamResponse:
        wanted = recording.wanted
        try:
            answer = await self._sync.send(order, _source(recording), self._config.route.patience)
        except UpstreamTimeout:
            if self._no_jobs:
                return refusal(LATE, self._new_request_id())
            reason = f"{choice.reason}; not done in {self._config.route.patience:g} s"
            return await self._submit(order, recording, "async", reason, reruns=1)
        except UpstreamError:
            return refusal(UNREACHABLE, self._new_request_id())
        if answer.ok:
            return self._transcript(choice, answer)
        if answer.status == TOO_LONG and not self._no_jobs:
            have = recording.file is not None
            route: JobRoute | None = way_out(self._receiver, ListenQuery(wanted.query), have)
            if route is not None:
                reason = f"{choice.reason}; too long for one go (Deepgram answered {TOO_LONG})"
                return await self._submit(order, recording, route, reason)
        return relay(answer)

    def _transcript(self, choice: Choice, answer: Answer) -> web.Response:
        body = msgspec.json.encode(Transcript(choice.route, choice.reason, msgspec.Raw(answer.body)))
        headers = [pair for pair in answer.headers if pair[0].lower() != "content-type"]
        return web.Response(body=body, content_type="application/json", headers=headers)

    def _headers(self, request: web.Request, recording: Recording) -> Pairs:
        given = [(name.lower(), value) for name, value in request.headers.items()]
        upstream = self._config.auth.upstream
        authorization = upstream_authorization(upstream, parse_credential(given), self._api_key)
        media_type = recording.media_type if recording.file is not None else "application/json"
        return [*forwarded(given, authorization), ("content-type", media_type)]

    # As a job

    async def _submit(
        self, order: Order, recording: Recording, route: JobRoute, reason: str, reruns: int = 0
    ) -> web.StreamResponse:
        assert self._jobs is not None
        key = order.idempotency_key
        job = self._jobs.make(recording.wanted, order.principal, route, reason, key=key)
        job = msgspec.structs.replace(job, reruns=reruns)
        return accepted(await self._jobs.submit(job, recording.file, recording.media_type, key))

    # Live

    async def _stream(
        self, request: web.Request, caller: Principal, recording: Recording, choice: Choice
    ) -> web.StreamResponse:
        async with self._audio(caller, recording) as file:
            query = _with_wish(recording.wanted).raw
            host, port = self._client_port()
            url = f"ws://{host}:{port}/v1/listen" + (f"?{query}" if query else "")
            headers = [pair for pair in request.headers.items() if pair[0].lower() == "authorization"]
            most = self._config.server.max_message_bytes
            try:
                async with live.session(url, file.chunks(), headers, most) as messages:
                    return await self._events(request, messages, choice)
            except live.SessionRefused as exc:
                return refusal(exc.refusal, exc.request_id or self._new_request_id())
            except UpstreamError:
                return refusal(UNREACHABLE, self._new_request_id())

    async def _events(
        self, request: web.Request, messages: AsyncIterator[live.Message], choice: Choice
    ) -> web.StreamResponse:
        """The route, then each message of the session as an event of its type."""
        response = EventSourceResponse(
            allow_all_methods=True, ping_interval=PING_SECONDS, send_timeout=SEND_SECONDS
        )
        await response.prepare(request)
        async with response:
            await response.send(msgspec.json.encode(choice).decode(), event="route")
            try:
                async for message in messages:
                    await response.send(message.text, event=message.type)
            except UpstreamError as exc:
                problem = Refusal(502, "SESSION_LOST", f"The live session broke: {exc}.")
                await response.send(problem.body(self._new_request_id()).decode(), event="error")
        return response

    @contextlib.asynccontextmanager
    async def _audio(self, caller: Principal, recording: Recording) -> AsyncIterator[SpoolFile]:
        """The recording here, fetched if it is elsewhere."""
        if recording.file is not None:
            yield recording.file
            return
        limit, seconds = self._config.jobs.max_upload_bytes, self._config.prerecorded.deadline
        async with self._spool.open() as file:
            try:
                url = recording.wanted.url or ""
                fetching = self._targets.fetch(caller.id, url, max_bytes=limit, seconds=seconds)
                async with fetching as fetched:
                    async for chunk in fetched.chunks:
                        await file.write(chunk)
            except TargetError as exc:
                raise BadField("url", str(exc)) from None
            file.finish()
            yield file


def _source(recording: Recording) -> SpoolFile | Remote:
    return recording.file or Remote.at(recording.wanted.url or "")


def _with_wish(wanted: TranscribeRequest) -> ListenQuery:
    """What is asked, and that its answer is not to be stored, if so."""
    query = ListenQuery(wanted.query)
    return query if wanted.store else query.with_value("gw_store", "false")
