"""Plots of a report of bench.run, as PNG files beside it: `.bench/plots/bin/python bench/plots.py FILE.json`.

Cost against calls, latency above its window as a distribution, memory. Imports nothing of ours: matplotlib
lives in an environment of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

matplotlib.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=matplotlib.colormaps["tab20"].colors)


def cost(rows: list[dict[str, Any]], path: Path) -> None:
    """CPU per call with its range, against the number of calls."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for name, own in by_system(rows).items():
        calls, cpu = [row["calls"] for row in own], [row["cpu"] for row in own]
        spread = [
            [row["cpu"] - row["cpu_range"][0] for row in own],
            [row["cpu_range"][1] - row["cpu"] for row in own],
        ]
        axes.errorbar(calls, cpu, yerr=spread, marker="o", capsize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="calls", ylabel="CPU seconds per 1000 seconds of call")
    axes.set_title("What a call costs (lower is better)")
    save(figure, axes, path)


def latency(rows: list[dict[str, Any]], path: Path) -> None:
    """The share of frames that took longer, at the number of calls that most systems were measured with."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    calls = rows[-1]["calls"]
    for row in (row for row in rows if row["calls"] == calls):
        total = left = sum(count for _, count in row["up"]["bins"])
        tops, shares = [], []
        for top, count in row["up"]["bins"]:
            tops.append(top)
            shares.append(left / total)
            left -= count
        axes.step(tops, shares, label=row["system"])
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="ms from the frame's time to Deepgram",
        ylabel="share of frames later",
    )
    axes.set_title(f"Audio's way up, {calls} calls")
    save(figure, axes, path)


def memory(rows: list[dict[str, Any]], path: Path) -> None:
    """KiB per call; of the gateway's, what is audio without a final is light."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    last = {row["system"]: row for row in rows}
    names = list(last)
    axes.barh(
        names, [last[name]["kib"] for name in names], color="lightsteelblue", label="with un-final audio"
    )
    ours = [name for name in names if name.startswith("gateway")]
    axes.barh(ours, [last[name]["kib_beside_unfinal"] for name in ours], color="steelblue", label="beside it")
    axes.set(xlabel="KiB per call (PSS)")
    axes.set_title("Memory of a call")
    save(figure, axes, path)


def by_system(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["calls"])):
        found.setdefault(row["system"], []).append(row)
    return found


def save(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    report = Path(sys.argv[1])
    measured = [row for row in json.loads(report.read_text())["rows"] if "cpu" in row]
    for plot in (cost, latency, memory) if measured else ():
        plot(measured, report.with_name(f"{report.stem}-{plot.__name__}.png"))
