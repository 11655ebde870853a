"""One upstream connection after another, as the wire sees them, one rule at a time."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.deepgram.listen import ListenV2
from gateway.deepgram.recogniser import Kind
from gateway.session.events import (
    Accept,
    Broke,
    Close,
    Deliver,
    Dial,
    Ended,
    Gap,
    HangUp,
    Restored,
)
from gateway.session.stream import MOST_IDS
from tests.playbook import (
    LINEAR16,
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
    said,
    sent,
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


def lost_before_metadata() -> Playbook:
    """All is final, its redials are spent, and the connection is gone after CloseStream."""
    book = in_call(spent=True, finish=10, **EXACT) >> audio(0.2) << up(0, 0.2)
    book = book >> said(CLOSE) << Up(CLOSE) >> heard(final(0, 0.2)) << window(0, 0.2)
    return book >> lost() << Broke(1, 1006, "", 0.0)


def outcome(book: Playbook) -> list[Output]:
    return [output for output in book.out() if not isinstance(output, Up)]


class TestLooks:
    """When a connection is looked after."""

    def test_calls_are_looked_after_together(self) -> None:
        """Whenever they began: so that they find each other's code in the processor's caches."""
        at = []
        for before in (0.001, 0.013, 0.061):
            book = Playbook() << Dial(1) >> wait(before) >> opened() << Accept("rid")
            at.append(book.session.stream.timers.earliest)
        assert at[0] == at[1] == at[2]


class TestPauses:
    """No sound, and KeepAlive: what a client does that has nothing to say (faults.md 34)."""

    @pytest.mark.parametrize("pause", [12, 45])
    @pytest.mark.parametrize("query", [MULAW, LINEAR16, f"encoding=opus&sample_rate={RATE}"])
    def test_a_pause_costs_no_connection(self, query: str, pause: int) -> None:
        """Deepgram has as long for its first result after it as for any other."""
        frame = {MULAW: 0.1, LINEAR16: 0.2}.get(query, 0.8)  # opus: 64 kB/s, be it ever so much
        book = in_call(query)
        for n in range(25):
            book = book >> audio(frame) << ... >> wait(0.1) << ...
            if n == 20:
                book = book >> heard(final(0, 2)) << ...
        for _ in range(pause):
            book = book >> said(KEEPALIVE) << ... >> wait(1.0) << ...
        for _ in range(90):
            book = book >> audio(frame) << ... >> wait(0.1) << ...
        assert book.epoch == 1

    def test_a_mute_connection_is_noticed_after_one(self) -> None:
        """Ten seconds of speech without a result, whatever was before."""
        book = in_call()
        for _ in range(45):
            book = book >> said(KEEPALIVE) >> wait(1.0) << ...
        for n in range(110):
            book = book >> audio(0.1) << ... >> wait(0.1) << ...
            assert book.epoch == 1 or n >= 99
        assert book.epoch == 2


class TestLostConnections:
    def test_ending_before_any_audio_is_no_fault(self) -> None:
        """Nor is it told as a break; the next dial is the first byte's (faults.md 4)."""
        book = in_call() >> lost(1000) >> wait(5) >> audio(0.02) << Dial(2)
        book >> opened("two") << Restored(2, 0.0) << up(0, 0.02)

    def test_a_healthy_connection_is_replaced_at_once(self) -> None:
        """Results prove it healthy; all that has no final goes up again."""
        book = in_call(**EXACT) >> audio(0.2) << up(0, 0.2) >> heard(final(0, 0.1)) << window(0, 0.1)
        book >> lost(1006) << Broke(1, 1006, "", 0.1) << Dial(2) >> audio(0.02)
        book >> opened("two") << Restored(2, 0.1) << up(0.1, 0.22)
        (
            book
            >> heard(interim(0, 0.05, rid="two", words=[("a", 0.01, 0.04)]))
            << window(0.1, 0.15, Kind.INTERIM)
        )
        book >> heard(final(0, 0.1, rid="two", words=[("a", 0.01, 0.04)]))
        (deliver,) = book.out()
        assert isinstance(deliver, Deliver)
        message = json.loads(deliver.raw)
        assert message["metadata"]["request_id"] == "rid"
        assert message["channel"]["alternatives"][0]["words"][0]["start"] == pytest.approx(0.11)

    def test_a_connection_that_dies_young_is_not_hurried_after(self) -> None:
        """A 101 proves nothing: the backoff goes on (faults.md 10)."""
        book = in_call(client_idle=0) >> audio(0.02) << up(0, 0.02)
        for epoch, delay in enumerate((0.5, 1.0, 2.0, 4.0, 5.0, 5.0), start=1):
            book = book >> lost() << Broke(epoch, 1006, "", 0.02) >> wait(delay - 0.01) >> wait(0.01)
            book = book << Dial(epoch + 1) >> opened() << Restored(epoch + 1, 0.02) << up(0, 0.02)

    def test_a_call_that_breaks_all_the_time_costs_no_more_than_its_budget(self) -> None:
        """Thirty dials in ten minutes, results or not; then one every five seconds (continuity.md I18)."""
        book = in_call(client_idle=0, **EXACT)
        for _ in range(80):
            book = book >> audio(0.1) << ... >> heard(final(0, 0.02)) << ... >> lost() << ... >> wait(5.0)
            book = book << ... >> opened() << ...
        dials = [at for at, _, output in book.all if isinstance(output, Dial)]
        lost_at = [at for at, _, output in book.all if isinstance(output, Broke)]
        assert [b - a for a, b in zip(lost_at, dials[1:], strict=True)] == [0.0] * 30 + [5.0] * 50

    def test_the_last_results_are_not_put_off(self) -> None:
        """Though the budget is spent: what bounds these dials is `finish` (continuity.md I18)."""
        book = (
            in_call(spent=True, finish=10.0, **EXACT) >> audio(0.2) << up(0, 0.2) >> said(CLOSE) << Up(CLOSE)
        )
        book = book >> lost() << Broke(1, 1006, "", 0.2)
        for epoch, delay in enumerate((0.5, 1.0, 2.0, 4.0), start=2):
            book = book >> wait(delay) << Dial(epoch) >> refused(503)
        book = book >> wait(5.0) << Dial(6) >> refused(503) << ...
        assert book.all[-1][2] == Ended("failed")

    @pytest.mark.parametrize("outage", [5, 20, 90])
    def test_a_backlog_shrinks_by_the_pace(self, outage: int) -> None:
        """By a fifth of real time until it is gone, and declared nowhere (continuity.md I9): after 90 seconds
        of darkness that takes 450 (faults.md 17)."""
        book = in_call(client_idle=0, max_lag=1000, stall=1000, catch_up_pace=1.2) >> lost() << ...
        for _ in range(outage):
            book = book >> audio(1.0) << ... >> unreachable() << ... >> wait(1.0) << ...
        book = book >> wait(5.0) << ... >> opened("two") << ...
        uplink = book.session.stream.uplink
        for second in range(6 * outage):
            assert (uplink.received - uplink.sent) / RATE <= max(0.0, outage - 0.2 * second) + 2
            for _ in range(10):
                book = book >> audio(0.1) << ... >> wait(0.1) << ...
        assert uplink.received == uplink.sent
        assert not any(isinstance(output, Gap) for *_, output in book.all)

    def test_an_interim_is_never_promoted(self) -> None:
        """What had only an interim when all was over is a gap, not a final (continuity.md I6)."""
        book = in_call(client_idle=0, finish=2.0, **EXACT) >> audio(0.2) << up(0, 0.2)
        book = book >> heard(interim(0, 0.2)) << window(0, 0.2, Kind.INTERIM) >> said(CLOSE) << Up(CLOSE)
        book = book >> lost() << ...
        for _ in range(20):
            book = book >> unreachable() << ... >> wait(1.0) << ...
        told = [json.loads(output.raw) for *_, output in book.all if isinstance(output, Deliver)]
        assert not any(message.get("is_final") for message in told)
        assert [output for *_, output in book.all if isinstance(output, Gap)] == [
            Gap(0.0, 0.2, "upstream_failed")
        ]

    def test_whose_fault_a_break_was(self) -> None:
        """A connection that took audio and gave nothing for it bore no fruit."""
        book = in_call()
        assert not book.session.stream.is_fruitless
        book = book >> audio(0.1) << up(0, 0.1)
        assert book.session.stream.is_fruitless
        book = book >> heard(interim(0, 0.1)) << ...
        assert not book.session.stream.is_fruitless

    def test_a_call_that_calls_back_is_not_repeated(self) -> None:
        """Another connection would call back anew, from second zero: the call ends, and claims no gap."""
        why = "the connection to Deepgram was lost, and callback= is not repeated"
        book = in_call(f"{MULAW}&callback=https%3A%2F%2Fa.b", client_idle=0) >> audio(0.02) << up(0, 0.02)
        for _ in range(100):
            book = book >> wait(1.0) << ... >> audio(1.0) << ...
        assert len(book.session.stream.uplink.buffer) == 0, "nothing is kept for a replay"
        assert book.epoch == 1, "results that go elsewhere do not stall"
        book >> lost() << Broke(1, 1006, "", 0.0) << Close(1011, why) << HangUp(1) << Ended("failed")

    def test_a_call_that_calls_back_ends_as_others_do(self) -> None:
        """Dials that got no 101 called nobody back, and are tried again; Metadata is the end."""
        book = Playbook(f"{MULAW}&callback=https%3A%2F%2Fa.b") << Dial(1) >> unreachable() >> wait(0.5)
        book << Dial(2) >> opened() << Accept("rid") >> audio(0.02) << up(0, 0.02) >> said(CLOSE) << Up(CLOSE)
        book >> heard(metadata(0.02)) >> lost(1000) << ...
        assert book.all[-1][2] == Ended("completed")

    def test_audio_that_deepgram_cannot_read_is_not_offered_for_ever(self) -> None:
        """1008 twice at the same place is the client's fault, and said (faults.md 6)."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> lost(1008, "DATA-0000")
        book << Broke(1, 1008, "DATA-0000", 0.02) >> wait(0.5) << Dial(2) >> opened() << Restored(2, 0.02)
        book << up(0, 0.02) >> lost(1008, "DATA-0000") << Broke(2, 1008, "DATA-0000", 0.02)
        book << Gap(0.0, 0.02, "upstream_failed") << told(type="Error", description="DATA-0000")
        book << Close(1008, "DATA-0000") << HangUp(2) << Ended("failed")

    def test_old_connections_have_no_say(self) -> None:
        """Their messages, ends and handshakes are fenced (continuity.md I13, faults.md 28)."""
        book = in_call() >> audio(0.02) << up(0, 0.02) >> lost() << Broke(1, 1006, "", 0.02)
        book >> heard(final(0, 0.02), epoch=1) >> wait(0.5) << Dial(2) >> opened("x", epoch=1)
        book >> unreachable(epoch=1) >> lost(1000, epoch=1) >> heard(final(0, 0.02), epoch=1)
        book >> opened("two") << Restored(2, 0.02) << up(0, 0.02) >> opened("again")
        book >> heard(final(0, 0.02), epoch=1) >> lost(1000, epoch=1)
        assert book.session.stream.stale == 3
        assert book.session.stream.request_ids == ["rid", "two"]

    def test_of_very_many_connections_the_latest_are_remembered(self) -> None:
        """A call that breaks for days stays small, and its end says whom to ask (continuity.md I8)."""
        book = in_call(client_idle=0) >> audio(0.02) << up(0, 0.02)
        latest = [f"rid-{number}" for number in range(MOST_IDS)]
        for rid in ["early", *latest]:
            book = book >> lost() << ... >> wait(5.0) << ... >> opened(rid) << ...
        assert book.session.stream.request_ids == latest
        book = book >> said(CLOSE) << ... >> heard(final(0, 0.02, rid=latest[-1])) << ...
        book >> heard(metadata(0.02, rid=latest[-1])) >> lost(1000)
        ids = {"upstream_request_ids": latest, "synthetic_fields": ["duration"]}
        book << told(type="Metadata", request_id="rid", gateway=ids) << ...

    def test_finals_that_skip_a_stretch(self) -> None:
        """Another connection hears the stretch again; if it skips it too, that is said (faults.md 25)."""
        book = in_call(**EXACT) >> audio(0.2) << up(0, 0.2) >> heard(final(0, 0.05)) << window(0, 0.05)
        book >> heard(final(0.1, 0.2)) << HangUp(1) << SKIPPED << Dial(2) >> opened("two")
        book << Restored(2, 0.15) << up(0.05, 0.2)
        book >> heard(final(0.05, 0.15, rid="two")) << Gap(0.05, 0.1, "upstream_hole") << window(0.1, 0.2)

    def test_a_stretch_that_is_heard_the_second_time(self) -> None:
        """Nothing is missing then, and nothing comes twice."""
        book = in_call(**EXACT) >> audio(0.2) << up(0, 0.2)
        (
            book
            >> heard(final(0.1, 0.2))
            << HangUp(1)
            << msgspec.structs.replace(SKIPPED, owed=0.2)
            >> wait(0.5)
            << Dial(2)
            >> opened("two")
        )
        book << Restored(2, 0.2) << up(0, 0.2) >> heard(final(0, 0.2, rid="two")) << window(0, 0.2)

    def test_stretches_skipped_on_two_channels_in_turn(self) -> None:
        """Each is tried once more, not for ever (continuity.md I18)."""
        query = f"encoding=mulaw&sample_rate={RATE}&channels=2&multichannel=true"
        book = in_call(query, **EXACT) >> sent(bytes(4000)) << ... >> wait(2) << ...
        for dials, channel in ((2, 0), (3, 1), (3, 0)):
            book = book >> heard(final(0.1, 0.2, channel_index=[channel, 2])) << ... >> wait(5) << ...
            assert book.session.dials == dials
            book = book >> opened() << ... >> wait(2) << ...

    def test_a_connection_that_says_nothing_after_the_last_final(self) -> None:
        """Its Metadata is missing, so another one is asked for it, once (faults.md 14)."""
        book = in_call(**EXACT) >> audio(0.2) << up(0, 0.2) >> heard(final(0, 0.2)) << window(0, 0.2)
        book >> said(CLOSE) << Up(CLOSE) >> wait(9) << ... >> wait(1) << HangUp(1)
        book << Broke(1, 1006, "stalled: no last results", 0.0) << Dial(2) >> opened("two")
        book << Restored(2, 0.0) << Up(CLOSE) >> heard(metadata(0, rid="two")) >> lost(1000)
        book << told(type="Metadata", duration=0.2) << Close(1000) << HangUp(2) << Ended("completed")

    def test_the_deadline_waits_for_a_dial(self) -> None:
        """Lost when only Metadata is missing, the dials spent, one of them refused: the next has its turn
        (I12, I18, faults.md 27)."""
        book = lost_before_metadata() >> wait(5) << Dial(2) >> refused(500) >> wait(5) << Dial(3) >> wait(4.9)
        book >> opened("three") << Restored(3, 0.0) << Up(CLOSE) >> wait(9.9) << ...
        book >> heard(metadata(0, rid="three")) >> lost(1000) << told(type="Metadata", duration=0.2)
        book << Close(1000) << HangUp(3) << Ended("completed")

    @pytest.mark.parametrize("comes_to_nothing", [unreachable(), refused(503), opened("three")])
    def test_after_the_deadline_nothing_is_tried_again(self, comes_to_nothing: Step) -> None:
        """That Deepgram takes a connection and says nothing on it is no reason to go on (I22)."""
        book = lost_before_metadata() >> wait(5) << Dial(2) >> opened("two") << ... >> lost() << ...
        book = book >> wait(5) << Dial(3) >> comes_to_nothing << ... >> lost() << ...
        assert Close(1011, "Deepgram did not finish in time") in [out for *_, out in book.all]
        assert book.session.get_timer() is None

    def test_what_is_owed_takes_its_time(self) -> None:
        """12 s of audio without a final take 10 s to hear once more, on top of `finish`."""
        book = in_call(finish=10) >> audio(12) << ... >> lost() << ... >> said(CLOSE)
        book = book >> wait(0.5) << Dial(2) >> wait(19) >> unreachable() >> wait(1) << Dial(3)
        book = book >> unreachable()
        assert outcome(book)[-1] == Ended("failed")

    def test_the_client_that_awaited_the_rest_is_gone(self) -> None:
        """Nobody is dialled for Metadata alone then, and nothing is left (continuity.md I22)."""
        book = lost_before_metadata() >> gone() >> wait(5)
        book << Close(1000) << HangUp(1) << Ended("completed")
        assert book.session.get_timer() is None

    def test_a_clean_end_without_the_last_results(self) -> None:
        """Metadata and 1000, but seconds of audio without a final: another connection is asked once."""
        book = in_call(**EXACT) >> audio(1.5) << ... >> wait(2) << ... >> said(CLOSE) << Up(CLOSE)
        book >> heard(metadata(1.5)) >> lost(1000) << Broke(1, 1000, "", 1.5) >> wait(0.5) << Dial(2)
        book >> opened("two") << ... >> wait(2) << ...
        book >> heard(metadata(1.5, rid="two")) >> lost(1000) << Gap(0.0, 1.5, "upstream_hole")
        book << told(type="Metadata", duration=1.5) << Close(1000)
        book << HangUp(2) << Ended("completed")

    def test_a_clean_close_without_a_summary(self) -> None:
        """1000 after CloseStream, but neither Metadata nor the tail: another connection is asked for both."""
        book = in_call(**EXACT) >> audio(0.5) << ... >> wait(1) << ... >> said(CLOSE) << Up(CLOSE)
        book >> lost(1000) << Broke(1, 1000, "", 0.5) >> wait(0.5) << Dial(2) >> opened("two")
        book << Restored(2, 0.5) << ... >> wait(1) << ... >> heard(final(0, 0.5, rid="two")) << window(0, 0.5)
        book >> heard(metadata(0.5, rid="two")) >> lost(1000) << told(type="Metadata", duration=0.5)
        book << Close(1000) << HangUp(2) << Ended("completed")

    def test_a_final_past_the_end_is_no_hole(self) -> None:
        """Deepgram may overshoot what it got by a little; the next final begins there (faults.md 24)."""
        book = in_call(**EXACT) >> audio(1.0) << ... >> wait(1) << ...
        book >> heard(final(0, 1.3)) << window(0, 1.3) >> audio(1.0) << ... >> wait(1) << ...
        book >> heard(final(1.3, 2.0)) << window(1.3, 2.0)

    def test_a_full_buffer_loses_its_oldest_second(self) -> None:
        """Live speech survives a long outage, and the loss is said once (continuity.md I5)."""
        book = in_call(buffer=5, client_idle=0) >> lost()
        for _ in range(70):
            book = book >> audio(0.1) << ... >> wait(0.1)
        gap, restored, *goes_up = (book >> opened("two")).out()
        assert isinstance(gap, Gap)
        assert (gap.start, gap.reason) == (0.0, "buffer_overflow")
        assert 2.0 <= gap.stop <= 3.1
        assert restored == Restored(2, 0.0)
        hears = final(0, 1, rid="two", words=[("a", 0.5, 0.7)])
        book >> heard(hears) << window(gap.stop, gap.stop + 1)
        lived = b"".join(
            out.message for out in goes_up if isinstance(out, Up) and isinstance(out.message, bytes)
        )
        assert len(lived) > 0.8 * RATE
        assert lived == sound(round(gap.stop * RATE), round(gap.stop * RATE) + len(lived))

    def test_a_first_connection_after_a_full_buffer_has_the_clients_times(self) -> None:
        """Deepgram's second 0 is not the client's then (continuity.md I3)."""
        book = Playbook(MULAW, buffer=5, client_idle=0) << Dial(1) >> wait(2) << ...
        for _ in range(70):
            book = book >> audio(0.1) << ... >> wait(0.1)
        gap = (book >> opened()).out()[0]
        assert isinstance(gap, Gap)
        book >> wait(9) << ... >> heard(final(0, 1)) << window(gap.stop, gap.stop + 1)
        book >> said(CLOSE) << ... >> heard(final(1, 7 - gap.stop)) << window(gap.stop + 1, 7)
        book >> heard(metadata(7 - gap.stop)) >> lost(1000) << told(type="Metadata", duration=7.0)
        book << Close(1000) << HangUp(1) << Ended("completed")

    def test_a_turn_may_begin_before_the_last_one_ended(self) -> None:
        """Windows of Flux are its own business: only its ends of turn count."""
        book = flux() >> audio(1.0) << ...
        for event, start, stop in (("EndOfTurn", 0.0, 0.8), ("StartOfTurn", 0.5, 0.9)):
            turn = {"type": "TurnInfo", "event": event, "audio_window_start": start, "audio_window_end": stop}
            raw = json.dumps(turn).encode()
            book = book >> heard(raw) << delivered(raw)

    def test_flux_greets_once(self) -> None:
        """The client knows of one connection."""
        hello = b'{"type":"Connected","request_id":"rid","sequence_id":0}'
        book = flux() >> heard(hello) << delivered(hello) >> audio(0.02) << up(0, 0.02) >> lost()
        (
            book
            << Broke(1, 1006, "", 0.02)
            >> wait(0.5)
            << Dial(2)
            >> opened("two")
            << Restored(2, 0.02)
            << up(0, 0.02)
        )
        book >> heard(hello)


class TestVeryLongCalls:
    def test_the_connection_is_changed_between_utterances(self) -> None:
        """After `rotate` seconds, at a final that ends one: no backoff, and next to nothing is replayed."""
        book = in_call(rotate=10.5, client_idle=0, **EXACT)
        for n in range(11):
            book = book >> audio(1.0) << ... >> wait(1.0) << ... >> heard(final(n, n + 0.9)) << ...
            book = book >> heard(final(n + 0.9, n + 1, speech_final=n < 9)) << ...
        book >> audio(0.1) << up(11, 11.1) >> heard(final(11, 11.05)) << window(11, 11.05)
        book >> heard(final(11.05, 11.08, speech_final=True)) << window(11.05, 11.08)
        book << HangUp(1) << Broke(1, 1006, "rotated", 0.02) << Dial(2)

    def test_utterances_need_not_end(self) -> None:
        """Somewhat later any final will do."""
        book = in_call(rotate=10, client_idle=0, **EXACT)
        for n in range(13):
            assert book.epoch == (1 if n < 12 else 2)
            book = book >> audio(1.0) << ... >> wait(1.0) << ... >> heard(final(n, n + 1)) << ...

    @pytest.mark.parametrize("more", ["encoding=opus", f"{MULAW}&callback=https%3A%2F%2Fa.b"])
    def test_what_cannot_be_repeated_is_not_changed(self, more: str) -> None:
        """Packets would have a gap, and a callback would begin anew."""
        book = in_call(more, rotate=10, client_idle=0)
        for n in range(20):
            book = book >> audio(0.1) << ... >> wait(1.0) << ...
            book = book >> heard(final(n, n + 1, speech_final=True)) << ...
        assert book.epoch == 1

    def test_interims_that_only_we_asked_for(self) -> None:
        """`force_interims`: they show that Deepgram works, and are nobody else's business."""
        book = in_call(LINEAR16, force_interims=True) >> sent(bytes(320)) << ...
        book >> heard(interim(0, 0.02)) >> heard(final(0, 0.02)) << window(0, 0.02)


