"""One minute of `make chaos`: eight calls of all kinds, a fault every few seconds, and not a word lost."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CALLS, SECONDS, SEED = 8, 20, 12
LONGEST = 240.0


async def test_a_minute_of_chaos_loses_nothing() -> None:
    """In a process of its own, as `make chaos` runs it: a debugging loop would be a fault of its own."""
    arguments = ("--calls", str(CALLS), "--seconds", str(SECONDS), "--seed", str(SEED))
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.chaos.run"),
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(LONGEST):
            said, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGINT)  # it ends its own processes
            await child.wait()
    assert child.returncode == 0, "\n" + said.decode()
