"""A transcript as text, SRT or WebVTT. Pure.

Lines are broken by Deepgram's own package, after what it cannot deal with has been put right: a stretch
without words, a first speaker who is not number 0, words without a speaker among others with one, several
channels, and what WebVTT would take for markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, Literal

import msgspec
from deepgram_captions import DeepgramConverter, srt, webvtt

from gateway.store.transcripts import FinalResult, Transcript

Form = Literal["text", "srt", "vtt"]
WORDS_IN_A_LINE: Final = 8


def render(response: bytes, form: Form) -> str:
    """`response` is Deepgram's JSON of a recording. Raises DecodeError and KeyError for what is none."""
    said: dict[str, Any] = msgspec.json.decode(response)
    if form == "text":
        return _text(said)
    lines = _Lines(said, escape=form == "vtt")
    if form == "srt":
        return srt(lines, WORDS_IN_A_LINE) if lines else ""
    return webvtt(lines, WORDS_IN_A_LINE) if lines else "WEBVTT\n"


def of_call(call: Transcript, finals: Sequence[FinalResult]) -> bytes:
    """A call's finals in the form of the response to a recording; each final is an utterance."""
    channels = max((final.channel for final in finals), default=0) + 1
    utterances = [_utterance(final) for final in finals if final.text]
    created = datetime.fromtimestamp(call.created_at, UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode(
        {
            "metadata": {
                "request_id": call.request_id,
                "created": created.replace("+00:00", "Z"),
                "duration": call.duration or 0.0,
                "channels": channels,
                "models": [],
                "model_info": {},
            },
            "results": {
                "channels": [
                    {"alternatives": [_alternative([u for u in utterances if u["channel"] == channel])]}
                    for channel in range(channels)
                ],
                "utterances": utterances,
            },
        }
    )


def _utterance(final: FinalResult) -> dict[str, Any]:
    words = msgspec.json.decode(final.words)
    return {
        "id": str(final.number),
        "start": final.start,
        "end": final.start + final.duration,
        "confidence": _confidence(words),
        "channel": final.channel,
        "transcript": final.text,
        "words": words,
    }


def _alternative(utterances: Iterable[dict[str, Any]]) -> dict[str, Any]:
    said = list(utterances)
    words = [word for utterance in said for word in utterance["words"]]
    text = " ".join(utterance["transcript"] for utterance in said)
    return {"transcript": text, "confidence": _confidence(words), "words": words}


def _confidence(words: Sequence[dict[str, Any]]) -> float:
    return sum(word.get("confidence", 0.0) for word in words) / len(words) if words else 0.0


class _Lines:
    """What the package asks for lines: `get_lines` and `get_headers`."""

    def __init__(self, said: dict[str, Any], *, escape: bool = False) -> None:
        self._said = said
        self._escape = escape
        self._stretches = _stretches(said["results"])

    def get_lines(self, line_length: int) -> list[list[Any]]:
        """Words by line, each of one speaker, in the order of time."""
        lines = [
            line for words in self._stretches for line in _converter(words).get_lines(line_length) if line
        ]
        lines.sort(key=lambda line: line[0]["start"])
        return [[_escaped(word) for word in line] for line in lines] if self._escape else lines

    def get_headers(self) -> list[str]:
        return DeepgramConverter(self._said, use_exception=False).get_headers()

    def __bool__(self) -> bool:
        return bool(self._stretches)


def _converter(words: list[dict[str, Any]]) -> DeepgramConverter:
    alone = {"results": {"channels": [{"alternatives": [{"words": words}]}]}}
    return DeepgramConverter(alone, use_exception=False)


def _stretches(results: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Words that belong together: an utterance's, else a channel's. All have a speaker, or none has."""
    if results.get("utterances"):
        found = [(one.get("channel", 0), one["words"]) for one in results["utterances"]]
    else:
        found = [
            (number, alternative.get("words", []))
            for number, channel in enumerate(results["channels"])
            for alternative in channel["alternatives"][:1]
        ]
    if len(results["channels"]) > 1 or any("speaker" in word for _, words in found for word in words):
        return [list(_labelled(words, channel)) for channel, words in found if words]
    return [words for _, words in found if words]


def _labelled(words: Iterable[dict[str, Any]], speaker: int) -> Iterator[dict[str, Any]]:
    """The words with a speaker each: who is not told is the one before, at first the channel's."""
    for word in words:
        speaker = word.get("speaker", speaker)
        yield {**word, "speaker": speaker}


def _escaped(word: dict[str, Any]) -> dict[str, Any]:
    return {**word, "punctuated_word": html.escape(_spelt(word), quote=False)}


def _spelt(word: dict[str, Any]) -> str:
    text: str = word.get("punctuated_word", word["word"])
    return text


def _text(said: dict[str, Any]) -> str:
    """A line for each turn where speakers or channels are told apart, else the transcript as it is."""
    lines = _Lines(said).get_lines(WORDS_IN_A_LINE)
    if lines and "speaker" in lines[0][0]:
        turns = groupby((word for line in lines for word in line), lambda word: word["speaker"])
        return "".join(f"Speaker {who}: {' '.join(map(_spelt, words))}\n" for who, words in turns)
    alternatives = [one for channel in said["results"]["channels"] for one in channel["alternatives"][:1]]
    return "".join(f"{one['transcript'].strip()}\n" for one in alternatives if one["transcript"].strip())
