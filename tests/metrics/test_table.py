"""The table of metrics and its label sets."""

from __future__ import annotations

import re

import pytest

from gateway.metrics.table import METRICS, MODELS, PROCESS_METRICS, handshake_label, model_label


def test_names() -> None:
    """Names follow Prometheus: base units, counters end in _total, and each name is there once."""
    names = [described.name for described in (*METRICS, *PROCESS_METRICS)]
    assert len(names) == len(set(names))
    for described in METRICS:
        assert re.fullmatch(r"(gw|transcription|deepgram)_[a-z_]+", described.name)
        assert described.name.endswith("_total") == (described.type == "counter")
        assert not re.search(r"_(ms|milliseconds|kb|minutes)\b", described.name)
        assert described.help.endswith(".")


@pytest.mark.parametrize(
    ("model", "label"),
    [("nova-3", "nova-3"), (None, "base"), ("", "base"), ("nova-3-acme", "other"), ("NOVA-3", "other")],
)
def test_model_label(model: str | None, label: str) -> None:
    """Public models keep their name, a customer's own model does not show."""
    assert model_label(model) == label


def test_models_are_whole_names() -> None:
    """Each family is there with its plain name."""
    assert {"nova-3", "nova-2", "nova", "enhanced", "base", "flux-general-en"} <= MODELS
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in MODELS)


@pytest.mark.parametrize(
    ("status", "label"),
    [(101, "101"), (401, "401"), (404, "4xx"), (500, "5xx"), (503, "5xx"), (302, "other"), (999, "other")],
)
def test_handshake_label(status: int, label: str) -> None:
    """The statuses that have a meaning of their own stand alone, the rest by class."""
    assert handshake_label(status) == label