class TestSpeech:
    def test_speech_that_a_gap_cut_short_is_ended(self) -> None:
        """A client that saw it begin waits for its end (continuity.md I5)."""
        book = in_call(buffer=5, client_idle=0, **EXACT) >> heard(BEGAN) << told(type="SpeechStarted")
        book = book >> lost() << ...
        for _ in range(70):
            book = book >> audio(0.1) << ... >> wait(0.1)
        gap, end, *_ = (book << ... >> opened("two")).out()
        assert isinstance(gap, Gap)
        assert told(type="UtteranceEnd", last_word_end=-1, gateway={"synthetic": True})(end)

    def test_the_repetition_answers_no_finalize(self) -> None:
        """One Finalize, one answer, though a final that ends the utterance comes of it twice (I11)."""
        book = (
            in_call(seam_strategy="preroll", preroll=0.5)
            >> audio(1.0)
            << ...
            >> wait(1)
            << ...
            >> said(FINALIZE)
            << ...
        )
        book >> heard(final(0, 1.0, words=[("yes", 0.6, 0.9)], from_finalize=True)) << window(0, 1.0)
        book = book >> audio(0.5) << ... >> lost() << ... >> opened("two") << ...
        repeated = final(0, 0.5, rid="two", words=[("yes", 0.1, 0.4)], speech_final=True, from_finalize=True)
        book >> heard(repeated) << told(start=1.0, speech_final=True, from_finalize=False)

    def test_an_end_that_only_the_repetition_told(self) -> None:
        """A final that adds nothing but that the utterance is over says just that, and once."""
        book = in_call(seam_strategy="preroll", preroll=0.5) >> audio(1.0) << ... >> wait(1) << ...
        book >> heard(final(0, 1.0, words=[("yes", 0.6, 0.9)])) << window(0, 1.0) >> audio(0.5) << ...
        book = book >> lost() << ... >> opened("two") << ...
        repeated = final(0, 0.5, rid="two", words=[("yes", 0.1, 0.4)], speech_final=True)
        book >> heard(repeated) << told(start=1.0, duration=0.0, speech_final=True) >> heard(repeated)

    def test_an_end_before_the_last_known_word_is_old(self) -> None:
        """What a new connection takes for two utterances was told as one that goes on."""
        book = in_call(seam_strategy="preroll", preroll=1) >> audio(1.0) << ... >> wait(1) << ...
        book >> heard(final(0, 1.0, words=[("yes", 0.2, 0.4), ("no", 0.7, 0.9)])) << window(0, 1.0)
        book = book >> lost() << ... >> audio(0.5) << ... >> opened("two") << ... >> wait(2) << ...
        book >> heard(final(0, 0.5, rid="two", words=[("yes", 0.2, 0.4)], speech_final=True))
        book >> heard(final(0.5, 0.95, rid="two", words=[("no", 0.7, 0.9)], speech_final=True))
        book << told(start=1.0, duration=0.0, speech_final=True)

    @pytest.mark.parametrize("strategy", ["hybrid", "exact"])
    def test_speech_of_which_the_new_connection_knows_nothing(self, strategy: str) -> None:
        """It began and was final before the break, but not told to be over: the silence after it tells."""
        book = in_call(seam_strategy=strategy) >> audio(1.0) << ... >> wait(1) << ...
        book >> heard(BEGAN) << told(type="SpeechStarted")
        book >> heard(final(0, 1.0, words=[("yes", 0.5, 0.7)])) << window(0, 1.0) >> audio(1.0) << ...
        book = book >> lost() << ... >> opened("two") << ... >> wait(2) << ...
        book >> heard(interim(0, 0.5, rid="two")) << ...
        (book >> heard(final(0, 1, rid="two")) << told(type="UtteranceEnd", last_word_end=0.7))
        book << told(is_final=True)

    def test_speech_that_the_new_connection_hears_is_its_to_end(self) -> None:
        book = in_call(**EXACT) >> audio(1.0) << ... >> wait(1) << ...
        book >> heard(BEGAN) << told(type="SpeechStarted") >> lost() << ... >> wait(1) << ...
        book = book >> opened("two") << ... >> wait(2) << ...
        book >> heard(final(0, 0.5, rid="two", words=[("yes", 0.1, 0.4)])) << told(is_final=True)
        book >> heard(final(0.5, 1, rid="two")) << told(is_final=True)

    def test_speech_of_a_channel_that_is_ahead(self) -> None:
        """A connection begins where the slowest channel is; what it hears of the others is final already."""
        query = f"encoding=mulaw&sample_rate={RATE}&channels=2&multichannel=true"
        book = in_call(query, **EXACT) >> sent(bytes(2 * RATE)) << ... >> wait(2) << ...
        said_once = final(0, 0.9, words=[("yes", 0.5, 0.7)], speech_final=True, channel_index=[0, 2])
        book >> heard(said_once) << told(speech_final=True)
        book = book >> lost() << ... >> opened("two") << ... >> wait(2) << ...
        book >> heard(BEGAN.replace(b"[0,1]", b"[0,2]")) >> heard(said_once)
        book >> heard(BEGAN.replace(b"[0,1]", b"[1,2]")) << told(type="SpeechStarted", channel=[1, 2])
        book >> heard(BEGAN.replace(b"[0,1]", b"[0,2]").replace(b"0.5", b"0.95"))
        book << told(type="SpeechStarted", channel=[0, 2])

    def test_speech_that_is_over_with_the_call(self) -> None:
        """Everything is final and the last connection gone: nothing is left to tell its end."""
        book = in_call(**EXACT) >> audio(0.2) << ... >> heard(BEGAN) << ... >> heard(final(0, 0.2)) << ...
        book = book >> lost() << ... >> said(CLOSE) << ... >> opened("two") << ...
        book >> heard(metadata(0, rid="two")) >> lost(1000)
        book << told(type="UtteranceEnd", gateway={"synthetic": True}) << told(type="Metadata") << ...


