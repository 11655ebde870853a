"""Where an upstream connection's seconds lie on the client's clock, and how far its finals reach.

Deepgram's times are float32 seconds since the connection's first audio. Here they become whole samples
since the client's first audio; the float comes back only when a message goes out.
"""

from __future__ import annotations

import math
from itertools import pairwise

from gateway.audio.containers import Clock
from gateway.deepgram.recogniser import FINAL, INTERIM, Kind, Reading

_FLOAT32_BITS = 24


def float32_ulp(value: float) -> float:
    """The distance from `value` to the next float32; Deepgram's times carry that much error."""
    _, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - _FLOAT32_BITS)


class Timeline:
    """`committed[c]` is the end, in samples, of the contiguous finals of channel `c`.

    Samples count the audio that there is. Where the client left some out, its clock runs ahead of them: a
    hole lies before the sample that is next.
    """

    __slots__ = ("_base", "_clock", "_cursor", "_finals", "_holes", "_offset", "_overshot", "committed")

    def __init__(self, clock: Clock, channels: int) -> None:
        self.committed = [0] * max(1, channels)
        self._clock = clock
        self._overshot: dict[int, int] = {}  # where finals that reached beyond the audio said that they end
        self._base = 0  # the sample that the present connection calls second zero
        self._offset = 0.0  # the same in seconds; also known where there are no samples
        self._cursor = 0.0  # the latest second that any result has reached,
        self._finals = dict.fromkeys(range(len(self.committed)), 0.0)  # and that finals have, per channel
        self._holes: list[tuple[int, int]] = []  # (sample, samples that the client left out up to it)

    @property
    def watermark(self) -> int:
        """Samples that every channel has finals for."""
        return min(self.committed)

    @property
    def has_holes(self) -> bool:
        """Whether the client left audio out, so that samples and its seconds are apart."""
        return bool(self._holes)

    @property
    def left_out(self) -> int:
        """Samples that the client left out, all in all."""
        return self._holes[-1][1] if self._holes else 0

    def leave_out(self, sample: int, length: int) -> tuple[float, float]:
        """The client left `length` samples out before `sample`, the next there is. Returns the seconds."""
        before, total = self.left_out, self.left_out + length
        if self._holes and self._holes[-1][0] == sample:
            self._holes.pop()
        self._holes.append((sample, total))
        return (sample + before) / self._clock.rate_hz, (sample + total) / self._clock.rate_hz

    def place(self, reading: Reading) -> tuple[float, tuple[tuple[float, float], ...]]:
        """Seconds to add to a message's times, and for holes within it (the second, how much more)."""
        if not self._holes:
            return self._offset, ()
        rate, last = self._clock.rate_hz, self._sample(reading.end)
        if reading.kind not in (INTERIM, FINAL):
            ends = reading.kind is Kind.SPEECH_ENDED
            return (self._base + self._left_out(last, ends=ends)) / rate, ()
        first = self._sample(reading.start) if reading.start >= 0 else self.mark(reading)
        before = self._left_out(first)
        inside = [
            ((at - self._base) / rate, (total - self._left_out(at, ends=True)) / rate)
            for at, total in self._holes
            if first < at < last
        ]
        return (self._base + before) / rate, tuple(inside)

    def rebase(self, base: int) -> None:
        """A new connection begins with sample `base`, or where results had come to without a clock."""
        self._base = base
        self._overshot.clear()
        self._offset = self.second(base) if self._clock.timed else self._cursor
        self._finals = {channel: max(end, self._offset) for channel, end in self._finals.items()}

    def follow(self, reading: Reading) -> None:
        """A result came: where there is no clock, that alone shows how far a call has got."""
        end = reading.end + self._offset
        if end > self._cursor:
            self._cursor = end
        if reading.kind is FINAL:
            self._finals[reading.channel] = max(self._finals.get(reading.channel, 0.0), end)

    @property
    def unsaid(self) -> tuple[float, float]:
        """The seconds between the finals of the channel that is behind and the latest result of any kind."""
        return min(self._finals.values()), self._cursor

    def forgive(self, until: int) -> None:
        """Finals for what lies before sample `until` will never come."""
        self.committed = [max(mark, until) for mark in self.committed]

    def hand_over(self, edge: int) -> Timeline:
        """Another one awaits the finals before sample `edge`; here they count as had."""
        other = Timeline(self._clock, 0)
        other.committed, other._finals, other._holes = [*self.committed], {**self._finals}, self._holes
        other._base, other._offset, other._cursor = self._base, self._offset, self._cursor
        self.forgive(edge)
        return other

    def commit(self, reading: Reading, sent: int) -> tuple[int, int] | None:
        """Takes a final in; `sent` samples have gone up. Returns the range that finals skipped, if any."""
        if not self._clock.timed:
            return None
        hole, mark = self.hole(reading), self.mark(reading)
        end = self._sample(reading.end)
        if end > sent - self._tolerance(reading.end):  # rounded past, or just short of, the last sample
            self._overshot[reading.channel] = end
            end = sent
        if end <= mark:
            return None
        self.committed[reading.channel] = end
        return (hole, self._sample(reading.start)) if hole >= 0 else None

    def hole(self, reading: Reading) -> int:
        """The watermark of a final's channel if the final leaves out audio after it; else -1."""
        mark = self.mark(reading)
        if not self._clock.timed or reading.start < 0:
            return -1
        end = max(mark, self._overshot.get(reading.channel, 0))
        return mark if self._sample(reading.start) > end + self._tolerance(reading.end) else -1

    def mark(self, reading: Reading) -> int:
        """How far the finals of `reading`'s channel reach; the query need not have announced the channel."""
        while len(self.committed) < reading.channels:
            self.committed.append(self._base)
        return self.committed[reading.channel]

    def overlap(self, reading: Reading) -> bool:
        """Whether a result begins before the watermark of its channel: it says again what is final."""
        if not self._clock.timed or reading.start < 0:
            return False
        start, mark = self._sample(reading.start), self.mark(reading)
        return start < mark and start < mark - self._tolerance(reading.end)

    def ahead(self, reading: Reading, sent: int) -> float:
        """Seconds by which a result surely reaches beyond the audio that was sent; else negative."""
        return (self._sample(reading.end) - sent) / self._clock.rate_hz if self._clock.exact else -1.0

    def window(self, reading: Reading) -> tuple[float, float]:
        """Where a result lies on the client's clock. Ask before `commit`: a final starts at the mark."""
        start, end = reading.start + self._offset, reading.end + self._offset
        is_final = reading.kind is FINAL
        if self._clock.timed and reading.start >= 0 and (is_final or self._holes):
            first, last = self._sample(reading.start), self._sample(reading.end)
            continues = is_final and abs(first - self.mark(reading)) <= self._tolerance(reading.end)
            first = self.mark(reading) if continues else first
            if continues or self._holes:
                start = self.second(first)
            end = self.second(last, ends=last > first)
        return round(start, 6), round(end, 6)

    def second(self, sample: int, *, ends: bool = False) -> float:
        """A sample on the client's clock, in seconds; what ends at a hole ends before it."""
        return (sample + self._left_out(sample, ends=ends)) / self._clock.rate_hz

    def pieces(self, start: int, stop: int) -> list[tuple[float, float]]:
        """The seconds between two samples, less what the client left out."""
        edges = [start, *(at for at, _ in self._holes if start < at < stop), stop]
        return [(self.second(a), self.second(b, ends=b > a)) for a, b in pairwise(edges)]

    def shortly_before(self, second: float, sample: int) -> int:
        """The sample at a second not long before `sample`: not beyond a hole between them."""
        first = next((at for at, _ in reversed(self._holes) if at <= sample), 0)
        return max(first, round(second * self._clock.rate_hz) - self._left_out(sample))

    def final(self) -> int:
        """Samples of the client, holes and all, that it need not send again."""
        return self.watermark + self._left_out(self.watermark)

    def lag(self, reading: Reading, received: int) -> float:
        """Seconds of audio received beyond what `reading` covers; 0 without a clock."""
        if not self._clock.timed:
            return 0.0
        return max(0.0, (received - self._sample(reading.end)) / self._clock.rate_hz)

    def _sample(self, seconds: float) -> int:
        sample = self._base + round(seconds * self._clock.rate_hz)
        for at, _ in self._holes:
            if abs(sample - at) <= self._tolerance(seconds):
                return at
        return sample

    def _left_out(self, sample: int, *, ends: bool = False) -> int:
        for at, total in reversed(self._holes):
            if at < sample or (at == sample and not ends):
                return total
        return 0

    def _tolerance(self, seconds: float) -> float:
        return max(1.0, 4 * float32_ulp(seconds) * self._clock.rate_hz)
