"""The third revision: callbacks from before outlive it, and its way back."""

from __future__ import annotations

import functools

from sqlalchemy import text
from sqlalchemy.engine import URL

from gateway.store import deliveries, migrate
from gateway.store.databases import Connection, connect
from gateway.store.migrations import open_calls, subjects

OLD = """INSERT INTO deliveries (id, principal, url, host, event, body, state, attempts, next_at, created_at)
    VALUES ('d', 'p', 'https://a.example/', 'a.example', 'e', '', 'pending', 0, 1.0, 1.0)"""


async def test_callbacks_from_before(url: URL) -> None:
    """They are of nobody, and are still sent."""
    database = connect(url)
    await database.transact(lambda c: c.run_sync(migrate.upgrade, open_calls.revision))
    await database.transact(lambda c: c.execute(text(OLD)))
    await database.transact(lambda c: c.run_sync(migrate.upgrade, subjects.revision))
    found = await database.transact(functools.partial(deliveries.get, principal="p", delivery_id="d"))
    assert found is not None
    assert (found.subject, found.state) == (None, "pending")

    async def remove(connection: Connection) -> int:
        return await deliveries.remove_of(connection, "p", "d")

    assert await database.transact(remove) == 0
    await database.transact(lambda c: c.run_sync(migrate.downgrade, open_calls.revision))
    count = await database.read(lambda c: c.execute(text("SELECT count(*) FROM deliveries")))
    assert count.scalar_one() == 1
    await database.close()
