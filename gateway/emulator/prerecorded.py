"""The answer to a pre-recorded request, from the words that were heard. Pure."""

from __future__ import annotations

import hashlib
import itertools
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.emulator import wire
from gateway.emulator.engines.base import Word
from gateway.emulator.listen import hits, model_arch
from gateway.emulator.query import ListenOptions, model_uuid
from gateway.emulator.sound import Format
from gateway.emulator.wire import Message, ModelInfo, SpokenWord


@dataclass(frozen=True, slots=True)
class Upload:
    """Audio that came in one piece, and its format; `opened` is what came out of a container."""

    body: bytes
    format: Format
    header_bytes: int = 0
    data_bytes: int = 0
    opened: bytes | None = None

    @property
    def audio(self) -> bytes:
        """The samples."""
        if self.opened is not None:
            return self.opened
        end = self.header_bytes + self.data_bytes if self.data_bytes else len(self.body)
        return self.body[self.header_bytes : end]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.audio) / self.format.bytes_per_second


def spoken(channels: Sequence[Sequence[Word]], options: ListenOptions, rate: int) -> list[list[SpokenWord]]:
    """The words of each channel as they go out: sentences end at pauses of `utt_split` seconds."""
    speakers: dict[int, int] = {}
    return [_sentences(words, options, rate, speakers) for words in channels]


def _sentences(
    words: Sequence[Word], options: ListenOptions, rate: int, speakers: dict[int, int]
) -> list[SpokenWord]:
    out: list[SpokenWord] = []
    for i, word in enumerate(words):
        pause = round(options.utt_split * rate)
        first = i == 0 or word.start - words[i - 1].end >= pause
        last = i == len(words) - 1 or words[i + 1].start - word.end >= pause
        text = word.written or (word.text.capitalize() if first else word.text) + ("." if last else "")
        out.append(
            SpokenWord(
                text=word.text,
                start=word.start / rate,
                end=word.end / rate,
                confidence=word.confidence,
                punctuated=text if options.punctuate else None,
                speaker=speakers.setdefault(word.voice, len(speakers)) if options.diarize else None,
                language="en" if options.language == "multi" else None,
            )
        )
    return out


def groups(words: Sequence[SpokenWord], utt_split: float) -> list[list[SpokenWord]]:
    """The words in utterances: a pause, or another speaker, begins a new one."""
    found: list[list[SpokenWord]] = []
    for word in words:
        before = found[-1][-1] if found else None
        apart = before is None or word.start - before.end >= utt_split or word.speaker != before.speaker
        found.append([word]) if apart else found[-1].append(word)
    return found


def response(
    request_id: str,
    created_at: str,
    upload: Upload,
    channels: Sequence[Sequence[Word]],
    options: ListenOptions,
    engine_model: str,
) -> Message:
    """The body of a 200."""
    said = spoken(channels, options, upload.format.sample_rate)
    results: Message = {"channels": [_channel(words, options) for words in said]}
    if options.utterances:
        results["utterances"] = _utterances(said, options, request_id)
    return {"metadata": _metadata(request_id, created_at, upload, options, engine_model), "results": results}


def _metadata(
    request_id: str, created_at: str, upload: Upload, options: ListenOptions, engine_model: str
) -> Message:
    model = ModelInfo(model_uuid(options.model), engine_model, model_arch(options.model))
    found: Message = {
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": hashlib.sha256(upload.body).hexdigest(),
        "created": created_at,
        "duration": wire.f32(upload.duration),
        "channels": upload.format.channels if options.multichannel else 1,
        "models": [model.uuid],
        "model_info": {model.uuid: model.object()},
    }
    if options.extra:
        found["extra"] = dict(options.extra)
    if options.tags:
        found["tags"] = list(options.tags)
    if options.diarize:
        found["diarize_info"] = {"model_uuid": model_uuid("diarize-v1"), "arch": "v1"}
    return found


def _channel(words: list[SpokenWord], options: ListenOptions) -> Message:
    languages = {"languages": ["en"] if words else []} if options.language == "multi" else None
    heard = wire.alternative(words, languages)
    if options.paragraphs:
        heard["paragraphs"] = _paragraphs(words, options)
    channel: Message = {"alternatives": [heard]}
    if options.search:
        channel = {"search": [hits(query, words) for query in options.search], **channel}
    if options.detect_language:
        channel |= {"detected_language": "en", "language_confidence": 0.99}
    return channel


def _paragraphs(words: list[SpokenWord], options: ListenOptions) -> Message:
    """One paragraph for each speaker's turn, one sentence for each utterance in it."""
    paragraphs = []
    sentences = groups(words, options.utt_split)
    for speaker, turn in itertools.groupby(sentences, key=lambda sentence: sentence[0].speaker):
        paragraphs.append(_paragraph(list(turn), speaker))
    text = "\n\n".join(" ".join(s["text"] for s in paragraph["sentences"]) for paragraph in paragraphs)
    return {"transcript": f"\n{text}" if text else "", "paragraphs": paragraphs}


def _paragraph(sentences: list[list[SpokenWord]], speaker: int | None) -> Message:
    lines = [
        {"text": wire.transcript(words), "start": wire.f32(words[0].start), "end": wire.f32(words[-1].end)}
        for words in sentences
    ]
    paragraph: Message = {
        "sentences": lines,
        "num_words": sum(map(len, sentences)),
        "start": lines[0]["start"],
        "end": lines[-1]["end"],
    }
    return paragraph if speaker is None else paragraph | {"speaker": speaker}


def _utterances(said: list[list[SpokenWord]], options: ListenOptions, request_id: str) -> list[Message]:
    rng = random.Random(request_id)  # noqa: S311 - ids that are the same for the same request
    found = [
        _utterance(words, channel, rng)
        for channel, all_words in enumerate(said)
        for words in groups(all_words, options.utt_split)
    ]
    return sorted(found, key=lambda utterance: (utterance["start"], utterance["channel"]))


def _utterance(words: list[SpokenWord], channel: int, rng: random.Random) -> Message:
    utterance: Message = {
        "start": wire.f32(words[0].start),
        "end": wire.f32(words[-1].end),
        "confidence": wire.confidence(words),
        "channel": channel,
        "transcript": wire.transcript(words),
        "words": [word.object() for word in words],
    }
    if words[0].speaker is not None:
        utterance["speaker"] = words[0].speaker
    return utterance | {"id": str(uuid.UUID(int=rng.getrandbits(128), version=4))}
