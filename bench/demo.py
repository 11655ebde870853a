"""`make demo`: a recording, in real time, through the official SDK, Gateway and an emulated Deepgram.

    deepgram-sdk  ──►  gateway serve  ──►  gateway emulate --engine asr

Three processes on this machine, no account. The only change to the SDK is its base URL. In the middle of the
recording the connection to Deepgram is reset. What became of the words is judged from what the SDK was
given and what the emulator was sent and said; Gateway's own figures are not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from deepgram import AsyncDeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from moonshine_voice import get_assets_path
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.stage import Emulated, Served, emulator, gateway, recording, run
from bench.words import compare, normal

FRAME_MS: Final = 20
RATE: Final = 16_000
BREAK_AT: Final = 0.5
"""Where in the recording the connection is cut: in mid-sentence."""
PATIENCE: Final = 15.0
DOUBT: Final = 0.12
"""Seconds around a seam within which a word's place does not say on which side of it the word is."""
TOUCH: Final = 0.001
TEXT: Final = Path(__file__).parent / "texts" / "two_cities.txt"
WITHOUT_CUT: Final = "7 misheard, 1 missing, 1 extra"
"""The same recogniser on this recording, without a break."""


class Span(NamedTuple):
    """A final: seconds on the clock of whoever got it; words as (text, middle)."""

    start: float
    end: float
    words: list[tuple[str, float]]


class Listener:
    """What the SDK was given: shows it, and keeps what the closing figures need."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self.finals: list[Span] = []
        self.interims = 0
        self.latencies: list[float] = []
        self.arrivals: list[tuple[float, float, bool]] = []
        """When, the end that the result reaches, and whether it is final."""
        self.metadata: list[Any] = []
        self.ids: set[str] = set()
        self.began: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._console = console
        self._live = live

    def heard(self, message: Any) -> None:
        if message.type == "Metadata":
            self.metadata.append(message)
            return
        if message.type != "Results":
            return
        self.ids.add(message.metadata.request_id)
        best = message.channel.alternatives[0]
        end = message.start + message.duration
        self.arrivals.append((time.time(), end, bool(message.is_final)))
        if message.is_final:
            words = [(word.word, (word.start + word.end) / 2) for word in best.words]
            self.finals.append(Span(message.start, end, words))
        else:
            self.interims += 1
            self.latencies.append(time.monotonic() - self.began.result() - end)
        if self._live is None:
            if best.transcript:
                kind = "final  " if message.is_final else "interim"
                print(f"{kind} [{message.start:6.2f}] {best.transcript}", flush=True)
            return
        if message.is_final and best.transcript:
            self._console.print(Text.assemble((f"{message.start:6.2f}  ", "dim"), (best.transcript, "green")))
        caption = (
            "" if message.is_final or not best.transcript else f"{message.start:6.2f}  {best.transcript}"
        )
        self._live.update(Text(caption, style="dim italic"))

    def note(self, text: str, style: str) -> None:
        """One line about the connection to Deepgram, at the second of the call that it is now."""
        at = time.monotonic() - self.began.result()
        if self._live is None:
            print(f"-----   [{at:6.2f}] {text}", flush=True)
        else:
            self._console.print(Text(f"{at:6.2f}  {text}", style=style))


async def call(url: str, audio: bytes, listener: Listener) -> None:
    """The SDK exactly as its documentation shows it, with another base URL."""
    ws = url.replace("http", "ws", 1)
    environment = DeepgramClientEnvironment(base=url, production=ws, agent=ws, agent_rest=url)
    client = AsyncDeepgramClient(api_key="demo", environment=environment)
    async with client.listen.v1.connect(
        model="nova-3", encoding="linear16", sample_rate=str(RATE), interim_results="true"
    ) as socket:
        socket.on(EventType.MESSAGE, listener.heard)
        listening = asyncio.create_task(socket.start_listening())
        began = time.monotonic()
        listener.began.set_result(began)
        step = RATE * 2 * FRAME_MS // 1000
        for number, start in enumerate(range(0, len(audio), step), 1):
            await asyncio.sleep(began + number * FRAME_MS / 1000 - time.monotonic())
            await socket.send_media(audio[start : start + step])
        await socket.send_close_stream()
        await listening


async def cut_the_line(upstream: Emulated, seconds: float, audio: bytes, listener: Listener) -> None:
    """Resets the connection to Deepgram at that second of the call, and sees the next one come."""
    await asyncio.sleep(await listener.began + seconds - time.monotonic())
    (first,) = await asyncio.to_thread(upstream.connections)
    await asyncio.to_thread(upstream.act, first["id"], "reset")
    listener.note("✂ the connection to Deepgram is cut: TCP reset, in mid-sentence", "bold red")
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.sleep(0.05)
            records = await asyncio.to_thread(upstream.connections)
            if len(records) > 1 and records[1]["audio_bytes"] >= RATE // 5:
                break
    again = audio.find(await asyncio.to_thread(upstream.audio, records[1]["id"]))
    took = records[1]["first_audio_at"] - records[0]["closed_at"]
    start = f"from {again / (2 * RATE):.2f} s on" if again >= 0 else "from the wrong place"
    listener.note(
        f"↻ Gateway has another one, {1000 * took:.0f} ms later: the audio goes up again {start}",
        "bold yellow",
    )


class Heard(NamedTuple):
    """One connection by the emulator's record: what it was sent, and where in the recording that lies."""

    record: dict[str, Any]
    start: float
    end: float

    def finals(self) -> list[Span]:
        """What it said, on the recording's clock."""
        found = []
        for message in (json.loads(sent["text"]) for sent in self.record["sent"]):
            if message["type"] == "Results" and message["is_final"]:
                words = message["channel"]["alternatives"][0]["words"]
                start, end = message["start"], message["start"] + message["duration"]
                middles = [(w["word"], self.start + (w["start"] + w["end"]) / 2) for w in words]
                found.append(Span(self.start + start, self.start + end, middles))
        return found


