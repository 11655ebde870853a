"""Windows of one channel, for any speech and any rules."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.emulator.engines.tokens import TokenEar
from gateway.emulator.knobs import Knobs
from gateway.emulator.query import read_listen
from gateway.emulator.tokens import Manner, id_for, ids, speech
from gateway.emulator.windows import Event, Lull, Onset, Rules, Window, Windows
from tests.emulator.wire import MULAW

QUERIES = (
    "",
    "endpointing=false",
    "endpointing=300",
    "endpointing=900&vad_events=true&utterance_end_ms=1000",
)


@st.composite
def knobs(draw: st.DrawFn) -> Knobs:
    """Rules of every kind."""
    shortest = draw(st.floats(0.5, 3.0))
    return Knobs(
        step=draw(st.sampled_from((0.02, 0.1, 0.37))),
        interim_interval=draw(st.floats(0.3, 1.5)),
        window_min=shortest,
        window_max=shortest + draw(st.floats(0.0, 3.0)),
        silence_window=draw(st.floats(0.3, 3.0)),
        short_final=draw(st.floats(0.0, 1.0)),
        revise=draw(st.floats(0.0, 1.0)),
    )


@given(knobs(), st.sampled_from(QUERIES), st.integers(0, 10_000), st.lists(st.floats(0.0, 1.0), max_size=4))
def test_windows_cover_everything_once(rules: Knobs, query: str, seed: int, asked: list[float]) -> None:
    """Finals follow one another and hold each word once, whenever Finalize comes; interims stay in front."""
    rng = random.Random(seed)
    audio, tokens = speech(ids(15, rng, repeat=0.3), MULAW, rng, Manner(gap_ms=(40, 1500), no_gap=0.3))
    query = f"interim_results=true&{query}"
    ear = TokenEar(MULAW, 0, 2)
    windows = Windows(Rules.of(rules, read_listen(query, None), 8000), ear, rng)
    finalizes = {round(share * len(audio)) for share in asked}
    steps = set(range(0, len(audio), max(1, round(rules.step * 8000)))[1:])
    events: list[Event] = []
    fed = 0
    for at in sorted(finalizes | steps):
        ear.feed(audio[fed:at])
        fed = at
        events += windows.finalize(at, True, 0) if at in finalizes else windows.advance(at)
    ear.feed(audio[fed:])
    ear.flush(hard=True)
    events += windows.finish(len(audio))
    check(events, len(audio))
    finals = [event for event in events if isinstance(event, Window) and event.is_final]
    assert [id_for(word.text) for final in finals for word in final.words] == [token.id for token in tokens]


def check(events: list[Event], end: int) -> None:
    """Contiguous finals up to the end; interims begin there too; words lie in their windows."""
    at = 0
    for event in events:
        if isinstance(event, Window):
            assert event.start == at <= event.end
            assert all(event.start <= word.start and word.end <= event.end for word in event.words)
            assert event.is_final or not event.speech_final
            at = event.end if event.is_final else at
    assert at == end
    onsets = [event.at for event in events if isinstance(event, Onset)]
    assert onsets == sorted(set(onsets))
    lulls = [event.last_word_end for event in events if isinstance(event, Lull)]
    assert lulls == sorted(set(lulls))
