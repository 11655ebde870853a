"""Numbers, journal and tokens of a session whose client may come back."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ResumeConfig
from gateway.session.resume import GatewayGap, GatewayResume, Resumption, Verdict, read

RATE = 32_000


def resumption(**settings: Any) -> Resumption:
    tokens = map("token-{}".format, itertools.count(1))
    return Resumption(
        ResumeConfig(**{"window": 100.0, **settings}), "session-1", "epoch-1", lambda: next(tokens), now=0.0
    )


def asks(token: str, have_seq: int = 0, epoch: str = "epoch-1") -> GatewayResume:
    return GatewayResume(token, epoch, have_seq)


def message(n: int, **more: Any) -> bytes:
    return json.dumps({"type": "Results", "n": n, **more}).encode()


class TestWhatAClientSays:
    def test_a_resume(self) -> None:
        """Unknown fields are ignored; the oldest offset may be left out."""
        text = '{"type":"GatewayResume","token":"t","epoch":"e","have_seq":17,"oldest_audio_offset":5,"x":1}'
        assert read(text) == GatewayResume("t", "e", 17, 5)
        assert read('{"token":"t","epoch":"e","have_seq":0,"type":"GatewayResume"}') == GatewayResume(
            "t", "e", 0
        )

    def test_a_gap(self) -> None:
        """`from` is a word of Python, not of the wire."""
        assert read('{"type":"GatewayGap","from":640,"to":720}') == GatewayGap(640, 720)

    @pytest.mark.parametrize(
        "text",
        [
            '{"type":"Finalize"}',
            '{"token":"t"}',
            '{"type":7}',
            "[1]",
            "no JSON",
            '{"type":"GatewayGap"',
            "[" * 100_000,
        ],
    )
    def test_what_is_deepgrams(self, text: str) -> None:
        """Everything that is not called Gateway…: it goes on as it is."""
        assert read(text) is None

    @pytest.mark.parametrize(
        "text",
        [
            '{"type":"GatewayResume"}',
            '{"type":"GatewayResume","token":1,"epoch":"e","have_seq":0}',
            '{"type":"GatewayResume","token":"t","epoch":"e","have_seq":-1}',
            '{"type":"GatewayGap","from":1.5,"to":2}',
            '{"type":"GatewayGap","from":0,"to":9007199254740993}',
            '{"type":"GatewaySomething"}',
        ],
    )
    def test_what_is_nobodys(self, text: str) -> None:
        """Ours by name, but not as it should be."""
        with pytest.raises(msgspec.ValidationError):
            read(text)


class TestNumbers:
    def test_each_message_has_the_next(self) -> None:
        """In an extra key at the end; the rest stays byte for byte."""
        kept = resumption()
        assert kept.number(b'{"type":"X", "a": 1}') == b'{"type":"X", "a": 1,"gateway":{"seq":1}}'
        assert kept.number(b'{"type":"Y"}\n ') == b'{"type":"Y","gateway":{"seq":2}}'
        assert kept.seq == 2

    def test_it_joins_what_is_there(self) -> None:
        """A message says one `gateway` at most."""
        raw = b'{"type":"Results","gateway":{"epoch":2,"gaps":[{"start":1}]}}'
        numbered = resumption().number(raw)
        assert numbered == b'{"type":"Results","gateway":{"epoch":2,"gaps":[{"start":1}],"seq":1}}'

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"type":"R","extra":{"a":"b","gateway":{"x":1}}}',
            b'{"type":"R","extra":{"a":"b","gateway":{"x":1},"c":2}}',
            b'{"type":"R","list":[{"a":1,"gateway":{"x":{}}}]}',
            rb'{"type":"R","transcript":"a,\"gateway\":{"}',
        ],
    )
    def test_what_only_looks_like_it(self, raw: bytes) -> None:
        """The word may stand elsewhere in what Deepgram says."""
        numbered = json.loads(resumption().number(raw))
        assert numbered == {**json.loads(raw), "gateway": {"seq": 1}}


class TestAcks:
    def test_only_when_something_moved(self) -> None:
        """Offsets, or a number."""
        kept = resumption()
        assert kept.ack(0, 0, 1.0) is None
        ack = kept.ack(640, 320, 1.0)
        assert ack is not None
        assert json.loads(ack) == {
            "type": "GatewayAck",
            "received": 640,
            "durable": 0,
            "final": 320,
            "seq": 0,
        }
        assert kept.ack(640, 320, 1.0) is None
        kept.number(b'{"type":"X"}')
        assert json.loads(kept.ack(640, 320, 1.0) or b"{}")["seq"] == 1

    def test_they_never_fall(self) -> None:
        """Not even if what they are made of does (continuity.md I14)."""
        kept = resumption()
        kept.ack(640, 320, 1.0)
        assert kept.ack(640, 0, 1.0) is None
        assert json.loads(kept.ack(641, 0, 1.0) or b"{}")["final"] == 320

    def test_the_last_one_may_be_lost(self) -> None:
        """After a resume it is said again."""
        kept = resumption()
        token = json.loads(kept.hello(RATE))["token"]
        said = kept.ack(640, 320, 1.0)
        kept.resume(asks(token), 640, RATE)
        assert kept.ack(640, 320, 1.0) == said
        assert kept.ack(640, 320, 1.0) is None


class TestComingBack:
    def test_the_first_message(self) -> None:
        """All that a client needs to come back."""
        hello = json.loads(resumption(window=120.0).hello(RATE))
        assert hello == {
            "type": "GatewaySession",
            "session": "session-1",
            "epoch": "epoch-1",
            "token": "token-1",
            "window_s": 120,
            "ack_every_ms": 1000,
            "bytes_per_second": RATE,
        }

    def test_the_answer_and_what_is_lacking(self) -> None:
        """Byte for byte as it was (continuity.md I15)."""
        kept = resumption()
        kept.hello(RATE)
        said = [kept.number(message(n)) for n in range(10)]
        request = asks("token-1", 7)
        assert kept.judge(request) is Verdict.WELCOME
        answer, *tail = kept.resume(request, 655_360, RATE)
        assert tail == said[7:]
        assert json.loads(answer) == {
            "type": "GatewayResumed",
            "session": "session-1",
            "epoch": "epoch-1",
            "recovered": True,
            "audio_offset": 655_360,
            "token": "token-2",
            "next_seq": 8,
            "window_s": 100,
            "ack_every_ms": 1000,
            "bytes_per_second": RATE,
        }

    def test_another_session_instead(self) -> None:
        """It begins at nothing, and can be come back to."""
        kept = resumption()
        answer = json.loads(kept.instead(RATE))
        assert (answer["recovered"], answer["audio_offset"], answer["next_seq"]) == (False, 0, 1)
        assert kept.judge(asks(answer["token"])) is Verdict.WELCOME

    def test_a_lost_answer_locks_nobody_out(self) -> None:
        """The old token is good until the new one is used, and no longer."""
        kept = resumption()
        kept.hello(RATE)
        kept.resume(asks("token-1"), 0, RATE)
        assert kept.judge(asks("token-1")) is kept.judge(asks("token-2")) is Verdict.WELCOME
        kept.resume(asks("token-1"), 0, RATE)
        assert kept.judge(asks("token-2")) is Verdict.STRANGER, "it never arrived"
        assert kept.judge(asks("token-1")) is kept.judge(asks("token-3")) is Verdict.WELCOME
        kept.resume(asks("token-3"), 0, RATE)
        assert kept.judge(asks("token-1")) is Verdict.STRANGER
        assert kept.judge(asks("token-3")) is kept.judge(asks("token-4")) is Verdict.WELCOME

    @pytest.mark.parametrize("token", ["", "token-2", "token-11", "\ud800"])
    def test_a_stranger(self, token: str) -> None:
        """Without the token nothing is told, whatever else is right (security.md S51)."""
        kept = resumption()
        kept.hello(RATE)
        assert kept.judge(asks(token)) is Verdict.STRANGER
        assert kept.judge(asks(token, epoch="another")) is Verdict.STRANGER

    @pytest.mark.parametrize("request_", [asks("token-1", 4), asks("token-1", 0, "epoch-2")])
    def test_what_is_from_elsewhere(self, request_: GatewayResume) -> None:
        """Another epoch's, or results that were never said."""
        kept = resumption()
        kept.hello(RATE)
        for n in range(3):
            kept.number(message(n))
        assert kept.judge(request_) is Verdict.LOST

    def test_the_token_itself_is_not_kept(self) -> None:
        """Nor anything from which it could be had."""
        kept = resumption()
        token = json.loads(kept.hello(RATE))["token"]
        assert token not in repr(vars(kept))


