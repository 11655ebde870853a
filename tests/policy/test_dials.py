"""When a dial may go."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.dials import DialQueue


def drained(queue: DialQueue[str], now: float = 0.0) -> list[tuple[float, str]]:
    """Everything that waits, with the time at which it went."""
    gone = []
    while len(queue):
        gone += [(now, dial) for dial in queue.released(now)]
        now = max(now, queue.ready_at)
    return gone


def test_a_quiet_second_is_a_burst() -> None:
    """Ten at once, then one every tenth of a second."""
    queue = DialQueue[str](10)
    for n in range(13):
        queue.join(str(n), is_new=False)
    times = [time for time, _ in drained(queue, 100.0)]
    assert times == pytest.approx([100.0] * 10 + [100.1, 100.2, 100.3])


def test_at_once_or_in_line() -> None:
    """Who finds nobody before it goes at once, as often as the rate allows, and takes a turn by it."""
    queue = DialQueue[str](2)
    assert [queue.admit(100.0) for _ in range(3)] == [True, True, False]
    queue.join("a", is_new=True)
    assert not queue.admit(102.0), "a waits"
    assert queue.released(100.4) == []
    assert queue.released(100.5) == ["a"]
    assert not queue.admit(100.9)
    assert queue.admit(101.0)


def test_new_calls_and_redials_take_turns() -> None:
    """A new call waits for one redial, not for all of them; and the other way round."""
    queue = DialQueue[str](1)
    for n in range(4):
        queue.join(f"redial{n}", is_new=False)
    for n in range(2):
        queue.join(f"new{n}", is_new=True)
    assert [dial for _, dial in drained(queue)] == [
        "new0",
        "redial0",
        "new1",
        "redial1",
        "redial2",
        "redial3",
    ]


def test_who_left_takes_no_turn() -> None:
    """A call that has ended costs the others nothing; leaving twice does no harm."""
    queue = DialQueue[str](1)
    for name in "abc":
        queue.join(name, is_new=False)
    assert queue.released(0.0) == ["a"]
    queue.leave("b")
    queue.leave("b")
    assert len(queue) == 1
    assert queue.released(1.0) == ["c"]


@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), min_size=1, max_size=200))
def test_no_window_holds_more(rate: int, arrivals: list[tuple[float, bool]]) -> None:
    """In t seconds at most rate * t and a burst go; each goes once, in its line's order."""
    queue, now, gone = DialQueue[int](rate), 0.0, list[tuple[float, int]]()
    for n, (pause, is_new) in enumerate(arrivals):
        now += pause
        queue.join(n, is_new=is_new)
        gone += [(now, dial) for dial in queue.released(now)]
    while len(queue):
        now = max(now, queue.ready_at)
        gone += [(now, dial) for dial in queue.released(now)]
    times = [time for time, _ in gone]
    for (i, start), (j, stop) in itertools.combinations(enumerate(times), 2):
        assert j - i + 1 <= rate * (stop - start) + rate + 1e-6
    for line in (True, False):
        assert [d for _, d in gone if arrivals[d][1] is line] == [
            n for n, (_, is_new) in enumerate(arrivals) if is_new is line
        ]
