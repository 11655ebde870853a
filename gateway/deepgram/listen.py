"""Deepgram's two streaming dialects.

v1 is `/v1/listen` (developers.deepgram.com/reference/speech-to-text/listen-streaming), v2 is Flux,
`/v2/listen` (…/listen-flux).
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from gateway.deepgram.heads import typed, v1_head, v1_speech, v2_head
from gateway.deepgram.recogniser import (
    DECIMALS,
    FINAL,
    INTERIM,
    LONGEST,
    MAX_CHANNELS,
    Kind,
    Reading,
    Shift,
    objects,
    shift_count,
    shift_field,
    shift_times,
)


class ListenV1:
    path: ClassVar[str] = "/v1/listen"
    controls: ClassVar[frozenset[str]] = frozenset({"KeepAlive", "Finalize", "CloseStream", "Configure"})
    keepalive: ClassVar[str | bytes] = '{"type":"KeepAlive"}'
    idle_close: ClassVar[bool] = True
    close_stream: ClassVar[str] = '{"type":"CloseStream"}'
    has_summary: ClassVar[bool] = True
    close_codes: ClassVar[frozenset[int]] = frozenset({1000})
    end_code: ClassVar[int | None] = 1000
    has_windows: ClassVar[bool] = True

    def read(self, raw: bytes) -> Reading:
        try:
            head = v1_head(raw)
        except msgspec.ValidationError:
            typed(raw)  # well-formed, but not as we know it: somebody else's to understand
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
                return Reading(Kind.SPEECH_BEGAN, *v1_speech(raw).channel, end=head.timestamp)
            case "UtteranceEnd":
                return Reading(Kind.SPEECH_ENDED, *v1_speech(raw).channel, end=head.last_word_end)
            case "ConfigureSuccess" | "ConfigureFailure":
                accepted = head.type == "ConfigureSuccess"
                return Reading(Kind.CONFIGURED, accepted=accepted, request_id=head.request_id)
        return Reading(Kind.OTHER, request_id=head.request_id)

    def shift(self, message: dict[str, Any], shift: Shift) -> None:
        match message["type"]:
            case "Results":
                message["start"] = shift.start
                message["duration"] = round(shift.end - shift.start, DECIMALS)
                for alternative in objects(message.get("channel"), "alternatives"):
                    shift_times(objects(alternative, "words"), shift)
                    for word in objects(alternative, "words"):
                        shift_count(word, "speaker", shift.speakers)
                for search in objects(message.get("channel"), "search"):
                    shift_times(objects(search, "hits"), shift)
            case "Metadata":
                message["duration"] = shift.duration
            case "SpeechStarted":
                shift_field(message, "timestamp", shift)
            case "UtteranceEnd":
                shift_field(message, "last_word_end", shift)

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

    path: ClassVar[str] = "/v2/listen"
    controls: ClassVar[frozenset[str]] = frozenset({"CloseStream", "Configure"})
    keepalive: ClassVar[str | bytes] = b""
    idle_close: ClassVar[bool] = False
    close_stream: ClassVar[str] = '{"type":"CloseStream"}'
    has_summary: ClassVar[bool] = False
    close_codes: ClassVar[frozenset[int]] = frozenset({1000, 1005})
    end_code: ClassVar[int | None] = None
    has_windows: ClassVar[bool] = False

    def read(self, raw: bytes) -> Reading:
        try:
            head = v2_head(raw)
        except msgspec.ValidationError:
            typed(raw)
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
            shift_count(message, "turn_index", shift.turns)
            shift_field(message, "audio_window_start", shift)
            shift_field(message, "audio_window_end", shift)
            shift_times(objects(message, "words"), shift)

    def error(self, description: str, sequence: int) -> bytes:
        code = "INTERNAL_SERVER_ERROR"
        return msgspec.json.encode(
            {"type": "Error", "sequence_id": sequence, "code": code, "description": description}
        )
