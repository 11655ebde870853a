"""The query stays the client's."""

from __future__ import annotations

from urllib.parse import quote, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.query import ListenQuery

RAW = "model=nova-3&keyterm=a+b&keyterm=c%20d&keyterm=a+b&extra=k:v&tag=&flag&smart_format=true&x=a=b"
TOKENS = st.lists(st.text("abgw_%+=76é ", max_size=8).map(lambda s: quote(s, safe="%+=")), max_size=8)


def test_values_are_read_decoded() -> None:
    """`+` and `%20` are both spaces; repeats keep their order; the last one counts."""
    query = ListenQuery(RAW)
    assert query.all("keyterm") == ["a b", "c d", "a b"]
    assert query.get("keyterm") == "a b"
    assert query.get("tag") == query.get("flag") == ""
    assert query.get("x") == "a=b"
    assert query.get("absent") is None
    assert query.all("absent") == []


def test_flags_are_true_and_nothing_else() -> None:
    """As Deepgram reads them."""
    query = ListenQuery("a=true&b=false&c=1&d&e=True")
    assert [query.flag(name) for name in "abcdef"] == [True, False, False, False, False, False]


def test_answers_cannot_be_changed_through() -> None:
    """A list that was given out is the receiver's own."""
    query = ListenQuery("tag=a")
    query.all("tag").append("b")
    assert query.all("tag") == ["a"]


@pytest.mark.parametrize("raw", ["", RAW, "&&a=1&&", "=x&a=1", "%zz=1&b=%", "a=%67w_"])
def test_what_is_deepgrams_goes_on_byte_for_byte(raw: str) -> None:
    """Order, repeats, `+`, `%20`, empty and broken tokens (continuity.md I19)."""
    assert ListenQuery(raw).for_deepgram().raw == raw


@pytest.mark.parametrize(
    ("raw", "upstream"),
    [
        ("gw_resume=1", ""),
        ("a=1&gw_x=2&b=3", "a=1&b=3"),
        ("gw_x&a=gw_x&xgw_=1", "a=gw_x&xgw_=1"),
        ("%67w_x=1&g%77%5Fy=2&a=1", "a=1"),
    ],
)
def test_our_own_parameters_stay_here(raw: str, upstream: str) -> None:
    """However they are written."""
    assert ListenQuery(raw).for_deepgram().raw == upstream


@given(TOKENS)
def test_only_our_own_tokens_go(tokens: list[str]) -> None:
    """The rest is the client's bytes in the client's order."""
    kept = [t for t in tokens if not unquote_plus(t.partition("=")[0]).startswith("gw_")]
    assert ListenQuery("&".join(tokens)).for_deepgram().raw == "&".join(kept)


@pytest.mark.parametrize(
    ("raw", "changed"),
    [
        ("", "interim_results=true"),
        ("a=b+c&keyterm=%20", "a=b+c&keyterm=%20&interim_results=true"),
        ("interim_results=false&a=1&interim%5Fresults=no", "a=1&interim_results=true"),
    ],
)
def test_a_value_of_ours(raw: str, changed: str) -> None:
    """It takes the place of the client's; everything else stays byte for byte."""
    assert ListenQuery(raw).with_value("interim_results", "true").raw == changed
