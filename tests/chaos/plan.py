"""What happens in a run, all of it decided by one seed: how clients behave, and which fault strikes when.

Every fault has a price: seconds by which results fall behind because of it. A call catches up by a fifth of
real time, so a schedule spends no more than that and never lets the backlog near the replay buffer's end:
within these bounds nothing may be lost and no gap declared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from gateway.emulator.sound import Format
from gateway.emulator.tokens import Manner, Token, ids, interleave, speech

CATCH_UP: Final = 0.2
"""Seconds of backlog that a second of quiet makes good, at the default pace of 1.2."""
DEEPEST: Final = 60.0
"""The estimated backlog, in seconds, that no schedule passes; half of the replay buffer."""


@dataclass(frozen=True)
class Kind:
    """A fault: where it is made, how often it is chosen, and its price in seconds of backlog."""

    name: str
    where: str
    weight: float
    price: float
    lasts: tuple[float, float] = (0.0, 0.0)
    once: bool = False
    stalls: bool = False
    """Noticed by the absence of results, which takes four times as long without interims."""


KINDS: Final = (
    Kind("reset", "proxy", 3, 5),
    Kind("reset-at-byte", "proxy", 3, 5, (1, 4000)),
    Kind("fin", "proxy", 2, 5),
    Kind("half-open", "proxy", 2, 4, (1.0, 8.0)),
    Kind("black-hole", "proxy", 1, 16),
    Kind("late-network", "proxy", 2, 3, (0.2, 2.5)),
    Kind("bandwidth", "proxy", 2, 6, (3.0, 8.0)),
    Kind("slices", "proxy", 2, 1, (1.0, 4.0)),
    Kind("dribble", "proxy", 1, 3, (0.5, 2.0)),
    Kind("jitter", "proxy", 2, 1, (1.0, 6.0)),
    Kind("slow-dial", "proxy", 2, 9, (0.5, 4.0)),
    Kind("dripping-dial", "proxy", 1, 6),
    Kind("dial-timeout", "proxy", 1, 12),
    Kind("close-net0000", "emulator", 1, 5),
    Kind("close-net0001", "emulator", 1, 5),
    Kind("close-1008", "emulator", 1, 5, once=True),
    Kind("close-1000", "emulator", 1, 5),
    Kind("close-1012", "emulator", 1, 5),
    Kind("close-empty", "emulator", 1, 5),
    Kind("rst", "emulator", 1, 5),
    Kind("mute", "emulator", 1, 16, stalls=True),
    Kind("dead", "emulator", 1, 16),
    Kind("freeze", "emulator", 2, 12, (1.0, 12.0)),
    Kind("stop-reading", "emulator", 2, 12, (1.0, 12.0)),
    Kind("slow", "emulator", 1, 8, (3.0, 12.0)),
    Kind("late", "emulator", 2, 6, (0.5, 4.0)),
    Kind("duplicate", "emulator", 3, 0, (1, 4)),
    Kind("garbage", "emulator", 2, 0),
    Kind("unknown-type", "emulator", 1, 0),
    Kind("binary", "emulator", 1, 0),
    Kind("oversized", "emulator", 0.5, 5, once=True),
    Kind("skip", "emulator", 0.7, 8, (0.3, 1.5)),
    Kind("nan", "emulator", 0.5, 8),
    Kind("negative", "emulator", 0.5, 8),
    Kind("regressing", "emulator", 0.5, 8),
    Kind("beyond", "emulator", 0.5, 8),
)
FAREWELLS: Final = ("reset", "fin", "close-net0000", "close-1000", "close-short", "mute", "half-open", "late")
"""What may strike as a client says CloseStream; `close-short` is Metadata and 1000 without last results."""
HOLES: Final = frozenset({"skip", "nan", "negative", "regressing", "beyond"})
"""Faults by which Deepgram itself leaves a hole: a gap declared there is its own."""


@dataclass(frozen=True)
class Strike:
    """A fault: seconds after the call began, what, and how much or how long."""

    at: float
    kind: str
    amount: float = 0.0


@dataclass
class CallPlan:
    """One call. Positions are in bytes of its audio."""

    number: int
    fmt: Format
    interims: bool
    multichannel: bool
    frames: str
    audio: bytes
    said: list[list[Token]]
    pauses: dict[int, float]
    finalizes: list[int]
    naps: list[tuple[float, float]]
    """When the client stops reading, and for how long."""
    vanishes: bool
    holes: bool
    """Whether Deepgram itself may leave holes; where it does not, no gap may be declared at all."""
    starts_at: float
    strikes: list[Strike] = field(default_factory=list)
    farewell: Strike | None = None
    """What strikes when the client says CloseStream, counted from then."""

    @property
    def tag(self) -> str:
        return f"call{self.number}"

    @property
    def query(self) -> str:
        fmt = self.fmt
        query = f"model=nova-3&encoding={fmt.encoding}&sample_rate={fmt.sample_rate}&channels={fmt.channels}"
        query += "&multichannel=true" if self.multichannel else ""
        query += "&interim_results=true" if self.interims else ""
        return f"{query}&vad_events=true&tag={self.tag}"

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.fmt.bytes_per_second


@dataclass(frozen=True)
class Shared:
    """What strikes everybody: `kind` is stall (of the gateway), refuse or hang (all dials)."""

    at: float
    kind: str
    lasts: float


def call_plan(number: int, seed: int, seconds: float, *, spread: float, faults: bool = True) -> CallPlan:
    """One call of about `seconds` of audio, begun within the first `spread` seconds of the run."""
    rng = random.Random(f"{seed}/{number}")
    channels = 2 if rng.random() < 0.3 else 1
    fmt = Format(rng.choices(("mulaw", "linear16", "alaw"), (8, 1, 1))[0], 8000, channels)
    mono = Format(fmt.encoding, fmt.sample_rate)
    spoken = [_speech(mono, seconds, rng) for _ in range(channels)]
    audio = interleave([track for track, _ in spoken], fmt)
    plan = CallPlan(
        number=number,
        fmt=fmt,
        interims=rng.random() < 0.7,
        multichannel=channels > 1,
        frames=rng.choice(("20ms", "20ms", "100ms", "odd", "bursts")),
        audio=audio,
        said=[said for _, said in spoken],
        pauses=_pauses(len(audio), seconds, rng),
        finalizes=sorted(rng.randrange(len(audio)) for _ in range(round(seconds / 40 + rng.random()))),
        naps=[(rng.uniform(0, seconds), rng.uniform(1, 6)) for _ in range(round(seconds / 120))],
        vanishes=faults and number % 12 == 11,
        holes=number % 2 == 1,
        starts_at=rng.uniform(0, spread),
    )
    if faults:
        plan.strikes = _strikes(plan, rng)
        if rng.random() < 0.5:
            plan.farewell = Strike(rng.uniform(0, 0.6), rng.choice(FAREWELLS), rng.uniform(1, 4))
    return plan


def shared_plan(seed: int, seconds: float) -> list[Shared]:
    """Stalls of the gateway every quarter of a minute; an outage for all now and then."""
    rng = random.Random(f"{seed}/shared")
    plan: list[Shared] = []
    at = rng.uniform(4, 10)
    while at < seconds:
        plan.append(Shared(at, "stall", rng.uniform(0.5, 2.0)))
        at += rng.uniform(8, 20)
    at = rng.uniform(15, 30)
    while at < seconds - 10:
        plan.append(Shared(at, rng.choice(("refuse", "hang")), rng.uniform(3, min(20.0, seconds / 6))))
        at += rng.uniform(100, 150)
    return sorted(plan, key=lambda shared: shared.at)


def emulator_faults(seed: int, calls: int, seconds: float) -> list[dict[str, object]]:
    """Faults that wait for a moment of the protocol, or for the nth dial."""
    rng = random.Random(f"{seed}/emulator")
    few = max(1, calls // 4)
    faults: list[dict[str, object]] = [
        {"kind": "reset", "at": "close-stream", "times": few},
        {"kind": "close", "at": "close-stream", "times": few, "code": 1011, "reason": "NET-0000"},
        {"kind": "fin", "at": "metadata", "times": few},
        {"kind": "close", "at": "finalize", "times": few, "code": 1011, "reason": "NET-0000"},
    ]
    dials = range(2, max(8, round(calls * (1 + seconds / 20))))
    for nth in rng.sample(dials, len(dials) // 4):
        fault = rng.choice(
            (
                {"kind": "refuse", "status": 429, "retry_after": 1},
                {"kind": "refuse", "status": 500},
                {"kind": "refuse", "status": 503},
                {"kind": "refuse", "status": 503, "retry_after": 2},
                {"kind": "refuse", "status": 408},
                {"kind": "close", "at": "open", "code": 1011, "reason": "NET-0000"},
                {"kind": "reset", "at": "audio"},
            )
        )
        faults.append({**fault, "nth": nth, "times": 1})
    return faults


def _speech(fmt: Format, seconds: float, rng: random.Random) -> tuple[bytes, list[Token]]:
    """Talk of about `seconds`, brisk or slow."""
    longest_gap = rng.choice((200, 500, 1500))
    manner = Manner(gap_ms=(40, longest_gap), no_gap=rng.choice((0.05, 0.15, 0.4)))
    mean = 0.25 + (1 - manner.no_gap) * (40 + longest_gap) / 2000
    return speech(ids(max(1, round(seconds / mean)), rng), fmt, rng, manner)


def _pauses(size: int, seconds: float, rng: random.Random) -> dict[int, float]:
    """Where the client says nothing but KeepAlive, and for how long."""
    return {rng.randrange(size): rng.uniform(0.5, 8) for _ in range(round(seconds / 60 + rng.random()))}


def _strikes(plan: CallPlan, rng: random.Random) -> list[Strike]:
    """Faults every few seconds, dear ones only while there is backlog to spare."""
    strikes: list[Strike] = []
    spent: set[str] = set()
    kinds = [kind for kind in KINDS if plan.holes or kind.name not in HOLES]
    at, behind = rng.uniform(1, 4), 5.0
    last = plan.seconds + sum(plan.pauses.values())
    while at < last:
        dear = [kind for kind in kinds if behind + _price(kind, plan) <= DEEPEST and kind.name not in spent]
        kind = rng.choices(dear, [kind.weight for kind in dear])[0]
        if kind.once:
            spent.add(kind.name)
        strikes.append(Strike(at, kind.name, rng.uniform(*kind.lasts)))
        behind += _price(kind, plan)
        pause = rng.uniform(1, 7)
        at, behind = at + pause, max(5.0, behind - CATCH_UP * pause)
    return strikes


def _price(kind: Kind, plan: CallPlan) -> float:
    return kind.price + (32 if kind.stalls and not plan.interims else 0)
