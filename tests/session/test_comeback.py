"""A client that loses its connection and comes back, as the wire sees it (docs/resume.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.config import ResumeConfig
from gateway.deepgram.errors import NET_0001
from gateway.deepgram.listen import ListenV2
from gateway.session.events import (
    Accept,
    Broke,
    Close,
    Deliver,
    Detached,
    Dial,
    Ended,
    Gap,
    GivenUp,
    HangUp,
    Recognised,
    Restored,
    Resumed,
)
from gateway.session.resume import GatewayResume, Verdict
from gateway.session.states import State
from tests.playbook import (
    MULAW,
    RATE,
    START,
    Output,
    Playbook,
    Step,
    Up,
    audio,
    gone,
    heard,
    lost,
    opened,
    refused,
    returned,
    said,
    shut_down,
    up,
    wait,
)
from tests.session.results import final, interim, metadata, told

CLOSE = '{"type":"CloseStream"}'
FINALIZE = '{"type":"Finalize"}'
KEEPALIVE = '{"type":"KeepAlive"}'
EXACT = {"seam_strategy": "exact", "client_idle": 0}


def in_call(query: str = MULAW, *, resume: dict[str, Any] | None = None, **settings: Any) -> Playbook:
    """A call that may be resumed, and whose upstream connection is open."""
    config = ResumeConfig(**(resume or {}))
    book = Playbook(query, resume=config, **{**EXACT, **settings}) << Dial(1) >> opened() << Accept("rid")
    return book << told(type="GatewaySession", token="token-1", bytes_per_second=RATE)


def numbered(seq: int, **members: Any) -> Callable[[Output], bool]:
    """A message with this number and these members."""

    def check(output: Output) -> bool:
        assert isinstance(output, Deliver)
        message = json.loads(output.raw)
        return bool(message["gateway"]["seq"] == seq and members.items() <= message.items())

    return check


def ack(received: float, final: float, seq: int) -> Callable[[Output], bool]:
    """Offsets in seconds."""
    at = {"received": round(received * RATE), "final": round(final * RATE)}
    return told(type="GatewayAck", durable=0, seq=seq, **at)


def resumed(offset: float, seq: int, token: str, away: float = 0.0) -> Callable[[Playbook], None]:
    """What a client is answered; `seq` is the next number."""

    def check(book: Playbook) -> None:
        _ = (
            book
            << Resumed(away, round(offset * RATE))
            << told(
                type="GatewayResumed",
                recovered=True,
                audio_offset=round(offset * RATE),
                next_seq=seq,
                token=token,
            )
        )

    return check


def gap(start: float, stop: float) -> Step:
    return said(f'{{"type":"GatewayGap","from":{round(start * RATE)},"to":{round(stop * RATE)}}}')


class TestWhileItLasts:
    def test_numbers_and_acks(self) -> None:
        """What is said once is numbered; audio is acknowledged once a second if anything moved."""
        book = in_call() >> audio(0.1) << up(0, 0.1) >> heard(interim(0, 0.1))
        book << told(is_final=False, start=0)
        book = book >> heard(b'{"type":"SpeechStarted","channel":[0,1],"timestamp":0.0}')
        book << numbered(1, type="SpeechStarted")
        book = book >> heard(final(0, 0.05)) << numbered(2, is_final=True) >> wait(1) << ack(0.1, 0.05, 2)
        book = book >> wait(2.9) >> audio(0.1) << up(0.1, 0.2) >> wait(0.1) << ack(0.2, 0.05, 2) >> wait(3)

    def test_interims_and_plain_clients_have_none(self) -> None:
        """The very bytes go on."""
        raw = interim(0, 0.1)
        (deliver,) = (in_call() >> audio(0.1) << up(0, 0.1) >> heard(raw)).out()
        assert isinstance(deliver, Deliver)
        assert deliver.raw is raw
        book = Playbook(MULAW) << Dial(1) >> opened() << Accept("rid") >> audio(0.1) << up(0, 0.1)
        raw = final(0, 0.1)
        (deliver,) = (book >> heard(raw)).out()
        assert isinstance(deliver, Deliver)
        assert deliver.raw is raw

    def test_what_is_ours_is_not_forwarded(self) -> None:
        """A GatewayResume that comes again has no effect; other messages are Deepgram's."""
        again = '{"type":"GatewayResume","token":"token-1","epoch":"epoch","have_seq":0}'
        in_call() >> said(again) >> said('{"type":"New"}') << Up('{"type":"New"}')

    def test_a_plain_client_may_say_anything(self) -> None:
        """Nothing of this is known where it was not asked for."""
        book = Playbook(MULAW) << Dial(1) >> opened() << Accept("rid")
        book >> said('{"type":"GatewayGap"}') << Up('{"type":"GatewayGap"}')


