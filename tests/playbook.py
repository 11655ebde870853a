"""Session tests that read like the wire.

    Playbook() << Dial(1) >> opened("rid") << Accept("rid") >> audio(0.02) << up(0.0, 0.02) >> …

`>>` is what happens to the session, `<<` what comes out of it next: its events, then what goes to Deepgram. A
step is done at once. Nothing may come out that is not written down; `<< ...` stands for all that did. Time
moves by `wait` alone. Byte n of a call's audio is `sound(n, n + 1)`, so that misplaced audio is seen.
A ping to Deepgram is answered at once and not written down, unless the playbook is about pings (`pings`) or
Deepgram is mute.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from types import EllipsisType

import msgspec

from gateway.config import ResumeConfig, SessionConfig
from gateway.deepgram.listen import ListenV1
from gateway.deepgram.query import ListenQuery
from gateway.deepgram.recogniser import Recogniser
from gateway.dialects.deepgram_wire import END_OF_AUDIO, decode
from gateway.policy.backoff import BUDGET, Backoff
from gateway.session.backfill import CatchUp
from gateway.session.events import Dial, Event
from gateway.session.protocol import SERIAL, SessionProtocol
from gateway.session.resume import GatewayResume, Resumption, Verdict

RATE = 8000
MULAW = f"encoding=mulaw&sample_rate={RATE}&interim_results=true"
LINEAR16 = f"encoding=linear16&sample_rate={RATE}"
START = 1_000_000.0  # no test may depend on a clock that begins at zero
PING = b""

_SOUND = bytes((n * 7 + n // 256 * 13) % 251 for n in range(65_536))


def sound(start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a call's audio."""
    whole = _SOUND * (stop // len(_SOUND) + 1)
    return whole[start:stop]


class Up(msgspec.Struct, frozen=True):
    """One message to Deepgram."""

    message: bytes | str


def up(start: float, stop: float) -> Up:
    """Audio from `start` to `stop` seconds, at one byte per sample, goes up as one message."""
    return Up(sound(round(start * RATE), round(stop * RATE)))


Output = Event | Up
Step = Callable[["Playbook"], object]


class Playbook:
    def __init__(
        self,
        query: str = MULAW,
        recogniser: Recogniser | None = None,
        *,
        own: bool = True,
        pings: bool = False,
        mute: bool = False,
        spent: bool = False,
        resume: ResumeConfig | None = None,
        accepted_as: str = "",
        catch_up: CatchUp = SERIAL,
        **config: float | str | bool,
    ) -> None:
        self.now = START
        self.recogniser = recogniser or ListenV1()
        self.epoch = 0
        self.epochs: list[int] = []
        self.said = 0  # bytes of audio
        self.mute = mute
        self._is_quiet = False  # the shell has been told that no turn is needed
        self._armed = math.inf
        self._shows_pings = pings
        self.all: list[tuple[float, int, Output]] = []  # (when, epoch, what)
        self._unread: list[Output] = []
        tokens = map("token-{}".format, itertools.count(1))
        self.resumption = (
            Resumption(resume, "session", "epoch", lambda: next(tokens), self.now) if resume else None
        )
        backoff = Backoff(0.5, 5.0, lambda: 1.0)
        for _ in range(BUDGET if spent else 0):  # it redialled that often already
            backoff.pause(self.now)
        self.session = SessionProtocol(
            msgspec.convert(config, SessionConfig),
            ListenQuery(query),
            self.recogniser,
            own_credential=own,
            backoff=backoff,
            mint_request_id=lambda: "minted",
            now=self.now,
            resumption=self.resumption,
            request_id=accepted_as,
            catch_up=catch_up,
        )
        self.turn()

    def __rshift__(self, step: Step) -> Playbook:
        assert self._unread == [], "came out, but was not written down"
        self._is_quiet = False
        step(self)
        if not self._is_quiet:
            self.turn()
        return self

    def quiet(self, output: Output, epoch: int) -> None:
        """All that came of a step: the shell does not ask for more, nor when to come back."""
        self._is_quiet = True
        self.log([output], epoch)
        assert not self.session.events_received()
        assert (self.session.get_timer() or math.inf) >= self._armed, "nobody would come in time"

    def __lshift__(self, expected: Output | Callable[[Output], bool] | EllipsisType) -> Playbook:
        if isinstance(expected, EllipsisType):
            self.out()
            return self
        assert self._unread, f"nothing came out, expected {expected}"
        found = self._unread.pop(0)
        assert found == expected if isinstance(expected, Output) else expected(found), (found, expected)
        return self

    def out(self) -> list[Output]:
        """Takes what came out and is not yet written down."""
        unread, self._unread = self._unread, []
        return unread

    def turn(self) -> None:
        """What the shell does after every call."""
        out: list[Output] = [*self.session.events_received()]
        for event in out:
            if isinstance(event, Dial):
                self.epoch = event.epoch
                self.epochs.append(event.epoch)
        self.log(out, self.epoch)
        for epoch in self.epochs:
            messages = self.session.data_to_send(epoch, self.now)
            if PING in messages and not self.mute:
                self.session.upstream_heard(epoch, self.now)
            shown = [Up(message) for message in messages if message != PING or self._shows_pings]
            self.log(shown, epoch)
        self._armed = self.session.get_timer() or math.inf

    def log(self, out: Sequence[Output], epoch: int) -> None:
        self.all += [(self.now, epoch, output) for output in out]
        self._unread += out


def audio(seconds: float) -> Step:
    return lambda book: sent(sound(book.said, book.said + round(seconds * RATE)))(book)


def sent(data: bytes) -> Step:
    def step(book: Playbook) -> None:
        book.said += len(data)
        if book.session.relay(data, book.now):
            book.quiet(Up(data), book.session.stream.epoch)
        else:
            book.session.audio_received(data, book.now)

    return step


def said(text: str) -> Step:
    return lambda book: book.session.client_said(decode(text, book.recogniser.controls), book.now)


def frames(count: int) -> Step:
    """So many more came from the client, whatever was in them."""
    return lambda book: book.session.frames_received(count, book.now)


def empty_message() -> Step:
    return lambda book: book.session.client_said(END_OF_AUDIO, book.now)


def gone(code: int | None = None) -> Step:
    return lambda book: book.session.client_lost(book.now, code)


def returned(token: str, have_seq: int) -> Step:
    """A client that may have the session has it on another connection."""

    def step(book: Playbook) -> None:
        request = GatewayResume(token, "epoch", have_seq)
        assert book.session.judge(request) is Verdict.WELCOME
        book.session.client_returned(request, book.now)

    return step


def shut_down(code: int = 1012, reason: str = "restart") -> Step:
    return lambda book: book.session.shut_down(code, reason, book.now)


def opened(request_id: str = "rid", epoch: int | None = None) -> Step:
    return lambda book: book.session.upstream_opened(epoch or book.epoch, request_id, book.now)


def refused(status: int, body: bytes = b"", **headers: str) -> Step:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda book: book.session.dial_refused(book.epoch, status, named, body, book.now)


def unreachable(epoch: int | None = None) -> Step:
    return lambda book: book.session.dial_failed(epoch or book.epoch, book.now)


def heard(raw: bytes, epoch: int | None = None) -> Step:
    def step(book: Playbook) -> None:
        result = book.session.upstream_message(epoch or book.epoch, raw, book.now)
        if result is not None:
            book.quiet(result, book.epoch)

    return step


def lost(code: int = 1006, reason: str = "", epoch: int | None = None) -> Step:
    return lambda book: book.session.upstream_lost(epoch or book.epoch, code, reason, book.now)


def wait(seconds: float) -> Step:
    def step(book: Playbook) -> None:
        end, calls = book.now + seconds, 0
        while (at := book.session.get_timer()) is not None and at <= end:
            calls = calls + 1 if at <= book.now else 0
            assert calls < 50, "a timer fires again and again without time passing"
            book.now = max(book.now, at)
            book.session.handle_timer(book.now)
            book.turn()
        book.now = end

    return step
