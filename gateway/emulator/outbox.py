"""What a stream says on its way out: delayed, doubled, spoiled or kept back by knobs and faults. Pure."""

from __future__ import annotations

import json
import random
from collections import deque

import msgspec

from gateway.emulator.actions import Action, SendText
from gateway.emulator.faults import NEVER
from gateway.emulator.knobs import Fault, Knobs
from gateway.emulator.oddities import odd
from gateway.emulator.wire import Message

_RESULTS = ("Results", "TurnInfo")


class Outbox:
    """Messages of one connection; `out` is what the shell is to do now."""

    def __init__(self, knobs: Knobs, rng: random.Random) -> None:
        self.knobs = knobs
        self.out: list[Action] = []
        self.muted_until = 0.0
        self._rng = rng
        self._held: deque[tuple[float, Action]] = deque()
        self._late_until = self._late_by = 0.0
        self._twice = 0
        self._odd: list[str] = []
        self._last_interim: Message | None = None
        self._last_result: Message | None = None

    @property
    def next_due(self) -> float:
        """When something that is held has to go; infinity for nothing."""
        return self._held[0][0] if self._held else NEVER

    def muted(self, now: float) -> bool:
        """Whether nothing may be said now."""
        return now < self.muted_until

    def message(self, message: Message, now: float, received: float) -> None:
        """Say something; `received` seconds of audio have come so far."""
        if self.muted(now):
            return
        result = message.get("type") in _RESULTS
        if result:
            message = self._distorted(message, received)
        text = encode(message)
        for _ in range(2 if result and self._doubled() else 1):
            self.queue(SendText(text), now, result)

    def repeat(self, now: float) -> None:
        """Say the last interim once more."""
        if self._last_interim is not None and not self.muted(now):
            self.queue(SendText(encode(self._last_interim)), now, True)

    def queue(self, action: Action, now: float, delayed: bool) -> None:
        """Do something after all that waits; results may have to wait themselves."""
        delay = self._delay(now) if delayed else 0.0
        if delay or self._held:
            self._held.append((max(now + delay, self._held[-1][0] if self._held else 0.0), action))
        else:
            self.out.append(action)

    def release(self, now: float) -> None:
        """Let go of what is due."""
        while self._held and self._held[0][0] <= now + 1e-9:
            self.out.append(self._held.popleft()[1])

    def clear(self) -> None:
        """Forget what waits."""
        self._held.clear()

    def late(self, delay: float, until: float) -> None:
        """Fault: results come `delay` later."""
        self._late_by, self._late_until = delay, until

    def double(self, count: int) -> None:
        """Fault: the next results come twice."""
        self._twice += count

    def spoil(self, fault: Fault) -> None:
        """Fault: the next results cannot be true."""
        self._odd += [fault.oddity] * fault.count

    def _delay(self, now: float) -> float:
        delay = self.knobs.result_delay + self._rng.random() * self.knobs.result_delay_jitter
        return delay + (self._late_by if now < self._late_until else 0.0)

    def _distorted(self, message: Message, received: float) -> Message:
        if self._odd and message["type"] == "Results":
            message = odd(message, self._odd.pop(0), self._last_result, received)
        self._last_result = message
        if message.get("is_final") is False:
            self._last_interim = message
        return message

    def _doubled(self) -> bool:
        if self._twice:
            self._twice -= 1
            return True
        return bool(self.knobs.duplicate) and self._rng.random() < self.knobs.duplicate


def encode(message: Message) -> str:
    """JSON; the slow encoder only where a fault put NaN, which the quick one would write as null."""
    if message.get("type") == "Results" and message["duration"] != message["duration"]:
        return json.dumps(message)
    return msgspec.json.encode(message).decode()
