"""`make bench-seams`: what breaks of the connection to Deepgram cost in words of real speech.

    python -m bench.seams [--engines asr,whisper] [--strategies hybrid] [--report bench/seams.md]

The same calls, in real time through Gateway, once whole and once with the upstream connection reset every ten
seconds of the call, against the texts that were read. The word error rate may rise by one point. Breaks go by
what results have reached and not by the wall clock: a recogniser that trails by eight seconds and may catch
up at 1.25 times real time would get nowhere otherwise, and a slow machine would measure something else.

Recordings: one in the wheel of the `asr` engine, and with `--prompts` the telephone prompts of Debian's
asterisk-core-sounds-en packages: a person, 8 kHz, with their texts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import math
import time
import wave
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import stdev
from typing import Any, Final, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.machine import ROOT, commit, machine, others_load
from bench.stage import Emulated, emulator, gateway, recording, run
from bench.words import align, compare, normal

EVERY: Final = 10.0
FIRST: Final = 4.0
"""Seconds of a call before its first break; each call has it a little later than the one before."""
LAST: Final = 2.0
"""Seconds at the end of a call without a break."""
NEAR: Final = 1.0
"""Seconds on either side of a seam in which a mistake counts as the seam's."""
ALLOWED: Final = 1.0
"""Points of word error rate."""
PATIENT: Final = {"SESSION__STALL": "60", "SESSION__MAX_LAG": "110", "SESSION__FINISH": "60"}
"""A recogniser that is short of processor is not to be taken for one that hangs: breaks are ours alone."""
FRAME: Final = 0.02
CALL: Final = 80.0
PAUSE: Final = 0.6
"""Seconds of silence after each prompt."""
WHOLE: Final = "no breaks"
ENGINES: Final = {
    "asr": ("-m", "gateway", "emulate", "--engine", "asr"),
    "whisper": (str(ROOT / ".bench/whisper/bin/python"), "-m", "bench.whisper"),
}
TITLES: Final = {
    "asr": "moonshine tiny-en, word times spread over each line by the letters",
    "whisper": "Whisper tiny.en, word times from the model's attention",
}


class Call(NamedTuple):
    name: str
    rate_hz: int
    audio: bytes
    """16-bit samples."""
    text: str

    @property
    def seconds(self) -> float:
        return len(self.audio) / (2 * self.rate_hz)


class Timed(NamedTuple):
    text: str
    at: float
    """The word's middle, seconds of the call."""


class Outcome(NamedTuple):
    """What a client got."""

    words: list[Timed]
    seams: list[float]
    """Where a new connection's results took over, seconds of the call."""
    breaks: int
    connections: int
    uncovered: float
    late: float
    """Seconds from the last audio to the last result: a recogniser that is short of processor trails."""


# The calls


def from_the_wheel() -> list[Call]:
    from moonshine_voice import get_assets_path

    audio = recording(Path(get_assets_path()) / "two_cities.wav", 16_000)
    text = (ROOT / "bench/texts/two_cities.txt").read_text()
    return [Call("A Tale of Two Cities", 16_000, audio, text)]


def from_prompts(folder: Path) -> Iterator[Call]:
    """The prompts of six words and more one after another, as calls of about `CALL` seconds."""
    (texts,) = folder.rglob("core-sounds-en.txt.gz")
    sounds = {path.stem: path for path in folder.rglob("en_US_f_Allison/*.wav")}
    audio, said, number = b"", "", 0
    for line in gzip.decompress(texts.read_bytes()).decode().splitlines():
        name, _, text = line.partition(": ")
        if len(text.split()) < 6 or name not in sounds or not _is_plain(text):
            continue
        with wave.open(str(sounds[name])) as wav:
            assert (wav.getframerate(), wav.getsampwidth(), wav.getnchannels()) == (8000, 2, 1), name
            audio += wav.readframes(wav.getnframes()) + bytes(round(PAUSE * 8000) * 2)
        said += f"{text} "
        if len(audio) >= CALL * 16_000:
            number += 1
            yield Call(f"prompts {number}", 8000, audio, said)
            audio, said = b"", ""
    if audio:
        yield Call(f"prompts {number + 1}", 8000, audio, said)


