"""Which operations go to which HTTP application: the client port's, and the operator's (the sidecar)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from aiohttp.typedefs import Middleware

from gateway import __version__
from gateway.app.callbacks import Callbacks
from gateway.app.jobs import JobRoom
from gateway.app.recordings import Recordings
from gateway.config import is_loopback
from gateway.deepgram.errors import Refusal
from gateway.errors import ConfigError, reason
from gateway.live.exchange import Exchange
from gateway.sidecar import HttpServer, Status, build, build_deepgram_paths
from gateway.sidecar.api import Operation
from gateway.sidecar.callbacks import DeliveryRoutes
from gateway.sidecar.intake import Intake
from gateway.sidecar.jobs import JobRoutes
from gateway.sidecar.listen import Listen
from gateway.sidecar.pages import own_pages_only
from gateway.sidecar.receiver import ReceiverRoutes
from gateway.sidecar.sessions import SessionRoutes
from gateway.sidecar.transcribe import Transcribe
from gateway.sidecar.transcripts import TranscriptRoutes
from gateway.sidecar.uploads import Uploads
from gateway.store.store import Store


class HttpPorts:
    """`paths` is what the client port answers beside calls; the sidecar listens at `address`.

    Recordings come and go by both; what is stored is shown by the sidecar alone.
    """

    def __init__(
        self,
        exchange: Exchange,
        store: Store | None,
        recordings: Recordings,
        callbacks: Callbacks,
        jobs: JobRoom | None,
        *,
        status: Status,
        closed: Callable[[], Refusal | None],
        client_port: Callable[[], tuple[str, int]],
        worker: bool,
    ) -> None:
        """`closed` says why nothing is taken now, if so; `client_port` where this process takes calls.

        A `worker`'s sidecar tells how it is, and nothing else.
        """
        self._exchange = exchange
        self._recordings = recordings
        self._callbacks = callbacks
        self._closed = closed
        self.uploads = Uploads(exchange.config.prerecorded.max_uploads, exchange.metrics)
        self.listen = self._listen_route()
        intake = self._intake()
        job_routes = self._job_routes(jobs, intake) if jobs is not None else None
        self.transcribe = self._transcribe_route(intake, job_routes, client_port)
        both = [*self.listen.operations(), *self.transcribe.operations()]
        if jobs is not None and job_routes is not None:
            both += [*job_routes.operations(), *self._receiver_routes(jobs).operations()]
        own = [] if worker else [*both, *self._stored(store)]
        timeout, new_id = exchange.config.sidecar.header_timeout, exchange.mint_request_id
        server, sidecar = exchange.config.server, exchange.config.sidecar
        paths = build_deepgram_paths(new_request_id=new_id, pages=self._pages(server.host), operations=both)
        self.paths = HttpServer(paths, timeout)
        operators = build(
            status,
            exchange.metrics,
            version=__version__,
            new_request_id=new_id,
            pages=self._pages(sidecar.host),
            operations=own,
        )
        self._sidecar = HttpServer(operators, timeout)
        self.address = ("", 0)
        exchange.metrics.on_scrape(self._measure)

    async def start(self) -> None:
        """Raises ConfigError for a port that is taken."""
        config = self._exchange.config.sidecar
        await self.paths.__aenter__()
        await self._sidecar.__aenter__()
        with listening("sidecar", config.host, config.port):
            self.address = await self._sidecar.listen(config.host, config.port)
        self._exchange.log.info("sidecar.listening", host=self.address[0], port=self.address[1])

    async def close(self) -> None:
        await self._sidecar.__aexit__()
        await self.paths.__aexit__()

    async def until_idle(self) -> None:
        """Until no recording is on its way."""
        await self.uploads.idle.wait()

    # On both ports

    def _pages(self, host: str) -> Middleware:
        """For a port at `host`, which may be called by that, too."""
        server = self._exchange.config.server
        return own_pages_only(
            server.origins,
            (*server.hosts, host),
            is_local=is_loopback(host),
            new_request_id=self._exchange.mint_request_id,
        )

    def _listen_route(self) -> Listen:
        exchange = self._exchange
        return Listen(
            self._recordings.sync,
            self.uploads,
            exchange.config,
            authenticator=exchange.authenticator,
            api_key=exchange.api_key,
            metrics=exchange.metrics,
            new_request_id=exchange.mint_request_id,
            closed=self._closed,
        )

    def _intake(self) -> Intake:
        return Intake(
            self._recordings.spool,
            self.uploads,
            self._exchange.config,
            authenticator=self._exchange.authenticator,
            metrics=self._exchange.metrics,
            new_request_id=self._exchange.mint_request_id,
            check=self._callbacks.targets.check,
            check_callback=self._callbacks.check,
            closed=self._closed,
        )

    def _job_routes(self, jobs: JobRoom, intake: Intake) -> JobRoutes:
        return JobRoutes(
            jobs.jobs,
            intake,
            self._recordings.spool,
            self._exchange.config,
            new_id=self._exchange.mint_request_id,
            clock=self._exchange.clock,
        )

    def _receiver_routes(self, jobs: JobRoom) -> ReceiverRoutes:
        return ReceiverRoutes(
            self._callbacks.receiver,
            jobs.jobs,
            min_rate=self._exchange.config.prerecorded.min_upload_rate,
            new_request_id=self._exchange.mint_request_id,
        )

    def _transcribe_route(
        self, intake: Intake, jobs: JobRoutes | None, client_port: Callable[[], tuple[str, int]]
    ) -> Transcribe:
        return Transcribe(
            intake,
            jobs,
            self._recordings.sync,
            self._recordings.spool,
            self._callbacks.targets,
            self._callbacks.receiver,
            self._exchange.config,
            api_key=self._exchange.api_key,
            new_request_id=self._exchange.mint_request_id,
            client_port=client_port,
        )

    # On the sidecar only

    def _stored(self, store: Store | None) -> list[Operation]:
        """Live calls, and what there is to show of those that are over."""
        exchange, authenticator = self._exchange, self._exchange.authenticator
        new_id, most = exchange.mint_request_id, exchange.config.sidecar.max_observers
        operations = SessionRoutes(
            exchange.calls,
            store,
            exchange.recorder,
            authenticator=authenticator,
            new_id=new_id,
            most_observers=most,
        ).operations()
        if store is not None:
            operations += TranscriptRoutes(
                store, authenticator=authenticator, new_id=new_id, clock=exchange.clock
            ).operations()
        if self._callbacks.notifier is not None:
            operations += DeliveryRoutes(
                self._callbacks.notifier, authenticator=authenticator, new_request_id=new_id
            ).operations()
        return operations

    def _measure(self) -> None:
        self._exchange.metrics.uploads_active = self.uploads.active


@contextlib.contextmanager
def listening(section: str, host: str, port: int) -> Iterator[None]:
    """An address that cannot be had is told with the setting that asks for it."""
    try:
        yield
    except OSError as exc:
        where = f"{section}.host, {section}.port"
        raise ConfigError(f"{where}: cannot listen on {host}:{port}: {reason(exc)}") from exc
