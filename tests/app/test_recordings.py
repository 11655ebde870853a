"""What transcribes recordings, put together; the route itself is in sidecar/test_listen.py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.app.calls import make_exchange
from gateway.app.recordings import Recordings
from gateway.app.storage import Storage
from gateway.errors import ConfigError
from gateway.metrics import Metrics
from tests.fakes.stand import settings


async def test_answers_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    """There must be a store; without `store.prerecorded` seconds count, and no words are kept."""
    async with asyncio.TaskGroup() as tasks:

        def keeps(**store: Any) -> bool:
            spool = {"spool_dir": str(tmp_path / "spool")}
            config = settings("http://127.0.0.1:1", store=store, prerecorded=spool)
            exchange = make_exchange(config, None, Metrics(["r0"], "1"), tasks)
            return Recordings(exchange, Storage(exchange).store).sync.on_result is not None

        url = f"sqlite:///{tmp_path}/gateway.db"
        assert keeps(url=url)
        assert keeps(url=url, prerecorded=False)
        assert not keeps(url="none")


async def test_the_spool_is_measured(tmp_path: Path) -> None:
    """With each scrape; what an earlier process left counts."""
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    (spool / "left").write_bytes(b"x" * 7)
    metrics = Metrics(["r0"], "1")
    async with asyncio.TaskGroup() as tasks:
        config = settings("http://127.0.0.1:1", prerecorded={"spool_dir": str(spool)})
        made = Recordings(make_exchange(config, None, metrics, tasks), None)
        await made.start()
        assert "gw_spool_bytes 7.0" in metrics.render("")[0].decode()
        await made.close()


async def test_an_object_store_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "gateway.prerecorded.bucket", None)
    spool = {"spool_dir": str(tmp_path / "spool"), "spool_url": "s3://recordings"}
    config = settings("http://127.0.0.1:1", prerecorded=spool)
    async with asyncio.TaskGroup() as tasks:
        exchange = make_exchange(config, None, Metrics(["r0"], "1"), tasks)
        with pytest.raises(ConfigError, match=r"^prerecorded\.spool_url: needs obstore; .*'\.\[s3\]'$"):
            Recordings(exchange, None)
