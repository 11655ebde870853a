"""A call as the wire sees it, one rule at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.audio.clock import PACKETS
from gateway.deepgram.errors import NET_0001
from gateway.deepgram.listen import ListenV2
from gateway.deepgram.recogniser import Kind
from gateway.session.events import (
    Accept,
    Alert,
    Broke,
    Close,
    Deliver,
    Dial,
    Ended,
    Flooded,
    Gap,
    HangUp,
    Recognised,
    Refuse,
    Restored,
)
from gateway.session.protocol import OWN_CREDENTIAL
from gateway.session.states import State
from tests.fakes.muxer import cluster, ogg, ogg_header, wav_header, webm, webm_header
from tests.playbook import (
    LINEAR16,
    MULAW,
    PING,
    RATE,
    START,
    Output,
    Playbook,
    Step,
    Up,
    audio,
    empty_message,
    frames,
    gone,
    heard,
    lost,
    opened,
    refused,
    said,
    sent,
    shut_down,
    sound,
    unreachable,
    up,
    wait,
)
from tests.session.results import delivered, final, interim, metadata, told, window

CLOSE = '{"type":"CloseStream"}'
SKIPPED = Broke(1, 1006, "a final skipped audio", 0.15)
BEGAN = b'{"type":"SpeechStarted","channel":[0,1],"timestamp":0.5}'
KEEPALIVE = '{"type":"KeepAlive"}'
FINALIZE = '{"type": "Finalize"}'
CONFIGURE = '{"type":"Configure","keyterms":["a"]}'
EXACT = {"seam_strategy": "exact"}
MISSING = {"incomplete": True, "gaps": [{"start": 0.0, "stop": 0.02, "reason": "upstream_failed"}]}
FLUX = "model=flux-general-en&encoding=mulaw&sample_rate=8000"


def in_call(query: str = MULAW, **settings: Any) -> Playbook:
    """A call whose upstream connection is open."""
    return Playbook(query, **settings) << Dial(1) >> opened() << Accept("rid")


def flux(**settings: Any) -> Playbook:
    return Playbook(FLUX, ListenV2(), **settings) << Dial(1) >> opened() << Accept("rid")


def away(seconds: float) -> Step:
    """The loop stands still."""

    def step(book: Playbook) -> None:
        book.now += seconds
        book.session.handle_timer(book.now)

    return step


def went_up(outputs: list[Output]) -> bytes:
    """The audio among them."""
    messages = (output.message for output in outputs if isinstance(output, Up))
    return b"".join(message for message in messages if isinstance(message, bytes))


def outcome(book: Playbook) -> list[Output]:
    return [output for output in book.out() if not isinstance(output, Up)]


class TestTheHandshake:
    def test_the_101_follows_deepgrams(self) -> None:
        """The client is accepted when Deepgram has accepted, under Deepgram's request id."""
        book = Playbook() << Dial(1) >> wait(0.3) >> opened("their-id") << Accept("their-id")
        assert book.session.state is State.STREAMING

    def test_without_a_request_id_one_is_minted(self) -> None:
        """The Rust SDK refuses a 101 without `dg-request-id`."""
        Playbook() << Dial(1) >> opened("") << Accept("minted")

    def test_the_wait_ends(self) -> None:
        """A slow Deepgram does not hold up the client; no byte of its audio is lost (faults.md 1)."""
        book = Playbook(accept_wait_ms=2000) << Dial(1) >> wait(1.999) >> wait(0.001) << Accept("minted")
        book >> audio(0.5) >> wait(3) >> opened("late")
        assert book.out() == [up(0, 0.1), up(0.1, 0.2), up(0.2, 0.3), up(0.3, 0.5)]

    def test_no_wait_at_all(self) -> None:
        """With 0 the client is accepted at once."""
        Playbook(accept_wait_ms=0) << Dial(1) >> wait(0) << Accept("minted")

    @pytest.mark.parametrize("status", [400, 402, 403, 405, 414, 429])
    def test_a_definitive_answer_is_relayed(self, status: int) -> None:
        """Status, body, `dg-error`, `Retry-After` and the id as they came; nothing of the transport's."""
        headers = {
            "dg_error": "no",
            "Retry_After": "7",
            "dg_request_id": "r",
            "Content_Type": "application/json",
        }
        book = Playbook(own=False) << Dial(1)
        book >> refused(status, b'{"err_msg":"no"}', Date="x", Set_Cookie="x", **headers)
        relayed = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        book << Refuse(status, relayed, b'{"err_msg":"no"}') << HangUp(1) << Ended("refused")
        assert book.session.get_timer() is None

    @pytest.mark.parametrize("body", [b'{"err_msg":"Invalid credentials."}', b"", b"\xff<html>"])
    def test_our_own_key_refused_is_our_fault(self, body: bytes) -> None:
        """The client cannot mend it: 503, and the operator is told."""
        book = Playbook(own=True) << Dial(1) >> refused(401, body, dg_error="Invalid credentials.")
        text = "Invalid credentials." if body.startswith(b"{") else ""
        book << Alert(401, text)
        (refusal, *rest) = book.out()
        assert isinstance(refusal, Refuse)
        assert refusal.status == 503
        assert json.loads(refusal.body)["err_msg"] == OWN_CREDENTIAL.message
        assert b"credential" not in refusal.body.lower()
        assert {"Retry-After", "dg-error", "dg-request-id"} <= dict(refusal.headers).keys()
        assert rest == [HangUp(1), Ended("refused")]

    def test_the_clients_key_refused_is_the_clients(self) -> None:
        """Deepgram's 401 goes to whoever sent the key."""
        book = Playbook(own=False) << Dial(1) >> refused(401, b"{}", dg_error="Invalid credentials.")
        book << Refuse(401, (("dg-error", "Invalid credentials."),), b"{}") << HangUp(1) << Ended("refused")

    @pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
    def test_a_passing_fault_is_retried(self, status: int) -> None:
        """Until the wait ends, in steps of the backoff; the client hears nothing of it (faults.md 9)."""
        book = Playbook(accept_wait_ms=2000) << Dial(1) >> refused(status, b"<html>") >> wait(0.5) << Dial(2)
        book >> unreachable() >> wait(1.0) << Dial(3) >> opened() << Accept("rid")

    def test_a_fault_that_does_not_pass_is_hidden(self) -> None:
        """After the wait the client is in, and its first audio brings the next dial."""
        book = Playbook(accept_wait_ms=2000) << Dial(1)
        book >> unreachable() >> wait(0.5) << Dial(2) >> unreachable() >> wait(1) << Dial(3) >> unreachable()
        book >> wait(0.5) << Accept("minted") >> audio(0.02) >> wait(1.5) << Dial(4) >> opened("late")
        book << up(0.0, 0.02)

    def test_retry_after_is_heeded(self) -> None:
        """A server that asks for time gets it, up to a minute."""
        book = Playbook(accept_wait_ms=0) << Dial(1) >> wait(0) << Accept("minted") >> audio(0.02)
        book = book >> refused(503, b"", Retry_After="5") >> wait(4.9) >> wait(0.1) << Dial(2)
        book = book >> said(KEEPALIVE) >> refused(503, b"", Retry_After="\xb2") >> wait(1) << Dial(3)

    def test_retry_after_has_a_bound(self) -> None:
        """A minute, whatever a server says."""
        book = (
            Playbook(accept_wait_ms=0, client_idle=0) << Dial(1) >> wait(0) << Accept("minted") >> audio(0.02)
        )
        book >> refused(503, b"", Retry_After="86400") >> wait(59) >> wait(1) << Dial(2)

    def test_refused_after_the_wait(self) -> None:
        """What can no longer be HTTP is a close with Deepgram's words."""
        book = Playbook(own=False, accept_wait_ms=0) << Dial(1) >> wait(0) << Accept("minted") >> audio(0.02)
        book >> refused(400, b'{"err_msg":"No such model."}') << Gap(0.0, 0.02, "upstream_failed")
        book << told(type="Error", description="No such model.", gateway=MISSING)
        book << Close(1008, "No such model.") << HangUp(1) << Ended("failed")

    def test_busy_after_the_wait(self) -> None:
        """429 is definitive only while it can still be relayed."""
        book = Playbook(own=False, accept_wait_ms=0) << Dial(1) >> wait(0) << Accept("minted") >> audio(0.02)
        book >> refused(429) >> wait(0.5) << Dial(2)

    def test_the_client_leaves_before_the_answer(self) -> None:
        """Nothing is left behind (continuity.md I22)."""
        book = Playbook() << Dial(1) >> gone() << HangUp(1) << Ended("abandoned") >> opened() >> wait(60)
        assert book.session.get_timer() is None

    def test_the_gateway_stops_before_the_answer(self) -> None:
        """A client that is not in is sent elsewhere."""
        book = Playbook() << Dial(1) >> shut_down()
        refusal, *rest = book.out()
        assert isinstance(refusal, Refuse)
        assert (refusal.status, dict(refusal.headers)["Retry-After"]) == (503, "1")
        assert rest == [HangUp(1), Ended("refused")]


