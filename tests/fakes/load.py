"""Many real-time callers in one process: `python -m tests.fakes.load PORT --calls N --seconds S`.

Each says token audio in 20 ms frames of G.711, in a phase of its own, and checks what it hears. One JSON
object on stdout says how it went.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter
from typing import Any, Final, cast

import uvloop

from gateway.emulator.sound import Format
from gateway.emulator.tokens import id_for, ids, speech
from tests.fakes.wire_client import CLOSE, TEXT, frame, upgrade

QUERY: Final = "model=nova-3&encoding=mulaw&sample_rate=8000&interim_results=true"
FRAME: Final = 0.02
FRAME_BYTES: Final = 160
PHASES: Final = 20
TRACKS: Final = 8
_HEAD: Final = b"\x82\xfe\x00\xa0\0\0\0\0"  # a whole binary message of 160 bytes under a mask of zeros
_CLOSE_STREAM: Final = frame(TEXT, b'{"type":"CloseStream"}')
LAST_WORDS: Final = 20.0


class Track:
    """What one caller says, as frames ready to be sent."""

    def __init__(self, seed: int, seconds: float) -> None:
        rng = random.Random(seed)
        audio, said = speech(ids(round(seconds * 3), rng), Format("mulaw", 8000), rng)
        length = round(seconds * 8000)
        audio = audio[:length].ljust(length, b"\xff")
        self.said = [token.id for token in said if token.end_sample <= length]
        self.cut = any(token.start_sample < length < token.end_sample for token in said)
        self.frames = [_HEAD + audio[at : at + FRAME_BYTES] for at in range(0, length, FRAME_BYTES)]


class Caller(asyncio.Protocol):
    """One call. `over` is set when its connection has ended."""

    def __init__(self, track: Track) -> None:
        self.over = asyncio.Event()
        self.status = 0
        self.code = 1006
        self.heard: list[int | None] = []
        self.types: Counter[str] = Counter()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._track = track
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._next = 0
        self._start = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(upgrade(f"/v1/listen?{QUERY}"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self.status:
            head, complete, rest = self._data.partition(b"\r\n\r\n")
            if not complete:
                return
            self._data, self.status = rest, int(head.split(b" ")[1])
            self.opened.set_result(None)
        while self._frame():
            pass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.over.set()
        if not self.opened.done():
            self.opened.set_result(None)

    def begin(self, now: float) -> None:
        self._start = now

    def speak(self, now: float) -> None:
        """Sends what is due; CloseStream after the last frame."""
        frames = self._track.frames
        if self._transport is None or not self._start or self._next > len(frames):
            return
        due = min(len(frames), int((now - self._start) / FRAME))
        if due > self._next:
            self._transport.write(b"".join(frames[self._next : due]))
            self._next = due
        if due == len(frames):
            self._transport.write(_CLOSE_STREAM)
            self._next += 1

    def mistakes(self) -> dict[str, int]:
        """What went wrong with the words: token audio that the end cut is a fragment, and no mistake."""
        heard: Counter[int | None] = Counter(self.heard)
        if self._track.cut:
            heard[None] = 0
        said: Counter[int | None] = Counter(self._track.said)
        return {"lost": (said - heard).total(), "doubled_or_invented": (heard - said).total()}

    def _frame(self) -> bool:
        data = self._data
        if len(data) < 2:
            return False
        size, at = data[1], 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
        if len(data) < at + size:
            return False
        self._data = data[at + size :]
        self._message(data[0] & 15, data[at : at + size])
        return True

    def _message(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self.code = int.from_bytes(payload[:2], "big") if payload else 1005
            if self._transport is not None:
                self._transport.write(b"\x88\x82\0\0\0\0" + payload[:2])
        elif opcode == TEXT:
            message = json.loads(payload)
            self.types[message["type"]] += 1
            if message.get("is_final"):
                words = message["channel"]["alternatives"][0]["words"]
                self.heard += [id_for(word["word"]) for word in words]


async def run(port: int, count: int, seconds: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    tracks = [Track(seed, seconds) for seed in range(TRACKS)]
    callers = [Caller(tracks[number % TRACKS]) for number in range(count)]
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, "127.0.0.1", port)  # type: ignore[misc] # mypy cannot type a lambda's default
        await caller.opened
        assert caller.status == 101, caller.status
    begun = loop.time()
    speaking = [asyncio.create_task(speak(callers[phase::PHASES], phase)) for phase in range(PHASES)]
    await asyncio.gather(*speaking)
    took = loop.time() - begun
    async with asyncio.timeout(LAST_WORDS):
        await asyncio.gather(*(caller.over.wait() for caller in callers))
    wrong: Counter[str] = Counter()
    for caller in callers:
        wrong.update(caller.mistakes())
    return {
        "said": sum(len(tracks[number % TRACKS].said) for number in range(count)),
        "mistakes": dict(wrong),
        "codes": dict(Counter(str(caller.code) for caller in callers)),
        "summaries": sum(caller.types["Metadata"] for caller in callers),
        "seconds": took,
    }


async def speak(callers: list[Caller], phase: int) -> None:
    """One phase's callers, every 20 ms, until each has said everything."""
    loop = asyncio.get_running_loop()
    start = loop.time() + phase * FRAME / PHASES
    for caller in callers:
        caller.begin(start)
    tick = 0
    while any(caller._next <= len(caller._track.frames) and not caller.over.is_set() for caller in callers):
        tick += 1
        await asyncio.sleep(max(0.0, start + tick * FRAME + 0.001 - loop.time()))
        now = loop.time()
        for caller in callers:
            caller.speak(now)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    print(json.dumps(uvloop.run(run(options.port, options.calls, options.seconds))), flush=True)


if __name__ == "__main__":
    main()
