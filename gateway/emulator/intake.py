"""The audio of one connection on its way to the ears: its format, its bytes, its clock of samples. Pure."""

from __future__ import annotations

from collections.abc import Callable

from gateway.emulator.containers import Garbage, Opener, opener
from gateway.emulator.engines.base import Ear, Engine, EngineFull
from gateway.emulator.sound import Format, sniff

_NO_AUDIO = "DATA-0000: the payload cannot be decoded as audio. See https://dpgr.am/data0000"


class Undecodable(Exception):
    """The stream cannot go on: close it with `code` and the message as the reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Intake:
    """Bytes in any chunks; ears for as many channels as are listened to apart."""

    def __init__(self, engine: Engine, wake: Callable[[], None], estimated_bytes_per_second: int) -> None:
        self._engine = engine
        self._wake = wake
        self._estimate = estimated_bytes_per_second
        self._chunks: list[bytes] = []
        self._header_bytes = 0
        self._opener: Opener | None = None
        self._opened_bytes = 0
        self.format: Format | None = None
        self.ears: list[Ear] = []
        self.received_bytes = 0

    def take(self, data: bytes) -> None:
        """More audio; nobody listens to it yet."""
        self.received_bytes += len(data)
        self._chunks.append(data)

    def open(self, fmt: Format, channels: int) -> None:
        """The format is known: open an ear for each of `channels`. Raises EngineFull."""
        self.format = fmt if fmt.sample_rate else Format("packets", self._estimate)
        try:
            for channel in range(channels):
                self.ears.append(self._engine.listen(self.format, channel, self._wake))
        except EngineFull:
            self.close()
            raise

    def recognise(self) -> Format | None:
        """The format told by the first bytes; None if more are needed. Raises Undecodable."""
        head = b"".join(self._chunks)
        found = sniff(head, self._estimate)
        if found is None or not head:
            self._chunks = [head] if head else []
            return None
        if found.format is None:
            raise Undecodable(1008, _NO_AUDIO)
        self._header_bytes, self._chunks = found.header_bytes, [head[found.header_bytes :]]
        self._opener = opener(found.container) if found.container else None
        self.unpack()
        return found.format

    def unpack(self) -> None:
        """Open what came of a container. Raises Undecodable."""
        if self._opener is not None:
            packed = b"".join(self._chunks)
            try:
                self._chunks = [self._opener.feed(packed)]
            except Garbage:
                raise Undecodable(1008, _NO_AUDIO) from None
            self._opened_bytes += len(self._chunks[0])

    def feed(self) -> int:
        """Let the ears have what came; returns the samples that all of them have heard."""
        if self._chunks:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            for ear in self.ears:
                ear.feed(data)
        return self.heard

    @property
    def heard(self) -> int:
        """Samples that all ears have heard."""
        return min(ear.heard for ear in self.ears)

    @property
    def received_samples(self) -> int:
        """Whole samples that have come."""
        if self.format is None:
            return 0
        received = self.received_bytes - self._header_bytes if self._opener is None else self._opened_bytes
        return max(0, received) // self.format.frame_bytes

    def bytes_until(self, sample: int) -> int:
        """How many bytes must have come for `sample` to be there; 0 where only looking tells."""
        if self.format is None or self._opener is not None:
            return 0
        return self._header_bytes + sample * self.format.frame_bytes

    @property
    def sample_rate(self) -> int:
        """Samples in a second; 0 while that is unknown."""
        return self.format.sample_rate if self.format else 0

    @property
    def bytes_per_second(self) -> int:
        """Bytes in a second of audio, by estimate while the format is unknown and in containers."""
        return self.format.bytes_per_second if self.format and self._opener is None else self._estimate

    def seconds(self, samples: float) -> float:
        """Samples as seconds of the connection."""
        return samples / self.format.sample_rate if self.format else 0.0

    @property
    def backlog_bytes(self) -> int:
        """Audio that ears have taken and not listened to."""
        return sum(ear.backlog_bytes for ear in self.ears)

    def flush(self, hard: bool) -> None:
        """Settle what the ears have heard; see `Ear.flush`."""
        for ear in self.ears:
            ear.flush(hard)

    def close(self) -> None:
        """Give the ears back."""
        for ear in self.ears:
            ear.close()
