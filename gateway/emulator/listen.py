"""A v1 live connection: what `/v1/listen` says and when. Pure."""

from __future__ import annotations

from typing import Any

from gateway.emulator import wire
from gateway.emulator.engines.base import Word
from gateway.emulator.query import ListenOptions, model_uuid
from gateway.emulator.sound import Format
from gateway.emulator.stream import Setting, Stream, decode
from gateway.emulator.windows import Event, Lull, Onset, Rules, Window, Windows
from gateway.emulator.wire import Message, ModelInfo, SpokenWord

NET0000 = "Deepgram did not provide a response message within the timeout window. See https://dpgr.am/net0000"
NET0001 = "Deepgram did not receive audio data or a text message within the timeout window. See https://dpgr.am/net0001"
_KNOWN = ("CloseStream", "Configure", "Sync", "KeepAlive", "Finalize")


class ListenStream(Stream):
    """One connection to `/v1/listen`."""

    def __init__(self, setting: Setting, options: ListenOptions, now: float) -> None:
        self.options = options
        self._windows: list[Windows] = []
        self._speakers: dict[int, int] = {}
        self._sentence_begins: dict[int, bool] = {}
        self._ending = False
        name = setting.engine.model_name(model_name(options.model))
        model = ModelInfo(model_uuid(options.model), name, model_arch(options.model))
        self._metadata = _result_metadata(setting.request_id, model, options)
        super().__init__(setting, options.format, model, now)

    def channels_heard(self, fmt: Format) -> int:
        return fmt.channels if self.options.multichannel else 1

    def ready(self) -> None:
        rules = Rules.of(self.knobs, self.options, self.intake.sample_rate)
        self._windows = [Windows(rules, ear, self.setting.rng) for ear in self.intake.ears]

    # Audio.

    def step(self, at: int, now: float) -> None:
        for channel, windows in enumerate(self._windows):
            for event in windows.advance(at):
                self._tell(channel, event, now)

    def _tell(self, channel: int, event: Event, now: float) -> None:
        index = (channel, len(self._windows))
        match event:
            case Onset():
                self.emit(wire.speech_started(index, self.seconds(event.at)), now)
            case Lull():
                self.emit(wire.utterance_end(index, self.seconds(event.last_word_end)), now)
            case Window():
                self.poisoned({word.text for word in event.words}, now)
                self.emit(self._results(index, event), now)

    def _results(self, index: tuple[int, int], window: Window) -> Message:
        words = self._spoken(index[0], window)
        channel: Message = {"alternatives": [wire.alternative(words, self._languages(words))]}
        if self.options.search:
            channel["search"] = [hits(query, words) for query in self.options.search]
        message = wire.results(
            index,
            self.seconds(window.start),
            self.seconds(window.end),
            channel,
            self._metadata,
            is_final=window.is_final,
            speech_final=window.speech_final,
            from_finalize=window.from_finalize,
        )
        if self.options.detect_entities and window.is_final:
            message["entities"] = [_entity(i, word) for i, word in enumerate(words) if word.text == "anna"]
        return message

    def _spoken(self, channel: int, window: Window) -> list[SpokenWord]:
        begins = self._sentence_begins.get(channel, True)
        low, high = self.seconds(window.start), self.seconds(window.end)
        words = [self._dress(word, begins and i == 0, low, high) for i, word in enumerate(window.words)]
        if words and window.speech_final and words[-1].punctuated and not window.words[-1].written:
            words[-1] = _with_stop(words[-1])
        if window.is_final and (words or window.speech_final):
            self._sentence_begins[channel] = window.speech_final
        return words

    def _dress(self, word: Word, first: bool, low: float, high: float) -> SpokenWord:
        """A word with what the query asked for, its times as inexact as the knob says."""
        start, end = self._blurred(word, low, high)
        return SpokenWord(
            text=word.text,
            start=start,
            end=end,
            confidence=word.confidence,
            punctuated=_written(word, first) if self.options.punctuate else None,
            speaker=self._speakers.setdefault(word.voice, len(self._speakers))
            if self.options.diarize
            else None,
            language="en" if self.options.language == "multi" else None,
        )

    def _blurred(self, word: Word, low: float, high: float) -> tuple[float, float]:
        start, end, sigma = self.seconds(word.start), self.seconds(word.end), self.knobs.word_jitter_ms / 1000
        if sigma:
            start, end = sorted((self.setting.rng.gauss(start, sigma), self.setting.rng.gauss(end, sigma)))
            start, end = min(max(start, low), high), min(max(end, low), high)
        return start, end

    def _languages(self, words: list[SpokenWord]) -> Message | None:
        if self.options.language != "multi":
            return None
        return {"languages": ["en"] if words else [], "languages_hinted": list(self.options.language_hints)}

    def skip(self, samples: int) -> None:
        for windows in self._windows:
            windows.skip_to(windows.start + samples)

    # Text.

    def text(self, text: str, now: float) -> None:
        self.last_frame = now
        message: Any = decode(text)
        problem = schema_problem(message, text, _KNOWN)
        if problem:
            self.emit(wire.schema_error(f"Could not deserialize last text message: {problem}", text), now)
        elif message["type"] == "Configure":
            self._configure(message, now)
        elif message["type"] in ("Finalize", "CloseStream") and not self._ending:
            self._ending = message["type"] == "CloseStream"
            self.moment("close-stream" if self._ending else "finalize", now)
            if not self.closed:
                self.ask(message, now)

    def end_of_audio(self, now: float) -> None:
        """An empty binary message: the old way to say CloseStream."""
        self.text('{"type":"CloseStream"}', now)

    def control(self, message: Message, at: int, now: float) -> None:
        if message["type"] == "CloseStream":
            self._finish(at, now)
        else:
            self._finalize(message.get("channel"), at, now)

    def _finalize(self, channel: int | None, at: int, now: float) -> None:
        if self.knobs.finalize_reply == "never":
            return
        minimum = 0 if self.knobs.finalize_reply == "always" else self.knobs.finalize_minimum
        shortest = round(minimum * self.intake.sample_rate)
        for number, windows in enumerate(self._windows):
            if channel in (None, number):
                for event in windows.finalize(at, self.knobs.finalize_speech_final, shortest):
                    self._tell(number, event, now)

    def _finish(self, at: int, now: float) -> None:
        for channel, windows in enumerate(self._windows):
            for event in windows.finish(at):
                self._tell(channel, event, now)
        self.moment("metadata", now)
        if not self.closed:
            self.emit(self.last_words(now), now)
            self.end(1000, "", now)

    def _configure(self, message: Message, now: float) -> None:
        request_id, keyterms = self.setting.request_id, message.get("keyterms")
        if keyterms is not None and not self.options.model.startswith("nova-3"):
            why = "keyterms can be changed on Nova-3 streams only"
            reply = wire.configure_failure(request_id, "CONFIGURE_KEYTERMS_NOT_SUPPORTED", why)
        elif keyterms is not None and len(keyterms) > self.knobs.max_keyterms:
            why = f"more than {self.knobs.max_keyterms} keyterms"
            reply = wire.configure_failure(request_id, "CONFIGURE_KEYTERM_LIMIT_EXCEEDED", why)
        else:
            reply = wire.configure_success(request_id, keyterms)
        self.emit(reply, now)

    # Time.

    def pinged(self, now: float) -> None:
        """No sign of life here: the idle timer wants a message."""

    def idle_deadline(self) -> float:
        if self._ending:
            return float("inf")
        quiet, never = self.knobs.net0001_after, self.knobs.net0000_after
        deadlines = [self.last_frame + quiet] if quiet else []
        if never and not self.intake.received_bytes:
            deadlines.append(self.opened_at + never)
        return min(deadlines, default=float("inf"))

    def idle(self, now: float) -> None:
        never = self.knobs.net0000_after
        without_audio = not self.intake.received_bytes and never and now >= self.opened_at + never
        self.end(1011, NET0000 if without_audio else NET0001, now)

    def last_words(self, now: float) -> Message:
        fmt = self.intake.format
        heard = self.intake.received_bytes > 0 and fmt is not None
        channels = fmt.channels if fmt else 1
        duration = self.seconds(self.intake.received_samples)
        model = self.model if heard else None
        return wire.metadata(
            self.setting.request_id, self.setting.created, duration, channels, model, dict(self.options.extra)
        )


