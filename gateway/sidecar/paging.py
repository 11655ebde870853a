"""What a query or a path asks for: pages of a list, the newest first, and the row of an id."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

from aiohttp import web

from gateway.prerecorded.request import BadField

PAGE: Final = 50
LARGEST_PAGE: Final = 1000


class Listed(Protocol):
    """A row of a list."""

    @property
    def id(self) -> str: ...

    @property
    def created_at(self) -> float: ...


Row = TypeVar("Row", bound=Listed)


def page_size(query: Mapping[str, str]) -> int:
    """What `limit` says. Raises BadField."""
    text = query.get("limit")
    if text is None:
        return PAGE
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= LARGEST_PAGE):
        raise BadField("limit", f"a number from 1 to {LARGEST_PAGE} is needed")
    return int(text)


def page_start(query: Mapping[str, str]) -> tuple[float, str] | None:
    """What `cursor` says: the time and the id that the page's rows come before. Raises BadField."""
    cursor = query.get("cursor")
    if cursor is None:
        return None
    created_at, separator, id = cursor.partition("~")
    try:
        at = float(created_at)
    except ValueError:
        at = math.nan
    if not (math.isfinite(at) and separator and storable(id)):
        raise BadField("cursor", "take it from the page before, as it is")
    return at, id


def page_of(found: Sequence[Row], size: int) -> tuple[list[Row], str | None]:
    """A page and the cursor of the next; None: `found`, which may have one row more than `size`, has not."""
    page = list(found[:size])
    return page, f"{page[-1].created_at!r}~{page[-1].id}" if len(found) > size else None


def storable(text: str) -> bool:
    """Whether a database takes it."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def asked_id(request: web.Request) -> str:
    """The id in a path; for one that no database takes "?", which nothing is named."""
    id = request.match_info["id"]
    return id if storable(id) else "?"
