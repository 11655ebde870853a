"""`make bench-micro`: what one 20 ms frame costs a session, in nanoseconds, on one core and without I/O.

    python -m bench.micro [--save] [--repeats 30]

Drives `SessionProtocol` as the shell does, with a clock of our own: a minute of G.711 in frames of 20 ms, an
interim each second and a final every four. Nothing is subtracted: the loop that drives it is in the figures,
and its own cost is the row `an empty loop`. The rows `in a crowd` are of whole calls, legs and all, that take
turns, and `woken` of calls that find nothing in the caches; see `bench.crowd`. The clock is the thread's
processor time: what others take of the core is not in it, but for what they leave in its caches. The figures
are compared with those in bench/micro.json, which `--save` replaces.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from time import thread_time_ns as clock
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench import crowd
from bench.machine import commit, machine, others_load
from gateway.config import SessionConfig
from gateway.deepgram.listen import ListenV1
from gateway.deepgram.query import ListenQuery
from gateway.session.events import Dial
from gateway.session.protocol import SessionProtocol
from gateway.session.replay import ReplayBuffer

KEPT: Final = Path(__file__).with_suffix(".json")
QUERY: Final = "model=nova-3&encoding=mulaw&sample_rate=8000&interim_results=true"
FRAME: Final = b"\xff" * 160
FRAMES: Final = 3000
PER_SECOND: Final = 50
FINAL_EVERY: Final = 4
TARGET_NS: Final = 1000.0
WORDS: Final = ["it", "was", "the", "best", "of", "times", "it", "was", "the", "worst", "of", "times"]


class NoDelay:
    def delay(self, now: float, *, in_budget: bool = True) -> float:
        return 0.0

    def pause(self, now: float) -> float:
        return 0.0

    def reset(self) -> None:
        pass


class Talk:
    """A session in the middle of a call, and the clock that it lives by."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.epoch = 0
        self.base = 0.0
        """Seconds of audio before the present upstream connection."""
        self.session = SessionProtocol(
            SessionConfig(),
            ListenQuery(QUERY),
            ListenV1(),
            own_credential=True,
            backoff=NoDelay(),
            mint_request_id=lambda: "00000000-0000-4000-8000-000000000000",
            now=self.now,
        )
        self.open()

    def open(self) -> None:
        """The connection that the session asked for is there."""
        dials = [event.epoch for event in self.session.events_received() if isinstance(event, Dial)]
        self.epoch = dials[-1]
        assert self.session.upstream_opened(self.epoch, f"{self.epoch:036d}", self.now)
        self.session.events_received()
        self.session.data_to_send(self.epoch, self.now)

    def hear(self, seconds: int) -> None:
        """So much audio, in real time, that nothing has been said about."""
        for _ in range(seconds * PER_SECOND):
            self.now += 0.02
            if not self.session.relay(FRAME, self.now):
                self.session.audio_received(FRAME, self.now)
                self.session.data_to_send(self.epoch, self.now)

    def say(self, start: float, stop: float, final: bool) -> None:
        """A result for this stretch of the connection's audio."""
        self.session.upstream_message(self.epoch, result(start, stop, final, self.epoch), self.now)


def result(start: float, stop: float, final: bool, epoch: int) -> bytes:
    """What Deepgram sends for nova-3, member by member."""
    step = (stop - start) / len(WORDS)
    words = [
        {
            "word": word,
            "start": round(start + step * i, 3),
            "end": round(start + step * (i + 1), 3),
            "confidence": 0.9921875,
            "punctuated_word": word,
        }
        for i, word in enumerate(WORDS)
    ]
    message = {
        "type": "Results",
        "channel_index": [0, 1],
        "duration": round(stop - start, 6),
        "start": start,
        "is_final": final,
        "speech_final": final,
        "channel": {
            "alternatives": [{"transcript": " ".join(WORDS), "confidence": 0.98876953, "words": words}]
        },
        "metadata": {
            "request_id": f"{epoch:036d}",
            "model_info": {"name": "general-nova-3", "version": "2024-12-20.0", "arch": "nova-3"},
            "model_uuid": "1ed36bac-f71c-4f3f-a31f-02fd6525c489",
        },
        "from_finalize": False,
    }
    return json.dumps(message, separators=(",", ":")).encode()


