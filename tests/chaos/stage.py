"""The processes of a run: the emulator and the gateway as anybody starts them, each ended by its own pid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.chaos.check import Connection

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
Json = dict[str, Any]


class Process:
    """One of our commands; what it says goes to a file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._child: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        with self.log.open("wb") as out:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", *arguments, stdout=out, stderr=out, env=_environment()
            )

    async def line(self, text: str) -> str:
        """The first line that holds `text`."""
        for _ in range(round(START_SECONDS / 0.05)):
            for line in self.log.read_text().splitlines():
                if text in line:
                    return line
            if self._child is None or self._child.returncode is not None:
                break
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{self.log.name}: it did not start:\n{self.log.read_text()[-2000:]}")

    async def stall(self, seconds: float) -> None:
        """The process stands still: its loop sees the clock jump."""
        self._signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._signal(signal.SIGCONT)

    async def stop(self) -> int:
        """Ends it; returns its exit code, negative for a signal."""
        child = self._child
        if child is None:
            return 0
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(child.wait(), STOP_SECONDS)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await child.wait()
        return child.returncode or 0

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)


def _socket_inode(path: Path) -> str:
    """The inode of the socket that a file descriptor is; empty when it is none, or gone by now."""
    with contextlib.suppress(OSError):
        target = os.readlink(path)
        if target.startswith("socket:"):
            return target[8:-1]
    return ""


class EmulatorProcess(Process):
    """An emulator, and its control routes."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.address = ("", 0)
        self._http: aiohttp.ClientSession | None = None
        self._ids: dict[str, str] = {}
        self._looking = asyncio.Lock()

    async def begin(self, knobs: Json, directory: Path) -> None:
        path = directory / "knobs.json"
        path.write_text(json.dumps(knobs))
        await self.start("emulate", "--engine", "tokens", "--port", "0", "--knobs", str(path))
        url = (await self.line("listening on")).rpartition(" ")[2]
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        self._http = aiohttp.ClientSession(url)

    async def end(self) -> int:
        if self._http is not None:
            await self._http.close()
        return await self.stop()

    async def act(self, request_id: str, action: str, options: Json) -> int:
        """Does it to one connection; returns to how many it was done: 0 when that is over."""
        record = await self._find(request_id)
        if not record:
            return 0
        answer = await self._send("POST", f"/emulator/connections/{record}/{action}", options)
        return int(answer["done"])

    async def records(self) -> list[Json]:
        """Every attempt, without its contents."""
        found: list[Json] = await self._get("/emulator/connections")
        return found

    async def connection(self, summary: Json) -> Connection:
        """All that is known of one."""
        path = f"/emulator/connections/{summary['id']}"
        detail = await self._get(path)
        assert self._http is not None
        async with self._http.get(f"{path}/audio") as response:
            audio = await response.read()
        return Connection(
            id=summary["id"],
            audio=audio,
            sent=[message["text"] for message in detail["sent"]],
            ended_by=detail["ended_by"] or "",
            ended_how=detail["ended_how"] or "",
            close_code=detail["close_code"],
            closed=detail["closed_at"] is not None,
        )

    async def _find(self, request_id: str) -> str:
        async with self._looking:
            if request_id not in self._ids:
                self._ids = {record["request_id"]: record["id"] for record in await self.records()}
        return self._ids.get(request_id, "")

    async def _get(self, path: str) -> Any:
        assert self._http is not None
        async with self._http.get(path) as response:
            return json.loads(await response.read())

    async def _send(self, method: str, path: str, body: Json) -> Any:
        assert self._http is not None
        async with self._http.request(method, path, data=json.dumps(body)) as response:
            answer = json.loads(await response.read())
        if response.status != 200:
            raise RuntimeError(f"{path}: {answer}")
        return answer


class GatewayProcess(Process):
    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.address = ("", 0)

    async def begin(self, upstream: tuple[str, int], batch_ms: str, directory: Path) -> None:
        path = directory / "gateway.toml"
        host, port = upstream
        batch = batch_ms if batch_ms.isdigit() else json.dumps(batch_ms)
        path.write_text(_CONFIG.format(host=host, port=port, batch_ms=batch))
        await self.start("serve", "--config", str(path))
        listening = json.loads(await self.line("server.listening"))
        await self.line("server.ready")
        self.address = (listening["host"], listening["port"])

    def ports(self) -> set[int]:
        """The local ports of its TCP sockets, told by the kernel. Raises `RuntimeError` if it died."""
        assert self._child is not None
        if self._child.returncode is not None:
            last = self.log.read_text()[-4000:]
            raise RuntimeError(f"the gateway ended with {self._child.returncode}:\n{last}")
        proc = Path(f"/proc/{self._child.pid}")
        inodes = {_socket_inode(path) for path in (proc / "fd").iterdir()} - {""}
        rows = [line.split() for line in (proc / "net" / "tcp").read_text().splitlines()[1:]]
        return {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in inodes}

    def lines(self, session: str = "") -> list[str]:
        """What it logged, of one call if named. For people: no verdict is made of it."""
        return [line for line in self.log.read_text().splitlines() if session in line]


_CONFIG = """\
[server]
port = 0
drain = 1
batch_ms = {batch_ms}
max_connections = 100000
[sidecar]
port = 0
[store]
url = "none"
[[deepgram.regions]]
name = "r0"
url = "http://{host}:{port}"
"""


def _environment() -> dict[str, str]:
    """Ours, without what would set the gateway up otherwise; the key is any."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "DEEPGRAM"))}
    return {**ours, "DEEPGRAM_API_KEY": "chaos"}
