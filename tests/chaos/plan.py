"""What happens in a run, all of it decided by one seed: how clients behave, and which fault strikes when.

Every fault has a price: seconds by which results fall behind because of it. A call catches up by a fifth of
real time, so a schedule spends no more than that and never lets the backlog near the replay buffer's end:
within these bounds nothing may be lost and no gap declared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.emulator.containers import OPENED, PACKET_MS, packets_of
from gateway.emulator.sound import Format
from gateway.emulator.tokens import Manner, Token, ids, interleave, silence, speech
from tests.fakes.muxer import OPUS_HEAD, ogg, webm

Way = Literal["plain", "resuming", "backfill", "flux", "ogg", "webm"]
"""How a client calls: by `/v1/listen` with raw audio; the same as one that may come back (gw_resume), or has
holes filled beside the call (gw_catch_up); by `/v2/listen`; or by `/v1/listen` with Opus in a container."""
WAYS: Final[tuple[Way, ...]] = (
    *("plain", "resuming", "flux", "ogg", "backfill", "webm"),
    *("plain", "resuming", "plain", "plain"),
)
"""Of each ten calls."""
Leg = Literal["deepgram", "client"]

CATCH_UP: Final = 0.2
"""Seconds of backlog that a second of quiet makes good, at the default pace of 1.2."""
DEEPEST: Final = 60.0
"""The estimated backlog, in seconds, that no schedule passes; half of the replay buffer."""
PRESKIP: Final = int.from_bytes(OPUS_HEAD[10:12], "little") * OPENED.sample_rate // 48_000
"""Samples that a decoder leaves out at the beginning of a container."""
KEEPALIVE: Final = '{"type":"KeepAlive"}'
FINALIZE: Final = '{"type":"Finalize"}'
CONFIGURES: Final = (
    '{"type":"Configure","thresholds":{"eot_threshold":0.6}}',
    '{"type":"Configure","thresholds":{"eot_timeout_ms":4000}}',
)


@dataclass(frozen=True)
class Kind:
    """A fault: where it is made, how often it is chosen, and its price in seconds of backlog."""

    name: str
    where: Literal["proxy", "emulator", "client"]
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
    Kind("flux-error", "emulator", 1, 5),
    Kind("reset", "client", 4, 1),
    Kind("reset-at-byte", "client", 4, 1, (1, 4000)),
    Kind("fin", "client", 3, 1),
    Kind("half-open", "client", 3, 4, (1.0, 8.0)),
    Kind("black-hole", "client", 2, 4),
    Kind("zombie", "client", 5, 4, (4.0, 9.0)),
    Kind("late-network", "client", 2, 3, (0.2, 2.5)),
    Kind("bandwidth", "client", 2, 6, (3.0, 8.0)),
    Kind("slices", "client", 1, 1, (1.0, 4.0)),
    Kind("jitter", "client", 1, 1, (1.0, 6.0)),
    Kind("slow-dial", "client", 2, 6, (0.5, 4.0)),
)
"""On a client's leg `black-hole` and `zombie` let nothing through any more; the client takes its session over
on another connection, and what a zombie held reaches the gateway after that, as if somebody else said it."""
FAREWELLS: Final = ("reset", "fin", "close-net0000", "mute", "half-open", "late", "close-1000", "close-short")
"""What may strike as a client says CloseStream; `close-short` is Metadata and 1000 without last results. The
last two are how a Flux connection ends when all is said, so there they prove nothing."""
CLIENT_FAREWELLS: Final = ("reset", "fin", "black-hole", "zombie")
HOLES: Final = frozenset({"skip", "nan", "negative", "regressing", "beyond"})
"""Faults by which Deepgram itself leaves a hole: a gap declared there is its own. Calls have them only where
the emulator's log can be held beside the client's audio: raw, and in windows."""


@dataclass(frozen=True)
class Strike:
    """A fault: seconds after the call began, what, and how much or how long."""

    at: float
    kind: str
    amount: float = 0.0
    leg: Leg = "deepgram"


@dataclass
class CallPlan:
    """One call. Positions are in bytes of its audio, which in a container is what the client sends of it."""

    number: int
    way: Way
    fmt: Format
    interims: bool
    frames: str
    audio: bytes
    samples: int
    """Of all of it, on the client's clock; so are those of `said`."""
    said: list[list[Token]]
    pauses: dict[int, float]
    texts: dict[int, str]
    floods: set[int]
    """Where the client sends hundreds of messages at once that nobody needs."""
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
    def path(self) -> str:
        """Of the request, with its query."""
        if self.way == "flux":
            eager = "&eager_eot_threshold=0.4" if self.number // 10 % 2 else ""
            return f"/v2/listen?model=flux-general-en&{self._encoding}&tag={self.tag}{eager}"
        query = f"model=nova-3&vad_events=true&tag={self.tag}"
        query += "" if self.contained else f"&{self._encoding}&channels={self.fmt.channels}"
        query += "&multichannel=true" if self.fmt.channels > 1 else ""
        query += "&interim_results=true&utterance_end_ms=1000" if self.interims else ""
        query += "&gw_catch_up=backfill" if self.way == "backfill" else ""
        query += "&gw_order=any" if not self.ordered else ""
        return f"/v1/listen?{query}"

    @property
    def _encoding(self) -> str:
        return f"encoding={self.fmt.encoding}&sample_rate={self.fmt.sample_rate}"

    @property
    def contained(self) -> bool:
        return self.way in ("ogg", "webm")

    @property
    def ordered(self) -> bool:
        """Whether results come in the order of the audio."""
        return self.way != "backfill" or self.number // 10 % 2 == 0

    @property
    def seconds(self) -> float:
        return self.samples / self.fmt.sample_rate

    @property
    def bytes_per_second(self) -> float:
        return len(self.audio) / self.seconds

    def heard(self, sent_bytes: int) -> int:
        """The samples in so many bytes; in a container about so many, unless it is all of it."""
        if self.contained:
            return self.samples * sent_bytes // len(self.audio)
        return sent_bytes // self.fmt.frame_bytes


