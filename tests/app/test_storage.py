"""The store, as settings say."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.app.calls import make_exchange
from gateway.app.storage import Storage
from gateway.errors import ConfigError, StoreError
from gateway.metrics import Metrics
from gateway.store import transcripts
from gateway.store.store import Store
from gateway.store.transcripts import Transcript, Wanted
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


async def open_calls(store: Store | None) -> list[str]:
    assert store
    found = await store.read(lambda c: transcripts.page(c, "p", Wanted(), 9))
    return sorted(call.id for call in found if call.ended_at is None)


async def test_gateways_on_one_file(tmp_path: Path) -> None:
    """None ends the other's calls; what both have left open is ended by the one that comes after."""
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running: list[Storage] = []
        for name in ("a", "b"):
            one = storage(tasks, url=f"sqlite:///{tmp_path}/gateway.db")
            running.append(one)
            await one.start()
            assert one.store
            began = Transcript(id=name, principal="p", source="live", created_at=time.time())
            await one.store.write(partial(transcripts.begin, calls=[began]))
        await asyncio.sleep(0.3)  # a round of what tidies
        assert await open_calls(running[0].store) == ["a", "b"]
        for one in running:
            await one.close()
        after = storage(tasks, url=f"sqlite:///{tmp_path}/gateway.db")
        await after.start()
        await asyncio.sleep(0.3)
        assert await open_calls(after.store) == []
        await after.close()


async def test_a_url_that_is_none() -> None:
    """One line, with the setting."""
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(ConfigError, match=r"^store\.url: "):
            storage(tasks, url="mysql://x")
