"""Text, SRT and WebVTT of what Deepgram answered, and of what was said in a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.deepgram.responses import Transcript as Response
from gateway.prerecorded.captions import Form, of_call, render
from gateway.store.transcripts import FinalResult, Transcript

SAMPLE = Path(__file__).parents[1] / "deepgram" / "samples" / "prerecorded_response.json"


def words(*said: str, start: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    """One word a second."""
    return [
        {"word": word.lower(), "punctuated_word": word, "start": start + n, "end": start + n + 0.5, **more}
        for n, word in enumerate(said)
    ]


def answer(*channels: list[dict[str, Any]], **results: Any) -> bytes:
    found = [
        {"alternatives": [{"transcript": " ".join(word["punctuated_word"] for word in said), "words": said}]}
        for said in channels
    ]
    return msgspec.json.encode({"metadata": {}, "results": {"channels": found, **results}})


def cues(text: str) -> list[str]:
    """The lines of captions that are said."""
    return [line for line in text.splitlines() if line and not line.isdigit() and "-->" not in line]


def test_deepgrams_own_sample() -> None:
    """With times, and a head that tells the request."""
    response = SAMPLE.read_bytes()
    assert render(response, "text").startswith("Good morning.")
    assert render(response, "srt").startswith("1\n00:00:00,400 --> 00:00:01,020\n")
    vtt = render(response, "vtt")
    assert vtt.startswith("WEBVTT\n\nNOTE\nTranscription provided by Deepgram\nRequest Id: 0f6c1f5e")
    assert "\n00:00:00.400 --> 00:00:01.020\n" in vtt


def test_lines_are_short() -> None:
    """Eight words, as subtitles have them."""
    assert cues(render(answer(words(*"abcdefghij")), "srt")) == ["a b c d e f g h", "i j"]


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_silence(form: Form) -> None:
    """Nothing said is an empty file, not an error."""
    expected = {"text": "", "srt": "", "vtt": "WEBVTT\n"}[form]
    assert render(answer([]), form) == expected
    assert render(answer([], utterances=[]), form) == expected
    assert render(answer([], utterances=[{"words": []}]), form) == expected


def test_speakers() -> None:
    """A turn is a line; the first speaker may have any number, and a word may have none."""
    said = [*words("Hi", "there.", speaker=1), *words("And", start=2), *words("Yes?", start=3, speaker=0)]
    assert render(answer(said), "text") == "Speaker 1: Hi there. And\nSpeaker 0: Yes?\n"
    assert cues(render(answer(said), "srt")) == ["[speaker 1]", "Hi there. And", "[speaker 0]", "Yes?"]
    assert cues(render(answer(said), "vtt"))[3:] == ["<v Speaker 1>Hi there. And", "<v Speaker 0>Yes?"]


def test_channels_are_speakers() -> None:
    """Both sides of a call, in the order of time."""
    response = answer(words("Hello?"), words("It's", "me.", start=2))
    assert render(response, "text") == "Speaker 0: Hello?\nSpeaker 1: It's me.\n"
    later = answer(words("No.", start=9), words("Well?"))
    assert cues(render(later, "srt")) == ["[speaker 1]", "Well?", "[speaker 0]", "No."]


def test_utterances_are_lines() -> None:
    """A caption does not go over from one to the next."""
    said = words("One.", "Two.")
    response = answer(said, utterances=[{"words": [word]} for word in said])
    assert cues(render(response, "srt")) == ["One.", "Two."]


def test_markup_is_none() -> None:
    """What is said stays text in WebVTT; SRT has no escapes."""
    response = answer(words("<b>", "R&D", "-->"))
    assert "&lt;b&gt; R&amp;D --&gt;\n" in render(response, "vtt")
    assert "<b> R&D -->\n" in render(response, "srt")


def test_no_response() -> None:
    with pytest.raises(KeyError):
        render(b"{}", "text")


def final(number: int, text: str, channel: int = 0, **more: Any) -> FinalResult:
    said = words(*text.split(), start=number * 10.0, confidence=0.5, **more)
    return FinalResult(
        transcript="call",
        number=number,
        channel=channel,
        start=number * 10.0,
        duration=5.0,
        text=text,
        words=msgspec.json.encode(said),
    )


CALL = Transcript(id="call", principal="p", source="live", created_at=1.0, request_id="r", duration=30.0)


def test_a_call_is_like_a_recording() -> None:
    """Deepgram's types can read it; each final is an utterance."""
    response = of_call(CALL, [final(0, "Good day."), final(1, ""), final(2, "Who is it?", 1)])
    read = msgspec.json.decode(response, type=Response)
    assert (read.metadata.request_id, read.metadata.duration, read.metadata.channels) == ("r", 30.0, 2)
    texts = [channel.alternatives[0].transcript for channel in read.results.channels]
    assert texts == ["Good day.", "Who is it?"]
    assert read.results.channels[0].alternatives[0].confidence == 0.5
    assert render(response, "text") == "Speaker 0: Good day.\nSpeaker 1: Who is it?\n"
    assert cues(render(response, "srt")) == ["[speaker 0]", "Good day.", "[speaker 1]", "Who is it?"]


def test_a_call_without_a_word() -> None:
    assert render(of_call(CALL, []), "text") == ""
