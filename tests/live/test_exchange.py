"""What the calls of a process share."""

from __future__ import annotations

import pytest

from gateway.live.exchange import Exchange
from tests.fakes.stand import Stand, dial, eventually


async def test_calls_are_found_by_their_id(stand: Stand) -> None:
    """From their request on and until they have ended."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    exchange: Exchange = gateway._exchange
    async with dial(gateway) as ws, dial(gateway):
        assert ws.response is not None
        assert len(exchange.calls) == 2
        live = exchange.calls[ws.response.headers["gw-session-id"]]
        assert live.principal.id == "anonymous"
    await eventually(lambda: not exchange.calls)


async def test_how_far_the_calls_are_behind(stand: Stand) -> None:
    """Read at a scrape: audio that no result has reached, while Deepgram is away and while it catches up."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, session={"backoff_base": 0.01, "backoff_cap": 0.01})
    metrics, second = gateway.metrics, b"\xff" * 8000

    def catching_up() -> int:
        metrics.render("")
        return metrics.sessions_catching_up

    async with dial(gateway) as ws:
        assert catching_up() == metrics.session_lag_seconds == 0
        await eventually(lambda: emulator.connections)
        emulator.patch(deny_status=503)
        emulator.act("reset")
        for _ in range(3):
            await ws.send(second)
        await eventually(lambda: metrics.client_audio_bytes == 3 * len(second))
        metrics.render("")
        assert metrics.session_lag_seconds == pytest.approx(3.0, abs=0.2)
        assert metrics.client_audio_seconds == 3.0
        emulator.patch(deny_status=None)
        await eventually(lambda: len(emulator.connections) == 2 and catching_up() == 1)
        await eventually(lambda: catching_up() == 0)
        assert metrics.session_lag_seconds < 2.0, "the last silence has no result yet"
    await eventually(lambda: not gateway._exchange.calls)
    metrics.render("")
    assert metrics.session_lag_seconds == 0


async def test_regions_keep_the_order_of_the_settings(stand: Stand) -> None:
    """The first is the first choice."""
    gateway = await stand.gateway("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert gateway._exchange.regions.choose(0.0) == 0
