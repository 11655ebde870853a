"""A recogniser for session tests that knows exactly which audio it got.

The audio is noise, so that a connection's bytes say where in the call they belong; what is "spoken" in it is
a table of tokens per channel. A token is recognised if nine tenths of it came on one connection; what is
heard of any other is a fragment. Times are float32 seconds since the connection's first byte, words' times
may be jittered, and a final never ends within a token, unless it must be the last.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_right
from typing import Any, NamedTuple

from tests.playbook import RATE
from tests.session.results import encoded

NOISE = random.Random(1).randbytes(1 << 23)
FRAGMENT = "frag"
RECOGNISED = 0.9
UNMISTAKABLE = 8  # bytes of noise that occur once
PAUSE = 800  # samples of silence that end an utterance
LONGEST_CALL = 200  # seconds that the tables cover
VOCABULARY = ("no", "yes", "no", "seven", "eight", "well")


class Token(NamedTuple):
    """In samples since the call's first."""

    start: int
    end: int
    text: str


class Table:
    """What one channel says in the whole call."""

    def __init__(self, layout: str, channel: int) -> None:
        rng = random.Random(f"{layout} {channel}")
        self.tokens: list[Token] = []
        at = 0
        while at < LONGEST_CALL * RATE:
            pause = {"pauses": 1.0, "none": 0.0, "mixed": 0.4}[layout] > rng.random()
            at += rng.randrange(400, 6000) if pause else 0
            end = at + rng.randrange(800, 3200)
            self.tokens.append(Token(at, end, rng.choice(VOCABULARY)))
            at = end
        self._starts = [token.start for token in self.tokens]

    def around(self, start: int, stop: int) -> list[Token]:
        """The tokens of which something lies between two samples."""
        first = max(0, bisect_right(self._starts, start) - 1)
        found = self.tokens[first : bisect_right(self._starts, stop - 1)]
        return [token for token in found if token.end > start and token.start < stop]

    def at(self, sample: int) -> Token | None:
        """The token that goes on at `sample`."""
        token = self.tokens[max(0, bisect_right(self._starts, sample) - 1)]
        return token if token.start < sample < token.end else None


TABLES = {(layout, c): Table(layout, c) for layout in ("pauses", "none", "mixed") for c in range(4)}


def float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


