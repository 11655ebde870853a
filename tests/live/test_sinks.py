"""A client's queue, when its connection does not take what is said."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as SansIO
from websockets.protocol import Side

from gateway.deepgram.recogniser import Kind
from gateway.live.client import ClientLeg
from gateway.live.head import Head, parse
from gateway.live.sinks import ClientSink
from gateway.session.events import Deliver
from tests.fakes.stand import eventually
from tests.fakes.wire_client import upgrade
from tests.live.test_client import Wire


class Client(Wire):
    """What is at the other end of a leg, and keeps what it is given; it reads `room` texts, then no more."""

    def __init__(self, room: int = 10**9) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self._protocol: SansIO | None = None
        head = parse(upgrade("/v1/listen"))
        assert isinstance(head, Head)
        self.leg = ClientLeg(head, 1000, 65_536)
        self.leg.connection_made(self)
        self.leg.accept([])
        self.leg.flush()
        self._protocol = SansIO(Side.CLIENT)
        self.room = room

    @property
    def room(self) -> int:
        return self._room

    @room.setter
    def room(self, room: int) -> None:
        self._room = room
        if room > 0:
            self.leg.resume_writing()
        else:
            self.leg.pause_writing()

    @property
    def closed(self) -> int | None:
        """The code that it was given, 1005 for none at all."""
        close = self._protocol.close_rcvd if self._protocol is not None else None
        return close.code if close is not None else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._protocol is None:
            return  # the 101
        self._protocol.receive_data(bytes(data))
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self.sent.append(bytes(event.data))
                self.room -= 1


class Slow:
    """Counts how often a sink gave its client up."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def sink_on(client: Client, slow: Slow, limit_bytes: int = 1000, patience: float = 60.0) -> ClientSink:
    return ClientSink(client.leg, limit_bytes, patience, slow)


def interim(text: str, channel: int = 0) -> Deliver:
    return Deliver(text.encode(), Kind.INTERIM, channel)


def final(text: str) -> Deliver:
    return Deliver(text.encode(), Kind.FINAL)


async def test_straight_through() -> None:
    """While the client reads, nothing is queued."""
    client, slow = Client(), Slow()
    sink = sink_on(client, slow)
    for text in "abc":
        sink.deliver(interim(text))
    assert client.sent == [b"a", b"b", b"c"]


async def test_interims_replace_each_other_by_channel() -> None:
    """The latest is enough; it takes the place that its time gives it among the finals."""
    client, slow = Client(0), Slow()
    sink = sink_on(client, slow)
    for event in (interim("1"), final("F"), interim("2"), interim("x", 1), final("G"), interim("3")):
        sink.deliver(event)
    client.room = 10
    sink.resume()
    assert client.sent == [b"F", b"x", b"G", b"3"]
    sink.forget()


@given(st.lists(st.tuples(st.sampled_from("ifor"), st.integers(0, 1), st.integers(0, 3)), max_size=40))
def test_order_and_finals_hold(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is dropped is an interim that a later one of its channel follows; the rest keeps its order."""

    async def run() -> None:
        client, slow = Client(2), Slow()
        sink = sink_on(client, slow, limit_bytes=10**6)
        given: list[Deliver] = []
        for number, (what, channel, room) in enumerate(steps):
            if what == "r":
                client.room = room
                sink.resume()
                continue
            kind = {"i": Kind.INTERIM, "f": Kind.FINAL, "o": Kind.OTHER}[what]
            given.append(Deliver(f"{number}".encode(), kind, channel))
            sink.deliver(given[-1])
        client.room = 10**9
        sink.resume()
        order = [event.raw for event in given]
        assert client.sent == [raw for raw in order if raw in client.sent]
        for index, event in enumerate(given):
            if event.raw not in client.sent:
                assert event.kind is Kind.INTERIM
                later = [
                    e for e in given[index + 1 :] if e.kind is Kind.INTERIM and e.channel == event.channel
                ]
                assert later
        assert slow.times == 0

    asyncio.run(run())


async def test_too_much_gives_up_once() -> None:
    """Beyond limit_bytes the client is given up, and what comes later is nobody's."""
    client, slow = Client(0), Slow()
    sink = sink_on(client, slow, limit_bytes=10)
    for _ in range(5):
        sink.deliver(final("12345"))
    assert slow.times == 1
    client.room = 10
    sink.resume()
    assert client.sent == []


async def test_dropped_interims_take_no_room() -> None:
    """The limit counts what waits, not what was said."""
    client, slow = Client(0), Slow()
    sink = sink_on(client, slow, limit_bytes=10)
    for _ in range(50):
        sink.deliver(interim("12345678"))
    assert slow.times == 0
    sink.forget()


async def test_too_long_gives_up_once() -> None:
    """After `patience` seconds without a read, also when there is little to read."""
    client, slow = Client(0), Slow()
    sink = sink_on(client, slow, patience=0.05)
    sink.deliver(final("a"))
    await eventually(lambda: slow.times == 1)
    sink.deliver(final("b"))
    await asyncio.sleep(0.1)
    assert slow.times == 1


async def test_reading_renews_the_patience() -> None:
    """A client that reads a little now and then is slow, not gone."""
    client, slow = Client(0), Slow()
    sink = sink_on(client, slow, patience=0.2)
    for text in "abcd":
        sink.deliver(final(text))
    for _ in range(4):
        await asyncio.sleep(0.1)
        client.room = 1
        sink.resume()
    assert client.sent == [b"a", b"b", b"c", b"d"]
    await asyncio.sleep(0.3)
    assert slow.times == 0


async def test_a_close_waits_for_the_queue() -> None:
    """The last results come before the end."""
    client, slow = Client(0), Slow()
    sink = sink_on(client, slow)
    sink.deliver(final("last"))
    sink.close(1000, "")
    closed = [client.closed]
    client.room = 1
    sink.resume()
    assert (client.sent, [*closed, client.closed]) == ([b"last"], [None, 1000])


async def test_a_close_without_a_queue_is_at_once() -> None:
    """There is nothing to wait for."""
    client, slow = Client(), Slow()
    sink_on(client, slow).close(None, "")
    assert client.closed == 1005


async def test_a_client_that_is_gone_is_forgotten() -> None:
    """No timer is left that would give it up, no result is sent to it."""
    client, slow = Client(0), Slow()
    sink = sink_on(client, slow, patience=0.05)
    sink.deliver(final("a"))
    sink.forget()
    await asyncio.sleep(0.1)
    client.room = 1
    sink.deliver(final("b"))
    assert (slow.times, client.sent) == (0, [])
