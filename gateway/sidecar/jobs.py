"""`/v1/jobs`: recordings to be transcribed later; one or many, looked at, watched, cancelled, retried."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.auth import Principal
from gateway.config import Config
from gateway.deepgram.errors import Refusal
from gateway.deepgram.query import ListenQuery
from gateway.errors import StoreConflict, StoreError
from gateway.prerecorded.copies import OTHER_REQUEST
from gateway.prerecorded.queue import Jobs
from gateway.prerecorded.request import BadField, TranscribeRequest, read
from gateway.prerecorded.spool import Spool, SpoolFile
from gateway.sidecar import events
from gateway.sidecar.api import IDEMPOTENCY, Operation
from gateway.sidecar.guard import ManyRefused, Refused, Wrong, json_answer
from gateway.sidecar.intake import MEDIA, Intake, idempotency_key
from gateway.sidecar.paging import asked_id, page_of, page_size, page_start
from gateway.store.job import STATES, Job, JobError, JobRoute, JobState

NOT_KEPT: Final = Refusal(
    422, "NO_JOBS", "auth.upstream is 'client': a job would need your credential, which is not kept."
)

RETRIED: Final = Refusal(409, "JOB_NOT_FAILED", "The job has just been retried by somebody else.")

SLICE: Final = 32
"""Of many jobs in a request, how many are looked at before calls have their turn: a few milliseconds."""
TOO_MANY: Final = Refusal(503, "UNAVAILABLE", "As many watch jobs as are let in.", retry_after=30)


class JobDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as callers see it. Times are seconds since 1970 (UTC); `run_at` is when a queued one is due."""

    id: str
    state: JobState
    attempts: int
    max_attempts: int
    created_at: float
    priority: int
    route: str
    error: JobError | None = None
    result: msgspec.Raw | None = None
    reason: str = ""
    url: str | None = None
    size_bytes: int = 0
    duration: float | None = None
    query: str = ""
    callback: str | None = None
    metadata: msgspec.Raw | None = None
    reruns: int = 0
    request_id: str = ""
    run_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None


class JobPage(msgspec.Struct, frozen=True):
    """`next` is the cursor of the page after this one; null: there is none."""

    jobs: list[JobDocument]
    next: str | None = None


class JobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """One recording by its URL; further fields are Deepgram's options."""

    url: str
    id: str | None = None
    priority: int = 5
    callback: str | None = None
    metadata: Any = None
    duration: float | None = None
    store: bool = True


def document(job: Job) -> JobDocument:
    """What a caller sees of `job`."""
    shared = {name: getattr(job, name) for name in JobDocument.__struct_fields__ if name != "run_at"}
    return JobDocument(run_at=job.run_at if job.state == "queued" else None, **shared)


