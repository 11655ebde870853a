"""Which region to dial."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.regions import Regions


def test_the_first_choice_comes_first() -> None:
    """Nothing failed, so the order of the configuration holds."""
    assert [Regions(["a", "b"]).choose(now) for now in (0.0, 0.1)] == [0, 0]


def test_a_failed_region_rests() -> None:
    """The next one takes its place until the cooldown is over."""
    regions = Regions(["a", "b"], cooldown=10.0)
    regions.failed("a", 100.0)
    assert regions.choose(100.0) == 1
    assert regions.choose(109.9) == 1
    assert regions.choose(110.0) == 0


def test_some_and_in_another_order() -> None:
    """The first usable one of those; of none that is, the one that was left alone longest."""
    regions = Regions(["a", "b", "c"], cooldown=10.0)
    assert regions.choose(0.0, [2, 0]) == 2
    regions.failed("c", 1.0)
    assert regions.choose(2.0, [2, 0]) == 0
    regions.failed("a", 3.0)
    assert regions.choose(4.0, [2, 0]) == 2


def test_a_rested_region_must_prove_itself() -> None:
    """One dial per cooldown tries it; the others stay where it works."""
    regions = Regions(["a", "b"], cooldown=10.0)
    regions.failed("a", 100.0)
    assert [regions.choose(now) for now in (110.0, 110.1, 119.9, 120.0, 120.1)] == [0, 1, 1, 0, 1]
    regions.worked("a")
    assert [regions.choose(120.2), regions.choose(120.3)] == [0, 0]


def test_a_region_that_worked_is_back_at_once() -> None:
    """A result says more than an old failure."""
    regions = Regions(["a", "b"])
    regions.failed("a", 100.0)
    regions.worked("a")
    assert regions.choose(100.0) == 0
    regions.worked("never failed")


def test_a_region_that_flaps() -> None:
    """Up for five seconds, down for five: one dial in ten seconds finds out, all others are elsewhere; calls
    that go on do not dial, and so do not move back (faults.md 19)."""
    regions, failures, changes, before = Regions(["flaps", "b"], cooldown=10.0), 0, 0, 0
    for tenth in range(3000):
        now = tenth / 10
        chosen = regions.choose(now)
        if chosen == 0 and now % 10 >= 5:
            regions.failed("flaps", now)
            failures += 1
        elif chosen == 0:
            regions.worked("flaps")
        changes, before = changes + (chosen != before), chosen
    assert failures <= 300 / 10
    assert changes <= 2 * 300 / 10


def test_when_all_failed_they_are_tried_in_turn() -> None:
    """A call is always dialled somewhere: where nobody has been for the longest time."""
    regions = Regions(["a", "b", "c"])
    for at, name in enumerate("bca"):
        regions.failed(name, float(at))
    assert not regions.any_usable(3.0)
    assert [regions.choose(now) for now in (3.0, 3.1, 3.2, 3.3)] == [1, 2, 0, 1]


def test_the_only_region_is_dialled_always() -> None:
    """Rest is for those that have somebody to stand in."""
    regions = Regions(["a"])
    regions.failed("a", 0.0)
    assert [regions.choose(now) for now in (0.0, 1.0, 10.0, 10.1)] == [0, 0, 0, 0]
    assert regions.any_usable(10.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 100)), max_size=20))
def test_choice_is_usable_when_any_is(history: list[tuple[str, bool, float]]) -> None:
    """Whatever happened, a resting region is chosen only when all rest."""
    regions, now, failed = Regions("abc", cooldown=10.0), 0.0, dict[str, float]()
    for name, worked, pause in history:
        now += pause
        if worked:
            regions.worked(name)
            failed.pop(name, None)
        else:
            regions.failed(name, now)
            failed[name] = now
    usable = {name for name in "abc" if now - failed.get(name, -1e9) >= 10.0}
    assert regions.any_usable(now) is bool(usable)
    assert not usable or "abc"[regions.choose(now)] in usable
