"""Callbacks, as settings say; what is sent is in sidecar/test_callbacks.py and live/test_record.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.app.callbacks import Callbacks
from gateway.app.calls import make_exchange
from gateway.errors import ConfigError, TargetError
from gateway.metrics import Metrics
from tests.fakes.stand import settings


def callbacks(tasks: asyncio.TaskGroup, **callback: Any) -> Callbacks:
    """Without a store."""
    config = settings("http://127.0.0.1:1", callback=callback)
    return Callbacks(make_exchange(config, None, Metrics(["r0"], "1"), tasks), None, lambda: ())


async def test_without_a_store() -> None:
    """None is sent, and whoever asks for one hears why."""
    async with asyncio.TaskGroup() as tasks:
        made = callbacks(tasks)
        assert made.notifier is None
        with pytest.raises(TargetError, match=r"without a store$"):
            await made.check("p", "https://hooks.example/")
        await made.start()
        await made.close()


async def test_settings_that_cannot_be(tmp_path: Path) -> None:
    """One line, with the setting."""
    path = tmp_path / "ca.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(ConfigError, match=r"^callback\.ca_file: .*ca\.pem: "):
            callbacks(tasks, ca_file=str(path))
        with pytest.raises(ConfigError, match=r"^callback\.session_url: callbacks are signed and stored"):
            callbacks(tasks, session_url="https://hooks.example/")
