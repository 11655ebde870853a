"""Recordings that are transcribed while their sender waits: where they lie, who asks, who keeps answers."""

from __future__ import annotations

import os
from pathlib import Path

from gateway.config import PrerecordedConfig
from gateway.errors import ConfigError
from gateway.live.exchange import Exchange
from gateway.prerecorded.keep import Keeper
from gateway.prerecorded.spool import Spool, default_folder
from gateway.prerecorded.sync import Sync
from gateway.prerecorded.transcriber import Transcriber
from gateway.store.store import Store


def _spool(folder: Path, config: PrerecordedConfig) -> Spool:
    if not config.spool_url:
        return Spool(folder, config.spool_bytes)
    try:
        from gateway.prerecorded.bucket import BucketSpool
    except ModuleNotFoundError:
        raise ConfigError(
            "prerecorded.spool_url: needs obstore; in Gateway's source: pip install '.[s3]'"
        ) from None
    insecure = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return BucketSpool(folder, config.spool_bytes, config.spool_url, insecure=insecure)


class Recordings:
    """`spool` and `transcriber` serve jobs too; `sync` is the synchronous route."""

    def __init__(self, exchange: Exchange, store: Store | None) -> None:
        """Raises ConfigError for a spool that cannot be used."""
        config, metrics = exchange.config, exchange.metrics
        folder = default_folder(config.prerecorded.spool_dir, os.environ)
        self.spool = _spool(folder, config.prerecorded)
        self.transcriber = Transcriber(
            config.deepgram,
            attempts=config.prerecorded.attempts,
            tls=exchange.dialer.tls,
            metrics=metrics,
            log=exchange.log,
            random=exchange.random,
        )
        self.sync = Sync(
            config.prerecorded,
            spool=self.spool,
            transcriber=self.transcriber,
            metrics=metrics,
            log=exchange.log,
            own_credential=config.auth.upstream == "gateway",
        )
        self._keeper: Keeper | None = None
        if store is not None:
            self._keeper = Keeper(
                store,
                stores=config.store.prerecorded,
                new_id=exchange.mint_request_id,
                clock=exchange.clock,
                metrics=metrics,
                log=exchange.log,
            )
            self.sync.on_result = self._keeper.keep
        metrics.on_scrape(lambda: setattr(metrics, "spool_bytes", self.spool.used))

    async def start(self) -> None:
        await self.transcriber.__aenter__()

    async def close(self) -> None:
        """After this nothing more comes to the store."""
        await self.sync.close()
        await self.transcriber.__aexit__()
        self.spool.close()
        if self._keeper is not None:
            await self._keeper.close()
