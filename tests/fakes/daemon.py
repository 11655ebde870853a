"""`python -m gateway` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
[server]
port = {port}
drain = {drain}

[sidecar]
port = 0

[session]
finish = 2.0

[[deepgram.regions]]
url = "{url}"
"""


class Daemon:
    """`gateway serve` with a configuration file and its state beside that.

    `events` are its log lines, `noise` what is no log line.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self.address = ("", 0)
        self.sidecar_address = ("", 0)
        self._process = process
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, folder: Path, text: str, **environment: str) -> Self:
        """Starts it, without waiting for anything."""
        path = folder / "config.toml"
        path.write_text(text)
        state = {"STATE_DIRECTORY": str(folder / "state")}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "DEEPGRAM_", "NOTIFY_"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "serve", "-c", str(path)),
            cwd=ROOT,
            env=kept | state | environment,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        """Waits until it serves."""
        waiting = asyncio.create_task(self._ready.wait())
        await asyncio.wait({waiting, self._reading}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert self._ready.is_set(), (self.events, self.noise)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self.wait()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    async def wait(self, seconds: float = 20.0) -> int:
        """Its exit code; all it had to say has then been read."""
        async with asyncio.timeout(seconds):
            await self._reading
            return await self._process.wait()

    def event(self, name: str) -> dict[str, Any] | None:
        """The first log line of that name."""
        return next((event for event in self.events if event["event"] == name), None)

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                self.noise.append(line.decode())
                continue
            self.events.append(event)
            match event["event"]:
                case "server.listening":
                    self.address = (event["host"], event["port"])
                case "sidecar.listening":
                    self.sidecar_address = (event["host"], event["port"])
                case "server.ready":
                    self._ready.set()
