"""What goes to Deepgram: audio and control messages in the client's order, paced, and again after a break.

A control message is bound to the audio before it: it goes up after every earlier byte and before any later
one, on every connection that gets that far.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Sequence

import msgspec

from gateway.audio.clock import PACKETS
from gateway.audio.containers import Clock
from gateway.session.finalizes import Finalizes
from gateway.session.pacer import Pacer
from gateway.session.replay import SMALL, ReplayBuffer

CHUNK = 0.1
"""Seconds of audio in one message when a backlog goes up: Deepgram advises 20-250 ms, 100 ms being "a good
balance" (developers.deepgram.com/docs/measuring-streaming-latency)."""
LARGEST_CHUNK = 0.25
COMPRESSED_CHUNK_BYTES = 65_536


WAITING_CONTROLS = 100
"""Control messages that may wait for a connection or for the audio before them; and that are kept of those
that went up, for another connection."""


class Repeat(enum.Enum):
    """Whether a control message goes up again on a new connection."""

    NEVER = "never"
    UNTIL_FINAL = "until final"
    """Until finals cover the audio before it: then it has had its effect."""
    ALWAYS = "always"


class _Control(msgspec.Struct):
    """`settled_at`: the sample that finals must reach; half a sample before `offset` has no final.

    `answered`: the client has Deepgram's answer to it.
    """

    offset: int
    settled_at: int
    text: str
    repeat: Repeat
    is_configure: bool = False
    answered: bool = False


