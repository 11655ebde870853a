"""The vocabulary of clients."""

from __future__ import annotations

from typing import get_args

import pytest

from gateway.dialects import events


def test_events_are_values() -> None:
    """Equal when they say the same, and fixed once said."""
    assert events.Finalize("a") == events.Finalize("a") != events.Finalize("b")
    with pytest.raises(AttributeError):
        events.Finalize("a").text = "b"  # type: ignore[misc]  # the very thing that must fail


def test_the_vocabulary_is_whole() -> None:
    """Every struct of the module is a `ClientEvent`, so that a match over them can be exhaustive."""
    structs = {kind for kind in vars(events).values() if hasattr(kind, "__struct_fields__")}
    assert structs == set(get_args(events.ClientEvent))