@dataclass(frozen=True)
class Shared:
    """What strikes everybody: `kind` is stall (of the gateway), refuse or hang (all dials)."""

    at: float
    kind: str
    lasts: float


def call_plan(number: int, seed: int, seconds: float, *, spread: float, faults: bool = True) -> CallPlan:
    """One call of about `seconds` of audio, begun within the first `spread` seconds of the run."""
    rng = random.Random(f"{seed}/{number}")
    way = WAYS[number % len(WAYS)]
    fmt = OPENED
    if way in ("plain", "resuming", "backfill"):
        encoding = rng.choices(("mulaw", "linear16", "alaw"), (8, 1, 1))[0]
        fmt = Format(encoding, 8000, 2 if rng.random() < 0.3 else 1)
    audio, said, samples = _audio(way, fmt, seconds, rng)
    texts = CONFIGURES if way == "flux" else (FINALIZE,)  # on Flux all else would end the connection
    plan = CallPlan(
        number=number,
        way=way,
        fmt=fmt,
        interims=rng.random() < 0.7,
        frames=rng.choice(("20ms", "20ms", "100ms", "odd", "bursts")),
        audio=audio,
        samples=samples,
        said=said,
        pauses={at: rng.uniform(0.5, 8) for at in _places(audio, seconds / 60, rng)},
        texts={at: rng.choice(texts) for at in _places(audio, seconds / 40, rng)},
        floods={rng.randrange(len(audio))} if number % 4 == 0 else set(),
        naps=[(rng.uniform(0, seconds), rng.uniform(1, 6)) for _ in range(round(seconds / 120))],
        vanishes=faults and number % 20 == 8,
        holes=way in ("plain", "resuming", "backfill") and rng.random() < 0.6,
        starts_at=rng.uniform(0, spread),
    )
    if faults:
        plan.strikes = _strikes(plan, rng)
        plan.farewell = _farewell(plan, rng) if rng.random() < 0.5 else None
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


