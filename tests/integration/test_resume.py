"""A client loses its connection and comes back: nothing is lost, nothing comes twice (docs/resume.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.app import Gateway
from gateway.auth import Principal
from gateway.live import front
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Message,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    scrape,
    words,
)
from tests.integration.test_lost_upstream import SESSION, tiled
from tests.integration.test_transparency import BRISK_WINDOWS

QUERY = f"{LISTEN}&interim_results=true"


class Caller:
    """A client as docs/resume.md wants it: what it has of results, and where it is in its audio."""

    def __init__(self, gateway: Gateway, audio: bytes) -> None:
        self.gateway = gateway
        self.audio = audio
        self.at = 0
        self.results: list[Message] = []
        self.raw: list[str] = []
        self.acks: list[Message] = []
        self.session = self.token = self.epoch = ""
        self.base = 0
        self.ws: ClientConnection | None = None

    @property
    def open(self) -> ClientConnection:
        assert self.ws is not None
        return self.ws

    async def begin(self) -> Message:
        self.ws = await dial(self.gateway, f"{QUERY}&gw_resume=1")
        return self.greeted(await self.next())

    async def come_back(self, **changes: Any) -> Message:
        """Connects anew and says so."""
        self.ws = await dial(self.gateway, f"{QUERY}&gw_resume={changes.pop('session', self.session)}")
        await self.say(**changes)
        return self.greeted(await self.next())

    async def say(self, **changes: Any) -> None:
        request = {"token": self.token, "epoch": self.epoch, "have_seq": self.seq, "oldest_audio_offset": 0}
        await self.open.send(json.dumps({"type": "GatewayResume", **request, **changes}))

    async def next(self) -> Message:
        async with asyncio.timeout(10):
            message: Message = json.loads(await self.open.recv())
        return message

    def greeted(self, message: Message) -> Message:
        self.session, self.token, self.epoch = message["session"], message["token"], message["epoch"]
        if "audio_offset" in message:
            self.at = message["audio_offset"]
        return message

    @property
    def seq(self) -> int:
        return self.results[-1]["gateway"]["seq"] if self.results else 0

    async def send(self, until: int, size: int = 800) -> None:
        """Audio up to the byte `until`."""
        while self.at < until:
            piece = self.audio[self.at : min(until, self.at + size)]
            await self.open.send(piece)
            self.at += len(piece)

    async def read(self, enough: Callable[[], object] = lambda: False) -> int | None:
        """Reads until `enough`, or up to the close; its code."""
        async with asyncio.timeout(20):
            try:
                while not enough():
                    text = await self.open.recv()
                    assert isinstance(text, str)
                    self.take(text)
            except ConnectionClosed:
                return self.open.close_code
        return None

    def take(self, text: str) -> None:
        message = json.loads(text)
        if message["type"] == "GatewayAck":
            self.acks.append(message)
        elif "gateway" in message:
            assert message["gateway"]["seq"] == self.seq + 1
            self.results.append(message)
            self.raw.append(text)
        else:
            assert (message["type"], message["is_final"]) == ("Results", False)

    def drop(self) -> None:
        """The end of TCP, without a word."""
        self.open.transport.abort()

    async def finish(self) -> None:
        await self.send(len(self.audio))
        await self.open.send(CLOSE_STREAM)
        assert await self.read() == 1000

    def check(self, said: list[int], *, gaps: bool = False) -> None:
        """Every word once, on one clock."""
        assert words(self.results) == said
        assert of_type(self.results, "Metadata") == self.results[-1:]
        assert self.results[-1]["duration"] == pytest.approx(len(self.audio) / 8000, abs=1e-3)
        tiled(self.results, len(self.audio) / 8000)


async def place(
    stand: Stand, *, faults: Any = (), knobs: dict[str, Any] | None = None, **resume: Any
) -> tuple[Gateway, Any]:
    emulator = await stand.emulator(faults=faults, **{**BRISK_WINDOWS, **(knobs or {})})
    gateway = await stand.gateway(emulator.url, session=SESSION, resume={"ack_every_ms": 50, **resume})
    return gateway, emulator


async def calm(gateway: Gateway) -> None:
    """Nothing is left of any session (continuity.md I22)."""
    metrics = gateway.metrics
    await eventually(lambda: not metrics.sessions_active and not metrics.deepgram_connections)
    assert metrics.sessions_detached == 0
    assert gateway.door.connections == 0
    text = await scrape(gateway)
    assert "\ngw_journal_bytes 0" in text


async def detached(gateway: Gateway) -> None:
    await eventually(lambda: gateway.metrics.sessions_detached == 1)


async def test_without_a_loss(stand: Stand) -> None:
    """Numbers, acks and a token beside what everybody gets (continuity.md I14)."""
    gateway, _ = await place(stand)
    audio, said = call(20)
    caller = Caller(gateway, audio)
    hello = await caller.begin()
    assert hello["type"] == "GatewaySession"
    assert hello["bytes_per_second"] == 8000
    assert len(hello["token"]) >= 43
    await caller.send(len(audio))
    await caller.read(lambda: caller.acks and caller.acks[-1]["received"] == len(audio))
    await caller.finish()
    caller.check(said)
    for name in ("received", "final", "seq"):
        values = [ack[name] for ack in caller.acks]
        assert values == sorted(values)
    assert all(ack["final"] <= ack["received"] and ack["durable"] == 0 for ack in caller.acks)
    await calm(gateway)


async def test_a_plain_client_sees_none_of_it(stand: Stand) -> None:
    """No key, no message (continuity.md I19)."""
    gateway, _ = await place(stand)
    audio, said = call(8)
    async with dial(gateway, QUERY) as ws:
        await ws.send(audio)
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
    assert words(messages) == said
    assert not [m for m in messages if "gateway" in m or m["type"].startswith("Gateway")]


async def test_when_it_is_switched_off(stand: Stand) -> None:
    """The parameter has no effect, and still never reaches Deepgram."""
    gateway, emulator = await place(stand, enabled=False)
    for asked in ("1", "some-session"):
        async with dial(gateway, f"{QUERY}&gw_resume={asked}") as ws:
            await ws.send(CLOSE_STREAM)
            assert [m["type"] for m in await read(ws)] == ["Metadata"]
    assert all("gw_" not in record.query for record in emulator.connections)


async def half_sent(caller: Caller) -> None:
    await caller.send(len(caller.audio) // 2)


async def some_results(caller: Caller) -> None:
    await caller.send(len(caller.audio) // 2)
    await caller.read(lambda: caller.seq >= 2)


async def all_sent(caller: Caller) -> None:
    await caller.send(len(caller.audio))


async def close_said(caller: Caller) -> None:
    await caller.send(len(caller.audio))
    await caller.open.send(CLOSE_STREAM)


async def nothing_sent(caller: Caller) -> None:
    pass


PHASES = (nothing_sent, half_sent, some_results, all_sent, close_said)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_drop_in_every_phase(stand: Stand, phase: Callable[[Caller], Awaitable[None]]) -> None:
    """The client comes back at once and goes on from where the gateway is (faults.md 31, 41)."""
    gateway, _ = await place(stand)
    audio, said = call(30)
    caller = Caller(gateway, audio)
    await caller.begin()
    await phase(caller)
    caller.drop()
    answer = await caller.come_back()
    assert answer["recovered"] is True
    assert answer["audio_offset"] <= len(audio)
    await caller.finish()
    caller.check(said)
    await calm(gateway)


async def test_many_drops(stand: Stand) -> None:
    """Each second, to the end; numbers go on without holes (continuity.md I15)."""
    gateway, _ = await place(stand)
    audio, said = call(40)
    caller = Caller(gateway, audio)
    await caller.begin()
    step = len(audio) // 8
    for n in range(1, 8):
        await caller.send(min(len(audio), n * step))
        if n % 2:
            await caller.read(lambda: caller.acks)
        caller.drop()
        assert (await caller.come_back())["recovered"]
        caller.acks.clear()
    await caller.finish()
    caller.check(said)
    assert gateway.metrics.resumes["recovered"] == 7
    await calm(gateway)


async def test_after_the_close_was_lost(stand: Stand) -> None:
    """The session is over, and waits for its client to know."""
    gateway, emulator = await place(stand)
    audio, said = call(8)
    caller = Caller(gateway, audio)
    await caller.begin()
    caller.open.transport.pause_reading()
    await close_said(caller)
    await eventually(lambda: gateway.metrics.deepgram_connections == 1)
    await eventually(lambda: gateway.metrics.deepgram_connections == 0)
    caller.drop()
    await detached(gateway)
    assert (await caller.come_back())["recovered"]
    assert await caller.read() == 1000
    caller.check(said)
    assert len(emulator.connections) == 1
    await calm(gateway)


async def test_results_wait(stand: Stand) -> None:
    """Pending words become final while nobody is there, and come when somebody is (faults.md 30)."""
    gateway, emulator = await place(stand, knobs={"window_min": 30, "window_max": 31})
    audio, said = call(12)
    caller = Caller(gateway, audio)
    with capture_logs() as logs:
        await caller.begin()
        await caller.send(len(audio))
        await eventually(lambda: emulator.connections[0].audio_bytes == len(audio))
        caller.drop()
        await detached(gateway)
        await eventually(lambda: "Finalize" in "".join(emulator.connections[0].texts))
        assert (await caller.come_back())["recovered"]
        await caller.read(lambda: caller.results)
        await caller.finish()
    caller.check(said)
    events = [entry["event"] for entry in logs]
    assert events.index("client.detached") < events.index("client.resumed")
    assert caller.token not in json.dumps([str(entry) for entry in logs])


async def test_a_half_open_connection_is_fenced(stand: Stand) -> None:
    """What still comes from the old connection has no effect, from before the offset is read (I13)."""
    gateway, _ = await place(stand)
    audio, said = call(24)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    old = caller.open
    assert (await caller.come_back())["recovered"]
    with contextlib.suppress(ConnectionClosed):
        for _ in range(1000):
            await old.send(b"\x00" * 800)
            await asyncio.sleep(0.001)
    assert old.close_code == 4409
    await caller.finish()
    caller.check(said)
    assert gateway.metrics.takeovers == 1
    await calm(gateway)


async def test_audio_in_flight_on_the_old_connection(stand: Stand) -> None:
    """What the gateway had not read of the old connection comes too late (continuity.md I13)."""
    gateway, _ = await place(stand)
    audio, said = call(24)
    caller = Caller(gateway, audio)
    await caller.begin()
    (session,) = gateway._exchange.calls.values()
    session._leg.pause_reading(True)
    await caller.send(len(audio) // 3)
    old = caller.open
    answer = await caller.come_back()
    assert answer["audio_offset"] == 0
    session._leg.pause_reading(False)
    await caller.finish()
    caller.check(said)
    assert await Caller.read(caller) == 1000
    await old.wait_closed()
    assert old.close_code == 4409


async def test_a_lost_answer_locks_nobody_out(stand: Stand) -> None:
    """The connection dies while GatewayResumed is on its way: the same request does it again."""
    gateway, _ = await place(stand)
    audio, said = call(16)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    caller.drop()
    for _ in range(3):
        caller.ws = await dial(gateway, f"{QUERY}&gw_resume={caller.session}")
        await caller.say()
        caller.drop()
        await asyncio.sleep(0.05)
    assert (await caller.come_back())["recovered"]
    await caller.finish()
    caller.check(said)


async def test_a_wrong_token_disturbs_nobody(stand: Stand) -> None:
    """4501, while the session goes on (security.md S51)."""
    gateway, _ = await place(stand)
    audio, said = call(16)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    async with dial(gateway, f"{QUERY}&gw_resume={caller.session}") as ws:
        await ws.send('{"type":"GatewayResume","token":"guess","epoch":"' + caller.epoch + '","have_seq":0}')
        assert await read(ws) == []
        assert ws.close_code == 4501
    await caller.finish()
    caller.check(said)
    assert gateway.metrics.takeovers == 0
    assert gateway.metrics.resumes["wrong_token"] == 1
    await calm(gateway)


async def test_a_used_token_is_worth_nothing(stand: Stand) -> None:
    """Once the one after it has been used (security.md S51)."""
    gateway, _ = await place(stand)
    caller = Caller(gateway, b"")
    first = (await caller.begin())["token"]
    await caller.come_back()
    await caller.come_back()
    async with dial(gateway, f"{QUERY}&gw_resume={caller.session}") as ws:
        await ws.send(json.dumps({"type": "GatewayResume", "token": first, "epoch": "", "have_seq": 0}))
        await read(ws)
        assert ws.close_code == 4501


async def test_somebody_elses_session_is_none(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the right token too: one gets a session of one's own (continuity.md I21, security.md S51)."""
    gateway, _ = await place(stand)
    audio, said = call(12)
    caller, thief = Caller(gateway, audio), Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    authenticator = gateway._exchange.authenticator
    with monkeypatch.context() as other:
        other.setattr(authenticator, "authenticate", lambda _: Principal("mallory", "key"))
        thief.token, thief.epoch = caller.token, caller.epoch
        answer = await thief.come_back(session=caller.session)
    assert answer["recovered"] is False
    assert answer["session"] != caller.session
    assert (answer["audio_offset"], answer["next_seq"]) == (0, 1)
    for one in (thief, caller):
        await one.finish()
        one.check(said)
    assert gateway.metrics.resumes["unknown"] == 1


