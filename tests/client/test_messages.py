"""Summaries of a stream."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from gateway.client.messages import Event, Result, Summary, summarise

PAGE = Path(__file__).parents[2] / "docs" / "stream-json.md"


def results(*latencies: float, final: bool) -> list[Result]:
    return [Result(final, 0, 0.0, 1.0, "x", 1.0, latency) for latency in latencies]


def test_latency_is_that_of_interims() -> None:
    """A final may lag behind by design, so finals count only where there is nothing else."""
    both = results(0.1, 0.2, 0.3, final=False) + results(9.0, final=True)
    summary = summarise(both, 2.0, 1000, "")
    assert (summary.finals, summary.interims) == (1, 3)
    assert (summary.latency_median, summary.latency_p95) == (0.2, 0.2)
    assert summarise(results(9.0, final=True), 2.0, 1000, "").latency_median == 9.0


def test_percentile() -> None:
    """The 95th percentile of a hundred is the 95th."""
    summary = summarise(results(*(n / 100 for n in range(1, 101)), final=False), 1.0, 1000, "")
    assert summary.latency_p95 == 0.95


def test_nothing_came() -> None:
    """A stream without results has no latency, and says so."""
    summary = summarise([], 1.0, 1011, "net0001")
    assert (summary.latency_median, summary.latency_p95) == (None, None)
    assert summary.line() == "1.0 s of audio, 0 finals, 0 interims, no results, closed 1011 (net0001)"


@pytest.mark.parametrize("kind", [Result, Event, Summary])
def test_the_page_names_every_field(kind: type[msgspec.Struct]) -> None:
    """docs/stream-json.md has each field of each object, and no other."""
    section = PAGE.read_text().split(f"\n## `{kind.__name__.lower()}`\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", section, re.M)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert documented == list(kind.__struct_fields__)