def _audio(way: Way, fmt: Format, seconds: float, rng: random.Random) -> tuple[bytes, list[list[Token]], int]:
    """What the client sends; what it says on each channel, and how long that is, in samples of its clock."""
    mono = Format(fmt.encoding, fmt.sample_rate)
    spoken = [_speech(mono, seconds, rng, pauses=way == "flux") for _ in range(fmt.channels)]
    audio, said = interleave([track for track, _ in spoken], fmt), [said for _, said in spoken]
    if way not in ("ogg", "webm"):
        return audio, said, len(audio) // fmt.frame_bytes
    packets = packets_of(audio)
    (words,) = said
    heard = [Token(t.id, t.start_sample - PRESKIP, t.end_sample - PRESKIP) for t in words]
    samples = len(packets) * PACKET_MS * fmt.sample_rate // 1000 - PRESKIP
    return (ogg if way == "ogg" else webm)(packets), [heard], samples


def _speech(fmt: Format, seconds: float, rng: random.Random, *, pauses: bool) -> tuple[bytes, list[Token]]:
    """Talk of about `seconds`, brisk or slow; with `pauses` in turns, of which the last one ends."""
    longest_gap = 1500 if pauses else rng.choice((200, 500, 1500))
    manner = Manner(gap_ms=(40, longest_gap), no_gap=rng.choice((0.05, 0.15, 0.4)))
    mean = 0.25 + (1 - manner.no_gap) * (40 + longest_gap) / 2000
    audio, said = speech(ids(max(1, round(seconds / mean)), rng), fmt, rng, manner)
    return audio + (silence(2 * fmt.sample_rate, fmt.encoding) if pauses else b""), said


def _places(audio: bytes, count: float, rng: random.Random) -> list[int]:
    """Some bytes of the audio, about so many."""
    return [rng.randrange(len(audio)) for _ in range(round(count + rng.random()))]


def _strikes(plan: CallPlan, rng: random.Random) -> list[Strike]:
    """Faults every few seconds, dear ones only while there is backlog to spare."""
    strikes: list[Strike] = []
    spent: set[str] = set()
    kinds = [kind for kind in KINDS if _concerns(kind, plan)]
    at, behind = rng.uniform(1, 4), 5.0
    last = plan.seconds + sum(plan.pauses.values())
    while at < last:
        dear = [kind for kind in kinds if behind + _price(kind, plan) <= DEEPEST and kind.name not in spent]
        kind = rng.choices(dear, [kind.weight for kind in dear])[0]
        if kind.once:
            spent.add(kind.name)
        leg: Leg = "client" if kind.where == "client" else "deepgram"
        strikes.append(Strike(at, kind.name, rng.uniform(*kind.lasts), leg))
        behind += _price(kind, plan)
        pause = rng.uniform(1, 7)
        at, behind = at + pause, max(5.0, behind - CATCH_UP * pause)
    return strikes


def _concerns(kind: Kind, plan: CallPlan) -> bool:
    if kind.where == "client":
        return plan.way == "resuming"
    if kind.name == "flux-error":
        return plan.way == "flux"
    return plan.holes or kind.name not in HOLES


def _farewell(plan: CallPlan, rng: random.Random) -> Strike:
    at, lasts = rng.uniform(0, 0.6), rng.uniform(1, 4)
    if plan.way == "resuming" and rng.random() < 0.5:
        return Strike(at, rng.choice(CLIENT_FAREWELLS), lasts, "client")
    return Strike(at, rng.choice(FAREWELLS[: -2 if plan.way == "flux" else None]), lasts)


def _price(kind: Kind, plan: CallPlan) -> float:
    return kind.price + (32 if kind.stalls and not plan.interims and plan.way != "flux" else 0)
