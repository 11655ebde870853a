"""Where a figure was measured: no figure is worth anything without it."""

from __future__ import annotations

import filecmp
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / ".native"
"""Where `make native` puts the compiled build."""


def machine() -> str:
    """Processor, cores, kernel and Python on one line."""
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib():.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def is_native() -> bool:
    """Whether there is a compiled build, and of the sources that are here."""
    sources = [str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")]
    same, _, _ = filecmp.cmpfiles(ROOT, NATIVE, sources, shallow=False)
    return len(same) == len(sources)


def commit(*, compiled: bool = False) -> str:
    """The last commit that changed gateway/, with a mark if it was measured with changes on top.

    `compiled`: what was measured is the build in `NATIVE`.
    """
    how = "compiled" if compiled else "interpreted"
    try:
        last = _git("log", "-1", "--format=%h", "--", "gateway")
        changed = "+" if _git("status", "--porcelain", "--", "gateway") else ""
        return f"gateway {last}{changed} ({how})"
    except (OSError, subprocess.CalledProcessError):
        return "no git"


def others_load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return os.getloadavg()[0]


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
