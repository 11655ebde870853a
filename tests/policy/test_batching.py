"""The window that follows the load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.batching import BUSY, IDLE, WINDOWS_MS, Batching


def test_a_fixed_window_stays() -> None:
    """Whatever the load, also 0."""
    for window in (0, 60):
        batching = Batching(window)
        assert [batching.observe(busy) for busy in (0.0, 1.0, 1.0)] == [window] * 3


def test_it_grows_and_shrinks_by_steps() -> None:
    """Under load to its longest, and back when the load is gone."""
    batching = Batching(None)
    assert batching.window_ms == 0
    assert tuple(batching.observe(0.9) for _ in range(6)) == (20, 40, 60, 80, 100, 100)
    assert tuple(batching.observe(0.01) for _ in range(6)) == (80, 60, 40, 20, 0, 0)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_what_lies_between_changes_nothing(loads: list[float]) -> None:
    """Neither busy nor idle: the window stays, so that it does not swing."""
    batching = Batching(None)
    before = batching.window_ms
    for busy in loads:
        window = batching.observe(busy)
        assert window in WINDOWS_MS
        if IDLE <= busy <= BUSY:
            assert window == before
        before = window