def schema_problem(message: Any, text: str, known: tuple[str, ...]) -> str | None:
    """Why a text message is refused, in the words of Deepgram's JSON reader; None if it is fine."""
    if not isinstance(message, dict):
        return "expected value at line 1 column 1"
    kind = message.get("type")
    if not isinstance(kind, str):
        return f"missing field `type` at line 1 column {len(text)}"
    if kind not in known:
        names = ", ".join(f"`{name}`" for name in known)
        column = text.find(kind) + len(kind) + 1
        return f"unknown variant `{kind}`, expected one of {names} at line 1 column {column}"
    return _field_problem(message, kind, len(text))


def _field_problem(message: Message, kind: str, column: int) -> str | None:
    channel, keyterms = message.get("channel"), message.get("keyterms")
    if kind == "Finalize" and channel is not None and (not isinstance(channel, int) or channel < 0):
        return f"invalid value for `channel`, expected u32 at line 1 column {column}"
    texts = isinstance(keyterms, list) and all(isinstance(term, str) for term in keyterms)
    if kind == "Configure" and keyterms is not None and not texts:
        return f"invalid type for `keyterms`, expected a sequence of strings at line 1 column {column}"
    return None


def model_arch(model: str) -> str:
    """`nova-3` for `nova-3-medical` and so on."""
    for family in ("nova-3", "nova-2", "nova", "enhanced", "whisper"):
        if model.startswith(family):
            return family
    return "base"


