"""The client's half of docs/resume.md, without sockets and time.

Positions are bytes of audio on the client's own clock, which begins with its first byte and never jumps.
A session counts from its own first byte, which is at `base`: 0 until a session had to be begun anew.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Literal

import msgspec

from gateway.audio.clock import MediaClock
from gateway.deepgram.recogniser import Kind, Reading, Recogniser, Shift, objects
from gateway.errors import SessionLost

_DROPPED_BESIDES: Final = 1.0
"""Seconds of audio that go, too, when there is no room: one hole instead of many."""


class _Welcome(msgspec.Struct):
    type: Literal["GatewaySession", "GatewayResumed"]
    session: str
    epoch: str
    token: str
    recovered: bool = False
    audio_offset: int = 0


class _Ack(msgspec.Struct):
    durable: int
    final: int
    seq: int


class _Number(msgspec.Struct, frozen=True):
    seq: int | None = None


class _Numbered(msgspec.Struct):
    type: str
    gateway: _Number = _Number()


_welcome: Final = msgspec.json.Decoder(_Welcome)
_ack: Final = msgspec.json.Decoder(_Ack)
_numbered: Final = msgspec.json.Decoder(_Numbered)
_message: Final = msgspec.json.Decoder(dict[str, Any])


class ResumeState:
    """What a client must remember to lose its connection and nothing else.

    `append` and `finish` take audio; for each connection: `request` is what to say first, `welcome` takes the
    answer, then `next_to_send` and `heard` pass everything else. Audio that has no final result yet is kept,
    up to `keep_bytes`; beyond that the oldest goes, and `gaps` lists what therefore was never sent, as
    (from, to).

    `start` to `end` is the audio in memory, `at` what this connection sends next, `final` the end of what
    finals cover; `said_all`: all audio has gone and the server's last word has come.
    """

    def __init__(self, clock: MediaClock, recogniser: Recogniser, keep_bytes: int) -> None:
        self.session = ""
        self.base = self.start = self.at = self.end = self.final = 0
        self.gaps: list[tuple[int, int]] = []
        self.said_all = False
        self._clock = clock
        self._recogniser = recogniser
        self._keep_bytes = keep_bytes
        self._epoch = self._token = ""
        self._seq = 0
        self._sent: deque[bytes] = deque()  # from `start` to `at`; empty while a hole is to be declared,
        self._waiting: deque[bytes] = deque()  # and what follows
        self._part = b""  # of a sample
        self._finished = self._closing = self._anew = False
        self._finals: dict[int, float] = {}  # per channel: the second that its finals reach

    # Audio

    def append(self, data: bytes) -> None:
        data = self._part + data
        whole = self._whole(len(data))
        self._part = data[whole:]
        self._push(data[:whole])

    def finish(self) -> None:
        """No more audio will come."""
        self._push(self._part)
        self._part = b""
        self._finished = True

    def next_to_send(self) -> bytes | str | None:
        """The next message; None when there is nothing to say. Raises `SessionLost`."""
        if self.at < self.start:
            return self._gap()
        if self._waiting:
            data = self._waiting.popleft()
            self._sent.append(data)
            self.at += len(data)
            return data
        if self._finished and not self._closing:
            self._closing = True
            return self._recogniser.close_stream
        return None

    @property
    def sent_all(self) -> bool:
        return self._closing

    def _push(self, data: bytes) -> None:
        if not data:
            return
        self._waiting.append(data)
        self.end += len(data)
        excess = self.end - self.start - self._keep_bytes
        if excess > 0:
            more = self._clock.length(_DROPPED_BESIDES)
            self._forget(min(self.end, self.start + self._whole(excess) + more))

    def _whole(self, length: int) -> int:
        """The whole samples in so many bytes, in bytes."""
        return self._clock.offset(self._clock.samples(length))

    def _forget(self, until: int) -> None:
        while self.start < until:
            chunks = self._sent or self._waiting
            data = chunks.popleft()
            if self.start + len(data) > until:
                chunks.appendleft(data[until - self.start :])
                data = data[: until - self.start]
            self.start += len(data)

    def _gap(self) -> str:
        if not self._clock.timed:
            raise SessionLost("audio had to be dropped, and this kind of audio has no place in time")
        hole = (self.at, self.start)
        while self.gaps and self.gaps[-1][1] >= hole[0]:  # what was declared on a connection that broke
            hole = (min(self.gaps[-1][0], hole[0]), hole[1])
            self.gaps.pop()
        self.gaps.append(hole)
        said = {"type": "GatewayGap", "from": self.at - self.base, "to": self.start - self.base}
        self.at = self.start
        return msgspec.json.encode(said).decode()

    # The beginning of a connection

    def request(self) -> str | None:
        """What to say first on a connection; None on the first one of a session."""
        if not self.session:
            return None
        said = {
            "type": "GatewayResume",
            "token": self._token,
            "epoch": self._epoch,
            "have_seq": self._seq,
            "oldest_audio_offset": self.start - self.base,
        }
        return msgspec.json.encode(said).decode()

    def welcome(self, raw: bytes) -> bool:
        """The gateway's first message; says whether the session goes on. Raises `SessionLost`."""
        try:
            welcome = _welcome.decode(raw)
        except msgspec.DecodeError:
            raise SessionLost("the server does not offer to resume sessions") from None
        if welcome.recovered:
            position = self.base + welcome.audio_offset
            if welcome.epoch != self._epoch or not 0 <= welcome.audio_offset <= self.end - self.base:
                raise SessionLost("the gateway goes on with a session that is not this one")
        elif self.session and not self._clock.timed:
            raise SessionLost("the gateway has lost the session, and audio of this kind cannot begin anew")
        else:
            position = self.base = self.final
            self._seq = 0
            self._anew = bool(self.session)
        self.session, self._epoch, self._token = welcome.session, welcome.epoch, welcome.token
        self._rewind(position)
        return welcome.recovered

    def _rewind(self, position: int) -> None:
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self.at, at = position, self.start
        while at < position:
            data = self._waiting.popleft()
            if at + len(data) > position:
                self._waiting.appendleft(data[position - at :])
                data = data[: position - at]
            self._sent.append(data)
            at += len(data)
        self._closing = False

    # What comes

    def heard(self, raw: bytes) -> dict[str, Any] | None:
        """A message, its times on the client's clock; None when there is nothing new in it.

        Raises `SessionLost` for a hole in the numbers, `msgspec.DecodeError` or `UnicodeDecodeError` for what
        is not Deepgram's.
        """
        numbered = _numbered.decode(raw)
        if numbered.type == "GatewayAck":
            self._acked(_ack.decode(raw))
            return None
        if number := numbered.gateway.seq:
            if number <= self._seq:
                return None
            if number > self._seq + 1:
                raise SessionLost(f"results are missing: number {number} came after {self._seq}")
            self._seq = number
        reading, body = self._recogniser.read(raw), _message.decode(raw)
        if reading.kind in (Kind.INTERIM, Kind.FINAL):
            return body if self._take(reading, body) else None
        if reading.kind is Kind.HELLO and self._anew:
            return None
        if reading.kind is Kind.SUMMARY:
            self.said_all = self._finished and self.at == self.end
        if self._anew:
            base = self._clock.seconds(self.base)
            self._recogniser.shift(body, Shift(base, duration=base + reading.end, sequence=reading.sequence))
            for gap in objects(body.get("gateway"), "gaps"):
                gap.update(start=gap["start"] + base, stop=gap["stop"] + base)
        return body

    def _acked(self, ack: _Ack) -> None:
        if ack.seq <= self._seq:  # else it counts finals that are still on their way
            self._settle(self.base + ack.final)
        self._forget(min(self.base + ack.durable, self.at))

    def _settle(self, final: int) -> None:
        self.final = max(self.final, self._whole(min(final, self.at)))
        self._forget(min(self.final, self.at))

    def _take(self, reading: Reading, body: dict[str, Any]) -> bool:
        """Puts a result in its place; False when all of it is known.

        A session that begins anew does so where the channel that was behind had its last final. The others
        hear some words again, which are told by their place.
        """
        reached, base = self._finals.get(reading.channel, 0.0), self._clock.seconds(self.base)
        start, end = max(0.0, reading.start) + base, reading.end + base
        if self._anew:
            half = 0.5 / self._clock.rate_hz  # of a sample: less is rounding
            again = start < reached - half
            if again and end < reached + half:
                return False
            start = reached if again else start
            self._recogniser.shift(body, Shift(base, start=start, end=end, sequence=reading.sequence))
            if again and self._recogniser.has_windows:
                _cut(body, reached)
        if reading.kind is Kind.FINAL:
            self._finals[reading.channel] = max(reached, end)
            least = min(self._finals.get(channel, 0.0) for channel in range(reading.channels))
            self._settle(round(least * self._clock.rate_hz) * self._clock.frame_bytes)
        return True


def _cut(body: dict[str, Any], until: float) -> None:
    """Takes from a v1 result the words that lie, more than not, before `until` seconds."""
    for alternative in objects(body.get("channel"), "alternatives"):
        words = [w for w in objects(alternative, "words") if (w["start"] + w["end"]) / 2 > until]
        alternative["words"] = words
        alternative["transcript"] = " ".join(w.get("punctuated_word", w["word"]) for w in words)
