"""A streaming client that outlives its connection to a gateway (docs/resume.md).

url = listen_url("http://127.0.0.1:8080", {"model": "nova-3"}, source)
stream = ResumingStream(url, source.frames(0.05), key=None)
async for message in stream.messages():
    ...
print(stream.close_code)

A microphone is any async iterator of `bytes`; `listen_url` is then told its encoding and sample rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import backoff
from websockets.exceptions import ConnectionClosed

from gateway.audio.clock import PACKETS, from_parameters
from gateway.client.connection import Connection, deepgrams, dial, host_of
from gateway.client.messages import Event, Reader, Result
from gateway.client.resume import ResumeState
from gateway.deepgram.listen import ListenV1, ListenV2
from gateway.deepgram.recogniser import Recogniser
from gateway.errors import SessionLost, UpstreamError, UpstreamRejected, UpstreamUnavailable

KEEPALIVE_EVERY: Final = 4.0
"""Seconds without audio after which the server is told that we are still there; it closes after 10."""
ANSWER_TIMEOUT: Final = 10.0
"""Seconds for the gateway's first message."""
PROVEN_AFTER: Final = 1.0
"""Seconds after which a connection that still talks is worth an immediate retry when it breaks."""
FIRST_CEILING: Final = 0.5
LAST_CEILING: Final = 10.0
"""Seconds of the shortest and the longest wait before a retry, jitter aside."""
_ENDED: Final = (1000, 1005)
_STAY_AWAY: Final = {
    1002: "protocol error",
    1003: "unsupported data",
    1007: "invalid data",
    1008: "policy violation",
    1009: "message too big",
    4409: "another connection has taken the session",
    4500: "what was sent is not in the protocol of docs/resume.md",
    4501: "the token is wrong",
}


