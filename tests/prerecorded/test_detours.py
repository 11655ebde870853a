"""Which way out there is for what is too long; tests/sidecar/test_transcribe.py goes them all."""

from __future__ import annotations

import io

import pytest

from gateway.config import CallbackConfig
from gateway.deepgram.query import ListenQuery
from gateway.prerecorded.detours import _Bounded, way_out
from gateway.prerecorded.receiver import Receiver
from gateway.prerecorded.split import Unsplittable


@pytest.mark.parametrize(
    ("url", "query", "have_audio", "way"),
    [
        ("https://a.example", "", True, "callback"),
        ("https://a.example", "summarize=v2", False, "callback"),
        ("", "", True, "parts"),
        ("", "", False, None),
        ("", "topics=true", True, None),
        ("https://a.example:81", "", True, "parts"),
    ],
)
def test_the_way_out(url: str, query: str, have_audio: bool, way: str | None) -> None:
    """Deepgram's callback where it can reach us, else parts of what is here and can be joined, else none."""
    receiver = Receiver(CallbackConfig(public_url=url), lambda: "")
    assert way_out(receiver, ListenQuery(query), have_audio) == way


def test_a_recording_may_not_fill_the_disk() -> None:
    """What it decodes to is bounded."""
    file = io.BytesIO()
    bounded = _Bounded(file, 10)
    assert bounded.write(b"12345678") == 8
    assert bounded.tell() == 8
    with pytest.raises(Unsplittable, match="longer than can be decoded"):
        bounded.write(b"123")
    assert file.getvalue() == b"12345678"