@pytest.mark.parametrize("changes", [{"session": "unknown"}, {"epoch": "another"}, {"have_seq": 1000}])
async def test_what_cannot_be_recovered(stand: Stand, changes: dict[str, Any]) -> None:
    """A new session, whole from its beginning; whoever had the old one loses it."""
    gateway, emulator = await place(stand)
    audio, said = call(12)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    old = caller.session
    caller.drop()
    await detached(gateway)
    answer = await caller.come_back(**changes)
    assert answer["recovered"] is False
    assert answer["session"] != old
    caller.results.clear()
    await caller.finish()
    caller.check(said)
    assert len(emulator.connections) == 2
    if "session" not in changes:
        await calm(gateway)


async def test_a_journal_that_overflowed(stand: Stand) -> None:
    """All or nothing: without one of the results it is a new session (continuity.md I15)."""
    gateway, _ = await place(stand, journal_bytes=4096)
    audio, said = call(60)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio))
    await caller.read(lambda: caller.seq >= 20)
    caller.drop()
    await detached(gateway)
    assert sum(c.journal_bytes for c in gateway._exchange.calls.values()) <= 4096
    caller.results.clear()
    assert (await caller.come_back())["recovered"] is False
    await caller.finish()
    caller.check(said)
    assert gateway.metrics.resumes["lost"] == 1
    await calm(gateway)


