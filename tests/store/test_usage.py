"""Seconds by principal and day, on both databases."""

from __future__ import annotations

from datetime import date

from gateway.store import usage
from gateway.store.store import Store
from gateway.store.usage import Usage

MONDAY, TUESDAY = date(2026, 1, 5), date(2026, 1, 6)


async def test_seconds_add_up(store: Store) -> None:
    """Each principal's and each day's on their own."""
    used = [
        Usage(principal="q", day=MONDAY, accepted_seconds=5.0),
        Usage(principal="p", day=TUESDAY, sent_seconds=2.0),
        Usage(principal="p", day=MONDAY, accepted_seconds=1.0, sent_seconds=2.0, replayed_seconds=0.5),
        Usage(principal="p", day=MONDAY, accepted_seconds=1.0),
    ]
    await store.write(lambda c: usage.add(c, used[:2]))
    await store.write(lambda c: usage.add(c, used[2:]))
    both = Usage(principal="p", day=MONDAY, accepted_seconds=2.0, sent_seconds=2.0, replayed_seconds=0.5)
    assert await store.read(lambda c: usage.of(c, "p", MONDAY, TUESDAY)) == [both, used[1]]
    assert await store.read(lambda c: usage.of(c, "p", TUESDAY, TUESDAY)) == [used[1]]
    assert await store.read(lambda c: usage.of(c, "q", MONDAY, TUESDAY)) == [used[0]]
