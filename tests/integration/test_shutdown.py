"""How the process starts, refuses to start, and ends (faults.md 45, 46; continuity.md I17)."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from gateway import __version__, compiled
from gateway.emulator import Fault
from tests.fakes.daemon import CONFIG, Daemon
from tests.fakes.stand import CLOSE_STREAM, LISTEN, Stand, call, eventually, get, of_type, read, send, words
from tests.fakes.wire_client import WireClient, upgrade

RESTART = 1012


async def launch(folder: Path, url: str, drain: float, port: int = 0) -> Daemon:
    return await Daemon.start(folder, CONFIG.format(port=port, drain=drain, url=url), DEEPGRAM_API_KEY="k")


def client(daemon: Daemon, query: str = LISTEN) -> connect:
    return connect(f"ws://127.0.0.1:{daemon.address[1]}/v1/listen?{query}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_calls_end_by_themselves(stand: Stand, tmp_path: Path, number: signal.Signals) -> None:
    """After the signal nobody new is let in, readiness says 503, and who is there speaks on to the end."""
    emulator = await stand.emulator()
    audio, said = call()
    async with await launch(tmp_path, emulator.url, 20) as daemon, client(daemon) as ws:
        status, _, _ = await get(daemon.sidecar_address, "/readyz")
        assert status == 200
        await ws.send(audio[:4000])
        daemon.signal(number)
        await eventually(lambda: daemon.event("server.draining"))
        status, _, body = await get(daemon.sidecar_address, "/readyz")
        assert (status, json.loads(body)["reason"]) == (503, "draining")
        with pytest.raises(OSError):  # noqa: PT011 - refused, as the kernel has it
            await WireClient.connect(daemon.address)
        await send(ws, audio[4000:])
        await ws.send(CLOSE_STREAM)
        messages = await read(ws)
        assert (words(messages), ws.close_code) == (said, 1000)
        assert await daemon.wait(5) == 0
    assert daemon.noise == []


async def test_calls_are_ended_at_the_deadline(stand: Stand, tmp_path: Path) -> None:
    """Who does not end by himself gets his last results, Metadata and 1012; the exit is a clean one."""
    emulator = await stand.emulator()
    audio, said = call()
    loop = asyncio.get_running_loop()
    async with await launch(tmp_path, emulator.url, 0.5) as daemon, client(daemon) as ws:
        await send(ws, audio)
        await eventually(lambda: emulator.connections and emulator.connections[0].audio_bytes == len(audio))
        start = loop.time()
        daemon.signal()
        messages = await read(ws)
        assert ws.close_code == RESTART
        assert words(messages) == said
        assert len(of_type(messages, "Metadata")) == 1
        assert await daemon.wait(10) == 0
        assert 0.4 < loop.time() - start < 5.5
    assert emulator.connections[0].texts == [CLOSE_STREAM]
    await eventually(lambda: not emulator.connections[0].open)
    assert daemon.noise == []


async def test_a_client_that_waits_for_its_101(stand: Stand, tmp_path: Path) -> None:
    """It is told to come again: 503 with Retry-After, nothing half open."""
    emulator = await stand.emulator(handshake_delay=30)
    async with await launch(tmp_path, emulator.url, 0) as daemon:
        async with await WireClient.connect(daemon.address) as waiting:
            await waiting.send(upgrade(f"/v1/listen?{LISTEN}"))
            await asyncio.sleep(0.2)
            daemon.signal()
            await waiting.read_response()
            assert waiting.status == 503
            assert waiting.header("retry-after")
        assert await daemon.wait(10) == 0


async def test_a_second_signal_ends_at_once(stand: Stand, tmp_path: Path) -> None:
    """The operator may insist."""
    emulator = await stand.emulator()
    async with await launch(tmp_path, emulator.url, 60) as daemon, client(daemon) as ws:
        await ws.send(b"\xff" * 800)
        daemon.signal()
        await eventually(lambda: daemon.event("server.draining"))
        daemon.signal()
        code = await daemon.wait(5)
        assert code == 1
        await read(ws)
        assert ws.close_code not in (1000, 1012)
    assert daemon.noise == []


async def test_an_idle_gateway_ends_quickly(stand: Stand, tmp_path: Path) -> None:
    """Nobody is waited for when nobody is there; kept HTTP connections do not count."""
    emulator = await stand.emulator()
    loop = asyncio.get_running_loop()
    async with await launch(tmp_path, emulator.url, 30) as daemon:
        kept = await WireClient.connect(daemon.address)
        await kept.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await kept.read_response()
        start = loop.time()
        daemon.signal()
        assert await daemon.wait(10) == 0
        assert loop.time() - start < 4
        await kept.close()


async def test_systemd_is_told(stand: Stand, tmp_path: Path) -> None:
    """READY=1 when it serves, STOPPING=1 when it begins to end."""
    emulator = await stand.emulator()
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.setblocking(False)
        loop = asyncio.get_running_loop()
        text = CONFIG.format(port=0, drain=1, url=emulator.url)
        async with await Daemon.start(tmp_path, text, NOTIFY_SOCKET=str(path)) as daemon:
            async with asyncio.timeout(10):
                assert await loop.sock_recv(told, 100) == b"READY=1"
                status, _, _ = await get(daemon.sidecar_address, "/readyz")
                assert status == 200
                daemon.signal()
                assert await loop.sock_recv(told, 100) == b"STOPPING=1"
            assert await daemon.wait() == 0


@pytest.mark.parametrize(
    ("text", "words_of_it"),
    [
        pytest.param("[server]\nprot = 1\n", ("server.prot",), id="an unknown key"),
        pytest.param('[server]\nport = "x"\n', ("server.port",), id="a wrong type"),
        pytest.param("[server\n", ("config.toml",), id="no TOML"),
        pytest.param('[server]\nhost = "0.0.0.0"\n', ("server.host", "insecure"), id="open to all"),
        pytest.param("", ("DEEPGRAM_API_KEY",), id="no key"),
        pytest.param('[deepgram]\nca_file = "/dev/null"\n', ("deepgram.ca_file",), id="an empty CA file"),
    ],
)
async def test_mistakes_are_one_line(tmp_path: Path, text: str, words_of_it: tuple[str, ...]) -> None:
    """One line on stderr that names the mistake, exit code 2, no traceback."""
    daemon = await Daemon.start(tmp_path, text)
    assert await daemon.wait() == 2
    assert len(daemon.noise) == 1, daemon.noise
    assert all(word in daemon.noise[0] for word in words_of_it), daemon.noise
    assert daemon.events == []


async def test_the_log_says_what_runs(tmp_path: Path) -> None:
    """Which version, and whether its hot path is compiled."""
    async with await launch(tmp_path, "http://127.0.0.1:1", 0) as daemon:
        ready = daemon.event("server.ready")
    assert ready is not None
    assert (ready["version"], ready["compiled"]) == (__version__, compiled())


@pytest.mark.parametrize("which", ["server", "sidecar"])
async def test_a_port_that_is_taken(stand: Stand, tmp_path: Path, which: str) -> None:
    """It says so in one line and does not serve by halves."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"server": 0, "sidecar": 0, which: taken.getsockname()[1]}
        text = f"[server]\nport = {ports['server']}\n[sidecar]\nport = {ports['sidecar']}\n"
        text += '[[deepgram.regions]]\nurl = "http://127.0.0.1:1"\n'
        daemon = await Daemon.start(tmp_path, text)
        assert await daemon.wait() == 2
    assert len(daemon.noise) == 1, daemon.noise
    assert "in use" in daemon.noise[0]
    assert daemon.event("server.ready") is None


async def test_a_mute_deepgram_costs_no_audio_undeclared(stand: Stand, tmp_path: Path) -> None:
    """What has no final when time is up is a gap, to the client and in the log; the exit is a clean one."""
    emulator = await stand.emulator(faults=(Fault("mute"),))
    loop = asyncio.get_running_loop()
    async with await launch(tmp_path, emulator.url, 0.2) as daemon, client(daemon) as ws:
        await send(ws, b"\xff" * 8000)
        await eventually(lambda: emulator.connections[0].audio_bytes == 8000)
        start = loop.time()
        daemon.signal()
        messages = await read(ws)
        assert ws.close_code == RESTART
        assert of_type(messages, "Error")
        assert await daemon.wait(10) == 0
        assert loop.time() - start < 0.2 + 2.0 + 5.0
    gap, stopped = daemon.event("call.gap"), daemon.event("server.stopped")
    assert gap is not None
    assert (gap["start"], gap["stop"]) == (0.0, 1.0)
    assert stopped is not None
    assert stopped["calls_cut"] == 1
    assert daemon.noise == []
