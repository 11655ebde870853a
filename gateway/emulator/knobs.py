"""Everything about the emulator that can be turned: `Knobs`, and the faults they hold. Pure.

Seconds are emulator seconds: divide by `time_scale` for wall seconds. Seconds of audio are never scaled.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

import msgspec

from gateway.errors import ConfigError

Positive = Annotated[float, msgspec.Meta(gt=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
FromOne = Annotated[int, msgspec.Meta(ge=1)]
Status = Annotated[int, msgspec.Meta(ge=400, le=599)]
CloseCode = Annotated[int, msgspec.Meta(ge=1000, le=4999)]

Kind = Literal[
    "refuse",
    "close",
    "reset",
    "fin",
    "half-open",
    "stop-reading",
    "mute",
    "freeze",
    "slow",
    "late",
    "duplicate",
    "skip",
    "implausible",
    "garbage",
    "unknown-type",
    "oversized",
    "binary",
    "flux-error",
]
Moment = Literal["open", "audio", "finalize", "close-stream", "metadata"]
Oddity = Literal["nan", "negative", "regressing", "beyond"]


class Fault(msgspec.Struct, frozen=True, kw_only=False, forbid_unknown_fields=True, omit_defaults=True):
    """One thing that goes wrong, when, on which connection, and how often.

    Without any trigger (`after_*`, `at`, `when_word`) it happens as soon as the connection is open; one
    that is open already when the knobs change meets it at once. `times` counts over all connections.
    """

    kind: Kind
    # Which connection: the nth attempt to connect (from 1), or one by its id; neither means any.
    nth: FromOne | None = None
    connection: str | None = None
    times: FromOne | None = None
    # When.
    after_bytes: Count | None = None
    after_audio: NonNegative | None = None
    after_seconds: NonNegative | None = None
    at: Moment | None = None
    when_word: str | None = None
    # How long (mute, freeze, slow, late, half-open, stop-reading); None means until the end.
    lasts: Positive | None = None
    # What.
    status: Status = 503
    body: str | None = None
    retry_after: Count | None = None
    code: Annotated[int, msgspec.Meta(ge=0, le=4999)] = 1011
    reason: str = ""
    metadata_first: bool = False
    speed: Positive = 0.8
    delay: NonNegative = 1.0
    count: FromOne = 1
    seconds: Positive = 1.0
    oddity: Oddity = "nan"
    text: str = "{not json"
    size_bytes: FromOne = 1_100_000

    @property
    def triggered_at_open(self) -> bool:
        """Whether no trigger is set, so that the fault comes with the connection."""
        triggers = (self.after_bytes, self.after_audio, self.after_seconds, self.at, self.when_word)
        return all(trigger is None for trigger in triggers) or self.at == "open"


class BatchFault(msgspec.Struct, frozen=True, kw_only=False, forbid_unknown_fields=True, omit_defaults=True):
    """What goes wrong with a pre-recorded request, once so much of its body has come; null: all of it."""

    kind: Literal["refuse", "reset", "stall"]
    nth: FromOne | None = None
    times: FromOne | None = None
    after_bytes: Count | None = None
    status: Status = 503
    body: str | None = None
    retry_after: Count | None = None


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The emulator's settings; the defaults behave like Deepgram on a good day."""

    seed: int = 1
    time_scale: Positive = 1.0  # how many times faster than the wall the emulator's own clocks run

    # The handshake.
    api_keys: tuple[str, ...] | None = None  # None: any credential that is not empty
    models: tuple[str, ...] | None = None  # None: the names Deepgram documents
    handshake_delay: NonNegative = 0.0
    deny_status: Status | None = None  # refuse every attempt, WebSocket and HTTP
    deny_body: str | None = None  # None: Deepgram's body for that status
    retry_after: Count | None = None  # seconds in Retry-After on 429 and 503
    max_connections: Count | None = None  # live connections at once; beyond: 429
    request_id_header: bool = True
    permessage_deflate: bool = False

    # The recogniser's windows, in seconds of audio.
    step: Annotated[float, msgspec.Meta(ge=0.01, le=1)] = 0.1
    interim_interval: Positive = 1.0
    window_min: Positive = 3.0
    window_max: Positive = 5.0
    silence_window: Positive = 2.0  # an empty final acknowledges so much silence
    short_final: Probability = 0.3  # a final of full length leaves its last word to the next window
    revise: Probability = 0.15  # an interim mishears its last word
    word_jitter_ms: NonNegative = 0.0  # sigma of the error of word times
    finalize_reply: Literal["always", "audio", "never"] = "audio"
    finalize_minimum: NonNegative = 0.1  # "audio" answers only if so much is unfinalised
    finalize_speech_final: bool = True
    finalize_cuts_words: bool = False
    speakers: FromOne = 2

    # Pace and duty.
    ingest_speed: Positive | None = 1.25  # how fast audio becomes results, times real time; None: at once
    result_delay: NonNegative = 0.0
    result_delay_jitter: NonNegative = 0.0
    duplicate: Probability = 0.0  # every result may come twice
    net0001_after: Positive | None = 10.0  # without any frame
    net0000_after: Positive | None = 30.0  # without any audio
    flux_idle_after: Positive | None = 60.0
    flux_update_interval: Positive = 0.24
    close_timeout: Positive = 10.0  # wall seconds for the peer to end TCP after our close frame
    max_message_bytes: FromOne = 16 * 1024 * 1024
    max_send_buffer_bytes: FromOne = 8 * 1024 * 1024
    estimated_bytes_per_second: FromOne = 4000  # the clock of encodings without samples
    max_keyterms: Count = 100

    # Engines.
    script: tuple[str, ...] = (
        "good morning thank you for calling",
        "how can i help you today",
        "please hold the line for a moment",
    )
    script_word: Positive = 0.32
    script_gap: NonNegative = 0.08
    script_pause: NonNegative = 0.8
    script_loop: bool = True
    asr_max_streams: Count = 3

    # Pre-recorded.
    batch_delay: NonNegative = 0.0
    batch_max_bytes: FromOne = 2 * 1024**3
    batch_max_active: Count | None = None
    batch_faults: tuple[BatchFault, ...] = ()
    callback_retries: Count = 10
    callback_retry_after: NonNegative = 30.0
    callback_any_port: bool = True
    callback_token: str = "emulated-key-id"  # noqa: S105 - the public identifier of a key that does not exist

    # Records.
    capture_audio: bool = True
    capture_texts: bool = True
    keep_closed: Count = 200

    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.window_min > self.window_max:
            raise ValueError("window_min must not be greater than window_max")
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite")


def parse(data: bytes) -> Knobs:
    """Knobs from a JSON object; ConfigError says what is wrong with it."""
    try:
        return msgspec.json.decode(data, type=Knobs)
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"knobs: {error}") from error


def changed(knobs: Knobs, changes: dict[str, Any]) -> Knobs:
    """The knobs with some replaced, checked anew; `faults` may hold `Fault`s or plain objects."""
    merged = {
        **cast("dict[str, Any]", msgspec.to_builtins(knobs)),
        **cast("dict[str, Any]", msgspec.to_builtins(changes)),
    }
    try:
        return msgspec.convert(merged, type=Knobs)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"knobs: {error}") from error


def schema() -> dict[str, Any]:
    """JSON Schema of `Knobs`."""
    return msgspec.json.schema(Knobs)
