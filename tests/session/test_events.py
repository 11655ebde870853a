"""The vocabulary between a session and its shell."""

from __future__ import annotations

from typing import get_args

import pytest

from gateway.session import events


def test_events_are_values() -> None:
    """Equal when they say the same, and fixed once said."""
    assert events.Dial(1) == events.Dial(1) != events.Dial(2)
    with pytest.raises(AttributeError):
        events.Dial(1).epoch = 2  # type: ignore[misc]  # the very thing that must fail


def test_the_vocabulary_is_whole() -> None:
    """Every struct of the module is an `Event`, so that the shell's match can be exhaustive."""
    structs = {kind for kind in vars(events).values() if hasattr(kind, "__struct_fields__")}
    assert structs == set(get_args(events.Event))