class ResumingStream:
    """One session: sends `audio`, then CloseStream, reads to the end, over as many connections as it takes.

    Audio without a final result is kept and sent again where the gateway asks for it. Beyond `keep_bytes`
    the oldest is dropped and declared as a gap: `dropped_seconds`. A connection on which nothing comes for
    `silence` seconds, not even a pong, is given up; after `patience` seconds without any, so is the stream.

    `audio_seconds` counts what was sent, once; `complete` says that it was all of it; `close_code` and
    `close_reason` are the server's last, 1006 without any.
    """

    def __init__(
        self,
        url: str,
        audio: AsyncIterable[bytes],
        *,
        key: str | None,
        keep_bytes: int = 16 * 1024 * 1024,
        patience: float = 300.0,
        silence: float = 10.0,
    ) -> None:
        self.close_code = 1006
        self.close_reason = ""
        self._url = url
        self._audio = audio
        self._key = key
        self._patience = patience
        self._silence = silence
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        clock = from_parameters(query.get("encoding"), query.get("sample_rate"), query.get("channels"))
        self._clock = clock or PACKETS
        flux = urlsplit(url).path.endswith(ListenV2.path)
        self._recogniser: Recogniser = ListenV2() if flux else ListenV1()
        self._state = ResumeState(self._clock, self._recogniser, keep_bytes)
        self._reader = Reader(0.0)
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._waits = _waits()
        self._opened_at = 0.0
        self._socket: Connection | None = None
        self._sending: asyncio.Task[None] | None = None

    @property
    def audio_seconds(self) -> float:
        return self._clock.seconds(self._state.at)

    @property
    def complete(self) -> bool:
        return self._state.sent_all and not self._state.gaps and not self._failure

    @property
    def dropped_seconds(self) -> float:
        return sum(self._clock.seconds(stop - start) for start, stop in self._state.gaps)

    async def messages(self) -> AsyncGenerator[Result | Event, None]:
        """Results and events on one clock, each once; `ConnectionLost` and `ConnectionResumed` are our own.

        Raises `UpstreamError` when the first connection fails, when `patience` is over, or when coming back
        would not help (`SessionLost`); and at the end what `audio` raised, if it did.
        """
        loop = asyncio.get_running_loop()
        self._reader = Reader(loop.time())
        gathering = asyncio.create_task(self._gather())
        try:
            await self._connect()
            while True:
                while (raw := await self._next()) is not None:
                    if message := self._read(raw):
                        yield message
                lost_at = loop.time()
                await self._stop()
                if self._is_over():
                    break
                yield self._event("ConnectionLost", code=self.close_code, reason=self.close_reason)
                recovered = await self._reconnect(lost_at + self._patience)
                away = round(loop.time() - lost_at, 3)
                yield self._event("ConnectionResumed", recovered=recovered, seconds=away)
        finally:
            gathering.cancel()
            if self._socket:
                await self._socket.close()  # 1000: we won't come back
            await self._stop()
            await asyncio.wait([gathering])
        if self._failure:
            raise self._failure

    # The connection

    async def _connect(self) -> bool:
        """Dials and says who we are; True if the session goes on. Raises `UpstreamError`."""
        state, host = self._state, host_of(self._url)
        tail = f"{'&' if '?' in self._url else '?'}gw_resume={state.session or 1}"
        socket = await dial(
            self._url + tail, self._key, ping_interval=self._silence / 3, ping_timeout=None, close_timeout=2.0
        )
        self._socket = socket
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                if request := state.request():
                    await socket.send(request)
                recovered = state.welcome(await socket.recv(decode=False))
        except TimeoutError:
            raise UpstreamUnavailable(f"{host} has no answer to gw_resume: is it a gateway?") from None
        except ConnectionClosed as closed:
            self._closed(closed)
            self._is_over()
            raise UpstreamUnavailable(f"{host} closed with {self.close_code} {self.close_reason}") from None
        self._opened_at = asyncio.get_running_loop().time()
        self._sending = asyncio.create_task(self._send(socket))
        return recovered

    async def _reconnect(self, deadline: float) -> bool:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(next(self._waits))
            try:
                return await self._connect()
            except UpstreamError as error:
                await self._stop()
                if not error.retryable or loop.time() > deadline:
                    raise
                await asyncio.sleep(min(_retry_after(error), deadline - loop.time()))

    async def _next(self) -> bytes | None:
        """The next message; None when the connection is over, for any reason."""
        socket = self._socket
        assert socket
        while True:
            heard = socket.heard
            try:
                async with asyncio.timeout(self._silence):
                    raw = await socket.recv(decode=False)
            except ConnectionClosed as closed:
                self._closed(closed)
                return None
            except TimeoutError:
                if socket.heard > heard:
                    continue
                self.close_code, self.close_reason = 1006, f"nothing came for {self._silence:g} s"
                return None
            if asyncio.get_running_loop().time() - self._opened_at > PROVEN_AFTER:
                self._waits = _waits()
            return raw

    def _closed(self, closed: ConnectionClosed) -> None:
        self.close_code, self.close_reason = 1006, ""
        if closed.rcvd:
            self.close_code, self.close_reason = closed.rcvd.code, closed.rcvd.reason

    def _is_over(self) -> bool:
        """Whether the session ended as it should. Raises `SessionLost` when it may not be gone on with."""
        code = self.close_code
        if code == 1006 and self._state.said_all:
            self.close_code = 1000
        elif code in _STAY_AWAY or 3500 <= code < 4000 or 4500 <= code < 5000:
            why = self.close_reason or _STAY_AWAY.get(code, "")
            raise SessionLost(f"{host_of(self._url)} closed the session with {code}: {why}")
        return self.close_code in _ENDED

    async def _stop(self) -> None:
        """Leaves the connection without a word. Raises what made its sender stop."""
        if self._socket:
            self._socket.transport.abort()
            await self._socket.wait_closed()
        if self._sending:
            sending, self._sending = self._sending, None
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.result()

    # What goes up

    async def _gather(self) -> None:
        """Takes audio at its own pace, connected or not."""
        loop = asyncio.get_running_loop()
        try:
            async for data in self._audio:
                self._state.append(data)
                self._reader.sent(self._clock.seconds(self._state.end), loop.time())
                self._wake.set()
        except Exception as error:  # the caller's; told once everything before it has been heard
            self._failure = error
        self._state.finish()
        self._wake.set()

    async def _send(self, socket: Connection) -> None:
        try:
            while True:
                self._wake.clear()
                while (message := self._state.next_to_send()) is not None:
                    await socket.send(message)
                if self._state.sent_all:
                    return
                try:
                    async with asyncio.timeout(KEEPALIVE_EVERY):
                        await self._wake.wait()
                except TimeoutError:
                    if keepalive := self._recogniser.keepalive:
                        await socket.send(keepalive)
        except ConnectionClosed:
            return  # the reader sees it too, and knows the code
        except SessionLost:
            socket.transport.abort()  # ends the reader; `_stop` raises it
            raise

    # What comes down

    def _read(self, raw: bytes) -> Result | Event | None:
        with deepgrams(self._url):
            body = self._state.heard(raw)
            return self._reader.read(body, asyncio.get_running_loop().time()) if body else None

    def _event(self, name: str, **said: Any) -> Result | Event:
        return self._reader.read({"type": name, **said}, asyncio.get_running_loop().time())


def _waits() -> Iterator[float]:
    """Seconds before each try: none, then full jitter below ceilings that double."""
    yield 0.0
    ceilings = backoff.expo(base=2, factor=FIRST_CEILING, max_value=LAST_CEILING)
    next(ceilings)  # the generator's first value is for the caller's `send`
    for ceiling in ceilings:
        yield backoff.full_jitter(ceiling)


def _retry_after(error: UpstreamError) -> float:
    """Seconds that an HTTP refusal asks for."""
    headers = error.headers if isinstance(error, UpstreamRejected) else []
    said = [value for name, value in headers if name.lower() == "retry-after" and value.isdigit()]
    return float(said[0]) if said else 0.0
