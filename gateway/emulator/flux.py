"""A Flux connection: what `/v2/listen` says and when. Pure."""

from __future__ import annotations

from gateway.emulator.engines.base import Word
from gateway.emulator.faults import Armed
from gateway.emulator.knobs import Fault
from gateway.emulator.listen import schema_problem
from gateway.emulator.query import FluxOptions, model_uuid
from gateway.emulator.stream import Setting, Stream, decode
from gateway.emulator.wire import Message, ModelInfo, f32

_KNOWN = ("CloseStream", "Configure", "ForceEndTurn")


class FluxStream(Stream):
    """One connection to `/v2/listen`: turns instead of windows."""

    def __init__(self, setting: Setting, options: FluxOptions, now: float) -> None:
        self.options = options
        self._sequence = 0
        self._turn = 0
        self._turn_start = 0
        self._words: list[Word] = []
        self._started = self._eager = False
        self._coming: list[Word] = []
        self._next_update = 0
        self._ending = False
        model = ModelInfo(model_uuid(options.model), options.model, "flux")
        super().__init__(setting, options.format, model, now)

    def ready(self) -> None:
        self._next_update = self._interval()

    def _interval(self) -> int:
        return round(self.knobs.flux_update_interval * self.intake.sample_rate)

    def open(self, armed: list[Armed], now: float) -> None:
        self.say({"type": "Connected", "request_id": self.setting.request_id}, now)
        super().open(armed, now)

    def say(self, message: Message, now: float) -> None:
        """Number a message and send it."""
        self.emit(message | {"sequence_id": self._sequence}, now)
        self._sequence += 1

    # Audio.

    def step(self, at: int, now: float) -> None:
        self._coming += self.intake.ears[0].take()
        new = [word for word in self._coming if word.end <= at]
        self._coming = self._coming[len(new) :]
        if new:
            self.poisoned({word.text for word in new}, now)
            self._heard(new, at, now)
        pause = self._pause(at)
        if self._words and pause is not None:
            self._weigh(pause, at, now)
        if at >= self._next_update and not self._eager:  # after that come TurnResumed or EndOfTurn
            self._next_update = at + self._interval()
            self._turn_info("Update", at, now, self._confidence(pause))

    def _heard(self, new: list[Word], at: int, now: float) -> None:
        self._words += new
        if self._eager:
            self._eager = False
            self._turn_info("TurnResumed", at, now, 0.1)
        if not self._started:
            self._started = True
            self._turn_info("StartOfTurn", at, now, 0.1)

    def _pause(self, at: int) -> float | None:
        """Seconds of silence since the last word; None while one is being spoken."""
        pending = self.intake.ears[0].pending_from
        busy = (pending is not None and pending < at) or any(word.start < at for word in self._coming)
        return None if busy or not self._words else self.seconds(at - self._words[-1].end)

    def _confidence(self, pause: float | None) -> float:
        """That the turn is over: grows with the pause, 0.7 after half a second."""
        return 0.1 if pause is None else min(0.99, 0.1 + 1.2 * pause)

    def _weigh(self, pause: float, at: int, now: float) -> None:
        """Is the turn over, or nearly?"""
        confidence, options = self._confidence(pause), self.options
        if pause * 1000 >= options.eot_timeout_ms:
            self._end_turn(at, now, confidence, "timeout")
        elif confidence >= options.eot_threshold:
            self._end_turn(at, now, confidence, "model")
        elif (
            options.eager_eot_threshold is not None
            and confidence >= options.eager_eot_threshold
            and not self._eager
        ):
            self._eager = True
            self._turn_info("EagerEndOfTurn", at, now, confidence)

    def _end_turn(self, at: int, now: float, confidence: float, trigger: str) -> None:
        self._turn_info("EndOfTurn", at, now, confidence, trigger)
        self._turn += 1
        self._turn_start, self._words = at, []
        self._started = self._eager = False

    def _turn_info(
        self, event: str, at: int, now: float, confidence: float, trigger: str | None = None
    ) -> None:
        message: Message = {
            "type": "TurnInfo",
            "request_id": self.setting.request_id,
            "event": event,
            "turn_index": self._turn,
            "audio_window_start": f32(self.seconds(self._turn_start)),
            "audio_window_end": f32(self.seconds(at)),
            "transcript": " ".join(word.text for word in self._words),
            "words": [self._word(word) for word in self._words],
            "end_of_turn_confidence": f32(confidence),
        }
        self.say(message | ({"trigger": trigger} if trigger else {}) | self._languages(), now)

    def _word(self, word: Word) -> Message:
        start, end = self.seconds(word.start), self.seconds(word.end)
        return {"word": word.text, "confidence": f32(word.confidence), "start": f32(start), "end": f32(end)}

    def _languages(self) -> Message:
        if not self.options.model.endswith("multi"):
            return {}
        return {
            "languages": ["en"] if self._words else [],
            "languages_hinted": list(self.options.language_hints),
        }

    def skip(self, samples: int) -> None:
        reached = self._position + samples
        self._coming = [word for word in self._coming + self.intake.ears[0].take() if word.start >= reached]

    # Text.

    def text(self, text: str, now: float) -> None:
        self.last_frame = now
        message = decode(text)
        problem = schema_problem(message, text, _KNOWN)
        if problem:
            self._fatal(
                "UNPARSABLE_CLIENT_MESSAGE", f"Could not deserialize last text message: {problem}", now
            )
        elif message["type"] == "Configure":
            self._configure(message, now)
        elif not self._ending:
            self._ending = message["type"] == "CloseStream"
            if self._ending:
                self.moment("close-stream", now)
            if not self.closed:
                self.ask(message, now)

    def control(self, message: Message, at: int, now: float) -> None:
        if message["type"] == "CloseStream":
            self._finish(at, now)
        elif self._words:
            self._end_turn(at, now, 1.0, "manual")

    def _finish(self, at: int, now: float) -> None:
        """What is left comes as an Update; there is no EndOfTurn, no Metadata and no close status."""
        if self.intake.ears:
            self._words += self._coming + self.intake.ears[0].take()
            if at > self._turn_start:
                self._turn_info("Update", at, now, self._confidence(self._pause(at)))
        self.end(None, "", now)

    def _configure(self, message: Message, now: float) -> None:
        thresholds = message.get("thresholds") or {}
        problem = _threshold_problem(thresholds)
        if problem:
            failure = {"code": "INVALID_THRESHOLD", "description": problem}
            self.say({"type": "ConfigureFailure", "request_id": self.setting.request_id, **failure}, now)
            return
        old = self.options
        self.options = FluxOptions(
            model=old.model,
            format=old.format,
            eot_threshold=thresholds.get("eot_threshold", old.eot_threshold),
            eager_eot_threshold=thresholds.get("eager_eot_threshold", old.eager_eot_threshold),
            eot_timeout_ms=thresholds.get("eot_timeout_ms", old.eot_timeout_ms),
            keyterms=_texts(message, "keyterms", old.keyterms),
            language_hints=_texts(message, "language_hints", old.language_hints),
            numerals=bool(message.get("numerals", old.numerals)),
        )
        self.say(self._configured(), now)

    def _configured(self) -> Message:
        options = self.options
        thresholds = {"eot_threshold": options.eot_threshold, "eot_timeout_ms": options.eot_timeout_ms}
        if options.eager_eot_threshold is not None:
            thresholds["eager_eot_threshold"] = options.eager_eot_threshold
        return {
            "type": "ConfigureSuccess",
            "request_id": self.setting.request_id,
            "thresholds": thresholds,
            "keyterms": list(options.keyterms),
            "language_hints": list(options.language_hints),
            "numerals": options.numerals,
        }

    def _fatal(self, code: str, description: str, now: float) -> None:
        self.say({"type": "Error", "code": code, "description": description}, now)
        self.end(1011, "", now)

    def strike(self, fault: Fault, now: float) -> None:
        if fault.kind == "flux-error":
            self._fatal("INTERNAL_SERVER_ERROR", fault.reason or "An internal server error occurred.", now)
        else:
            super().strike(fault, now)

    # Time.

    def pinged(self, now: float) -> None:
        self.last_frame = now

    def idle_deadline(self) -> float:
        after = self.knobs.flux_idle_after
        return self.last_frame + after if after and not self._ending else float("inf")

    def idle(self, now: float) -> None:
        self._fatal("NET-0001", "No audio or ping within the idle timeout.", now)


def _texts(message: Message, name: str, before: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(message[name]) if message.get(name) is not None else before


def _threshold_problem(thresholds: object) -> str | None:
    """Why thresholds are refused; None if they are fine."""
    if not isinstance(thresholds, dict):
        return "thresholds must be an object"
    limits = {"eot_threshold": (0.5, 1.0), "eager_eot_threshold": (0.3, 0.9), "eot_timeout_ms": (500, 60000)}
    for name, value in thresholds.items():
        if name not in limits:
            return f"unknown threshold {name}"
        low, high = limits[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            return f"{name} must be from {low} to {high}"
    return None
