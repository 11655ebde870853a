"""Threads beside the event loop's: they write rows, recordings and log lines, and must not hold up a call."""

from __future__ import annotations

import os


def give_way() -> None:
    """Called in a thread as its first act: where the process has real-time priority, the loop's is higher.

    Among equals (sched(7), SCHED_FIFO) the loop would wait until this thread has nothing more to do.
    """
    found = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    policy, priority = below(*found)
    if (policy, priority) != found:
        os.sched_setscheduler(0, policy, os.sched_param(priority))


def below(policy: int, priority: int) -> tuple[int, int]:
    """What gives way to a policy and priority of the kernel's: the same where that is no real-time one, which
    shares the processor out by itself."""
    if policy & ~os.SCHED_RESET_ON_FORK not in (os.SCHED_FIFO, os.SCHED_RR):
        return policy, priority
    return (policy, priority - 1) if priority > 1 else (os.SCHED_OTHER, 0)
