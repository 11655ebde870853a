"""What every measurement needs: our commands as processes, the emulator's control routes, recordings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
import tempfile
import urllib.request
import wave
from array import array
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench.machine import NATIVE, ROOT, is_native

START_TIMEOUT: Final = 60.0


@asynccontextmanager
async def process(*command: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of our commands, `python ARGUMENTS…` unless it begins with a path; ended in an orderly way."""
    words = command if "/" in command[0] else (sys.executable, *command)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "DEEPGRAM_", "NOTIFY_"))}
    child = await asyncio.create_subprocess_exec(
        *words,
        cwd=ROOT,
        env={**kept, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 15)
        except TimeoutError:
            child.kill()
            await child.wait()


async def line_with(child: asyncio.subprocess.Process, text: str) -> str:
    """The first line that holds `text`; what came before it, if the process ends without one."""
    assert child.stdout is not None
    seen: list[str] = []
    async with asyncio.timeout(START_TIMEOUT):
        while line := (await child.stdout.readline()).decode():
            if text in line:
                return line.strip()
            seen.append(line)
    raise SystemExit("bench: a process did not start:\n" + "".join(seen))


class Emulated:
    """An emulator's control routes; every method waits: call it with `asyncio.to_thread`."""

    def __init__(self, url: str, pid: int, ca: str = "") -> None:
        """`ca`: the file with its certificate authority, if it speaks TLS."""
        self.url = url
        self.pid = pid
        self.ca = ca
        self._tls = ssl.create_default_context(cafile=ca) if ca else None

    def connections(self) -> list[dict[str, Any]]:
        """Every connection that was accepted, oldest first, without contents."""
        found: list[dict[str, Any]] = json.loads(self._ask("GET", "/emulator/connections"))
        return [record for record in found if record["status"] == 101]

    def record(self, connection: str) -> dict[str, Any]:
        """One connection with its messages."""
        found: dict[str, Any] = json.loads(self._ask("GET", f"/emulator/connections/{connection}"))
        return found

    def audio(self, connection: str) -> bytes:
        """What it was sent."""
        return self._ask("GET", f"/emulator/connections/{connection}/audio")

    def act(self, connection: str, action: str) -> None:
        """Does `action` to it, now."""
        self._ask("POST", f"/emulator/connections/{connection}/{action}")

    def _ask(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, method=method)  # noqa: S310 (our own emulator)
        with urllib.request.urlopen(request, timeout=10, context=self._tls) as answer:  # noqa: S310 (the same)
            body: bytes = answer.read()
            return body


@asynccontextmanager
async def emulator(*command: str, ca: str = "", **knobs: Any) -> AsyncIterator[Emulated]:
    """`command`, which takes `--port` and `--knobs` as `gateway emulate` does."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(knobs, file)
        file.flush()
        async with process(*command, "--port", "0", "--knobs", file.name) as child:
            url = "http" + (await line_with(child, "http")).partition("http")[2].split()[0]
            reading = asyncio.create_task(_drain(child))
            yield Emulated(url, child.pid, ca)
        await reading


@asynccontextmanager
async def token_emulator(tls: bool, **knobs: Any) -> AsyncIterator[Emulated]:
    """One that hears tokens, behind TLS or not."""
    with tempfile.TemporaryDirectory() as folder:
        ca = str(Path(folder) / "ca.pem") if tls else ""
        command = ("-m", "bench.tls", "--ca", ca) if tls else ("-m", "gateway", "emulate")
        async with emulator(*command, ca=ca, **knobs) as upstream:
            yield upstream


@asynccontextmanager
async def gateway(upstream: Emulated, **settings: str) -> AsyncIterator[Served]:
    """`gateway serve` in front of `upstream`, compiled where that is there; settings by the names of the
    environment, without GATEWAY_."""
    env = {
        "SERVER__PORT": "0",
        "SIDECAR__PORT": "0",
        "STORE__URL": "none",
        "DEEPGRAM__REGIONS__0__URL": upstream.url,
    }
    env |= {"DEEPGRAM__CA_FILE": upstream.ca, **settings}
    names = {f"GATEWAY_{name}": value for name, value in env.items()}
    names |= {"DEEPGRAM_API_KEY": "bench", "PYTHONPATH": str(NATIVE if is_native() else ROOT)}
    async with process("-P", "-m", "gateway", "serve", **names) as child:
        port = json.loads(await line_with(child, "server.listening"))["port"]
        served = Served(port, child.pid)
        reading = asyncio.create_task(_drain(child, served.log))
        yield served
    await reading


class Served:
    """A gateway that listens on 127.0.0.1; `log` is what it has said since."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self.log: list[str] = []
        self.url = f"http://127.0.0.1:{port}"


async def _drain(child: asyncio.subprocess.Process, lines: list[str] | None = None) -> None:
    assert child.stdout is not None
    async for line in child.stdout:
        if lines is not None:
            lines.append(line.decode())


def run(main: Coroutine[Any, Any, int | None]) -> None:
    """Runs a program of ours and exits with what it returns; Ctrl-C and SIGTERM end what it started, too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        raise SystemExit(asyncio.run(main))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def recording(path: Path, rate_hz: int) -> bytes:
    """A mono 16-bit WAV as samples at `rate_hz`; at a multiple of it, means of neighbours."""
    with wave.open(str(path)) as wav:
        step, rest = divmod(wav.getframerate(), rate_hz)
        if rest or wav.getnchannels() != 1 or wav.getsampwidth() != 2:
            raise SystemExit(f"bench: {path} is not 16-bit mono at a multiple of {rate_hz} Hz")
        samples = array("h", wav.readframes(wav.getnframes()))
    if step == 1:
        return samples.tobytes()
    mean = [sum(samples[i : i + step]) // step for i in range(0, len(samples) - step + 1, step)]
    return array("h", mean).tobytes()
