"""What is kept of calls: what was said for good, and how they went. It is given to the store by a task of its
own, four times a second, so that no call ever waits for a database.

What cannot be written yet is kept within bounds and tried again; beyond them it is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog

from gateway.deepgram.query import ListenQuery
from gateway.errors import StoreError
from gateway.metrics import Metrics
from gateway.session.events import Gap
from gateway.store import deliveries, sessions, transcripts, usage
from gateway.store.databases import Connection
from gateway.store.deliveries import Delivery
from gateway.store.sessions import Session, SessionGap
from gateway.store.store import Store
from gateway.store.transcripts import FinalResult, Transcript
from gateway.store.usage import Usage

BATCH_SECONDS: Final = 0.25
MOST_AT_ONCE: Final = 500
"""Finals, and calls that begin or end, in one transaction: a few milliseconds of the writer's thread."""
MOST_BYTES: Final = 16_777_216
"""Of finals that wait: those of 500 calls for a minute. Beyond it the newest is dropped."""
MOST_CALLS: Final = 20_000
"""Beginnings and ends of calls that wait."""
RETRY_SECONDS: Final = 1.0
TRIES: Final = 3
"""At a batch that a healthy store refuses."""
LAST_WRITES: Final = 5.0
"""Seconds at the end for what still waits."""
MOST_GAPS: Final = 1000


class Said(msgspec.Struct, frozen=True, gc=False):
    """A result as it is kept and shown, with times as the client saw them; `words` is Deepgram's array."""

    channel: int
    start: float
    duration: float
    text: str
    words: msgspec.Raw


class _Alternative(msgspec.Struct, gc=False):
    transcript: str = ""
    words: msgspec.Raw = msgspec.Raw(b"[]")


class _Channel(msgspec.Struct, gc=False):
    alternatives: tuple[_Alternative, ...] = ()


class _Result(msgspec.Struct, gc=False):
    """Of either dialect: `channel` in v1, the fields after it in Flux."""

    channel_index: tuple[int, ...] = (0,)
    start: float = 0.0
    duration: float = 0.0
    channel: _Channel | None = None
    audio_window_start: float = 0.0
    audio_window_end: float = 0.0
    transcript: str = ""
    words: msgspec.Raw = msgspec.Raw(b"[]")


_result: Final = msgspec.json.Decoder(_Result)


def said(raw: bytes) -> Said | None:
    """What a result says; None for one that is not as documented, which the client got all the same."""
    try:
        found = _result.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.channel is None:
        window = round(found.audio_window_end - found.audio_window_start, 6)
        return Said(0, found.audio_window_start, window, found.transcript, found.words.copy())
    best = found.channel.alternatives[0] if found.channel.alternatives else _Alternative()
    number = found.channel_index[0] if found.channel_index else 0
    return Said(number, found.start, found.duration, best.transcript, best.words.copy())


def may_store(query: ListenQuery) -> bool:
    """Whether a call's words may be kept: the client says no by `gw_store`, or has them sent elsewhere.

    Raises ValueError for a `gw_store` that is neither true nor false.
    """
    return query.keeps_words() and not query.has("callback")


class _Final(msgspec.Struct, frozen=True, gc=False):
    call: str
    number: int
    raw: bytes


class _Over(msgspec.Struct, frozen=True):
    session: Session
    delivery: Delivery | None


_Entry = Transcript | _Final | _Over


class Record:
    """One call's: counts its finals as the client gets them, and gives them to `keeper` if they are kept."""

    __slots__ = (
        "_call",
        "breaks",
        "created_at",
        "finals",
        "gap_seconds",
        "gaps",
        "keeper",
        "resumes",
    )

    def __init__(self, call: str, created_at: float, keeper: Recorder | None) -> None:
        """`keeper` is None where what is said is not kept."""
        self.created_at = created_at
        self.keeper = keeper
        self.finals = 0
        """The number of the next one."""
        self.gap_seconds = 0.0
        self.breaks = self.resumes = 0
        self.gaps: list[SessionGap] = []
        self._call = call

    def final(self, raw: bytes) -> None:
        if self.keeper is not None:
            self.keeper.final(self._call, self.finals, raw)
        self.finals += 1

    def gap(self, gap: Gap) -> None:
        self.gap_seconds += gap.stop - gap.start
        if len(self.gaps) < MOST_GAPS:
            self.gaps.append(SessionGap(gap.start, gap.stop, gap.reason))


