"""Threads beside the event loop's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.threads import below, give_way


@pytest.mark.parametrize(
    ("policy", "priority", "wanted"),
    [
        (os.SCHED_FIFO, 10, (os.SCHED_FIFO, 9)),
        (os.SCHED_RR, 2, (os.SCHED_RR, 1)),
        (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 10, (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 9)),
        (os.SCHED_FIFO, 1, (os.SCHED_OTHER, 0)),
        (os.SCHED_OTHER, 0, (os.SCHED_OTHER, 0)),
        (os.SCHED_BATCH, 0, (os.SCHED_BATCH, 0)),
    ],
)
def test_what_gives_way(policy: int, priority: int, wanted: tuple[int, int]) -> None:
    """A real-time thread gets a lower priority than the loop, any other one keeps its own."""
    assert below(policy, priority) == wanted


def test_a_thread_without_priority_stays_as_it_is() -> None:
    """Most processes have none to give up."""

    def scheduled() -> tuple[int, int]:
        return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority

    with ThreadPoolExecutor(1, "tested", give_way) as threads:
        assert threads.submit(scheduled).result() == below(*scheduled())
