"""What is around a gateway; whole processes are in integration/test_shutdown.py."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from pathlib import Path

import pytest

from gateway.app.process import notify, watch_loop
from tests.fakes.stand import Stand, eventually, stand  # noqa: F401 - pytest finds fixtures by name


def test_systemd_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NOTIFY_SOCKET nothing is told to nobody."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """By path, or in the abstract namespace, which systemd writes with an @."""
    name = f"@gateway-test-{uuid.uuid4()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("\0" + name[1:] if abstract else name)
        told.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert told.recv(100) == b"READY=1"


async def test_the_loop_is_watched(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """How late it runs is measured, so that a stall shows (faults.md 51)."""
    gateway = await stand.gateway("http://127.0.0.1:1")
    watching = asyncio.create_task(watch_loop(gateway.metrics))
    await asyncio.sleep(0.01)
    time.sleep(0.35)  # noqa: ASYNC251 - the stall is the point
    await eventually(lambda: "gw_loop_lag_seconds_count 1" in gateway.metrics.render("")[0].decode())
    watching.cancel()
    text = gateway.metrics.render("")[0].decode()
    late = next(line for line in text.splitlines() if line.startswith("gw_loop_lag_seconds_sum"))
    assert float(late.split()[1]) > 0.05
