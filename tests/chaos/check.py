"""Was anything lost, said twice, invented, or moved in time? From what client and emulator remember, alone.

The gateway is not asked: its own counters could be wrong in the same way as what it did.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.emulator.tokens import Token, id_for
from tests.chaos.caller import History
from tests.chaos.plan import CallPlan

Span = tuple[float, float]
ROUNDED: Final = 2e-6
"""Seconds by which two numbers of six decimals may differ and mean the same."""
MISPLACED: Final = 0.01
EDGE: Final = 0.05
"""Seconds by which a gap that the emulator made may look longer on the other side."""


@dataclass
class Connection:
    """What the emulator remembers of one connection of a call."""

    id: str
    audio: bytes
    sent: list[str]
    ended_by: str
    ended_how: str
    close_code: int | None
    closed: bool
    faults: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """One call's row of the table, and what is wrong in words."""

    number: int
    sent: int = 0
    delivered: int = 0
    lost: int = 0
    excused: int = 0
    """Words inside gaps that were declared and that the emulator's log justifies."""
    doubled: int = 0
    invented: int = 0
    moved: int = 0
    """Words delivered at another time than they were spoken."""
    declared: float = 0.0
    unjustified: float = 0.0
    undeclared: float = 0.0
    backward: int = 0
    untiled: int = 0
    metadata: int = 0
    request_ids: int = 0
    extra_finalizes: int = 0
    connections: int = 0
    orphans: int = 0
    problems: list[str] = field(default_factory=list)

    def blame(self, text: str) -> None:
        self.problems.append(text)


FIGURES: Final = (
    "sent",
    "delivered",
    "lost",
    "excused",
    "doubled",
    "invented",
    "moved",
    "declared",
    "unjustified",
    "undeclared",
    "backward",
    "untiled",
    "connections",
)


def judge(plan: CallPlan, history: History, connections: list[Connection], orphans: list[str]) -> Verdict:
    """The verdict on one call that has come to its end; `orphans` are connections that outlived it."""
    verdict = Verdict(plan.number, connections=len(connections), orphans=len(orphans))
    if orphans:
        verdict.blame(f"the gateway still holds upstream connections open: {', '.join(orphans)}")
    messages = [(at, json.loads(text)) for at, text in history.heard]
    results = [(at, m) for at, m in messages if m["type"] == "Results"]
    holes = _emulator_holes(plan, connections, verdict)
    gaps = declared_gaps(m for _, m in messages)
    whole = not plan.vanishes
    _judge_gaps(gaps, holes if plan.holes else [], verdict)
    for channel in range(len(plan.said)):
        own = [(at, m) for at, m in results if m["channel_index"][0] == channel]
        _judge_windows(plan, history, channel, own, gaps, verdict, whole)
        _judge_words(plan, history, channel, [m for _, m in own if m["is_final"]], gaps, verdict, whole)
    _judge_protocol(plan, history, [m for _, m in messages], verdict, whole)
    return verdict


def declared_gaps(messages: Iterable[dict[str, Any]]) -> list[Span]:
    """The gaps that the client was told of, each once."""
    gaps = {(gap["start"], gap["stop"]) for m in messages for gap in (m.get("gateway") or {}).get("gaps", [])}
    return sorted(gaps)


def overlap(span: Span, others: Iterable[Span]) -> float:
    """Seconds of `span` that `others` cover."""
    covered, reached = 0.0, span[0]
    for start, stop in sorted(others):
        start, stop = max(start, reached), min(stop, span[1])
        if stop > start:
            covered, reached = covered + stop - start, stop
    return covered


def tolerance(seconds: float, rate: int) -> float:
    """How exactly two windows of float32 seconds must meet."""
    _, exponent = math.frexp(seconds)
    return max(1 / rate, 4 * math.ldexp(1.0, exponent - 24)) + ROUNDED


# The parts of a verdict


