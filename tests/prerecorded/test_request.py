"""What a caller may say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.query import ListenQuery
from gateway.prerecorded.request import BadField, TranscribeRequest, read

NOTHING = ListenQuery("")


def test_nothing_said() -> None:
    """Everything has a default."""
    assert read({}, NOTHING) == TranscribeRequest()


def test_options_go_to_deepgram() -> None:
    """What is not the router's own is Deepgram's, with its repeats, its order and its types."""
    fields = {
        "model": "nova-3",
        "keyterm": ["a b", "c&d"],
        "punctuate": True,
        "utt_split": 0.8,
        "mode": "async",
    }
    found = read(fields, ListenQuery("diarize=true&tag=x&tag=y&priority=2&gw_store=false"))
    assert found.query == (
        "diarize=true&tag=x&tag=y&model=nova-3&keyterm=a%20b&keyterm=c%26d&punctuate=true&utt_split=0.8"
    )
    assert (found.mode, found.priority) == ("async", 2)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mode": "fast"}, "mode"),
        ({"duration": -1}, "duration"),
        ({"duration": 0}, "duration"),
        ({"duration": "soon"}, "duration"),
        ({"duration": True}, "duration"),
        ({"duration": "nan"}, "duration"),
        ({"duration": 1e300}, "duration"),
        ({"priority": 0}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": [1]}, "priority"),
        ({"url": "ftp://host/a"}, "url"),
        ({"url": 7}, "url"),
        ({"callback": "host"}, "callback"),
        ({"id": "../etc"}, "id"),
        ({"id": ""}, "id"),
        ({"metadata": ["x" * 20_000]}, "metadata"),
        ({"store": "maybe"}, "store"),
        ({"Model": "nova-3"}, "Model"),
        ({"model": {"a": 1}}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_be_used(fields: dict[str, Any], field: str) -> None:
    """The refusal begins with the name of the field."""
    with pytest.raises(BadField) as caught:
        read(fields, NOTHING)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_said_twice() -> None:
    """An option in the query and in the body would be a guess."""
    with pytest.raises(BadField, match="keyterm: is said twice"):
        read({"keyterm": "a"}, ListenQuery("keyterm=b"))


def test_text_means_what_json_does() -> None:
    """A form and a query have no types; the same words mean the same."""
    typed = {"duration": 12.5, "priority": 1, "store": False, "metadata": {"call": 7}, "mode": "sync"}
    text = {"duration": "12.5", "priority": "1", "store": "false", "metadata": '{"call":7}', "mode": "sync"}
    query = "duration=12.5&priority=1&store=false&metadata=%7B%22call%22%3A7%7D&mode=sync"
    assert read(typed, NOTHING) == read(text, NOTHING) == read({}, ListenQuery(query))
    assert read(text, NOTHING).metadata == msgspec.Raw(b'{"call":7}')
    assert read({"metadata": "order-17"}, NOTHING).metadata == msgspec.Raw(b'"order-17"')


@given(
    st.dictionaries(
        st.sampled_from(["mode", "duration", "priority", "url", "callback", "id", "metadata", "store", "tag"])
        | st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_anything_is_used_or_refused(fields: dict[str, Any]) -> None:
    """No JSON makes it fail in any other way."""
    try:
        found: TranscribeRequest | BadField = read(fields, NOTHING)
    except BadField as problem:
        found = problem
    assert str(found).startswith(f"{found.field}: ") if isinstance(found, BadField) else found.query.isascii()
