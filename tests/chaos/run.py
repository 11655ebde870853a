"""`make chaos`: many calls for minutes, a fault every few seconds, and then: what became of each word?

    clients ──► (fault proxy) ──► gateway serve ──► fault proxy ──► gateway emulate --engine tokens

Gateway and emulator are processes of their own; clients, proxies and nemesis share this one. Clients that may
come back reach the gateway through a proxy, too. All on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

import uvloop

from tests.chaos.caller import Caller, PlainCaller, ResumingCaller
from tests.chaos.check import Connection, Verdict, judge
from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import CallPlan, call_plan, emulator_faults, shared_plan
from tests.chaos.report import markdown, passed, table
from tests.chaos.stage import EmulatorProcess, GatewayProcess
from tests.fakes.fault_proxy import FaultProxy

HERE: Final = Path(__file__).parent
SETTLE_SECONDS: Final = 12.0
"""What connections get to end after the last call: a close handshake that nobody answers takes ten."""


@dataclass
class Outcome:
    """What a run found."""

    seed: int
    calls: int
    seconds: float
    batch_ms: str = "auto"
    plans: list[CallPlan] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    took: float = 0.0
    gateway_exit: int = 0

    @property
    def failures(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not passed(verdict)]


async def chaos(
    calls: int,
    seconds: float,
    seed: int,
    *,
    batch_ms: str = "auto",
    faults: bool = True,
    keep: Path | None = None,
) -> Outcome:
    """One run; `batch_ms` is the gateway's setting. Failing calls leave their histories in `keep`."""
    outcome = Outcome(seed, calls, seconds, batch_ms)
    spread = min(10.0, seconds / 6)
    outcome.plans = [call_plan(n, seed, seconds, spread=spread, faults=faults) for n in range(calls)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        emulator = EmulatorProcess(directory / "emulator.log")
        gateway = GatewayProcess(directory / "gateway.log")
        try:
            await emulator.begin(_knobs(seed, calls, seconds, faults), directory)
            await _with_proxies(outcome, emulator, gateway, directory, faults, keep)
        finally:
            outcome.gateway_exit = await gateway.stop()
            await emulator.end()
    outcome.took = time.monotonic() - began
    return outcome


def _knobs(seed: int, calls: int, seconds: float, faults: bool) -> dict[str, object]:
    return {
        "seed": seed,
        "keep_closed": 1_000_000,
        "close_timeout": 5.0,
        "faults": emulator_faults(seed, calls, seconds) if faults else [],
    }


async def _with_proxies(
    outcome: Outcome,
    emulator: EmulatorProcess,
    gateway: GatewayProcess,
    directory: Path,
    faults: bool,
    keep: Path | None,
) -> None:
    proxy = FaultProxy(emulator.address)
    await proxy.start()
    await gateway.begin(proxy.address, outcome.batch_ms, directory)
    front = FaultProxy(gateway.address)
    await front.start()
    try:
        zero = asyncio.get_running_loop().time()
        nemesis = Nemesis({"deepgram": proxy, "client": front}, emulator, gateway, zero)
        callers: list[Caller] = [
            ResumingCaller(plan, front.address, zero, outcome.seed)
            if plan.way == "resuming"
            else PlainCaller(plan, gateway.address, zero, outcome.seed)
            for plan in outcome.plans
        ]
        haunting = [asyncio.create_task(nemesis.haunt(c.plan, c.began, c.ends)) for c in callers]
        if faults:
            haunting.append(
                asyncio.create_task(nemesis.haunt_all(shared_plan(outcome.seed, outcome.seconds)))
            )
        await asyncio.gather(*(caller.run() for caller in callers))
        for task in haunting:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*haunting, return_exceptions=True)
        proxy.refusing = proxy.hanging = False
        outcome.faults, outcome.missed = nemesis.done, nemesis.missed
        await _judge_all(outcome, callers, proxy, emulator, nemesis, gateway, keep)
    finally:
        await front.stop()
        await proxy.stop()


async def _judge_all(
    outcome: Outcome,
    callers: list[Caller],
    proxy: FaultProxy,
    emulator: EmulatorProcess,
    nemesis: Nemesis,
    gateway: GatewayProcess,
    keep: Path | None,
) -> None:
    held = await _settled(proxy, gateway)
    records = await emulator.records()
    outcome.refused = sum(record["status"] not in (None, 101) for record in records)
    for caller in callers:
        own = [r for r in records if r["status"] == 101 and _tag(r["query"]) == caller.plan.tag]
        connections = [await emulator.connection(record) for record in own]
        verdict = judge(
            caller.plan, caller.history, connections, [h for h in held if h.split()[0] == caller.plan.tag]
        )
        outcome.verdicts.append(verdict)
        if keep is not None and not passed(verdict):
            strikes = [*nemesis.log.get("all", []), *nemesis.log.get(caller.plan.tag, [])]
            _keep(keep, outcome, caller, verdict, connections, strikes)
            keep.joinpath(f"{outcome.seed}-gateway.log").write_text("\n".join(gateway.lines()))


async def _settled(proxy: FaultProxy, gateway: GatewayProcess) -> list[str]:
    """The upstream connections that the gateway holds although all calls are over and it had time to end."""
    held: list[str] = []
    for _ in range(round(SETTLE_SECONDS / 0.5)):
        held = [proxy.ports[port] for port in gateway.ports() if port in proxy.ports]
        if not held:
            break
        await asyncio.sleep(0.5)
    return held


def _tag(query: object) -> str:
    return parse_qs(str(query)).get("tag", [""])[0]


def _keep(
    keep: Path,
    outcome: Outcome,
    caller: Caller,
    verdict: Verdict,
    connections: list[Connection],
    strikes: list[str],
) -> None:
    """Everything one needs to understand a failure, in one file."""
    keep.mkdir(parents=True, exist_ok=True)
    plan = caller.plan
    story = {
        "seed": outcome.seed,
        "calls": outcome.calls,
        "seconds": outcome.seconds,
        "verdict": asdict(verdict),
        "path": plan.path,
        "schedule": [asdict(strike) for strike in plan.strikes],
        "struck": strikes,
        "client": asdict(caller.history),
        "tokens": plan.said,
        "emulator": [{**asdict(c), "audio": _place(plan, c)} for c in connections],
    }
    (keep / f"{outcome.seed}-{plan.tag}.json").write_text(json.dumps(story, indent=1))


def _place(plan: CallPlan, connection: Connection) -> list[float]:
    """Where a connection's audio lies in the client's, in seconds: [begin, end)."""
    base, rate = plan.audio.find(connection.audio), plan.bytes_per_second
    return [base / rate, (base + len(connection.audio)) / rate]


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-ms", default="auto", help="[server] batch_ms of the gateway")
    parser.add_argument("--no-faults", action="store_true", help="the baseline: nothing goes wrong")
    parser.add_argument("--report", type=Path, help="where to write the report, in Markdown")
    options = parser.parse_args()
    keep = HERE / "failures"
    run = chaos(
        options.calls,
        options.seconds,
        options.seed,
        batch_ms=options.batch_ms,
        faults=not options.no_faults,
        keep=keep,
    )
    outcome: Outcome = uvloop.run(run)
    print(table(outcome))
    for verdict in outcome.failures:
        print(f"call {verdict.number}, see {keep / f'{outcome.seed}-call{verdict.number}.json'}")
        print("".join(f"    {problem}\n" for problem in verdict.problems[:8]), end="")
    if options.report:
        options.report.write_text(markdown(outcome))
    return 1 if outcome.failures or outcome.gateway_exit else 0


if __name__ == "__main__":
    raise SystemExit(main())
