"""The emulator: one port, started and stopped, turned and read by tests and by the command line."""

from __future__ import annotations

import asyncio
import contextlib
import ssl as ssl_module
from collections.abc import Callable
from typing import Any, cast

import msgspec
from aiohttp import web

from gateway.emulator.connection import Connection
from gateway.emulator.door import Door
from gateway.emulator.engines import Engine, EngineName, engine_for
from gateway.emulator.host import Host
from gateway.emulator.knobs import Fault, Knobs, changed
from gateway.emulator.records import ConnectionRecord, UploadRecord
from gateway.errors import ConfigError

ACTIONS = ("close", "reset", "fin", "half-open", "mute", "stop-reading", "resume", "freeze", "slow", "late")


class Emulator:
    """A Deepgram stand-in on a socket.

    `engine` is `"tokens"`, `"script"`, `"asr"`, or one of your own. After `start` it listens on `url`.
    """

    def __init__(self, knobs: Knobs | None = None, engine: EngineName | Engine = "tokens") -> None:
        knobs = knobs or Knobs()
        self._host = Host(knobs, engine_for(engine, knobs) if isinstance(engine, str) else engine)
        self._server: asyncio.Server | None = None
        self._http: web.AppRunner | None = None
        self._secure = False
        self.host = ""
        self.port = 0

    @property
    def url(self) -> str:
        """`http://HOST:PORT`, or https with TLS."""
        return f"http{'s' if self._secure else ''}://{self.host}:{self.port}"

    @property
    def knobs(self) -> Knobs:
        """The knobs as they stand."""
        return self._host.knobs

    @property
    def connections(self) -> list[ConnectionRecord]:
        """Every connection that was accepted and is still on record, oldest first."""
        return [record for record in self._host.records.all() if record.status == 101]

    @property
    def refusals(self) -> list[ConnectionRecord]:
        """Every attempt that was refused, oldest first."""
        return [record for record in self._host.records.all() if record.status not in (101, None)]

    @property
    def uploads(self) -> list[UploadRecord]:
        """The latest pre-recorded requests, oldest first."""
        return list(self._host.records.uploads)

    async def start(
        self, host: str = "127.0.0.1", port: int = 0, ssl: ssl_module.SSLContext | None = None
    ) -> None:
        """Listen; port 0 picks a free one."""
        from gateway.emulator.http import application

        self._http = web.AppRunner(
            application(self._host, self), access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        await self._http.setup()
        http = cast("Callable[[], asyncio.BaseProtocol]", self._http.server)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Door(self._host, http), host, port, ssl=ssl, backlog=1024
        )
        self.host, self.port = host, self._server.sockets[0].getsockname()[1]
        self._secure = ssl is not None

    async def stop(self) -> None:
        """Drop every connection and let go of the port."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._host.live.values()):
            connection.abort()
        for door in list(self._host.doors):
            door.abort()
        if self._http is not None:
            await self._http.cleanup()
        if self._server is not None:
            await self._server.wait_closed()
        await self._host.engine.close()
        await asyncio.sleep(0)  # let the aborted transports tell their protocols

    def set(self, knobs: Knobs) -> None:
        """Replace the knobs; open connections meet the new faults too."""
        self._host.set(knobs)

    def patch(self, **changes: Any) -> None:
        """Change some knobs; ConfigError if they do not fit."""
        self._host.set(changed(self._host.knobs, changes))

    def act(self, action: str, connection: ConnectionRecord | str | None = None, **options: Any) -> int:
        """Do something to one open connection, or to all of them; returns to how many it was done.

        `action` is one of `ACTIONS`, or any other kind of fault; `options` are fields of `Fault`.
        """
        wanted = connection.id if isinstance(connection, ConnectionRecord) else connection
        chosen = [c for c in self._host.live.values() if wanted in (None, c.record.id)]
        for live in chosen:
            _act(live, action, options)
        return len(chosen)


def _act(live: Connection, action: str, options: dict[str, Any]) -> None:
    if action == "resume":
        live.cut("resume", by="emulator")
        return
    try:
        fault = msgspec.convert({"kind": action, **options}, type=Fault)
    except msgspec.ValidationError as error:
        raise ConfigError(f"action {action!r}: {error}") from error
    live.strike(fault)


async def run(
    knobs: Knobs, engine: EngineName | Engine, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve until cancelled; `ready` is told the URL once the port is open."""
    emulator = Emulator(knobs, engine)
    await emulator.start(host, port)
    try:
        ready(emulator.url)
        await asyncio.Event().wait()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await emulator.stop()
