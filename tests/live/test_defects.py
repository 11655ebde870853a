"""A mistake of ours costs the call that it is in: its neighbours hear nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection

from gateway.app import Gateway
from gateway.deepgram.errors import INTERNAL
from gateway.deepgram.recogniser import Kind
from gateway.emulator import Emulator
from gateway.live import exchange as module
from gateway.live.call import Call
from gateway.live.defects import contained
from gateway.session.events import Deliver
from gateway.session.protocol import SessionProtocol
from tests.fakes.stand import (
    CLOSE_STREAM,
    LISTEN,
    Stand,
    call,
    dial,
    eventually,
    of_type,
    read,
    send,
    words,
)
from tests.fakes.wire_client import WireClient, upgrade

AUDIO = b"\xff" * 800


class Bug(Exception):
    """What nobody thought of."""


def break_it(monkeypatch: pytest.MonkeyPatch, session: SessionProtocol, method: str) -> None:
    """From now on `method` of this one session raises."""
    original = getattr(SessionProtocol, method)

    def broken(self: SessionProtocol, *arguments: object, **named: object) -> object:
        if self is session:
            raise Bug
        return original(self, *arguments, **named)

    monkeypatch.setattr(SessionProtocol, method, broken)


def test_what_is_raised_goes_to_the_object() -> None:
    """The caller hears nothing; without an exception nothing is changed."""

    class Thing:
        defects = 0
        done: tuple[int, ...] = ()

        def defect(self) -> None:
            self.defects += 1

        @contained
        def act(self, *numbers: int) -> None:
            """Sums up."""
            self.done = numbers
            if not numbers:
                raise Bug

    thing = Thing()
    thing.act(1, 2)
    assert (thing.done, thing.defects) == ((1, 2), 0)
    thing.act()
    assert thing.defects == 1
    assert Thing.act.__doc__ == "Sums up."


Trigger = Callable[[Gateway, Emulator, ClientConnection], Any]


def the_call(gateway: Gateway, ws: ClientConnection) -> Call:
    assert ws.response is not None
    return gateway._exchange.calls[ws.response.headers["gw-session-id"]]


async def speak(_gateway: Gateway, _emulator: Emulator, ws: ClientConnection) -> None:
    await send(ws, call()[0])


async def write(_gateway: Gateway, _emulator: Emulator, ws: ClientConnection) -> None:
    await ws.send('{"type":"KeepAlive"}')


async def lose_deepgram(_gateway: Gateway, emulator: Emulator, _ws: ClientConnection) -> None:
    emulator.act("reset")


async def refuse_another(_gateway: Gateway, emulator: Emulator, ws: ClientConnection) -> None:
    emulator.patch(deny_status=503)
    emulator.act("reset")
    await ws.send(AUDIO)


async def sweep(gateway: Gateway, _emulator: Emulator, ws: ClientConnection) -> None:
    the_call(gateway, ws).shrink(0)


async def cut(gateway: Gateway, _emulator: Emulator, ws: ClientConnection) -> None:
    the_call(gateway, ws).cut_short(1013, "no memory")


async def nothing(_gateway: Gateway, _emulator: Emulator, _ws: ClientConnection) -> None:
    """Time passes."""


@pytest.mark.interpreted
@pytest.mark.parametrize("batch_ms", [0, 20])
@pytest.mark.parametrize(
    ("method", "trigger"),
    [
        pytest.param("client_said", write, id="what the client says"),
        pytest.param("handle_timer", nothing, id="a timer"),
        pytest.param("events_received", write, id="the orders"),
        pytest.param("get_timer", write, id="the next timer"),
        pytest.param("data_to_send", write, id="what goes up"),
        pytest.param("upstream_message", speak, id="what Deepgram says"),
        pytest.param("upstream_heard", speak, id="bytes of Deepgram"),
        pytest.param("upstream_lost", lose_deepgram, id="the end of Deepgram"),
        pytest.param("dial_refused", refuse_another, id="a dial"),
        pytest.param("shrink", sweep, id="a sweep"),
        pytest.param("stream_failed", cut, id="the end itself"),
    ],
)
async def test_a_defect_costs_one_call(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, method: str, trigger: Trigger, batch_ms: int
) -> None:
    """It is logged with its traceback, its client gets 1011, nothing of it stays; its neighbour is heard."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url, server={"batch_ms": batch_ms}, session={"backoff_base": 0.01, "backoff_cap": 0.02}
    )
    audio, said = call()
    async with dial(gateway) as neighbour, dial(gateway) as ws:
        await ws.send(AUDIO)
        await eventually(lambda: emulator.connections[-1].audio_bytes == len(AUDIO))
        victim = the_call(gateway, ws)
        with capture_logs() as logs:
            break_it(monkeypatch, victim.session, method)
            await trigger(gateway, emulator, ws)
            await read(ws)
        assert ws.close_code == INTERNAL
        defects = [entry for entry in logs if entry["event"] == "call.defect"]
        assert defects
        assert all(entry["exc_info"] and entry["session"] == victim.session_id for entry in defects)
        emulator.patch(deny_status=None)
        await eventually(lambda: gateway.metrics.sessions_active == 1)
        assert list(gateway._exchange.calls) == [the_call(gateway, neighbour).session_id]
        await eventually(lambda: gateway.metrics.deepgram_connections <= 1)  # a silent call needs none
        await send(neighbour, audio)
        await neighbour.send(CLOSE_STREAM)
        assert words(await read(neighbour)) == said
    assert gateway.metrics.sessions_active == 0