class Recorder:
    """Of one process; `start` it, and `close` it before the store."""

    def __init__(
        self,
        store: Store,
        *,
        metrics: Metrics,
        tell: Callable[[Session], Delivery | None],
        told: Callable[[], None],
    ) -> None:
        """`tell` makes the callback for a call that is over, if there is one; `told` hears of its commit."""
        self._store = store
        self._metrics = metrics
        self._tell = tell
        self._told = told
        self._queue: deque[_Entry] = deque()
        self._bytes = self._calls = 0  # in the queue
        self._giving: list[_Entry] = []
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def close(self) -> None:
        """Writes what waits, if that can be done soon."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST_WRITES)
            self._task.cancel()
            await asyncio.wait([self._task])
        for entry in (*self._giving, *self._queue):
            self._drop(entry)

    # What calls say

    def began(self, transcript: Transcript) -> None:
        """The words of this call will be kept."""
        self._add(transcript)

    def final(self, call: str, number: int, raw: bytes) -> None:
        """A final of a call that has begun, as its client got it."""
        if self._bytes + len(raw) > MOST_BYTES:
            self._metrics.store_dropped.add("final")
            return
        self._bytes += len(raw)
        self._queue.append(_Final(call, number, raw))

    def over(self, session: Session) -> None:
        """A call has ended."""
        self._add(_Over(session, self._tell(session)))

    def pending(self, call: str) -> list[tuple[int, bytes]]:
        """Finals of a call that may not be in the store yet, with their numbers."""
        waiting = itertools.chain(self._giving, self._queue)
        return [(one.number, one.raw) for one in waiting if isinstance(one, _Final) and one.call == call]

    def ended(self, call: str) -> Session | None:
        """How a call went that may not be in the store yet."""
        waiting = itertools.chain(self._giving, self._queue)
        return next((o.session for o in waiting if isinstance(o, _Over) and o.session.id == call), None)

    # Private

    def _add(self, entry: Transcript | _Over) -> None:
        if self._calls >= MOST_CALLS:
            self._drop(entry)
            return
        self._calls += 1
        self._queue.append(entry)

    def _drop(self, entry: _Entry) -> None:
        kind = "final" if isinstance(entry, _Final) else "session" if isinstance(entry, _Over) else "call"
        self._metrics.store_dropped.add(kind)

    async def _run(self) -> None:
        while self._queue or not self._closing.is_set():
            if self._queue:
                await self._give()
            await self._pause(BATCH_SECONDS if len(self._queue) < MOST_AT_ONCE else 0.0)

    async def _pause(self, seconds: float) -> None:
        # Not wait_for: before 3.12 it forgets a cancellation that comes with what it waits for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _give(self) -> None:
        """Writes what has waited longest, as one transaction, however often that must be tried."""
        self._giving = batch = [self._queue.popleft() for _ in range(min(MOST_AT_ONCE, len(self._queue)))]
        finals = [one for one in batch if isinstance(one, _Final)]
        self._bytes -= sum(len(one.raw) for one in finals)
        self._calls -= len(batch) - len(finals)
        tries = 0
        while not await self._written(batch):
            tries += self._store.healthy
            if tries == TRIES:
                for entry in batch:
                    self._drop(entry)
                break
            await asyncio.sleep(RETRY_SECONDS)
        self._giving = []

    async def _written(self, batch: Sequence[_Entry]) -> bool:
        try:
            await self._store.write(lambda connection: _write(connection, batch))
        except StoreError as error:
            structlog.get_logger().debug("store.not_recorded", reason=str(error))
            return False
        except Exception:  # a defect of ours; calls to come are not to pay for it
            structlog.get_logger().exception("store.recorder_defect")
            return False
        if any(isinstance(one, _Over) and one.delivery is not None for one in batch):
            self._told()
        return True


async def _write(connection: Connection, batch: Sequence[_Entry]) -> None:
    """In the writer's thread, where there is one. Writing a batch again does nothing."""
    begun = [one for one in batch if isinstance(one, Transcript)]
    finals = [row for one in batch if isinstance(one, _Final) if (row := _row(one)) is not None]
    if begun:
        await transcripts.begin(connection, begun)
    if finals:
        await transcripts.append(connection, finals)
    for one in batch:
        if isinstance(one, _Over):
            await _end(connection, one)


def _row(final: _Final) -> FinalResult | None:
    """None where nothing is said, which is most of what Deepgram says of silence."""
    found = said(final.raw)
    if found is None or not found.text:
        return None
    return FinalResult(
        transcript=final.call,
        number=final.number,
        channel=found.channel,
        start=found.start,
        duration=found.duration,
        text=found.text,
        words=bytes(found.words),
    )


async def _end(connection: Connection, over: _Over) -> None:
    session = over.session
    assert session.ended_at is not None
    if not await sessions.save(connection, session):
        return  # a commit whose answer was lost
    used: dict[str, Any] = {name: getattr(session, name) for name in usage.SECONDS}
    day = datetime.fromtimestamp(session.ended_at, UTC).date()
    await usage.add(connection, [Usage(principal=session.principal, day=day, **used)])
    if session.stored:
        await transcripts.end(connection, session.id, session.ended_at, session.accepted_seconds)
    if over.delivery is not None:
        await deliveries.insert(connection, over.delivery)