def on_record(upstream: Emulated, audio: bytes) -> list[Heard]:
    """Every connection; one whose audio is no piece of the recording ends the demo."""
    found = []
    for record in upstream.connections():
        sent = upstream.audio(record["id"])
        at = audio.find(sent)
        if at < 0 or at % 2:
            raise SystemExit("demo: Deepgram's stand-in was sent what is no piece of the recording")
        found.append(Heard(upstream.record(record["id"]), at / (2 * RATE), (at + len(sent)) / (2 * RATE)))
    return found


def uncovered(spans: Sequence[tuple[float, float]], total: float) -> tuple[float, float]:
    """Seconds that no span covers, and seconds that two cover; spans in the order of their starts."""
    missing = doubled = reached = 0.0
    for start, end in spans:
        missing += max(0.0, start - reached)
        doubled += max(0.0, min(reached, end) - start)
        reached = max(reached, end)
    return missing + max(0.0, total - reached), doubled


def repeated(got: list[Span], connections: list[Heard]) -> list[str] | None:
    """Words that Deepgram heard on two connections and the client got once; None if it got any others.

    The client must have the words of the first connection's finals, then those of the next from the seam on.
    """
    rest = [word for final in got for word, _ in final.words]
    reached, twice = 0.0, []
    for connection in connections:
        told = [said for said in connection.finals() if any(abs(said.end - f.end) < TOUCH for f in got)]
        words = [word for said in told for word in said.words]
        for cut in range(len(words) + 1):
            before, after = words[:cut], words[cut:]
            fits = all(m < reached + DOUBT for _, m in before) and all(m > reached - DOUBT for _, m in after)
            if fits and rest[: len(after)] == [word for word, _ in after]:
                break
        else:
            return None
        rest = rest[len(after) :]
        twice += [word for word, _ in before]
        reached = max([reached, *(said.end for said in told)])
    return None if rest else twice


def way_down(connections: list[Heard], arrivals: list[tuple[float, float, bool]]) -> list[float]:
    """Seconds from the emulator's send to the SDK's callback, both by this machine's clock."""
    sent: list[tuple[float, float, bool]] = []
    for connection in connections:
        for said in connection.record["sent"]:
            message = json.loads(said["text"])
            if message["type"] == "Results":
                end = connection.start + message["start"] + message["duration"]
                sent.append((said["at"], end, message["is_final"]))
    found = []
    for at, end, final in arrivals:
        same = [when for when, e, f in sent if f == final and abs(e - end) < TOUCH and when <= at]
        found += [at - max(same)] if same else []
    return found


