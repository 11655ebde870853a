"""Where a connection begins, and what its first results may say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.session.seam import REMEMBERED, Strategy, Word, begin, cut, cut_after, tail
from tests.session.results import final

HELLO = Word("hello", 8.0, 8.5)


def message(start: float, stop: float, *words: tuple[str, float, float], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(final(start, stop, words=words, **more))
    return found


def texts(result: dict[str, Any]) -> list[str]:
    return [word["word"] for word in result["channel"]["alternatives"][0]["words"]]


@pytest.mark.parametrize(
    ("strategy", "watermark", "tails", "preroll", "second"),
    [
        ("exact", 10.0, [[Word("a", 9, 9.5)]], 0.5, 10.0),
        ("hybrid", 0.0, [], 0.5, 0.0),
        ("preroll", 0.3, [], 0.5, 0.0),
        ("preroll", 10.0, [[Word("a", 9, 9.5)]], 0.5, 9.5),
        ("hybrid", 10.0, [[Word("a", 9, 9.9)]], 0.5, 9.5),
        ("hybrid", 10.0, [[Word("a", 9, 9.79)]], 0.5, 9.895),
        ("hybrid", 10.0, [[Word("a", 9, 9.81)]], 0.5, 9.5),
        ("hybrid", 10.0, [[Word("a", 5, 6)]], 0.5, 9.5),
        ("hybrid", 10.0, [[Word("a", 9, 9.5)], [Word("b", 9, 9.7)]], 0.5, 9.85),
        ("hybrid", 10.0, [[], [Word("b", 9, 9.95)]], 2.0, 8.0),
    ],
)
def test_where_to_begin(
    strategy: Strategy, watermark: float, tails: list[list[Word]], preroll: float, second: float
) -> None:
    """In the silence before the watermark if there is one, and never earlier than the pre-roll."""
    assert begin(strategy, watermark, tails, preroll) == pytest.approx(second)


@pytest.mark.parametrize(
    ("word", "said", "kept"),
    [
        (("old", 9.2, 9.7), [], False),
        (("across", 9.5, 11.0), [], True),  # begins before, but is new
        (("across", 9.1, 10.5), [], False),
        (("across", 9.0, 10.5), [], True),  # it begins where the sound does: who knows when it really began
        (("new", 10.2, 10.5), [HELLO], True),
        (("no", 9.9, 10.0), [Word("no", 9.9, 10.0)], False),
        (("No.", 9.9, 10.0), [Word("no", 9.9, 10.0)], False),
        (("yes", 9.9, 10.0), [Word("no", 9.3, 9.5)], True),
        (("no", 9.9, 10.0), [], True),  # a final that was silent said nothing
        (("no", 9.97, 10.07), [Word("no", 9.9, 10.0)], False),  # 70 ms of jitter
        (("no", 10.02, 10.12), [Word("no", 9.9, 10.0)], False),
        (("no", 10.4, 10.5), [Word("no", 9.9, 10.0)], True),
    ],
)
def test_what_is_new(word: tuple[str, float, float], said: list[Word], kept: bool) -> None:
    """By place, text and time together; never by a word's start or its text alone."""
    result = message(9.0, 11.5, word)
    assert cut(result, 10.0, said)
    assert bool(texts(result)) is kept


