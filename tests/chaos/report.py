"""What a run found, as a table for the terminal and as a report to keep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.chaos.check import FIGURES, Verdict
from tests.chaos.plan import WAYS

if TYPE_CHECKING:
    from tests.chaos.run import Outcome

_NAMES = {
    "declared": "gap s",
    "unjustified": "unjust. s",
    "undeclared": "undecl. s",
    "backward": "back",
    "connections": "conns",
}


def passed(verdict: Verdict) -> bool:
    return not verdict.problems and not any(
        (
            verdict.lost,
            verdict.doubled,
            verdict.invented,
            verdict.moved,
            verdict.unjustified,
            verdict.undeclared,
        )
    )


def table(outcome: Outcome) -> str:
    """A row for each that failed, for each way of calling, and for all together."""
    head = ["", "calls", *(_NAMES.get(name, name) for name in FIGURES), "metadata", "ids"]
    rows = [_row(f"call {verdict.number}", [verdict]) for verdict in outcome.failures]
    rows += [_row(way, [v for v in outcome.verdicts if v.way == way]) for way in dict.fromkeys(WAYS)]
    rows.append(_row("all", outcome.verdicts))
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.rjust(8) for cell in line) + " |" for line in lines) + "\n"


def _row(name: str, verdicts: list[Verdict]) -> list[str]:
    sums = [sum(getattr(verdict, figure) for verdict in verdicts) for figure in FIGURES]
    ids = max((verdict.request_ids for verdict in verdicts), default=0)
    shown = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in sums]
    return [name, str(len(verdicts)), *shown, str(sum(verdict.metadata for verdict in verdicts)), str(ids)]


def markdown(outcome: Outcome) -> str:
    """The report."""
    failed = len(outcome.failures)
    said = sum(plan.seconds for plan in outcome.plans)
    verdict = "PASS" if not failed else f"FAIL: {failed} of {outcome.calls} calls"
    faults = sum(outcome.faults.values())
    lines = [
        "# Chaos",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())} · `make chaos-calls CALLS={outcome.calls} "
        f"SECONDS={outcome.seconds:g} SEED={outcome.seed} BATCH_MS={outcome.batch_ms}` · **{verdict}**",
        "",
        f"{outcome.calls} calls, {said / 60:.0f} minutes of audio, {outcome.took / 60:.1f} minutes of run, "
        f"{faults} faults, {outcome.refused} dials refused by the emulator; the gateway ended with exit code "
        f"{outcome.gateway_exit}.",
        "",
        "Words, windows and gaps are counted from the histories of clients and emulator. `excused`: words "
        "inside gaps that were declared and that the emulator's own log shows it made (`skip` and results "
        "that cannot be true); a call without these faults may have no gap at all. Calls whose client "
        "vanishes have no Metadata and count no words as lost. `events`: SpeechStarted and UtteranceEnd, "
        "which must alternate with ends of speech and come once; StartOfTurn and EndOfTurn of Flux, counted "
        "without a hole. `resumes`: connections of a client that came back, by drops of its own network "
        "(`client: …`) and takeovers; results' numbers have no hole, and the same bytes each time.",
        "",
        table(outcome),
        "| fault | struck | found no connection |",
        "|---|---:|---:|",
    ]
    kinds = sorted(outcome.faults | outcome.missed)
    lines += [f"| {kind} | {outcome.faults[kind]} | {outcome.missed[kind]} |" for kind in kinds]
    for verdict_ in outcome.failures:
        lines += ["", f"## Call {verdict_.number}", "", *(f"- {p}" for p in verdict_.problems[:12])]
    return "\n".join(lines) + "\n"