class TestTheJournal:
    def test_it_is_bounded_in_bytes(self) -> None:
        """The oldest go; who lacks one of them has to begin anew (continuity.md I8)."""
        kept = resumption(journal_bytes=4096)
        kept.hello(RATE)
        for n in range(100):
            kept.number(message(n, pad="x" * 100))
            assert kept.journal_bytes <= 4096
        verdicts = [kept.judge(asks("token-1", have)) for have in range(101)]
        first = verdicts.index(Verdict.WELCOME)
        assert 60 < first < 80
        assert set(verdicts[:first]) == {Verdict.LOST}
        assert set(verdicts[first:]) == {Verdict.WELCOME}

    def test_one_that_does_not_fit_at_all(self) -> None:
        """Only who has it may come back."""
        kept = resumption(journal_bytes=4096)
        kept.hello(RATE)
        kept.number(message(0, pad="x" * 5000))
        assert kept.journal_bytes == 0
        assert kept.judge(asks("token-1", 0)) is Verdict.LOST
        assert kept.judge(asks("token-1", 1)) is Verdict.WELCOME

    def test_it_is_bounded_in_time(self) -> None:
        """What is older than the window goes."""
        kept = resumption()
        kept.hello(RATE)
        for n in range(300):
            kept.ack(n, 0, float(n))
            kept.number(message(n))
        assert kept.judge(asks("token-1", 198)) is Verdict.LOST
        assert kept.judge(asks("token-1", 199)) is Verdict.WELCOME

    def test_nothing_grows_old_while_nobody_is_there(self) -> None:
        """The last results before a loss may not have arrived, be the client back ever so late."""
        kept = resumption()
        kept.hello(RATE)
        kept.ack(0, 0, 10)
        kept.number(message(0))
        kept.ack(0, 0, 20)
        kept.number(message(1))  # nobody is there to be told how far the audio has come, for however long
        assert kept.judge(asks("token-1", 0)) is Verdict.WELCOME
        kept.resume(asks("token-1", 0), 0, RATE)
        kept.ack(0, 0, 119)
        assert kept.judge(asks("token-1", 0)) is Verdict.LOST
        assert kept.judge(asks("token-1", 1)) is Verdict.WELCOME


