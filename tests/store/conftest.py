"""The same tests on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from gateway.metrics import Metrics
from gateway.store.databases import location
from gateway.store.store import Store
from tests.fakes.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """An empty database."""
    if request.param == "sqlite":
        found = location(f"sqlite:///{tmp_path}/gateway.db", {})
    else:
        server: Postgres = request.getfixturevalue("postgres")
        found = location(server.database(), {})
    assert found is not None
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics([], "0")


@pytest.fixture
async def store(url: URL, metrics: Metrics) -> AsyncIterator[Store]:
    """A store with all tables, which are empty."""
    made = await Store.open(url, metrics=metrics)
    yield made
    await made.close()