class TestMessagesToTheClient:
    def test_raw_messages_pass_untouched(self) -> None:
        """The very object, so long as nothing is shifted (continuity.md I19)."""
        book = in_call() >> audio(2.0)
        book.out()
        for raw in (
            interim(0.0, 1.0000001),
            b' { "type" : "SpeechStarted", "channel":[0,1],"timestamp":0.5 } ',
            b'{"type":"Tomorrow","x":1e2}',
            final(0.0, 1.5),
        ):
            book >> heard(raw)
            (deliver,) = book.out()
            assert isinstance(deliver, Deliver)
            assert deliver.raw is raw

    def test_results_are_told_from_the_rest(self) -> None:
        """A sink may replace an interim by the next of its channel, nothing else."""
        book = in_call() >> audio(1.0)
        book.out()
        for raw, kind, channel in (
            (interim(0, 0.5, channel_index=[1, 2]), Kind.INTERIM, 1),
            (final(0, 0.5), Kind.FINAL, 0),
            (b'{"type":"X"}', Kind.OTHER, 0),
        ):
            book >> heard(raw) << Deliver(raw, kind, channel, 0.5)

    def test_one_request_id_for_the_client(self) -> None:
        """What Deepgram calls the connection is spliced to what the 101 said; no other byte changes."""
        book = Playbook(accept_wait_ms=0) << Dial(1) >> wait(0) << Accept("minted") >> audio(0.02)
        book >> opened("rid-one") << up(0, 0.02)
        raw = final(0, 0.02, rid="rid-one")
        book >> heard(raw) << delivered(raw.replace(b"rid-one", b"minted"))
        assert book.session.stream.request_ids == ["rid-one"]

    def test_the_id_may_only_be_in_the_messages(self) -> None:
        """A 101 without the header: the first message says it."""
        book = Playbook() << Dial(1) >> opened("") << Accept("minted") >> audio(0.02) << up(0, 0.02)
        book >> heard(final(0, 0.02, rid="theirs")) << delivered(final(0, 0.02, rid="minted"))

    def test_what_is_no_message_is_skipped(self) -> None:
        """Counted, and the call goes on (faults.md 23, faults.md 24)."""
        book = in_call() >> audio(0.02) << up(0, 0.02)
        bad = [b"", b"{", b"\xff", b"[]", b"{}", final(-1.0, 0.5), final(0, 1, channel_index=[3, 1])]
        bad += [b'{"type":"Results","metadata":{"request_id":"\xff"}}', b'{"type":' + b"[" * 100_000]
        for raw in bad:
            book >> heard(raw)
        assert book.session.stream.malformed == len(bad)
        book >> heard(final(0, 0.02)) << window(0, 0.02)

    def test_lag_is_audio_without_a_result(self) -> None:
        """Position alone measures it."""
        book = in_call() >> audio(0.2) << ... >> wait(1) >> heard(interim(0, 0.15)) << ...
        assert book.session.stream.lag == pytest.approx(0.05)


