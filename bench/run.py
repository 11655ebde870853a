"""`make bench`: what a call costs through Gateway, and through nginx, HAProxy, and proxies in a few lines.

    python -m bench.run [--systems nginx,gateway-100,…|all] [--calls 200,500] [--seconds 4] [--runs 3]

Each system runs alone on one core with the load on another; nginx is measured again beside each of them.
With several numbers of calls it also looks for the knee: the most calls without loss, with the 99.99th
percentile at most 20 ms above the system's window. `--blackout` cuts all connections to Deepgram at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import trustme

from bench.machine import ROOT, commit, is_native, machine, others_load
from bench.systems import MADE, QUICK, SYSTEMS, Place, System, named, versions
from bench.table import Row, Run, knees, make_row, markdown

PRIORITY: Final = "10"
START_TIMEOUT: Final = 60.0
RAMP: Final = {False: 500, True: 150}
"""Calls that are opened in a second, without and with TLS."""
DIALS: Final = 2000
"""That a gateway may begin in a second, while the calls open."""
LONGEST_RAMP: Final = 6.0
"""Seconds; whoever says nothing for 10 is closed."""


class Bench:
    """`cores`: the second is for the load, the others for systems; empty where there is only one."""

    def __init__(self, realtime: bool) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.cores = cores if len(cores) > 1 and shutil.which("taskset") else []
        self.realtime = realtime and _may_chrt()
        if self.realtime:
            # Above both, for marks must be read when they are written; what it starts does not inherit that.
            urgent = os.sched_param(int(PRIORITY) + 1)
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, urgent)
        native, python = MADE / "load", [sys.executable, str(ROOT / "bench" / "load" / "load.py")]
        self.load = [str(native)] if native.exists() else python
        has_tls = native.exists() and b"SSL_read" in native.read_bytes()
        self.load_tls = self.load if has_tls else python
        self.generator = "in C" if native.exists() else "in Python (no gcc here: good for about 100 calls)"
        if native.exists() and not has_tls:
            self.generator += ", with TLS in Python (no libssl-dev here)"

    def conditions(self) -> str:
        pinned = "one core each" if self.cores else "NOT pinned: there is one core only, or no taskset"
        urgent = (
            f"SCHED_FIFO {PRIORITY}"
            if self.realtime
            else "SCHED_OTHER (real time not permitted, or not wanted)"
        )
        return f"{pinned}, {urgent}, load {self.generator}"

    def pinned(self, which: int, realtime: bool) -> list[str]:
        words = ["taskset", "-c", str(self.cores[which])] if self.cores else []
        return [*words, "chrt", "-f", PRIORITY] if self.realtime and realtime else words

    def measure(self, name: str, calls: int, seconds: int, blackout: int = 0) -> Run:
        """One run; `error` in it says what went wrong."""
        system, tls, processes = named(name)
        with tempfile.TemporaryDirectory(prefix="bench.") as folder:
            certificate = _certificate(Path(folder)) if tls else []
            ca = str(Path(folder) / "ca.pem") if tls else ""
            # All calls shall open soon; how they come back after a blackout is what is measured there.
            port, upstream, sidecar = _free_ports(3)
            dials = 0 if blackout else DIALS
            place = Place(port, upstream, sidecar, Path(folder), ca, dials, shared=processes > 1)
            load = [
                *self.pinned(1, True),
                *(self.load_tls if tls else self.load),
                "--target",
                str(place.port),
                "--listen",
                str(place.upstream),
            ]
            load += certificate
            with contextlib.ExitStack() as running:
                children = [
                    running.enter_context(self._running(system, another, number))
                    for number, another in enumerate(_places(place, processes))
                ]
                # A first few calls are not measured: what is imported or allocated once is no call's.
                _load([*load, "--calls", "10", "--seconds", "1"])
                time.sleep(0.5)
                pids = [child.pid for child in children]
                probe = Probe(pids, place.sidecar if name.startswith("gateway") else 0)
                load += ["--calls", str(calls), "--seconds", str(seconds)]
                load += ["--ramp", str(max(RAMP[tls], round(calls / LONGEST_RAMP)))]
                found = _load([*load, *(["--blackout", str(blackout)] if blackout else [])], probe)
        return found if "error" in found else found | probe.figures(calls, found["unfinal_bytes"])

    @contextlib.contextmanager
    def _running(self, system: System, place: Place, number: int) -> Iterator[subprocess.Popen[bytes]]:
        command, env = system.command(place)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "DEEPGRAM_", "NOTIFY_"))}
        log = place.folder / "log"
        with log.open("wb") as file:
            child = subprocess.Popen(
                [*self.pinned(number and number + 1, system.realtime), *command],
                cwd=ROOT,
                env={**kept, **env},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                _until_listening(place.port, child, log)
                yield child
            finally:
                _end(child)


class Probe:
    """What the kernel says about processes and their children at the marks of a run."""

    def __init__(self, pids: list[int], sidecar: int) -> None:
        self._roots = pids
        self._sidecar = sidecar
        self._pss = self._pss_kib()
        self._cpu: dict[str, tuple[float, float]] = {}
        self._lag: dict[str, Counter[float]] = {}
        self._end_pss = 0

    def mark(self, name: str) -> None:
        self._cpu[name] = (time.monotonic(), self._cpu_seconds())
        if name == "end":
            self._end_pss = self._pss_kib()
        if name in ("open", "blackout", "end") and self._sidecar:  # a second before the window, not in it
            self._lag[name] = _loop_lag(self._sidecar)

    def figures(self, calls: int, unfinal_bytes: int) -> Run:
        (began, before), (ended, after) = self._cpu["window"], self._cpu["end"]
        kib = (self._end_pss - self._pss) / calls
        found = {
            "cpu": 1000 * (after - before) / (ended - began) / calls,
            "core": (after - before) / (ended - began),
            "setup_ms": 1000 * (self._cpu["open"][1] - self._cpu["dial"][1]) / calls,
            "kib": kib,
            "kib_beside_unfinal": kib - unfinal_bytes / 1024,
        }
        if self._lag:
            earlier = self._lag.get("blackout", self._lag["open"])
            found["loop_lag_p99_ms"] = _quantile_ms(self._lag["end"] - earlier, 0.99)
        return found

    def _pids(self) -> list[int]:
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found = [*self._roots]
        for pid in found:  # it grows while it is read
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def _cpu_seconds(self) -> float:
        spent = 0
        for pid in self._pids():
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    spent += int(path.read_text().split()[0])
        return spent / 1e9

    def _pss_kib(self) -> int:
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self._pids()]
        lines = (line.split() for text in rollups for line in text.splitlines())
        return sum(int(words[1]) for words in lines if words[0] == "Pss:")


def _load(command: list[str], probe: Probe | None = None) -> Run:
    """Runs the load; its last line."""
    found: Run = {"error": "the load said nothing"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("MARK ") and probe:
                probe.mark(line.split()[1])
            elif line.startswith("{"):
                found = json.loads(line)
    return found


def _loop_lag(port: int) -> Counter[float]:
    """How often the gateway's loop was late by at most so many seconds, more than the bound below."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[float] = Counter()
    below = 0
    for line in lines:
        if line.startswith("gw_loop_lag_seconds_bucket"):
            bound, count = line.partition('le="')[2].partition('"')[0], round(float(line.split()[-1]))
            found[float(bound)] = count - below
            below = count
    return found


