"""The query of a listen request: the bytes as the client wrote them, and a parsed view beside them.

Deepgram's query has repeats, an order, `+` and `%20` that all mean something (keyterm=a+b&keyterm=c), so
nothing is ever parsed and encoded again: an edit removes or adds whole `name=value` tokens of the raw text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import unquote_plus

OWN_PREFIX = "gw_"
"""Parameters with this prefix are the gateway's own and never reach Deepgram."""


@lru_cache(maxsize=128)  # the calls of one phone system all ask for the same
def _values(raw: str) -> Mapping[str, Sequence[str]]:
    """Every value of every name, decoded."""
    values: dict[str, list[str]] = {}
    for token in raw.split("&"):
        name, _, value = token.partition("=")
        if name:
            values.setdefault(unquote_plus(name), []).append(unquote_plus(value))
    return values


class ListenQuery:
    """`raw` is the text after `?`, percent-encoded, ASCII."""

    __slots__ = ("_values", "raw")

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self._values = _values(raw)

    def get(self, name: str) -> str | None:
        """The last value of `name`, decoded; None without one."""
        values = self._values.get(name)
        return values[-1] if values else None

    def all(self, name: str) -> list[str]:
        """Every value of `name` in the client's order."""
        return list(self._values.get(name, ()))

    def has(self, name: str) -> bool:
        """Whether any value of `name` is more than nothing."""
        return any(self._values.get(name, ()))

    def keeps_words(self) -> bool:
        """Whether what is said may be stored: a client says no by `gw_store=false`.

        Raises ValueError for what is neither true nor false: who wants nothing stored must not misspell it.
        """
        asked = self.get("gw_store")
        if asked not in (None, "true", "1", "false", "0"):
            raise ValueError(f"gw_store: true or false is needed, not {asked[:20]!r}")
        return asked not in ("false", "0")

    def flag(self, name: str) -> bool:
        return self.get(name) == "true"

    def keep(self, wanted: Callable[[str], bool]) -> ListenQuery:
        """The query without the tokens whose decoded name is not `wanted`; all others byte for byte."""
        tokens = self.raw.split("&")
        return ListenQuery("&".join(t for t in tokens if wanted(unquote_plus(t.partition("=")[0]))))

    def with_value(self, name: str, value: str) -> ListenQuery:
        """The query with `name` said once, at its end; both are plain ASCII words."""
        others = self.keep(lambda other: other != name).raw
        return ListenQuery(f"{others}&{name}={value}" if others else f"{name}={value}")

    def for_deepgram(self) -> ListenQuery:
        """What goes upstream: everything but our own parameters."""
        if OWN_PREFIX not in self.raw and "%" not in self.raw:
            return self
        return self.keep(lambda name: not name.startswith(OWN_PREFIX))
