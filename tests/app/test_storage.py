"""The store, as settings say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.app.calls import make_exchange
from gateway.app.storage import Storage
from gateway.errors import ConfigError, StoreError
from gateway.metrics import Metrics
from tests.fakes.stand import settings


def storage(tasks: asyncio.TaskGroup, **store: Any) -> Storage:
    config = settings("http://127.0.0.1:1", store=store)
    return Storage(make_exchange(config, None, Metrics(["r0"], "1"), tasks))


async def test_no_store() -> None:
    """There is nothing to start, nor to close."""
    async with asyncio.TaskGroup() as tasks:
        made = storage(tasks, url="none")
        assert made.store is None
        await made.start()
        await made.close()


async def test_it_is_tidied_as_long_as_it_is_open(tmp_path: Path) -> None:
    """What tidies ends before the store, and the group of tasks after both."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        made = storage(tasks, url=f"sqlite:///{tmp_path}/gateway.db")
        assert made.store
        await made.start()
        assert made._tidying
        await asyncio.sleep(0)
        assert not made._tidying.done()
        await made.close()
        assert made._tidying.done()
        with pytest.raises(StoreError):
            await made.store.put(None, ())  # type: ignore[arg-type]  # it does not come so far


async def test_a_worker_does_not_tidy(tmp_path: Path) -> None:
    """The calls that it finds open are those of the gateway beside it."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        config = settings("http://127.0.0.1:1", store={"url": f"sqlite:///{tmp_path}/gateway.db"})
        made = Storage(make_exchange(config, None, Metrics(["r0"], "1"), tasks), tidy=False)
        await made.start()
        assert made._tidying is None
        await made.close()


async def test_a_url_that_is_none() -> None:
    """One line, with the setting."""
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(ConfigError, match=r"^store\.url: "):
            storage(tasks, url="mysql://x")
