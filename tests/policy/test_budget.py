"""What gives way when memory is short."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.budget import CLOSE_AT, REFUSE_AT, SHRINK_AT, SHRINK_TO, Held, Relief, relief


@pytest.mark.parametrize(("size", "refuse"), [(0, False), (85, False), (86, True), (95, True)])
def test_the_first_thing_is_that_nobody_new_comes(size: int, refuse: bool) -> None:
    """Above 85 % sessions that run are left alone, and none begins."""
    assert relief(100, [Held(size, True)]) == Relief(refuse, None, [])


def test_the_longest_backlogs_shrink_to_one_size() -> None:
    """Those below that size lose nothing; afterwards there is some room."""
    held = [Held(size, True) for size in (50, 5, 40, 1)]
    assert relief(100, held) == Relief(True, 44, [])
    held = [Held(size, True) for size in (300, 50, 600, 50)]
    assert relief(1000, held) == Relief(True, 500, [])


def test_the_newest_are_closed_when_shrinking_does_not_help() -> None:
    """Compressed audio cannot be cut; a session that holds nothing would free nothing."""
    held = [Held(40, False), Held(30, False), Held(29, False), Held(0, True)]
    assert relief(100, held) == Relief(False, 0, [2])


def test_nobody_is_closed_between_the_two() -> None:
    """At 96 % of what cannot shrink, waiting is all that there is to do."""
    assert relief(100, [Held(96, False)]) == Relief(True, 0, [])


def test_without_sessions_there_is_nothing_to_do() -> None:
    """An idle gateway lets everybody in."""
    assert relief(100, []) == Relief(False, None, [])


@given(
    st.integers(1, 10_000),
    st.lists(st.builds(Held, st.integers(0, 2000), st.booleans()), max_size=30),
)
def test_it_fits_afterwards(budget: int, held: list[Held]) -> None:
    """Whatever is held: what is left fits, no more is taken than needed, and the order is kept."""
    found = relief(budget, held)
    limit = max(one.size for one in held) if found.limit is None and held else found.limit or 0
    sizes = [min(one.size, limit) if one.can_shrink else one.size for one in held]
    left = sum(sizes) - sum(sizes[index] for index in found.close)
    assert left <= CLOSE_AT * budget
    assert found.refuse is (left > REFUSE_AT * budget)
    assert (found.limit is None) is (sum(one.size for one in held) <= SHRINK_AT * budget)
    assert bool(found.close) is (sum(sizes) > CLOSE_AT * budget)
    assert found.close == sorted(found.close, reverse=True)
    if found.limit and any(one.can_shrink and one.size > found.limit for one in held):
        able = sum(one.can_shrink for one in held)
        assert sum(sizes) > int(SHRINK_TO * budget) - able, "one byte more would have fitted for each"
