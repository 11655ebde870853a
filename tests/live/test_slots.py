"""Legs that are read by the clock."""

from __future__ import annotations

import asyncio
import itertools

from gateway.live.slots import GROUP, Slots
from tests.fakes.stand import eventually


class Leg:
    """Counts when it is read; `finds` is what `read_now` says."""

    def __init__(self, window_ms: int | None = None, *, can_leave: bool = True) -> None:
        self.window_ms = window_ms
        self.can_leave = can_leave
        self.polled = True
        self.finds = True
        self.reads: list[float] = []
        self.is_faulty = False
        self.defects = 0

    def leave_loop(self) -> bool:
        if self.can_leave:
            self.polled = False
        return self.can_leave

    def join_loop(self) -> None:
        self.polled = True

    def read_now(self) -> bool:
        self.reads.append(asyncio.get_running_loop().time())
        if self.is_faulty:
            raise ZeroDivisionError
        return self.finds

    def defect(self) -> None:
        self.defects += 1


async def test_each_leg_once_per_window() -> None:
    """By its own window, or by the common one; spread, not all at once."""
    slots = Slots(40)
    legs = [Leg() for _ in range(4)]
    quick = Leg(10)
    for leg in legs:
        slots.sit(leg)
    slots.sit(quick)
    await eventually(lambda: len(legs[0].reads) >= 5)
    assert not any(leg.polled for leg in (*legs, quick))
    assert all(4 <= len(leg.reads) <= 6 for leg in legs)
    assert len(quick.reads) >= 2 * len(legs[0].reads)
    first = sorted(leg.reads[0] for leg in legs)
    assert all(b > a for a, b in itertools.pairwise(first)), "in different ticks"
    for leg in (*legs, quick):
        leg.window_ms = 0
    await asyncio.sleep(0.1)
    reads = len(quick.reads)
    await asyncio.sleep(0.05)
    assert len(quick.reads) == reads


async def test_others_get_their_turn_between_groups() -> None:
    """What came meanwhile does not wait until a whole tick has been read; none is read twice for that."""
    slots = Slots(10)
    order: list[str] = []

    class First(Leg):
        def read_now(self) -> bool:
            order.append("first")
            asyncio.get_running_loop().call_soon(order.append, "result")
            return super().read_now()

    class Other(Leg):
        def read_now(self) -> bool:
            order.append("other")
            return super().read_now()

    legs = [First(), *(Other() for _ in range(2 * GROUP))]
    for leg in legs:
        slots.sit(leg)
    await eventually(lambda: order.count("first") == 4)
    ticks = "".join(word[0] for word in order).split("f")[1:-1]
    assert ticks == [f"{'o' * (GROUP - 1)}r{'o' * (GROUP + 1)}"] * 3
    for leg in legs:
        leg.window_ms = 0


async def test_the_window_comes_and_goes() -> None:
    """0 gives legs back to the loop; those with a window of their own do not care."""
    slots = Slots(0)
    leg, own, never = Leg(), Leg(20), Leg(0)
    slots.sit(leg)
    slots.sit(own)
    slots.sit(never)
    assert (leg.polled, own.polled, never.polled) == (True, False, True)
    slots.window_ms = 20
    slots.sit(leg)
    await eventually(lambda: len(leg.reads) >= 2)
    slots.window_ms = 0
    before = len(own.reads)
    await eventually(lambda: len(own.reads) >= before + 4)
    assert (leg.polled, own.polled, never.polled) == (True, False, True)
    own.window_ms = 0


async def test_what_only_the_loop_can_deal_with() -> None:
    """The end of a connection is the loop's; a leg that cannot leave it stays."""
    slots = Slots(10)
    ended, bound = Leg(), Leg(can_leave=False)
    ended.finds = False
    slots.sit(ended)
    slots.sit(bound)
    await eventually(lambda: ended.reads)
    await asyncio.sleep(0.05)
    assert (len(ended.reads), ended.polled) == (1, True)
    assert (bound.reads, bound.polled) == ([], True)


async def test_a_defect_in_one_leg_is_no_other_s() -> None:
    """It hears of it and goes back to the loop; the others are read as before."""
    slots = Slots(20)
    legs = [Leg() for _ in range(3)]
    for leg in legs:
        slots.sit(leg)
    legs[1].is_faulty = True
    await eventually(lambda: legs[1].defects)
    seen = len(legs[0].reads), len(legs[2].reads)
    await eventually(lambda: len(legs[0].reads) > seen[0] + 2 and len(legs[2].reads) > seen[1] + 2)
    assert (legs[1].defects, legs[1].polled) == (1, True)
    for leg in legs:
        leg.window_ms = 0
