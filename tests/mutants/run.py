"""Known mistakes of replaying proxies, each put into a copy of Gateway: the tests must find every one.

    python -m tests.mutants.run [name …] [--report tests/mutants/report.md]

A mutant is a replacement of text that occurs exactly once; one that no longer applies is a failure too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.machine import commit

ROOT = Path(__file__).resolve().parents[2]
SESSION = "gateway/session"
TIMEOUT = 300
SURVIVES = "survives"
SLIP = re.compile(r"^E +(AttributeError|NameError|UnboundLocalError|ImportError|ModuleNotFoundError)\b", re.M)
"""A mutant that no longer fits the code it is put into."""
HUNTERS = ("tests/session/test_continuity.py", "tests/session")
"""The properties first: what they miss, a test of one rule must find."""


QUEUES = (
    "tests/prerecorded/test_queue_conformance.py",
    *("-k", "(sqlite or valkey) and (late or killed or share or done)"),
)
"""Who may run and end a job, on the servers that start at once."""


class Mutant(NamedTuple):
    """`old` becomes `new` in `path`; `hunters` are the tests that must find it."""

    path: str
    old: str
    new: str
    hunters: tuple[str, ...] = HUNTERS


MUTANTS = {
    "replay from sent": Mutant(
        f"{SESSION}/stream.py",
        "uplink.open(clock.offset(base) if clock.timed else resent, now)",
        "uplink.open(resent, now)",
    ),
    "replay from zero without dedupe": Mutant(
        f"{SESSION}/transcript.py",
        "if is_old or (overlaps and not self._cut(message, reading)):",
        "if overlaps and reading.end < 0:",
    ),
    "the deadline beats a dial": Mutant(
        f"{SESSION}/stream.py",
        "        elif self._link is Link.OPEN:\n            self._owner.stream_failed(INTERNAL, OUT_OF_TIME)",
        "        else:\n            self._owner.stream_failed(INTERNAL, OUT_OF_TIME)",
    ),
    "dials without end": Mutant(
        f"{SESSION}/stream.py",
        "return self.draining and not self.patient and is_late",
        "return False and is_late",
    ),
    "one seam for all channels": Mutant(
        f"{SESSION}/transcript.py",
        "known = max(known, self._seams.get(reading.channel, -1.0))",
        "known = max(known, min(self._seams.values(), default=-1.0))",
    ),
    "over-trim": Mutant(
        f"{SESSION}/uplink.py",
        "self.buffer.discard_until(min(keep_from, self.sent))",
        "self.buffer.discard_until(self.sent)",
    ),
    "no epoch base": Mutant(
        f"{SESSION}/timeline.py",
        "self._offset = self.second(base) if self._clock.timed else self._cursor",
        "self._offset = 0.0",
    ),
    "trim on words": Mutant(
        f"{SESSION}/stream.py",
        "            uplink.settle(transcript.timeline",
        "            words = transcript._last_words(reading.channel)\n"
        "            watermark = round(words[-1].end * clock.rate_hz) if words else 0\n"
        "            transcript.timeline.committed[reading.channel] = watermark\n"
        "            uplink.settle(transcript.timeline",
    ),
    "dedupe by word start": Mutant(
        f"{SESSION}/seam.py",
        "known += _known(new[known:], latest[known:], heard, mark)",
        'known += sum(float(word["start"]) < mark for word in timed[known:])',
    ),
    "dedupe by text": Mutant(
        f"{SESSION}/seam.py",
        "        costs[n] += WRONG_SIDE * sum(",
        "        costs[n] += 0 * sum(",
    ),
    "backoff reset on 101": Mutant(
        f"{SESSION}/stream.py",
        "        self._opened_at = self._kept_alive_at = now\n",
        "        self._opened_at = self._kept_alive_at = now\n        self._backoff.reset()\n",
    ),
    "one watermark for all channels": Mutant(
        f"{SESSION}/timeline.py",
        "        self.committed[reading.channel] = end\n",
        "        self.committed = [end] * len(self.committed)\n",
    ),
    "no header": Mutant(
        f"{SESSION}/stream.py",
        "self.urgent = [lead_in] if lead_in else []",
        "self.urgent = []",
    ),
    "a header is audio": Mutant(
        "gateway/audio/clock.py",
        "return max(0, offset - len(self.preamble)) // self.frame_bytes",
        "return offset // self.frame_bytes",
    ),
    "a container is cut anywhere": Mutant(
        "gateway/audio/containers.py",
        "return self._starts.before_sample(sample)",
        "return self._starts.before_sample(sample) + 1",
    ),
    "edge by word end": Mutant(
        f"{SESSION}/seam.py",
        "if not _is_timed(word) or _middle(_word(word)) < mark + TIE]",
        'if not _is_timed(word) or word["end"] <= mark]',
    ),
    "edge by doubt": Mutant(
        f"{SESSION}/transcript.py",
        "self._last_words(reading.channel), edge)",
        "self._last_words(reading.channel))",
    ),
    "no overlap at the edge": Mutant(
        f"{SESSION}/backfill.py",
        "edge - overlap, now",
        "edge, now",
    ),
    "live finals before the hole": Mutant(
        f"{SESSION}/backfill.py",
        "        self._held.append(",
        "        return False\n        self._held.append(",
    ),
    "metadata before an error close": Mutant(
        f"{SESSION}/stream.py",
        "            self._summary = raw\n",
        "            self._summary = raw\n            self._owner.stream_says(raw, Kind.OTHER, 0)\n",
    ),
    "final ahead of F": Mutant(
        f"{SESSION}/timeline.py",
        "return self.watermark + self._left_out(self.watermark)",
        "return max(self.committed) + self._left_out(max(self.committed))",
    ),
    "journal off by one": Mutant(
        f"{SESSION}/resume.py",
        "have = len(self._journal) - (self.seq - request.have_seq)",
        "have = len(self._journal) - (self.seq - request.have_seq) + 1",
    ),
    "old token dies at once": Mutant(
        f"{SESSION}/resume.py",
        "self._token_before = _hashed(request.token)",
        'self._token_before = b""',
    ),
    "audio after CloseStream": Mutant(
        f"{SESSION}/stream.py",
        "messages = self.uplink.take(now) if self._link is _OPEN else []",
        "messages = self.uplink.take(now)",
    ),
    "the end is not held": Mutant(
        f"{SESSION}/protocol.py",
        "is_held = was_accepted and self._client_present and self._may_return",
        "is_held = False",
    ),
    "skipped audio is given up at once": Mutant(
        f"{SESSION}/stream.py",
        "        if mark < 0 or self._skipped_at.get(channel) == mark:\n",
        "        if mark >= -1:\n",
    ),
    "skipped audio is tried for ever": Mutant(
        f"{SESSION}/stream.py",
        "        self._skipped_at[channel] = mark\n",
        "        self._skipped_at[channel] = -1\n",
    ),
    "one place of skipped audio for all channels": Mutant(
        f"{SESSION}/stream.py",
        "        self._skipped_at[channel] = mark\n",
        "        self._skipped_at = {channel: mark}\n",
    ),
    "a clean end is believed": Mutant(
        f"{SESSION}/stream.py",
        "        if not is_short or not self._second_chance:\n",
        "        if is_short or not self._second_chance:\n",
    ),
    "silence after CloseStream is an end": Mutant(
        f"{SESSION}/stream.py",
        "if self._link is Link.OPEN and self._second_chance:",
        "if self._link is Link.OPEN and self._owed() and self._second_chance:",
    ),
    "interims that only we want": Mutant(
        f"{SESSION}/stream.py",
        "        if self._hides_interims and not is_final:\n",
        "        if self._hides_interims and is_final and not is_final:\n",
    ),
    "rotation within an utterance": Mutant(
        f"{SESSION}/stream.py",
        "return age >= (limit if reading.ends_speech else limit * WORN_OUT)",
        "return age >= limit",
    ),
    "speech that a gap cut short goes on": Mutant(
        f"{SESSION}/transcript.py",
        "            self._declare(Gap(*seconds, reason))\n        self._overdue |= self._speaking\n",
        "            self._declare(Gap(*seconds, reason))\n",
    ),
    "speech that only a lost connection knew goes on": Mutant(
        f"{SESSION}/transcript.py",
        "        self._forsaken |= self._speaking\n",
        "        self._forsaken = NOBODY\n",
    ),
    "the end of an utterance is swallowed": Mutant(
        f"{SESSION}/transcript.py",
        "                return self._late_end(message, reading)\n",
        "                return None\n",
    ),
    "speech begins again after a seam": Mutant(
        f"{SESSION}/transcript.py",
        "                if self._was_spoken(reading):\n",
        "                if self._was_spoken(reading) and reading.end < 0:\n",
    ),
    "overshoot is audio": Mutant(
        f"{SESSION}/timeline.py",
        "            self._overshot[reading.channel] = end\n            end = sent\n",
        "            self._overshot[reading.channel] = end\n",
    ),
    "whatever comes is true": Mutant(
        f"{SESSION}/stream.py",
        "        if last < 0 and not transcript.is_plausible(reading, sent):\n",
        "        if last < 0 and transcript.is_plausible(reading, sent) and not sent:\n",
    ),
    "the first connection begins at zero": Mutant(
        f"{SESSION}/transcript.py",
        "        self._moved = self._moved or base > 0\n",
        "",
    ),
    "old connections have a say": Mutant(
        f"{SESSION}/stream.py",
        "        if epoch != self.epoch or (link is not _OPEN and link is not _RESTING):\n"
        "            self.stale += 1\n            return None\n",
        "",
    ),
    "CloseStream goes up once": Mutant(
        f"{SESSION}/uplink.py",
        "        self.control(text, Repeat.ALWAYS)\n",
        "        self.control(text, Repeat.NEVER)\n",
    ),
    "Finalize goes up for ever": Mutant(
        f"{SESSION}/protocol.py",
        "self.stream.control(text, Repeat.UNTIL_FINAL, now)",
        "self.stream.control(text, Repeat.ALWAYS, now)",
    ),
    "a replay without a pace": Mutant(
        f"{SESSION}/uplink.py",
        "        if not pacer.admit(wanted, now):\n",
        "        if not pacer.admit(wanted, now) and not self.catching_up:\n",
    ),
    "a pause is a stall": Mutant(
        f"{SESSION}/watch.py",
        "return max(self._progress_at + self._stall, self._owed_since + self._grace)",
        "return self._progress_at + self._stall",
    ),
    "a silent channel is a stall": Mutant(
        f"{SESSION}/watch.py",
        "max(self._reached.values())",
        "min(self._reached.values())",
    ),
    "a container's backlog is lag": Mutant(
        f"{SESSION}/watch.py",
        "            audio = min(audio, now - self._opened_at)\n",
        "            pass\n",
    ),
    "a turn ends twice": Mutant(
        f"{SESSION}/transcript.py",
        "if 0 <= reading.sequence <= self._latest:",
        "if 0 <= reading.sequence < self._latest:",
    ),
    "what has no number takes one": Mutant(
        f"{SESSION}/transcript.py",
        "        if reading.sequence >= 0:\n            self._latest = reading.sequence\n",
        "        if reading.sequence >= -1:\n            self._latest = reading.sequence\n",
    ),
    "our own Finalize is the client's": Mutant(
        f"{SESSION}/finalizes.py",
        "return None, not is_ours",
        "return None, True",
    ),
    "who is silent is not waited for": Mutant(
        f"{SESSION}/protocol.py",
        "elif self.state not in DEAF and self._may_return:",
        "elif self.state not in DEAF and self.detached:",
    ),
    "our lateness is the client's silence": Mutant(
        f"{SESSION}/protocol.py",
        "if due is not None and now - due > LATE:",
        "if due is None:",
    ),
    "what went up is kept for ever": Mutant(
        f"{SESSION}/uplink.py",
        "        if self._next > WAITING_CONTROLS:\n",
        "        if self._next < 0:\n",
    ),
    "gaps are not told": Mutant(
        f"{SESSION}/transcript.py",
        '        self._notes.setdefault("gaps", []).append(gap)\n',
        "",
    ),
    "Metadata counts the last connection": Mutant(
        f"{SESSION}/transcript.py",
        "            self._recogniser.shift(message, Shift(duration=round(seconds, 6)))\n",
        "",
    ),
    "finals without words are remembered": Mutant(
        f"{SESSION}/transcript.py",
        "if self._recogniser.has_windows and _WORD.search(raw):",
        "if self._recogniser.has_windows:",
    ),
    "any attempt ends a job": Mutant(
        "gateway/store/jobs.py",
        "is_latest = job.fence in latest",
        "is_latest = job.id in {job_id for job_id, _, _ in latest}",
        ("tests/store/test_jobs.py", "-k", "sqlite"),
    ),
    "leases do not end": Mutant(
        "gateway/store/jobs.py",
        'is_lost = and_(JOBS.c.state == "running", JOBS.c.lease_until < now)',
        'is_lost = and_(JOBS.c.state == "running", JOBS.c.lease_until < now - 3600)',
        QUEUES,
    ),
    "what is delivered twice runs twice": Mutant(
        "gateway/store/jobs.py",
        '.where(JOBS.c.state == "queued", JOBS.c.run_at <= _NOW)',
        '.where(JOBS.c.state.in_(("queued", "running", "succeeded")), JOBS.c.run_at <= _NOW)',
        QUEUES,
    ),
    "a key is any request's": Mutant(
        "gateway/prerecorded/copies.py",
        "        if shared.digest != request.digest:\n",
        "        if False:\n",
        ("tests/prerecorded/test_copies.py",),
    ),
    "a key is everybody's": Mutant(
        "gateway/sidecar/jobs.py",
        "msgspec.msgpack.encode((caller, key, place))",
        "msgspec.msgpack.encode((key, place))",
        ("tests/sidecar/test_jobs.py", "-k", "key"),
    ),
    "a page that rebinds is one of ours": Mutant(
        "gateway/sidecar/pages.py",
        'return not is_local and "." not in name',
        "return not is_local",
        ("tests/sidecar/test_pages.py",),
    ),
    "a deleted job's callbacks stay": Mutant(
        "gateway/prerecorded/queue.py",
        "                await deliveries.remove_of(connection, gone.principal, gone.id)\n",
        "",
        ("tests/prerecorded/test_queue_conformance.py", "-k", "sqlite and deleted"),
    ),
    "one principal takes all places": Mutant(
        "gateway/prerecorded/targets.py",
        "for places in (domains, own, self._places):",
        "for places in (domains, self._places):",
        ("tests/prerecorded/test_targets.py", "-k", "hang"),
    ),
}


class Verdict(NamedTuple):
    """`alive` says why a mutant is not dead, and is empty if it is; `finder` is the test that found it."""

    alive: str
    finder: str = ""


def hunt(name: str, mutant: Mutant) -> Verdict:
    """Runs the hunters on a copy with the mutant in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("gateway", "tests", "docs"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "clients"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / mutant.path
        text = path.read_text()
        if text.count(mutant.old) != 1:
            return Verdict("does not apply")
        path.write_text(text.replace(mutant.old, mutant.new))
        environment = {**os.environ, "PYTHONPATH": folder, "HYPOTHESIS_PROFILE": "hunt"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.hunters]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return Verdict(f"no verdict in {TIMEOUT} s")
    slip = SLIP.search(done.stdout)
    if slip:
        return Verdict(f"dies of {slip[1]}, which proves nothing")
    last = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not last:
        return Verdict(SURVIVES if done.returncode == 0 else f"pytest ended with {done.returncode}")
    finder = last[-1].split()[1]
    print(f"dead: {name}: {finder}", flush=True)
    return Verdict("", finder)


UNCHANGED = Mutant("pyproject.toml", 'name = "gateway"', 'name = "gateway"')


def report(verdicts: dict[str, Verdict], tree: str) -> str:
    """In Markdown."""
    dead = sum(not verdict.alive for verdict in verdicts.values())
    lines = [
        "# Mutants",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())} · `make mutants` · commit {tree} · "
        f"**{dead} of {len(verdicts)} are dead**",
        "",
        "| mistake | found by |",
        "|---|---|",
    ]
    lines += [
        f"| {name} | {'**' + v.alive + '**' if v.alive else '`' + v.finder + '`'} |"
        for name, v in verdicts.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="all, if none is named")
    parser.add_argument("--report", type=Path, help="where to write the report, in Markdown")
    options = parser.parse_args()
    if hunt("Gateway as it is", UNCHANGED).alive != SURVIVES:
        print("the tests fail without any mutant")
        return 1
    tree = commit()
    chosen = {name: MUTANTS[name] for name in options.names or MUTANTS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = dict(zip(chosen, pool.map(hunt, chosen, chosen.values()), strict=True))
    alive = {name: verdict.alive for name, verdict in verdicts.items() if verdict.alive}
    for name, why in alive.items():
        print(f"ALIVE: {name}: {why}")
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants are dead")
    if options.report:
        options.report.write_text(report(verdicts, tree))
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
