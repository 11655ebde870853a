"""One attempt at a job, and what its outcome makes of the job.

Deepgram's answers are judged by status: what cannot come out differently next time (400, 401, 402, 413,
audio that is none) fails at once, the rest is tried again. A 504 says that the request is too long for
one go, so it is never repeated as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from gateway.deepgram.errors import error_text
from gateway.deepgram.query import ListenQuery
from gateway.errors import UpstreamError
from gateway.prerecorded.pools import Pools
from gateway.prerecorded.spool import Spool, SpoolDown, SpoolFull
from gateway.prerecorded.transcriber import Answer, Remote, Request, Transcriber
from gateway.store.job import Job, JobError

TOO_LONG: Final = 504
LONGEST_WAIT: Final = 3600.0
"""Seconds between two attempts at most, whatever a `Retry-After` asks for."""
JITTER: Final = 0.2
"""How far from its nominal length a wait may be, either way: jobs that failed together come back apart."""


class Done(msgspec.Struct, frozen=True):
    """Deepgram's response as it came."""

    result: msgspec.Raw
    request_id: str = ""
    duration: float | None = None


class Again(msgspec.Struct, frozen=True):
    """It may work later, not sooner than in `after` seconds; `billed` if Deepgram may have done it anyway."""

    error: JobError
    after: float = 0.0
    billed: bool = True


class Failed(msgspec.Struct, frozen=True):
    """It would fail the same way again."""

    error: JobError


class Waiting(msgspec.Struct, frozen=True):
    """Deepgram has it, and is going to call back within so many `seconds`."""

    seconds: float


Outcome = Done | Again | Failed | Waiting
Attempt = Callable[[Job], Awaitable[Outcome]]

LOST: Final = Again(JobError("WORKER_LOST", "The worker that ran this job is gone."))
NO_CALLBACK: Final = Again(JobError("NO_CALLBACK", "Deepgram's callback has not come in time."))
LATE: Final = Again(JobError("TIMEOUT", "The attempt took longer than jobs.attempt_timeout."))


class _Metadata(msgspec.Struct, frozen=True):
    duration: float | None = None


class _Response(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


async def give_up(_job: Job) -> Outcome:
    """What becomes of a job that is too long where nothing else can be done."""
    text = "Deepgram could not transcribe this recording in one go (HTTP 504): send it in parts."
    return Failed(JobError("TOO_LONG", text, TOO_LONG))


class Work:
    """Attempts at jobs. `headers` hold the credential.

    `too_long` goes on with those that Deepgram answered 504, `detour` with those that go another way.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        spool: Spool,
        *,
        headers: list[tuple[str, str]],
        timeout: float,
        pools: Pools,
        too_long: Attempt = give_up,
        detour: Attempt = give_up,
    ) -> None:
        self._transcriber = transcriber
        self._spool = spool
        self._headers = headers
        self._timeout = timeout
        self._pools = pools
        self._too_long = too_long
        self._detour = detour

    async def attempt(self, job: Job) -> Outcome:
        """Asks Deepgram once, unless the job goes another way."""
        try:
            return await (self._in_one_go(job) if job.route == "async" else self._detour(job))
        except FileNotFoundError:
            return Failed(JobError("AUDIO_GONE", "The job's audio is not in the spool of this host."))
        except (SpoolDown, SpoolFull) as exc:
            return Again(JobError("NO_SPOOL", f"The job's audio cannot be had now: {exc}"), billed=False)
        except UpstreamError as exc:
            return Again(JobError("UNREACHABLE", f"Deepgram has not answered: {exc}"))

    async def _in_one_go(self, job: Job) -> Outcome:
        deadline = asyncio.get_running_loop().time() + self._timeout
        if job.spooled is None:
            answer = await self._ask(job, Remote.at(job.url or ""), "application/json", deadline)
        else:
            async with await self._spool.recording(job.spooled) as file:
                answer = await self._ask(job, file, job.media_type, deadline)
        return await self._too_long(job) if answer.status == TOO_LONG else judged(answer)

    async def _ask(self, job: Job, recording: Any, media_type: str, deadline: float) -> Answer:
        headers = [*self._headers, ("content-type", media_type)]
        request = Request(recording, ListenQuery(job.query), headers, self._pools.turn(job))
        return await self._transcriber.once(request, deadline)


def judged(answer: Answer) -> Outcome:
    """What any answer of Deepgram's but a 504 means for a job."""
    if answer.ok:
        try:
            response = msgspec.json.decode(answer.body, type=_Response)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            text = "Deepgram's response was cut short or is no JSON."
            return Again(JobError("BAD_RESPONSE", text, answer.status))
        return Done(msgspec.Raw(answer.body), answer.request_id, response.metadata.duration)
    text = error_text(answer.body) or f"Deepgram answered HTTP {answer.status}."
    error = JobError("DEEPGRAM_ERROR", text, answer.status)
    return Again(error, answer.retry_after or 0.0, billed=False) if answer.retryable else Failed(error)


def settled(job: Job, outcome: Outcome, *, now: float, pools: Pools, backoff: float, random: float) -> Job:
    """`job`, which was running, after `outcome`: succeeded, failed, or queued for another attempt.

    `backoff` are the seconds before its second attempt, doubled for each that follows in the same pool;
    `random` is in [0, 1).
    """
    if isinstance(outcome, Waiting):
        return msgspec.structs.replace(job, lease_until=now + outcome.seconds, worker="")
    free = {"lease_until": None, "worker": ""}
    if isinstance(outcome, Done):
        return msgspec.structs.replace(
            job,
            state="succeeded",
            result=outcome.result,
            request_id=outcome.request_id,
            duration=job.duration if outcome.duration is None else outcome.duration,
            error=None,
            ended_at=now,
            **free,
        )
    if isinstance(outcome, Failed) or job.attempts >= job.max_attempts:
        return msgspec.structs.replace(job, state="failed", error=outcome.error, ended_at=now, **free)
    before = (pools.nth(job) - 1) % pools.tries
    nominal = backoff * 2.0**before
    wait = max(nominal * (1 + JITTER * (2 * random - 1)), outcome.after)
    return msgspec.structs.replace(
        job,
        state="queued",
        error=outcome.error,
        run_at=now + min(wait, LONGEST_WAIT),
        reruns=job.reruns + outcome.billed,
        **free,
    )


def put_back(job: Job, *, now: float) -> Job:
    """`job` for another worker to run at once: it was interrupted, which uses up none of its attempts."""
    return msgspec.structs.replace(
        job,
        state="queued",
        max_attempts=job.max_attempts + 1,
        reruns=job.reruns + 1,
        run_at=now,
        lease_until=None,
        worker="",
    )
