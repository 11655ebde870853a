"""Live calls: what they share, and the port that they come in by."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import time

import structlog

from gateway.app.ports import listening
from gateway.config import Config, ServerConfig
from gateway.deepgram.ids import uuid7
from gateway.errors import ConfigError
from gateway.live.exchange import Exchange
from gateway.live.front import FrontDoor, HttpServer, tune_listener
from gateway.metrics import Metrics


def make_exchange(
    config: Config, api_key: str | None, metrics: Metrics, tasks: asyncio.TaskGroup
) -> Exchange:
    """With this process's clock and randomness, which all other parts take from it.

    Raises ConfigError for a CA file that is none.
    """
    prefix = f"{secrets.randbits(32):08x}"
    try:
        exchange = Exchange(
            config,
            api_key=api_key,
            metrics=metrics,
            log=structlog.get_logger(),
            tasks=tasks,
            random=secrets.SystemRandom().random,
            mint_request_id=mint_request_id,
            mint_session_id=lambda: f"{prefix}-{secrets.token_hex(16)}",
            mint_token=lambda: secrets.token_urlsafe(32),
            clock=time.time,
        )
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(f"deepgram.ca_file: {config.deepgram.ca_file}: {exc}") from exc
    metrics.on_scrape(exchange.measure)
    return exchange


def mint_request_id() -> str:
    """A request id in Deepgram's form."""
    return uuid7(time.time_ns() // 1_000_000, secrets.randbits(74))


class ClientPort:
    """Takes calls at `address`; with it run what looks after them, and the recorder, if there is one."""

    def __init__(self, exchange: Exchange, http: HttpServer) -> None:
        """`http` answers what is no call."""
        self._exchange = exchange
        self.door = FrontDoor(exchange, http)
        self.address = ("", 0)
        self.outside: socket.socket | None = None
        """A listening socket that somebody else opened."""
        self._listener: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        metrics = exchange.metrics
        metrics.on_scrape(lambda: setattr(metrics, "client_connections", self.door.connections))

    @property
    def is_open(self) -> bool:
        """Whether it has begun to listen."""
        return self._listener is not None

    async def start(self) -> None:
        """Raises ConfigError for a port that is taken."""
        if self._exchange.recorder is not None:
            self._exchange.recorder.start()
        server = self._exchange.config.server
        sock = self.outside
        if sock is None:
            with listening("server", server.host, server.port):
                sock = _listening_socket(server)
        tune_listener(sock)
        self._listener = await asyncio.get_running_loop().create_server(self.door, sock=sock)
        self.address = sock.getsockname()[:2]
        self._sweeping = self._exchange.tasks.create_task(self._exchange.watch())
        self._exchange.log.info("server.listening", host=self.address[0], port=self.address[1])

    def stop_listening(self) -> None:
        """Takes no new connection; calls go on."""
        self.door.draining = True
        if self._listener is not None:
            self._listener.close()

    async def close(self) -> None:
        """Writes what was said, if that can be done soon."""
        self.stop_listening()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._exchange.recorder is not None:
            await self._exchange.recorder.close()

    def reachable_at(self) -> tuple[str, int]:
        """Where this process reaches the port itself: host, as it is in a URL, and port."""
        host, port = self.address
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        return f"[{host}]" if ":" in host else host, port


def _listening_socket(server: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    address = (server.host, server.port)
    sock = socket.create_server(address, family=family, backlog=1024, reuse_port=server.reuse_port)
    sock.setblocking(False)
    return sock
