"""What TCP does not say, and what must not be mistaken for it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio.clock import PACKETS, MediaClock
from gateway.audio.containers import Clock, OpusClock
from gateway.session.watch import BLOCKED_FOR, DEAD_AFTER, ENOUGH_BYTES, PING_AFTER, Watch
from tests.fakes.muxer import ogg

CLOCK = MediaClock(rate_hz=8000, frame_bytes=2, joinable=True)
SECOND = 16_000
NOW = 1_000_000.0


def watch(clock: Clock = CLOCK, sent: int = 0, patience: int = 1) -> Watch:
    found = Watch(clock, 10.0, 20.0, NOW, patience)
    found.opened(sent, NOW)
    return found


def listening(dog: Watch, until: float, step: float = 1.0) -> None:
    """Pongs come, if nothing else."""
    for n in range(int(until / step) + 1):
        dog.heard(NOW + n * step)


def talks(dog: Watch, sent: int, since: float, until: float, rate: int = SECOND) -> str:
    """The first trouble while `rate` bytes go up in each second, looked for every half second."""
    for n in range(int((until - since) * 2) + 1):
        now = NOW + since + n / 2
        dog.heard(now)
        trouble = dog.trouble(sent + n * rate // 2, now)
        if trouble:
            return f"{now - NOW} {trouble}"
    return ""


def test_silence_is_asked_after_and_then_dead() -> None:
    """A ping after 3 s, again after 3 more; dead beyond 9 s without any answer (faults.md 2)."""
    dog = watch()
    assert not dog.wants_ping(NOW + PING_AFTER - 0.01)
    assert dog.wants_ping(NOW + PING_AFTER)
    assert not dog.wants_ping(NOW + 2 * PING_AFTER - 0.01)
    assert dog.wants_ping(NOW + 2 * PING_AFTER)
    assert dog.trouble(0, NOW + DEAD_AFTER) == ""
    assert "not a byte" in dog.trouble(0, NOW + DEAD_AFTER + 0.01)


def test_any_byte_is_a_sign_of_life() -> None:
    """An idle call lives on pongs for ever."""
    dog = watch()
    listening(dog, 3600)
    assert dog.trouble(0, NOW + 3600) == ""
    assert not dog.wants_ping(NOW + 3602.9)


@pytest.mark.parametrize(
    ("seconds", "after", "stalled"), [(3.1, 10.1, True), (2.9, 60.0, False), (9, 9.9, False)]
)
def test_audio_flows_and_results_do_not(seconds: float, after: float, stalled: bool) -> None:
    """It takes both: enough audio, and time (faults.md 14)."""
    dog = watch(sent=4 * SECOND)
    listening(dog, 60)
    assert dog.trouble(4 * SECOND + int(seconds * SECOND), NOW + 3) == ""
    trouble = dog.trouble(4 * SECOND + int(seconds * SECOND), NOW + after)
    assert ("results do not" in trouble) is stalled


@pytest.mark.parametrize(("patience", "at"), [(1, "10.5"), (4, "40.5")])
def test_who_talks_without_a_pause_is_answered_in_time(patience: int, at: str) -> None:
    """From the first byte on (faults.md 14)."""
    assert talks(watch(patience=patience), 0, 0, 60).startswith(at)


@pytest.mark.parametrize("pause", [5, 12, 45, 300])
@pytest.mark.parametrize("unanswered", [0.0, 0.5, 2.9])
@pytest.mark.parametrize("patience", [1, 4])
def test_a_pause_is_no_time_for_results(pause: float, unanswered: float, patience: int) -> None:
    """However long a client was silent, and whatever had no result before: the limit is as long after it."""
    dog, said = watch(sent=SECOND, patience=patience), unanswered * patience
    sent, since = SECOND + round(said * SECOND), said + pause
    assert talks(dog, SECOND, 0, said) == ""
    assert talks(dog, sent, said, since, rate=0) == ""
    enough = 10 * patience - said
    assert talks(dog, sent, since, since + enough - 0.5) == ""
    last = sent + round((enough - 0.5) * SECOND)
    assert "results do not" in talks(dog, last, since + enough - 0.5, since + enough + 1)


def test_a_pause_of_packets() -> None:
    """Where bytes say little about seconds, some of them begin the whole limit."""
    dog = watch(PACKETS)
    assert talks(dog, 0, 0, 12, rate=0) == ""
    assert talks(dog, 0, 12, 22, rate=8000) == ""
    assert "results do not" in talks(dog, 80_000, 22.5, 24, rate=8000)


def test_an_old_second_again_is_no_progress() -> None:
    """Repeating a result does not keep a frozen connection alive; going on does (faults.md 15)."""
    frozen, alive = watch(), watch()
    for n in range(1, 13):
        frozen.progressed(0, 1.0, n * SECOND, NOW + n)
        alive.progressed(0, n - 0.5, n * SECOND, NOW + n)
        assert frozen.trouble(n * SECOND, NOW + n) == "" or n > 10
    assert "results do not" in frozen.trouble(12 * SECOND, NOW + 12)
    assert alive.trouble(12 * SECOND, NOW + 12) == ""


def test_slower_than_real_time() -> None:
    """Results that trail the audio by more than `max_lag`, on every channel (faults.md 16).

    One channel alone that is silent is no fault of the connection (continuity.md, section 5.6).
    """
    dog = watch()
    dog.progressed(0, 10.0, 30 * SECOND, NOW + 30)
    dog.progressed(1, 2.0, 30 * SECOND, NOW + 30)
    assert dog.trouble(30 * SECOND, NOW + 30) == ""
    assert "fall behind" in dog.trouble(31 * SECOND, NOW + 30)


def test_who_reads_nothing() -> None:
    """A full send buffer for 5 s; one that empties in between counts anew (faults.md 3)."""
    dog = watch()
    listening(dog, 30)
    dog.blocked(True, NOW)
    dog.blocked(True, NOW + 4)
    assert dog.trouble(0, NOW + BLOCKED_FOR) == ""
    assert "reads nothing" in dog.trouble(0, NOW + BLOCKED_FOR + 0.1)
    dog.blocked(False, NOW + 5)
    assert dog.trouble(0, NOW + 20) == ""


def test_our_own_lateness_is_no_evidence() -> None:
    """What came while we did not look is still unread."""
    dog = watch()
    dog.blocked(True, NOW)
    dog.excuse(20.0)
    assert dog.trouble(4 * SECOND, NOW + 24.9) == ""
    assert dog.trouble(4 * SECOND, NOW + 25.1) != ""
    dog = watch()
    dog.excuse(0.2)
    assert dog.trouble(0, NOW + DEAD_AFTER + 0.1) != ""


def test_a_new_connection_is_judged_by_itself() -> None:
    """Nothing of the last one counts."""
    dog = watch()
    dog.blocked(True, NOW)
    dog.progressed(0, 5.0, 5 * SECOND, NOW)
    dog.opened(90 * SECOND, NOW + 60)
    assert dog.trouble(90 * SECOND, NOW + 69) == ""
    dog.progressed(0, 1.0, 92 * SECOND, NOW + 69)
    listening(dog, 78)
    assert dog.trouble(100 * SECOND, NOW + 78.9) == ""


@pytest.mark.parametrize(("length", "stalled"), [(ENOUGH_BYTES, False), (ENOUGH_BYTES + 1, True)])
def test_bytes_without_time(length: int, stalled: bool) -> None:
    """Compressed audio: some kilobytes are enough, and time while more comes."""
    dog = watch(PACKETS)
    listening(dog, 20)
    assert dog.trouble(length, NOW + 0.5) == ""
    assert (dog.trouble(length + 1, NOW + 11) != "") is stalled


def test_a_container_is_judged_by_its_own_seconds() -> None:
    """However many bytes they are, and whatever of its index was forgotten since."""
    packets = [b"\x08" + bytes(400)] * 2000  # of 20 ms
    lengths = {seconds: len(ogg(packets[: seconds * 50])) for seconds in (3, 4, 10, 31, 32)}
    clock = OpusClock("ogg")
    clock.feed(ogg(packets))
    dog = watch(clock)
    listening(dog, 20)
    assert dog.trouble(lengths[3], NOW + 11) == ""
    assert dog.trouble(lengths[4], NOW + 11) == ""
    assert "results do not" in dog.trouble(lengths[4], NOW + 18.5)
    dog.progressed(0, 11.0, lengths[10], NOW + 20)
    clock.forget(lengths[10])
    dog.heard(NOW + 28)
    assert dog.trouble(lengths[31], NOW + 29.5) == ""
    assert "fall behind" in dog.trouble(lengths[32], NOW + 31.5)


def test_a_backlog_that_goes_up_at_once_is_no_lag() -> None:
    """A container's is not paced: what counts is what could have been heard by now (faults.md 16, 17)."""
    stream = ogg([b"\x08" + bytes(400)] * 3000)  # a minute
    clock = OpusClock("ogg")
    clock.feed(stream)
    dog = watch(clock)
    for second in range(1, 40):
        dog.progressed(0, second, len(stream), NOW + second)
        assert dog.trouble(len(stream), NOW + second + 0.9) == ""
    for second in range(40, 60):
        dog.progressed(0, 39 + (second - 39) / 100, len(stream), NOW + second)
    assert dog.trouble(len(stream), NOW + 59) == ""
    assert "fall behind" in dog.trouble(len(stream), NOW + 59.5)


@given(st.randoms(use_true_random=False), st.integers(10, 200))
def test_who_looks_less_often_misses_nothing(rng: random.Random, steps: int) -> None:
    """Whatever happens, there is nothing to see before `quiet_for` has passed."""
    dog, sent, until, habits = watch(), 0, NOW, [rng.random() ** 2 for _ in range(4)]
    for n in range(1, steps):
        now = NOW + n / 2
        trouble, ping = dog.trouble(sent, now), dog.wants_ping(now)
        assert now >= until or not (trouble or ping)
        if now >= until:
            until = now + dog.quiet_for(sent, now)
        if trouble:
            return
        happens = [rng.random() < habit for habit in habits]
        sent += round(happens[0] * 0.625 * SECOND)
        if happens[1]:
            dog.heard(now)
        if happens[2]:
            dog.progressed(0, rng.random() * sent / SECOND, sent, now)
        dog.blocked(happens[3], now)
