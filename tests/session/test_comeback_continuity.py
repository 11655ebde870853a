"""Random schedules again (`test_continuity`), with a client whose connections break wherever they can.

The client gets what the session says while it is attached, but the last of it may be lost with a connection:
it comes back with fewer results than it was sent, and must get exactly those that it lacks.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ResumeConfig
from gateway.deepgram.recogniser import Kind
from gateway.session.events import Close, Deliver, Detached, Dial, Ended, Gap, GivenUp, HangUp, Resumed
from gateway.session.resume import GatewayResume, Verdict
from tests.playbook import RATE, Playbook, Up, gone, lost, returned, wait
from tests.session.model import Model
from tests.session.test_continuity import (
    CLOSE_STREAM,
    FINALIZE,
    LAYOUTS,
    LONGEST,
    SCHEDULES,
    SLACK,
    STEPS,
    STRATEGIES,
    Call,
    Menu,
    Setting,
    Steps,
    Told,
    menu,
    run,
    window,
)

ROAMING: Final[Steps] = (
    *[step for step in STEPS if step[0] not in ("odd", "garbage", "skip", "refused", "blocked")],
    ("drop", (0, 0, 1, 2, 100), 6),
    ("return", (0,), 8),
    ("settle", (1000, 1000, 1006), 3),
    ("away", (1.0, 5.0, 20.0), 2),
)
WINDOW: Final = 600.0


class Roamer(Call):
    """`have`: the results that the client has for certain; `sent` all that were ever said, by number."""

    def __init__(self, setting: Setting) -> None:
        self.attached = True
        self.token = ""
        self.have = 0
        self.sent: list[bytes] = []
        self.awaited: int | None = None  # the next number on this connection
        self.acked = (0, 0, 0)
        self.losses = 0
        self.resting = 0  # the epoch of the last connection that was asked to end for want of audio
        super().__init__(setting)

    def playbook(self) -> Playbook:
        channels = f"mulaw&channels={self.setting.channels}&multichannel=true"
        encoding = "linear16" if self.setting.channels == 1 else channels
        return Playbook(
            f"encoding={encoding}&sample_rate={RATE}&interim_results=true",
            resume=ResumeConfig(hold_upstream=3.0, window=WINDOW, ack_every_ms=200),
            client_idle=0,
            seam_strategy=self.setting.strategy,
            buffer=self.setting.buffer,
        )

    def collect(self) -> None:
        for output in self.book.out():
            match output:
                case Dial(epoch):
                    self.dials = epoch
                    self.leave()
                case HangUp():
                    self.leave()
                case Up(bytes() as data):
                    assert self.open is not None
                    assert CLOSE_STREAM not in [text for _, text in self.open.controls], "audio after a close"
                    self.open.take(data, self.book.said)
                case Up(str() as text):
                    self.hear(text)
                case Deliver(raw, kind):
                    self.gets(raw, kind)
                case Gap():
                    self.gaps.append(output)
                case Detached():
                    self.said.append((self.book.said, FINALIZE))
                case Resumed(_, offset):
                    assert offset == self.book.said
                case Close() | Ended():
                    self.end.append(output)

    def gets(self, raw: bytes, kind: Kind) -> None:
        message = msgspec.json.decode(raw)
        match message["type"]:
            case "GatewaySession":
                self.token, self.awaited = message["token"], 1
            case "GatewayResumed":
                self.token, self.awaited = message["token"], message["next_seq"]
                assert message["recovered"]
                assert message["audio_offset"] == self.book.said
                assert message["next_seq"] == self.have + 1
            case "GatewayAck":
                assert self.attached
                self.check_ack(message)
            case _ if kind is Kind.INTERIM:
                assert "seq" not in message.get("gateway", {})
                self.hears_result(message, kind)
            case _:
                seq = message["gateway"].pop("seq")
                message = (
                    message if message["gateway"] else {k: v for k, v in message.items() if k != "gateway"}
                )
                if self.attached:
                    assert seq == self.awaited, "a number is missing or comes twice"
                    self.awaited = seq + 1
                    self.have = seq
                if seq > len(self.sent):
                    assert seq == len(self.sent) + 1
                    self.sent.append(raw)
                    self.hears_result(message, kind)
                assert self.sent[seq - 1] == raw, "not the same bytes"

    def hears_result(self, message: dict[str, Any], kind: Kind) -> None:
        speaker = self.speaker
        self.told.append(Told(speaker, speaker.heard if speaker else 0, kind, message))

    def check_ack(self, message: dict[str, Any]) -> None:
        """I14: what is in memory, what finals cover, never less than before."""
        ack = message["received"], message["final"], message["seq"]
        assert all(new >= old for new, old in zip(ack, self.acked, strict=True))
        assert ack != self.acked or self.losses
        self.acked = ack
        received, final, seq = ack
        assert received == self.book.said
        assert seq == len(self.sent)
        ends = [0] * self.setting.channels
        for told in self.told:
            if told.kind is Kind.FINAL:
                ends[told.message["channel_index"][0]] = window(told.message)[1]
        assert final <= min((min(ends) + SLACK) * self.frame, received)

    def step(self, name: str, value: Any, channel: int) -> None:
        match name:
            case "drop" if self.attached and not self.over:
                self.losses += 1
                self.have = max(0, self.have - value)
                self.do(gone(1006 if value else None))
                self.attached = self.book.session.request_id == ""
            case "return" if not self.over and self.book.session.request_id:
                self.comes_back()
            case "away" if not self.attached:
                self.connect()
                self.do(wait(value))
            case "settle" if self.open is not None and self.rests:
                self.settles(value)
            case "drop" | "return" | "away" | "settle":
                pass
            case "audio" | "long" | "control" if not self.attached:
                pass
            case _:
                super().step(name, value, channel)

    def comes_back(self) -> None:
        """Also while the connection before still lives."""
        session = self.book.session
        assert session.judge(GatewayResume("guess", "epoch", self.have)) is Verdict.STRANGER
        if session.judge(GatewayResume(self.token, "epoch", self.have)) is Verdict.WELCOME:
            self.losses += 1
            self.attached = True
            self.do(returned(self.token, self.have))

    @property
    def rests(self) -> bool:
        """Whether the open connection was asked to end although the call goes on."""
        return self.open is not None and self.open.epoch == self.resting

    def ends(self, how: str, model: Model) -> None:
        if self.rests:
            self.settles(1000)
        else:
            super().ends(how, model)

    def check_speech(self, channel: int) -> None:
        # Else nobody is there to wait for an end, or its connection ended before the silence was heard.
        if self.setting.goodbye == "close" and not self.resting:
            super().check_speech(channel)

    def hear(self, text: str) -> None:
        if text == CLOSE_STREAM and not self.book.session.stream.draining and self.open is not None:
            self.resting = self.open.epoch
        if text == CLOSE_STREAM and (not self.said or self.said[-1][1] != CLOSE_STREAM):
            self.said.append((self.book.said, text))
        super().hear(text)

    def settles(self, code: int) -> None:
        """That connection ends, and cuts no word as it does."""
        model = self.open
        assert model is not None
        for channel in range(self.setting.channels if model.base >= 0 else 0):
            self.deepgram_says("pause", 1.0, channel, model)
        self.leave()
        self.do(lost(code))

    def goodbye(self) -> None:
        if self.setting.goodbye == "gone":
            if self.attached:
                self.step("drop", 0, 0)
            self.said.append((self.book.said, CLOSE_STREAM))
            while self.book.session.detached:
                if self.open is not None and self.rests:
                    self.settles(1000)
                self.connect()
                self.goes_on()
                self.do(wait(5.0))
            return
        if not self.attached:
            self.comes_back()
        super().goodbye()

    def check(self) -> None:
        if isinstance(self.end[-1], Close):  # it is held until the client has answered
            self.do(gone(1000))
        assert isinstance(self.end[-1], Ended)
        assert self.book.session.get_timer() is None, "something is left (continuity.md I22)"
        if self.setting.goodbye == "close":
            assert self.have == len(self.sent)
        assert not any(isinstance(output, GivenUp) for _, _, output in self.book.all) or (
            self.setting.goodbye == "gone"
        )
        super().check()


SETTINGS: Final = st.builds(
    lambda **setting: Setting(buffer=LONGEST + 1, **setting),
    layout=LAYOUTS,
    channels=st.sampled_from([1, 1, 2]),
    strategy=STRATEGIES,
    goodbye=st.sampled_from(["close", "close", "gone"]),
)
ROAM: Final[Menu] = menu(ROAMING)


@given(SCHEDULES, SETTINGS)
def test_nothing_is_lost_with_a_connection(schedule: bytes, setting: Setting) -> None:
    """All that holds for a client that stays, and: each number once, byte for byte; honest acks; an end.

    continuity.md I1, continuity.md I2, continuity.md I4, continuity.md I12, continuity.md I13,
    continuity.md I14, continuity.md I15, continuity.md I22
    """
    run(Roamer(setting), schedule, ROAM)
