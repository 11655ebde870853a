"""The pace to Deepgram."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.session.pacer import Pacer

RATES = st.integers(1000, 400_000)
STARTS = st.sampled_from([0.0, 1.5, 1e6, 1e9])


@given(RATES, STARTS, st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 2)), max_size=60))
def test_never_more_than_pace_and_burst(rate: int, now: float, wishes: list[tuple[int, float]]) -> None:
    """Over any stretch: at most 1.25 times real time and one second more (continuity.md I10)."""
    pacer, gone = Pacer(rate, 1.25, 1.0, now), list[tuple[float, int]]()
    for wish, pause in wishes:
        now += pause
        if pacer.admit(wish, now):
            gone.append((now, wish))
    for i, (start, _) in enumerate(gone):
        total = 0
        for at, length in gone[i:]:
            total += length
            assert total <= rate * (1.0 + 1.25 * (at - start)) + 1


@given(RATES, STARTS, st.integers(1, 400_000))
def test_ready_means_allowed(rate: int, now: float, length: int) -> None:
    """A timer set to that time does not fire in vain, and not much later than it could."""
    pacer = Pacer(rate, 1.25, 1.0, now)
    pacer.spend(length, now)
    wanted = min(length, rate // 2 + 1)
    at = max(now, pacer.ready_at(wanted))
    if at > now:
        assert not pacer.admit(wanted, at - 0.001)
    assert pacer.admit(wanted, at)


def test_silence_earns_no_more_than_the_burst() -> None:
    """A client that was away for an hour is not owed an hour."""
    pacer = Pacer(8000, 1.25, 0.5, 0.0)
    assert not pacer.admit(4001, 3600.0)
    assert pacer.admit(3999, 3600.0)


def test_a_change_of_pace_gives_nothing_away() -> None:
    """What was sent ahead stays sent ahead; a second ahead at 1.0 is 0.2 s more than one at 1.25."""
    pacer = Pacer(8000, 1.0, 1.0, 0.0)
    assert pacer.spend(8000, 0.0)
    pacer.change(1.25, 1.0)
    assert not pacer.admit(100, 0.0)
    assert not pacer.admit(2001, 0.4)
    assert pacer.admit(1900, 0.4)


def test_who_takes_too_much_is_told() -> None:
    """And it counts all the same."""
    pacer = Pacer(8000, 1.0, 1.0, 0.0)
    assert pacer.spend(7999, 0.0)
    assert not pacer.spend(8000, 0.0)
    assert not pacer.admit(1, 0.9)
    assert pacer.admit(7000, 2.0)