# Each case: nanoseconds per frame, or per message.


def empty_loop() -> float:
    now = 0.0
    began = clock()
    for _ in range(FRAMES):
        now += 0.02
    return (clock() - began) / FRAMES


def frame() -> float:
    """One frame in and out; no results."""
    talk = Talk()
    session, now = talk.session, talk.now
    began = clock()
    for _ in range(FRAMES):
        now += 0.02
        assert session.relay(FRAME, now)
    return (clock() - began) / FRAMES


def frame_of_a_call() -> float:
    """The same, with a minute's results, the trimming of the replay buffer, and events taken, shared out."""
    talk = Talk()
    session, now, epoch = talk.session, talk.now, talk.epoch
    results = _minute(epoch)
    began = clock()
    for raw in results:
        for _ in range(PER_SECOND):
            now += 0.02
            if not session.relay(FRAME, now):
                session.audio_received(FRAME, now)
                session.data_to_send(epoch, now)
        session.upstream_heard(epoch, now)
        session.upstream_message(epoch, raw, now)
        session.events_received()
    spent = clock() - began
    _is_final_up_to(talk, 60.0)
    return spent / FRAMES


def turn_of_a_call() -> float:
    """The same with all that the shell asks after each frame: events, audio to send, and the timer."""
    talk = Talk()
    session, now, epoch = talk.session, talk.now, talk.epoch
    results = _minute(epoch)
    began = clock()
    for raw in results:
        for _ in range(PER_SECOND):
            now += 0.02
            if not session.relay(FRAME, now):
                session.audio_received(FRAME, now)
                session.events_received()
                session.data_to_send(epoch, now)
            at = session.get_timer()
            if at is not None and at <= now:
                session.handle_timer(now)
                session.data_to_send(epoch, now)
        session.upstream_heard(epoch, now)
        session.upstream_message(epoch, raw, now)
        session.events_received()
        session.data_to_send(epoch, now)
    spent = clock() - began
    _is_final_up_to(talk, 60.0)
    return spent / FRAMES


def replay() -> float:
    """The replay buffer alone: a frame appended and read, four seconds cut off every four seconds."""
    buffer = ReplayBuffer()
    began = clock()
    for number in range(FRAMES):
        buffer.append(FRAME)
        buffer.read(buffer.end - 160, 160)
        if number % (FINAL_EVERY * PER_SECOND) == 0:
            buffer.discard_until(buffer.end)
    return (clock() - began) / FRAMES


def interim() -> float:
    """A message: read, watched, forwarded as it came."""
    return _messages(Talk(), final=False)


def final() -> float:
    """The same, and the replay buffer trimmed."""
    return _messages(Talk(), final=True)


def interim_rebased() -> float:
    """After a reconnect: times shifted and the request id replaced."""
    return _messages(_after_a_break(), final=False)


def final_rebased() -> float:
    return _messages(_after_a_break(), final=True)


def reconnect() -> float:
    """From the loss to audio ready for the new connection, two seconds of it to be sent again."""
    talk = Talk()
    talk.hear(10)
    talk.say(0.0, 8.0, True)
    session, now = talk.session, talk.now
    began = clock()
    session.upstream_lost(talk.epoch, 1006, "", now)
    dials = [event.epoch for event in session.events_received() if isinstance(event, Dial)]
    session.upstream_opened(dials[-1], "again", now)
    sent = session.data_to_send(dials[-1], now)
    spent = clock() - began
    assert sum(map(len, sent)) >= 7200  # the burst: nearly a second
    return spent


CASES: Final[dict[str, Callable[[], float]]] = {
    "an empty loop": empty_loop,
    "frame, no results": frame,
    "frame of a call, results shared out": frame_of_a_call,
    "frame of a call, all the shell asks": turn_of_a_call,
    "replay: append, read, trim": replay,
    "interim": interim,
    "final": final,
    "interim after a reconnect": interim_rebased,
    "final after a reconnect": final_rebased,
    "reconnect, the core's part": reconnect,
}
TARGETS: Final = dict.fromkeys(("frame, no results", "frame of a call, results shared out"), TARGET_NS)


