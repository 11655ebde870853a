"""What clients say on the Deepgram wire."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.listen import ListenV1, ListenV2
from gateway.dialects.deepgram_wire import END_OF_AUDIO, decode
from gateway.dialects.events import CloseStream, Configure, Finalize, Forward, KeepAlive

V1 = ListenV1.controls
V2 = ListenV2.controls


@pytest.mark.parametrize("form", ['{"type":"%s"}', '{"type": "%s"}', ' { "x" : [1], "type"\n: "%s" } '])
def test_controls_are_parsed_not_compared(form: str) -> None:
    """SDKs differ in spaces and order; what goes on is the client's own text."""
    assert decode(form % "KeepAlive", V1) == KeepAlive()
    for name, event in (("Finalize", Finalize), ("CloseStream", CloseStream), ("Configure", Configure)):
        assert decode(form % name, V1) == event(form % name)


def test_flux_knows_neither_keepalive_nor_finalize() -> None:
    """What a dialect does not know is Deepgram's to refuse."""
    for name in ("KeepAlive", "Finalize", "ForceEndTurn"):
        text = json.dumps({"type": name})
        assert decode(text, V2) == Forward(text)
    assert decode('{"type":"CloseStream"}', V2) == CloseStream('{"type":"CloseStream"}')
    assert decode('{"type":"Configure"}', V2) == Configure('{"type":"Configure"}')


@pytest.mark.parametrize(
    "text",
    ['{"type":"Sync"}', '{"type":"keepalive"}', '{"type":"KeepAlive "}', '{"type":1}', "{}", "[]", "1"],
)
def test_well_formed_json_is_forwarded(text: str) -> None:
    """The enum is strict and Deepgram's; it answers for itself."""
    assert decode(text, V1) == Forward(text)


@pytest.mark.parametrize(
    "text", ["", "hello", "{", '"abc', "[1, x", '{"type":1, x', '{"type":"KeepAlive"', "\x00"]
)
def test_what_is_no_json_is_forwarded_too(text: str) -> None:
    """Each of Deepgram's recognisers has its own answer to it."""
    assert decode(text, V1) == decode(text, V2) == Forward(text)


def test_nesting_without_end_is_no_control() -> None:
    """A client cannot exhaust the stack."""
    text = '{"a":' * 100_000
    assert decode(text, V1) == Forward(text)


@given(st.text())
def test_any_text_is_some_event(text: str) -> None:
    """Nothing that a client writes raises, and what goes up is what it wrote."""
    event = decode(text, V1)
    assert isinstance(event, KeepAlive) or event.text == text


def test_the_empty_binary_message_is_close_stream() -> None:
    """It has a text of its own, since it must not go upstream as it is."""
    assert decode(END_OF_AUDIO.text, V1) == END_OF_AUDIO
