"""Ears on their own: what they settle, what they keep pending."""

from __future__ import annotations

import pytest

from gateway.emulator.engines import choice
from gateway.emulator.engines.base import Ear, SilentEar
from gateway.emulator.engines.script import Script, ScriptEar
from gateway.emulator.engines.tokens import TokenEar, TokenEngine
from gateway.emulator.knobs import Knobs
from gateway.emulator.sound import Format
from gateway.emulator.tokens import FRAGMENT, word_for
from gateway.errors import ConfigError
from tests.emulator.wire import MULAW, call


def nothing() -> None:
    """Nobody is to be woken."""


def test_a_token_is_pending_until_it_is_whole() -> None:
    """Half a burst is pending; the rest settles it where it is; a soft flush leaves it pending."""
    audio, tokens = call(1)
    ear: Ear = TokenEar(MULAW, 0, 2)
    half = (tokens[0].start_sample + tokens[0].end_sample) // 2
    ear.feed(audio[:half])
    ear.flush(hard=False)
    assert (ear.take(), ear.pending_from, ear.heard) == ([], tokens[0].start_sample, half)
    ear.feed(audio[half:])
    (word,) = ear.take()
    assert (word.text, word.start, word.end) == (word_for(tokens[0].id), *tokens[0][1:])
    assert (ear.pending_from, ear.take()) == (None, [])


def test_a_hard_flush_makes_a_fragment() -> None:
    """What is pending at the end of audio is a fragment."""
    audio, tokens = call(1)
    ear = TokenEar(MULAW, 0, 2)
    ear.feed(audio[: tokens[0].end_sample - 10])
    ear.flush(hard=True)
    assert [word.text for word in ear.take()] == [FRAGMENT]


def test_the_script_on_its_clock() -> None:
    """Words appear when their time has passed, in a loop or once."""
    script = Script(("a b", "c"), word=0.2, gap=0.1, pause=0.4, loop=False, speakers=2)
    ear = ScriptEar(MULAW, script)
    ear.feed(bytes(8 * 450))
    assert [word.text for word in ear.take()] == ["a"]
    ear.feed(bytes(8 * 100))
    assert ear.pending_from == 8 * 500
    ear.flush(hard=True)
    assert [(word.text, word.end) for word in ear.take()] == [("b", 8 * 550)]
    ear.feed(bytes(8 * 5000))
    assert [(word.text, word.voice) for word in ear.take()] == [("c", 1)]
    assert ear.pending_from is None


def test_what_cannot_be_decoded_is_silence_that_keeps_time() -> None:
    """The token engine hears nothing in packets."""
    ear = TokenEngine(2).listen(Format("packets", 1000), 0, nothing)
    assert isinstance(ear, SilentEar)
    ear.feed(bytes(2500))
    ear.flush(hard=True)
    assert (ear.heard, ear.take()) == (2500, [])


def test_engines_by_name() -> None:
    """Names choose engines; another name is the operator's mistake."""
    assert choice.engine_for("tokens", Knobs()).name == "tokens"
    assert choice.engine_for("script", Knobs()).name == "script"
    with pytest.raises(ConfigError):
        choice.engine_for("oracle", Knobs())