class JobRoutes:
    """The routes, and what else makes a request a job."""

    def __init__(
        self,
        jobs: Jobs,
        intake: Intake,
        spool: Spool,
        config: Config,
        *,
        new_id: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._jobs = jobs
        self._intake = intake
        self._spool = spool
        self._config = config
        self._new_id = new_id
        self._clock = clock
        self._watchers = 0

    def operations(self) -> list[Operation]:
        one, guarded = JobDocument, self._intake.guarded
        return [
            Operation(
                "POST",
                "/v1/jobs",
                guarded(self._submit),
                "Takes a recording, or the addresses of many: all of them or none.",
                headers=IDEMPOTENCY,
                body=JobRequest | list[JobRequest],
                media=MEDIA,
                answers={202: one | JobPage, 400: ManyRefused},
            ),
            Operation(
                "GET",
                "/v1/jobs",
                guarded(self._list),
                "Jobs, the newest first, without their results.",
                query={"state": JobState, "cursor": str, "limit": int},
                answers={200: JobPage},
            ),
            Operation("GET", "/v1/jobs/{id}", guarded(self._show), "One job.", answers={200: one}),
            Operation(
                "GET",
                "/v1/jobs/{id}/events",
                guarded(self._watch),
                "The job now and with each new state, as server-sent events, until it has ended.",
                answers={200: None, 204: None},
            ),
            Operation(
                "DELETE",
                "/v1/jobs/{id}",
                guarded(self._delete),
                "Cancels a job; deletes one that has ended, with its audio, words and callbacks (204).",
                answers={200: one, 204: None},
            ),
            Operation(
                "POST",
                "/v1/jobs/{id}/cancel",
                guarded(self._cancel),
                "Cancels a job that has not ended.",
                answers={200: one},
            ),
            Operation(
                "POST",
                "/v1/jobs/{id}/retry",
                guarded(self._retry),
                "Runs a failed or cancelled job again.",
                answers={202: one},
            ),
        ]

    # The routes

    async def _submit(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        with self._intake.uploads.one():
            self._may_take(request)
            return await self._take(request, caller)

    async def _take(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        query, key = ListenQuery(request.raw_path.partition("?")[2]), idempotency_key(request)
        if request.content_type == "application/json":
            return await self._submit_json(request, query, caller, key)
        async with self._intake.recording(request, query) as recording:
            job = self.make(_a_job(recording.wanted), caller, key=key)
            await self._intake.check(caller, recording.wanted)
            return accepted(await self.submit(job, recording.file, recording.media_type, key))

    async def _list(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        state, size = _state(request.query.get("state")), page_size(request.query)
        found = await self._jobs.page(caller.id, state, page_start(request.query), size + 1)
        page, cursor = page_of(found, size)
        return json_answer(JobPage([document(job) for job in page], cursor))

    async def _show(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        return json_answer(document(await self._found(request, caller)))

    async def _watch(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        job = await self._found(request, caller)
        seen = request.headers.get("Last-Event-ID")
        if job.ended_at and seen == _event_id(job):
            return web.Response(status=204)  # which tells an EventSource not to come again
        if self._watchers >= self._config.sidecar.max_observers:
            raise Refused(TOO_MANY)
        self._watchers += 1
        try:
            return await self._events(request, self._jobs.states(job.id, caller.id), seen)
        finally:
            self._watchers -= 1

    async def _events(
        self, request: web.Request, states: AsyncGenerator[Job, None], seen: str | None
    ) -> web.StreamResponse:
        response = await events.opened(request)
        # Whoever left, or does not read, is gone. With the store down the stream ends, to be asked for again.
        with contextlib.suppress(ConnectionError, TimeoutError, StoreError):
            async with response, contextlib.aclosing(states):
                async for state in states:
                    if _event_id(state) != seen:
                        data = msgspec.json.encode(document(state)).decode()
                        await response.send(data, id=_event_id(state), event="job")
        return response

    async def _delete(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        job = await self._found(request, caller)
        if cancelled := await self._jobs.cancel(job.id):
            return json_answer(document(cancelled))
        if await self._jobs.remove(job.id):
            return web.Response(status=204)
        await self._found(request, caller)  # 404: somebody else has just deleted it
        raise Refused(RETRIED)

    async def _cancel(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        job = await self._found(request, caller)
        cancelled = await self._jobs.cancel(job.id)
        if cancelled is None:
            raise Refused(Refusal(409, "JOB_ENDED", f"The job is over ({job.state})."))
        return json_answer(document(cancelled))

    async def _retry(self, request: web.Request, caller: Principal) -> web.StreamResponse:
        job = await self._found(request, caller)
        if job.state not in ("failed", "cancelled"):
            text = f"The job is {job.state}: only failed or cancelled ones run again."
            raise Refused(Refusal(409, "JOB_NOT_FAILED", text))
        if job.spooled and not await self._spool.holds(job.spooled):
            raise Refused(Refusal(409, "AUDIO_GONE", "The job's audio is deleted: submit it again."))
        queued = await self._jobs.retry(job.id)
        if queued is None:
            raise Refused(RETRIED)
        return accepted(queued)

    # What comes in

    def _may_take(self, request: web.Request) -> None:
        """What can be said before a byte of the body is read."""
        self._intake.may_come(request)
        if self._config.auth.upstream == "client":
            raise Refused(NOT_KEPT)
        if not self._jobs.healthy:
            raise StoreError("jobs cannot be taken now")

    async def _submit_json(
        self, request: web.Request, query: ListenQuery, caller: Principal, key: str
    ) -> web.StreamResponse:
        said = await self._intake.json(request)
        if isinstance(said, list):
            return _accepted_many(await self._submit_many(said, query, caller, key))
        if isinstance(said, dict) and "jobs" in said:
            raise BadField("jobs", "send the array of jobs as the body itself")
        wanted = _by_url(said, query)
        job = self.make(wanted, caller, key=key)
        await self._intake.check(caller, wanted)
        return accepted(await self.submit(job, key=key))

    async def _submit_many(
        self, said: list[Any], query: ListenQuery, caller: Principal, key: str
    ) -> list[Job]:
        most = self._config.jobs.most_in_request
        if not 0 < len(said) <= most:
            raise Refused(
                Refusal(400, "INVALID_FIELD", f"The array: 1 to {most} jobs are taken in a request.")
            )
        jobs: list[Job] = []
        errors: list[Wrong] = []
        ids: set[str] = set()
        for index, one in enumerate(said):
            if index % SLICE == 0:
                await asyncio.sleep(0)
            try:
                wanted = _by_url(one, query)
                if wanted.id in ids:
                    raise BadField("id", "is another job's in this request")
                ids |= {wanted.id} if wanted.id else set()
                jobs.append(self.make(wanted, caller, key=key, place=index))
            except BadField as exc:
                errors.append(Wrong(index, exc.field, str(exc)))
        if not errors:
            errors = await self._judged(caller, jobs)
        if errors:
            first = f"{len(errors)} of {len(said)} jobs are wrong; [{errors[0].index}] {errors[0].message}"
            raise Refused(Refusal(400, "INVALID_JOBS", first), errors)
        if key and await self.knows(caller, key, len(jobs)):
            raise Refused(OTHER_REQUEST)  # there were more
        return await self._written(jobs, key)

    async def knows(self, caller: Principal, key: str, place: int = 0) -> bool:
        """Whether a request of that key became a job, or that many and more. Raises StoreError."""
        return await self._jobs.exists(_id_of(caller, key, place))

    async def submit(
        self, job: Job, file: SpoolFile | None = None, media_type: str = "", key: str = ""
    ) -> Job:
        """Accepts a job whose addresses are judged, with its audio if any. Raises Refused, StoreError.

        `key` is what it was made with.
        """
        if file is None:
            return (await self._written([job], key))[0]
        # The same id with the same audio has the same name, which is how it is known to be the same request.
        name = f"{hashlib.blake2b(job.id.encode(), digest_size=16).hexdigest()}.{(await file.digest()).hex()}"
        job = msgspec.structs.replace(job, spooled=name, media_type=media_type, size_bytes=file.size)
        try:
            await self._spool.keep(file, name)
        except FileExistsError:
            return (await self._written([job], key))[0]
        try:
            [written] = await self._written([job], key)
        except Refused:
            if not await self._jobs.needs(name):  # nor has another, that came at the same moment
                await self._spool.delete(name)
            raise  # whatever else is raised, the row may yet be committed: what has none is swept
        if written is not job and written.ended_at:  # it came before, and has no use for audio any more
            await self._spool.delete(name)
        return written

    def make(
        self,
        wanted: TranscribeRequest,
        caller: Principal,
        route: JobRoute = "async",
        reason: str = "submitted as a job",
        *,
        key: str = "",
        place: int = 0,
    ) -> Job:
        """A job that is not submitted yet.

        A request with an `Idempotency-Key` makes the same ids again, by the `place` of each job in it: so the
        row, which no two jobs share, keeps it from being done twice, for as long as the job is kept.
        """
        if key and wanted.id:
            raise BadField("id", "is said beside an Idempotency-Key, which stands for one")
        now = self._clock()
        return Job(
            id=wanted.id or (_id_of(caller, key, place) if key else self._new_id()),
            principal=caller.id,
            priority=wanted.priority,
            query=wanted.query,
            url=wanted.url,
            duration=wanted.duration,
            route=route,
            reason=reason,
            callback=wanted.callback,
            metadata=wanted.metadata,
            stored=wanted.store,
            max_attempts=self._jobs.worker.pools.attempts,
            run_at=now,
            created_at=now,
        )

    async def _judged(self, caller: Principal, jobs: Sequence[Job]) -> list[Wrong]:
        """What is wrong with the addresses in `jobs`; each is looked at once."""
        fields = ("url", "callback")
        named = [(n, field, getattr(job, field)) for n, job in enumerate(jobs) for field in fields]
        asked = dict.fromkeys((field, address) for _, field, address in named if address)
        judging: list[asyncio.Task[str]] = []
        try:
            for number, one in enumerate(asked):
                if number % SLICE == 0:
                    await asyncio.sleep(0)
                judging.append(asyncio.create_task(self._intake.problem(caller, *one)))
            found = await asyncio.gather(*judging)
        finally:
            for task in judging:
                task.cancel()
        problems = dict(zip(asked, found, strict=True))
        return [
            Wrong(index, field, f"{field}: {problem}")
            for index, field, address in named
            if (problem := problems.get((field, address)))
        ]

    async def _written(self, jobs: Sequence[Job], key: str) -> list[Job]:
        try:
            return await self._jobs.submit(jobs)
        except StoreConflict as exc:
            if key:
                raise Refused(OTHER_REQUEST) from None
            raise Refused(Refusal(409, "JOB_EXISTS", f"id: {exc} is the id of another job.")) from None

    async def _found(self, request: web.Request, caller: Principal) -> Job:
        job = await self._jobs.get(asked_id(request), caller.id)
        if job is None:
            raise Refused(Refusal(404, "NOT_FOUND", f"id: there is no job {request.match_info['id'][:128]}."))
        return job


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    if text not in STATES:
        raise BadField("state", f"one of {', '.join(STATES)} is needed")
    return text


def _id_of(caller: Principal, key: str, place: int) -> str:
    return hashlib.blake2b(msgspec.msgpack.encode((caller, key, place)), digest_size=16).hexdigest()


def _event_id(job: Job) -> str:
    return f"{job.attempts}-{job.state}"


def accepted(job: Job) -> web.Response:
    """A job that was taken, and where to look for it."""
    return json_answer(document(job), 202, {"Location": f"/v1/jobs/{job.id}"})


def _a_job(wanted: TranscribeRequest) -> TranscribeRequest:
    if wanted.mode not in ("auto", "async"):
        raise BadField("mode", f"a job is async; for {wanted.mode} there is /v1/transcribe")
    return wanted


def _by_url(said: Any, query: ListenQuery) -> TranscribeRequest:
    if not isinstance(said, dict):
        raise BadField("job", "an object with a url is needed")
    wanted = _a_job(read(said, query))
    if not wanted.url:
        raise BadField("url", "is needed where no audio is sent")
    return wanted


def _accepted_many(jobs: Sequence[Job]) -> web.Response:
    return json_answer(JobPage([document(job) for job in jobs]), 202)