class TestMessagesOfTheClient:
    def test_audio_goes_up_message_by_message(self) -> None:
        """At real time nothing is joined, split or delayed."""
        book = in_call()
        for n in range(20):
            book >> audio(0.02) << up(n * 0.02, n * 0.02 + 0.02) >> wait(0.02)

    def test_keepalive_is_swallowed(self) -> None:
        """What goes up when is the gateway's business."""
        in_call() >> said('{"type": "KeepAlive"}') >> wait(1)

    def test_flux_does_not_know_keepalive(self) -> None:
        """It is Deepgram's to refuse."""
        flux() >> said('{"type": "KeepAlive"}') << Up('{"type": "KeepAlive"}')

    def test_unknown_json_is_forwarded(self) -> None:
        """In its place between the audio, and once only."""
        text = '{"type":"Sync", "n":1}'
        book = (
            in_call() >> audio(0.02) << up(0, 0.02) >> said(text) << Up(text) >> audio(0.02) << up(0.02, 0.04)
        )
        book >> lost() << Broke(1, 1006, "", 0.04) >> wait(0.5) << Dial(2) >> opened() << Restored(2, 0.04)
        book << up(0, 0.04)

    def test_what_is_no_json_is_forwarded(self) -> None:
        """Deepgram answers it; once, so it is not said again."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> said("hello") << Up("hello") >> lost() << ...
        book >> wait(0.5) << Dial(2) >> opened() << Restored(2, 0.02) << up(0, 0.02)

    @pytest.mark.parametrize("end", [said(CLOSE), empty_message()])
    def test_close_stream_ends_the_audio(self, end: Step) -> None:
        """Zero-length binary or text, it goes up as text after the last byte; later audio is ignored."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> end << Up(CLOSE)
        assert book.session.state is State.DRAINING
        book >> sent(b"late") >> said(FINALIZE)
        assert book.session.ignored_bytes == 4

    def test_finalize_is_positional(self) -> None:
        """Before any later byte, after every earlier one, also when those must wait (continuity.md I11)."""
        book = in_call() >> audio(2.0)
        book.out()
        book >> said(FINALIZE) >> audio(0.02) >> wait(5)
        goes_up = [out.message for out in book.out() if isinstance(out, Up)]
        at = goes_up.index(FINALIZE)
        assert b"".join(m for m in goes_up[at:] if isinstance(m, bytes)) == sound(
            2 * RATE, round(2.02 * RATE)
        )

    def test_configure_is_said_again(self) -> None:
        """A new connection hears it before the audio that followed it."""
        book = in_call(**EXACT) >> audio(0.02) << up(0, 0.02) >> said(CONFIGURE) << Up(CONFIGURE)
        book >> audio(0.02) << up(0.02, 0.04) >> heard(final(0, 0.04)) << window(0, 0.04)
        (
            book
            >> lost()
            << Broke(1, 1006, "", 0.0)
            >> audio(0.02)
            << Dial(2)
            >> opened("two")
            << Restored(2, 0.0)
        )
        book << Up(CONFIGURE) << up(0.04, 0.06)
        book >> lost() << Broke(2, 1006, "", 0.02) >> wait(0.5) << Dial(3) >> opened("three")
        book << Restored(3, 0.02) << Up(CONFIGURE) << up(0.04, 0.06)

    def test_a_configure_is_answered_once(self) -> None:
        """The client said it once; what repeats of it are answered with is the gateway's business."""
        success = b'{"request_id":"0f6c1f5e-7a3b-4c56-9d20-6b1f0a9e4c11","type":"ConfigureSuccess"}'
        book = in_call(**EXACT) >> said(CONFIGURE) << Up(CONFIGURE) >> heard(success) << ... >> audio(0.02)
        book = book << up(0, 0.02) >> lost() << ... >> wait(0.5) << Dial(2) >> opened("two")
        book << Restored(2, 0.02) << Up(CONFIGURE) << up(0, 0.02) >> heard(success)

    def test_a_configure_that_was_cut_off_is_answered(self) -> None:
        """By the connection that heard it again."""
        book = in_call(**EXACT) >> said(CONFIGURE) << Up(CONFIGURE) >> audio(0.02) << up(0, 0.02) >> lost()
        book = book << ... >> wait(0.5) << Dial(2) >> opened("two") << ...
        book >> heard(b'{"type":"ConfigureSuccess"}') << told(type="ConfigureSuccess")

    def test_a_refused_configure_is_not_repeated(self) -> None:
        """It had no effect, and would have none."""
        failure = b'{"type":"ConfigureFailure"}'
        book = in_call(**EXACT) >> said(CONFIGURE) << Up(CONFIGURE) >> heard(failure) << delivered(failure)
        book = book >> audio(0.02) << up(0, 0.02) >> lost() << ... >> wait(0.5) << Dial(2)
        book >> opened("two") << Restored(2, 0.02) << up(0, 0.02)

    def test_finalize_is_said_again_until_answered(self) -> None:
        """Once finals cover the audio before it, it has had its effect."""
        book = in_call(**EXACT) >> audio(0.02) << up(0, 0.02) >> said(FINALIZE) << Up(FINALIZE)
        book >> lost() << Broke(1, 1006, "", 0.02) >> wait(0.5) << Dial(2) >> opened() << Restored(2, 0.02)
        book << up(0, 0.02) << Up(FINALIZE) >> heard(final(0, 0.02, from_finalize=True)) << window(0, 0.02)
        book >> lost() << Broke(2, 1006, "", 0.0) >> audio(0.02) << Dial(3) >> opened() << Restored(3, 0.0)
        book << up(0.02, 0.04)

    def test_an_odd_byte_does_not_revive_a_finalize(self) -> None:
        """Half a sample can never be covered; the Finalize behind it was answered all the same."""
        book = (
            in_call(LINEAR16, **EXACT)
            >> sent(b"\1" * 1001)
            << Up(b"\1" * 1001)
            >> said(FINALIZE)
            << Up(FINALIZE)
        )
        book >> heard(final(0, 0.0625, from_finalize=True)) << window(0, 0.0625)
        book >> lost() << Broke(1, 1006, "", 0.0) >> sent(b"\2" * 1001) << Dial(2) >> opened()
        book << Restored(2, 0.0) << Up(b"\1" + b"\2" * 1001)