class TestDetached:
    def test_pending_words_become_final(self) -> None:
        """Deepgram is asked at once; what it says waits for the client (faults.md 30)."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> gone() << Detached() << Up(FINALIZE)
        book = book >> heard(final(0, 0.2)) << numbered(1, start=0) >> wait(2)
        assert book.session.detached
        book >> returned("token-1", 0)
        resumed(0.2, 1, "token-2", 2.0)(book)
        book << numbered(1, start=0) >> audio(0.1) << up(0.2, 0.3)

    def test_what_the_client_has_is_not_said_again(self) -> None:
        """From have_seq + 1 on, byte for byte (continuity.md I15)."""
        book = in_call() >> audio(0.3) << ...
        book = book >> heard(final(0, 0.1)) << numbered(1) >> heard(final(0.1, 0.2))
        (second,) = book.out()
        book = book >> gone() << Detached() << Up(FINALIZE) >> heard(final(0.2, 0.3))
        (third,) = book.out()
        book >> returned("token-1", 1)
        resumed(0.3, 2, "token-2")(book)
        tail = book.out()
        assert isinstance(second, Deliver)
        assert isinstance(third, Deliver)
        assert [d.raw for d in tail if isinstance(d, Deliver)] == [second.raw, third.raw]

    @pytest.mark.parametrize("code", [1001, 1005, 1011, 4408])
    def test_other_closes_are_losses(self, code: int) -> None:
        """Only 1000 is a leave."""
        in_call() >> audio(0.1) << up(0, 0.1) >> gone(code) << Detached() << Up(FINALIZE)

    def test_a_leave_is_a_leave(self) -> None:
        """1000, and the session ends as one of a plain client."""
        book = in_call() >> audio(0.1) << up(0, 0.1) >> gone(1000) << Up(CLOSE)
        book = book >> heard(final(0, 0.1)) << ... >> heard(metadata(0.1)) >> lost(1000)
        assert book.out()[-2:] == [HangUp(1), Ended("completed")]

    def test_silence_is_a_loss(self) -> None:
        """A dead network tells nobody: the kernel needs longer than we wait for a frame (faults.md 30)."""
        book = in_call(client_idle=10) >> audio(0.2) << up(0, 0.2) >> heard(final(0, 0.1)) << numbered(1)
        book = book >> wait(9.9) << ... >> wait(0.1) << Close(1011, NET_0001) << Detached() << Up(FINALIZE)
        book = book >> heard(final(0.1, 0.2)) << numbered(2) >> wait(4)
        assert book.out() == [Up(KEEPALIVE)]
        book = book >> gone() >> returned("token-1", 0)
        resumed(0.2, 1, "token-2", 4.0)(book)
        book = book << numbered(1, start=0) << numbered(2, start=0.1) >> audio(0.1) << up(0.2, 0.3)
        book >> wait(9.9) << ... >> wait(0.1) << Close(1011, NET_0001) << Detached() << Up(FINALIZE)

    def test_the_connection_is_held_then_ended(self) -> None:
        """Kept alive for a while; audio that comes later goes to another, on the same clock."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> gone() << Detached() << Up(FINALIZE)
        book = book >> heard(final(0, 0.2)) << ... >> wait(14.9)
        assert book.out() == [Up(KEEPALIVE)] * 3
        book = book >> wait(0.1) << Up(CLOSE) >> heard(metadata(0.2)) >> lost(1000)
        book = book >> wait(60) >> returned("token-1", 1)
        resumed(0.2, 2, "token-2", 75.0)(book)
        book = book >> audio(0.1) << Dial(2) >> opened("two") << Restored(2, 0.0) << up(0.2, 0.3)
        book >> heard(final(0, 0.1, rid="two")) << numbered(2, start=0.2, duration=0.1)

    def test_audio_never_follows_a_close(self) -> None:
        """A connection that was asked to end gets no more; what it still says is welcome."""
        book = in_call(resume={"hold_upstream": 0.0}) >> audio(0.2) << up(0, 0.2)
        book = book >> gone() << Detached() << Up(FINALIZE) >> wait(0) << Up(CLOSE) >> returned("token-1", 0)
        resumed(0.2, 1, "token-2")(book)
        book = book >> audio(0.1) >> heard(final(0, 0.2)) << numbered(1, start=0) >> heard(metadata(0.2))
        book = book >> lost(1000) << Dial(2) >> opened("two") << Restored(2, 0.0) << up(0.2, 0.3)

    def test_one_that_does_not_end(self) -> None:
        """It is given up after a while, with what it owes."""
        book = in_call(resume={"hold_upstream": 0.0}, finish=5.0) >> audio(0.2) << up(0, 0.2)
        book = book >> gone() << Detached() << Up(FINALIZE) >> wait(0) << Up(CLOSE) >> wait(4.9) >> wait(0.1)
        book = book << HangUp(1) << Broke(1, 1006, "stalled: no last results", 0.2) << Dial(2)
        book = book >> opened("two") << Restored(2, 0.2) << up(0, 0.2) << Up(FINALIZE)
        book = book >> heard(final(0, 0.2, rid="two")) << numbered(1) >> wait(1) << Up(CLOSE)
        book = book >> lost(1000) >> wait(30)
        assert book.session.state is State.RECONNECTING

    def test_one_that_took_no_close(self) -> None:
        """It could not be written any more, and is not for the next connection."""
        book = in_call(resume={"hold_upstream": 0.0}) >> audio(0.2) << up(0, 0.2)
        book = book >> gone() << Detached() << Up(FINALIZE)
        book.session.handle_timer(book.now)
        book = book >> lost() << Broke(1, 1006, "", 0.2) >> wait(0.5) << Dial(2)
        book >> opened("two") << Restored(2, 0.2) << up(0, 0.2) << Up(FINALIZE)

    def test_one_that_is_lost_meanwhile(self) -> None:
        """What was owed is had from the next; that one is ended too, without being asked twice."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> gone() << Detached() << Up(FINALIZE) >> lost()
        book = book << Broke(1, 1006, "", 0.2) >> wait(0.5) << Dial(2) >> opened("two") << Restored(2, 0.2)
        book = book << up(0, 0.2) << Up(FINALIZE) >> heard(final(0, 0.2, rid="two")) << numbered(1)
        book = book >> wait(15) << Up(KEEPALIVE) << Up(KEEPALIVE) << Up(KEEPALIVE) << Up(CLOSE)
        book >> lost(1000) >> wait(100)

    def test_the_window_ends(self) -> None:
        """As if the client had left: and there is nobody for whom to dial (continuity.md I22)."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> gone() << Detached() << Up(FINALIZE)
        book = book >> heard(final(0, 0.2)) << ... >> wait(15) << ... >> lost(1000) >> wait(105)
        book << GivenUp(120.0) << Close(1000) << HangUp(1) << Ended("completed")
        assert book.session.get_timer() is None
        assert book.session.judge(GatewayResume("token-1", "epoch", 0)) is Verdict.LOST
        assert book.session.judge(GatewayResume("other", "epoch", 0)) is Verdict.STRANGER

    def test_the_window_ends_while_something_is_owed(self) -> None:
        """It is had, and only then is the session over."""
        book = in_call(resume={"window": 1.0, "hold_upstream": 1.0}) >> audio(0.2) << up(0, 0.2)
        book = book >> gone() << Detached() << Up(FINALIZE) >> lost() << ... >> wait(0.9) << Dial(2)
        book = book >> wait(0.1) << GivenUp(1.0) >> opened("two") << Restored(2, 0.2) << up(0, 0.2)
        book = book << Up(FINALIZE) << Up(CLOSE) >> heard(final(0, 0.2, rid="two")) << ... >> lost(1000)
        book << Close(1000) << HangUp(2) << Ended("completed")

    def test_silence_is_no_fault_of_who_is_not_there(self) -> None:
        """NET-0001 is for clients that are, and starts anew when one is back."""
        book = in_call(client_idle=10.0) >> audio(0.1) << up(0, 0.1) >> heard(final(0, 0.1)) << ...
        book = book >> gone() << Detached() << Up(FINALIZE) >> wait(14) << ... >> returned("token-1", 1)
        resumed(0.1, 2, "token-2", 14.0)(book)
        book = book >> wait(9.9) << ...
        assert book.session.state is State.STREAMING
        assert Detached() in (book >> wait(0.2)).out()

    def test_nothing_to_finalise(self) -> None:
        """No dial for the sake of a Finalize."""
        book = (
            in_call() >> audio(0.1) << ... >> heard(final(0, 0.1)) << ... >> lost() << Broke(1, 1006, "", 0)
        )
        book >> gone() << Detached() >> wait(100)

    def test_flux_has_no_finalize(self) -> None:
        """There the turn waits."""
        query = f"model=flux-general-en&encoding=mulaw&sample_rate={RATE}"
        book = Playbook(query, ListenV2(), resume=ResumeConfig()) << Dial(1) >> opened() << Accept("rid")
        book = book << ... >> audio(0.1) << up(0, 0.1) >> gone() << Detached() >> wait(15) << Up(CLOSE)

    def test_before_the_101(self) -> None:
        """Who has no token cannot come back."""
        book = Playbook(resume=ResumeConfig()) << Dial(1) >> gone()
        book << HangUp(1) << Ended("abandoned")