def _quantile_ms(counts: Counter[float], q: float) -> float:
    """The upper bound of the bucket that holds it."""
    seen = 0
    for bound in sorted(counts):
        seen += counts[bound]
        if seen >= q * counts.total():
            return 1000 * bound
    return 0.0


def _may_chrt() -> bool:
    return (
        bool(shutil.which("chrt"))
        and not subprocess.run(
            ["chrt", "-f", PRIORITY, "true"],  # noqa: S607 - whichever chrt the PATH has
            capture_output=True,
            check=False,
        ).returncode
    )


def _certificate(folder: Path) -> list[str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    leaf = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(str(folder / "cert.pem"), append=True)
    return ["--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem")]


def _places(place: Place, count: int) -> Iterator[Place]:
    """That of each process: one port for all, the rest its own."""
    yield place
    for number in range(1, count):
        folder = place.folder / str(number)
        folder.mkdir()
        (sidecar,) = _free_ports(1)
        yield place._replace(sidecar=sidecar, folder=folder)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _until_listening(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise SystemExit(f"bench: {child.args!r} does not listen:\n{log.read_text()[-2000:]}")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def rounds(bench: Bench, names: list[str], calls: int, options: argparse.Namespace) -> list[Row]:
    """Every system `--runs` times, forth and back in turns; nginx right before each, but for blackouts."""
    found: dict[str, list[Run]] = {}  # in the order of `names`, nginx where it is first needed
    nginx = not SYSTEMS["nginx"].missing()
    for number in range(options.runs):
        for name in names if number % 2 == 0 else names[::-1]:
            beside = "nginx+tls" if name.endswith("+tls") else "nginx"
            first = {}
            if nginx and name != beside and not options.blackout:
                first = _one(bench, beside, calls, options)
                found.setdefault(beside, []).append(first)
            if name == beside and len(names) > 1:
                continue  # it is measured beside the others
            run = _one(bench, name, calls, options)
            if "cpu" in run and "cpu" in first:
                run["x_nginx"] = run["cpu"] / first["cpu"]
            found.setdefault(name, []).append(run)
    bare = [run["cpu"] for run in found.get("bare", []) if "cpu" in run]
    return [make_row(name, calls, runs, median(bare) if bare else None) for name, runs in found.items()]


def _one(bench: Bench, name: str, calls: int, options: argparse.Namespace) -> Run:
    run = bench.measure(name, calls, options.seconds, options.blackout)
    line = run.get("error") or f"{run['cpu']:.3f} CPU-s per 1000 call-s, p99 {run['up']['p99']:.2f} ms"
    print(f"{calls:5} calls  {name:18} {line}", file=sys.stderr, flush=True)
    return run


def chosen(text: str, blackout: int) -> tuple[list[str], dict[str, str]]:
    """Systems that run here, and why others do not. Unknown names end the program."""
    everything = [*SYSTEMS, *(f"{name}+tls" for name, system in SYSTEMS.items() if system.tls)]
    wanted = everything if text == "all" else [name for name in text.split(",") if name]
    reasons = {}
    for name in wanted + ["nginx"] * (not blackout):
        try:
            system, tls, processes = named(name)
        except (KeyError, ValueError):
            raise SystemExit(
                f"bench: no system {name}; there are {', '.join(everything)}, gateways with *2, or all"
            ) from None
        cores = len(os.sched_getaffinity(0))
        reasons[name] = system.missing()
        if tls and not system.tls:
            reasons[name] = "has no TLS"
        if processes > max(1, cores - 1):
            reasons[name] = f"wants {processes + 1} cores, and there are {cores}"
    if blackout:
        reasons |= {name: "not told to come back" for name in wanted if not name.startswith("gateway")}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in skipped.items():
        print(f"bench: leaves out {name}: {reason}", file=sys.stderr)
    return [name for name in wanted if name not in skipped], skipped


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--systems", default=QUICK, help="separated by commas; all (default: %(default)s)")
    parser.add_argument("--calls", default="200", help="separated by commas (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="of each window (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each system (default: %(default)s)")
    parser.add_argument(
        "--blackout", type=int, default=0, metavar="SECOND", help="when in the window all are cut"
    )
    parser.add_argument(
        "--no-realtime", action="store_true", help="without SCHED_FIFO, even where it is permitted"
    )
    parser.add_argument(
        "--report", type=Path, help="where to write: FILE.md, with FILE.json and plots beside it"
    )
    return parser.parse_args()


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    calls = [int(number) for number in options.calls.split(",")]
    names, skipped = chosen(options.systems, options.blackout)
    needed = 4 * max(calls) + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))  # children inherit it
    bench, load = Bench(not options.no_realtime), others_load()
    rows = [row for number in calls for row in rounds(bench, names, number, options)]
    report = {
        "how": f"Measured by `python -m bench.run {' '.join(sys.argv[1:])}` on {machine()}, "
        f"{commit(compiled=is_native())}, load {load:.1f} when it began; {bench.conditions()}.\n"
        f"{versions()}.",
        "rows": rows,
        "knees": knees(rows) if len(calls) > 1 else {},
        "skipped": skipped,
    }
    print(markdown(report))
    if options.report:
        _write(options.report, report)
    return int(any(row["errors"] for row in rows))


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(f"# Cost of a call\n\n{markdown(report)}")
    path.with_suffix(".json").write_text(json.dumps(report) + "\n")
    plots = MADE / "plots" / "bin" / "python"
    if not plots.exists():
        print("bench: no plots: make .bench/plots/.installed", file=sys.stderr)
        return
    subprocess.run([plots, ROOT / "bench" / "plots.py", path.with_suffix(".json")], check=True)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
