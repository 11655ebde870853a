"""What a stream reports, one value at a time; as JSON, one line each (docs/stream-json.md)."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

import msgspec

REMEMBERED_FRAMES: Final = 20_000
"""Frames whose time of sending is known: minutes more than a result can be late."""


class Result(msgspec.Struct, frozen=True, tag="result", tag_field="type"):
    """What was said from `start` to `end`, in seconds of audio.

    A final stays; an interim is replaced by the next result of its channel.
    `received`: seconds since the stream began. `latency`: seconds since the audio up to `end` had been sent.
    """

    final: bool
    channel: int
    start: float
    end: float
    text: str
    received: float
    latency: float


class Event(msgspec.Struct, frozen=True, tag="event", tag_field="type"):
    """Any other message of the server, `message` as it came; `name` is its type."""

    name: str
    received: float
    message: dict[str, Any]


class Summary(msgspec.Struct, frozen=True, tag="summary", tag_field="type"):
    """The last line. Latencies are of interims, where there are any, else of finals; None without results.

    A final may end earlier than the interims before it did, so its latency says little about the connection.
    """

    audio_seconds: float
    finals: int
    interims: int
    latency_median: float | None
    latency_p95: float | None
    close_code: int
    close_reason: str

    def line(self) -> str:
        latency = "no results"
        if self.latency_median is not None and self.latency_p95 is not None:
            latency = (
                f"latency {1000 * self.latency_median:.0f} ms median, {1000 * self.latency_p95:.0f} ms p95"
            )
        reason = f" ({self.close_reason})" if self.close_reason else ""
        return (
            f"{self.audio_seconds:.1f} s of audio, {self.finals} finals, {self.interims} interims, "
            f"{latency}, closed {self.close_code}{reason}"
        )


def summarise(results: Sequence[Result], audio_seconds: float, close_code: int, close_reason: str) -> Summary:
    finals = [result.latency for result in results if result.final]
    interims = [result.latency for result in results if not result.final]
    latencies = sorted(interims or finals)
    return Summary(
        audio_seconds=round(audio_seconds, 3),
        finals=len(finals),
        interims=len(interims),
        latency_median=median(latencies) if latencies else None,
        latency_p95=latencies[int(0.95 * (len(latencies) - 1))] if latencies else None,
        close_code=close_code,
        close_reason=close_reason,
    )


class Reader:
    """Makes `Result`s and `Event`s of messages; `received` counts from `began`, a time of the loop."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._sent_until: deque[float] = deque(maxlen=REMEMBERED_FRAMES)  # seconds at the end of each frame,
        self._sent_at: deque[float] = deque(maxlen=REMEMBERED_FRAMES)  # and the time at which it was sent

    def sent(self, until: float, now: float) -> None:
        """The audio up to `until` seconds has left."""
        self._sent_until.append(until)
        self._sent_at.append(now)

    def read(self, body: dict[str, Any], now: float) -> Result | Event:
        """Raises `LookupError`, `TypeError` or `ValueError` for a result that is not Deepgram's.

        A v1 `Results` and a v2 `TurnInfo` are one `Result`.
        """
        match body.get("type"):
            case "Results":
                start, end = float(body["start"]), float(body["start"] + body["duration"])
                text, final = body["channel"]["alternatives"][0]["transcript"], bool(body.get("is_final"))
                channel = int(body["channel_index"][0])
            case "TurnInfo":
                start, end = float(body["audio_window_start"]), float(body["audio_window_end"])
                text, final, channel = body["transcript"], body["event"] == "EndOfTurn", 0
            case name:
                return Event(str(name or ""), round(now - self._began, 4), body)
        received, latency = now - self._began, now - self._time_sent(end)
        return Result(
            final, channel, round(start, 3), round(end, 3), text, round(received, 4), round(latency, 4)
        )

    def _time_sent(self, position: float) -> float:
        """When the audio up to `position` seconds had left; rounding may put it past the last frame."""
        index = bisect_left(self._sent_until, position - 1e-3)
        return self._sent_at[min(index, len(self._sent_at) - 1)] if self._sent_at else self._began
