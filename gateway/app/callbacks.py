"""Callbacks: where they may go, who sends them, what is told of a call's end; and Deepgram's to us."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import msgspec

from gateway.config import CallbackConfig, callback_secrets
from gateway.errors import ConfigError, TargetError
from gateway.live.exchange import Exchange
from gateway.prerecorded.notify import Notifier
from gateway.prerecorded.receiver import Receiver
from gateway.prerecorded.targets import Targets
from gateway.store.deliveries import Delivery
from gateway.store.sessions import Session
from gateway.store.store import Store


class Callbacks:
    """`notifier` is None where there is no store; `receiver` makes the addresses that Deepgram calls."""

    def __init__(
        self, exchange: Exchange, store: Store | None, own_ports: Callable[[], Collection[int]]
    ) -> None:
        """`own_ports`: where this process listens.

        Raises ConfigError for secrets, certificates and addresses that cannot be used.
        """
        config = exchange.config.callback
        signing = callback_secrets(exchange.config, os.environ)
        self._session_url = config.session_url
        self.receiver = Receiver(config, exchange.mint_token)
        self.targets = _targets(config, own_ports)
        if config.session_url:
            if not signing or store is None:
                needed = "callbacks are signed and stored: set callback.secrets_file and store.url"
                raise ConfigError(f"callback.session_url: {needed}")
            try:
                self.targets.judge(config.session_url)
            except TargetError as exc:
                raise ConfigError(f"callback.session_url: {exc}") from None
        self.notifier: Notifier | None = None
        if store is not None:
            self.notifier = Notifier(
                config,
                store,
                self.targets,
                signing,
                metrics=exchange.metrics,
                random=exchange.random,
                clock=exchange.clock,
                new_id=exchange.mint_request_id,
            )

    async def start(self) -> None:
        if self.notifier is not None:
            self.notifier.start()

    async def close(self) -> None:
        if self.notifier is not None:
            await self.notifier.close()

    async def check(self, principal: str, url: str) -> None:
        """Whether the end of a job could be told there. Raises TargetError."""
        if self.notifier is None:
            raise TargetError("callbacks are not available without a store")
        await self.notifier.check(principal, url)

    def session_ended(self, session: Session) -> Delivery | None:
        """The callback that tells of it, to be written with the session's row; None: nobody wants to know."""
        if not self._session_url or self.notifier is None:
            return None
        data = msgspec.json.encode(session)
        return self.notifier.prepare(session.principal, self._session_url, "session.ended", data, session.id)


def _targets(config: CallbackConfig, own_ports: Callable[[], Collection[int]]) -> Targets:
    try:
        return Targets(config, own_ports)
    except OSError as exc:
        raise ConfigError(f"callback.ca_file: {config.ca_file}: {exc}") from exc