class TestSilentChannels:
    """A channel without finals would keep its audio in the buffer until that is full (section 5.6)."""

    STEREO = f"{MULAW}&channels=2&multichannel=true"
    PROMPT = '{"type":"Finalize","channel":1}'

    def one_sided(self, seconds: int, query: str = STEREO, **settings: Any) -> Playbook:
        """Only the first channel has finals."""
        book = in_call(query, client_idle=0, **settings)
        for n in range(seconds):
            book = book >> audio(2.0) << ... >> wait(1.0) << ...
            book = book >> heard(final(n, n + 1, channel_index=[0, 2])) << ...
        return book

    @staticmethod
    def prompts(book: Playbook) -> list[float]:
        return [at - START for at, _, output in book.all if output == Up(TestSilentChannels.PROMPT)]

    def test_it_is_asked_for_and_costs_no_connection(self) -> None:
        """Once in twenty seconds; the answer does not say that anybody asked (continuity.md I11)."""
        book = self.one_sided(50)
        first, second = self.prompts(book)
        assert 20 < first <= 24
        assert 20 < second - first <= 24
        assert (book.epoch, book.session.stream.prompted) == (1, 2)
        raw = final(0, 50, channel_index=[1, 2], from_finalize=True)
        book = book >> heard(raw) << told(channel_index=[1, 2], from_finalize=False)
        assert len(book.session.stream.uplink.buffer) <= 2 * 2 * RATE

    def test_what_the_client_asks_is_answered(self) -> None:
        """Also while ours has no answer yet."""
        book = self.one_sided(25) >> said(FINALIZE) << Up(FINALIZE)
        book = book >> heard(final(25, 25, channel_index=[0, 2], from_finalize=True))
        book = book << told(channel_index=[0, 2], from_finalize=True)
        raw = final(0, 25, channel_index=[1, 2], from_finalize=True)
        book = book >> heard(raw) << told(channel_index=[1, 2], from_finalize=True)
        raw = final(25, 25, channel_index=[1, 2], from_finalize=True)
        book >> heard(raw) << told(channel_index=[1, 2], from_finalize=False)

    @pytest.mark.parametrize(
        "off", [{"finalize_after": 0}, {"query": f"{STEREO}&callback=https%3A%2F%2Fa.b"}]
    )
    def test_off(self, off: dict[str, Any]) -> None:
        """By setting, and where results go elsewhere."""
        assert self.prompts(self.one_sided(30, **off)) == []

    def test_not_after_the_end(self) -> None:
        """CloseStream asks for all that there is."""
        book = self.one_sided(19) >> said(CLOSE) << Up(CLOSE) >> wait(9)
        assert self.prompts(book) == []