class TestKeepalive:
    def test_an_idle_connection_is_kept(self) -> None:
        """As text, every 4 s, only while nothing else goes up."""
        book = in_call(client_idle=0) >> audio(0.02) << up(0, 0.02) >> wait(3.9) >> audio(0.02)
        book << up(0.02, 0.04) >> wait(3.9) >> wait(0.1) << Up(KEEPALIVE) >> wait(4) << Up(KEEPALIVE)

    def test_flux_is_pinged(self) -> None:
        """It has no KeepAlive."""
        flux(pings=True, mute=True) >> wait(2.9) >> wait(0.1) << Up(PING) >> wait(1) << Up(PING)

    def test_no_connection_needs_none(self) -> None:
        """Neither while down nor at once when it is back."""
        book = in_call(client_idle=0) >> lost() >> wait(60) >> audio(0.02) << Dial(2)
        (
            book
            >> wait(30)
            >> opened()
            << Restored(2, 0.0)
            << up(0, 0.02)
            >> wait(3.9)
            >> wait(0.1)
            << Up(KEEPALIVE)
        )


class TestIdleClients:
    def test_a_silent_client_is_closed_as_deepgram_does(self) -> None:
        """Rest of the results, Metadata, then 1011 with the exact reason of NET-0001."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> wait(4) << Up(KEEPALIVE) >> wait(4) << Up(KEEPALIVE)
        book >> wait(2) << Up(CLOSE) >> heard(final(0, 0.02)) << window(0, 0.02)
        book >> heard(metadata(0.02)) >> lost(1000) << delivered(metadata(0.02))
        book << Close(1011, NET_0001) << HangUp(1) << Ended("completed")

    @pytest.mark.parametrize("at", [3.9, 4.0])
    def test_our_own_lateness_is_not_the_clients(self, at: float) -> None:
        """We were away until shortly before its time was up, or longer: it has all of it once more."""
        book = in_call(client_idle=4) >> wait(1) >> away(at - 1) << ... >> wait(3.9) << ...
        assert book.session.state is State.STREAMING
        assert Up(CLOSE) in (book >> wait(0.1)).out()

    def test_any_frame_is_a_sign_of_life(self) -> None:
        """KeepAlive, audio, even nonsense."""
        book = (
            in_call()
            >> wait(9)
            << ...
            >> said(KEEPALIVE)
            >> wait(9)
            << ...
            >> said("x")
            << ...
            >> wait(9)
            << ...
        )
        book = book >> audio(0.02) << up(0, 0.02) >> wait(9.9) << Up(KEEPALIVE) << Up(KEEPALIVE)
        assert book.session.state is State.STREAMING

    def test_it_can_be_turned_off(self) -> None:
        """0 is off; and Flux has no such rule."""
        for book in (in_call(client_idle=0), flux()):
            book >> wait(3600) << ...
            assert book.session.state is State.STREAMING

    def test_who_is_not_read_is_not_idle(self) -> None:
        """It is us who do not listen."""
        book = in_call(client_idle=0.5) >> audio(20.0) << ... >> wait(8) << ...
        assert book.session.state is State.STREAMING

    def test_idle_without_a_connection(self) -> None:
        """A connection is made to end the call properly."""
        book = in_call() >> lost(1011, "NET-0000") >> wait(10) << Dial(2)
        book >> opened() << Restored(2, 0.0) << Up(CLOSE) >> heard(metadata(0)) >> lost(1000)
        book << told(type="Metadata", duration=0.0) << Close(1011, NET_0001) << HangUp(2)
        book << Ended("completed")


class TestTheEnd:
    def test_metadata_is_held_until_the_end(self) -> None:
        """It says that the session ends, so it must not come before (continuity.md I12)."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE)
        book >> heard(final(0, 0.02)) << window(0, 0.02) >> heard(metadata(0.02)) >> wait(0.5)
        book >> lost(1000) << delivered(metadata(0.02)) << Close(1000) << HangUp(1) << Ended("completed")
        assert book.session.get_timer() is None

    def test_a_close_that_does_not_come_is_not_waited_for(self) -> None:
        """Metadata was the last word."""
        book = in_call() >> said(CLOSE) << Up(CLOSE) >> heard(metadata(0)) >> wait(1)
        book << delivered(metadata(0)) << Close(1000) << HangUp(1) << Ended("completed")

    def test_metadata_before_an_error_close_is_not_the_end(self) -> None:
        """Deepgram sends one before 1011 too; the client sees one only, with the whole call's duration."""
        book = in_call(**EXACT) >> audio(1.0) << up(0, 0.1)
        book.out()
        book >> heard(final(0, 0.5)) << window(0, 0.5) >> heard(metadata(1.0))
        book >> lost(1011, "NET-0000") << Broke(1, 1011, "NET-0000", 0.5) << Dial(2)
        book >> opened("two") << Restored(2, 0.5)
        book.out()
        book >> said(CLOSE) << Up(CLOSE) >> heard(final(0, 0.5, rid="two")) << window(0.5, 1.0)
        book >> heard(metadata(0.49, rid="two")) >> lost(1000)
        ids = {"upstream_request_ids": ["rid", "two"], "synthetic_fields": ["duration"]}
        book << told(type="Metadata", duration=1.0, request_id="rid", gateway=ids)
        book << Close(1000) << HangUp(2) << Ended("completed")

    def test_the_metadata_of_a_lost_connection_does_not_serve_the_next(self) -> None:
        """A call ends with the Metadata of the connection that heard its end (continuity.md I12)."""
        book = (
            in_call() >> audio(0.02) << up(0, 0.02) >> heard(final(0, 0.02)) << ... >> heard(metadata(0.02))
        )
        book = book >> lost(1011) << ... >> said(CLOSE) << Dial(2) >> opened("two") << ...
        book >> lost(1006) << Broke(2, 1006, "", 0.0) >> wait(0.5) << Dial(3)
        assert book.session.state is State.DRAINING

    def test_a_normal_close_before_close_stream_is_not_the_end(self) -> None:
        """The next connection must hear the tail and CloseStream, whatever the last one had heard."""
        book = (
            in_call() >> audio(3.0) << ... >> wait(3) << ... >> said(CLOSE) << Up(CLOSE) >> lost(1006) << ...
        )
        book = book >> wait(0.5) << Dial(2) >> opened("two") << ... >> lost(1000, "")
        book << Broke(2, 1000, "", 3.0)
        assert book.session.state is State.DRAINING

    def test_metadata_and_1011_instead_of_the_tail(self) -> None:
        """A connection that dies between CloseStream and its results is replaced (faults.md 27)."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE) >> heard(metadata(0.02))
        book >> lost(1011, "NET-0000") << Broke(1, 1011, "NET-0000", 0.02) >> wait(0.5) << Dial(2) >> wait(2)
        book >> opened("two") << Restored(2, 0.02) << up(0, 0.02) << Up(CLOSE)
        book >> heard(final(0, 0.02, rid="two")) << window(0, 0.02) >> heard(metadata(0.02, rid="two"))
        book >> lost(1000) << told(type="Metadata", duration=0.02)
        book << Close(1000) << HangUp(2) << Ended("completed")

    def test_metadata_of_timeless_audio(self) -> None:
        """Without a byte clock, the duration is what Deepgram counted on all connections together."""
        book = in_call("encoding=opus&sample_rate=48000") >> sent(b"one") << Up(b"one")
        book >> heard(final(0, 1.5)) << window(0, 1.5) >> lost() << Broke(1, 1006, "", 0.0)
        (
            book
            >> sent(b"two")
            << Dial(2)
            >> opened("two")
            << Gap(1.5, 1.5, "not_replayable")
            << Restored(2, 0.0)
            << Up(b"two")
            >> said(CLOSE)
            << Up(CLOSE)
        )
        (
            book
            >> heard(final(0, 0.5, rid="two"))
            << window(1.5, 2.0)
            >> heard(metadata(0.5, rid="two"))
            >> lost(1000)
        )
        book << told(type="Metadata", duration=2.0) << Close(1000) << HangUp(2) << Ended("completed")

    def test_flux_ends_without_status(self) -> None:
        """No Metadata, no code."""
        book = flux() >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE) >> lost(1005)
        book << Close(None) << HangUp(1) << Ended("completed")

    def test_deepgram_does_not_finish(self) -> None:
        """Another connection gets one chance; then the client is told (continuity.md I22)."""
        book = in_call(finish=10) >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE) >> wait(11)
        kinds = [type(out) for out in book.out() if not isinstance(out, Up)]
        assert kinds[:1] == [HangUp]
        assert kinds[-1] is Dial
        book = book << ... >> opened() << ... >> wait(11)
        outs = [out for out in book.out() if not isinstance(out, Up | Restored)]
        failed = Close(1011, "Deepgram did not finish in time")
        gap, error, *rest = outs
        assert gap == Gap(0.0, 0.02, "upstream_failed")
        assert isinstance(error, Deliver)
        assert json.loads(error.raw)["gateway"] == {"epoch": 2, **MISSING}
        assert rest == [failed, HangUp(2), Ended("failed")]

    def test_the_second_connection_finishes(self) -> None:
        """What the first one kept to itself is heard from the next (faults.md 14, 27)."""
        book = in_call(finish=10) >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE) >> wait(11)
        book = book << ... >> opened() << ... >> heard(final(0, 0.02)) << ... >> heard(metadata(0.02))
        book = book << ... >> lost(1000)
        assert outcome(book)[-1] == Ended("completed")
        assert "Gap" not in {type(out).__name__ for out in book.all}

    def test_the_client_disappears(self) -> None:
        """What it said is still transcribed."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> gone() << Up(CLOSE) >> heard(final(0, 0.02))
        book << window(0, 0.02) >> heard(metadata(0.02)) >> lost(1000)
        assert outcome(book)[-1] == Ended("completed")

    def test_the_client_disappears_while_draining(self) -> None:
        """Nothing changes but that nobody listens."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE) >> gone() >> gone()
        assert book.session.state is State.DRAINING
        book >> lost(1000)
        assert outcome(book)[-1] == Ended("completed")

    def test_the_client_disappears_without_a_word(self) -> None:
        """There is nothing to transcribe, so nobody is dialled."""
        book = in_call() >> lost() >> gone()
        assert outcome(book)[-1] == Ended("abandoned")

    def test_shutting_down(self) -> None:
        """Deepgram's last results, then the close that was given."""
        book = (
            in_call()
            >> audio(0.02)
            << up(0, 0.02)
            >> shut_down(1012, "restart")
            << Up(CLOSE)
            >> shut_down(1001)
        )
        book >> heard(final(0, 0.02)) << window(0, 0.02) >> heard(metadata(0.02)) >> lost(1000)
        book << delivered(metadata(0.02)) << Close(1012, "restart") << HangUp(1) << Ended("completed")

    def test_after_the_end_nothing_happens(self) -> None:
        """Whatever is still said to a session that is over."""
        book = (
            in_call()
            >> said(CLOSE)
            << Up(CLOSE)
            >> lost(1000)
            << Close(1000)
            << HangUp(1)
            << Ended("completed")
        )
        (
            book
            >> audio(1)
            >> said(FINALIZE)
            >> heard(final(0, 1))
            >> lost()
            >> gone()
            >> shut_down()
            >> opened()
        )
        book >> unreachable() >> refused(400) >> wait(99)
        assert book.session.get_timer() is None


