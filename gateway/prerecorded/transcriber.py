"""One recording to Deepgram's `POST /v1/listen`, and what Deepgram says to it, unchanged.

The regions' health here is not that of live calls: a recording that makes Deepgram answer 500 says nothing of
them, and must not make this process unready for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, Final, Self

import aiohttp
import msgspec
from yarl import URL

from gateway.config import DeepgramConfig, RegionConfig
from gateway.deepgram.headers import Pairs, relayed
from gateway.deepgram.query import ListenQuery
from gateway.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from gateway.metrics import Metrics, answer_label
from gateway.policy.backoff import Backoff
from gateway.policy.regions import Regions
from gateway.prerecorded.pools import Turn
from gateway.prerecorded.spool import SpoolFile

MAX_ANSWER_BYTES: Final = 134_217_728
"""Of one answer; ten hours of speech with every feature are some 30 MB."""
BACKOFF_BASE: Final = 0.5
BACKOFF_CAP: Final = 8.0


@dataclass(frozen=True, slots=True)
class Remote:
    """A recording that Deepgram fetches; `body` is the JSON that says so, as its sender wrote it."""

    body: bytes

    @classmethod
    def at(cls, url: str) -> Self:
        return cls(msgspec.json.encode({"url": url}))


@dataclass(frozen=True, slots=True)
class Request:
    """What goes to Deepgram: `query` with or without our own parameters, `headers` with the credential.

    `turn`: of a job, where each region is a pool for jobs.
    """

    recording: SpoolFile | Remote
    query: ListenQuery
    headers: Pairs
    turn: Turn | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What Deepgram said. `headers` are those that clients get; `retry_after` is in seconds, None unsaid."""

    status: int
    headers: Pairs
    body: bytes
    request_id: str
    region: str
    attempts: int = 1
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def retryable(self) -> bool:
        """Whether the same request may fare better later; a 504 says that it is too long for one go."""
        return self.status in (408, 429) or (self.status >= 500 and self.status != 504)