@pytest.mark.interpreted
async def test_the_gap_is_declared(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had no final when the defect struck is an Error to the client, a gap in the log and a number."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway) as ws:
        await ws.send(AUDIO * 10)
        await eventually(lambda: emulator.connections[0].audio_bytes == len(AUDIO * 10))
        with capture_logs() as logs:
            break_it(monkeypatch, the_call(gateway, ws).session, "handle_timer")
            messages = await read(ws)
    assert of_type(messages, "Error")
    gaps = [entry for entry in logs if entry["event"] == "call.gap"]
    assert [(gap["start"], gap["stop"]) for gap in gaps] == [(0.0, 1.0)]
    assert gateway.metrics.sessions_active == 0


@pytest.mark.interpreted
async def test_what_was_ordered_too_is_still_done(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """One order of several cannot be carried out: those that follow it are, before the call ends."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    async with dial(gateway) as ws:
        await ws.send(AUDIO)
        await eventually(lambda: emulator.connections[0].audio_bytes == len(AUDIO))
        victim, orders = the_call(gateway, ws), [None, Deliver(b'{"type":"Results"}', Kind.FINAL)]
        original, events = Call._perform, SessionProtocol.events_received

        def perform(self: Call, event: Any) -> None:
            if event is None:
                raise Bug
            original(self, event)

        def ordered(self: SessionProtocol) -> list[Any]:
            found = [*orders, *events(self)]
            orders.clear()
            return found

        monkeypatch.setattr(Call, "_perform", perform)
        monkeypatch.setattr(SessionProtocol, "events_received", ordered)
        victim.client_reads()
        assert [message["type"] for message in await read(ws)] == ["Results", "Error"]
        assert ws.close_code == INTERNAL


@pytest.mark.interpreted
async def test_a_client_that_waits_for_its_101(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as HTTP."""
    emulator = await stand.emulator(handshake_delay=30)
    gateway = await stand.gateway(emulator.url)
    async with await WireClient.connect(gateway.address) as waiting:
        await waiting.send(upgrade(f"/v1/listen?{LISTEN}"))
        await eventually(lambda: gateway._exchange.calls)
        (victim,) = gateway._exchange.calls.values()
        break_it(monkeypatch, victim.session, "handle_timer")
        victim._on_timer()
        await waiting.read_response()
        assert waiting.status == 500
    assert not gateway._exchange.calls


@pytest.mark.interpreted
async def test_a_drain_goes_on(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that can be neither let go nor shut down does not keep the others from their last results."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    audio, said = call()
    async with dial(gateway) as ws, dial(gateway) as neighbour:
        victim = the_call(gateway, ws).session
        break_it(monkeypatch, victim, "let_go")
        break_it(monkeypatch, victim, "stream_failed")
        await send(neighbour, audio)
        await eventually(lambda: emulator.connections[1].audio_bytes == len(audio))
        await gateway.stop(0)
        assert words(await read(neighbour)) == said
        await read(ws)
        assert ws.close_code == INTERNAL
    assert not gateway._exchange.calls


async def test_sweeps_come_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails is logged; the next one is not its business."""
    monkeypatch.setattr(module, "SWEEP_INTERVAL", 0.02)
    looks = 0

    def look(*_arguments: object) -> None:
        nonlocal looks
        looks += 1
        raise Bug

    monkeypatch.setattr(module, "relief", look)
    with capture_logs() as logs:
        await stand.gateway("http://127.0.0.1:1")
        await eventually(lambda: looks >= 3)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"][:2] == ["sweep.defect"] * 2