class TestBackPressure:
    def test_a_client_ahead_of_real_time_is_not_read(self) -> None:
        """More than a second ahead at 1.25 times is too much; TCP tells the client."""
        book = in_call()
        for step, reading in (
            (audio(1.0), True),
            (audio(0.5), False),
            (wait(0.39), False),
            (wait(0.02), True),
        ):
            book = book >> step << ...
            assert book.session.reading is reading

    def test_a_backlog_of_timeless_audio_is_held_and_let_go(self) -> None:
        """Reading stops while the buffer is full, and goes on when it is empty, however long that takes."""
        book = in_call("encoding=opus", buffer_bytes=65536, client_idle=0) >> lost()
        steps = ((sent(b"x" * 70_000), False), (wait(30), False), (opened(), False), (wait(2), True))
        for step, reading in steps:
            book = book >> step << ...
            assert book.session.reading is reading

    def test_draining_reads_on(self) -> None:
        """The close of a client must be noticed."""
        book = in_call()
        for step, reading in ((audio(3.0), False), (said(CLOSE), True)):
            book = book >> step << ...
            assert book.session.reading is reading

    def test_a_client_that_says_too_much_is_slowed(self) -> None:
        """Four seconds' worth may come at once; beyond that it waits, which is told once (faults.md 38)."""
        book = in_call(max_messages_per_second=100, client_idle=0) >> frames(400)
        assert book.session.reading
        book = book >> frames(1) << Flooded("messages") >> frames(99)
        for seconds, reading in ((0.99, False), (0.02, True)):
            book = book >> wait(seconds)
            assert book.session.reading is reading
        for _ in range(20):
            book = book >> wait(1.0) << ... >> frames(99)
            assert book.session.reading
        book = book >> frames(1000) >> frames(1)
        assert not book.session.reading

    def test_finalizes_have_a_rate_of_their_own(self) -> None:
        """Each goes up in its place, one for each of many channels at once; a storm waits (faults.md 42)."""
        book = in_call(max_finalizes_per_second=2)
        for n in range(21):
            assert book.session.reading
            book = book >> audio(0.02) << up(n * 0.02, (n + 1) * 0.02) >> said(FINALIZE)
            if n == 20:
                book << Flooded("finalizes")
            book << Up(FINALIZE)
        for seconds, reading in ((0.49, False), (0.02, True)):
            book = book >> wait(seconds)
            assert book.session.reading is reading

    def test_the_longest_wait_counts(self) -> None:
        """A client that is ahead and says too much is read when both are over."""
        book = in_call(max_messages_per_second=100) >> frames(1000) << Flooded("messages")
        book = book >> audio(1.5) << ... >> wait(5.9) << ...
        assert not book.session.reading
        assert (book >> wait(0.2)).session.reading

    def test_a_storm_after_the_end_does_not_hide_the_close(self) -> None:
        """While last results are awaited it is slowed as before; when they are there its close is awaited."""
        book = in_call(max_messages_per_second=100) >> said(CLOSE) << Up(CLOSE)
        book = book >> frames(10_000) << Flooded("messages") >> heard(metadata(0))
        assert not book.session.reading
        book = book >> lost(1000) << ...
        assert book.session.reading
        assert (book >> frames(10_000)).session.reading

    def test_memory_that_is_wanted_elsewhere(self) -> None:
        """The oldest audio goes, down to a size; once: the buffer's own limit stays what it was."""
        book = in_call(client_idle=0) >> audio(4.0) << ... >> lost() << ...
        assert book.session.can_shrink
        book.session.shrink(2 * RATE, book.now)
        uplink = book.session.stream.uplink
        assert (uplink.buffer.start, len(uplink.buffer)) == (3 * RATE, RATE), "and a second of room"
        book.session.shrink(2 * RATE, book.now)
        assert len(uplink.buffer) == RATE
        book = book >> wait(0.5) << Dial(2) >> opened("two")
        assert Gap(0.0, 3.0, "buffer_overflow") in book.out()
        assert not in_call(overflow="pause").session.can_shrink
        assert not in_call("encoding=opus").session.can_shrink


