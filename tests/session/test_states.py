"""The state table: every way, no other way, and its picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from gateway.session.states import TABLE, Input, State, after, diagram

DESIGN = Path(__file__).resolve().parents[2] / "docs" / "design.md"


@pytest.mark.parametrize(("step", "following"), TABLE.items(), ids=lambda x: str(x))
def test_each_way_of_the_table(step: tuple[State, Input], following: State) -> None:
    """What the table has, happens."""
    assert after(*step) is following


@pytest.mark.parametrize(
    ("state", "happened"), [step for step in itertools.product(State, Input) if step not in TABLE], ids=str
)
def test_no_other_way(state: State, happened: Input) -> None:
    """What the table does not have is a defect of ours, and loud."""
    with pytest.raises(AssertionError, match="cannot happen in"):
        after(state, happened)


def test_closed_is_final() -> None:
    """Nothing leads out of it."""
    assert not [state for state, _ in TABLE if state is State.CLOSED]


def test_every_state_can_end() -> None:
    """From each state some way leads to CLOSED (continuity.md I22)."""
    ends = {State.CLOSED}
    for _ in State:
        ends |= {state for (state, _), following in TABLE.items() if following in ends}
    assert ends == set(State)


def test_draining_is_never_left_for_streaming() -> None:
    """A client that said its last is not listened to again."""
    assert {to for (state, _), to in TABLE.items() if state is State.DRAINING} == {
        State.DRAINING,
        State.HELD,
        State.CLOSED,
    }


def test_the_diagram_is_in_the_design() -> None:
    """docs/design.md shows the table as it is; on a difference, paste what `diagram()` gives."""
    section = DESIGN.read_text().split("\n## States of a session\n")[1].split("\n## ")[0]
    assert f"```mermaid\n{diagram()}\n```\n" in section
