"""How many jobs a worker runs at once, how often a job is tried, and where. Pure.

Deepgram's regions are one pool for jobs, or a pool each (`jobs.profile` "enterprise"). Then each has places
and tries of its own: a job goes to the first region, in the order of the configuration, until its tries there
are used up, then to the next; a region that is in trouble, or full, is passed over meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from gateway.config import JobsConfig
from gateway.store.job import Job


class Turn(NamedTuple):
    """Where an attempt is made: in the region of index `first`, or the next with one of its `places` free."""

    first: int
    places: int


@dataclass(frozen=True, slots=True)
class Pools:
    """`places` and `tries` are those of each of `count` pools."""

    count: int
    places: int
    tries: int

    @classmethod
    def of(cls, config: JobsConfig, regions: int) -> Self:
        is_each = config.profile == "enterprise"
        places, tries = (20, 6) if is_each else (10, 3)
        return cls(regions if is_each else 1, config.concurrency or places, config.attempts or tries)

    @property
    def at_once(self) -> int:
        """Jobs that a worker runs at once."""
        return self.count * self.places

    @property
    def attempts(self) -> int:
        """Attempts at a job before it has failed."""
        return self.count * self.tries

    def nth(self, job: Job) -> int:
        """Which attempt since it was submitted, or retried, the latest one of `job` is, from 1.

        Never more than there were in all, which holds for jobs that were accepted under other settings.
        """
        left = job.max_attempts - job.attempts
        return min(max(self.attempts - left, 1), max(job.attempts, 1))

    def turn(self, job: Job) -> Turn | None:
        """Where its latest attempt is made; None: wherever Deepgram can be had."""
        if self.count == 1:
            return None
        return Turn((self.nth(job) - 1) // self.tries, self.places)
