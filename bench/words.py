"""Words said against words heard."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_APART = re.compile(r"[\u2012-\u2015/-]")
_MARKS = re.compile(r"[^\w\s']")
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_SPELT = {str(number): word for number, word in enumerate(_DIGITS)} | {
    "10": "ten",
    "mr": "mister",
    "ok": "okay",
    "dept": "department",
}


def normal(text: str) -> list[str]:
    """Words in lower case without punctuation, small numbers spelt; hyphens and dashes separate."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    words = _MARKS.sub(" ", _APART.sub(" ", text)).lower().split()
    return [_SPELT.get(word, word) for word in words]


class Heard(NamedTuple):
    """What became of `said` words."""

    said: int
    misheard: int
    missing: int
    extra: int

    @property
    def wrong(self) -> int:
        return self.misheard + self.missing + self.extra

    @property
    def error_rate(self) -> float:
        """Word error rate, in percent."""
        return 100 * self.wrong / self.said if self.said else 0.0

    def __str__(self) -> str:
        return f"{self.misheard} misheard, {self.missing} missing, {self.extra} extra"


class Pair(NamedTuple):
    """A word said and the word heard for it, by their numbers; None: there is none."""

    said: int | None
    heard: int | None


def align(said: Sequence[str], heard: Sequence[str]) -> list[Pair]:
    """The alignment with the fewest edits; among equals, the one with the most words paired."""
    costs = [[(i + j, i + j) for j in range(len(heard) + 1)] for i in range(len(said) + 1)]
    for i, word in enumerate(said, 1):
        for j, other in enumerate(heard, 1):
            edits, apart = costs[i - 1][j - 1]
            beside = min(costs[i - 1][j], costs[i][j - 1])
            costs[i][j] = min((edits + (word != other), apart), (beside[0] + 1, beside[1] + 1))
    pairs, i, j = [], len(said), len(heard)
    while i or j:
        edits, apart = costs[i][j]
        if i and j and costs[i - 1][j - 1] == (edits - (said[i - 1] != heard[j - 1]), apart):
            i, j = i - 1, j - 1
            pairs.append(Pair(i, j))
        elif i and costs[i - 1][j] == (edits - 1, apart - 1):
            i -= 1
            pairs.append(Pair(i, None))
        else:
            j -= 1
            pairs.append(Pair(None, j))
    return pairs[::-1]


def compare(said: Sequence[str], heard: Sequence[str]) -> Heard:
    """What became of the words said."""
    pairs = align(said, heard)
    misheard = sum(
        p.said is not None and p.heard is not None and said[p.said] != heard[p.heard] for p in pairs
    )
    missing = sum(pair.heard is None for pair in pairs)
    extra = sum(pair.said is None for pair in pairs)
    return Heard(len(said), misheard, missing, extra)
