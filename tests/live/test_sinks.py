"""A client's queue, when its connection does not take what is said."""

from __future__ import annotations

import asyncio
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.recogniser import Kind
from gateway.live.sinks import ClientSink
from gateway.live.wire import ServerSide
from gateway.session.events import Deliver
from tests.fakes.stand import eventually


class Leg:
    """A leg that keeps what it is given; `room` is how many texts fit before it is not writable."""

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.sent: list[bytes] = []
        self.closed: tuple[int | None, str] | None = None

    @property
    def writable(self) -> bool:
        return self.room > 0

    def send_result(self, data: bytes) -> None:
        assert self.closed is None
        self.room -= 1
        self.sent.append(data)

    def close(self, code: int | None, reason: str) -> None:
        self.closed = (code, reason)


class Slow:
    """Counts how often a sink gave its client up."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def sink_on(leg: Leg, slow: Slow, limit_bytes: int = 1000, patience: float = 60.0) -> ClientSink:
    return ClientSink(cast(ServerSide, leg), limit_bytes, patience, slow)


def interim(text: str, channel: int = 0) -> Deliver:
    return Deliver(text.encode(), Kind.INTERIM, channel)


def final(text: str) -> Deliver:
    return Deliver(text.encode(), Kind.FINAL)


async def test_straight_through() -> None:
    """While the client reads, nothing is queued."""
    leg, slow = Leg(), Slow()
    sink = sink_on(leg, slow)
    for text in "abc":
        sink.deliver(interim(text))
    assert leg.sent == [b"a", b"b", b"c"]


async def test_interims_replace_each_other_by_channel() -> None:
    """The latest is enough; it takes the place that its time gives it among the finals."""
    leg, slow = Leg(0), Slow()
    sink = sink_on(leg, slow)
    for event in (interim("1"), final("F"), interim("2"), interim("x", 1), final("G"), interim("3")):
        sink.deliver(event)
    leg.room = 10
    sink.resume()
    assert leg.sent == [b"F", b"x", b"G", b"3"]
    sink.forget()


@given(st.lists(st.tuples(st.sampled_from("ifor"), st.integers(0, 1), st.integers(0, 3)), max_size=40))
def test_order_and_finals_hold(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is dropped is an interim that a later one of its channel follows; the rest keeps its order."""

    async def run() -> None:
        leg, slow = Leg(2), Slow()
        sink = sink_on(leg, slow, limit_bytes=10**6)
        given: list[Deliver] = []
        for number, (what, channel, room) in enumerate(steps):
            if what == "r":
                leg.room = room
                sink.resume()
                continue
            kind = {"i": Kind.INTERIM, "f": Kind.FINAL, "o": Kind.OTHER}[what]
            given.append(Deliver(f"{number}".encode(), kind, channel))
            sink.deliver(given[-1])
        leg.room = 10**9
        sink.resume()
        order = [event.raw for event in given]
        assert leg.sent == [raw for raw in order if raw in leg.sent]
        for index, event in enumerate(given):
            if event.raw not in leg.sent:
                assert event.kind is Kind.INTERIM
                later = [
                    e for e in given[index + 1 :] if e.kind is Kind.INTERIM and e.channel == event.channel
                ]
                assert later
        assert slow.times == 0

    asyncio.run(run())


async def test_too_much_gives_up_once() -> None:
    """Beyond limit_bytes the client is given up, and what comes later is nobody's."""
    leg, slow = Leg(0), Slow()
    sink = sink_on(leg, slow, limit_bytes=10)
    for _ in range(5):
        sink.deliver(final("12345"))
    assert slow.times == 1
    leg.room = 10
    sink.resume()
    assert leg.sent == []


async def test_dropped_interims_take_no_room() -> None:
    """The limit counts what waits, not what was said."""
    leg, slow = Leg(0), Slow()
    sink = sink_on(leg, slow, limit_bytes=10)
    for _ in range(50):
        sink.deliver(interim("12345678"))
    assert slow.times == 0
    sink.forget()


async def test_too_long_gives_up_once() -> None:
    """After `patience` seconds without a read, also when there is little to read."""
    leg, slow = Leg(0), Slow()
    sink = sink_on(leg, slow, patience=0.05)
    sink.deliver(final("a"))
    await eventually(lambda: slow.times == 1)
    sink.deliver(final("b"))
    await asyncio.sleep(0.1)
    assert slow.times == 1


async def test_reading_renews_the_patience() -> None:
    """A client that reads a little now and then is slow, not gone."""
    leg, slow = Leg(0), Slow()
    sink = sink_on(leg, slow, patience=0.2)
    for text in "abcd":
        sink.deliver(final(text))
    for _ in range(4):
        await asyncio.sleep(0.1)
        leg.room = 1
        sink.resume()
    assert leg.sent == [b"a", b"b", b"c", b"d"]
    await asyncio.sleep(0.3)
    assert slow.times == 0


async def test_a_close_waits_for_the_queue() -> None:
    """The last results come before the end."""
    leg, slow = Leg(0), Slow()
    sink = sink_on(leg, slow)
    sink.deliver(final("last"))
    sink.close(1000, "")
    closed = [leg.closed]
    leg.room = 1
    sink.resume()
    assert (leg.sent, [*closed, leg.closed]) == ([b"last"], [None, (1000, "")])


async def test_a_close_without_a_queue_is_at_once() -> None:
    """There is nothing to wait for."""
    leg, slow = Leg(), Slow()
    sink_on(leg, slow).close(None, "")
    assert leg.closed == (None, "")


async def test_a_client_that_is_gone_is_forgotten() -> None:
    """No timer is left that would give it up, no result is sent to it."""
    leg, slow = Leg(0), Slow()
    sink = sink_on(leg, slow, patience=0.05)
    sink.deliver(final("a"))
    sink.forget()
    await asyncio.sleep(0.1)
    leg.room = 1
    sink.deliver(final("b"))
    assert (slow.times, leg.sent) == (0, [])