class Model:
    """One connection's recogniser. Places are samples since the call's first, whatever the wire says."""

    def __init__(self, epoch: int, layout: str, frame: int, channels: int, sigma: float) -> None:
        self.epoch = epoch
        self.rid = f"rid-{epoch}"
        self.base = -1  # bytes, as all that follows here
        self.length = 0
        self._head = b""  # while it is too little to say where it belongs
        self.controls: list[tuple[int, str]] = []  # (bytes before it, text)
        self.marks = [0] * channels
        self.asked = [0] * channels  # for a final, by whoever
        self.answered = [0] * channels
        self.claimed = [0] * channels  # where a final said that it ended, beyond the audio that had come
        self.skipped: list[tuple[int, int, int]] = []  # (channel, start, stop): audio without a final
        self.speaking = [False] * channels  # SpeechStarted went out, and no end of it
        self.spoken = [0] * channels  # up to where speech was told of
        self.turns = 0
        self.sequence = 0
        self.in_turn = False
        self._tables = [TABLES[layout, c] for c in range(channels)]
        self._frame = frame
        self._sigma = sigma
        self._random = random.Random(epoch)

    def take(self, data: bytes, said: int) -> None:
        """Audio comes; it must be the client's, and go on where it stopped."""
        self.length += len(data)
        if self.base >= 0:
            at = self.base + self.length - len(data)
            assert NOISE.startswith(data, at), "not in order"
            assert at + len(data) <= said
            return
        self._head += data
        if len(self._head) >= UNMISTAKABLE:
            self._begin_at(NOISE.rfind(self._head, 0, said))

    def has_it_all(self, said: int) -> None:
        """No more comes: what it got are the last bytes of the client, be they ever so few."""
        if self.base < 0 and self._head:
            self._begin_at(said - self.length)
            assert NOISE.startswith(self._head, self.base), "not the client's last audio"

    def _begin_at(self, base: int) -> None:
        assert base >= 0, "not the client's audio"
        assert base % self._frame == 0, "the seam is within a frame"
        self.base = base
        self.marks = [base // self._frame] * len(self.marks)
        self.spoken = self.marks.copy()

    @property
    def first(self) -> int:
        """The first sample that it heard."""
        return max(0, self.base) // self._frame

    @property
    def heard(self) -> int:
        """The sample up to which it heard."""
        return (max(0, self.base) + self.length) // self._frame

    def words(self, channel: int, start: int, stop: int) -> list[dict[str, Any]]:
        told = []
        for token in self._tables[channel].around(start, stop):
            begin, end = max(token.start, self.first), min(token.end, stop)
            if begin < start:
                continue  # it belongs to the window before
            whole = end - begin >= RECOGNISED * (token.end - token.start)
            a, b = sorted(
                min(stop, max(start, at + self._noise())) / RATE - self.first / RATE for at in (begin, end)
            )
            text = token.text if whole else FRAGMENT
            told.append({"word": text, "start": float32(a), "end": float32(b), "confidence": 0.9})
        return told

    def _noise(self) -> float:
        return self._random.gauss(0, self._sigma) * RATE if self._sigma else 0.0

    def boundary(self, channel: int, part: float) -> int:
        """Where a window from the mark over `part` of what is new may end."""
        mark = self.marks[channel]
        stop = mark + round((self.heard - mark) * part)
        token = self._tables[channel].at(stop)
        if token is None:
            return stop
        if token.start > mark:
            return token.start
        return token.end if token.end <= self.heard else mark

    def result(
        self,
        channel: int,
        stop: int,
        *,
        is_final: bool,
        finalized: bool = False,
        over: int = 0,
        ends_speech: bool = False,
    ) -> bytes:
        """Results from the mark to `stop`; a final may claim to reach `over` samples further."""
        mark = self._mark_of(channel, stop)
        words = self.words(channel, mark, stop)
        if is_final:
            self.marks[channel] = stop
            self.claimed[channel] = stop + over
        if ends_speech:
            self._speech_ends(channel, stop)
        start = float32((mark - self.first) / RATE)
        alternative = {"transcript": " ".join(w["word"] for w in words), "confidence": 0.9, "words": words}
        message = {
            "type": "Results",
            "channel_index": [channel, len(self.marks)],
            "start": start,
            "duration": float32((stop + over - mark) / RATE),
            "is_final": is_final,
            "speech_final": ends_speech,
            "from_finalize": finalized,
            "channel": {"alternatives": [alternative]},
            "metadata": {"request_id": self.rid},
        }
        return encoded(message)

    def _mark_of(self, channel: int, stop: int) -> int:
        """Where the next result begins: with what the last final claimed, if nothing was said meanwhile."""
        mark, claimed = self.marks[channel], self.claimed[channel]
        is_quiet = mark < claimed <= stop and not self._tables[channel].around(mark, claimed)
        return claimed if is_quiet else mark

    def skip(self, channel: int, stop: int) -> None:
        """No final will tell of what lies between the mark and `stop`."""
        mark = self.marks[channel]
        if stop > max(mark, self.claimed[channel]):  # what was claimed too early nobody can miss
            self.skipped.append((channel, mark, stop))
            self.marks[channel] = stop

    def began(self, channel: int) -> bytes | None:
        """SpeechStarted, if something is being said that no end of speech was told of."""
        since = self.spoken[channel]
        tokens = self._tables[channel].around(since, self.heard)
        if self.speaking[channel] or not tokens:
            return None
        self.speaking[channel] = True
        second = float32((max(tokens[0].start, since) - self.first) / RATE)
        channels = [channel, len(self.marks)]
        return encoded({"type": "SpeechStarted", "channel": channels, "timestamp": second})

    def pauses(self, channel: int, stop: int) -> bool:
        """Whether a final up to `stop` ends with silence after speech."""
        tokens = self._tables[channel].around(self.spoken[channel], stop)
        return bool(tokens) and stop - tokens[-1].end >= PAUSE

    def speaks(self, channel: int) -> bool:
        """Whether there was speech of whose end nothing was told."""
        return self.speaking[channel] or bool(self._tables[channel].around(self.spoken[channel], self.heard))

    def ended(self, channel: int) -> bytes | None:
        """UtteranceEnd, if the finals have come to silence after speech that was told of."""
        stop = self.marks[channel]
        if not self.speaking[channel] or not self.pauses(channel, stop):
            return None
        last = self._tables[channel].around(self.spoken[channel], stop)[-1].end
        self._speech_ends(channel, stop)
        second = float32((last - self.first) / RATE)
        channels = [channel, len(self.marks)]
        return encoded({"type": "UtteranceEnd", "channel": channels, "last_word_end": second})

    def _speech_ends(self, channel: int, stop: int) -> None:
        self.speaking[channel] = False
        self.spoken[channel] = max(self.spoken[channel], stop)

    def turn(self, event: str, stop: int) -> bytes:
        """TurnInfo of Flux for the turn that began at the mark."""
        mark = self.marks[0]
        words = [{"word": w["word"], "start": w["start"], "end": w["end"]} for w in self.words(0, mark, stop)]
        self.sequence += 1
        message = {
            "type": "TurnInfo",
            "request_id": self.rid,
            "sequence_id": self.sequence,
            "event": event,
            "turn_index": self.turns,
            "audio_window_start": float32((mark - self.first) / RATE),
            "audio_window_end": float32((stop - self.first) / RATE),
            "words": words,
        }
        self.in_turn = event != "EndOfTurn" and (self.in_turn or event == "StartOfTurn")
        if event == "EndOfTurn":
            self.marks[0] = stop
            self.turns += 1
        return encoded(message)
