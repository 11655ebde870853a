"""Moving a message onto another clock."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.deepgram.recogniser import LONGEST, Shift, objects, shift_count, shift_field, shift_times


def test_more_is_added_after_a_hole() -> None:
    """What the client left out within a result moves what comes after it."""
    shift = Shift(seconds=10.0, more=((2.0, 0.5), (4.0, 1.0)))
    assert [shift.at(second) for second in (1.9, 2.0, 4.0)] == [10.0, 10.5, 11.5]
    words: list[dict[str, Any]] = [{"start": 1.9, "end": 2.2}, {"start": 4, "end": 5}]
    shift_times(iter(words), shift)
    assert words == [{"start": 12.4, "end": 12.7}, {"start": 15.5, "end": 16.5}], "both by that of the middle"


def test_what_is_no_time_stays() -> None:
    """-1 means that there is none, and a text is somebody else's."""
    item = {"a": -1, "b": "1.5", "c": 0.1234567}
    for name in ("a", "b", "c", "missing"):
        shift_field(item, name, Shift(seconds=1.0))
    assert item == {"a": -1, "b": "1.5", "c": 1.123457}
    shift_field(odd := {"a": float("nan")}, "a", Shift(seconds=1.0))
    assert odd["a"] != odd["a"], "not a number either, and left as it is"
    shift_count(item, "a", 3)
    shift_count(item, "b", 3)
    assert (item["a"], item["b"]) == (2, "1.5")


@pytest.mark.parametrize("time", [LONGEST, 10**400, float("inf")])
def test_a_time_that_cannot_be(time: float) -> None:
    """It would be passed on as one of ours."""
    with pytest.raises(msgspec.ValidationError, match="start is no time"):
        shift_field({"start": time}, "start", Shift())


def test_objects_of_a_list() -> None:
    """Whatever is in its place."""
    assert list(objects({"words": [{"a": 1}, 2, None, {"b": 3}]}, "words")) == [{"a": 1}, {"b": 3}]
    others: list[Any] = [None, [], {"words": {}}, {}]
    assert not any(list(objects(parent, "words")) for parent in others)
