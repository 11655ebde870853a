"""The states of a job."""

from __future__ import annotations

from typing import get_args

import pytest

from gateway.store.job import STATES, TERMINAL, TRANSITIONS, JobEvent, JobState, after


def test_succeeded_is_for_ever() -> None:
    """A result never changes (continuity.md I20): nothing leads out of `succeeded`."""
    assert not [state for state, _ in TRANSITIONS if state == "succeeded"]


def test_only_a_retry_leads_out_of_a_terminal_state() -> None:
    """What ended stays as it is until someone says otherwise."""
    assert {event for state, event in TRANSITIONS if state in TERMINAL} == {"retried"}


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_left_or_terminal(state: JobState) -> None:
    """No job is stuck: each state that is not an end has a way to every end."""
    reached: set[JobState] = {state}
    new = reached
    while new:
        new = {to for (at, _), to in TRANSITIONS.items() if at in new} - reached
        reached |= new
    assert state == "succeeded" or reached >= {"succeeded", "failed", "cancelled"}


def test_what_cannot_happen_is_loud() -> None:
    """An event that a state does not know raises."""
    for event in get_args(JobEvent):
        with pytest.raises(KeyError):
            after("succeeded", event)