def _is_plain(text: str) -> bool:
    """Whether all of it is spoken, as it is written."""
    return (
        not any(mark in text for mark in "[]*#/=<>") and "..." not in text and not any(map(str.isdigit, text))
    )


# One call


async def perform(call: Call, port: int, upstream: Emulated, tag: str, first: float | None) -> Outcome:
    """The call in real time; its upstream connection is reset at `first` and every ten seconds after it, by
    the clock of the results."""
    query = f"model=nova-3&encoding=linear16&sample_rate={call.rate_hz}&interim_results=true&tag={tag}"
    headers = {"Authorization": "Token bench"}
    async with connect(f"ws://127.0.0.1:{port}/v1/listen?{query}", additional_headers=headers) as ws:
        listening = asyncio.create_task(_listen(ws, upstream, tag, first, call.seconds - LAST))
        began, step = time.monotonic(), round(call.rate_hz * FRAME) * 2
        for number, at in enumerate(range(0, len(call.audio), step), 1):
            await asyncio.sleep(began + number * FRAME - time.monotonic())
            await ws.send(call.audio[at : at + step])
        await ws.send('{"type":"CloseStream"}')
        said = time.monotonic()
        async with asyncio.timeout(180):
            messages, breaks = await listening
        late = time.monotonic() - said
    records = await asyncio.to_thread(upstream.connections)
    return _outcome(call, messages, breaks, sum(f"tag={tag}" in record["query"] for record in records), late)


async def _listen(
    ws: ClientConnection, upstream: Emulated, tag: str, first: float | None, last: float
) -> tuple[list[dict[str, Any]], int]:
    """All messages; whenever a result reaches the next second of the call that is due, a break."""
    messages, breaks, due = [], 0, first
    with contextlib.suppress(ConnectionClosed):
        async for raw in ws:
            message = json.loads(raw)
            messages.append(message)
            end = message.get("start", 0.0) + message.get("duration", 0.0)
            if due is not None and message["type"] == "Results" and due <= end < last:
                breaks += await _reset(upstream, tag)
                due += EVERY
    return messages, breaks


async def _reset(upstream: Emulated, tag: str) -> int:
    records = await asyncio.to_thread(upstream.connections)
    live = [r["id"] for r in records if f"tag={tag}" in r["query"] and r["closed_at"] is None]
    for connection in live:
        await asyncio.to_thread(upstream.act, connection, "reset")
    return len(live)


def _outcome(
    call: Call, messages: list[dict[str, Any]], breaks: int, connections: int, late: float
) -> Outcome:
    words, seams, reached, uncovered = [], [], 0.0, 0.0
    for message in messages:
        if message["type"] != "Results":
            continue
        if "epoch" in message.get("gateway", {}):
            seams.append(message["start"])
        if message["is_final"]:
            for word in message["channel"]["alternatives"][0]["words"]:
                middle = (word["start"] + word["end"]) / 2
                words += [Timed(text, middle) for text in normal(word["word"])]
            uncovered += abs(message["start"] - reached)
            reached = message["start"] + message["duration"]
    return Outcome(words, seams, breaks, connections, uncovered + abs(call.seconds - reached), late)


# The figures


class Mistakes(NamedTuple):
    """Of each kind."""

    misheard: int
    missing: int
    extra: int

    def __str__(self) -> str:
        return f"{self.misheard} / {self.missing} / {self.extra}"


def mistakes(call: Call, outcome: Outcome) -> list[tuple[float, int]]:
    """When, and which field of `Mistakes`; a missing word is where the one heard before it was."""
    said, heard = normal(call.text), [word.text for word in outcome.words]
    found, at = [], 0.0
    for pair in align(said, heard):
        if pair.heard is None:
            found.append((at, 1))
            continue
        at = outcome.words[pair.heard].at
        if pair.said is None:
            found.append((at, 2))
        elif said[pair.said] != heard[pair.heard]:
            found.append((at, 0))
    return found


