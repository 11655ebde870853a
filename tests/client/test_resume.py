"""What a client remembers of a session, against a model of the gateway and a network that loses."""

from __future__ import annotations

import json
from collections import deque
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.audio.clock import PACKETS, MediaClock
from gateway.client.resume import ResumeState
from gateway.deepgram.listen import ListenV1, ListenV2
from gateway.errors import SessionLost
from tests.fakes.resume_server import RATE, SAMPLE, Leg, ResumeModel, audio

ROOMY = 1 << 30
MONO = MediaClock(RATE, SAMPLE, True)


class World:
    """A client, a gateway, and two directions between them in which messages are on their way."""

    def __init__(self, channels: int = 1, keep_bytes: int = ROOMY) -> None:
        self.clock = MediaClock(RATE, SAMPLE * channels, True)
        self.channels = channels
        self.state = ResumeState(self.clock, ListenV1(), keep_bytes)
        self.model = ResumeModel(channels)
        self.heard: list[dict[str, Any]] = []
        self.said = 0  # frames
        self.leg: Leg | None = None
        self.welcomed = False
        self.up: deque[bytes | str] = deque()
        self.down: deque[str] = deque()
        self._odd = b""
        self._finished = False

    def say(self, frames: int, odd: int = 0) -> None:
        """The next frames; their last `odd` bytes come with those after them."""
        if self._finished:
            return
        numbers = range(self.said * self.channels, (self.said + frames) * self.channels)
        data = self._odd + audio(numbers)
        cut = max(0, len(data) - odd)
        self._odd = data[cut:]
        self.said += frames
        self.state.append(data[:cut])

    def send(self, count: int = ROOMY) -> None:
        while self.welcomed and count and (message := self.state.next_to_send()) is not None:
            self.up.append(message)
            count -= 1

    def deliver_up(self, count: int = ROOMY) -> None:
        while self.leg and self.up and count:
            self.leg.take(self.up.popleft())
            self._collect()
            count -= 1

    def deliver_down(self, count: int = ROOMY) -> None:
        while self.down and count:
            raw = self.down.popleft().encode()
            if not self.welcomed:
                self.state.welcome(raw)
                self.welcomed = True
            elif body := self.state.heard(raw):
                self.heard.append(body)
            count -= 1

    def hear(self, channel: int, frames: int, final: bool = True) -> None:
        """The gateway has a result."""
        if self.leg and (session := self.leg.session) and not session.finished:
            channel %= self.channels
            session.result(channel, session.finals[channel] + frames, final=final)
            self._collect()

    def ack(self) -> None:
        if self.leg and self.leg.session:
            self.leg.session.ack()
            self._collect()

    def talk(self, frames: int, sent: int, up: int, down: int) -> None:
        """A while in which each stage does a little."""
        for _ in range(3):
            self.say(frames)
        self.send(sent)
        self.deliver_up(up)
        self.deliver_down(down)

    def connect(self) -> None:
        """Nobody comes back to a session that is over."""
        self.drop()
        if self.state.said_all:
            return
        self.leg = Leg(self.model, self.state.session or "1")
        self._collect()
        if request := self.state.request():
            self.up.append(request)

    def drop(self) -> None:
        """The connection breaks; what was on its way is lost."""
        self.up.clear()
        self.down.clear()
        self.leg, self.welcomed = None, False

    def lose(self) -> None:
        """The connection breaks, and another is made."""
        self.connect()
        self.deliver_up(1)
        self.deliver_down(1)

    def restart(self) -> None:
        """The gateway forgets everything."""
        self.model.forget()
        self.lose()

    def finish(self) -> None:
        self.state.append(self._odd)
        self.state.finish()
        self._finished = True

    def heal(self) -> None:
        """Everything works from now on, to the end."""
        self.connect()
        while self.up or self.down:
            self.deliver_up()
            self.deliver_down()
            self.send()

    def _collect(self) -> None:
        assert self.leg
        self.down += self.leg.out
        self.leg.out.clear()

    def finals(self, channel: int) -> list[dict[str, Any]]:
        return [m for m in self.results(channel) if m["is_final"]]

    def results(self, channel: int = 0) -> list[dict[str, Any]]:
        results = [m for m in self.heard if m["type"] == "Results"]
        return [m for m in results if m["channel_index"][0] == channel]