class TestTakeover:
    def test_while_the_old_connection_lives(self) -> None:
        """Nothing is finalised, nothing said twice; the session goes on where it is."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> heard(final(0, 0.1)) << numbered(1)
        book >> returned("token-1", 1)
        resumed(0.2, 2, "token-2")(book)
        book >> audio(0.1) << up(0.2, 0.3) >> wait(1) << ack(0.3, 0.1, 1)

    def test_a_lost_answer(self) -> None:
        """The same request again has the same effect."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> heard(final(0, 0.1)) << numbered(1)
        book >> returned("token-1", 0)
        resumed(0.2, 1, "token-2")(book)
        book = book << numbered(1) >> gone() << Detached() << Up(FINALIZE) >> returned("token-1", 0)
        resumed(0.2, 1, "token-3")(book)
        book << numbered(1)


class TestTheEnd:
    def ended(self, **settings: Any) -> Playbook:
        """Deepgram has said its last."""
        book = in_call(**settings) >> audio(0.1) << up(0, 0.1) >> said(CLOSE) << Up(CLOSE)
        book = book >> heard(final(0, 0.1)) << numbered(1) >> heard(metadata(0.1)) >> lost(1000)
        return book << numbered(2, type="Metadata", duration=0.1) << Close(1000) << HangUp(1)

    @pytest.mark.parametrize("code", [1000, 1005])
    def test_an_answered_close_is_the_end(self, code: int) -> None:
        """Whatever code the client's frame has."""
        book = self.ended()
        assert book.session.state is State.HELD
        book >> gone(code) << Ended("completed")
        assert book.session.get_timer() is None

    def test_an_unanswered_close_is_not(self) -> None:
        """The client comes back for what it lacks, and is closed again."""
        book = self.ended() >> gone() << Detached() >> wait(60) >> returned("token-1", 1)
        resumed(0.1, 2, "token-2", 60.0)(book)
        book = book << numbered(2, type="Metadata") << Close(1000) >> audio(0.1) >> said(CLOSE) >> gone(1000)
        book << Ended("completed")

    def test_nobody_comes(self) -> None:
        """It ends with the window all the same (continuity.md I22)."""
        book = self.ended() >> gone() << Detached() >> wait(119.9) >> wait(0.1)
        book << GivenUp(120.0) << Ended("completed")

    def test_lost_while_draining(self) -> None:
        """The end waits for the client."""
        book = in_call() >> audio(0.1) << up(0, 0.1) >> said(CLOSE) << Up(CLOSE) >> gone() << Detached()
        book = book >> heard(final(0, 0.1)) << numbered(1) >> heard(metadata(0.1)) >> lost(1000)
        book = book << numbered(2, type="Metadata") << HangUp(1) >> wait(5) >> returned("token-1", 0)
        resumed(0.1, 1, "token-2", 5.0)(book)
        book << numbered(1, is_final=True) << numbered(2, type="Metadata") << Close(1000)

    def test_back_while_draining(self) -> None:
        """CloseStream need not be said again, and does no harm."""
        book = in_call() >> audio(0.1) << up(0, 0.1) >> said(CLOSE) << Up(CLOSE) >> gone() << Detached()
        book >> returned("token-1", 0)
        resumed(0.1, 1, "token-2")(book)
        book = (
            book >> said(CLOSE) >> heard(final(0, 0.1)) << numbered(1) >> heard(metadata(0.1)) >> lost(1000)
        )
        book << numbered(2) << Close(1000) << HangUp(1) >> gone(1000) << Ended("completed")

    def test_a_failure_waits_too(self) -> None:
        """Why it ended is said to who was not there."""
        book = in_call(own=False, annotate=False) >> audio(0.1) << up(0, 0.1) >> gone() << Detached()
        book = book << Up(FINALIZE) >> lost() << Broke(1, 1006, "", 0.1) >> wait(0.5) << Dial(2)
        book = book >> refused(400, b'{"err_msg":"No such model."}') << Gap(0.0, 0.1, "upstream_failed")
        book = book << HangUp(2) >> returned("token-1", 0)
        resumed(0.1, 1, "token-2", 0.5)(book)
        book << Close(1008, "No such model.") >> gone(1008) << Ended("failed")

    def test_a_shutdown_waits_for_nobody(self) -> None:
        """Who is not there cannot come back to this process."""
        book = in_call() >> audio(0.1) << up(0, 0.1) >> gone() << Detached() << Up(FINALIZE)
        book = book >> shut_down() << GivenUp(0.0) << Up(CLOSE) >> heard(final(0, 0.1)) << ...
        book >> lost(1000) << Close(1000) << HangUp(1) << Ended("completed")

    def test_a_shutdown_ends_what_is_held(self) -> None:
        """There too."""
        self.ended() >> gone() << Detached() >> shut_down() << GivenUp(0.0) << Ended("completed")

    def test_a_shutdown_with_a_client(self) -> None:
        """It is told so, and not waited for."""
        book = (
            in_call() >> audio(0.1) << up(0, 0.1) >> shut_down() << Up(CLOSE) >> heard(final(0, 0.1)) << ...
        )
        book = book >> heard(metadata(0.1)) >> lost(1000)
        book << numbered(2, type="Metadata") << Close(1012, "restart") << HangUp(1) << Ended("completed")