class TestAfterTheEnd:
    def test_audio_is_ignored(self) -> None:
        """It has nowhere to go, and is not kept."""
        book = (
            in_call() >> audio(0.02) << up(0, 0.02) >> lost(1008) << ... >> wait(1) << ... >> opened() << ...
        )
        book = book >> lost(1008, "DATA-0000") << ...
        assert book.session.state is State.CLOSED
        kept = len(book.session.stream.uplink.buffer)
        book >> audio(0.02) >> audio(0.02)
        assert len(book.session.stream.uplink.buffer) == kept

    def test_after_close_stream_too(self) -> None:
        """Also while the last results are awaited."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE) >> audio(0.02)
        assert book.session.ignored_bytes == 160


class TestPackets:
    def test_packets_are_never_joined_or_split(self) -> None:
        """Compressed audio has no other boundaries."""
        packets = [bytes([n]) * (1 + n * 997 % 4000) for n in range(40)]
        book = Playbook("encoding=opus&sample_rate=48000") << Dial(1) >> wait(2) << Accept("minted")
        for packet in packets[:20]:
            book >> sent(packet)
        assert (book >> opened()).out() == [Up(packet) for packet in packets[:20]]
        for packet in packets[20:]:
            book = book >> sent(packet) << Up(packet)

    def test_unrecognised_audio_is_packets(self) -> None:
        """Without `encoding` and without a known magic number nothing is assumed."""
        book = in_call("model=nova-3") >> sent(b"\0" * 9)
        book << Recognised("", "none") << Up(b"\0" * 9)
        assert book.session.clock == PACKETS

    def test_a_container_may_be_joined(self) -> None:
        """Its bytes say themselves where they belong; sniffed at the first message."""
        book = Playbook("model=nova-3") << Dial(1) >> wait(2) << Accept("minted") >> sent(b"ID3\x04")
        book << Recognised("mp3", "none") >> sent(b"1234") >> opened() << Up(b"ID3\x041234")
        assert book.session.clock.container == "mp3"


class TestContainers:
    """Without `encoding` the first bytes say what they are, and where a new connection may begin."""

    def test_a_wav_has_an_exact_clock(self) -> None:
        """Its header goes first on each connection, and is no audio; it is paced like any other."""
        header, sound = wav_header(RATE), bytes(n % 251 for n in range(16_000))
        book = in_call("model=nova-3", **EXACT) >> sent(header[:20])
        assert book.session.continuity == "best_effort"
        book = book >> sent(header[20:] + sound[:8000]) << Recognised("wav", "exact")
        book = book << ... >> wait(0.1)
        assert went_up([output for _, _, output in book.all]) == header + sound[:8000]
        book << ...
        book >> heard(final(0, 0.5)) << window(0, 0.5) >> lost() << Broke(1, 1006, "", 0.5) << Dial(2)
        book >> opened("two") << Restored(2, 0.5) << Up(header)
        assert went_up(book.out()) == sound[4000:8000]
        book >> sent(sound)
        assert not book.session.reading
        assert went_up(book.out()) == sound[:4000]
        assert (book.session.continuity, book.session.stream.audio_seconds) == ("exact", 3.0)

    @pytest.mark.parametrize("name", ["ogg", "webm"])
    def test_opus_goes_on_at_a_place_it_may_begin_at(self, name: str) -> None:
        """The header, then whole pages or clusters; what was final already is cut."""
        packets = [bytes([8, n]) * 20 for n in range(100)]
        stream = ogg(packets) if name == "ogg" else webm(packets)
        book = in_call("model=nova-3", **EXACT)
        for at in range(0, len(stream), 100):
            book = book >> sent(stream[at : at + 100]) << ...
        out = [output for _, _, output in book.all]
        assert Recognised(name, "best_effort") in out
        assert went_up(out) == stream
        book >> heard(final(0, 0.9, words=[("first", 0.1, 0.3)])) << window(0, 0.9)
        book >> lost() << (lambda output: isinstance(output, Broke) and 1.0 < output.owed < 1.1) << Dial(2)
        (
            book
            >> opened("two")
            << (lambda output: isinstance(output, Restored) and 1.0 < output.replayed <= 1.2)
        )
        header = ogg_header() if name == "ogg" else webm_header() + cluster(b"", 800)
        rest = stream[len(ogg(packets[:40]) if name == "ogg" else webm(packets[:44])) :]
        book << Up(header) << Up(rest)
        begun = 0.8 if name == "ogg" else 0.88
        words = [("first", 0.0, 0.05), ("second", 0.2, 0.4)][name == "webm" :]
        (
            book
            >> heard(final(0, 1.0, rid="two", words=words))
            << told(start=0.9, duration=round(begun + 0.1, 6))
        )
        assert len(book.session.stream.uplink.buffer) < len(stream) / 4

    def test_what_can_not_be_followed_is_live_only(self) -> None:
        """The operator is told, and so is the client when something is lost."""
        packets = [bytes([8, n]) * 20 for n in range(100)]
        book = in_call("model=nova-3") >> sent(ogg(packets)) << Recognised("ogg", "best_effort") << ...
        book >> heard(final(0, 0.9)) << window(0, 0.9) >> heard(interim(0.9, 1.7))
        book << window(0.9, 1.7, Kind.INTERIM)
        book >> sent(bytes(100)) << Recognised("ogg", "none") << Up(bytes(100))
        assert not book.session.stream.uplink.buffer.messages
        book >> lost() << Broke(1, 1006, "", 0.0) >> sent(b"more") << Dial(2)
        book >> opened("two") << Gap(0.9, 1.7, "not_replayable") << Restored(2, 0.0)
        book << Up(ogg_header()) << Up(b"more") >> heard(final(0, 0.5, rid="two"))
        book << told(start=1.7, gateway={"gaps": [{"start": 0.9, "stop": 1.7, "reason": "not_replayable"}],
                                         "epoch": 2})  # fmt: skip

    def test_a_header_that_never_ends_goes_up_with_the_last_word(self) -> None:
        """What it would have become is not ours to guess."""
        book = in_call("model=nova-3") >> sent(ogg_header()[:40]) >> said(CLOSE)
        book << Recognised("ogg", "none") << Up(ogg_header()[:40]) << Up(CLOSE)

    def test_a_full_buffer(self) -> None:
        """Nobody listens, and the oldest audio goes: up to where one may begin."""
        packets = [bytes([8, n % 256]) * 500 for n in range(400)]
        stream = ogg(packets)
        book = in_call("model=nova-3", buffer_bytes=100_000, **EXACT) >> lost() << ...
        for at in range(0, len(stream), 1000):
            book = book >> sent(stream[at : at + 1000]) << ...
        assert len(book.session.stream.uplink.buffer) < 112_000
        book >> opened("two")
        (gap, *_) = (output for output in book.out() if isinstance(output, Gap))
        assert (gap.start, gap.reason) == (0.0, "buffer_overflow")
        assert 5.6 < gap.stop < 6.1
        rest = stream[-len(book.session.stream.uplink.buffer) :]
        assert rest.startswith(b"OggS")
        assert went_up([output for _, _, output in book.all]) == ogg_header() + rest

    def test_without_a_clock_a_loss_is_declared(self) -> None:
        """From the last final to where results had come; nothing once a Finalize was answered."""
        book = in_call("encoding=opus&sample_rate=48000", **EXACT)
        (
            book
            >> sent(b"one")
            << Up(b"one")
            >> heard(final(0, 1.5))
            << window(0, 1.5)
            >> sent(b"two")
            << Up(b"two")
        )
        book >> heard(interim(1.5, 2.25)) << window(1.5, 2.25, Kind.INTERIM)
        book >> lost() << Broke(1, 1006, "", 0.0) >> sent(b"three") << Dial(2) >> opened("two")
        book << Gap(1.5, 2.25, "not_replayable") << Restored(2, 0.0) << Up(b"three")
        book >> heard(final(0, 1.0, rid="two", from_finalize=True)) << window(2.25, 3.25)
        book >> lost() << Broke(2, 1006, "", 0.0) >> sent(b"four") << Dial(3) >> opened("three")
        (
            book
            << Restored(3, 0.0)
            << Up(b"four")
            >> said(CLOSE)
            << Up(CLOSE)
            >> heard(metadata(1.0, rid="three"))
        )
        book >> lost(1000)
        gap = {"start": 1.5, "stop": 2.25, "reason": "not_replayable"}
        ids = ["rid", "two", "three"]
        notes = {
            "upstream_request_ids": ids,
            "synthetic_fields": ["duration"],
            "incomplete": True,
            "gaps": [gap],
        }
        book << told(gateway={"epoch": 3, **notes})

    def test_a_call_that_fails_says_that_something_is_missing(self) -> None:
        """As it does with a clock."""
        book = in_call("encoding=opus&sample_rate=48000", **EXACT) >> sent(b"one") << Up(b"one")
        book = book >> said(CLOSE) << Up(CLOSE) >> wait(50) << ... >> unreachable()
        assert Gap(0.0, 0.0, "upstream_failed") in book.out()


@pytest.mark.parametrize("channels", ["²", "9" * 5000, "0", "-1", "x", "99"])
def test_nonsense_channels_cannot_break_a_call(channels: str) -> None:
    """The query is Deepgram's to refuse."""
    book = Playbook(f"encoding=mulaw&sample_rate=8000&multichannel=true&channels={channels}") << Dial(1)
    assert book.now == START


def test_a_result_that_needs_no_turn() -> None:
    """It is given back, and not an event; once Deepgram's last results are awaited, each sets a timer."""
    book = Playbook() << ... >> opened() << ... >> audio(1.0) << ...
    raw = interim(0.0, 0.5)
    given = book.session.upstream_message(book.epoch, raw, book.now)
    assert given == Deliver(raw, Kind.INTERIM, 0, 0.5)
    assert book.session.events_received() == []
    book >> said('{"type":"CloseStream"}') << ...
    assert book.session.upstream_message(book.epoch, raw, book.now) is None
    assert book.session.events_received() == [given]