@given(
    st.lists(st.tuples(st.integers(0, 400), st.floats(0, 40), st.booleans()), max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_all_or_nothing(said: list[tuple[int, float, bool]], haves: list[int]) -> None:
    """Numbers are without holes, a resume gives exactly what is lacking or nothing (continuity.md I15)."""
    kept = resumption(journal_bytes=4096)
    token = json.loads(kept.hello(RATE))["token"]
    now, sent = 0.0, []
    for n, (length, pause, annotated) in enumerate(said):
        now += pause
        kept.ack(n, 0, now)
        notes = {"gateway": {"epoch": 2}} if annotated else {}
        raw = msgspec.json.encode({"type": "R", "n": n, "pad": "p" * length, **notes})
        sent.append(kept.number(raw))
        assert kept.journal_bytes <= 4096
        assert json.loads(sent[-1]) == {
            **json.loads(raw),
            "gateway": {**notes.get("gateway", {}), "seq": n + 1},
        }
    for have in haves:
        if kept.judge(asks(token, have)) is Verdict.WELCOME:
            answer, *tail = kept.resume(asks(token, have), 0, RATE)
            assert tail == sent[have:]
            assert have <= len(sent)
            token = json.loads(answer)["token"]
        else:
            assert have > len(sent) or sum(map(len, sent[have:])) > 4096 or now > 100