def text(message: dict[str, Any]) -> list[int]:
    return [int(word) for word in message["channel"]["alternatives"][0]["transcript"].split()]


def sample(seconds: float) -> int:
    """The sample at a time, which must be one."""
    assert abs(seconds * RATE - round(seconds * RATE)) < 1e-2
    return round(seconds * RATE)


def check(world: World) -> None:
    """Every sample is in one final of its channel, in its place, unless it was declared lost."""
    lost = {
        at
        for start, stop in world.state.gaps
        for at in range(*(b // world.clock.frame_bytes for b in (start, stop)))
    }
    assert all(one[1] < two[0] for one, two in pairwise(world.state.gaps)), "a gap is told twice"
    for channel in range(world.channels):
        reached = 0
        said: list[int] = []
        for message in world.results(channel):
            start = sample(message["start"])
            stop = sample(message["start"] + message["duration"])
            assert stop >= start >= reached, "nothing may reach back over what is final"
            words = text(message)
            assert all(start <= word // world.channels < stop for word in words), "words out of their place"
            if message["is_final"]:
                assert start == reached, "finals must follow each other"
                reached, said = stop, said + words
        wanted = [at * world.channels + channel for at in range(world.said)]
        assert reached == world.said
        assert [word for word in wanted if word in set(said) or word // world.channels not in lost] == said
    (metadata,) = (message for message in world.heard if message["type"] == "Metadata")
    assert sample(metadata["duration"]) == world.said
    assert world.state.said_all


frames = st.integers(1, 40)
few = st.integers(0, 4)
parts = {
    "talk": st.tuples(st.just("talk"), frames, few, few, few),
    "say": st.tuples(st.just("say"), frames, st.integers(0, 7)),
    "some": st.tuples(st.sampled_from(["send", "deliver_up", "deliver_down"]), few),
    "all": st.tuples(st.sampled_from(["send", "deliver_up", "deliver_down", "ack"])),
    "hear": st.tuples(st.just("hear"), st.integers(0, 1), frames, st.booleans()),
    "break": st.tuples(st.sampled_from(["drop", "lose", "lose", "restart"])),
}
steps = st.sampled_from([*parts, "talk", "talk", "hear", "hear"]).flatmap(parts.__getitem__)


@settings(max_examples=200, deadline=None, phases=[Phase.generate])
@given(
    script=st.lists(steps, min_size=10, max_size=60),
    ending=st.lists(steps, max_size=10),
    channels=st.integers(1, 2),
    keep=st.sampled_from([64 * SAMPLE + 1, 200 * SAMPLE, ROOMY, ROOMY]),
)
def test_any_weather(
    script: list[tuple[Any, ...]], ending: list[tuple[Any, ...]], channels: int, keep: int
) -> None:
    """Whatever breaks in whatever order: each word once, in place, or declared lost; memory is bounded."""
    world = World(channels, keep)
    world.lose()
    for name, *arguments in [*script, ("finish",), *ending]:
        getattr(world, name)(*arguments)
        assert world.state.end - world.state.start <= keep
    world.heal()
    check(world)
    if keep == ROOMY:
        assert world.state.gaps == []


def begun(**options: Any) -> World:
    """A session that has said and sent 100 frames, of which 60 are final and acknowledged."""
    world = World(**options)
    world.connect()
    world.deliver_down()
    world.say(100)
    world.send()
    world.deliver_up()
    world.hear(0, 60)
    world.ack()
    world.deliver_down()
    return world


def test_acknowledged_audio_is_forgotten() -> None:
    """What is final, or on a disk, need not be kept; nothing else is let go, nor what was never sent."""
    world = begun()
    assert (world.state.start, world.state.end) == (60 * SAMPLE, 100 * SAMPLE)
    world.state.heard(b'{"type":"GatewayAck","received":400,"durable":320,"final":280,"seq":1}')
    assert (world.state.start, world.state.final) == (320, 280)
    world.say(10)
    world.state.heard(b'{"type":"GatewayAck","received":4000,"durable":4000,"final":4000,"seq":1}')
    assert (world.state.start, world.state.final) == (400, 400)


def test_an_ack_ahead_of_its_results() -> None:
    """Finals that are still on their way do not count, or a lost connection would lose their words."""
    world = begun()
    world.state.heard(b'{"type":"GatewayAck","received":400,"durable":0,"final":400,"seq":2}')
    assert world.state.start == 240


def test_resume_asks_for_what_is_missing() -> None:
    """The request says what the client has; it goes on exactly where the gateway says."""
    world = begun()
    token = json.loads(world.state.request() or "")["token"]
    world.connect()
    request = json.loads(world.up[0])
    assert request == {
        "type": "GatewayResume",
        "token": token,
        "epoch": "epoch-1",
        "have_seq": 1,
        "oldest_audio_offset": 240,
    }
    world.deliver_up()
    world.say(10)
    world.deliver_down()
    assert world.state.next_to_send() == audio(range(100, 110))


def test_a_token_is_used_until_the_next_one_came() -> None:
    """An answer that is lost locks nobody out."""
    world = begun()
    world.connect()
    world.deliver_up()  # the gateway has a new token, and its answer is lost
    world.connect()
    world.deliver_up()
    world.deliver_down()
    first, second = world.model.requests
    assert first["token"] == second["token"]
    world.connect()
    assert json.loads(world.up[0])["token"] not in ("", first["token"])


def test_dropped_audio_is_declared_in_its_place() -> None:
    """Beyond the bound the oldest goes; the hole is said before what follows it, on a new connection too."""
    world = World(keep_bytes=100 * SAMPLE)
    world.connect()
    world.deliver_down()
    world.say(100)
    world.send()  # 0-100 is on its way
    world.say(60)
    world.drop()
    world.say(90)
    world.connect()
    world.deliver_up()
    world.deliver_down()
    gap = json.loads(str(world.state.next_to_send()))
    assert gap["type"] == "GatewayGap"
    assert gap["from"] == 0
    assert gap["to"] >= 150 * SAMPLE
    assert gap["to"] == world.state.start
    assert world.state.gaps == [(0, world.state.start)]


def test_a_new_session_goes_on_with_the_clock() -> None:
    """A restarted gateway knows nothing: it gets what had no final, and its times are moved."""
    world = begun()
    world.restart()
    assert world.state.base == 240
    world.send()
    assert world.up.popleft() == audio(range(60, 100))
    assert json.loads(world.state.request() or "")["oldest_audio_offset"] == 0
    world.state.heard(b'{"type":"SpeechStarted","channel":[0,1],"timestamp":0.5,"gateway":{"seq":1}}')
    gaps = b'"gateway":{"seq":2,"gaps":[{"start":1.0,"stop":2.0}]}'
    body = world.state.heard(b'{"type":"UtteranceEnd","channel":[0,1],"last_word_end":-1,%s}' % gaps)
    assert body is not None
    assert body["last_word_end"] == -1
    assert body["gateway"]["gaps"] == [{"start": 1.0 + 60 / RATE, "stop": 2.0 + 60 / RATE}]


def test_a_new_session_of_two_channels() -> None:
    """It begins where the channel that was behind needs it; the other does not say its words again."""
    world = begun(channels=2)
    world.hear(1, 30)
    world.deliver_down()
    world.restart()
    world.send()
    world.deliver_up()
    world.hear(0, 10)
    world.hear(0, 40)
    world.ack()
    world.deliver_down()
    _, second = world.finals(0)
    assert sample(second["start"]) == 60
    assert text(second) == list(range(120, 160, 2))
    assert json.loads(world.state.request() or "")["oldest_audio_offset"] == 0
    world.hear(1, 20)
    world.ack()
    world.deliver_down()
    assert (world.state.base, world.state.start) == (240, 400)
    assert json.loads(world.state.request() or "")["oldest_audio_offset"] == 160
    world.state.heard(b'{"type":"GatewayAck","received":560,"durable":0,"final":320,"seq":3}')
    assert world.state.final == 240 + 320


def test_the_last_part_of_a_sample() -> None:
    """Audio that ends inside a sample is sent to its last byte, once it has ended."""
    state = ResumeState(MONO, ListenV1(), ROOMY)
    state.append(b"abcdefg")
    assert [state.next_to_send(), state.next_to_send()] == [b"abcd", None]
    state.finish()
    assert [state.next_to_send(), state.next_to_send()] == [b"efg", '{"type":"CloseStream"}']


def test_a_hole_in_the_numbers() -> None:
    """A missing result is an error, never passed over; one that came before is."""
    world = begun()
    assert world.state.heard(b'{"type":"SpeechStarted","channel":[0,1],"gateway":{"seq":1}}') is None
    with pytest.raises(SessionLost, match="number 3 came after 1"):
        world.state.heard(b'{"type":"SpeechStarted","channel":[0,1],"gateway":{"seq":3}}')


def resumed(**fields: Any) -> bytes:
    said = {"type": "GatewayResumed", "session": "s", "epoch": "epoch-1", "token": "t", "recovered": True}
    return msgspec.json.encode(said | fields)


@pytest.mark.parametrize(
    "answer",
    [
        resumed(audio_offset=0, epoch="other"),
        resumed(audio_offset=101 * SAMPLE),
        resumed(audio_offset=-1),
        b'{"type":"Metadata"}',
        b"no JSON",
    ],
)
def test_answers_that_cannot_be(answer: bytes) -> None:
    """Another epoch, audio that was never sent, another language: not guessed at."""
    world = begun()
    world.connect()
    with pytest.raises(SessionLost):
        world.state.welcome(answer)


def test_audio_without_a_clock() -> None:
    """It resumes like any other, message by message; holes and new sessions have no place for it."""
    state = ResumeState(PACKETS, ListenV1(), 10)
    state.welcome(b'{"type":"GatewaySession","session":"s","epoch":"e","token":"t"}')
    for packet in (b"abcd", b"efg"):
        state.append(packet)
    assert [state.next_to_send() for _ in range(3)] == [b"abcd", b"efg", None]
    state.welcome(resumed(epoch="e", audio_offset=4))
    assert state.next_to_send() == b"efg"
    state.append(b"hijkl")
    state.append(b"mnop")  # drops what has gone already
    assert state.next_to_send() == b"hijkl"
    with pytest.raises(SessionLost, match="cannot begin anew"):
        state.welcome(resumed(epoch="f", recovered=False, audio_offset=0))
    state.welcome(resumed(epoch="e", audio_offset=0))
    with pytest.raises(SessionLost, match="had to be dropped"):
        state.next_to_send()


def test_flux_turns() -> None:
    """A turn that has ended is final; a new session says Connected again, which is not news."""
    state = ResumeState(MONO, ListenV2(), ROOMY)
    state.welcome(b'{"type":"GatewaySession","session":"s","epoch":"e","token":"t"}')
    state.append(audio(range(RATE)))
    state.next_to_send()

    def turn(event: str, seq: int, end: float) -> bytes:
        said = {"type": "TurnInfo", "event": event, "audio_window_start": 0.0, "audio_window_end": end}
        return msgspec.json.encode(said | {"transcript": "x", "words": [], "gateway": {"seq": seq}})

    assert state.heard(b'{"type":"Connected","request_id":"r","sequence_id":0,"gateway":{"seq":1}}')
    assert state.heard(turn("Update", 2, 0.25))
    assert state.start == 0
    assert state.heard(turn("EndOfTurn", 3, 0.5))
    assert state.final == RATE // 2 * SAMPLE
    state.welcome(resumed(epoch="f", recovered=False, audio_offset=0))
    assert state.heard(b'{"type":"Connected","request_id":"r","sequence_id":0,"gateway":{"seq":1}}') is None
    body = state.heard(turn("EndOfTurn", 2, 0.25))
    assert body is not None
    assert (body["audio_window_start"], body["audio_window_end"]) == (0.5, 0.75)
