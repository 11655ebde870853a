"""One client: speaks its plan in real time, and remembers all it sent and got.

Most own their socket (`Caller`), so that they can do what no library would; those that may come back are
`gateway.client` (`ResumingCaller`), behind a network of their own that breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.client import Event, Result, ResumingStream
from gateway.errors import UpstreamError, UpstreamRejected
from tests.chaos.plan import KEEPALIVE, CallPlan
from tests.fakes.wire_client import BINARY, CLOSE, CONT, PING, PONG, TEXT, WireClient, frame, upgrade

KEEPALIVE_EVERY: Final = 3.0
SILENCE: Final = 3.0
"""Seconds after which a client that may come back takes its network for dead: before the gateway does."""
LONGEST_END: Final = 150.0
"""Seconds after the last byte within which a call must be over."""
CLOSE_STREAM: Final = '{"type":"CloseStream"}'
NONSENSE: Final = '{"type":"Nonsense"}'


@dataclass
class History:
    """What the client knows of its call. Times are seconds since the run began."""

    request_id: str = ""
    continuity: str = ""
    """As the 101 promises it."""
    refused: list[int] = field(default_factory=list)
    sent_bytes: int = 0
    said: list[tuple[float, str]] = field(default_factory=list)
    heard: list[tuple[float, str]] = field(default_factory=list)
    numbered: list[str] = field(default_factory=list)
    """All that came on every connection of a client that may come back, before it took out what it knew."""
    resumes: list[bool] = field(default_factory=list)
    """Whether the session went on."""
    began: float = 0.0
    ended: float = 0.0
    close_code: int = 0
    close_reason: str = ""
    trouble: str = ""

    def said_times(self, text: str) -> int:
        return sum(said == text for _, said in self.said)


class Caller(ABC):
    def __init__(self, plan: CallPlan, address: tuple[str, int], zero: float, seed: int) -> None:
        """`zero`: when the run began, on the loop's clock."""
        self.plan = plan
        self.history = History()
        self.began = asyncio.Event()
        self.ends = asyncio.Event()
        """Set when it is about to say CloseStream."""
        self._address = address
        self._zero = zero
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random(f"{seed}/{plan.number}/caller")
        self._naps = list(plan.naps)

    async def run(self) -> None:
        await asyncio.sleep(self.plan.starts_at)
        try:
            await self._call()
        finally:
            self.began.set()
            self.history.ended = self._now()

    @abstractmethod
    async def _call(self) -> None:
        """From the handshake to the end."""

    def _now(self) -> float:
        return round(self._loop.time() - self._zero, 3)

    async def _nap(self) -> None:
        """Does not read for a while, if it is time."""
        if self._naps and self._now() - self.history.began > self._naps[0][0]:
            await asyncio.sleep(self._naps.pop(0)[1])

    async def _speech(self) -> AsyncGenerator[bytes | str, None]:
        """Audio when it is due, on a clock that stands still in pauses, and what is said beside it."""
        plan, rate, at = self.plan, self.plan.bytes_per_second, 0
        for stop in sorted({*plan.pauses, *plan.texts, *plan.floods, len(plan.audio)}):
            began, first = self._loop.time(), at
            while at < stop:
                size = min(stop - at, self._size())
                due = began + (at + size - first) / rate + self._rng.uniform(0, 0.01)
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if self._rng.random() < 0.001:
                    await asyncio.sleep(self._rng.uniform(0.1, 1.0))
                yield plan.audio[at : at + size]
                at += size
                self.history.sent_bytes = at
            if stop in plan.texts:
                yield plan.texts[stop]
            if stop in plan.floods:
                for _ in range(100):
                    yield NONSENSE
            end = self._loop.time() + plan.pauses.get(stop, 0.0)
            while (left := end - self._loop.time()) > 0:
                yield KEEPALIVE
                await asyncio.sleep(min(left, KEEPALIVE_EVERY))

    def _size(self) -> int:
        """Bytes of the next message."""
        rate = int(self.plan.bytes_per_second)
        match self.plan.frames:
            case "100ms":
                return rate // 10
            case "odd":
                return self._rng.randint(1, rate // 20)
            case "bursts":
                return self._rng.choice((rate // 50, rate // 50, rate // 2))
        return rate // 50


class PlainCaller(Caller):
    """Loses its connection once at most, and then it is over."""

    async def _call(self) -> None:
        history = self.history
        try:
            client = await self._open()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            history.trouble = f"never opened: {error!r}"
            return
        history.began = self._now()
        self.began.set()
        reading = self._loop.create_task(self._read(client))
        try:
            with contextlib.suppress(OSError, RuntimeError):  # the latter is uvloop's, of a closed transport
                await self._talk(client)
            if self.plan.vanishes:
                client.writer.transport.abort()
                reading.cancel()
            await asyncio.wait({reading}, timeout=LONGEST_END)
            if not reading.done():
                history.trouble = "did not end"
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await client.close()

    async def _open(self) -> WireClient:
        """Dials until it is let in, as any client does."""
        for attempt in range(60):
            client = await WireClient.connect(self._address)
            await client.send(upgrade(self.plan.path, [("Authorization", "Token k")]))
            await client.read_response(30)
            if client.status == 101:
                self.history.request_id = client.header("dg-request-id") or ""
                self.history.continuity = client.header("gw-continuity") or ""
                return client
            self.history.refused.append(client.status)
            await client.close()
            await asyncio.sleep(min(2.0, 0.2 * (attempt + 1)))
        raise TimeoutError(f"refused {self.history.refused}")

    async def _talk(self, client: WireClient) -> None:
        async with contextlib.aclosing(self._speech()) as speech:
            async for said in speech:
                if isinstance(said, bytes):
                    await client.send(*self._frames(said))
                elif self.plan.way != "flux" or said not in (KEEPALIVE, NONSENSE):
                    await self._say(client, said)
                if said == NONSENSE:
                    await client.send(frame(PING) * 10, frame(TEXT, KEEPALIVE.encode()) * 10)
        if not self.plan.vanishes:
            self.ends.set()
            await self._say(client, CLOSE_STREAM)

    def _frames(self, data: bytes) -> list[bytes]:
        """One message, now and then in fragments, or with a ping before it."""
        chance = self._rng.random()
        if chance < 0.002 and len(data) > 2:
            cut = self._rng.randrange(1, len(data))
            return [frame(BINARY, data[:cut], fin=False), frame(CONT, data[cut:])]
        if chance < 0.004:
            return [frame(PING, b"?"), frame(BINARY, data)]
        return [frame(BINARY, data)]

    async def _say(self, client: WireClient, text: str) -> None:
        self.history.said.append((self._now(), text))
        await client.send(frame(TEXT, text.encode()))

    async def _read(self, client: WireClient) -> None:
        history = self.history
        try:
            while True:
                await self._nap()
                opcode, payload = await client.frame(LONGEST_END)
                if opcode == TEXT:
                    history.heard.append((self._now(), payload.decode()))
                elif opcode == PING:
                    await client.send(frame(PONG, payload))
                elif opcode == CLOSE:
                    history.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
                    history.close_reason = payload[2:].decode()
                    await client.send(frame(CLOSE, payload))
                    return
        except (asyncio.IncompleteReadError, OSError) as error:
            history.close_code, history.close_reason = 1006, f"{error!r} at {self._now()}"


class ResumingCaller(Caller):
    """Comes back after every loss."""

    async def _call(self) -> None:
        listening = self._loop.create_task(self._listen())
        ends = self._loop.create_task(self.ends.wait())
        await asyncio.wait({listening, ends}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({listening}, timeout=LONGEST_END)
        if not listening.done():
            self.history.trouble = "did not end"
        for task in (listening, ends):
            task.cancel()
        await asyncio.gather(listening, ends, return_exceptions=True)

    async def _listen(self) -> None:
        """Begins again as long as it is not let in at all, as any client does."""
        history = self.history
        while True:
            stream = _Recorded(f"ws://{self._address[0]}:{self._address[1]}{self.plan.path}", self)
            try:
                async for message in stream.messages():
                    await self._nap()
                    if isinstance(message, Event) and message.name == "ConnectionResumed":
                        history.resumes.append(message.message["recovered"])
            except UpstreamError as error:
                if not self.began.is_set() and error.retryable:
                    history.refused.append(error.status if isinstance(error, UpstreamRejected) else 0)
                    await asyncio.sleep(1)
                    continue
                history.trouble = f"{type(error).__name__}: {error}"
            history.close_code, history.close_reason = stream.close_code, stream.close_reason
            return

    async def microphone(self) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(self._speech()) as speech:
            async for said in speech:
                if isinstance(said, bytes):
                    yield said
        self.ends.set()

    def told(self, raw: bytes, body: dict[str, Any] | None) -> None:
        """A message, as it came and as the client understood it."""
        if not self.began.is_set():
            self.history.began = self._now()
            self.began.set()
        self.history.numbered.append(raw.decode())
        if body is not None:
            self.history.heard.append((self._now(), json.dumps(body)))


class _Recorded(ResumingStream):
    def __init__(self, url: str, caller: ResumingCaller) -> None:
        super().__init__(url, caller.microphone(), key="k", silence=SILENCE)
        self._caller = caller

    def _read(self, raw: bytes) -> Result | Event | None:
        body = self._state.heard(raw)
        self._caller.told(raw, body)
        return self._reader.read(body, asyncio.get_running_loop().time()) if body else None
