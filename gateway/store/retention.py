"""What is old goes, and calls that nobody ended are ended: looked after once an hour."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from gateway.errors import StoreError
from gateway.store import transcripts
from gateway.store.store import Store

EVERY: Final = 3600.0
DAY: Final = 86_400.0
MOST_AT_ONCE: Final = 500
"""Transcripts in a transaction, so that other writes need not wait long."""


async def keep_tidy(
    store: Store, days: float, clock: Callable[[], float], opened: float, every: float = EVERY
) -> None:
    """Until cancelled. Deletes transcripts that are older than `days` (0: none); `clock` is `time.time`.

    `opened`: a time before the store was.
    """
    while True:
        try:
            # Where we came alone, what began before us is of a process that has died.
            await end_abandoned(store, opened if store.alone else clock() - DAY)
            if days:
                await expire(store, clock() - days * DAY)
        except StoreError as error:
            structlog.get_logger().warning("store.untidy", reason=str(error))
        await asyncio.sleep(every)


async def end_abandoned(store: Store, before: float) -> None:
    """Ends the calls begun before that time which have no end."""
    while await store.write(lambda connection: transcripts.end_abandoned(connection, before)):
        pass


async def remove_all(store: Store, principal: str, before: float) -> int:
    """Deletes all that a principal has said, a little at a time; how many transcripts that were."""
    removed, more = 0, True
    while more:
        gone, more = await store.write(
            lambda connection: transcripts.remove_all(connection, principal, before, MOST_AT_ONCE)
        )
        removed += gone
    return removed


async def expire(store: Store, before: float) -> None:
    """Deletes what is older, a little at a time."""
    while await store.write(lambda connection: transcripts.expire(connection, before, MOST_AT_ONCE)):
        pass
