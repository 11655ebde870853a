"""Where a new connection begins, and what its first results may still say.

Finals received up to the watermark F stay as they are. A new connection has no left context, so cutting at F
itself mishears words that begin there; beginning earlier repeats words. The hybrid does neither where it can:
it begins in the silence between the last final word and F. Without such a silence it begins a pre-roll before
F, and its first results lose the words that are final already.

Which these are, times alone do not say: two connections hear the same word some 50 ms apart, and a short word
is not much longer than that. Nor do texts: people repeat words, and recognisers mishear. So the words of the
overlap are aligned with the last final ones, by text, time, and the side of F on which they lie, and the
cheapest reading decides. In a simulation of breaks with word times that err by 80 ms this left half as many
words double as the words' midpoints alone, and lost none more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from gateway.deepgram.recogniser import LONGEST, objects

Strategy = Literal["hybrid", "preroll", "exact"]

QUIET: Final = 0.2
"""Seconds between the last final word and F that count as silence to begin in."""
TIE: Final = 15e-6
"""Seconds that decide about a word whose middle is the edge itself: less than half a sample, more than what a
float32 is wrong by in the longest hole."""
REMEMBERED: Final = 6
"""How many of the last final words are looked for."""
HEARD: Final = 0.03
"""Seconds of a final word that must lie in a result's window, for the result to say it again."""
MISHEARD, MISSED, EXTRA = 1.0, 0.7, 0.7
"""What it costs to take one word for another, not to hear one again, and to drop one that was not known."""
APART: Final = 3.0
"""What it costs, per square second, that a word and its repetition lie apart,"""
WRONG_SIDE: Final = 50.0
"""and that a dropped word lies after F, or a kept one before it."""
BRIEF: Final = 0.3
"""Seconds that a result's first word may have taken, if it seems to begin with the result: without left
context a recogniser puts its beginning at the first sample, whatever else comes before it."""
DOUBT: Final = math.sqrt(EXTRA / WRONG_SIDE)
"""Seconds before F up to which a word that nothing else is known of is kept."""

_WORD = re.compile(r"\w+")


class Word(NamedTuple):
    """A final word on the client's clock, in seconds; `text` normalised."""

    text: str
    start: float
    end: float


def tail(finals: Iterable[dict[str, Any]]) -> list[Word]:
    """The last words of a channel's last finals, oldest first, as the client got them."""
    words = [
        _word(word)
        for message in finals
        for alternative in list(objects(message.get("channel"), "alternatives"))[:1]
        for word in objects(alternative, "words")
        if _is_timed(word)
    ]
    return words[-REMEMBERED:]


def begin(strategy: Strategy, watermark: float, tails: Sequence[list[Word]], preroll: float) -> float:
    """The second, on the client's clock, with which the next connection begins.

    `watermark` is the lowest of all channels; `tails` the last final words of each.
    """
    if strategy == "exact" or watermark <= 0:
        return watermark
    earliest = max(0.0, watermark - preroll)
    if strategy == "preroll":
        return earliest
    last_word = max((words[-1].end for words in tails if words), default=0.0)
    if watermark - last_word >= QUIET:
        return max(earliest, (last_word + watermark) / 2)
    return earliest


def cut(message: dict[str, Any], mark: float, said: Sequence[Word], edge: float = -1.0) -> bool:
    """Takes from a result, already on the client's clock, what was final before `mark`, the channel's F.

    Returns False when nothing is left that the client does not have. `said` are the last final words. What
    lies before `edge` another connection tells, see `cut_after`: there middles alone decide.
    """
    start, end = message["start"], float(message["start"] + message["duration"])
    message["start"] = max(start, mark)
    message["duration"] = round(max(0.0, end - message["start"]), 6)
    heard = [word for word in said if word.end > start + HEARD]
    changed = False
    for alternative in objects(message.get("channel"), "alternatives"):
        words = list(objects(alternative, "words"))
        timed = [word for word in words if _is_timed(word)]
        new = [_word(word) for word in timed]
        latest = [_middle(word) for word in new]
        if new and new[0].start < start + HEARD:
            latest[0] = max(latest[0], new[0].end - BRIEF / 2)
        known = sum(_middle(word) < edge + TIE for word in new)
        known += _known(new[known:], latest[known:], heard, mark)
        if known:
            dropped, changed = {id(word) for word in timed[:known]}, True
            words = [word for word in words if id(word) not in dropped]
            _rewrite(alternative, words)
        for word in timed[known:]:
            word["start"] = max(word["start"], mark)  # no word of a result begins before its window
            word["end"] = max(word["end"], word["start"])
    if changed:
        _drop_derived(message)
    return bool(message["duration"] > 0)