def near(call: Call, outcome: Outcome, seams: Sequence[float]) -> Mistakes:
    """Mistakes within `NEAR` of these seconds."""
    kinds = [kind for at, kind in mistakes(call, outcome) if any(abs(at - seam) <= NEAR for seam in seams)]
    return Mistakes(*map(kinds.count, range(3)))


def doubt(pairs: Sequence[tuple[Call, Outcome, Outcome]], said: int) -> float:
    """Standard error of the points between two outcomes of the same calls, by how ten seconds differ."""
    more: list[int] = []
    for call, outcome, whole in pairs:
        blocks = [0] * (int(call.seconds / EVERY) + 1)
        for sign, each in ((1, outcome), (-1, whole)):
            for at, _ in mistakes(call, each):
                blocks[min(int(at / EVERY), len(blocks) - 1)] += sign
        more += blocks
    return 100 * stdev(more) * math.sqrt(len(more)) / said


class Row(NamedTuple):
    """A strategy over all calls."""

    strategy: str
    breaks: int
    unplanned: int
    said: int
    misheard: int
    missing: int
    extra: int
    at_seams: Mistakes
    same_places_whole: Mistakes
    uncovered: float
    late: float
    doubt: float

    @property
    def error_rate(self) -> float:
        return 100 * (self.misheard + self.missing + self.extra) / self.said


def row(strategy: str, calls: list[Call], found: dict[tuple[str, str], Outcome]) -> Row:
    outcomes = [found[call.name, strategy] for call in calls]
    wholes = [found[call.name, WHOLE] for call in calls]
    heard = [
        compare(normal(call.text), [word.text for word in outcome.words])
        for call, outcome in zip(calls, outcomes, strict=True)
    ]
    seams = [near(call, o, o.seams) for call, o in zip(calls, outcomes, strict=True)]
    same = [near(call, w, o.seams) for call, o, w in zip(calls, outcomes, wholes, strict=True)]
    said = sum(h.said for h in heard)
    return Row(
        strategy,
        sum(outcome.breaks for outcome in outcomes),
        sum(outcome.connections - 1 - outcome.breaks for outcome in outcomes),
        said,
        sum(h.misheard for h in heard),
        sum(h.missing for h in heard),
        sum(h.extra for h in heard),
        Mistakes(*map(sum, zip(*seams, strict=True))),
        Mistakes(*map(sum, zip(*same, strict=True))),
        sum(outcome.uncovered for outcome in outcomes),
        max(outcome.late for outcome in outcomes),
        doubt(list(zip(calls, outcomes, wholes, strict=True)), said),
    )


async def measure(engine: str, calls: list[Call], strategies: list[str], parallel: int) -> list[Row]:
    """Every call in every way; those of a call follow each other, so that the machine treats them alike."""
    found: dict[tuple[str, str], Outcome] = {}
    room = asyncio.Semaphore(parallel)
    knobs: dict[str, Any] = {"revise": 0.0, "capture_audio": False, "capture_texts": False}
    knobs |= {"keep_closed": 2000, "asr_max_streams": 4 * parallel}
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(emulator(*ENGINES[engine], ca="", **knobs))
        ports = {}
        for way in strategies:
            strategy, _, preroll = way.partition(":")
            chosen = PATIENT if way == WHOLE else {**PATIENT, "SESSION__SEAM_STRATEGY": strategy}
            chosen |= {"SESSION__PREROLL": preroll} if preroll else {}
            ports[way] = (await stack.enter_async_context(gateway(upstream, **chosen))).port

        async def one(number: int, call: Call, way: str) -> None:
            async with room:
                first = None if way == WHOLE else FIRST + number * 1.7 % EVERY
                tag = f"{number}-{strategies.index(way)}"
                outcome = await perform(call, ports[way], upstream, tag, first)
            found[call.name, way] = outcome
            heard = compare(normal(call.text), [word.text for word in outcome.words])
            said = f"{call.name}, {way}: {heard.error_rate:.1f} % of {heard.said} words wrong ({heard})"
            print(f"{engine}: {said}, {outcome.breaks} breaks", flush=True)

        async with asyncio.TaskGroup() as tasks:
            for number, call in enumerate(calls):
                for way in strategies:
                    tasks.create_task(one(number, call, way))
    raw = {f"{name}, {way}": outcome._asdict() for (name, way), outcome in found.items()}
    (ROOT / ".bench" / f"seams-{engine}.json").write_text(json.dumps(raw))
    return [row(way, calls, found) for way in strategies]