class Transcriber:
    """`async with Transcriber(...)`: the connections to Deepgram for recordings, shared by all requests."""

    def __init__(
        self,
        config: DeepgramConfig,
        *,
        attempts: int,
        tls: ssl.SSLContext | None,
        metrics: Metrics,
        log: Any,
        random: Callable[[], float],
    ) -> None:
        """`tls` as `Dialer.tls` has it; `random` gives floats in [0, 1)."""
        self._config = config
        self._attempts = attempts
        self._tls = tls
        self._metrics = metrics
        self._log = log
        self._random = random
        self._regions = Regions([region.name for region in config.regions])
        self._taken = [0] * len(config.regions)  # places for jobs
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls or True),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._config.dial_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type", "User-Agent"),
            trace_configs=[tracing],
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def transcribe(self, request: Request, deadline: float) -> Answer:
        """Asks until there is an answer that another try would not change, at most `attempts` times.

        `deadline` is on the loop's clock. What is returned may be an error of Deepgram's. Raises
        UpstreamTimeout at the deadline, UpstreamUnavailable when no attempt was answered.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(BACKOFF_BASE, BACKOFF_CAP, self._random)
        attempt = 0
        while True:
            attempt += 1
            answer: Answer | None = None
            error: UpstreamError | None = None
            try:
                answer = replace(await self.once(request, deadline), attempts=attempt)
            except UpstreamTimeout:
                raise
            except UpstreamError as exc:
                error = exc
            now = loop.time()
            asked = answer.retry_after if answer is not None else None
            pause = max(backoff.delay(now), asked or 0.0)
            is_final = answer is not None and not answer.retryable
            if is_final or attempt >= self._attempts or now + pause >= deadline:
                if answer is not None:
                    return answer
                assert error is not None
                raise error
            await asyncio.sleep(pause)

    async def once(self, request: Request, deadline: float) -> Answer:
        """Asks once, whatever comes of it. Raises UpstreamTimeout and UpstreamUnavailable."""
        with self._region(request.turn) as region:
            answer = await self._asked(region, request, deadline)
        self._metrics.recording_attempts.add(answer_label(answer.status))
        if answer.status >= 500 and answer.status != 504:
            self._failed(region, f"HTTP {answer.status}")
        elif answer.ok:
            self._regions.worked(region.name)
        return answer

    @contextlib.contextmanager
    def _region(self, turn: Turn | None) -> Iterator[RegionConfig]:
        """The one to be asked; with a place there, of those for jobs, as long as that goes on."""
        now, regions = asyncio.get_running_loop().time(), self._config.regions
        if turn is None:
            yield regions[self._regions.choose(now)]
            return
        order = [*range(turn.first, len(regions)), *range(turn.first)]
        free = [index for index in order if self._taken[index] < turn.places]  # a worker has as many jobs
        chosen = self._regions.choose(now, free or order)
        self._taken[chosen] += 1
        try:
            yield regions[chosen]
        finally:
            self._taken[chosen] -= 1

    async def _asked(self, region: RegionConfig, request: Request, deadline: float) -> Answer:
        context = SimpleNamespace(reused=False)
        limit = asyncio.timeout_at(deadline)
        try:
            async with limit:
                return await self._ask(region, request, context)
        except TimeoutError as exc:
            # Not by the clock: uvloop's timers may be a millisecond early.
            if not limit.expired():  # aiohttp's, of the connection
                raise self._unreachable(region, f"no connection in {self._config.dial_timeout:g} s") from exc
            self._metrics.recording_attempts.add("timeout")
            raise UpstreamTimeout("no answer before the deadline") from None
        except (aiohttp.ClientError, OSError) as exc:
            # A kept connection that was closed meanwhile is nobody's fault.
            raise self._unreachable(
                None if context.reused else region, str(exc) or type(exc).__name__
            ) from exc

    def _unreachable(self, region: RegionConfig | None, why: str) -> UpstreamUnavailable:
        self._metrics.recording_attempts.add("unavailable")
        if region is not None:
            self._failed(region, why)
        return UpstreamUnavailable(why)

    def _failed(self, region: RegionConfig, why: str) -> None:
        self._regions.failed(region.name, asyncio.get_running_loop().time())
        self._log.warning("recording.upstream_failed", region=region.name, error=why)

    async def _ask(self, region: RegionConfig, request: Request, context: SimpleNamespace) -> Answer:
        assert self._session is not None, "use `async with` first"
        recording, headers = request.recording, request.headers
        data: bytes | AsyncIterator[bytes]
        if isinstance(recording, Remote):
            data = recording.body
        else:
            data = recording.chunks()
            if recording.length is not None:
                headers = [*headers, ("Content-Length", str(recording.length))]
        query = request.query.for_deepgram().raw
        self._metrics.deepgram_connections += 1
        try:
            async with self._session.post(
                URL(region.url.rstrip("/") + "/v1/listen" + (f"?{query}" if query else ""), encoded=True),
                data=data,
                headers=headers,
                allow_redirects=False,
                proxy=self._config.proxy or None,
                trace_request_ctx=context,
            ) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > MAX_ANSWER_BYTES:
                        raise UpstreamUnavailable(f"Deepgram's answer is above {MAX_ANSWER_BYTES} bytes")
                return _answer(response, bytes(body), region.name)
        finally:
            self._metrics.deepgram_connections -= 1


async def _note_reuse(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.reused = True


def _answer(response: aiohttp.ClientResponse, body: bytes, region: str) -> Answer:
    headers = response.headers
    return Answer(
        response.status,
        relayed(headers.items()),
        body,
        headers.get("dg-request-id", ""),
        region,
        retry_after=_retry_after(headers),
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """RFC 9110 §10.2.3: seconds, or a date, which is measured by the clock of whoever sent it."""
    said = headers.get("Retry-After", "")
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        then, now = parsedate_to_datetime(said), parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError):
        return None