def _judge_gaps(gaps: list[Span], holes: list[Span], verdict: Verdict) -> None:
    for gap in gaps:
        verdict.declared += gap[1] - gap[0]
        missing = gap[1] - gap[0] - overlap(gap, holes)
        if missing > EDGE:
            verdict.unjustified += missing
            verdict.blame(f"gap {gap[0]:.3f}-{gap[1]:.3f} is declared, and nothing justifies it")


def _judge_windows(
    plan: CallPlan,
    history: History,
    channel: int,
    results: list[tuple[float, dict[str, Any]]],
    gaps: list[Span],
    verdict: Verdict,
    whole: bool,
) -> None:
    """Finals must tile the call; interims must not reach back over them."""
    reached, rate = 0.0, plan.fmt.sample_rate
    for at, message in results:
        start, end = message["start"], message["start"] + message["duration"]
        slack = tolerance(end, rate)
        if start < reached - slack:
            verdict.backward += 1
            what = "final" if message["is_final"] else "interim"
            verdict.blame(f"{at}: channel {channel}: {what} {start:.4f}-{end:.4f} after {reached:.4f}")
        if not message["is_final"]:
            continue
        if start > reached + slack:
            _judge_hole((reached, start), gaps, verdict, f"{at}: channel {channel}: ")
        reached = max(reached, end)
    end = history.sent_bytes // plan.fmt.frame_bytes / rate
    if whole and end > reached + tolerance(end, rate):
        _judge_hole((reached, end), gaps, verdict, f"end: channel {channel}: ")
    if reached > end + tolerance(end, rate):
        verdict.blame(f"channel {channel}: finals reach {reached:.4f}, the audio {end:.4f}")
        verdict.untiled += 1


def _judge_hole(hole: Span, gaps: list[Span], verdict: Verdict, where: str) -> None:
    missing = hole[1] - hole[0] - overlap(hole, gaps)
    if missing > 0.001:
        verdict.untiled += 1
        verdict.undeclared += missing
        verdict.blame(f"{where}no final and no gap covers {hole[0]:.4f}-{hole[1]:.4f}")


def _judge_words(
    plan: CallPlan,
    history: History,
    channel: int,
    finals: list[dict[str, Any]],
    gaps: list[Span],
    verdict: Verdict,
    whole: bool,
) -> None:
    rate = plan.fmt.sample_rate
    heard_bytes = history.sent_bytes // plan.fmt.frame_bytes
    said = [token for token in plan.said[channel] if token.end_sample <= heard_bytes]
    words = [w for m in finals for w in m["channel"]["alternatives"][0]["words"]]
    expected = Counter(token.id for token in said)
    got: Counter[int | None] = Counter(id_for(word["word"]) for word in words)
    cut = Counter(t.id for t in said if overlap((t.start_sample / rate, t.end_sample / rate), gaps) > 0)
    verdict.sent += len(said)
    verdict.delivered += len(words)
    for word_id in expected.keys() | got.keys():
        if word_id is None or word_id not in expected:
            verdict.invented += got[word_id]
            continue
        surplus = got[word_id] - expected[word_id]
        if surplus > 0:
            verdict.doubled += surplus
        elif surplus < 0:
            excused = min(-surplus, cut[word_id])
            verdict.excused += excused
            verdict.lost += -surplus - excused if whole else 0
    _explain_words(channel, said, words, rate, gaps, verdict, whole)


def _explain_words(
    channel: int,
    said: list[Token],
    words: list[dict[str, Any]],
    rate: int,
    gaps: list[Span],
    verdict: Verdict,
    whole: bool,
) -> None:
    """Puts each word beside the token at its place: what stands alone is named with its time."""
    places: dict[int, list[Token]] = {}
    for token in said:
        places.setdefault(token.id, []).append(token)
    for word in words:
        word_id = id_for(word["word"])
        candidates = places.get(word_id, []) if word_id is not None else []
        near = [token for token in candidates if abs(token.start_sample / rate - word["start"]) < MISPLACED]
        where = f"channel {channel}: word {word['word']} at {word['start']:.4f}-{word['end']:.4f}"
        if near:
            candidates.remove(near[0])
        elif candidates:
            verdict.moved += 1
            verdict.blame(f"{where} was spoken at {[round(t.start_sample / rate, 4) for t in candidates]}")
        else:
            verdict.blame(f"{where} was not spoken (again)")
    for token in sorted((t for rest in places.values() for t in rest), key=lambda t: t.start_sample):
        span = (token.start_sample / rate, token.end_sample / rate)
        if whole and not overlap(span, gaps):
            verdict.blame(f"channel {channel}: token at {span[0]:.4f}-{span[1]:.4f} did not come")