def cut_after(message: dict[str, Any], mark: float) -> bool:
    """Takes from a result, already on the client's clock, what lies after `mark`: another connection has it.

    Returns False when nothing is left. Whether speech ends there is the other's to say too.
    """
    if message["start"] >= mark:
        return False
    if message["start"] + message["duration"] <= mark:
        return True
    message["duration"] = round(mark - message["start"], 6)
    changed = False
    for alternative in objects(message.get("channel"), "alternatives"):
        words = list(objects(alternative, "words"))
        kept = [word for word in words if not _is_timed(word) or _middle(_word(word)) < mark + TIE]
        if len(kept) < len(words):
            changed = True
            _rewrite(alternative, kept)
        for word in filter(_is_timed, kept):
            word["end"] = min(word["end"], mark)
            word["start"] = min(word["start"], word["end"])
    if changed:
        _drop_derived(message)
        message["speech_final"] = False
    return True


def empty(message: dict[str, Any]) -> None:
    """Takes from a result all that it says but that it is there."""
    for alternative in objects(message.get("channel"), "alternatives"):
        _rewrite(alternative, [])
    _drop_derived(message)


def normal(word: dict[str, Any]) -> str:
    """A word's text without case and punctuation."""
    return "".join(_WORD.findall(str(word.get("word", "")).lower()))


def _is_timed(word: dict[str, Any]) -> bool:
    times = (word.get("start"), word.get("end"))
    return all(isinstance(time, int | float) and abs(time) < LONGEST for time in times)


def _word(word: dict[str, Any]) -> Word:
    return Word(normal(word), float(word["start"]), float(word["end"]))


def _known(words: Sequence[Word], latest: Sequence[float], heard: Sequence[Word], mark: float) -> int:
    """How many of the first `words` are the final words `heard` once more: the cheapest alignment says.

    `latest`: where the middle of each may be at the latest.
    """
    costs = [0.0]  # of aligning the heard words so far with none, one, two … of the new ones
    for _ in words:
        costs.append(costs[-1] + EXTRA)
    for old in heard:
        before, costs = costs, [costs[0] + MISSED]
        for n, new in enumerate(words):
            same = before[n] + MISHEARD * (new.text != old.text) + APART * (_middle(new) - _middle(old)) ** 2
            costs.append(min(same, before[n + 1] + MISSED, costs[n] + EXTRA))
    middles = [_middle(word) for word in words]
    for n in range(len(costs)):
        wrong = [at for at in middles[:n] if at > mark] + [at for at in latest[n:] if at < mark]
        costs[n] += WRONG_SIDE * sum((at - mark) ** 2 for at in wrong)
    return costs.index(min(costs))


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


def _rewrite(alternative: dict[str, Any], kept: list[dict[str, Any]]) -> None:
    """The transcript and confidence of an alternative that lost words."""
    alternative["words"] = kept
    alternative["transcript"] = " ".join(
        str(word.get("punctuated_word") or word.get("word", "")) for word in kept
    )
    confidences = [c for c in (word.get("confidence") for word in kept) if isinstance(c, int | float)]
    alternative["confidence"] = sum(confidences) / len(confidences) if confidences else 0.0


def _drop_derived(message: dict[str, Any]) -> None:
    """What Deepgram derived from words that are no longer there cannot be corrected."""
    message.pop("entities", None)
    start, end = message["start"], message["start"] + message["duration"]
    for search in objects(message.get("channel"), "search"):
        hits = objects(search, "hits")
        search["hits"] = [h for h in hits if not _is_timed(h) or start <= h["start"] < end]
