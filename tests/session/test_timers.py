"""Times of names."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.session.timers import Timers

STEPS = st.lists(st.tuples(st.sampled_from(["set", "clear", "due"]), st.integers(0, 3), st.floats(0, 9)))


@given(STEPS)
def test_the_earliest_is_known(steps: list[tuple[str, int, float]]) -> None:
    """After whatever was set, cleared and taken out."""
    timers, model = Timers[int](), dict[int, float]()
    for step, name, at in steps:
        if step == "set":
            timers.set(name, at)
            model[name] = at
        elif step == "clear":
            timers.clear(name)
            model.pop(name, None)
        else:
            assert dict(timers.due(at)) == {name: when for name, when in model.items() if when <= at}
            model = {name: when for name, when in model.items() if when > at}
        assert timers.earliest == min(model.values(), default=math.inf)
        assert all((name in timers) == (name in model) for name in range(4))


def test_what_was_cleared_meanwhile_is_not_due() -> None:
    """One thing done may make another needless, or set it anew."""
    timers = Timers[str]()
    timers.set("a", 1.0)
    timers.set("b", 1.0)
    timers.set("c", 1.0)
    done = []
    for name, _ in timers.due(2.0):
        done.append(name)
        timers.clear("b")
        timers.set("c", 3.0)
    assert done == ["a"]
    timers.clear_all()
    assert timers.earliest == math.inf
