"""Runs of one system as a row, and rows as Markdown."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any, Final

from bench.systems import named

Run = dict[str, Any]
"""What the load said of one run, with what the kernel said of the system."""
Row = dict[str, Any]
"""Medians of a system's runs; `…_range`: the least and the most; losses are the most of any run."""
BEYOND_WINDOW_MS: Final = 20.0
BUSY_LOAD: Final = 0.97
"""Share of its core from which on the load is late itself."""
COLUMNS: Final = (
    "calls",
    "system",
    "runs",
    "CPU-s per 1000 call-s (range)",
    "x nginx",
    "x bare",
    "core %",
    "up p50 / p99 / p99.99 ms",
    "down p50 / p99 / p99.99 ms",
    "KiB per call",
    "KiB beside un-final audio",
    "set-up ms",
    "lost: frames, results",
)


def make_row(name: str, calls: int, runs: list[Run], bare: float | None) -> Row:
    good = [run for run in runs if "error" not in run]
    row: Row = {
        "system": name,
        "calls": calls,
        "runs": len(good),
        "errors": [r["error"] for r in runs if "error" in r],
    }
    if not good:
        return row
    numbers = [key for key, value in good[0].items() if isinstance(value, int | float) and key != "calls"]
    row |= {key: median(run[key] for run in good) for key in numbers if all(key in run for run in good)}
    row |= {
        f"{key}_range": [min(r[key] for r in good), max(r[key] for r in good)]
        for key in ("cpu", "setup_ms", "kib")
    }
    for way in ("up", "down", "late"):
        bins: Counter[float] = Counter()
        for run in good:
            bins.update({top: count for top, count in run[way]["bins"]})
        row[way] = {key: median(run[way][key] for run in good) for key in ("p50", "p99", "p9999", "max")}
        row[way]["bins"] = sorted(bins.items())
    row["frames_lost"] = max(run["frames_lost"] for run in good)
    row["results_lost"] = max(run["results_lost"] for run in good)
    if "blackout" in good[0]:
        row["blackout"] = {key: max(run["blackout"][key] for run in good) for key in good[0]["blackout"]}
    if bare:
        row["x_bare"] = row["cpu"] / bare
    return row


def knees(rows: list[Row]) -> dict[str, int]:
    """The most calls that each system carries; 0: none of those that were tried."""
    found: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: int(row["calls"])):
        window = named(row["system"]).system.window_ms
        fits = "up" in row and row["up"]["p9999"] <= window + BEYOND_WINDOW_MS
        losses = ("frames_lost", "results_lost", "closed_early")
        lossless = not any(row.get(key, 1) for key in losses)
        best = found.setdefault(row["system"], 0)
        if fits and lossless and not row["errors"]:
            found[row["system"]] = max(best, row["calls"])
    return found


def markdown(report: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [_line(row) for row in report["rows"]]
    text = f"{report['how']}\n\n" + "\n".join(lines) + "\n"
    for row in report["rows"]:
        if row.get("load_core", 0) > BUSY_LOAD:
            text += f"\nThe load was at its limit with {row['system']} and {row['calls']} calls: look away.\n"
        for error in row["errors"]:
            text += f"\n{row['system']}, {row['calls']} calls: {error}.\n"
        if "blackout" in row:
            text += _blackout(row)
        elif "loop_lag_p99_ms" in row:
            lag = f"loop lag p99 at most {row['loop_lag_p99_ms']:.0f} ms"
            text += f"\n{row['system']}, {row['calls']} calls: {lag}.\n"
    for name, reason in report["skipped"].items():
        text += f"\nNot measured: {name} ({reason}).\n"
    if report["knees"]:
        text += "\n| system | most calls on one core |\n|---|---|\n"
        text += "".join(
            f"| {name} | {calls or 'none of these'} |\n" for name, calls in report["knees"].items()
        )
    return text


def _line(row: Row) -> str:
    if "cpu" not in row:
        return f"| {row['calls']} | {row['system']} | 0 |" + " - |" * 10
    low, high = row["cpu_range"]
    cells = [
        f"{row['calls']} | {row['system']} | {row['runs']} | {row['cpu']:.3f} ({low:.3f}-{high:.3f})",
        *(f"{row[key]:.2f}" if key in row else "-" for key in ("x_nginx", "x_bare")),
        f"{100 * row['core']:.0f}",
        *(" / ".join(f"{row[way][key]:.2f}" for key in ("p50", "p99", "p9999")) for way in ("up", "down")),
        f"{row['kib']:.1f}",
        f"{row['kib_beside_unfinal']:.1f}" if row["system"].startswith("gateway") else "-",
        f"{row['setup_ms']:.2f}",
        f"{row['frames_lost']}, {'-' if 'blackout' in row else row['results_lost']}",
    ]
    return f"| {' | '.join(cells)} |"


def _blackout(row: Row) -> str:
    cut = row["blackout"]
    lag = f"; loop lag p99 at most {row['loop_lag_p99_ms']:.0f} ms" if "loop_lag_p99_ms" in row else ""
    return (
        f"\n{row['system']}, {row['calls']} calls, all cut from Deepgram at once: "
        f"{cut['caught_up']:.0f} back in real time, the last after {cut['caught_up_seconds']:.1f} s; "
        f"the fastest went up at {cut['fastest']:.3f} x real time in any 5 s, beside its burst of 1 s{lag}.\n"
    )
