"""Results that cannot be true, for recipients who should notice. Pure."""

from __future__ import annotations

from gateway.emulator.wire import Message


def odd(message: Message, oddity: str, before: Message | None, received: float) -> Message:
    """The `Results` spoiled: `nan`, `negative`, `regressing` (before the last), `beyond` (past the audio)."""
    spoiled = dict(message)
    match oddity:
        case "nan":
            spoiled |= {"start": float("nan"), "duration": float("nan")}
        case "negative":
            spoiled |= {"start": -message["start"] - 1.0}
        case "regressing":
            last = before["start"] if before is not None else 0.0
            spoiled |= {"start": max(0.0, last - 5.0), "duration": 0.5}
        case "beyond":
            spoiled |= {"start": received + 100.0}
    return spoiled
