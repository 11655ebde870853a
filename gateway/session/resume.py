"""What a session keeps for a client that may come back: numbers, a journal and tokens (docs/resume.md).

Offsets are bytes of the client's audio. What cannot be had here, a token and its randomness, is handed in.
"""

from __future__ import annotations

import enum
import hmac
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from gateway.config import ResumeConfig

SLOW, TAKEN, MISTAKEN, STRANGER = 4408, 4409, 4500, 4501
"""Close codes; from 4500 on there is no point in coming back."""

_Offset = Annotated[int, Meta(ge=0, le=2**53)]  # what JSON can say in every language


class GatewayResume(msgspec.Struct, frozen=True, tag="GatewayResume", tag_field="type"):
    """A client that comes back says who it is and what it has."""

    token: str
    epoch: str
    have_seq: _Offset
    oldest_audio_offset: _Offset = 0


class GatewayGap(msgspec.Struct, frozen=True, tag="GatewayGap", tag_field="type"):
    """The client will never send these bytes of its audio."""

    start: _Offset = msgspec.field(name="from")
    to: _Offset


class _Typed(msgspec.Struct, gc=False):
    type: str = ""


_typed: Final = msgspec.json.Decoder(_Typed)
_own: Final[msgspec.json.Decoder[GatewayResume | GatewayGap]] = msgspec.json.Decoder(
    GatewayResume | GatewayGap
)
_encode: Final = msgspec.json.Encoder().encode
_NOTES: Final = b',"gateway":'


def read(text: str) -> GatewayResume | GatewayGap | None:
    """What a client says in this protocol; None when the message is Deepgram's.

    Raises `msgspec.ValidationError` for one that is not as the protocol has it.
    """
    try:
        if not _typed.decode(text).type.startswith("Gateway"):
            return None
    except (msgspec.DecodeError, RecursionError):
        return None
    return _own.decode(text)


class Verdict(enum.Enum):
    """Whether somebody may have the session."""

    WELCOME = "recovered"
    LOST = "lost"
    """It is the client, but what it lacks is not there any more."""
    STRANGER = "wrong_token"


class _Said(NamedTuple):
    raw: bytes
    at: float


class Resumption:
    """`seq` is the last number given out; `journal_bytes` what is kept for sending again."""

    def __init__(
        self, config: ResumeConfig, session: str, epoch: str, mint_token: Callable[[], str], now: float
    ) -> None:
        self.epoch = epoch
        self.seq = 0
        self.journal_bytes = 0
        self.config = config
        self._session = session
        self._mint_token = mint_token
        self._token = self._token_before = b""  # their hashes
        self._journal: deque[_Said] = deque()  # the last ones said, without holes
        self._now = now
        self._acked = self._told = (0, 0, 0)

    def hello(self, bytes_per_second: int) -> bytes:
        """The first message of a session."""
        return self._greeting({"type": "GatewaySession"}, bytes_per_second)

    def instead(self, bytes_per_second: int) -> bytes:
        """The same to a client that wanted another session, which cannot be had."""
        return self._resumed(False, 0, bytes_per_second)

    def number(self, raw: bytes) -> bytes:
        """A message that is said once, with its number; it is kept as long as it may be asked for again."""
        self.seq += 1
        raw = raw.rstrip()
        if _is_annotated(raw):
            raw = b'%b,"seq":%d}}' % (raw[:-2], self.seq)
        else:
            raw = b'%b,"gateway":{"seq":%d}}' % (raw[:-1], self.seq)
        self._journal.append(_Said(raw, self._now))
        self.journal_bytes += len(raw)
        while self.journal_bytes > self.config.journal_bytes:
            self._forget_first()
        return raw

    def ack(self, received: int, final: int, now: float) -> bytes | None:
        """How far the client's audio has come; None when the client knows.

        Call it every `ack_every_ms` while the client is there: only meanwhile the journal grows old.
        """
        self._now = now
        while self._journal and self._journal[0].at < now - self.config.window:
            self._forget_first()
        known = self._acked
        self._acked = (max(received, known[0]), max(final, known[1]), self.seq)
        if self._acked == self._told:
            return None
        self._told = self._acked
        received, final, seq = self._acked
        fields = {"received": received, "durable": 0, "final": final, "seq": seq}
        return _encode({"type": "GatewayAck", **fields})

    def judge(self, request: GatewayResume) -> Verdict:
        """Looks at the token first: who does not have it learns nothing."""
        claimed = _hashed(request.token)
        if not (_is_same(claimed, self._token) | _is_same(claimed, self._token_before)):
            return Verdict.STRANGER
        lacking = self.seq - request.have_seq
        is_here = request.epoch == self.epoch and 0 <= lacking <= len(self._journal)
        return Verdict.WELCOME if is_here else Verdict.LOST

    def resume(self, request: GatewayResume, audio_offset: int, bytes_per_second: int) -> list[bytes]:
        """The answer to a welcome client, and then all that it lacks, byte for byte."""
        self._told = (-1, -1, -1)  # the last ack may have been lost with the connection
        self._token_before = _hashed(request.token)  # good until the new one is used
        have = len(self._journal) - (self.seq - request.have_seq)
        lacking = [said.raw for said in islice(self._journal, have, None)]
        return [self._resumed(True, audio_offset, bytes_per_second, request.have_seq + 1), *lacking]

    def _forget_first(self) -> None:
        self.journal_bytes -= len(self._journal.popleft().raw)

    def _resumed(self, recovered: bool, audio_offset: int, bytes_per_second: int, next_seq: int = 1) -> bytes:
        fields = {"recovered": recovered, "audio_offset": audio_offset, "next_seq": next_seq}
        return self._greeting({"type": "GatewayResumed", **fields}, bytes_per_second)

    def _greeting(self, fields: dict[str, Any], bytes_per_second: int) -> bytes:
        token = self._mint_token()
        self._token = _hashed(token)
        return _encode(
            {
                **fields,
                "session": self._session,
                "epoch": self.epoch,
                "token": token,
                "window_s": self.config.window,
                "ack_every_ms": self.config.ack_every_ms,
                "bytes_per_second": bytes_per_second,
            }
        )


def _hashed(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _is_same(a: bytes, b: bytes) -> bool:
    return hmac.compare_digest(a, b)


def _is_annotated(raw: bytes) -> bool:
    """Whether a message ends with the extra key: what follows its last mention, less one brace, is JSON."""
    at = raw.rfind(_NOTES)
    if at < 0:
        return False
    try:
        msgspec.json.decode(raw[at + len(_NOTES) : -1], type=dict[str, Any])
    except msgspec.DecodeError:
        return False
    return True
