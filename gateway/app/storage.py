"""The store, and who keeps it tidy."""

from __future__ import annotations

import asyncio
import os

from gateway.live.exchange import Exchange
from gateway.store.databases import location
from gateway.store.retention import keep_tidy
from gateway.store.store import Store


class Storage:
    """`store` is None where storing is switched off; then there is nothing to start."""

    def __init__(self, exchange: Exchange, *, tidy: bool = True) -> None:
        """`tidy`: whether what is old is deleted and calls that nobody ended are ended by this process.

        Raises ConfigError for a URL that is none, and for a package that is missing.
        """
        self._exchange = exchange
        self._tidy = tidy  # a worker has no calls, and knows nothing of whose there are
        config = exchange.config.store
        place = location(config.url, os.environ)
        self.store = (
            Store(place, metrics=exchange.metrics, migrate=config.migrate, calls=tidy) if place else None
        )
        self._tidying: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises ConfigError for a store that only a person can mend."""
        opened = self._exchange.clock()
        if self.store is not None:
            await self.store.start()
        if self.store is not None and self._tidy:
            days = self._exchange.config.store.retention_days
            tidying = keep_tidy(self.store, days, self._exchange.clock, opened)
            self._tidying = self._exchange.tasks.create_task(tidying)

    async def close(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait({self._tidying})
        if self.store is not None:
            await self.store.close()