async def test_a_gap_after_coming_back(stand: Stand) -> None:
    """What the client no longer has is declared, and times stay true (continuity.md I3, I5)."""
    gateway, _ = await place(stand)
    (before, said), (after, said_after) = call(12), call(12, 2)
    hole = bytes(8000)
    caller = Caller(gateway, before + hole + after)
    await caller.begin()
    await caller.send(len(before))
    await caller.read(lambda: caller.acks and caller.acks[-1]["received"] == len(before))
    caller.drop()
    answer = await caller.come_back()
    start, stop = answer["audio_offset"], len(before) + len(hole)
    assert start == len(before)
    await caller.open.send(json.dumps({"type": "GatewayGap", "from": start, "to": stop}))
    caller.at = stop
    await caller.finish()
    assert words(caller.results) == said + said_after
    declared = {"start": start / 8000, "stop": stop / 8000, "reason": "client_discarded"}
    assert [m for m in caller.results if declared in m["gateway"].get("gaps", [])]
    finals = [m for m in of_type(caller.results, "Results") if m["is_final"]]
    spoken = [w for m in finals for w in m["channel"]["alternatives"][0]["words"]]
    later = [w for w in spoken if w["start"] >= stop / 8000 - 1e-3]
    assert len(later) == len(said_after)
    assert all(w["end"] <= start / 8000 + 1e-3 for w in spoken if w not in later)
    assert caller.results[-1]["duration"] == pytest.approx(len(caller.audio) / 8000, abs=1e-3)
    assert gateway.metrics.gap_seconds["client_discarded"] == pytest.approx(1.0)


