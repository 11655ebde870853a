"""What Deepgram says in session tests, and how it is known again in what the client gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.deepgram.recogniser import Kind
from gateway.session.events import Deliver
from tests.playbook import Output


def interim(start: float, stop: float, **more: Any) -> bytes:
    return final(start, stop, is_final=False, **more)


def final(start: float, stop: float, *, rid: str = "rid", words: Any = (), **more: Any) -> bytes:
    """Results as Deepgram writes them; `words` are (text, start, end)."""
    told = [{"word": w, "start": a, "end": b, "confidence": 0.9} for w, a, b in words]
    alternative = {"transcript": " ".join(w["word"] for w in told), "confidence": 0.9, "words": told}
    window = {"channel_index": [0, 1], "duration": round(stop - start, 7), "start": start, "is_final": True}
    rest = {
        "channel": {"alternatives": [alternative]},
        "metadata": {"request_id": rid},
        "from_finalize": False,
    }
    return json.dumps({"type": "Results", **window, **rest, **more}).encode()


def metadata(duration: float, rid: str = "rid") -> bytes:
    return json.dumps({"type": "Metadata", "request_id": rid, "duration": duration, "channels": 1}).encode()


def delivered(raw: bytes) -> Callable[[Output], bool]:
    """The very bytes of `raw` reach the client."""
    return lambda output: isinstance(output, Deliver) and output.raw == raw


def told(**members: Any) -> Callable[[Output], bool]:
    """A message with these members reaches the client."""
    return lambda output: isinstance(output, Deliver) and members.items() <= json.loads(output.raw).items()


def window(start: float, stop: float, kind: Kind = Kind.FINAL) -> Callable[[Output], bool]:
    """A result for this window reaches the client."""

    def check(output: Output) -> bool:
        if not isinstance(output, Deliver) or output.kind is not kind:
            return False
        message = json.loads(output.raw)
        return bool(message["start"] == start and abs(message["start"] + message["duration"] - stop) < 1e-6)

    return check


def encoded(message: dict[str, Any]) -> bytes:
    """JSON as fast as can be."""
    return msgspec.json.encode(message)