@pytest.mark.parametrize(
    ("said", "heard", "new"),
    [
        # "no no": the new connection heard both, whatever it thinks when
        ("no 9.7 9.9", "no 9.7 9.9, no 9.95 10.1", "no"),
        ("no 9.7 9.9", "no 9.8 10.0, no 10.05 10.2", "no"),
        ("no 9.5 9.7, no 9.75 9.95", "no 9.6 9.8, no 9.85 10.05, well 10.1 10.3", "well"),
        # a short word that comes 100 ms too early is not taken for the one before it
        ("press 9.2 9.5, two 9.5 9.7, for 9.75 9.95", "two 9.4 9.6, for 9.6 9.8, it 9.85 9.95", "it"),
        # nor is a repetition that comes too late a new word
        ("press 9.2 9.5, two 9.5 9.7, for 9.75 9.95", "two 9.7 9.9, for 9.95 10.15, it 10.2 10.3", "it"),
        # one is misheard, one is not heard again
        ("press 9.2 9.5, two 9.5 9.7, for 9.75 9.95", "chess 9.2 9.5, for 9.75 9.95, it 10 10.1", "it"),
        ("press 9.2 9.5, two 9.5 9.7, for 9.75 9.95", "press 9.2 9.5, to 9.5 9.7, four 9.75 9.95", ""),
        # without left context a first word begins with the sound, here 0.4 s early: it is no misheard "times"
        ("of 9.2 9.48, times 9.48 9.92", "it 9.5 10.12, was 10.12 10.6", "it was"),
        # nor is the last one new, though it seems to end late
        ("pound 9.1 9.55, key 9.55 9.9", "key 9.5 10.3, please 10.6 10.9", "please"),
        # only a fragment of the last one was heard
        ("elephant 9.4 9.95", "fant 9.7 9.95, runs 10.0 10.4", "runs"),
    ],
)
def test_an_overlap_of_several_words(said: str, heard: str, new: str) -> None:
    """Each word once, in its order."""

    def spoken(text: str) -> list[tuple[str, float, float]]:
        parts = [item.split() for item in text.split(", ")]
        return [(word, float(start), float(end)) for word, start, end in parts]

    result = message(9.5, 11.0, *spoken(heard))
    cut(result, 10.0, [Word(*word) for word in spoken(said)])
    assert " ".join(texts(result)) == new


def test_the_result_is_whole_without_what_was_cut() -> None:
    """Window, words, transcript, confidence and what was derived from them (continuity.md I3)."""
    result = message(9.5, 11.0, ("one", 9.5, 9.8), ("two", 9.9, 10.4), ("three", 10.4, 11.0), entities=[1])
    words = result["channel"]["alternatives"][0]["words"]
    words[1].update(punctuated_word="Two", confidence=0.4)
    result["channel"]["search"] = [
        {"query": "x", "hits": [{"start": 9.5, "end": 9.8}, {"start": 10.4, "end": 11}]}
    ]
    assert cut(result, 10.0, [])
    assert (result["start"], result["duration"]) == (10.0, 1.0)
    alternative = result["channel"]["alternatives"][0]
    assert [(w["word"], w["start"], w["end"]) for w in words[1:]] == [
        ("two", 10.0, 10.4),
        ("three", 10.4, 11.0),
    ]
    assert alternative["words"] == words[1:]
    assert alternative["transcript"] == "Two three"
    assert alternative["confidence"] == pytest.approx(0.65)
    assert "entities" not in result
    assert result["channel"]["search"][0]["hits"] == [{"start": 10.4, "end": 11}]


def test_nothing_is_touched_where_nothing_is_cut() -> None:
    """Deepgram's own transcript stays, with what was derived from it."""
    result = message(9.5, 11.0, ("two", 10.2, 10.4), entities=[1])
    result["channel"]["alternatives"][0]["transcript"] = "$2"
    assert cut(result, 10.0, [])
    assert result["channel"]["alternatives"][0]["transcript"] == "$2"
    assert result["entities"] == [1]


def test_rounding_is_no_news() -> None:
    """26.6 and 0.138625 are a hair more than 26.738625: the same final twice says nothing new."""
    repeated = message(0, 1) | {"start": 26.6, "duration": 0.138625}
    assert repeated["start"] + repeated["duration"] > 26.738625
    assert not cut(repeated, 26.738625, [])


@pytest.mark.parametrize(("stop", "is_news"), [(9.9, False), (10.0, False), (10.1, True)])
def test_what_ends_before_the_mark_is_no_news(stop: float, is_news: bool) -> None:
    """But a silence that goes further is."""
    assert cut(message(9.5, stop), 10.0, []) is is_news


