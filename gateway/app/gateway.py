"""The life of a gateway: its parts are built, started in order, drained, and closed in the reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, Protocol

from gateway import __version__
from gateway.app.callbacks import Callbacks
from gateway.app.calls import ClientPort, make_exchange
from gateway.app.jobs import JobRoom
from gateway.app.ports import HttpPorts
from gateway.app.recordings import Recordings
from gateway.app.storage import Storage
from gateway.config import Config
from gateway.deepgram.errors import RESTART
from gateway.errors import ConfigError
from gateway.live.front import DRAINING, FrontDoor
from gateway.live.record import Recorder
from gateway.metrics import Metrics

LAST_WORDS: Final = 1.0
"""A second beyond `session.finish` for calls that were told to end. With what it takes to close all the
process is gone 5 s after both (continuity.md I17); the unit's TimeoutStopSec relies on it."""
RESTARTING: Final = "the gateway is restarting"


class Part(Protocol):
    """What a gateway is made of. `close` is also called when `start` has failed half-way."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Gateway:
    """First `start`, then `stop`, which drains it, then `close`.

    `store`, and with it `jobs`, is None where storing is switched off.
    """

    def __init__(
        self, config: Config, api_key: str | None, tasks: asyncio.TaskGroup, *, worker: bool = False
    ) -> None:
        """`tasks` owns every task of a call. A `worker` runs jobs and has no client port.

        Raises ConfigError for settings that only show when they are used (a CA file that is none), and for a
        worker without a store.
        """
        self.config = config
        self._is_worker = worker
        self.metrics = Metrics([region.name for region in config.deepgram.regions], __version__)
        exchange = self._exchange = make_exchange(config, api_key, self.metrics, tasks)
        self._storage = Storage(exchange, tidy=not worker)
        self.store = self._storage.store
        self.recordings = Recordings(exchange, self.store)
        self.callbacks = Callbacks(exchange, self.store, self._own_ports)
        self.jobs = self._prepare_stored()
        if worker and self.jobs is None:
            raise ConfigError("store.url: is 'none', so there are no jobs for a worker")
        self.http = HttpPorts(
            exchange,
            self.store,
            self.recordings,
            self.callbacks,
            self.jobs,
            status=self,
            closed=lambda: DRAINING if self.door.draining else None,
            client_port=lambda: self._client_port.reachable_at(),
            worker=worker,
        )
        self._client_port = ClientPort(exchange, self.http.paths)
        self._open = contextlib.AsyncExitStack()

    @property
    def door(self) -> FrontDoor:
        return self._client_port.door

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that calls come to, once started."""
        return self._client_port.address

    @property
    def sidecar_address(self) -> tuple[str, int]:
        return self.http.address

    def ready(self) -> tuple[bool, str]:
        """See `sidecar.Status`."""
        if self.door.draining or not (self._client_port.is_open or self._is_worker):
            return False, "draining"
        if not self._exchange.regions.any_usable(asyncio.get_running_loop().time()):
            return False, "no usable region"
        return True, ""

    async def start(self, sock: socket.socket | None = None) -> None:
        """Opens the store and listens; `sock` is a listening socket from outside.

        Raises ConfigError for a port that is taken, and for a store that only a person can mend.
        """
        self._client_port.outside = sock
        for part in self._parts():
            self._open.push_async_callback(part.close)
            await part.start()

    async def stop(self, deadline: float) -> None:
        """Drains: `deadline` seconds for calls and uploads to end, then for Deepgram's last results."""
        self._client_port.stop_listening()
        calls, log = self._exchange.calls, self._exchange.log
        for call in list(calls.values()):
            call.let_go()  # no new connection is taken, so nobody can come back
        log.info("server.draining", calls=len(calls), deadline_seconds=deadline)
        await asyncio.gather(self._until_empty(deadline), self._drain_jobs(deadline))
        for call in list(calls.values()):
            call.shut_down(RESTART, RESTARTING)
        await self._until_empty(self.config.session.finish + LAST_WORDS)
        late = list(calls.values())
        for call in late:
            call.cut_short(RESTART, RESTARTING)
        log.info("server.stopped", calls_cut=len(late))

    async def close(self) -> None:
        """Ends what was started, the last first; also after a `start` that failed."""
        await self._open.aclose()

    def _parts(self) -> list[Part]:
        """In the order of their start: each needs only those before it."""
        jobs = [self.jobs] if self.jobs is not None else []
        client_port = [] if self._is_worker else [self._client_port]
        return [self._storage, self.recordings, *jobs, self.http, self.callbacks, *client_port]

    def _prepare_stored(self) -> JobRoom | None:
        """What there is only with a store: the recorder of calls, and jobs."""
        if self.store is None or self.callbacks.notifier is None:
            return None
        self._exchange.recorder = Recorder(
            self.store,
            metrics=self.metrics,
            tell=self.callbacks.session_ended,
            told=self.callbacks.notifier.wake,
        )
        return JobRoom(
            self._exchange,
            self.store,
            self.recordings,
            self.callbacks.notifier,
            self.callbacks.receiver,
            work=self.config.jobs.work or self._is_worker,
        )

    def _own_ports(self) -> tuple[int, int]:
        return self.address[1], self.sidecar_address[1]

    async def _drain_jobs(self, seconds: float) -> None:
        if self.jobs is not None:
            await self.jobs.drain(seconds)

    async def _until_empty(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exchange.empty.wait()
                await self.http.until_idle()