def _judge_protocol(
    plan: CallPlan, history: History, messages: list[dict[str, Any]], verdict: Verdict, whole: bool
) -> None:
    summaries = [m for m in messages if m["type"] == "Metadata"]
    verdict.metadata = len(summaries)
    ids = {m["metadata"]["request_id"] for m in messages if m["type"] == "Results"}
    ids |= {m["request_id"] for m in summaries}
    verdict.request_ids = len(ids | {history.request_id})
    if verdict.request_ids > 1:
        verdict.blame(f"request ids {sorted(ids)}, the 101 said {history.request_id}")
    answers = sum(bool(m.get("from_finalize")) for m in messages)
    verdict.extra_finalizes = max(0, answers - history.finalizes * len(plan.said))
    if verdict.extra_finalizes:
        verdict.blame(f"{answers} answers to {history.finalizes} Finalize")
    if history.trouble:
        verdict.blame(history.trouble)
    if not whole:
        return
    if len(summaries) != 1 or history.close_code != 1000:
        closed = f"closed with {history.close_code} {history.close_reason}"
        verdict.blame(f"{len(summaries)} Metadata, {closed}")
        return
    seconds = history.sent_bytes // plan.fmt.frame_bytes / plan.fmt.sample_rate
    if abs(summaries[0]["duration"] - seconds) > tolerance(seconds, plan.fmt.sample_rate):
        verdict.blame(f"Metadata says {summaries[0]['duration']} s, the client sent {seconds}")


# What the emulator's log justifies


def _emulator_holes(plan: CallPlan, connections: list[Connection], verdict: Verdict) -> list[Span]:
    """Spans for which the emulator had the audio and skipped it in its finals, on the client's clock."""
    holes: list[Span] = []
    for connection in connections:
        if not connection.audio:
            continue
        base = _place(plan.audio, connection.audio, plan.fmt.frame_bytes)
        if base < 0:
            verdict.blame(f"connection {connection.id}: its audio is not a piece of the client's")
            verdict.invented += 1
            continue
        offset = base / plan.fmt.bytes_per_second
        for channel in range(len(plan.said)):
            holes += [(offset + start, offset + stop) for start, stop in _skipped(plan, channel, connection)]
    return holes


def _place(audio: bytes, piece: bytes, frame: int) -> int:
    """At which byte a connection's audio begins in the client's; mere silence may lie in many places."""
    end = len(audio) - len(piece)
    if audio.endswith(piece) and end % frame == 0:
        return end
    base = audio.find(piece)
    while base >= 0 and base % frame:
        base = audio.find(piece, base + 1)
    return base


def _skipped(plan: CallPlan, channel: int, connection: Connection) -> list[Span]:
    """What the credible finals of one connection leave out between them."""
    rate, reached, holes = plan.fmt.sample_rate, 0.0, []
    length = len(connection.audio) / plan.fmt.bytes_per_second
    for text in connection.sent:
        if '"is_final":true' not in text.replace(" ", ""):
            continue
        message = json.loads(text)
        start, end = message["start"], message["start"] + message["duration"]
        credible = start >= 0 and end <= length + 1 and start >= reached - tolerance(end, rate)
        if message["channel_index"][0] != channel or not credible:
            continue
        if start > reached + tolerance(end, rate):
            holes.append((reached, start))
        reached = max(reached, end)
    return holes
