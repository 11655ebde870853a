"""HTTP bodies: every sample is parsed and comes out as the same JSON values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.deepgram import responses
from gateway.deepgram.errors import ErrorBody

SAMPLES = Path(__file__).parent / "samples"
TYPES: dict[str, type[msgspec.Struct]] = {
    "auth_grant_request": responses.GrantRequest,
    "auth_grant_response": responses.Grant,
    "prerecorded_accepted_callback": responses.Accepted,
    "prerecorded_request_url": responses.Remote,
    "prerecorded_response": responses.Transcript,
    "selfhosted_v1_status": responses.SelfHostedStatus,
    **{path.stem: ErrorBody for path in sorted(SAMPLES.glob("http_*.json"))},
}


@pytest.mark.parametrize("name", TYPES)
def test_samples(name: str) -> None:
    """Each body has its type, which loses nothing."""
    raw = (SAMPLES / f"{name}.json").read_bytes()
    message = msgspec.json.decode(raw, type=TYPES[name], strict=True)
    again: Any = json.loads(msgspec.json.encode(message))
    assert again == json.loads(raw)


def test_no_sample_is_left_out() -> None:
    """What is no WebSocket message is a body, and has its type here."""
    bodies = {path.stem for path in SAMPLES.glob("*.json")}
    assert {name for name in bodies if not name.startswith(("live_", "flux_"))} == set(TYPES)


def test_audio_intelligence_passes_unread() -> None:
    """What only a feature yields is kept, known or not to this version."""
    body = {
        "metadata": {
            "request_id": "r", "created": "2026-11-22T12:00:00.000Z", "duration": 1.5, "channels": 2,
            "models": [], "model_info": {}, "tags": ["a"], "extra": {"k": "v"},
            "summary_info": {"model_uuid": "m", "input_tokens": 3, "output_tokens": 1},
        },
        "results": {
            "channels": [{"alternatives": [], "detected_language": "de", "language_confidence": 0.5}],
            "summary": {"result": "success", "short": "Short."},
            "topics": {"segments": [{"text": "t", "topics": [{"topic": "x", "confidence_score": 0.5}]}]},
            "sentiments": {"segments": [], "average": {"sentiment": "neutral", "sentiment_score": 0.0}},
        },
    }  # fmt: skip
    message = msgspec.json.decode(json.dumps(body), type=responses.Transcript)
    assert json.loads(msgspec.json.encode(message)) == body


def test_engine_status() -> None:
    """The readiness of a self-hosted engine is one word; the rest of the body may be anything."""
    raw = b'{"engine_connection_status":"Connected","engines":[]}'
    status = msgspec.json.decode(raw, type=responses.EngineStatus)
    assert status.engine_connection_status == "Connected"