async def test_the_window_ends(stand: Stand) -> None:
    """Nobody comes: the session ends, and nothing of it stays (continuity.md I22)."""
    gateway, emulator = await place(stand, window=0.5, hold_upstream=0.2)
    audio, _ = call(8)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio))
    caller.drop()
    await detached(gateway)
    with capture_logs() as logs:
        await calm(gateway)
    assert "client.given_up" in [entry["event"] for entry in logs]
    assert emulator.connections[0].closed_at is not None
    assert (await caller.come_back())["recovered"] is False


async def test_after_the_upstream_was_let_go(stand: Stand) -> None:
    """Audio goes to a new connection, numbers and times go on."""
    gateway, emulator = await place(stand, hold_upstream=0.1)
    audio, said = call(24)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    await eventually(lambda: emulator.connections[0].audio_bytes == len(audio) // 2)
    caller.drop()
    await detached(gateway)
    await eventually(lambda: gateway.metrics.deepgram_connections == 0)
    assert emulator.connections[0].audio == audio[: len(audio) // 2]
    assert (await caller.come_back())["recovered"]
    await caller.finish()
    tiled(caller.results, len(audio) / 8000)
    assert len(emulator.connections) == 2
    heard = iter(words(caller.results))
    missing = [token for token in said if token not in heard]
    assert len(missing) <= 1, "but for the word that the end of a connection cut"


async def test_both_ends_break_at_once(stand: Stand) -> None:
    """The client's connection and Deepgram's; no word is lost on either side (faults.md 1, 31)."""
    gateway, emulator = await place(stand, knobs={"window_min": 20, "window_max": 21})
    audio, said = call(24)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    await eventually(lambda: emulator.connections[0].audio_bytes)
    emulator.act("reset")
    caller.drop()
    await detached(gateway)
    assert (await caller.come_back())["recovered"]
    await caller.send(len(audio) * 3 // 4)
    emulator.act("reset")
    await caller.finish()
    caller.check(said)
    await calm(gateway)


async def test_too_many_wait(stand: Stand) -> None:
    """The one that has waited longest makes room (security.md S51)."""
    gateway, _ = await place(stand, max_detached=2)
    callers = [Caller(gateway, b"\xff" * 8000) for _ in range(3)]
    for caller in callers:
        await caller.begin()
        await caller.send(4000)
        await caller.read(lambda caller=caller: caller.acks)  # type: ignore[misc] # bound for the loop
        caller.drop()
        await asyncio.sleep(0.05)
    await eventually(lambda: gateway.metrics.sessions_active == 2)
    assert gateway.metrics.sessions_detached == 2
    assert [(await caller.come_back())["recovered"] for caller in callers] == [False, True, True]


async def test_two_at_once(stand: Stand) -> None:
    """Exactly one has the session in the end, and no byte of the other is in it (faults.md 43)."""
    gateway, _ = await place(stand)
    audio, said = call(24)
    caller = Caller(gateway, audio)
    await caller.begin()
    await caller.send(len(audio) // 2)
    caller.drop()
    await detached(gateway)
    sockets = [await dial(gateway, f"{QUERY}&gw_resume={caller.session}") for _ in range(8)]
    for caller.ws in sockets:
        await caller.say()
    await eventually(lambda: sum(ws.close_code == 4409 for ws in sockets) == 7)
    (caller.ws,) = (ws for ws in sockets if ws.close_code is None)
    caller.greeted(await caller.next())
    await caller.finish()
    caller.check(said)


@pytest.mark.parametrize(
    "first", [b"\x00" * 160, "{}", '{"type":"KeepAlive"}', "no json", '{"type":"GatewayGap"}']
)
async def test_another_first_message(stand: Stand, first: bytes | str) -> None:
    """Only a GatewayResume can be the first."""
    gateway, emulator = await place(stand)
    async with dial(gateway, f"{QUERY}&gw_resume=any") as ws:
        await ws.send(first)
        assert await read(ws) == []
        assert ws.close_code == 4500
    assert emulator.connections == []
    assert gateway.door.connections == 0


async def test_no_first_message(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for it; and a client may leave before."""
    monkeypatch.setattr(front, "FIRST_MESSAGE", 0.2)
    gateway, emulator = await place(stand)
    async with dial(gateway, f"{QUERY}&gw_resume=any") as ws:
        assert await read(ws) == []
        assert ws.close_code == 4500
    ws = await dial(gateway, f"{QUERY}&gw_resume=any")
    ws.transport.abort()
    await eventually(lambda: gateway.metrics.resumes["abandoned"] == 1)
    assert emulator.connections == []
    assert gateway.door.connections == 0


async def test_the_101_of_who_comes_back(stand: Stand) -> None:
    """The session's request id, which SDKs cannot do without."""
    gateway, _ = await place(stand)
    caller = Caller(gateway, b"")
    await caller.begin()
    assert caller.open.response is not None
    headers = caller.open.response.headers
    await caller.come_back()
    assert caller.open.response is not None
    for name in ("dg-request-id", "gw-session-id"):
        assert caller.open.response.headers[name] == headers[name]


async def test_a_leave_is_not_waited_for(stand: Stand) -> None:
    """A close with 1000 ends the session as ever."""
    gateway, _ = await place(stand)
    caller = Caller(gateway, b"\xff" * 4000)
    await caller.begin()
    await caller.send(4000)
    await caller.open.close(1000)
    await calm(gateway)


async def test_a_stop_does_not_wait_for_who_is_not_there(stand: Stand) -> None:
    """A detached session ends as soon as nobody can come back (faults.md 45)."""
    gateway, _ = await place(stand)
    caller = Caller(gateway, b"\xff" * 4000)
    await caller.begin()
    await caller.send(4000)
    caller.drop()
    await detached(gateway)
    async with asyncio.timeout(5):
        await gateway.stop(60)
    assert gateway.metrics.sessions_active == 0


async def test_a_slow_reader_may_come_back(stand: Stand) -> None:
    """4408, and nothing is lost (faults.md 32)."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(
        emulator.url, session={**SESSION, "client_slow": 0.2}, resume={"ack_every_ms": 50}
    )
    caller = Caller(gateway, b"\xff" * 8000)
    await caller.begin()
    (session,) = gateway._exchange.calls.values()
    session._client._slow()
    assert await caller.read() == 4408
    await detached(gateway)
    assert (await caller.come_back())["recovered"]
    await caller.finish()


async def test_a_journal_larger_than_the_write_buffer(stand: Stand) -> None:
    """What a client lacks goes out as it reads: it is not taken for one that does not read."""
    emulator = await stand.emulator(**BRISK_WINDOWS)
    gateway = await stand.gateway(emulator.url, server={"write_buffer_bytes": 262_144}, session=SESSION)
    audio, said = call(60)
    caller = Caller(gateway, audio)
    await caller.begin()
    (live,) = gateway._exchange.calls.values()
    caller.drop()
    await detached(gateway)
    for _ in range(40):
        live.session.answer(b'{"type":"Filler","padding":"' + b"x" * 20_000 + b'"}')
    live.client_reads()
    await caller.come_back()
    await caller.send(len(audio))
    await caller.finish()
    assert sum("Filler" in raw for raw in caller.raw) == 40
    assert words(caller.results) == said
