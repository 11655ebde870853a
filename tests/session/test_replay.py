"""Audio that is still owed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.session.replay import ReplayBuffer
from tests.playbook import sound

STEPS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 500)), max_size=40)


@given(STEPS)
def test_offsets_are_for_ever(steps: list[tuple[int, int]]) -> None:
    """Byte n is byte n however much was forgotten before it."""
    buffer = ReplayBuffer()
    for length, forget in steps:
        buffer.append(sound(buffer.end, buffer.end + length))
        buffer.discard_until(min(buffer.end, buffer.start + forget))
        assert len(buffer) == buffer.end - buffer.start
        assert buffer.read(buffer.start, len(buffer)) == sound(buffer.start, buffer.end)
        middle = (buffer.start + buffer.end) // 2
        assert buffer.read(middle, 7) == sound(middle, min(middle + 7, buffer.end))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.data())
def test_packets_keep_their_boundaries(lengths: list[int], data: st.DataObject) -> None:
    """One read is one message, whatever the limit and whatever was forgotten."""
    buffer = ReplayBuffer(packets=True)
    ends = []
    for length in lengths:
        buffer.append(sound(buffer.end, buffer.end + length))
        ends.append(buffer.end)
    starts = [0, *ends[:-1]]
    first = data.draw(st.integers(0, len(lengths) - 1))
    buffer.discard_until(starts[first])
    for start, end in list(zip(starts, ends, strict=True))[first:]:
        assert buffer.read(start, 1) == sound(start, end)


def test_forgetting_goes_one_way() -> None:
    """What is gone stays gone, and what never came cannot be forgotten."""
    buffer = ReplayBuffer()
    buffer.append(b"abcdef")
    buffer.discard_until(4)
    buffer.discard_until(2)
    assert (buffer.start, buffer.end, buffer.read(4, 9)) == (4, 6, b"ef")
    with pytest.raises(AssertionError):
        buffer.discard_until(7)
    with pytest.raises(AssertionError):
        buffer.read(3, 1)


def test_small_messages_take_no_object_each() -> None:
    """Who sends a byte at a time gets no more memory than who sends many at once."""
    buffer = ReplayBuffer()
    for at in range(5000):
        buffer.append(sound(at, at + 1))
    assert len(buffer.messages) < 10
    assert buffer.read(0, 5000) == sound(0, 5000)


def test_reading_on_costs_no_search() -> None:
    """A backlog goes up in pieces: the messages before the piece are not looked at again for each of them."""

    class Counting(bytes):
        looked_at = 0

        def __len__(self) -> int:
            Counting.looked_at += 1
            return super().__len__()

    buffer = ReplayBuffer()
    for at in range(0, 64_000, 64):
        buffer.append(Counting(sound(at, at + 64)))
    Counting.looked_at = 0
    assert b"".join(buffer.read(at, 640) for at in range(0, 64_000, 640)) == sound(0, 64_000)
    assert Counting.looked_at < 10 * 1000