@pytest.mark.parametrize(
    "word", [{}, {"word": "x"}, {"word": "x", "start": "9", "end": None}, {"start": 9.0, "end": 9.1}]
)
def test_words_of_another_shape_break_nothing(word: dict[str, Any]) -> None:
    """What has no time cannot be said to lie before the mark (faults.md 23)."""
    result = message(9.0, 11.0, ("old", 9.0, 9.5), ("new", 10.5, 10.8))
    words = result["channel"]["alternatives"][0]["words"]
    words.insert(1, word)
    words[2]["confidence"] = "high"
    assert cut(result, 10.0, tail([result]))
    kept = result["channel"]["alternatives"][0]["words"]
    assert (word in kept) is ("end" not in word or word["end"] is None)
    assert kept[-1]["word"] == "new"


def test_the_last_words() -> None:
    """A few are enough, the best alternative's, however many finals they come from."""
    finals = [
        message(0, 1, ("one", 0, 0.5)),
        message(1, 2),
        message(2, 3, ("Two,", 2, 2.5), ("three", 2.5, 3)),
    ]
    finals[0]["channel"]["alternatives"].append({"words": [{"word": "x", "start": 0, "end": 1}]})
    assert tail(finals) == [Word("one", 0, 0.5), Word("two", 2, 2.5), Word("three", 2.5, 3)]
    assert len(tail([message(0, 9, *(("w", n, n + 1) for n in range(9)))])) == REMEMBERED
    assert tail(finals[:2]) == [Word("one", 0, 0.5)]
    assert tail([{"type": "Results"}]) == []
    whole: dict[str, Any] = json.loads(
        '{"channel":{"alternatives":[{"words":[{"word":"a","start":0,"end":1}]}]}}'
    )
    assert repr(tail([whole])[-1].end) == "1.0", "compiled or not, a time is a float"


class TestEdge:
    """Where two connections meet, each tells the words whose middle is on its side."""

    WORDS = (("old", 9.0, 9.4), ("mine", 9.7, 10.2), ("yours", 9.9, 10.2), ("new", 10.5, 10.8))

    def test_the_words_before(self) -> None:
        """They end at the edge at the latest, and so does the result."""
        result = message(8.0, 11.0, *self.WORDS, speech_final=True)
        assert cut_after(result, 10.0)
        assert texts(result) == ["old", "mine"]
        assert result["start"] + result["duration"] == 10.0
        assert result["channel"]["alternatives"][0]["words"][-1]["end"] == 10.0
        assert result["channel"]["alternatives"][0]["transcript"] == "old mine"
        assert not result["speech_final"], "it goes on there"

    def test_the_words_after(self) -> None:
        """All the others, though one of them is as near to the edge as jitter may bring it."""
        result = message(8.0, 11.0, *self.WORDS)
        assert cut(result, 10.0, [], 10.0)
        assert texts(result) == ["yours", "new"]
        assert result["channel"]["alternatives"][0]["words"][0]["start"] == 10.0

    def test_a_first_word_across_it(self) -> None:
        """Its middle decides, as on the other side: both would tell it, or neither."""
        result = message(9.5, 11.0, ("theirs", 9.5, 10.3), ("mine", 10.3, 10.4))
        assert cut(result, 10.0, [], 10.0)
        assert texts(result) == ["mine"]
        other = message(9.0, 10.5, ("theirs", 9.5, 10.3))
        assert cut_after(other, 10.0)
        assert texts(other) == ["theirs"]

    def test_an_end_of_speech_before_the_edge(self) -> None:
        """Nobody else would tell it."""
        result = message(8.0, 11.0, ("old", 9.0, 9.4), speech_final=True)
        assert cut_after(result, 10.0)
        assert result["speech_final"]

    def test_on_one_side(self) -> None:
        """What lies before it passes, what lies after it does not."""
        result = message(8.0, 10.0, ("old", 9.0, 9.4))
        before = json.dumps(result)
        assert cut_after(result, 10.0)
        assert json.dumps(result) == before
        assert not cut_after(message(10.0, 11.0), 10.0)

    def test_search_hits(self) -> None:
        """They are told where they begin."""
        hits = [{"start": 9.0, "end": 9.5}, {"start": 10.5, "end": 10.9}]
        result = message(8.0, 11.0, *self.WORDS)
        result["channel"]["search"] = [{"query": "q", "hits": list(hits)}]
        cut_after(result, 10.0)
        assert result["channel"]["search"][0]["hits"] == hits[:1]
