"""What the Python drivers share: arguments, pace and output.

Standard library only, because each driver runs in the environment of the SDK it drives.

Usage: pyN.py BASE_URL RECORDING OPTIONS, where OPTIONS is JSON:
  query         Deepgram's query parameters, as strings
  key           the API key the SDK is given
  rate          bytes of audio per second
  finalize      seconds of audio after which Finalize is sent
  keep_alive    seconds of audio after which KeepAlive is sent, later than Finalize
Prints each message that the SDK delivered as a JSON line, then {"type": "_end"} or {"type": "_refused", ...}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

CHUNK_MS = 100


@dataclass(frozen=True)
class Job:
    base: str
    audio: bytes
    query: dict[str, str]
    key: str
    rate: int
    finalize: float = 0.0
    keep_alive: float = 0.0
    url: str = ""  # where the recording is, if it is asked for whole
    wrong: dict[str, str] = field(default_factory=dict)  # a query that is refused

    @property
    def websocket_base(self) -> str:
        return self.base.replace("http", "ws", 1)


def job() -> Job:
    base, recording, options = sys.argv[1:]
    return Job(base=base, audio=Path(recording).read_bytes(), **json.loads(options))


def emit(message: object) -> None:
    print(json.dumps(message, default=str), flush=True)


def result(transcript: str, **fields: object) -> None:
    """A result of a client that hides Deepgram's message behind words of its own."""
    emit({"type": "Results", **fields, "channel": {"alternatives": [{"transcript": transcript}]}})


def answer(of: str, response: object) -> None:
    """Deepgram's response to a whole recording."""
    emit({"type": "_answer", "of": of, "response": response})


def refused(status: int) -> None:
    emit({"type": "_refused", "status": status})


def end() -> None:
    emit({"type": "_end"})


async def at_real_time(
    job: Job,
    audio: Callable[[bytes], Awaitable[object]],
    finalize: Callable[[], Awaitable[object]],
    keep_alive: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Send the recording as a microphone would: a chunk when its last sample has been spoken.

    A driver that was kept from running stays late. Catching up would leave a backlog at the recogniser, and
    SDKs that hang up soon after CloseStream would then miss its end.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    chunk_bytes = job.rate * CHUNK_MS // 1000
    marks = [(job.finalize, finalize)] + ([(job.keep_alive, keep_alive)] if keep_alive else [])
    for start in range(0, len(job.audio), chunk_bytes):
        chunk = job.audio[start : start + chunk_bytes]
        spoken = (start + len(chunk)) / job.rate
        due = max(due + len(chunk) / job.rate, loop.time())
        await asyncio.sleep(due - loop.time())
        await audio(chunk)
        while marks and marks[0][0] <= spoken:
            await marks.pop(0)[1]()
