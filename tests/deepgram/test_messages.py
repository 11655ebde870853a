"""The samples are parsed by our types and come out as the same JSON values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.deepgram import messages
from gateway.deepgram.messages import Unknown, decode_flux, decode_live

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
LIVE = [path for path in SAMPLES if path.name.startswith("live_")]
FLUX = [path for path in SAMPLES if path.name.startswith("flux_")]


def named(path: Path) -> str:
    return path.stem


def same(message: object, raw: bytes) -> bool:
    again: Any = json.loads(msgspec.json.encode(message))
    return bool(again == json.loads(raw))


def test_all_samples_are_here() -> None:
    """A sample that went missing would be one type less under test."""
    assert len(SAMPLES) == 51


@pytest.mark.parametrize("path", LIVE, ids=named)
def test_live_samples(path: Path) -> None:
    """Every live message of either direction has its type, which loses nothing."""
    raw = path.read_bytes()
    message = decode_live(raw)
    assert type(message).__name__ == json.loads(raw)["type"]
    assert same(message, raw)


@pytest.mark.parametrize("path", FLUX, ids=named)
def test_flux_samples(path: Path) -> None:
    """Every Flux message of either direction has its type, which loses nothing."""
    raw = path.read_bytes()
    message = decode_flux(raw)
    assert type(message).__name__.removeprefix("Flux") == json.loads(raw)["type"]
    assert same(message, raw)


def test_text_and_bytes_are_alike() -> None:
    """A message may be given as it came from the socket or as text."""
    raw = (Path(__file__).parent / "samples" / "live_s2c_results_final.json").read_bytes()
    assert decode_live(raw) == decode_live(raw.decode())


def test_members_may_come_in_any_order() -> None:
    """`type` need not be first."""
    assert decode_live(b'{"channel": 1, "type": "Finalize"}') == messages.Finalize(channel=1)


@pytest.mark.parametrize("decode", [decode_live, decode_flux])
def test_an_unknown_type_keeps_its_bytes(decode: Any) -> None:
    """Tomorrow's message is not an error."""
    raw = b'{"type": "Sync", "x": [1]}'
    assert decode(raw) == Unknown("Sync", raw)


def test_a_dialect_knows_only_its_own_types() -> None:
    """TurnInfo says nothing on /v1/listen, Results nothing on /v2/listen."""
    assert isinstance(decode_live(b'{"type":"TurnInfo"}'), Unknown)
    assert isinstance(decode_flux(b'{"type":"Results"}'), Unknown)


def test_members_that_we_do_not_know_are_no_error() -> None:
    """Deepgram adds fields without asking."""
    assert decode_live(b'{"type":"KeepAlive","at":1}') == messages.KeepAlive()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"type":1}', b'{"type":"SpeechStarted"}'])
@pytest.mark.parametrize("decode", [decode_live, decode_flux])
def test_what_is_no_message_raises(decode: Any, raw: bytes) -> None:
    """No JSON, no object, no type, or a known type without what it must have."""
    if raw == b'{"type":"SpeechStarted"}' and decode is decode_flux:
        assert isinstance(decode(raw), Unknown)
        return
    with pytest.raises(msgspec.DecodeError):
        decode(raw)


def test_null_keyterms_are_not_absent_ones() -> None:
    """Both keep the list, but what is passed on is what was said."""
    for raw in (b'{"type":"Configure","keyterms":null}', b'{"type":"Configure"}'):
        assert same(decode_live(raw), raw)


def test_messages_cannot_be_changed() -> None:
    """A message that several readers share stays as it was."""
    message = decode_live(b'{"type":"SpeechStarted","channel":[0,1],"timestamp":1.5}')
    with pytest.raises(AttributeError):
        message.timestamp = 2.0  # type: ignore[misc, union-attr]  # the very thing that must fail
