"""The upstream side of a call: what goes wrong there costs that connection alone."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.emulator import Fault
from gateway.live.dialer import Dialer
from gateway.live.lines import Lines
from gateway.live.upstream import UpstreamLeg
from tests.fakes.stand import CLOSE_STREAM, Stand, call, dial, eventually, read, send, transcribe, words


async def test_a_defect_in_one_dial_ends_no_other_call(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception nobody thought of is logged and counts as a failed dial; all other calls go on."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"accept_wait_ms": 50, "backoff_base": 0.05})
    audio, said = call()
    original = Dialer.dial
    failures = 1

    async def dial_once_broken(self: Dialer, *arguments: Any) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ZeroDivisionError
        await original(self, *arguments)

    async with dial(gateway) as other:
        monkeypatch.setattr(Dialer, "dial", dial_once_broken)
        with capture_logs() as logs:
            assert words(await transcribe(gateway, audio)) == said
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["upstream.dial_defect"]
        await send(other, audio)
        await other.send(CLOSE_STREAM)
        assert words(await read(other)) == said


async def test_a_connection_that_nobody_wants_any_more(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 101 for a dial that was given up ends at once; it never counts, and says nothing."""
    emulator = await stand.emulator(faults=(Fault("reset", nth=1, after_audio=0.4),))
    gateway = await stand.gateway(emulator.url, session={"backoff_base": 0.05})
    opened = Lines.upstream_opened
    legs: list[UpstreamLeg] = []

    def late(self: Lines, leg: UpstreamLeg, request_id: str) -> None:
        legs.append(leg)
        if len(legs) == 2:
            leg.epoch -= 1  # as if a newer dial had taken its place
        opened(self, leg, request_id)

    monkeypatch.setattr(Lines, "upstream_opened", late)
    audio, _ = call()
    async with dial(gateway) as ws:
        await send(ws, audio)
        await eventually(lambda: len(legs) == 2)
        await eventually(lambda: emulator.connections[1].closed_at is not None)
        assert gateway.metrics.deepgram_connections == 0
        assert emulator.connections[1].audio == b""


async def test_who_spoke_is_credited(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result of a second connection, for what an outage left, says nothing of the first one's region."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, "http://127.0.0.1:1")
    credited: list[str] = []
    monkeypatch.setattr(gateway._exchange.regions, "worked", credited.append)
    async with dial(gateway):
        await eventually(lambda: gateway.metrics.deepgram_connections == 1)
        (live,) = gateway._exchange.calls.values()
        lines = live._lines
        lines._legs[2], lines._regions[2] = lines._legs[1], "r1"
        lines._speaking = 2
        lines.worked()
        lines._speaking = 1
        lines.worked()
        del lines._legs[2]
    assert credited == ["r1", "r0"]


async def test_connections_that_are_over_leave_nothing(stand: Stand) -> None:
    """However often a call has dialled."""
    fault = Fault("reset", after_audio=0.3)
    emulator = await stand.emulator(faults=(fault,))
    gateway = await stand.gateway(emulator.url, session={"backoff_base": 0.01, "backoff_cap": 0.01})
    async with dial(gateway) as ws:
        await send(ws, call(20)[0])
        await eventually(lambda: len(emulator.connections) >= 5)
        (live,) = gateway._exchange.calls.values()
        assert len(live._lines._regions) <= 2
