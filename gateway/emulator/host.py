"""The door: who may come in, who is in, what is known about them."""

from __future__ import annotations

import random
import time
import uuid
from typing import TYPE_CHECKING

from websockets.http11 import Request

from gateway.emulator.credentials import Credentials, credential
from gateway.emulator.engines.base import Engine, EngineFull
from gateway.emulator.faults import BatchBook, FaultBook
from gateway.emulator.flux import FluxStream
from gateway.emulator.knobs import Knobs
from gateway.emulator.listen import ListenStream
from gateway.emulator.query import QueryError, read_flux, read_listen
from gateway.emulator.records import ConnectionRecord, Records
from gateway.emulator.refusals import Refusal, standard
from gateway.emulator.stream import Setting, Stream
from gateway.emulator.wire import created

if TYPE_CHECKING:
    from gateway.emulator.connection import Connection
    from gateway.emulator.door import Door

LISTEN_PATHS = ("/v1/listen", "//v1/listen")
FLUX_PATHS = ("/v2/listen", "//v2/listen")


class Host:
    """State that all connections share."""

    def __init__(self, knobs: Knobs, engine: Engine) -> None:
        self.knobs = knobs
        self.engine = engine
        self.book = FaultBook(knobs.faults)
        self.batch_book = BatchBook(knobs.batch_faults)
        self.records = Records()
        self.credentials = Credentials()
        self.live: dict[str, Connection] = {}
        self.doors: set[Door] = set()
        self.batches = 0
        self._rng = random.Random(knobs.seed)  # noqa: S311 - repeatable on purpose

    def set(self, knobs: Knobs) -> None:
        """New knobs, for open connections too (but their windows keep their lengths)."""
        self.knobs = knobs
        self.book = FaultBook(knobs.faults)
        self.batch_book = BatchBook(knobs.batch_faults)
        for connection in list(self.live.values()):
            connection.retune(knobs)

    def request_id(self) -> str:
        """A UUIDv7: 48 bits of Unix milliseconds, the rest random."""
        milliseconds = int(time.time() * 1000)
        tail = self._rng.getrandbits(74)
        value = milliseconds << 80 | 7 << 76 | (tail >> 62) << 64 | 2 << 62 | (tail & ((1 << 62) - 1))
        return str(uuid.UUID(int=value))

    def new_record(self) -> ConnectionRecord:
        """The record of a new attempt."""
        self.records.attempts += 1
        attempt = self.records.attempts
        record = ConnectionRecord(f"c{attempt}", attempt, self.request_id(), time.time())
        self.records.add(record)
        return record

    def admit(self, connection: Connection, request: Request) -> Refusal | Stream:
        """Answer an upgrade: a stream, or why not."""
        record = connection.record
        refusal = self._refusal(record, list(request.headers.raw_items()))
        if refusal is not None:
            return refusal
        try:
            stream = self._stream(connection)
        except QueryError as error:
            return error.refusal
        except EngineFull:
            return standard(429, retry_after=self.knobs.retry_after)
        self.live[record.id] = connection
        return stream

    def _refusal(self, record: ConnectionRecord, headers: list[tuple[str, str]]) -> Refusal | None:
        knobs = self.knobs
        if record.path not in LISTEN_PATHS + FLUX_PATHS:
            return standard(404)
        fault = self.book.refusal(record.attempt, record.id)
        if fault is not None:
            return standard(fault.status, fault.body, fault.retry_after)
        return self.denial(headers) or self._crowd(knobs)

    def denial(self, headers: list[tuple[str, str]]) -> Refusal | None:
        """What keeps out every request, WebSocket or not: the knob, or bad credentials."""
        knobs = self.knobs
        if knobs.deny_status is not None:
            return standard(knobs.deny_status, knobs.deny_body, knobs.retry_after)
        if not self.credentials.accept(*credential(headers), knobs.api_keys, time.time()):
            return standard(401)
        return None

    def _crowd(self, knobs: Knobs) -> Refusal | None:
        limits = [limit for limit in (knobs.max_connections, self.engine.max_streams) if limit is not None]
        return (
            standard(429, retry_after=knobs.retry_after)
            if len(self.live) >= min(limits, default=1 << 30)
            else None
        )

    def _stream(self, connection: Connection) -> Stream:
        record, knobs = connection.record, self.knobs
        setting = Setting(
            knobs=knobs,
            engine=self.engine,
            request_id=record.request_id,
            created=created(record.opened_at),
            rng=random.Random(f"{knobs.seed}/{record.attempt}"),  # noqa: S311 - repeatable on purpose
            wake=connection.look,
        )
        if record.path in FLUX_PATHS:
            return FluxStream(setting, read_flux(record.query, knobs.models), connection.now())
        return ListenStream(setting, read_listen(record.query, knobs.models), connection.now())

    def gone(self, connection: Connection) -> None:
        """A connection is over."""
        self.live.pop(connection.record.id, None)
        self.records.closed(self.knobs.keep_closed)
