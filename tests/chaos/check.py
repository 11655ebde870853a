"""Was anything lost, said twice, invented, or moved in time? From what client and emulator remember, alone.

The gateway is not asked: its own counters could be wrong in the same way as what it did.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from gateway.emulator.tokens import Token, id_for
from tests.chaos.caller import History
from tests.chaos.plan import CONFIGURES, FINALIZE, CallPlan, Way
from tests.fakes.muxer import cluster, ogg_header, webm_header

Span = tuple[float, float]
_SPEECH: Final = re.compile(r'\{"type":"(Results|SpeechStarted|UtteranceEnd)"')
ROUNDED: Final = 2e-6
"""Seconds by which two numbers of six decimals may differ and mean the same."""
MISPLACED: Final = 0.01
LAST_PACKET: Final = 0.1
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
    way: Way
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
    events: int = 0
    """SpeechStarted, UtteranceEnd, StartOfTurn and EndOfTurn."""
    resumes: int = 0
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
    "events",
    "resumes",
    "connections",
)


class Result(NamedTuple):
    """A v1 window or a Flux turn, as the client heard it at `at` seconds of the run."""

    at: float
    channel: int
    start: float
    end: float
    is_final: bool
    words: list[dict[str, Any]]

    @classmethod
    def of(cls, at: float, message: dict[str, Any]) -> Result:
        if message["type"] == "TurnInfo":
            start, end = message["audio_window_start"], message["audio_window_end"]
            return cls(at, 0, start, end, message["event"] == "EndOfTurn", message["words"])
        start, end = message["start"], message["start"] + message["duration"]
        words = message["channel"]["alternatives"][0]["words"]
        return cls(at, message["channel_index"][0], start, end, message["is_final"], words)


def judge(plan: CallPlan, history: History, connections: list[Connection], orphans: list[str]) -> Verdict:
    """The verdict on one call that has come to its end; `orphans` are connections that outlived it."""
    verdict = Verdict(plan.number, plan.way, connections=len(connections), orphans=len(orphans))
    if orphans:
        verdict.blame(f"the gateway still holds upstream connections open: {', '.join(orphans)}")
    messages = [(at, json.loads(text)) for at, text in history.heard]
    results = [Result.of(at, m) for at, m in messages if m["type"] in ("Results", "TurnInfo")]
    holes = _emulator_holes(plan, connections, verdict)
    gaps = declared_gaps(m for _, m in messages)
    whole = not plan.vanishes
    _judge_gaps(gaps, holes if plan.holes else [], verdict)
    for channel in range(len(plan.said)):
        own = [result for result in results if result.channel == channel]
        _judge_windows(plan, history, channel, own, gaps, verdict, whole)
        _judge_words(plan, history, channel, [r for r in own if r.is_final], gaps, verdict, whole)
        if plan.way != "flux":
            _judge_speech(plan, channel, messages, connections, verdict, whole)
    if plan.way == "flux":
        _judge_turns(plan, history, messages, verdict, whole)
    if plan.way == "resuming":
        _judge_resumes(plan, history, gaps, verdict)
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
    results: list[Result],
    gaps: list[Span],
    verdict: Verdict,
    whole: bool,
) -> None:
    """Finals must tile the call; interims must not reach back over them."""
    reached, rate = 0.0, plan.fmt.sample_rate
    if not plan.ordered:
        results = sorted((r for r in results if r.is_final), key=lambda result: result.start)
    for at, _, start, end, is_final, _ in results:
        slack = tolerance(end, rate)
        if start < reached - slack:
            verdict.backward += 1
            what = "final" if is_final else "interim"
            verdict.blame(f"{at}: channel {channel}: {what} {start:.4f}-{end:.4f} after {reached:.4f}")
        if not is_final:
            continue
        if start > reached + slack:
            _judge_hole((reached, start), gaps, verdict, f"{at}: channel {channel}: ")
        reached = max(reached, end)
    end = plan.heard(history.sent_bytes) / rate
    # A turn that has not ended has no final; of a container's last packet none is demanded.
    owed = end - reached - (LAST_PACKET if plan.contained else 0.0)
    if whole and plan.way != "flux" and owed > tolerance(end, rate):
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
    finals: list[Result],
    gaps: list[Span],
    verdict: Verdict,
    whole: bool,
) -> None:
    rate, heard = plan.fmt.sample_rate, plan.heard(history.sent_bytes)
    said = [token for token in plan.said[channel] if token.end_sample <= heard]
    words = [word for final in finals for word in final.words]
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
        near = [token for token in candidates if _is_at(token, word, rate)]
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


def _is_at(token: Token, word: dict[str, Any], rate: int) -> bool:
    """Whether the word lies where the token does; at a seam one of its ends may have been cut."""
    ends = (token.start_sample / rate - word["start"], token.end_sample / rate - word["end"])
    return bool(min(map(abs, ends)) < MISPLACED)


def _judge_speech(
    plan: CallPlan,
    channel: int,
    messages: list[tuple[float, dict[str, Any]]],
    connections: list[Connection],
    verdict: Verdict,
    whole: bool,
) -> None:
    """Speech that began ends before it begins again, each is told once, and lies where words do."""
    rate = plan.fmt.sample_rate
    starts = {round(token.start_sample / rate, 2) for token in plan.said[channel]}
    ends = {round(token.end_sample / rate, 2) for token in plan.said[channel]}
    began = ended = -1.0
    is_open = False
    for at, message in messages:
        where = f"{at}: channel {channel}: {message['type']}"
        if (message.get("channel_index") or message.get("channel") or [-1])[0] != channel:
            continue
        match message["type"]:
            case "Results":
                is_open = is_open and not (message["is_final"] and message["speech_final"])
            case "SpeechStarted":
                second, verdict.events = message["timestamp"], verdict.events + 1
                if second <= began:
                    verdict.blame(f"{where} at {second} after one at {began}")
                if is_open and not _said_so(connections, channel, second - began):
                    verdict.blame(f"{where} at {second}, and that at {began} has not ended")
                if not _is_near(second, starts):
                    verdict.blame(f"{where} at {second}, where no word begins")
                began, is_open = second, True
            case "UtteranceEnd":
                second, verdict.events, is_open = message["last_word_end"], verdict.events + 1, False
                if "synthetic" in message.get("gateway", {}) or second < 0:
                    continue
                if second <= ended:
                    verdict.blame(f"{where} of {second} after one of {ended}")
                if not _is_near(second, ends):
                    verdict.blame(f"{where} of {second}, where no word ends")
                ended = second
    if is_open and whole:
        verdict.blame(f"channel {channel}: speech that began at {began} never ended")


def _is_near(second: float, places: set[float]) -> bool:
    return any(round(second + by, 2) in places for by in (-0.01, 0.0, 0.01))


def _said_so(connections: list[Connection], channel: int, apart: float) -> bool:
    """Whether Deepgram itself told of two beginnings that far apart, and of no end between them."""
    for connection in connections:
        began, reached = -1.0, 0.0
        for text in connection.sent:
            kind = _SPEECH.match(text)
            if not kind:
                continue
            message = json.loads(text)
            if (message.get("channel_index") or message["channel"])[0] != channel:
                continue
            if message["type"] != "SpeechStarted":
                is_end = message["type"] == "UtteranceEnd" or (
                    # A final of a second ago cannot be true: with it the end is lost that it tells of.
                    message["is_final"] and message["speech_final"] and message["start"] >= reached - 1.0
                )
                if message.get("is_final"):
                    reached = max(reached, message["start"] + message["duration"])
                began = -1.0 if is_end else began
            elif began >= 0 and abs(message["timestamp"] - began - apart) < MISPLACED:
                return True
            else:
                began = message["timestamp"]
    return False


def _judge_turns(
    plan: CallPlan,
    history: History,
    messages: list[tuple[float, dict[str, Any]]],
    verdict: Verdict,
    whole: bool,
) -> None:
    """Turns and messages are counted on, and each turn begins once before it ends once."""
    turn, sequence, has_begun, is_paused, configured = 0, 0, False, False, 0
    for at, message in messages:
        kind, event = message["type"], message.get("event", "")
        configured += kind == "ConfigureSuccess"
        if "sequence_id" in message:
            if message["sequence_id"] != sequence:
                verdict.blame(f"{at}: {kind} {event} is number {message['sequence_id']}, not {sequence}")
            sequence = message["sequence_id"] + 1
        if kind != "TurnInfo":
            continue
        if message["turn_index"] != turn:
            verdict.blame(f"{at}: {event} of turn {message['turn_index']}, not {turn}")
        verdict.events += event in ("StartOfTurn", "EndOfTurn")
        fits = {
            "Update": not is_paused,
            "StartOfTurn": not has_begun,
            "EagerEndOfTurn": has_begun and not is_paused,
            "TurnResumed": is_paused,
            "EndOfTurn": has_begun,
        }
        if not fits.get(event, True):
            verdict.blame(f"{at}: {event} of turn {turn}: begun {has_begun}, paused {is_paused}")
        turn = message["turn_index"] + (event == "EndOfTurn")
        has_begun = (has_begun or event == "StartOfTurn") and event != "EndOfTurn"
        is_paused = event == "EagerEndOfTurn"
    said = sum(history.said_times(text) for text in CONFIGURES)
    if configured > said or (whole and configured < said):
        verdict.blame(f"{configured} answers to {said} Configure")


def _judge_resumes(plan: CallPlan, history: History, gaps: list[Span], verdict: Verdict) -> None:
    """Numbers without holes, the same bytes each time; acks that grow, and never beyond what finals cover."""
    verdict.resumes = len(history.resumes)
    if not all(history.resumes):
        verdict.blame(f"the session was lost: {history.resumes}")
    said: list[str] = []
    acked = (0, 0, 0)
    reached = dict.fromkeys(range(len(plan.said)), 0.0)
    for text in history.numbered:
        message = json.loads(text)
        number = (message.get("gateway") or {}).get("seq")
        if message["type"] == "GatewayAck":
            before, acked = acked, (message["received"], message["final"], message["seq"])
            if any(new < old for new, old in zip(acked, before, strict=True)):
                verdict.blame(f"an ack of {acked} after one of {before}")
            covered = min(reached.values()) * plan.bytes_per_second
            if not acked[1] <= acked[0] <= history.sent_bytes:
                verdict.blame(f"an ack of {acked}, {history.sent_bytes} were sent")
            if not gaps and acked[1] > covered + plan.fmt.frame_bytes * 4:
                verdict.blame(f"an ack of {acked}, and finals cover {covered}")
        elif number is None:
            if message["type"] == "Results" and message["is_final"]:
                verdict.blame(f"a final without a number: {text[:100]}")
        elif number <= len(said):
            if said[number - 1] != text:
                verdict.blame(f"number {number} came in two forms: {said[number - 1]} and {text}")
        else:
            if number > len(said) + 1:
                verdict.blame(f"number {number} after {len(said)}")
            said += [text] * (number - len(said))
            if message["type"] == "Results":
                end = message["start"] + message["duration"]
                channel = message["channel_index"][0]
                reached[channel] = max(reached[channel], end)


def _judge_protocol(
    plan: CallPlan, history: History, messages: list[dict[str, Any]], verdict: Verdict, whole: bool
) -> None:
    summaries = [m for m in messages if m["type"] == "Metadata"]
    verdict.metadata = len(summaries)
    ids = {m["metadata"]["request_id"] for m in messages if m["type"] == "Results"}
    ids |= {m["request_id"] for m in messages if m["type"] in ("Metadata", "TurnInfo", "Connected")}
    verdict.request_ids = len(ids | ({history.request_id} - {""}))
    if verdict.request_ids > 1:
        verdict.blame(f"request ids {sorted(ids)}, the 101 said {history.request_id}")
    answers, asked = sum(bool(m.get("from_finalize")) for m in messages), history.said_times(FINALIZE)
    # Where a client is gone for a while, pending words are finalised, and an answer may say so.
    verdict.extra_finalizes = max(0, answers - asked * len(plan.said)) if plan.way != "resuming" else 0
    if verdict.extra_finalizes:
        verdict.blame(f"{answers} answers to {asked} Finalize")
    promised = "best_effort" if plan.contained else "exact"
    if history.continuity not in (promised, "") or (not history.continuity and plan.way != "resuming"):
        verdict.blame(f"{history.continuity or 'nothing'} is promised, not {promised}")
    if history.trouble:
        verdict.blame(history.trouble)
    if not whole:
        return
    expected = (0, 1005) if plan.way == "flux" else (1, 1000)
    if (len(summaries), history.close_code) != expected:
        closed = f"closed with {history.close_code} {history.close_reason}"
        verdict.blame(f"{len(summaries)} Metadata, {closed}")
        return
    seconds = plan.heard(history.sent_bytes) / plan.fmt.sample_rate
    slack = tolerance(seconds, plan.fmt.sample_rate)
    for summary in summaries:
        if abs(summary["duration"] - seconds) > slack:
            verdict.blame(f"Metadata says {summary['duration']} s, the client sent {seconds}")


# What the emulator's log justifies


def _emulator_holes(plan: CallPlan, connections: list[Connection], verdict: Verdict) -> list[Span]:
    """Spans for which the emulator had the audio and skipped it in its finals, on the client's clock."""
    holes: list[Span] = []
    for connection in connections:
        if not connection.audio:
            continue
        base = _place(plan, connection.audio)
        if base < 0:
            verdict.blame(f"connection {connection.id}: its audio is not a piece of the client's")
            verdict.invented += 1
            continue
        if plan.way == "flux" or plan.contained:
            continue
        offset = base / plan.fmt.bytes_per_second
        for channel in range(len(plan.said)):
            holes += [(offset + start, offset + stop) for start, stop in _skipped(plan, channel, connection)]
    return holes


def _place(plan: CallPlan, piece: bytes) -> int:
    """At which byte a connection's audio begins in the client's, -1 for none of it; mere silence may lie in
    many places. A container's begins with its header, and perhaps with a cluster that was made up."""
    audio, frame = plan.audio, plan.fmt.frame_bytes
    if plan.contained and not audio.startswith(piece):
        header = ogg_header() if plan.way == "ogg" else webm_header()
        rest = piece.removeprefix(header)
        cut = rest if rest in audio else rest[len(cluster(b"", 0)) :]
        return audio.find(cut) if len(rest) < len(piece) else -1
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
