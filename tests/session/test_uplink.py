"""What goes up, in which order, and again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio.clock import PACKETS, MediaClock
from gateway.session.uplink import WAITING_CONTROLS, Repeat, Uplink, folded
from tests.playbook import sound

CLOCK = MediaClock(rate_hz=8000, frame_bytes=2, joinable=True)


def uplink(clock: MediaClock = CLOCK) -> Uplink:
    link = Uplink(pace=1.25, catch_up_pace=1.2, burst=1.0)
    link.use(clock, 0.0)
    link.open(0, 0.0)
    return link


def drained(link: Uplink, now: float) -> list[bytes | str]:
    out = link.take(now)
    while link.wake_at < math.inf:
        now = link.wake_at
        out += link.take(now)
    return out


@given(
    st.lists(st.one_of(st.integers(1, 9000), st.sampled_from(list(Repeat))), max_size=20),
    st.integers(0, 50_000),
)
def test_controls_keep_their_place(steps: list[int | Repeat], restart: int) -> None:
    """After every earlier byte and before any later one, also on the next connection (continuity.md I11)."""
    link, places = uplink(), list[tuple[int, str, Repeat]]()
    for step in steps:
        if isinstance(step, Repeat):
            places.append((link.received, f"{len(places)}", step))
            link.control(places[-1][1], step)
        else:
            link.audio(sound(link.received, link.received + step))

    def check(out: list[bytes | str], at: int) -> list[str]:
        heard = []
        for message in out:
            if isinstance(message, str):
                heard.append(message)
                place = places[int(message)][0]
                assert place == at or place <= start == at
            else:
                assert message == sound(at, at + len(message))
                at += len(message)
        assert at == link.received
        return heard

    start = 0
    assert check(drained(link, 0.0), 0) == [text for _, text, _ in places]
    assert link.drained
    start = min(restart, link.received) // 2 * 2
    link.settle(start // 2, start)
    link.open(start, 100.0)
    again = [
        t for at, t, r in places if r is Repeat.ALWAYS or (r is Repeat.UNTIL_FINAL and at // 2 * 2 > start)
    ]
    assert check(drained(link, 100.0), start) == again


@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=10))
def test_backlogs_go_in_chunks(lengths: list[int]) -> None:
    """Whole frames of 100 ms, none longer than 250 ms, however the client cut it."""
    link = uplink()
    for length in lengths:
        link.audio(sound(link.received, link.received + length))
    out = drained(link, 0.0)
    assert all(len(message) <= 4000 for message in out)
    assert all(len(message) == 1600 for message in out[:-1])


def test_many_packets_go_at_once() -> None:
    """A long outage of compressed audio is no long loop."""
    link = uplink(PACKETS)
    packets = [bytes([n % 256]) * 60 for n in range(30_000)]
    for packet in packets:
        link.audio(packet)
    assert link.take(1.0) == packets
    assert len(link.buffer) == 0


def test_dropped_audio_is_gone() -> None:
    """Sent or not."""
    link = uplink()
    link.audio(sound(0, 8000))
    link.drop_until(6000)
    assert drained(link, 0.0)[0] == sound(6000, 8000)


@given(st.lists(st.tuples(st.sampled_from("atod"), st.integers(0, 9000)), max_size=30), st.booleans())
def test_what_was_given_is_counted(steps: list[tuple[str, int]], parts: bool) -> None:
    """Every byte, and what had gone up before, however audio comes, goes, is dropped and replayed."""
    link, other = uplink(), Uplink(pace=1.25, catch_up_pace=1.2, burst=1.0)
    now, given, again = 0.0, 0, 0
    seen = bytearray(600_000)

    def note(link: Uplink, out: list[bytes | str], at: int) -> None:
        nonlocal given, again
        for data in out:
            given, again = given + len(data), again + sum(seen[at : at + len(data)])
            seen[at : at + len(data)] = b"\x01" * len(data)
            at += len(data)
        assert at == link.sent

    for step, size in steps:
        now, size = now + 0.1, 2 * size
        match step:
            case "a":
                link.audio(bytes(size))
            case "t":
                at = link.sent
                note(link, link.take(now), at)
            case "o":
                link.open(min(link.received, max(link.buffer.start, link.sent - size)), now)
            case "d":
                link.drop_until(min(link.received, link.buffer.start + size))
                link.open(max(link.buffer.start, link.sent), now)
        assert link.given == (given, again)
    if parts and link.sent < link.received:
        other.use(CLOCK, now)
        start, edge = link.buffer.start, link.received
        link.hand_over(other, edge, edge)
        other.open(max(start, 0), now)
        link.open(edge, now)
        at = other.sent
        note(other, drained(other, now), at)
        link.take_back(other)
        assert link.given == (given, again)


def test_settled_controls_are_forgotten() -> None:
    """Twelve hours of Finalize are not kept behind one Configure (continuity.md I8)."""
    link = uplink()
    link.control("configure", Repeat.ALWAYS)
    for n in range(100):
        link.audio(bytes(160))
        link.control("finalize", Repeat.UNTIL_FINAL)
        drained(link, n * 0.01)
        link.settle(link.clock.samples(link.received), link.received)
    link.open(link.received, 5.0)
    assert link.take(5.0) == ["configure"]


def test_two_go_on() -> None:
    """What was said up to the edge goes up on one, what came after it on the other; a Configure, on both.

    No byte is kept twice but those around the edge, and each answer of Deepgram is told once.
    """
    link, other = uplink(), Uplink(pace=1.25, catch_up_pace=1.2, burst=1.0)
    other.use(CLOCK, 0.0)
    link.control("first", Repeat.ALWAYS, is_configure=True)
    link.audio(sound(0, 8000))
    link.control("early", Repeat.UNTIL_FINAL)
    link.audio(sound(8000, 48_000))
    link.control("late", Repeat.UNTIL_FINAL)
    link.hand_over(other, 40_000, 32_000)
    assert (len(other.buffer), len(link.buffer)) == (48_000, 16_000)
    other.open(0, 0.0)
    link.open(32_000, 0.0)
    sent, live = drained(other, 0.0), drained(link, 0.0)
    assert [text for text in sent if isinstance(text, str)] == ["first", "early"]
    assert [text for text in live if isinstance(text, str)] == ["first", "late"]
    assert b"".join(data for data in sent if isinstance(data, bytes)) == sound(0, 48_000)
    assert b"".join(data for data in live if isinstance(data, bytes)) == sound(32_000, 48_000)
    assert link.configure_answered(accepted=True)
    assert not other.configure_answered(accepted=True)


@pytest.mark.parametrize("repeat", list(Repeat))
@pytest.mark.parametrize("finals", [True, False])
def test_a_storm_is_bounded(repeat: Repeat, finals: bool) -> None:
    """However many messages a client says between two finals, or Deepgram is mute (continuity.md I8;
    faults.md 38, 42)."""
    link = uplink()
    is_configure = repeat is Repeat.ALWAYS
    for n in range(2000):
        if not finals:
            link.audio(bytes(2))
        link.control(f'{{"n":{n}}}', repeat, is_configure=is_configure)
        assert f'{{"n":{n}}}' in drained(link, n)
        assert len(link._controls) <= (WAITING_CONTROLS if is_configure or not finals else 0)
        assert len(link._unanswered) + len(link.finalizes._asked) <= WAITING_CONTROLS
    link.open(0, 3000.0)
    again = [text for text in drained(link, 3000.0) if isinstance(text, str)]
    assert again[-1:] == ([] if repeat is Repeat.NEVER or (finals and not is_configure) else ['{"n":1999}'])


def test_a_storm_forgets_nothing_that_holds() -> None:
    """What was configured long before is said with what came after it."""
    link = uplink()
    link.control('{"first":1}', Repeat.ALWAYS, is_configure=True)
    for n in range(1000):
        link.audio(bytes(2))
        link.control(f'{{"n":{n}}}', Repeat.ALWAYS, is_configure=True)
        link.control("finalize", Repeat.UNTIL_FINAL)
        drained(link, n)
    link.open(0, 3000.0)
    again = [text for text in drained(link, 3000.0) if isinstance(text, str) and text != "finalize"]
    assert folded(again) == '{"first":1,"n":999}'


def test_what_deepgram_took_need_not_be_read() -> None:
    """A number that we cannot read is said again as it was."""
    texts = ('{"a":1e999,"b":{"c":1}}', '{"b":{"d":2e999},"a":null}', '{"b":{"c":3}}')
    assert folded(texts) == '{"a":1e999,"b":{"c":3,"d":2e999}}'
