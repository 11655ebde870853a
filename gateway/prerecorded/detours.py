"""Jobs that are not asked for in one go: Deepgram calls back, or gets the audio in parts.

A request that Deepgram answered 504 is too long for one go and is never made again as it was. The row says so
before anything else happens (`route`), so that no later attempt forgets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator
from typing import Any, BinaryIO, Final, Literal, cast
from urllib.parse import quote

import msgspec

from gateway.config import Config
from gateway.deepgram.headers import Pairs
from gateway.deepgram.query import ListenQuery
from gateway.prerecorded import split
from gateway.prerecorded.pools import Pools
from gateway.prerecorded.receiver import Receiver
from gateway.prerecorded.split import Samples, Unsplittable
from gateway.prerecorded.spool import Spool, SpoolFile
from gateway.prerecorded.transcriber import Answer, Remote, Request, Transcriber
from gateway.prerecorded.work import TOO_LONG, Again, Done, Failed, Outcome, Waiting, judged
from gateway.store import jobs as rows
from gateway.store.job import Job, JobError
from gateway.store.store import Store

MOST_DECODED: Final = 4_294_967_296
"""Bytes of 16-bit samples: 37 hours of mono."""
READ_BYTES: Final = 1_048_576
_FORMAT: Final = ("encoding", "sample_rate", "channels")


class Detours:
    """`headers` hold the credential."""

    def __init__(
        self,
        transcriber: Transcriber,
        spool: Spool,
        store: Store,
        receiver: Receiver,
        config: Config,
        *,
        headers: Pairs,
        pools: Pools,
    ) -> None:
        self._transcriber = transcriber
        self._spool = spool
        self._store = store
        self._receiver = receiver
        self._config = config
        self._headers = headers
        self._pools = pools

    async def attempt(self, job: Job) -> Outcome:
        """An attempt at a job whose route is no longer, or never was, to ask in one go."""
        return await (self._callback(job) if job.route == "callback" else self._parts(job))

    async def too_long(self, job: Job) -> Outcome:
        """Goes on with an attempt that Deepgram answered 504. Raises StoreError."""
        route = way_out(self._receiver, ListenQuery(job.query), job.spooled is not None)
        reason = f"{job.reason}; too long for one go (Deepgram answered {TOO_LONG})"
        job = msgspec.structs.replace(job, route=route or "parts", reason=reason)
        await self._redirect(job)
        return await self.attempt(job)

    # Deepgram calls back

    async def _callback(self, job: Job) -> Outcome:
        problem = self._receiver.problem
        if problem:
            return Failed(JobError("NO_CALLBACK", f"{problem}."))
        address = self._receiver.address(job)
        await self._redirect(job, address.digest)  # before anything can come there
        query = ListenQuery(job.query).keep(lambda name: name != "callback_method")
        query = query.with_value("callback", quote(address.url, safe=""))
        if job.spooled is None:
            answer = await self._ask(job, Remote.at(job.url or ""), query, "application/json")
        else:
            async with await self._spool.recording(job.spooled) as file:
                answer = await self._ask(job, file, query, job.media_type)
        return Waiting(self._config.callback.wait) if answer.ok else _too_long_or(answer)

    async def _redirect(self, job: Job, awaited: str | None = None) -> None:
        """An attempt that is over already finds that out when it ends."""
        await self._store.write(
            lambda connection: rows.redirect(connection, job, job.route, job.reason, awaited)
        )

    # In parts

    async def _parts(self, job: Job) -> Outcome:
        query = ListenQuery(job.query)
        if job.spooled is None:
            return _stuck("only Deepgram has it: send the recording itself, or set callback.public_url")
        if problem := split.why_not(query):
            return _stuck(problem)
        try:
            async with await self._spool.recording(job.spooled) as recording:
                with await recording.handle() as file:
                    return await self._transcribed(file, job, query)
        except Unsplittable as exc:
            return _stuck(str(exc))

    async def _transcribed(self, file: BinaryIO, job: Job, query: ListenQuery) -> Outcome:
        answers: list[tuple[float, Any]] = []
        asked = query.keep(lambda name: name not in _FORMAT)
        request_id = ""
        async with contextlib.aclosing(self._cut(file, job.size_bytes, query)) as parts:
            async for start, part in parts:
                async with part:
                    # With retries of its own: one that stumbles does not cost those before it.
                    request = self._request(job, part, asked, "audio/wav")
                    answer = await self._transcriber.transcribe(request, self._deadline())
                outcome = _too_long_or(answer)
                if not isinstance(outcome, Done):
                    return (
                        msgspec.structs.replace(outcome, billed=True)
                        if isinstance(outcome, Again)
                        else outcome
                    )
                answers.append((start, msgspec.json.decode(outcome.result)))
                request_id = request_id or outcome.request_id
        whole = await asyncio.to_thread(split.join, answers)
        return Done(msgspec.Raw(msgspec.json.encode(whole)), request_id, whole["metadata"]["duration"])

    async def _cut(
        self, file: BinaryIO, size: int, query: ListenQuery
    ) -> AsyncGenerator[tuple[float, SpoolFile], None]:
        """Each part as a WAV file of its own, with the second at which it starts. Raises Unsplittable."""
        samples = await self._spool.run(split.find_samples, file, size, query)
        if samples is None:
            with cast(BinaryIO, tempfile.TemporaryFile(dir=self._spool.folder)) as decoded:
                samples = await self._spool.run(split.decode, file, _Bounded(decoded, MOST_DECODED))
                async for one in self._files(decoded, samples):
                    yield one
        else:
            async for one in self._files(file, samples):
                yield one

    async def _files(self, file: BinaryIO, samples: Samples) -> AsyncGenerator[tuple[float, SpoolFile], None]:
        cuts = split.parts(file, samples, self._config.prerecorded.part_seconds)
        while (part := await self._spool.run(next, cuts, None)) is not None:
            header = samples.header(part.size)
            cut = self._spool.open(len(header) + part.size)
            try:
                await cut.write(header)
                for at in range(0, part.size, READ_BYTES):
                    await cut.write(
                        await self._spool.run(_read, file, part.begin + at, min(READ_BYTES, part.size - at))
                    )
                cut.finish()
            except BaseException:
                cut.close()
                raise
            yield part.start, cut

    # Both

    async def _ask(
        self, job: Job, recording: SpoolFile | Remote, query: ListenQuery, media_type: str
    ) -> Answer:
        request = self._request(job, recording, query, media_type)
        return await self._transcriber.once(request, self._deadline())

    def _request(
        self, job: Job, recording: SpoolFile | Remote, query: ListenQuery, media_type: str
    ) -> Request:
        headers = [*self._headers, ("content-type", media_type)]
        return Request(recording, query, headers, self._pools.turn(job))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._config.jobs.attempt_timeout


def way_out(receiver: Receiver, query: ListenQuery, have_audio: bool) -> Literal["callback", "parts"] | None:
    """How to get a transcript of what is too long for one go; None if there is no way."""
    if receiver.problem is None:
        return "callback"
    return "parts" if have_audio and split.why_not(query) is None else None


def _too_long_or(answer: Answer) -> Outcome:
    if answer.status == TOO_LONG:
        return Failed(JobError("TOO_LONG", "Deepgram answered 504 even so.", TOO_LONG))
    return judged(answer)


def _stuck(why: str) -> Failed:
    text = f"Deepgram could not transcribe this recording in one go (HTTP {TOO_LONG}), and {why}."
    return Failed(JobError("TOO_LONG", text, TOO_LONG))


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


class _Bounded:
    """A file that takes only so much: what an hour's upload decodes to may be more than a disk has."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._left = most

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise Unsplittable("it is longer than can be decoded here")
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()