class TestNonsense:
    """What cannot be read or counted with is dropped, and costs no connection (faults.md 23)."""

    @pytest.mark.parametrize("number", ["1e200", "1" + "0" * 400, "1e999"])
    @pytest.mark.parametrize("place", ["words", "elsewhere"])
    def test_after_a_seam(self, number: str, place: str) -> None:
        """There every message is opened: an interim, a final, an UtteranceEnd, the Metadata."""
        broken = (lambda raw: raw.replace(b"0.0777", number.encode())) if place == "words" else None
        book = in_call() >> audio(0.3) << ... >> heard(final(0, 0.1, words=[("a", 0.01, 0.09)])) << ...
        book = book >> lost() << ... >> opened("two") << ...
        for make in (interim, final):
            raw = make(0, 0.2, rid="two", words=[("a", 0.0777, 0.0777), ("b", 0.12, 0.19)])
            raw = broken(raw) if broken else raw[:-1] + b',"new":' + number.encode() + b"}"
            book = book >> heard(raw) << ...
        ended = f'{{"type":"UtteranceEnd","channel":[0,1],"last_word_end":{number}}}'
        book = book >> heard(ended.encode()) << ...
        assert book.epoch == 2
        assert place == "elsewhere" or book.session.stream.malformed == 3
        book = book >> heard(final(0, 0.3, rid="two")) << ... >> said(CLOSE) << ...
        book = book >> heard(metadata(0.3, "two")[:-1] + b',"new":' + number.encode() + b"}")
        book >> heard(metadata(0.3, "two")) >> lost(1000) << ...
        assert book.all[-1][2] == Ended("completed")

    @pytest.mark.parametrize("number", ["1e200", "1" + "0" * 400, "1e999"])
    def test_before_one(self, number: str) -> None:
        """What went to the client as it came is not believed when the next connection begins."""
        raw = final(0, 0.2, words=[("a", 0.01, 0.05), ("b", 0.0777, 0.0777)])
        book = in_call() >> audio(0.3) << ... >> heard(raw.replace(b"0.0777", number.encode())) << ...
        book = book >> lost() << ... >> opened("two") << ... >> heard(final(0, 0.3, rid="two")) << ...
        assert book.epoch == 2
        assert book.session.stream.transcript.timeline.watermark == round(0.3 * RATE)
