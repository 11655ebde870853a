"""One client: speaks its plan in real time over a socket of its own, and remembers all it sent and got."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.plan import CallPlan
from tests.fakes.wire_client import BINARY, CLOSE, CONT, PING, PONG, TEXT, WireClient, frame, upgrade

FRAME_SECONDS: Final = 0.02
KEEPALIVE_EVERY: Final = 3.0
LONGEST_END: Final = 150.0
"""Seconds after the last byte within which a call must be over."""
CLOSE_STREAM: Final = b'{"type":"CloseStream"}'
KEEPALIVE: Final = b'{"type":"KeepAlive"}'
FINALIZE: Final = b'{"type":"Finalize"}'


@dataclass
class History:
    """What the client knows of its call. Times are seconds since the run began."""

    request_id: str = ""
    refused: list[int] = field(default_factory=list)
    sent_bytes: int = 0
    finalizes: int = 0
    said: list[tuple[float, str]] = field(default_factory=list)
    heard: list[tuple[float, str]] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    close_code: int = 0
    close_reason: str = ""
    trouble: str = ""


class Caller:
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

    async def run(self) -> None:
        history = self.history
        await asyncio.sleep(self.plan.starts_at)
        try:
            client = await self._open()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            history.trouble = f"never opened: {error!r}"
            self.began.set()
            return
        history.began = self._now()
        self.began.set()
        reading = self._loop.create_task(self._read(client))
        try:
            with contextlib.suppress(OSError):
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
            history.ended = self._now()

    def _now(self) -> float:
        return round(self._loop.time() - self._zero, 3)

    async def _open(self) -> WireClient:
        """Dials until it is let in, as any client does."""
        for attempt in range(60):
            client = await WireClient.connect(self._address)
            await client.send(upgrade(f"/v1/listen?{self.plan.query}", [("Authorization", "Token k")]))
            await client.read_response(30)
            if client.status == 101:
                self.history.request_id = client.header("dg-request-id") or ""
                return client
            self.history.refused.append(client.status)
            await client.close()
            await asyncio.sleep(min(2.0, 0.2 * (attempt + 1)))
        raise TimeoutError(f"refused {self.history.refused}")

    # What it says

    async def _talk(self, client: WireClient) -> None:
        plan, history = self.plan, self.history
        stops = sorted({*plan.pauses, *plan.finalizes, len(plan.audio)})
        for stop in stops:
            await self._speak(client, stop)
            if stop in plan.finalizes:
                history.finalizes += 1
                await self._say(client, FINALIZE)
            if stop in plan.pauses:
                await self._pause(client, plan.pauses[stop])
        if not plan.vanishes:
            self.ends.set()
            await self._say(client, CLOSE_STREAM)

    async def _speak(self, client: WireClient, stop: int) -> None:
        """Audio up to byte `stop`, on a clock that began with its first."""
        began, first, rate = self._loop.time(), self.history.sent_bytes, self.plan.fmt.bytes_per_second
        at = first
        while at < stop:
            size = min(stop - at, self._size())
            due = began + (at + size - first) / rate + self._rng.uniform(0, 0.01)
            wait = due - self._loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if self._rng.random() < 0.001:
                await asyncio.sleep(self._rng.uniform(0.1, 1.0))
            await client.send(*self._frames(self.plan.audio[at : at + size]))
            at += size
            self.history.sent_bytes = at

    def _size(self) -> int:
        rate = self.plan.fmt.bytes_per_second
        match self.plan.frames:
            case "100ms":
                return rate // 10
            case "odd":
                return self._rng.randint(1, rate // 20)
            case "bursts":
                return self._rng.choice((rate // 50, rate // 50, rate // 2))
        return rate // 50

    def _frames(self, data: bytes) -> list[bytes]:
        """One message, now and then in fragments, or with an empty ping before it."""
        chance = self._rng.random()
        if chance < 0.002 and len(data) > 2:
            cut = self._rng.randrange(1, len(data))
            return [frame(BINARY, data[:cut], fin=False), frame(CONT, data[cut:])]
        if chance < 0.004:
            return [frame(PING, b"?"), frame(BINARY, data)]
        return [frame(BINARY, data)]

    async def _pause(self, client: WireClient, seconds: float) -> None:
        end = self._loop.time() + seconds
        while (left := end - self._loop.time()) > 0:
            await self._say(client, KEEPALIVE)
            await asyncio.sleep(min(left, KEEPALIVE_EVERY))

    async def _say(self, client: WireClient, text: bytes) -> None:
        self.history.said.append((self._now(), text.decode()))
        await client.send(frame(TEXT, text))

    # What it hears

    async def _read(self, client: WireClient) -> None:
        history, naps = self.history, list(self.plan.naps)
        try:
            while True:
                if naps and self._now() - history.began > naps[0][0]:
                    await asyncio.sleep(naps.pop(0)[1])
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
        except (asyncio.IncompleteReadError, OSError):
            history.close_code = 1006
