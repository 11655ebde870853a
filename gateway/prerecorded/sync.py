"""The synchronous route: a recording comes, goes on to Deepgram while it comes, and its answer goes back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec

from gateway.auth import Principal
from gateway.config import PrerecordedConfig
from gateway.deepgram.errors import Refusal, error_text
from gateway.deepgram.headers import Pairs
from gateway.deepgram.query import ListenQuery
from gateway.errors import UpstreamError
from gateway.metrics import Metrics
from gateway.prerecorded.copies import Copies, Identity
from gateway.prerecorded.spool import Spool, SpoolFile, SpoolFull
from gateway.prerecorded.transcriber import Answer, Remote, Request, Transcriber
from gateway.prerecorded.upload import Body, UploadRefused, take
from gateway.session.protocol import OWN_CREDENTIAL

CREDENTIAL_ALARMS: Final = {
    401: "upstream.credential_refused",
    402: "upstream.credit_exhausted",
    403: "upstream.model_forbidden",
}
"""What the operator must mend: the key, the account, or what the project may use."""
IN_USE: Final = Refusal(
    409,
    "IDEMPOTENCY_KEY_IN_USE",
    "Idempotency-Key: the request that it came with is not answered yet.",
    retry_after=1,
)
_DECISIVE_HEADERS: Final = ("authorization", "content-type")


class Order(NamedTuple):
    """What a caller asks for. `idempotency_key`: the caller's own word for this very request, or nothing."""

    principal: Principal
    query: ListenQuery
    headers: Pairs
    idempotency_key: str = ""

    def identity(self, recording: bytes) -> Identity:
        """`recording` is the digest of one, or says where it is."""
        decisive = [pair for pair in self.headers if pair[0].lower() in _DECISIVE_HEADERS]
        digest = _digest(self.principal, self.query.raw, decisive, self.idempotency_key, recording)
        if not self.idempotency_key:
            return Identity(digest, digest)
        credential = [value for name, value in decisive if name.lower() == "authorization"]
        return Identity(_digest(self.principal, credential, self.idempotency_key), digest)


OnResult = Callable[[Order, Answer], None]
"""Told of each transcription that Deepgram gave us, once, before its client is; must not wait or raise."""


