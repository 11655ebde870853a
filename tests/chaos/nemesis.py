"""Makes faults happen: the schedule's strikes on one call, and those on everybody."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from tests.chaos.plan import CallPlan, Leg, Shared, Strike
from tests.chaos.stage import EmulatorProcess, GatewayProcess
from tests.fakes.fault_proxy import FaultProxy, Link

FOREVER: Final = 100_000.0
NET_0000 = "NET-0000: no response in time"
NET_0001 = "NET-0001: no audio in time"
ACTIONS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "close-net0000": ("close", {"code": 1011, "reason": NET_0000, "metadata_first": True}),
    "close-net0001": ("close", {"code": 1011, "reason": NET_0001, "metadata_first": True}),
    "close-1008": ("close", {"code": 1008, "reason": "DATA-0000: the payload cannot be decoded as audio"}),
    "close-1000": ("close", {"code": 1000}),
    "close-short": ("close", {"code": 1000, "metadata_first": True}),
    "close-1012": ("close", {"code": 1012, "reason": "service restart"}),
    "close-empty": ("close", {"code": 0}),
    "rst": ("reset", {}),
    "mute": ("mute", {}),
    "dead": ("half-open", {}),
    "freeze": ("freeze", {}),
    "stop-reading": ("stop-reading", {}),
    "slow": ("slow", {"speed": 0.5}),
    "late": ("late", {"lasts": 8.0}),
    "duplicate": ("duplicate", {}),
    "garbage": ("garbage", {}),
    "unknown-type": ("unknown-type", {}),
    "binary": ("binary", {"text": "not a message"}),
    "oversized": ("oversized", {"size_bytes": 5_000_000}),
    "skip": ("skip", {}),
    "nan": ("implausible", {"oddity": "nan"}),
    "negative": ("implausible", {"oddity": "negative"}),
    "regressing": ("implausible", {"oddity": "regressing"}),
    "beyond": ("implausible", {"oddity": "beyond"}),
    "flux-error": ("flux-error", {}),
}
AMOUNTS: Final = {
    "freeze": "lasts",
    "stop-reading": "lasts",
    "slow": "lasts",
    "late": "delay",
    "skip": "seconds",
}


class Nemesis:
    """`done` counts what struck, `missed` what found no connection; `log` is per call, for people."""

    def __init__(
        self, legs: dict[Leg, FaultProxy], emulator: EmulatorProcess, gateway: GatewayProcess, zero: float
    ) -> None:
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.log: dict[str, list[str]] = {}
        self._legs = legs
        self._emulator = emulator
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._zero = zero

    async def haunt(self, plan: CallPlan, began: asyncio.Event, ends: asyncio.Event) -> None:
        """All strikes on one call."""
        await began.wait()
        await self._all(plan.tag, plan.strikes)
        if plan.farewell is not None:
            await ends.wait()
            await self._all(plan.tag, [plan.farewell], "farewell: ")

    async def haunt_all(self, plan: list[Shared]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for shared in plan:
                tasks.create_task(self._shared(shared))

    async def _all(self, tag: str, strikes: list[Strike], what: str = "") -> None:
        """Strikes, counted from now."""
        start = self._loop.time()
        for strike in strikes:
            await asyncio.sleep(max(0.0, start + strike.at - self._loop.time()))
            struck = await self._strike(tag, strike)
            name = f"{what}{'client: ' if strike.leg == 'client' else ''}{strike.kind}"
            (self.done if struck else self.missed)[name] += 1
            self._note(tag, f"{name} {strike.amount:.2f}{'' if struck else ' (missed)'}")

    def _note(self, tag: str, text: str) -> None:
        self.log.setdefault(tag, []).append(f"{self._loop.time() - self._zero:.3f} {text}")

    async def _strike(self, tag: str, strike: Strike) -> bool:
        proxy = self._legs[strike.leg]
        link = proxy.open_link(tag)
        if link is None:
            return False
        action = ACTIONS.get(strike.kind)
        if action is None:
            self._network(proxy, link, strike)
            return True
        name, options = action
        if strike.kind in AMOUNTS:
            options = {**options, AMOUNTS[strike.kind]: strike.amount}
        elif strike.kind == "duplicate":
            options = {"count": round(strike.amount)}
        return await self._emulator.act(link.request_id, name, options) > 0

    def _network(self, proxy: FaultProxy, link: Link, strike: Strike) -> None:
        amount = strike.amount
        match strike.kind:
            case "reset":
                link.reset()
            case "reset-at-byte":
                link.reset_after(round(amount))
            case "fin":
                link.fin()
            case "half-open":
                link.half_open(amount)
            case "black-hole":
                link.half_open(FOREVER)
            case "zombie":
                link.zombie(amount)
            case "late-network":
                link.late(amount, 3 * amount)
            case "bandwidth":
                link.limit(6000, amount)
            case "slices":
                link.slice(29, amount)
            case "dribble":
                link.slice(5, amount)
            case "jitter":
                link.jitter(0.25, amount)
            case "dripping-dial":
                proxy.dripping.add(link.tag)
                link.reset()
            case "slow-dial":
                proxy.slow_dials[link.tag] = amount
                link.reset()
            case "dial-timeout":
                proxy.slow_dials[link.tag] = FOREVER
                link.reset()
            case _:
                raise ValueError(strike.kind)

    async def _shared(self, shared: Shared) -> None:
        await asyncio.sleep(max(0.0, self._zero + shared.at - self._loop.time()))
        self.done[shared.kind] += 1
        self._note("all", f"{shared.kind} {shared.lasts:.2f}")
        if shared.kind == "stall":
            await self._gateway.stall(shared.lasts)
            return
        proxy = self._legs["deepgram"]
        for link in proxy.all():
            link.reset() if shared.kind == "refuse" else link.half_open(FOREVER)
        proxy.refusing = shared.kind == "refuse"
        proxy.hanging = shared.kind == "hang"
        await asyncio.sleep(shared.lasts)
        proxy.refusing = proxy.hanging = False