def _minute(epoch: int) -> list[bytes]:
    """A result for each second of a minute."""
    found = []
    for second in range(1, 61):
        is_final = second % FINAL_EVERY == 0
        start = (second - 1) // FINAL_EVERY * FINAL_EVERY
        found.append(result(float(start), float(second), is_final, epoch))
    return found


def _is_final_up_to(talk: Talk, seconds: float) -> None:
    """What was timed did happen: the session read each result to its end."""
    assert talk.session.stream.malformed == talk.session.stream.stale == 0
    assert talk.session.stream.lag < 0.001, talk.session.stream.lag
    assert abs(talk.session.clock.seconds(talk.session.stream.uplink.received) - seconds) < 1e-6


def _after_a_break() -> Talk:
    """Past the seam: the first final of the new connection has been cut and delivered."""
    talk = Talk()
    talk.hear(10)
    talk.say(0.0, 8.0, True)
    talk.session.upstream_lost(talk.epoch, 1006, "", talk.now)
    talk.open()
    talk.hear(10)
    talk.base = 4.0
    talk.say(0.0, talk.base, True)
    talk.session.events_received()
    return talk


def _messages(talk: Talk, final: bool) -> float:
    """Results of four seconds each; only they are timed, and what they bring to the client."""
    session, at, spent, delivered = talk.session, talk.base, 0, 0
    for _ in range(15):
        talk.hear(FINAL_EVERY)
        raw = result(at, at + FINAL_EVERY, final, talk.epoch)
        began = clock()
        said = session.upstream_message(talk.epoch, raw, talk.now)
        events = session.events_received()
        spent += clock() - began
        delivered += len(events) + (said is not None)
        if not final:
            talk.say(at, at + FINAL_EVERY, True)
            session.events_received()
        at += FINAL_EVERY
    assert delivered == 15, delivered
    return spent / 15


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Minimum and median of each case; the cases take turns, so that a disturbance hits none alone."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for case in CASES.values():
        case()
    gc.collect()
    gc.disable()
    for _ in range(repeats):
        for name, case in CASES.items():
            times[name].append(case())
    gc.enable()
    for how, woken in (("in a crowd", False), ("woken", True)):
        found = crowd.measure(QUERY, lambda a, b, final: result(a, b, final, 0), repeats, woken=woken)
        times |= {f"{how}: {name}": ns for name, ns in found.items()}
    return {n: {"min": round(min(t), 1), "median": round(statistics.median(t), 1)} for n, t in times.items()}


def show(found: dict[str, Any], kept: dict[str, Any] | None) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("ns", no_wrap=True)
    for name in ("min", "median", "kept", "change", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, here in found["ns"].items():
        before = (kept or {}).get("ns", {}).get(name)
        change = f"{100 * (here['min'] / before['min'] - 1):+.0f} %" if before else ""
        target = f"{TARGETS[name]:.0f}" if name in TARGETS else ""
        numbers = [f"{here['min']:.0f}", f"{here['median']:.0f}", f"{before['min']:.0f}" if before else ""]
        table.add_row(name, *numbers, change, target)
    console.print(table)
    print(f"\nhere: {found['machine']}, {found['commit']}, load {found['load']}")
    if kept:
        print(f"kept: {kept['machine']}, {kept['commit']}, load {kept['load']}")
        if kept["machine"] != found["machine"]:
            print("Another machine or Python: the change says nothing about the code.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description="what a frame costs the core")
    parser.add_argument("--repeats", type=int, default=30, help="of each case, taking turns (default 30)")
    parser.add_argument("--save", action="store_true", help=f"keep the figures in {KEPT.name}")
    options = parser.parse_args()
    where, load = machine(), others_load()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ns = measure(max(1, options.repeats))
    found = {"machine": where, "commit": commit(), "load": round(load, 2), "ns": ns}
    kept = msgspec.json.decode(KEPT.read_bytes(), type=dict[str, Any]) if KEPT.exists() else None
    show(found, kept)
    if options.save:
        KEPT.write_text(json.dumps({**found, "repeats": options.repeats}, indent=2) + "\n")
        print(f"kept in {KEPT.name}")


if __name__ == "__main__":
    main()
