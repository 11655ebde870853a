"""Recordings' transcripts on their way into the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import msgspec

from gateway.errors import StoreError
from gateway.metrics import Metrics
from gateway.prerecorded.sync import Order
from gateway.prerecorded.transcriber import Answer
from gateway.store import transcripts, usage
from gateway.store.databases import Connection
from gateway.store.store import Store
from gateway.store.transcripts import Source, Transcript
from gateway.store.usage import Usage

MOST_BYTES: Final = 67_108_864
"""Of responses that wait for the store; a few hours of speech each at most, and only while it is slow."""


class _Alternative(msgspec.Struct, frozen=True):
    transcript: str = ""


class _Channel(msgspec.Struct, frozen=True):
    alternatives: list[_Alternative] = []


class _Results(msgspec.Struct, frozen=True):
    channels: list[_Channel] = []


class _Metadata(msgspec.Struct, frozen=True):
    request_id: str = ""
    duration: float | None = None


class _Response(msgspec.Struct, frozen=True):
    """What is looked at; the rest of a response is only kept."""

    results: _Results
    metadata: _Metadata = _Metadata()


def transcript(
    id: str,
    principal: str,
    source: Source,
    response: bytes,
    *,
    created_at: float,
    ended_at: float,
    request_id: str = "",
    query: str = "",
    metadata: bytes | None = None,
) -> Transcript:
    """The row for Deepgram's `response`; without a `request_id`, that of the response is taken.

    Raises msgspec.DecodeError for what is none.
    """
    try:
        read = msgspec.json.decode(response, type=_Response)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"it is no JSON: {error}") from None
    said = [channel.alternatives[0].transcript for channel in read.results.channels if channel.alternatives]
    return Transcript(
        id=id,
        principal=principal,
        source=source,
        request_id=request_id or read.metadata.request_id,
        query=query,
        metadata=metadata,
        duration=read.metadata.duration,
        text="\n".join(text for text in said if text),
        result=response,
        created_at=created_at,
        ended_at=ended_at,
    )


async def save(connection: Connection, made: Sequence[tuple[Transcript, bool]]) -> Sequence[None]:
    """The words of those that are to be stored; their seconds count all the same."""
    if stored := [transcript for transcript, is_stored in made if is_stored]:
        await transcripts.save(connection, stored)
    await usage.add(connection, [_usage(transcript) for transcript, _ in made])
    return [None] * len(made)


def _usage(made: Transcript) -> Usage:
    assert made.ended_at is not None
    seconds, day = made.duration or 0.0, datetime.fromtimestamp(made.ended_at, UTC).date()
    return Usage(principal=made.principal, day=day, accepted_seconds=seconds, sent_seconds=seconds)


class Keeper:
    """Stores what the synchronous route transcribed; its clients do not wait for that."""

    def __init__(
        self,
        store: Store,
        *,
        stores: bool,
        new_id: Callable[[], str],
        clock: Callable[[], float],
        metrics: Metrics,
        log: Any,
    ) -> None:
        """`stores`: words too, not only how many seconds they took. `clock` is `time.time`.

        `new_id` names a transcript whose request Deepgram has not named.
        """
        self._new_id = new_id
        self._stores = stores
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._bytes = 0
        self._saving: set[asyncio.Task[None]] = set()

    def keep(self, order: Order, answer: Answer) -> None:
        """With its words unless the caller says gw_store=false. What cannot be stored is counted."""
        if order.query.has("callback"):
            return  # with callback= there is no transcript in the answer
        if self._bytes + len(answer.body) > MOST_BYTES:
            self._metrics.store_dropped.add("recording")
            return
        self._bytes += len(answer.body)
        saving = asyncio.create_task(self._save(order, answer, self._clock()))
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)

    async def close(self) -> None:
        """Waits for what is on its way."""
        await asyncio.gather(*self._saving)

    async def _save(self, order: Order, answer: Answer, now: float) -> None:
        row = partial(transcript, answer.request_id, order.principal.id, "sync", answer.body)
        said = {"created_at": now, "ended_at": now, "request_id": answer.request_id}
        try:
            # In a thread, since a long response takes long to be read.
            made = await asyncio.to_thread(row, query=order.query.for_deepgram().raw, **said)
            if not made.id:
                made = msgspec.structs.replace(made, id=made.request_id or self._new_id())
            stored = self._stores and order.query.get("gw_store") not in ("false", "0")
            await self._store.write_jointly(save, (made, stored))
        except (msgspec.DecodeError, StoreError) as error:
            self._metrics.store_dropped.add("recording")
            self._log.warning("store.not_kept", request_id=answer.request_id, reason=str(error))
        finally:
            self._bytes -= len(answer.body)
