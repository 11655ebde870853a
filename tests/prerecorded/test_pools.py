"""How many jobs at once, how often, and where."""

from __future__ import annotations

import pytest

from gateway.config import JobsConfig
from gateway.prerecorded.pools import Pools, Turn
from gateway.store.job import Job


def test_by_the_profile() -> None:
    """One pool of all regions, or one of each with twenty places and five retries."""
    assert Pools.of(JobsConfig(), 3) == Pools(1, 10, 3)
    assert Pools.of(JobsConfig(profile="enterprise"), 3) == Pools(3, 20, 6)
    assert Pools.of(JobsConfig(profile="enterprise", concurrency=5, attempts=2), 3) == Pools(3, 5, 2)
    pools = Pools(3, 20, 6)
    assert (pools.at_once, pools.attempts) == (60, 18)


def test_tries_in_one_region_and_then_in_the_next() -> None:
    """Counted anew for a job that is retried."""
    pools = Pools(3, 20, 2)
    for before in (0, 6, 7):
        jobs = [Job(id="a", principal="p", attempts=before + n, max_attempts=before + 6) for n in range(1, 7)]
        turns = [pools.turn(job) for job in jobs]
        assert turns == [Turn(first, 20) for first in (0, 0, 1, 1, 2, 2)]


@pytest.mark.parametrize(("attempts", "most", "nth"), [(1, 3, 1), (1, 30, 1), (3, 5, 3), (5, 5, 5)])
def test_jobs_of_other_settings(attempts: int, most: int, nth: int) -> None:
    """Never before the first attempt of a round, nor beyond those that there were."""
    job = Job(id="a", principal="p", attempts=attempts, max_attempts=most)
    pools = Pools(2, 20, 3)
    assert pools.nth(job) == nth
    assert pools.turn(job) is not None


def test_one_pool_is_anywhere() -> None:
    """As recordings that are transcribed at once are."""
    assert Pools(1, 10, 3).turn(Job(id="a", principal="p", attempts=1)) is None