def model_name(model: str) -> str:
    """`medical-nova-3` for `nova-3-medical`, `general-nova-3` for `nova-3`."""
    arch = model_arch(model)
    kind = model.removeprefix(arch).strip("-") or "general"
    return f"{kind}-{arch}"


def _result_metadata(request_id: str, model: ModelInfo, options: ListenOptions) -> Message:
    """The `metadata` of every Results of a connection."""
    found: Message = {"request_id": request_id, "model_info": model.object(), "model_uuid": model.uuid}
    if options.extra:
        found["extra"] = dict(options.extra)
    if options.diarize:
        found["diarize_info"] = {"model_uuid": model_uuid("diarize-v1"), "arch": "v1"}
    return found


def _written(word: Word, first: bool) -> str:
    """A word as `smart_format` would write it."""
    return word.written or (word.text.capitalize() if first else word.text)


def _with_stop(word: SpokenWord) -> SpokenWord:
    """The last word of a sentence."""
    return SpokenWord(
        word.text, word.start, word.end, word.confidence, f"{word.punctuated}.", word.speaker, word.language
    )


def hits(query: str, words: list[SpokenWord]) -> Message:
    """Exact matches of a search term of one word."""
    found = [word for word in words if word.text == query.lower()]
    hits = [{"confidence": 1.0, "start": word.start, "end": word.end, "snippet": word.text} for word in found]
    return {"query": query, "hits": hits}


def _entity(at: int, word: SpokenWord) -> Message:
    """The one kind of entity the emulator knows: the name Anna."""
    value = word.text if word.punctuated is None else word.punctuated
    return {
        "label": "NAME",
        "value": value,
        "raw_value": word.text,
        "confidence": wire.f32(word.confidence),
        "start_word": at,
        "end_word": at + 1,
    }
