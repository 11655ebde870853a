"""What v1 and Flux connections have in common: audio in, a clock of samples, timers, faults. Pure.

Every method takes `now` in emulator seconds; what is to be done by the shell gathers in
`outbox.out`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.emulator.actions import Close, Cut, SendBinary, SendText, Socket
from gateway.emulator.engines.base import Engine, EngineFull
from gateway.emulator.faults import NEVER, Armed, Faults
from gateway.emulator.intake import Intake, Undecodable
from gateway.emulator.knobs import Fault, Knobs, Moment
from gateway.emulator.outbox import Outbox, encode
from gateway.emulator.pace import Cursor
from gateway.emulator.sound import Format
from gateway.emulator.wire import Message, ModelInfo


@dataclass(frozen=True, slots=True)
class Setting:
    """What a stream is born with."""

    knobs: Knobs
    engine: Engine
    request_id: str
    created: str
    rng: random.Random
    wake: Callable[[], None]


class Stream(ABC):
    """One WebSocket connection, as a recogniser sees it."""

    def __init__(self, setting: Setting, fmt: Format | None, model: ModelInfo, now: float) -> None:
        self.knobs = setting.knobs
        self.setting = setting
        self.model = model
        self.outbox = Outbox(setting.knobs, setting.rng)
        self.closed = False
        self.wake_changed = True
        self.intake = Intake(setting.engine, setting.wake, self.knobs.estimated_bytes_per_second)
        self.opened_at = self.last_frame = now
        self.faults = Faults(0)
        self._cursor = Cursor(self.knobs.ingest_speed, now)
        self._position = 0
        self._step_samples = self._next_step = 1
        self._next_step_bytes = 0
        self._controls: deque[tuple[int, Message]] = deque()
        self._frozen_until = self._slow_until = 0.0
        self._resume_at = NEVER
        self._paused = False
        if fmt is not None:
            self._set_format(fmt)

    # What the dialects fill in.

    def channels_heard(self, fmt: Format) -> int:
        """How many channels get their own results."""
        return 1

    @abstractmethod
    def ready(self) -> None:
        """The format is known and the ears are there."""

    @abstractmethod
    def step(self, at: int, now: float) -> None:
        """Listening has come to sample `at`."""

    @abstractmethod
    def control(self, message: Message, at: int, now: float) -> None:
        """A control message takes effect at sample `at`."""

    @abstractmethod
    def text(self, text: str, now: float) -> None:
        """A text message came."""

    @abstractmethod
    def pinged(self, now: float) -> None:
        """A ping came."""

    @abstractmethod
    def idle_deadline(self) -> float:
        """When the connection is given up if nothing comes."""

    @abstractmethod
    def idle(self, now: float) -> None:
        """The idle deadline may have passed."""

    @abstractmethod
    def skip(self, samples: int) -> None:
        """Fault: lose the next `samples` samples without a word."""

    def last_words(self, now: float) -> Message | None:
        """The message before an error close, if the dialect has one."""
        return None

    # What the shell calls.

    def open(self, armed: list[Armed], now: float) -> None:
        """The handshake is done."""
        self.arm(armed, now)

    def arm(self, armed: list[Armed], now: float) -> None:
        """Replace the faults, and let those happen that are due."""
        self.faults.arm(armed, self.opened_at, self.intake.bytes_per_second)
        self.wake_changed = True
        self._strike(self.faults.at_open(self.opened_at), now)
        self._strike(self.faults.at_bytes(self.intake.received_bytes, self.opened_at), now)

    def audio(self, data: bytes, now: float) -> None:
        """A binary message that is not empty. The path of every frame: no loop, no object."""
        intake = self.intake
        self.last_frame = now
        intake.take(data)
        if intake.received_bytes == len(data):
            self._strike(self.faults.at_moment("audio", self.opened_at), now)
        if intake.received_bytes >= self.faults.next_bytes:
            self._strike(self.faults.at_bytes(intake.received_bytes, self.opened_at), now)
        if intake.received_bytes >= self._next_step_bytes:
            self.advance(now)

    def poll(self, now: float) -> None:
        """Do what time brings."""
        if self.closed:
            self.outbox.release(now)
            return
        self._strike(self.faults.at_time(now, self.opened_at), now)
        if self._slow_until and now >= self._slow_until:
            self._slow_until, self._cursor.speed = 0.0, self.knobs.ingest_speed
        if now >= self._resume_at:
            self.outbox.out.append(Socket("resume"))
            self.resumed(now)
        self.advance(now)
        if self._alive() and now >= self._idle_at():
            self.idle(now)
        self.outbox.release(now)

    def wake_at(self) -> float:
        """When `poll` is wanted next, if nothing comes before; infinity for never."""
        if self.closed:
            return self.outbox.next_due
        slow = self._slow_until or NEVER
        return min(
            self.faults.next_time,
            self._idle_at(),
            self.outbox.next_due,
            slow,
            self._resume_at,
            self._next_work(),
        )

    def retune(self, knobs: Knobs, armed: list[Armed], now: float) -> None:
        """The knobs changed; windows keep their lengths."""
        self.knobs = self.outbox.knobs = knobs
        self._cursor.speed = knobs.ingest_speed
        self.arm(armed, now)
        self.wake_changed = True

    def resumed(self, now: float) -> None:
        """Reading goes on after a fault had stopped it."""
        self._resume_at, self._paused, self.last_frame = NEVER, False, now

    def close(self) -> None:
        """The connection is gone."""
        self.closed = True
        self.outbox.clear()
        self.intake.close()

    def _idle_at(self) -> float:
        """The idle deadline, unless a fault is the reason for the quiet."""
        return NEVER if self._paused else max(self.idle_deadline(), self.outbox.muted_until)

    def _alive(self) -> bool:
        return not self.closed

    # The clock of audio.

    def seconds(self, samples: float) -> float:
        """Samples as seconds of the connection."""
        return self.intake.seconds(samples)

    def _set_format(self, fmt: Format) -> None:
        self.intake.open(fmt, self.channels_heard(fmt))
        self._step_samples = self._next_step = max(1, round(self.knobs.step * self.intake.sample_rate))
        self._next_step_bytes = self.intake.bytes_until(self._next_step)
        self.faults.pace(self.intake.bytes_per_second, self.opened_at)
        self.ready()

    def _recognise(self, now: float) -> None:
        """Learn the format from the first bytes, open what is packed, or give up."""
        try:
            if self.intake.format is not None:
                self.intake.unpack()
            elif (fmt := self.intake.recognise()) is not None:
                self._set_format(fmt)
        except Undecodable as error:
            self.end(error.code, str(error), now)
        except EngineFull:
            self.end(1011, "the engine takes no further stream", now)

    def advance(self, now: float) -> None:
        """Listen as far as the pace allows; then do what was asked for at that place."""
        self.wake_changed = True
        if not self.closed:
            self._recognise(now)
        if self.closed or self.intake.format is None:
            self._run_controls_without_audio(now)
            return
        reached = self._cursor.advance(now, self.intake.feed(), self.intake.sample_rate)
        while self._alive() and self._next_stop() <= reached:
            self._stop_at(self._next_stop(), now)

    def _next_stop(self) -> int:
        """The next sample at which something is done: a step, or a control message before it."""
        return min(self._next_step, self._controls[0][0]) if self._controls else self._next_step

    def _stop_at(self, at: int, now: float) -> None:
        self._position = at
        if self._controls and self._controls[0][0] <= at:
            self.control(self._controls.popleft()[1], at, now)
            return
        self._next_step += self._step_samples
        self._next_step_bytes = self.intake.bytes_until(self._next_step)
        if now < self._frozen_until:
            self._repeat(now)
        else:
            self.step(at, now)

    def _run_controls_without_audio(self, now: float) -> None:
        while self._controls and not self.closed:
            self.control(self._controls.popleft()[1], 0, now)

    def ask(self, message: Message, now: float) -> None:
        """Queue a control message behind the audio that came before it.

        The ears are flushed here and now, so that they settle no more and no less than that audio.
        """
        self.advance(now)
        hard = message["type"] == "CloseStream" or self.knobs.finalize_cuts_words
        self.intake.flush(hard)
        self._controls.append((self.intake.received_samples, message))
        self.advance(now)

    def _next_work(self) -> float:
        """When listening will have come to the next thing to do in the audio that is here."""
        stop = self._next_stop()
        if self.intake.format is None or stop > self.intake.heard:
            return NEVER
        return self._cursor.reaches(stop, self.intake.sample_rate) + 1e-4

    # Sending.

    def emit(self, message: Message, now: float) -> None:
        """Send a message through whatever the knobs and faults do to messages."""
        if not self.closed:
            self.outbox.message(message, now, self.seconds(self.intake.received_samples))

    def _repeat(self, now: float) -> None:
        """Frozen: say the last interim once more each interim interval."""
        every = max(1, round(self.knobs.interim_interval / self.knobs.step))
        if (self._position // self._step_samples) % every == 0:
            self.outbox.repeat(now)

    def end(self, code: int | None, reason: str, now: float) -> None:
        """Close after everything that is still to be sent; before an error comes the dialect's last word."""
        if code not in (1000, None):
            last = self.last_words(now)
            if last is not None:
                self.emit(last, now)
        if not self.outbox.muted(now):
            self.outbox.queue(Close(code, reason), now, False)
        self.closed = True

    # Faults.

    def moment(self, moment: Moment, now: float) -> None:
        """Something in the protocol happened; a fault may wait for it."""
        self._strike(self.faults.at_moment(moment, self.opened_at), now)

    def poisoned(self, words: set[str], now: float) -> None:
        """These words were heard; a fault may wait for one."""
        self._strike(self.faults.at_words(words, self.opened_at), now)

    def _strike(self, due: list[Fault], now: float) -> None:
        for fault in due:
            if not self.closed:
                self.strike(fault, now)

    def strike(self, fault: Fault, now: float) -> None:
        """Let a fault happen."""
        until = NEVER if fault.lasts is None else now + fault.lasts
        match fault.kind:
            case "close":
                self._kill(fault, now)
            case "reset" | "fin":
                self._cut(fault.kind)
            case "half-open" | "stop-reading":
                self.outbox.out.append(Socket(fault.kind))
                self._resume_at, self._paused = until, True
            case "mute":
                self.outbox.muted_until = until
            case "freeze":
                self._frozen_until = until
            case "slow":
                self._cursor.speed, self._slow_until = fault.speed, 0.0 if fault.lasts is None else until
            case "late":
                self.outbox.late(fault.delay, until)
            case "duplicate":
                self.outbox.double(fault.count)
            case "implausible":
                self.outbox.spoil(fault)
            case "skip":
                self.skip(round(fault.seconds * self.intake.sample_rate))
            case _:
                self._say(fault)

    def _kill(self, fault: Fault, now: float) -> None:
        """Close at once, whatever waits to be sent."""
        self.outbox.clear()
        last = self.last_words(now) if fault.metadata_first else None
        if last is not None:
            self.outbox.out.append(SendText(encode(last)))
        self.outbox.out.append(Close(fault.code or None, fault.reason))
        self.closed = True

    def _cut(self, how: Cut) -> None:
        self.outbox.clear()
        self.outbox.out.append(Socket(how))
        self.closed = True

    def _say(self, fault: Fault) -> None:
        """Faults that are messages."""
        request_id = self.setting.request_id
        match fault.kind:
            case "garbage":
                self.outbox.out.append(SendText(fault.text))
            case "unknown-type":
                self.outbox.out.append(SendText(encode({"type": "Surprise", "request_id": request_id})))
            case "oversized":
                self.outbox.out.append(
                    SendText(encode({"type": "Surprise", "padding": "x" * fault.size_bytes}))
                )
            case "binary":
                self.outbox.out.append(SendBinary(fault.text.encode()))


def decode(text: str) -> Any:
    """JSON from a client; None if it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