class Sync:
    """`on_result` may be set by whoever keeps results."""

    def __init__(
        self,
        config: PrerecordedConfig,
        *,
        spool: Spool,
        transcriber: Transcriber,
        metrics: Metrics,
        log: Any,
        own_credential: bool,
    ) -> None:
        """`own_credential`: Deepgram sees the gateway's key, so what it says of that is no client's."""
        self.on_result: OnResult | None = None
        self._config = config
        self._spool = spool
        self._transcriber = transcriber
        self._metrics = metrics
        self._log = log
        self._own_credential = own_credential
        self._copies = Copies(config.copies)
        self._running: set[asyncio.Task[Answer]] = set()

    async def close(self) -> None:
        """Gives up what nobody waits for any more."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def fetch(self, order: Order, remote: Remote) -> Answer:
        """The answer for a recording that Deepgram fetches. Raises UpstreamError, UploadRefused."""
        request = order.identity(remote.body)
        shared = self._copies.find(request)
        if shared is None:
            shared = self._copies.add(request, self._start(order, remote))
        else:
            self._metrics.upload_copies += 1
        return await self._copies.wait(shared)

    async def send(self, order: Order, recording: SpoolFile | Remote, seconds: float) -> Answer:
        """The answer for a recording that is all here and stays its caller's. Raises UpstreamError.

        After so many seconds that is UpstreamTimeout. Copies are looked for by their name only; one that
        comes while the first is under way is refused (UploadRefused), since that may end with its caller.
        """
        if not order.idempotency_key:
            return await self._start(order, recording, seconds, is_lent=True)
        request = order.identity(await _told(recording))
        answer = self._answered(request)
        if answer is None:
            asking = self._start(order, recording, seconds, is_lent=True)
            answer = await self._copies.add(request, asking).task
        return answer

    async def again(self, order: Order, recording: SpoolFile | Remote) -> Answer | None:
        """What the same request was answered before, if it has a name and was. Raises UploadRefused."""
        return self._answered(order.identity(await _told(recording))) if order.idempotency_key else None

    async def upload(self, order: Order, body: Body, declared: int | None) -> Answer:
        """The answer for a recording that comes as `body`, of `declared` bytes if that is said.

        It may come before the whole recording has. Raises UpstreamError, UploadRefused, SpoolFull.
        """
        config, file = self._config, self._spool.open(declared)
        asking = self._start(order, file)
        taking = asyncio.create_task(
            take(body, file, limit=config.max_sync_bytes, min_rate=config.min_upload_rate)
        )
        is_shared = False
        try:
            await asyncio.wait({taking, asking}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            taking.result()
            request = order.identity(await file.digest())
            shared = self._copies.find(request)
            if shared is None:
                file.finish()
                shared, is_shared = self._copies.add(request, asking), True
            else:
                self._metrics.upload_copies += 1
                self._running.discard(asking)
                asking.cancel()  # now: it has a place at Deepgram
            return await self._copies.wait(shared)
        except (UploadRefused, SpoolFull):
            self._running.discard(asking)
            raise
        finally:
            self._metrics.upload_bytes += file.size
            await _end(taking)
            if not is_shared:
                await _end(asking)

    def _answered(self, request: Identity) -> Answer | None:
        shared = self._copies.find(request)
        if shared is None:
            return None
        if not shared.task.done():
            raise UploadRefused("key_in_use", IN_USE)
        self._metrics.upload_copies += 1
        return shared.task.result()

    def _start(
        self,
        order: Order,
        recording: SpoolFile | Remote,
        seconds: float | None = None,
        *,
        is_lent: bool = False,
    ) -> asyncio.Task[Answer]:
        task = asyncio.create_task(self._ask(order, recording, seconds or self._config.deadline))
        self._running.add(task)
        own = None if is_lent or isinstance(recording, Remote) else recording
        task.add_done_callback(lambda _: self._ended(task, order, own))
        return task

    def _ended(self, task: asyncio.Task[Answer], order: Order, own: SpoolFile | None) -> None:
        if own is not None:
            own.close()
        if task in self._running:  # else it was another's copy, or no request that can be answered
            self._running.discard(task)
            self._count(task, order)

    def _count(self, task: asyncio.Task[Answer], order: Order) -> None:
        outcome, region = "abandoned", ""
        if not task.cancelled():
            outcome = "failed"
            if task.exception() is None:
                region, status = task.result().region, task.result().status
                outcome = "completed" if status < 300 else "failed" if status >= 500 else "refused"
        self._metrics.transcription_ended(outcome, order.query.get("model"), region)

    async def _ask(self, order: Order, recording: SpoolFile | Remote, seconds: float) -> Answer:
        loop = asyncio.get_running_loop()
        began = loop.time()
        request = Request(recording, order.query, order.headers)
        try:
            answer = await self._transcriber.transcribe(request, began + seconds)
        except UpstreamError as exc:
            self._log.warning("recording.failed", error=str(exc))
            raise
        if answer.ok:
            whole_at = recording.finished_at if isinstance(recording, SpoolFile) else began
            self._metrics.latency_of(order.query.get("model")).observe(loop.time() - whole_at)
            if self.on_result is not None:
                self.on_result(order, answer)
        elif self._own_credential and answer.status in CREDENTIAL_ALARMS:
            name, text = CREDENTIAL_ALARMS[answer.status], error_text(answer.body)
            self._log.critical(name, status=answer.status, text=text, region=answer.region)
            answer = _hidden(answer)
        return answer


def _digest(*said: Any) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode(said), digest_size=20).digest()


async def _told(recording: SpoolFile | Remote) -> bytes:
    return recording.body if isinstance(recording, Remote) else await recording.digest()


def _hidden(answer: Answer) -> Answer:
    """What a client is told when Deepgram refuses the gateway's key: it can do nothing about that."""
    headers = [
        ("content-type", "application/json"),
        ("dg-request-id", answer.request_id),
        ("dg-error", OWN_CREDENTIAL.message),
        ("retry-after", str(OWN_CREDENTIAL.retry_after)),
    ]
    body = OWN_CREDENTIAL.body(answer.request_id)
    return replace(answer, status=OWN_CREDENTIAL.status, headers=headers, body=body)


async def _end(task: asyncio.Task[Any]) -> None:
    """Its failure, if it has one, is told elsewhere."""
    if task.cancel():
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
