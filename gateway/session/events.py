"""What a session orders its shell to do, in the imperative, and what it found out, in the past tense."""

from __future__ import annotations

import msgspec

from gateway.audio.clock import Continuity
from gateway.deepgram.recogniser import Kind


class Dial(msgspec.Struct, frozen=True):
    """Open upstream connection number `epoch`; report `upstream_opened`, `dial_refused` or `dial_failed`."""

    epoch: int


class HangUp(msgspec.Struct, frozen=True):
    """Give up upstream connection or dial `epoch`, if it is still there; nothing more of it is wanted."""

    epoch: int


class Accept(msgspec.Struct, frozen=True):
    """Answer the client's handshake with 101; `request_id` is what it will see from now on."""

    request_id: str


class Refuse(msgspec.Struct, frozen=True):
    """Answer the client's handshake with this HTTP response instead."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Close(msgspec.Struct, frozen=True):
    """Close the client's connection; without `code` the close frame carries no status (1005)."""

    code: int | None
    reason: str = ""


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """A message for everybody who listens to this call, as it goes on the wire.

    An interim is replaced by the next one of its channel; everything else is said once. `lag`: seconds of
    audio received beyond a result.
    """

    raw: bytes
    kind: Kind
    channel: int = 0
    lag: float = 0.0


class Recognised(msgspec.Struct, frozen=True):
    """The audio told what it is; told again, with `continuity` "none", when it can't be followed any more."""

    container: str
    continuity: Continuity


class Flooded(msgspec.Struct, frozen=True):
    """The client says more than it may, for the first time, and is read more slowly. `what`: messages,
    finalizes."""

    what: str


class Detached(msgspec.Struct, frozen=True):
    """The client is gone, but may come back."""


class Resumed(msgspec.Struct, frozen=True):
    """The client is back after `away` seconds, at the byte `audio_offset` of its audio."""

    away: float
    audio_offset: int


class GivenUp(msgspec.Struct, frozen=True):
    """The client did not come back in `away` seconds, and is not waited for any longer."""

    away: float


class Broke(msgspec.Struct, frozen=True):
    """An upstream connection ended that should have gone on. `owed` seconds of audio have no final yet."""

    epoch: int
    code: int
    reason: str
    owed: float


class Restored(msgspec.Struct, frozen=True):
    """Upstream connection `epoch` took over; `replayed` seconds of audio go to Deepgram once more."""

    epoch: int
    replayed: float


class Backfilling(msgspec.Struct, frozen=True):
    """The call goes on live; what an outage left, in seconds of its clock, is transcribed beside it."""

    start: float
    stop: float


class Backfilled(msgspec.Struct, frozen=True):
    """That is over; `seconds` of it have finals. `outcome`: complete, late, failed."""

    outcome: str
    seconds: float


class Gap(msgspec.Struct, frozen=True):
    """Audio from `start` to `stop`, in seconds of the client's clock, that no final will cover."""

    start: float
    stop: float
    reason: str


class Alert(msgspec.Struct, frozen=True):
    """Something that the operator must mend: Deepgram refused the gateway's own credential."""

    status: int
    text: str


class Ended(msgspec.Struct, frozen=True):
    """The session is over. `outcome`: completed, refused, abandoned, failed."""

    outcome: str


Event = (
    Dial
    | HangUp
    | Accept
    | Refuse
    | Close
    | Deliver
    | Recognised
    | Flooded
    | Detached
    | Resumed
    | GivenUp
    | Broke
    | Restored
    | Backfilling
    | Backfilled
    | Gap
    | Alert
    | Ended
)
