"""The few members that are decoded of every message."""

from __future__ import annotations

import msgspec
import pytest

from gateway.deepgram.heads import typed, v1_head, v1_speech, v2_head


def test_what_is_missing_has_its_default() -> None:
    """A result without a channel is of the only one; unknown members are none of our business."""
    head = v1_head(b'{"type":"Results","new":{"a":[1]},"start":1,"metadata":{"request_id":"r","x":2}}')
    assert (head.channel_index, head.start, head.is_final, head.metadata.request_id) == (
        (0, 1),
        1.0,
        False,
        "r",
    )
    assert v1_speech(b'{"type":"SpeechStarted"}').channel == (0, 1)
    assert v2_head(b'{"type":"TurnInfo"}').sequence_id == -1


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"type":1}', b"{}", b'{"type":"Results"'])
def test_what_has_no_type(raw: bytes) -> None:
    """Is no message."""
    for decode in (typed, v1_head, v2_head):
        with pytest.raises(msgspec.DecodeError):
            decode(raw)