class TestWhatTheClientLeftOut:
    def test_times_stay_true(self) -> None:
        """A declared gap, a Finalize before it, and later results lie behind it."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> gap(0.2, 10.2)
        book = book << Gap(0.2, 10.2, "client_discarded") << Up(FINALIZE) >> audio(0.2) << up(0.2, 0.4)
        book = book >> heard(final(0, 0.2, from_finalize=True, words=[("a", 0.1, 0.2)]))
        gaps = [{"start": 0.2, "stop": 10.2, "reason": "client_discarded"}]
        book = book << numbered(1, start=0.0, duration=0.2, gateway={"gaps": gaps, "seq": 1})
        book = book >> wait(1) << ack(10.4, 10.2, 1) >> heard(interim(0.2, 0.3, words=[("b", 0.2, 0.3)]))
        (deliver,) = book.out()
        assert isinstance(deliver, Deliver)
        message = json.loads(deliver.raw)
        assert (message["start"], message["duration"]) == (10.2, 0.1)
        word = message["channel"]["alternatives"][0]["words"][0]
        assert (word["start"], word["end"]) == (10.2, 10.3)
        book = book >> heard(b'{"type":"SpeechStarted","channel":[0,1],"timestamp":0.2}')
        book = book << numbered(2, timestamp=10.2)
        book = book >> heard(b'{"type":"UtteranceEnd","channel":[0,1],"last_word_end":0.2}')
        book = book << numbered(3, last_word_end=0.2) >> heard(final(0.2, 0.4)) << numbered(4, start=10.2)
        book = book >> said(CLOSE) << Up(CLOSE) >> heard(metadata(0.4)) >> lost(1000)
        book << numbered(5, type="Metadata", duration=10.4)

    def test_a_result_across(self) -> None:
        """Deepgram need not heed a Finalize: words keep their places, and the window has the hole in it."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> gap(0.2, 10.2) << ... >> audio(0.2) << up(0.2, 0.4)
        words = [("a", 0.0, 0.1), ("b", 0.19, 0.25), ("c", 0.3, 0.4)]
        (deliver,) = (book >> heard(final(0, 0.4, words=words))).out()
        assert isinstance(deliver, Deliver)
        message = json.loads(deliver.raw)
        assert (message["start"], message["duration"]) == (0.0, 10.4)
        words = message["channel"]["alternatives"][0]["words"]
        assert [(w["start"], w["end"]) for w in words] == [(0.0, 0.1), (10.19, 10.25), (10.3, 10.4)]

    def test_a_break_after_it(self) -> None:
        """The next connection begins behind the hole, and times are still the client's."""
        book = in_call(seam_strategy="preroll") >> audio(0.2) << up(0, 0.2) >> gap(0.2, 10.2) << ...
        book = book >> heard(final(0, 0.2)) << ... >> audio(0.2) << up(0.2, 0.4) >> lost() << ...
        book = book >> wait(1) << ... >> opened("two") << Restored(2, 0.2) << up(0.2, 0.4)
        book = book >> heard(final(0, 0.2, rid="two", words=[("b", 0.0, 0.1)]))
        book = book << numbered(2, start=10.2, duration=0.2) >> wait(1) << ... >> gone() << ...
        assert book.session.audio_offset == round(10.4 * RATE)

    def test_a_break_before_the_final(self) -> None:
        """What lies before the hole is sent again, with what lies after it, and the Finalize between."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> gap(0.2, 10.2) << ... >> audio(0.2) << up(0.2, 0.4)
        book = book >> lost() << ... >> wait(1) << ... >> opened("two") << Restored(2, 0.4)
        book = book << up(0, 0.2) << Up(FINALIZE) << up(0.2, 0.4)
        book = book >> heard(final(0, 0.2, rid="two")) << numbered(1, start=0.0)
        book = book >> heard(final(0.2, 0.4, rid="two")) << numbered(2, start=10.2)

    def test_after_coming_back(self) -> None:
        """What was dropped while nobody was connected."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> heard(final(0, 0.2)) << ... >> gone() << ...
        book >> returned("token-1", 1)
        resumed(0.2, 2, "token-2")(book)
        book = book >> gap(0.2, 0.5) << Gap(0.2, 0.5, "client_discarded") << Up(FINALIZE) >> gap(0.5, 0.6)
        book = (
            book << Gap(0.5, 0.6, "client_discarded") << Up(FINALIZE) >> audio(0.1) << up(0.2, 0.3) >> gone()
        )
        book << ... >> returned("token-2", 1)
        resumed(0.7, 2, "token-3")(book)

    def test_it_cannot_be_overdone(self) -> None:
        """An overflow of the buffer across a hole is declared around it (continuity.md I5)."""
        book = (
            in_call(buffer=5.0) >> audio(0.5) << up(0, 0.1) << ... >> lost() << ... >> gap(0.5, 10.5) << ...
        )
        book = book >> audio(5.5) << ... >> wait(10) << ... >> opened("two")
        gaps = [event for _, _, event in book.all if isinstance(event, Gap)]
        assert gaps[0] == Gap(0.5, 10.5, "client_discarded")
        assert gaps[1] == Gap(0.0, 0.5, "buffer_overflow")
        assert gaps[2].start == 10.5
        assert len(gaps) == 3

    @pytest.mark.parametrize(
        "text",
        [
            '{"type":"GatewayGap","from":1600,"to":1599}',
            '{"type":"GatewayGap","from":1599,"to":1700}',
            '{"type":"GatewayGap","from":0,"to":1600}',
            '{"type":"GatewayGap"}',
            '{"type":"GatewayElse"}',
        ],
    )
    def test_elsewhere(self, text: str) -> None:
        """Who does not keep to the protocol is closed, and not waited for."""
        book = in_call() >> audio(0.2) << up(0, 0.2) >> said(text)
        (close, finish) = book.out()
        assert isinstance(close, Close)
        assert close.code == 4500
        assert finish == Up(CLOSE)
        book = book >> audio(0.1) >> gone() >> heard(final(0, 0.2)) << ... >> lost(1000)
        assert book.out()[-1] == Ended("completed")

    def test_half_a_sample(self) -> None:
        """A hole is a whole number of samples, wherever it is."""
        book = in_call(f"encoding=linear16&sample_rate={RATE // 2}") >> audio(0.2) << up(0, 0.2)
        book = book >> said('{"type":"GatewayGap","from":1600,"to":1602}') << ...
        (close, *_) = (book >> said('{"type":"GatewayGap","from":1602,"to":1605}')).out()
        assert isinstance(close, Close)
        assert close.code == 4500

    def test_there_is_a_limit(self) -> None:
        """A client cannot fill memory with holes (continuity.md I8)."""
        book = in_call() >> audio(0.1) << ...
        for n in range(1000):
            book = book >> said(f'{{"type":"GatewayGap","from":{800 + n},"to":{801 + n}}}') << ...
            book = book >> heard(final(0, 0.1, from_finalize=True)) << ...
        (close, *_) = (book >> said('{"type":"GatewayGap","from":1800,"to":1801}')).out()
        assert isinstance(close, Close)
        assert close.code == 4500

    def test_without_a_clock(self) -> None:
        """Bytes are counted; nobody knows how long they would have lasted."""
        book = Playbook("model=x", resume=ResumeConfig()) << Dial(1) >> opened() << Accept("rid")
        book = book << told(bytes_per_second=0) >> gap(0, 1.0) << Recognised("", "none")
        book = book << Gap(0.0, 0.0, "client_discarded") << ...
        assert book.session.audio_offset == RATE


class TestAnotherInstead:
    def test_it_begins_at_nothing(self) -> None:
        """The client has its 101 already; refusals come as closes."""
        config = ResumeConfig()
        book = Playbook(resume=config, accepted_as="theirs") << Dial(1) << Accept("theirs")
        book << told(type="GatewayResumed", recovered=False, audio_offset=0, next_seq=1)
        assert book.now == START
        book = book >> audio(0.1) >> opened("rid") << up(0, 0.1) >> heard(final(0, 0.1)) << numbered(1)

    def test_refused(self) -> None:
        """There is no handshake left to refuse."""
        book = Playbook(resume=ResumeConfig(), own=False, accepted_as="theirs") << ...
        book = book >> refused(401, b'{"err_msg":"No."}') << Close(1008, "No.") << HangUp(1)
        book >> gone(1008) << Ended("failed")
