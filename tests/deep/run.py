"""`make deep`: the continuity properties of tests/session for a long time, one after the other.

python -m tests.deep.run --examples 12000 --seed 1 --report tests/deep/report.md
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from bench.machine import commit

ROOT: Final = Path(__file__).resolve().parents[2]
PROPERTIES: Final = (
    "test_continuity.py::test_no_word_is_lost_or_heard_twice",
    "test_continuity.py::test_windows_tile_when_words_wander",
    "test_continuity.py::test_what_does_not_fit_is_declared",
    "test_continuity.py::test_turns_go_on",
    "test_continuity.py::test_the_pace_holds_for_any_client",
    "test_backfill.py::test_no_word_is_lost_or_heard_twice",
    "test_backfill.py::test_windows_tile_when_words_wander",
    "test_backfill.py::test_a_hole_that_takes_too_long_is_declared",
    "test_backfill.py::test_what_does_not_fit_is_declared",
)
_COUNTS = re.compile(r"- (\d+) passing, (\d+) failing")


class Outcome(NamedTuple):
    """What became of one property; `seconds` of the wall."""

    name: str
    passing: int
    failing: int
    seconds: float


def tried(name: str, examples: int, seed: int) -> Outcome:
    """Runs one property; every phase of Hypothesis counts."""
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "deep", "HYPOTHESIS_EXAMPLES": str(examples)}
    options = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--hypothesis-show-statistics",
        f"--hypothesis-seed={seed}",
    ]
    command = [sys.executable, "-m", "pytest", *options, f"tests/session/{name}"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    counts = [(int(passing), int(failing)) for passing, failing in _COUNTS.findall(done.stdout)]
    failing = sum(failing for _, failing in counts) or int(done.returncode != 0 or not counts)
    outcome = Outcome(name, sum(passing for passing, _ in counts), failing, time.monotonic() - began)
    print(f"{name}: {outcome.passing} schedules in {outcome.seconds:.0f} s, {failing} failed", flush=True)
    if failing:
        print(done.stdout, flush=True)  # at once: there are hours to come
    return outcome


def report(outcomes: list[Outcome], seed: int, tree: str) -> str:
    """In Markdown."""
    total = sum(outcome.passing for outcome in outcomes)
    verdict = "FAIL" if any(outcome.failing for outcome in outcomes) else "PASS"
    lines = [
        "# Deep",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())} · `make deep SEED={seed}` · commit {tree} · "
        f"Python {sys.version.split()[0]} · {total} schedules · **{verdict}**",
        "",
        "| property | schedules that held | failed | seconds |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| `{o.name}` | {o.passing} | {o.failing} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="deep", description=__doc__)
    parser.add_argument("--examples", type=int, default=12_000, help="schedules of each property")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="properties at a time")
    parser.add_argument("--report", type=Path, help="where to write the report")
    options = parser.parse_args()
    tree = commit()
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(lambda name: tried(name, options.examples, options.seed), PROPERTIES))
    if options.report:
        options.report.write_text(report(outcomes, options.seed, tree))
    return 1 if any(outcome.failing for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
