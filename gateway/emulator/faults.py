"""Which fault happens when: the book of all faults, and what is armed on one connection. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.emulator.knobs import BatchFault, Fault, Moment

NEVER_BYTES = 1 << 62
NEVER = float("inf")


class FaultBook:
    """The faults of the knobs, and how often each may still happen."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._left: list[tuple[Fault, list[float]]] = [
            (fault, [NEVER if fault.times is None else fault.times]) for fault in faults
        ]

    def matching(self, attempt: int, connection: str) -> list[Armed]:
        """The faults that concern the `attempt`-th connection, still to happen."""
        return [
            Armed(fault, left)
            for fault, left in self._left
            if fault.nth in (None, attempt) and fault.connection in (None, connection)
        ]

    def refusal(self, attempt: int, connection: str) -> Fault | None:
        """The fault that refuses this attempt, spent by the call."""
        for armed in self.matching(attempt, connection):
            if armed.fault.kind == "refuse" and armed.spend():
                return armed.fault
        return None


class BatchBook:
    """The faults of pre-recorded requests, and how often each may still happen."""

    def __init__(self, faults: tuple[BatchFault, ...]) -> None:
        self._left = [[fault.times or NEVER] for fault in faults]
        self._faults = faults

    def matching(self, nth: int) -> BatchFault | None:
        """What happens to the `nth` request, spent by the call."""
        for fault, left in zip(self._faults, self._left, strict=True):
            if fault.nth in (None, nth) and left[0] > 0:
                left[0] -= 1
                return fault
        return None


@dataclass(slots=True)
class Armed:
    """A fault waiting on one connection; `left` is shared by all connections it may strike."""

    fault: Fault
    left: list[float]

    def spend(self) -> bool:
        """Take one of the times the fault may happen; False if none is left."""
        if self.left[0] <= 0:
            return False
        self.left[0] -= 1
        return True


@dataclass(slots=True)
class Faults:
    """The faults armed on one connection, with the next byte and the next time at which one is due."""

    bytes_per_second: int
    armed: list[Armed] = field(default_factory=list)
    next_bytes: int = NEVER_BYTES
    next_time: float = NEVER

    def arm(self, armed: list[Armed], opened_at: float, bytes_per_second: int) -> None:
        """Replace what is armed; the triggers count from the connection's beginning."""
        self.armed = [a for a in armed if a.fault.kind != "refuse"]
        self.bytes_per_second = bytes_per_second
        self._plan(opened_at)

    def pace(self, bytes_per_second: int, opened_at: float) -> None:
        """The format became known: seconds of audio are so many bytes."""
        self.bytes_per_second = bytes_per_second
        self._plan(opened_at)

    def _plan(self, opened_at: float) -> None:
        faults = [a.fault for a in self.armed]
        self.next_bytes = min((self._bytes(f) for f in faults), default=NEVER_BYTES)
        times = (opened_at + f.after_seconds for f in faults if f.after_seconds is not None)
        self.next_time = min(times, default=NEVER)

    def _bytes(self, fault: Fault) -> int:
        """The count of audio bytes at which a fault is due."""
        if fault.after_bytes is not None:
            return fault.after_bytes
        if fault.after_audio is not None:
            return round(fault.after_audio * self.bytes_per_second)
        return NEVER_BYTES

    def _spend(self, due: list[Armed], opened_at: float) -> list[Fault]:
        if not due:
            return []
        self.armed = [a for a in self.armed if a not in due]
        self._plan(opened_at)
        return [a.fault for a in due if a.spend()]

    def at_open(self, opened_at: float) -> list[Fault]:
        """What happens because the connection is open."""
        return self._spend([a for a in self.armed if a.fault.triggered_at_open], opened_at)

    def at_bytes(self, received: int, opened_at: float) -> list[Fault]:
        """What happens because `received` bytes of audio have come."""
        if received < self.next_bytes:
            return []
        return self._spend([a for a in self.armed if self._bytes(a.fault) <= received], opened_at)

    def at_time(self, now: float, opened_at: float) -> list[Fault]:
        """What happens because it is `now`."""
        if now < self.next_time:
            return []
        age = now - opened_at
        due = [
            a for a in self.armed if a.fault.after_seconds is not None and a.fault.after_seconds <= age + 1e-9
        ]
        return self._spend(due, opened_at)

    def at_moment(self, moment: Moment, opened_at: float) -> list[Fault]:
        """What happens because of something in the protocol."""
        return self._spend([a for a in self.armed if a.fault.at == moment], opened_at)

    def at_words(self, words: set[str], opened_at: float) -> list[Fault]:
        """What happens because a word was heard (poisoned audio, wherever it stands in the stream)."""
        return self._spend([a for a in self.armed if a.fault.when_word in words], opened_at)