class Uplink:
    """`received` and `sent` count bytes since the client's first; `sent` goes back after a break."""

    __slots__ = (  # noqa: SIM905 (twenty names, one to a line, say no more)
        "_began _burst _catch_up_pace _controls _finished _flows _given _highest "
        "_largest _next _pace _pacer _repeated _settled _unanswered buffer catching_up clock finalizes limit "
        "received relayed_at sent sent_at wake_at"
    ).split()

    def __init__(self, *, pace: float, catch_up_pace: float, burst: float) -> None:
        """Paces in seconds of audio per second, `burst` in seconds of audio."""
        self.clock: Clock = PACKETS
        self.received = 0
        self.sent = 0
        self.wake_at = math.inf
        """When `take` will have something that it held back."""
        self.buffer = ReplayBuffer()
        self.limit = 0
        """Bytes of the buffer beyond which `relay` takes no more."""
        self.relayed_at = 0.0
        """When `relay` took something for the last time."""
        self.sent_at = 0.0
        """When `take` gave out something for the last time."""
        self.catching_up = False
        """A backlog goes up, faster than real time."""
        self._pace = pace
        self._catch_up_pace = catch_up_pace
        self._burst = burst
        self._largest = 0
        self._pacer: Pacer | None = None
        self._finished = False
        self._flows = False  # nothing waits, and nothing is to be done but to pass audio on
        self._controls: list[_Control] = []
        self._next = 0
        self._settled = 0  # the sample up to which there are finals
        self._unanswered: list[_Control] = []
        self.finalizes = Finalizes()
        self._began = 0  # the byte with which the present connection began, as far as it is not counted yet
        self._highest = 0  # the byte up to which earlier ones got
        self._given = self._repeated = 0  # bytes that earlier ones got, and of these what was no news

    def use(self, clock: Clock, now: float) -> None:
        """The clock became known; before the first byte, if not before the first connection."""
        assert self.received == 0
        self.clock = clock
        self._pacer = self._fresh_pacer(self._pace, now)
        self.buffer = ReplayBuffer(packets=not clock.joinable)
        self._largest = clock.length(LARGEST_CHUNK)

    @property
    def drained(self) -> bool:
        """Everything received has been sent."""
        return self.sent == self.received and self._next == len(self._controls)

    @property
    def given(self) -> tuple[int, int]:
        """Bytes of audio that all connections together were given, and of these what went up once more."""
        again = max(0, min(self.sent, self._highest) - self._began)
        return self._given + self.sent - self._began, self._repeated + again

    @property
    def has_unsent_controls(self) -> bool:
        return self._next < len(self._controls)

    def relay(self, data: bytes, now: float) -> bool:
        """Takes audio that goes up now, as it is: a call spends its life in these lines.

        False: it was not taken, and is a case for `audio`.
        """
        if not self._flows:
            return False
        buffer, length, pacer = self.buffer, len(data), self._pacer
        kept = buffer.end - buffer.start
        if not SMALL <= length <= self._largest or kept > self.limit:
            return False
        if pacer is None or not pacer.admit(length, now):
            return False
        buffer.messages.append(data)
        buffer.end += length
        self.received += length
        self.sent += length
        self.relayed_at = now
        return True

    def audio(self, data: bytes) -> None:
        self._flows = False
        self.buffer.append(data)
        self.received += len(data)

    @property
    def crowded(self) -> bool:
        """So many control messages wait that no more should be read."""
        return len(self._controls) - self._next > WAITING_CONTROLS

    def control(self, text: str, repeat: Repeat, *, is_configure: bool = False) -> None:
        settled_at = self.clock.samples(self.received)
        self._flows = False
        self._controls.append(_Control(self.received, settled_at, text, repeat, is_configure))

    def finish(self, text: str) -> None:
        """The last control message: no audio comes after it."""
        self._finished = True
        self.control(text, Repeat.ALWAYS)

    def open(self, offset: int, now: float) -> None:
        """A new connection begins with the byte at `offset`."""
        kept = [c for i, c in enumerate(self._controls) if self._goes_up_again(c, i < self._next, offset)]
        self._controls, self._next = kept, 0
        self._unanswered.clear()
        self.finalizes.clear()
        self.buffer.discard_until(offset)
        self._settle_given()
        self.sent = self._began = offset
        self._flows = False
        backlog = self.clock.seconds(self.received - offset)
        self.catching_up = backlog > self._burst
        self._pacer = self._fresh_pacer(self._catch_up_pace if self.catching_up else self._pace, now)

    def close(self) -> None:
        """The connection is gone: what was not given out for it is sent to the next one."""
        self._flows = False

    def hand_over(self, other: Uplink, edge: int, begin: int) -> None:
        """`other` gets all audio so far, and what was said up to the byte `edge`; here it goes on at `begin`.

        What was configured holds for both. Call `open` before anything else.
        """
        self._settle_given()
        other.buffer, other.received, other.sent = self.buffer, self.received, self.sent
        other._began, other._highest = self.sent, self._highest
        self._highest = self.received  # what both hear is the first time the other one's
        earlier = [control for control in self._controls if control.offset <= edge]
        other._controls = [msgspec.structs.replace(c, answered=True) for c in earlier]
        other._next = min(self._next, len(earlier))
        kept = [c.offset > edge or c.repeat is Repeat.ALWAYS for c in self._controls]
        self._next = sum(kept[: self._next])
        self._controls = [c for c, is_kept in zip(self._controls, kept, strict=True) if is_kept]
        self.buffer = ReplayBuffer(begin)
        self.buffer.append(other.buffer.read(begin, self.received - begin))

    def take(self, now: float) -> list[bytes | str]:
        """Messages that may go up now, audio as bytes and control messages as text."""
        if self._flows:
            return []
        self.wake_at = math.inf
        out = self._take(now)
        self._flows = self.drained and self.clock.timed and not self._finished
        if out:
            self.sent_at = now
        return out

    def _take(self, now: float) -> list[bytes | str]:
        out: list[bytes | str] = []
        while True:
            if self._next < len(self._controls):
                control = self._controls[self._next]
                if self.sent >= control.offset:
                    out.append(control.text)
                    self._has_gone(control)
                    continue
                stop = control.offset
            elif self.sent == self.received:
                break
            else:
                stop = self.received
            chunk = self._chunk(stop, now)
            if not chunk:
                break
            self.sent += len(chunk)
            out.append(chunk)
            if not self.clock.joinable:
                self.buffer.discard_until(self.sent)  # so that the next packet is found at once
        if out and not self.clock.timed:
            self._forget_sent()
        elif self.catching_up and self.sent == self.received:
            self.catching_up = False
            if self._pacer is not None:
                self._pacer.change(self._pace, self._burst)
        return out

    def _has_gone(self, control: _Control) -> None:
        """The next control message went up: it is kept if it may have to go up again."""
        if control.is_configure:
            self._unanswered = [*self._unanswered, control][-WAITING_CONTROLS:]
        elif control.repeat is Repeat.UNTIL_FINAL:
            self.finalizes.went_up(control, control.text, control.settled_at)
        if control.repeat is Repeat.ALWAYS or (
            control.repeat is Repeat.UNTIL_FINAL and control.settled_at > self._settled
        ):
            self._next += 1
        else:
            del self._controls[self._next]
        if self._next > WAITING_CONTROLS:
            self._crop()

    def settle(self, sample: int, keep_from: int) -> None:
        """Finals cover everything before `sample`: no Finalize up to there is needed again, and no audio but
        what begins at the byte `keep_from`."""
        self.buffer.discard_until(min(keep_from, self.sent))
        self._settled = sample
        self._fold_configures(keep_from)
        self._drop_sent(lambda c: c.repeat is not Repeat.ALWAYS and c.settled_at <= sample)

    def finalize_answered(self, channel: int, channels: int, sample: int) -> bool:
        """A final up to `sample` answers a Finalize, which is not asked again. Whether it is the client's."""
        answered, is_clients = self.finalizes.answered(channel, channels, sample)
        if answered is not None:
            self._drop_sent(lambda c: c is answered)
        return is_clients

    def configure_answered(self, accepted: bool) -> bool:
        """Deepgram answered the oldest Configure of this connection. Returns whether the client waits for it.

        One that was refused does not go up again.
        """
        if not self._unanswered:
            return True
        control = self._unanswered.pop(0)
        if not accepted:
            self._drop_sent(lambda c: c is control)
        is_news, control.answered = not control.answered, True
        return is_news

    def _fold_configures(self, until: int) -> None:
        """One Configure says what all those before it said, once the client has its answers; but no audio
        between them may go up again."""
        before = self._controls[: self._next]
        sent = [c for c in before if c.offset <= until and c.is_configure and c.answered]
        if len(sent) > 1:
            self._fold(sent)

    def _crop(self) -> None:
        """A storm without finals: of its older half the last Configure stays, with what all of them say. That
        a Finalize of it would have effect earlier than a newer one is given up (continuity.md I8)."""
        old = self._controls[: self._next - WAITING_CONTROLS // 2]
        self._fold([c for c in old if c.is_configure] or old[-1:], {id(c) for c in old})

    def _fold(self, configures: Sequence[_Control], forgotten: Collection[int] = ()) -> None:
        """The last of them says what all say; these and what else is `forgotten` is not kept."""
        last = configures[-1]
        last.text = folded([c.text for c in configures]) if len(configures) > 1 else last.text
        superseded = {id(c) for c in configures} | {*forgotten}
        self._drop_sent(lambda c: c is not last and id(c) in superseded)

    def _drop_sent(self, done: Callable[[_Control], bool]) -> None:
        if not self._next:
            return
        sent = [control for control in self._controls[: self._next] if not done(control)]
        self._controls[: self._next] = sent
        self._next = len(sent)

    def take_back(self, other: Uplink) -> None:
        """What `hand_over` gave to `other` is over."""
        given, repeated = other.given
        self._given += given
        self._repeated += repeated

    def _settle_given(self) -> None:
        self._given, self._repeated = self.given
        self._highest = max(self._highest, self.sent)
        self._began = self.sent

    def drop_until(self, offset: int) -> None:
        """Gives up audio before `offset` for good, sent or not; only while no connection is open past it."""
        self.buffer.discard_until(offset)
        if offset > self.sent:
            self._settle_given()
            self.sent = self._began = offset

    def _chunk(self, stop: int, now: float) -> bytes:
        wanted = stop - self.sent
        pacer = self._pacer
        if pacer is None:
            return self.buffer.read(self.sent, min(wanted, COMPRESSED_CHUNK_BYTES))
        if wanted > self._largest:
            wanted = min(wanted, max(self.clock.length(CHUNK), self.clock.frame_bytes))
        if not pacer.admit(wanted, now):
            self.wake_at = pacer.ready_at(wanted)
            return b""
        return self.buffer.read(self.sent, wanted)

    def _fresh_pacer(self, pace: float, now: float) -> Pacer | None:
        rate = self.clock.bytes_per_second
        return Pacer(rate, pace, self._burst, now) if rate else None

    def _goes_up_again(self, control: _Control, was_sent: bool, offset: int) -> bool:
        if not was_sent or control.repeat is Repeat.ALWAYS:
            return True
        settled = not self.clock.timed or control.settled_at <= self.clock.samples(offset)
        return control.repeat is Repeat.UNTIL_FINAL and not settled

    def _forget_sent(self) -> None:
        """Compressed audio cannot be cut at will, so what has gone up is not kept."""
        self.buffer.discard_until(self.sent)
        self._fold_configures(self.sent)
        self._drop_sent(lambda c: c.repeat is not Repeat.ALWAYS)


def folded(configures: Sequence[str]) -> str:
    """One Configure that leaves Deepgram as all of them in turn do: what one omits, it keeps.

    Source: developers.deepgram.com/docs/configure.
    """
    whole: dict[str, msgspec.Raw] = {}
    for text in configures:
        for name, value in _members(text).items():
            before = whole.get(name)
            if before is not None and _is_object(before) and _is_object(value):
                whole[name] = msgspec.Raw(msgspec.json.encode({**_members(before), **_members(value)}))
            elif bytes(value) != b"null":
                whole[name] = value
    return msgspec.json.encode(whole).decode()


def _is_object(value: msgspec.Raw) -> bool:
    return bytes(value).startswith(b"{")


def _members(text: str | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """Their values stay as they are written: what Deepgram took, we need not be able to read."""
    return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
