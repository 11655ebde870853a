"""The two streaming dialects of Deepgram, as far as a session must understand them.

A recogniser says what a raw message does to a session (`read`), moves its times onto another clock
(`shift`), and names the control messages that it knows. It keeps no state.

v1 is `/v1/listen` (developers.deepgram.com/reference/speech-to-text/listen-streaming), v2 is Flux,
`/v2/listen` (…/listen-flux).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final, Protocol

import msgspec


class Kind(enum.IntEnum):
    """What a message means to a session, whatever its type is called."""

    INTERIM = 0
    FINAL = 1
    HELLO = 2
    """Sent once when a connection opens (Flux `Connected`)."""
    SUMMARY = 3
    """Sent at the end of a connection, also before an error close (v1 `Metadata`)."""
    SPEECH_BEGAN = 4
    SPEECH_ENDED = 5
    """v1 `SpeechStarted` and `UtteranceEnd`: `end` is the second they speak of, negative for none."""
    CONFIGURED = 6
    """The answer to a Configure, whatever it says."""
    OTHER = 7


INTERIM: Final = Kind.INTERIM
FINAL: Final = Kind.FINAL
"""By these names where every result comes by: before Python 3.12 an enum is slow to find its members."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """One message of a recogniser. Times are seconds since its connection's first audio.

    `start` is negative where a final does not say where it begins: it covers all since the last one.
    `accepted` is that of a Configure. `sequence` is negative where messages have no number.
    """

    kind: Kind
    channel: int = 0
    channels: int = 1
    start: float = 0.0
    end: float = 0.0
    from_finalize: bool = False
    ends_speech: bool = False
    request_id: str = ""
    begins_turn: bool = False
    may_end_turn: bool = False
    accepted: bool = False
    turn: int = 0
    sequence: int = -1


class Shift(msgspec.Struct, frozen=True):
    """How one connection's numbers become the session's.

    `seconds` is added to every time, and within a result `more` from some seconds on, where the client left
    audio out: (the second, how much); a result's own window is given whole (`start`, `end`), so that finals
    tile; `duration` replaces that of the summary; `speakers` and `turns` are added to labels and turn
    numbers, `sequence` replaces Flux's; with `in_turn` the client already knows that the turn began; with
    `resumes` it was told that the turn may be over, and must be told otherwise before it goes on.
    """

    seconds: float = 0.0
    start: float = 0.0
    end: float = 0.0
    duration: float = 0.0
    speakers: int = 0
    turns: int = 0
    sequence: int = 0
    in_turn: bool = False
    resumes: bool = False
    more: tuple[tuple[float, float], ...] = ()

    def at(self, second: float) -> float:
        """What to add to a time, or to both of something whose middle is `second`."""
        return self.seconds + sum(by for since, by in self.more if second >= since)


class Recogniser(Protocol):
    """What a session needs to know of a streaming dialect."""

    path: str
    controls: frozenset[str]
    keepalive: str | bytes
    """The message that keeps an idle connection open; b"" stands for a WebSocket ping."""
    idle_close: bool
    """Whether a client that sends nothing is closed like NET-0001."""
    close_stream: str
    has_summary: bool
    """Whether a finished connection says so in a message; else its close is all."""
    close_codes: frozenset[int]
    """The close codes of a connection that ended as asked."""
    end_code: int | None
    """The close code that a client sees at the end; None: a close frame without status."""
    has_windows: bool
    """Whether results are windows of words that a cut can divide; a Flux turn is one whole."""

    def read(self, raw: bytes) -> Reading:
        """What `raw` means to a session.

        Raises `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError` when it is no JSON object with
        a `type`, or a result with a channel or a time that cannot be.
        """

    def shift(self, message: dict[str, Any], shift: Shift) -> None:
        """Changes the numbers of a decoded message; unknown fields stay.

        Raises `msgspec.ValidationError` for a time that cannot be.
        """

    def error(self, description: str, sequence: int) -> bytes:
        """The message that says that something went wrong; its number is `sequence` where they have one."""


class _Typed(msgspec.Struct, gc=False):
    type: str


class _ResultMetadata(msgspec.Struct, frozen=True, gc=False):
    request_id: str = ""


class _V1Head(msgspec.Struct, gc=False):
    type: str
    channel_index: tuple[int, int] = (0, 1)
    start: float = 0.0
    duration: float = 0.0
    is_final: bool = False
    speech_final: bool = False
    from_finalize: bool = False
    request_id: str = ""
    timestamp: float = 0.0
    last_word_end: float = 0.0
    metadata: _ResultMetadata = _ResultMetadata()


class _V1Speech(msgspec.Struct, gc=False):
    channel: tuple[int, int] = (0, 1)


class _V2Head(msgspec.Struct, gc=False):
    type: str
    event: str = ""
    turn_index: int = 0
    sequence_id: int = -1
    audio_window_start: float = 0.0
    audio_window_end: float = 0.0
    request_id: str = ""


_typed: Final = msgspec.json.Decoder(_Typed)
_v1_head: Final = msgspec.json.Decoder(_V1Head)
_v2_head: Final = msgspec.json.Decoder(_V2Head)
_v1_speech: Final = msgspec.json.Decoder(_V1Speech)

MAX_CHANNELS: Final = 20
"""Of a multichannel stream (developers.deepgram.com/docs/multichannel)."""
LONGEST: Final = 1e8
"""Seconds: three years. A time beyond it is nonsense, which must not reach arithmetic on samples."""
_DECIMALS: Final = 6
"""A rebased time is rounded to the microsecond: a sample at 48 kHz lasts 21."""


class ListenV1:
    path = "/v1/listen"
    controls = frozenset({"KeepAlive", "Finalize", "CloseStream", "Configure"})
    keepalive: str | bytes = '{"type":"KeepAlive"}'
    idle_close = True
    close_stream = '{"type":"CloseStream"}'
    has_summary = True
    close_codes = frozenset({1000})
    end_code: int | None = 1000
    has_windows = True

    def read(self, raw: bytes) -> Reading:
        try:
            head = _v1_head.decode(raw)
        except msgspec.ValidationError:
            _typed.decode(raw)  # well-formed, but not as we know it: somebody else's to understand
            return Reading(Kind.OTHER)
        if head.type == "Results":
            channel, channels = head.channel_index
            start, end = head.start, head.start + head.duration
            if not 0 <= channel < channels <= MAX_CHANNELS:
                raise msgspec.ValidationError(f"channel {channel} of {channels}")
            if not 0 <= start <= end < LONGEST:
                raise msgspec.ValidationError(f"a window from {start} to {end}")
            # By position: what is named has to be looked up, which takes three times as long.
            return Reading(
                FINAL if head.is_final else INTERIM,
                channel,
                channels,
                start,
                end,
                head.from_finalize,
                head.speech_final,
                head.metadata.request_id,
            )
        match head.type:
            case "Metadata":
                return Reading(Kind.SUMMARY, end=head.duration, request_id=head.request_id)
            case "SpeechStarted":
                return Reading(Kind.SPEECH_BEGAN, *_v1_speech.decode(raw).channel, end=head.timestamp)
            case "UtteranceEnd":
                return Reading(Kind.SPEECH_ENDED, *_v1_speech.decode(raw).channel, end=head.last_word_end)
            case "ConfigureSuccess" | "ConfigureFailure":
                accepted = head.type == "ConfigureSuccess"
                return Reading(Kind.CONFIGURED, accepted=accepted, request_id=head.request_id)
        return Reading(Kind.OTHER, request_id=head.request_id)

    def shift(self, message: dict[str, Any], shift: Shift) -> None:
        match message["type"]:
            case "Results":
                message["start"] = shift.start
                message["duration"] = round(shift.end - shift.start, _DECIMALS)
                for alternative in objects(message.get("channel"), "alternatives"):
                    _shift_times(objects(alternative, "words"), shift)
                    for word in objects(alternative, "words"):
                        _shift_count(word, "speaker", shift.speakers)
                for search in objects(message.get("channel"), "search"):
                    _shift_times(objects(search, "hits"), shift)
            case "Metadata":
                message["duration"] = shift.duration
            case "SpeechStarted":
                _shift_field(message, "timestamp", shift)
            case "UtteranceEnd":
                _shift_field(message, "last_word_end", shift)

    def error(self, description: str, sequence: int) -> bytes:
        error = {"type": "Error", "variant": "UpstreamFailed", "description": description, "message": ""}
        return msgspec.json.encode(error)


_V2_KINDS: Final = {
    "TurnInfo": Kind.INTERIM,
    "Connected": Kind.HELLO,
    "ConfigureSuccess": Kind.CONFIGURED,
    "ConfigureFailure": Kind.CONFIGURED,
}


class ListenV2:
    """Flux: one turn after another instead of windows; the end of a turn is what is final."""

    path = "/v2/listen"
    controls = frozenset({"CloseStream", "Configure"})
    keepalive: str | bytes = b""
    idle_close = False
    close_stream = '{"type":"CloseStream"}'
    has_summary = False
    close_codes = frozenset({1000, 1005})
    end_code: int | None = None
    has_windows = False

    def read(self, raw: bytes) -> Reading:
        try:
            head = _v2_head.decode(raw)
        except msgspec.ValidationError:
            _typed.decode(raw)
            return Reading(Kind.OTHER)
        kind, start, end = (
            _V2_KINDS.get(head.type, Kind.OTHER),
            head.audio_window_start,
            head.audio_window_end,
        )
        if not 0 <= start <= end < LONGEST:
            raise msgspec.ValidationError(f"a window from {start} to {end}")
        ended = head.type == "TurnInfo" and head.event == "EndOfTurn"
        if ended:
            kind, start = Kind.FINAL, -1.0
        return Reading(
            kind,
            start=start,
            end=end,
            begins_turn=head.event == "StartOfTurn",
            may_end_turn=head.event == "EagerEndOfTurn",
            ends_speech=ended,
            accepted=head.type == "ConfigureSuccess",
            turn=head.turn_index,
            sequence=head.sequence_id,
            request_id=head.request_id,
        )

    def shift(self, message: dict[str, Any], shift: Shift) -> None:
        if "sequence_id" in message:
            message["sequence_id"] = shift.sequence
        if message["type"] == "TurnInfo":
            event = message.get("event")
            if shift.resumes and event in ("Update", "StartOfTurn"):
                message["event"] = "TurnResumed"
            elif shift.in_turn and event == "StartOfTurn":
                message["event"] = "Update"
            _shift_count(message, "turn_index", shift.turns)
            _shift_field(message, "audio_window_start", shift)
            _shift_field(message, "audio_window_end", shift)
            _shift_times(objects(message, "words"), shift)

    def error(self, description: str, sequence: int) -> bytes:
        code = "INTERNAL_SERVER_ERROR"
        return msgspec.json.encode(
            {"type": "Error", "sequence_id": sequence, "code": code, "description": description}
        )


def objects(parent: Any, name: str) -> Iterator[dict[str, Any]]:
    """The objects of the list `name` in `parent`: none where the message is not as documented."""
    items = parent.get(name) if isinstance(parent, dict) else None
    if isinstance(items, list):
        yield from (item for item in items if isinstance(item, dict))


def _shift_times(items: Iterator[dict[str, Any]], shift: Shift) -> None:
    for item in items:
        if shift.more:
            times = [t for t in (item.get("start"), item.get("end")) if isinstance(t, int | float)]
            by = Shift(seconds=shift.at(sum(times) / max(1, len(times))))
        else:
            by = shift
        _shift_field(item, "start", by)
        _shift_field(item, "end", by)


def _shift_field(item: dict[str, Any], name: str, shift: Shift) -> None:
    value = item.get(name)
    if isinstance(value, int | float) and value >= 0:  # UtteranceEnd has -1 for "already over"
        if not value < LONGEST:
            raise msgspec.ValidationError(f"{name} is no time")
        item[name] = round(value + shift.at(value), _DECIMALS)


def _shift_count(item: dict[str, Any], name: str, by: int) -> None:
    value = item.get(name)
    if isinstance(value, int):
        item[name] = value + by
