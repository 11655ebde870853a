"""Pages, as all lists have them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.prerecorded.request import BadField
from gateway.sidecar.paging import LARGEST_PAGE, PAGE, asked_id, page_of, page_size, page_start


class Row(NamedTuple):
    id: str
    created_at: float


def test_the_size_of_a_page() -> None:
    """As asked for, within bounds."""
    assert page_size({}) == PAGE
    assert page_size({"limit": "1"}) == 1
    assert page_size({"limit": f"00{LARGEST_PAGE}"}) == LARGEST_PAGE


@pytest.mark.parametrize("text", ["", "0", "-1", "1001", "1e2", "x", "²", "٣", "0000000019999", "9" * 5000])
def test_sizes_that_are_none(text: str) -> None:
    """They name the field."""
    with pytest.raises(BadField, match=r"^limit: "):
        page_size({"limit": text})


def test_a_cursor_leads_on() -> None:
    """From a page to the very place where the next begins; the last page has none."""
    rows = [Row("c", 1 / 3), Row("b", 0.25), Row("a~a", 0.25)]
    page, cursor = page_of(rows, 1)
    assert (page, page_start({"cursor": cursor or ""})) == (rows[:1], (1 / 3, "c"))
    assert page_of(rows, 3) == (rows, None)
    assert page_of([], 3) == ([], None)
    assert page_start({}) is None
    assert page_start({"cursor": "0.25~a~a"}) == (0.25, "a~a")


@pytest.mark.parametrize("text", ["", "x", "1", "inf~a", "nan~a", "~a", "1~\0", "1~\udc80"])
def test_cursors_that_are_none(text: str) -> None:
    """Neither time nor id may be what no database knows."""
    with pytest.raises(BadField, match=r"^cursor: "):
        page_start({"cursor": text})


@pytest.mark.parametrize(("said", "asked"), [("a-1", "a-1"), ("ä", "ä"), ("a\0", "?"), ("a\udcff", "?")])
def test_an_id_that_no_database_takes(said: str, asked: str) -> None:
    """Is asked for under a name that nothing has, so that the answer is 404."""
    assert asked_id(make_mocked_request("GET", "/", match_info={"id": said})) == asked
