"""Token audio comes back exactly, or visibly not at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.emulator.sound import ALAW, MULAW, WIDTHS, Format, encode_sample, mulaw_to_linear
from gateway.emulator.tokens import (
    FRAGMENT,
    MAX_ID,
    Decoder,
    Heard,
    Manner,
    id_for,
    ids,
    interleave,
    speech,
    word_for,
)

FORMATS = [Format(encoding, rate) for encoding in WIDTHS for rate in (8000, 16000, 44100)]


def decode(fmt: Format, audio: bytes, rng: random.Random, channel: int = 0) -> list[Heard]:
    """Feed audio in chunks of random sizes."""
    decoder, at, found = Decoder(fmt, channel), 0, []
    while at < len(audio):
        size = rng.randint(1, 4000)
        found += decoder.feed(audio[at : at + size])
        at += size
    return found + decoder.flush()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.encoding}-{fmt.sample_rate}")
def test_what_is_said_is_heard_where_it_was_said(fmt: Format) -> None:
    """Every encoding and rate carries every token to the sample."""
    rng = random.Random(fmt.sample_rate)
    audio, tokens = speech(ids(60, rng, repeat=0.2), fmt, rng, Manner(no_gap=0.3))
    assert [tuple(word) for word in decode(fmt, audio, rng)] == [tuple(token) for token in tokens]


@pytest.mark.parametrize("tables", [("mulaw", MULAW), ("alaw", ALAW)], ids=["mulaw", "alaw"])
def test_transcoding_to_g711_keeps_tokens(tables: tuple[str, tuple[int, ...]]) -> None:
    """linear16 squeezed into eight bits says the same."""
    encoding, table = tables
    rng = random.Random(5)
    audio, tokens = speech(ids(20, rng), Format("linear16", 8000), rng)
    nearest: dict[bytes, bytes] = {}
    out = bytearray()
    for at in range(0, len(audio), 2):
        sample = audio[at : at + 2]
        if sample not in nearest:
            value = int.from_bytes(sample, "little", signed=True)
            nearest[sample] = bytes([min(range(256), key=lambda code: abs(table[code] - value))])
        out += nearest[sample]
    assert [word.id for word in decode(Format(encoding, 8000), bytes(out), rng)] == [
        token.id for token in tokens
    ]


@given(st.integers(0, MAX_ID))
def test_words_name_their_ids(token_id: int) -> None:
    """A word gives its id back in any dress; no two ids share one."""
    assert id_for(word_for(token_id)) == id_for(word_for(token_id).capitalize() + ".") == token_id


@pytest.mark.parametrize("word", ["", "hello", "~frag", "baaabaaa", "xyxyxyxy"])
def test_other_words_name_none(word: str) -> None:
    """What is no token's word has no id."""
    assert id_for(word) is None


@given(st.integers(0, 4), st.floats(0.01, 0.93), st.floats(0.005, 1.0), st.booleans(), st.integers(0, 1000))
def test_a_damaged_token_is_never_heard(
    which: int, place: float, share: float, repeat: bool, seed: int
) -> None:
    """Losing or repeating any run of samples inside it silences a token and leaves the others whole."""
    rng = random.Random(seed)
    fmt = Format("mulaw", 8000)
    audio, tokens = speech(ids(5, rng, repeat=0.0), fmt, rng)
    hurt = tokens[which]
    size = hurt.end_sample - hurt.start_sample
    begin = hurt.start_sample + int(place * size)
    end = min(hurt.end_sample - 1, begin + max(1, int(share * size)))
    broken = audio[:end] + audio[begin:] if repeat else audio[:begin] + audio[end:]
    found = decode(fmt, broken, rng)
    others = [token.id for i, token in enumerate(tokens) if i != which]
    assert [word.id for word in found if word.id is not None] == others


def test_what_is_left_of_a_token_is_a_fragment() -> None:
    """A cut is seen, not swallowed."""
    rng = random.Random(3)
    fmt = Format("mulaw", 8000)
    audio, tokens = speech(ids(3, rng), fmt, rng, Manner(no_gap=0))
    cut = audio[: tokens[1].start_sample + 500] + audio[tokens[1].start_sample + 520 :]
    found = decode(fmt, cut, rng)
    assert [word.text for word in found] == [word_for(tokens[0].id), FRAGMENT, word_for(tokens[2].id)]


def test_channels_are_heard_apart() -> None:
    """Interleaved channels keep their own words."""
    rng = random.Random(4)
    fmt = Format("linear16", 8000, 2)
    mono = Format("linear16", 8000)
    (left, left_tokens), (right, right_tokens) = (speech(ids(8, rng), mono, rng) for _ in range(2))
    both = interleave([left, right], fmt)
    for channel, tokens in enumerate((left_tokens, right_tokens)):
        assert [word.id for word in decode(fmt, both, rng, channel)] == [token.id for token in tokens]


def test_noise_is_a_fragment_and_not_forever_pending() -> None:
    """Audio that is no token is told within seconds, however long it goes on."""
    rng = random.Random(6)
    decoder = Decoder(Format("mulaw", 8000))
    noise = bytes(rng.choice((0x10, 0x90)) for _ in range(8000 * 6))
    found = decoder.feed(noise)
    assert found
    assert {word.text for word in found} == {FRAGMENT}


def test_g711_tables() -> None:
    """The ends and the zeros of both laws, and every code of them back and forth."""
    assert (mulaw_to_linear(0x00), mulaw_to_linear(0x80), mulaw_to_linear(0xFF)) == (-32124, 32124, 0)
    assert (ALAW[0xD5], ALAW[0x55], ALAW[0x2A], ALAW[0xAA]) == (8, -8, -32256, 32256)
    for name, table in (("mulaw", MULAW), ("alaw", ALAW)):
        assert all(table[encode_sample(value / 32768, name)[0]] == value for value in table)
