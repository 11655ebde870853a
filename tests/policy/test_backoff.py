"""Delays between dials."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.backoff import BUDGET, PERIOD, Backoff


def test_ceilings_double_up_to_the_cap() -> None:
    """With the jitter at its highest, the ceilings themselves show."""
    backoff = Backoff(0.5, 5.0, lambda: 1.0)
    assert [backoff.delay(0.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_reset_begins_again() -> None:
    """A connection that proved healthy owes nothing to its past."""
    backoff = Backoff(0.5, 5.0, lambda: 1.0)
    for _ in range(4):
        backoff.delay(0.0)
    backoff.reset()
    assert backoff.delay(0.0) == 0.5


def test_a_long_outage_needs_no_big_numbers() -> None:
    """The ten thousandth try waits like the tenth."""
    backoff = Backoff(0.5, 5.0, lambda: 1.0)
    assert [backoff.delay(0.0) for _ in range(10_000)][-1] == 5.0


def test_a_healthy_connection_is_replaced_at_once() -> None:
    """Until the budget is spent; then only as often as the cap says, and a reset changes nothing."""
    backoff = Backoff(0.5, 5.0, lambda: 0.0)
    assert [backoff.pause(float(n)) for n in range(BUDGET)] == [0.0] * BUDGET
    assert backoff.pause(100.0) == 5.0
    backoff.reset()
    assert backoff.delay(101.0) == 5.0
    assert backoff.pause(PERIOD + 30.0) == 0.0, "the first ones are long ago"


def test_failures_count_too() -> None:
    """Each redial costs one, whatever the reason."""
    backoff = Backoff(0.5, 5.0, lambda: 0.0)
    assert [backoff.delay(0.0) for _ in range(BUDGET + 1)] == [0.0] * BUDGET + [5.0]


def test_what_is_bounded_otherwise_costs_none() -> None:
    """At the end of a call: the ceilings alone, though the budget is spent, and none of it is used."""
    backoff = Backoff(0.5, 5.0, lambda: 1.0)
    for _ in range(BUDGET - 1):
        backoff.pause(0.0)
    assert [backoff.delay(1.0, in_budget=False) for _ in range(3)] == [0.5, 1.0, 2.0]
    assert (backoff.pause(2.0), backoff.pause(2.0)) == (0.0, 5.0)
    assert backoff.delay(3.0, in_budget=False) == 4.0


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30), st.floats(0.01, 10))
def test_jitter_is_full(draws: list[float], base: float) -> None:
    """Every delay is its ceiling times the draw, from nothing to all of it."""
    randoms = iter(draws)
    backoff = Backoff(base, 8.0, lambda: next(randoms))
    for n, draw in enumerate(draws):
        assert backoff.delay(0.0) == min(8.0, base * 2**n) * draw