# The report


def section(engine: str, rows: list[Row]) -> str:
    base = rows[0]
    lines = [
        f"## {TITLES[engine]}\n",
        "| | breaks | word error rate | points more | wrong | at seams | same places, no breaks |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        more = "" if r is base else f"{r.error_rate - base.error_rate:+.2f} ± {r.doubt:.2f}"
        everywhere = f"{r.misheard} / {r.missing} / {r.extra}"
        seams, same = ("", "") if r is base else (str(r.at_seams), str(r.same_places_whole))
        lines.append(
            f"| {r.strategy} | {r.breaks} | {r.error_rate:.2f} % | {more} | {everywhere} | {seams} | {same} |"
        )
    unplanned = sum(r.unplanned for r in rows)
    lines.append(
        f"\n{base.said} words in each row. Finals left {sum(r.uncovered for r in rows):.3f} s of all calls "
        f"uncovered or doubled; {unplanned} connections broke without being asked to. "
        f"The end came at most {max(r.late for r in rows):.1f} s after the last audio.\n"
    )
    return "\n".join(lines)


HEAD: Final = """# Words at the seams of real speech

Measured by `{command}`
on {machine}, {commit}, load {load:.1f} when it began.

{seconds:.0f} s of speech in {calls} calls, each in real time through Gateway in frames of 20 ms.
With breaks, the emulator resets the upstream connection every {every:.0f} s of the call, each time that
results have come so far. Words are compared with the texts that were read, in lower case, without
punctuation. *At seams*: within {near:.0f} s of where a new connection's results take over. The last column
counts the same places of the call without breaks: what the recogniser gets wrong there anyway. Three numbers
are words misheard / missing / extra. After ± stands one standard error, by how much single stretches of ten
seconds differ.

"""


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.seams", description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", default="asr", help="asr, whisper or both (default asr)")
    parser.add_argument(
        "--strategies",
        default="hybrid",
        help="of hybrid, preroll, exact, with :SECONDS for another pre-roll (default hybrid)",
    )
    parser.add_argument(
        "--prompts", type=Path, help="folder of the unpacked asterisk-core-sounds-en packages"
    )
    parser.add_argument("--calls", type=int, default=100, help="no more than so many calls")
    parser.add_argument("--parallel", type=int, default=2, help="calls at a time (default 2)")
    parser.add_argument("--report", type=Path, help="where to write the figures, as Markdown")
    options = parser.parse_args()
    load = others_load()
    prompts = list(from_prompts(options.prompts)) if options.prompts else []
    calls = (from_the_wheel() + prompts)[: options.calls]
    strategies = [WHOLE, *options.strategies.split(",")]
    command = f"python -m bench.seams --engines {options.engines} --strategies {options.strategies}"
    text = HEAD.format(
        command=command + (" --prompts …" if prompts else ""),
        machine=machine(),
        commit=commit(),
        load=load,
        seconds=sum(call.seconds for call in calls),
        calls=len(calls),
        every=EVERY,
        near=NEAR,
    )
    worst = 0.0
    for engine in options.engines.split(","):
        rows = await measure(engine, calls, strategies, options.parallel)
        worst = max(worst, *(r.error_rate - rows[0].error_rate for r in rows if r.strategy == "hybrid"), 0.0)
        text += section(engine, rows) + "\n"
    print("\n" + text)
    if options.report:
        options.report.write_text(text.rstrip() + "\n")
    if worst > ALLOWED:
        print(f"bench: breaks cost {worst:.2f} points of word error rate; {ALLOWED:.0f} is allowed")
    return int(worst > ALLOWED)


if __name__ == "__main__":
    run(main())