def report(listener: Listener, audio: bytes, connections: list[Heard], console: Console) -> None:
    total = len(audio) / (2 * RATE)
    finals = listener.finals
    transcript = " ".join(word for final in finals for word, _ in final.words)
    unsent, resent = uncovered([(c.start, c.end) for c in connections], total)
    missing, doubled = uncovered([(final.start, final.end) for final in finals], total)
    twice = repeated(finals, connections)
    latency, down = sorted(listener.latencies), way_down(connections, listener.arrivals)
    pieces = ", then ".join(f"{c.start:.2f}-{c.end:.2f} s" for c in connections)
    got = f"{listener.interims} interims, {len(finals)} finals, {len(listener.metadata)} Metadata"
    cover = f"{finals[0].start:.2f}-{finals[-1].end:.2f} s"
    rows = {
        "audio": f"{total:.2f} s in {FRAME_MS} ms frames at real time",
        "Deepgram got": f"{pieces}: {resent:.2f} s of it twice, {unsent:.2f} s never",
        "the SDK got": f"{got}, {len(listener.ids)} request id",
        "finals cover": f"{cover}: {missing:.2f} s left out, {doubled:.2f} s twice",
    }
    if twice is None:
        rows["words"] = "not those that Deepgram said, or not in its order"
    else:
        again = f", less what it heard on both sides of the cut: {' '.join(twice)}" if twice else ""
        rows["words"] = f"{len(transcript.split())}: Deepgram's, in its order{again}"
    rows["against the text"] = f"{compare(normal(TEXT.read_text()), normal(transcript))}"
    rows["without a cut"] = f"{WITHOUT_CUT}: so well does this recogniser hear"
    if latency and down:
        p95 = latency[int(len(latency) * 0.95)]
        rows["latency"] = (
            f"{statistics.median(latency):.2f} s median, {p95:.2f} s p95 from word to interim; "
            f"{1000 * statistics.median(down):.1f} ms of it in Gateway and the SDK"
        )
    console.print(Text("\nTranscript", style="bold"))
    console.print(Text(transcript))
    console.print(Text("\nBy the SDK's and the emulator's own records", style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), Text(value))
    console.print(table)
    told = len(listener.ids) == 1 and len(listener.metadata) == 1
    whole = max(unsent, missing, doubled) < TOUCH and twice is not None
    if not whole or not told or len(connections) < 2:
        raise SystemExit("\ndemo: something was lost or doubled; please report this output")
    console.print(Text("\nlost nothing, doubled nothing", style="bold green"))


async def main() -> None:
    audio = recording(Path(get_assets_path()) / "two_cities.wav", RATE)
    print("Starting an emulated Deepgram (real speech recognition on this machine) and Gateway …", flush=True)
    asr = ("-m", "gateway", "emulate", "--engine", "asr")
    # No misheard interims on purpose: the recogniser revises its own.
    async with emulator(*asr, revise=0.0) as upstream, gateway(upstream) as served:
        print(f"deepgram-sdk → {served.url} (Gateway) → {upstream.url} (Deepgram)\n", flush=True)
        try:
            await perform(served, audio, upstream)
        except Exception as exc:
            raise SystemExit(f"demo: {exc}\nThe gateway's log:\n{''.join(served.log)}") from exc


async def perform(served: Served, audio: bytes, upstream: Emulated) -> None:
    console = Console(highlight=False)
    live = Live(console=console, transient=True, refresh_per_second=10) if console.is_terminal else None
    listener = Listener(console, live)
    seconds = BREAK_AT * len(audio) / (2 * RATE)
    with live or contextlib.nullcontext():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call(served.url, audio, listener))
            tasks.create_task(cut_the_line(upstream, seconds, audio, listener))
    report(listener, audio, await asyncio.to_thread(on_record, upstream, audio), console)


if __name__ == "__main__":
    run(main())
