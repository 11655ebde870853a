"""The command line as a user meets it: a process, its exit code and its two outputs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from gateway import __version__
from gateway.cli import EXIT_CODES
from gateway.config import Config, env_names
from gateway.live import wire
from tests.fakes.resume_server import RATE, Fault, ResumeServer, audio

ROOT = Path(__file__).parents[1]
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("GATEWAY_", "DEEPGRAM_", "CREDENTIALS_")) and not name.lower().endswith("_proxy")
}


def run(*arguments: str, env: dict[str, str] | None = None, data: bytes = b"") -> tuple[int, str, str]:
    """Run one command to its end: exit code, standard output, standard error."""
    command = [sys.executable, "-m", "gateway", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=CLEAN | (env or {}), input=data, capture_output=True, timeout=30, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def refused(*arguments: str, env: dict[str, str] | None = None, code: int = 2) -> str:
    """Run a command that must fail with one line; returns that line."""
    status, out, err = run(*arguments, env=env)
    assert (status, out) == (code, ""), err
    assert re.fullmatch(r"gateway: .+\n", err)
    return err.strip()


@contextmanager
def emulator(*arguments: str) -> Iterator[str]:
    """A running `gateway emulate`; yields its URL, as it prints it."""
    command = [sys.executable, "-m", "gateway", "emulate", "--port", "0", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("emulator listening on http://127.0.0.1:")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (130, "")


@pytest.fixture
def speech(tmp_path: Path) -> str:
    path = tmp_path / "second.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return str(path)


def test_version() -> None:
    """Both ways of asking give the version and whether the hot path is compiled; nothing heavy is loaded."""
    is_native = str(wire.__file__).endswith(tuple(EXTENSION_SUFFIXES))
    version = f"gateway {__version__}{' (compiled)' if is_native else ''}\n"
    assert run("version") == run("--version") == (0, version, "")
    heavy = "{'asyncio', 'aiohttp', 'msgspec', 'rich'}"
    check = f"import sys; from gateway.cli import main; main(['version']); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{version}set()\n"


def test_help_lists_commands_and_exit_codes() -> None:
    """`--help` says what there is, as the reference does, and what each exit code means."""
    status, out, _ = run("--help")
    assert status == 0
    commands = set(re.findall(r"^    ([a-z][a-z-]+)", out.partition("exit codes:")[0], re.MULTILINE))
    reference = (ROOT / "docs" / "reference.md").read_text()
    assert commands == set(re.findall(r"^\| `gateway ([a-z-]+)", reference, re.MULTILINE))
    for code, meaning in EXIT_CODES.items():
        assert f"{code}" in out
        assert meaning in out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bogus",),
        ("serve", "--bogus"),
        ("print-config",),
        ("print-config", "--env", "--defaults"),
        ("emulate", "--port", "x"),
        ("emulate", "--engine", "x"),
        ("stream",),
        ("stream", "a", "--frame-ms", "5"),
        ("bench", "--calls", "0"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...]) -> None:
    """A wrong call is one line that says where to read on."""
    assert refused(*arguments).endswith("--help)")


def test_the_help_of_the_command_that_was_meant() -> None:
    """An option that a command does not know points at the help of that command, not of all."""
    line = refused("jobs", "list", "--bogus")
    assert line == "gateway: unrecognized arguments: --bogus (see gateway jobs list --help)"


def test_check_config(tmp_path: Path) -> None:
    """A good file is ok; a bad one is the line that is wrong."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[server]\nport = 1\n")
    bad.write_text("[server]\nprot = 1\n")
    key = {"DEEPGRAM_API_KEY": "abc123"}
    assert run("check-config", "-c", str(good), env=key) == (0, f"{good}: ok\n", "")
    assert run("check-config", env=key) == (0, "defaults: ok\n", "")
    code, out, _ = run("check-config")
    assert (code, out.startswith("defaults: ok; no Deepgram API key: set ")) == (0, True)
    line = refused("check-config", "-c", str(bad))
    assert line == f"gateway: {bad}:2: unknown key server.prot; did you mean server.port?"
    assert refused("check-config", "-c", "none.toml") == "gateway: none.toml: No such file or directory"
    assert "GATEWAY_SERVER__PORT: " in refused("check-config", env={"GATEWAY_SERVER__PORT": "x"})
    assert "store.url: mysql: " in refused("check-config", env={"GATEWAY_STORE__URL": "mysql://h/d"})
    secrets = {"GATEWAY_CALLBACK__SECRETS_FILE": str(good)}
    assert "callback.secrets_file: " in refused("check-config", env=secrets)


def test_print_config() -> None:
    """Defaults are the shipped file, effective settings include the environment, secrets are masked."""
    assert run("print-config", "--defaults") == (0, (ROOT / "config.toml").read_text(), "")
    env = {
        "GATEWAY_SERVER__PORT": "9123",
        "GATEWAY_DEEPGRAM__PROXY": "http://user:abc123@proxy:1",
        "DEEPGRAM_API_KEY": "abc123",
    }
    status, out, err = run("print-config", "--effective", env=env)
    assert (status, err) == (0, "")
    assert "port = 9123\n" in out
    assert "abc123" not in out
    status, out, _ = run("print-config", "--env")
    assert [line.split()[0] for line in out.splitlines()] == [name for name, _ in env_names()]


def test_serve_without_a_key() -> None:
    """A gateway that has to show a key of its own does not start without one."""
    assert "no Deepgram API key" in refused("serve")
    assert "white space" in refused("serve", env={"DEEPGRAM_API_KEY": "a b"})
    region = {"GATEWAY_DEEPGRAM__REGIONS__0__URL": "http://192.0.2.1:8080"}
    assert "no Deepgram API key" in refused("serve", env=region)


def test_serve_on_a_taken_port() -> None:
    """A port that is taken is a mistake of the set-up: one line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {
            "GATEWAY_SERVER__PORT": str(taken.getsockname()[1]),
            "GATEWAY_SIDECAR__PORT": "0",
            "GATEWAY_DEEPGRAM__REGIONS__0__URL": "http://127.0.0.1:1",
            "GATEWAY_LOG__LEVEL": "error",
            "GATEWAY_STORE__URL": "none",
        }
        assert "in use" in refused("serve", env=env)


def test_emulate_on_a_taken_port() -> None:
    """The emulator says the same."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused("emulate", "--port", str(port))
    assert line == f"gateway: cannot listen on 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize(
    ("name", "content"),
    [("k.toml", "seeed = 1"), ("k.toml", "seed ="), ("k.json", "{"), ("k.json", '{"seed": "x"}')],
)
def test_emulate_with_bad_knobs(tmp_path: Path, name: str, content: str) -> None:
    """Knobs that are wrong are one line with the file's name."""
    path = tmp_path / name
    path.write_text(content)
    assert str(path) in refused("emulate", "--knobs", str(path))


def test_emulate_with_knobs_and_stream(tmp_path: Path, speech: str) -> None:
    """What is streamed to an emulator comes back as JSON lines that end in a summary; knobs are obeyed."""
    knobs = tmp_path / "k.toml"
    knobs.write_text('api_keys = ["good"]\n')
    with emulator("--knobs", str(knobs)) as url:
        status, out, err = run("stream", speech, "--url", url, "--json", env={"DEEPGRAM_API_KEY": "good"})
        assert (status, err) == (0, "")
        messages = [json.loads(line) for line in out.splitlines()]
        assert {message["type"] for message in messages} == {"result", "event", "summary"}
        assert messages[-1]["audio_seconds"] == 1.0
        assert messages[-1]["close_code"] == 1000
        assert messages[-1]["finals"] >= 1

        status, out, err = run("stream", speech, "--url", url, "--key", "good", "--no-interim")
        assert (status, out) == (0, "")
        assert err.startswith("1.0 s of audio, ")
        assert " 0 interims, " in err

        raw = bytes(8000)
        arguments = ("--encoding", "mulaw", "--sample-rate", "8000", "--key", "good", "--url", url)
        status, out, err = run("stream", "-", *arguments, data=raw)
        assert (status, err[:14]) == (0, "1.0 s of audio")

        line = refused("stream", speech, "--url", url, "--key", "bad", code=1)
        assert "HTTP 401: Invalid credentials. (request id " in line
        assert "HTTP 404" in refused("stream", speech, "--url", f"{url}/none", "--key", "good", code=1)


def test_bench(tmp_path: Path, speech: str) -> None:
    """One JSON object; calls that fail and audio that is lost end it with 1 and their reason."""
    knobs = tmp_path / "k.toml"
    knobs.write_text('[[faults]]\nkind = "skip"\nnth = 4\nseconds = 0.5\n')
    common = ("bench", "--key", "k", "--json", "--seconds", "1")
    with emulator("--knobs", str(knobs)) as url:
        status, out, err = run(*common, "--calls", "3", "--audio", speech, "--url", url)
        assert (status, err) == (0, "")
        report = json.loads(out)
        assert (report["completed"], report["audio_seconds"], report["uncovered_seconds"]) == (3, 3.0, 0.0)

        status, out, err = run(*common, "--calls", "1", "--url", url)
        assert (status, json.loads(out)["uncovered_seconds"]) == (1, 0.5)
        assert err == "gateway: 0.5 s of audio are in no final, 0 s in two\n"
    status, out, err = run(*common, "--calls", "2", "--url", "http://127.0.0.1:1")
    assert (status, json.loads(out)["failed"]) == (1, 2)
    assert err.startswith("gateway: 2 of 2 calls failed; 2 with: cannot connect to 127.0.0.1:1")


def test_bench_that_is_not_begun() -> None:
    """What would cost money, or could not be judged, is said before any call."""
    assert "say --yes-i-pay" in refused("bench", "--calls", "6", "--url", "https://api.deepgram.com")
    assert "nothing can be said about loss" in refused("bench", "--model", "flux-general-en")
    assert "none.wav" in refused("bench", "--audio", "none.wav")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("none.wav",), "none.wav: No such file or directory"),
        (("README.md",), "README.md: not a PCM WAV file"),
        (("README.md", "--encoding", "mulaw"), "--sample-rate"),
        (("README.md", "--encoding", "opus", "--sample-rate", "48000"), "cannot be paced"),
    ],
)
def test_stream_without_audio(arguments: tuple[str, ...], problem: str) -> None:
    """Audio that cannot be streamed is one line."""
    assert problem in refused("stream", *arguments)


async def test_stream_that_resumes(tmp_path: Path) -> None:
    """`--resume` outlives a connection, a restart of the gateway too, and says so in each form of output."""
    path, samples = tmp_path / "a.raw", range(RATE)
    path.write_bytes(audio(samples))
    options = ("--encoding", "linear32", "--sample-rate", str(RATE), "--resume")
    cut = [Fault("cut", RATE), None, Fault("cut", RATE, forget=True), None, Fault("close", RATE, code=4409)]
    async with ResumeServer([*cut]) as server:
        command = ("stream", str(path), "--url", server.url, *options)
        status, out, err = await asyncio.to_thread(run, *command, "--json")
        assert (status, err) == (0, "")
        messages = [json.loads(line) for line in out.splitlines()]
        words = [word for m in messages if m["type"] == "result" and m["final"] for word in m["text"].split()]
        assert words == [str(number) for number in samples]
        own = [m["message"] for m in messages if m.get("name") in ("ConnectionLost", "ConnectionResumed")]
        assert [message["type"] for message in own] == ["ConnectionLost", "ConnectionResumed"]
        assert (own[0]["code"], own[1]["recovered"]) == (1006, True)
        assert "token" not in out

        status, _, err = await asyncio.to_thread(run, *command)
        assert status == 0
        lost, resumed, _summary = err.splitlines()
        assert lost.startswith("connection lost: 1006")
        assert resumed.endswith("a new session, from the last final on")

        status, _, err = await asyncio.to_thread(run, *command)
        assert status == 1
        assert err.endswith(" closed the session with 4409: another connection has taken the session\n")


def test_stream_to_nobody(speech: str) -> None:
    """A server that is not there is a failure of the run, not of the call."""
    line = refused("stream", speech, "--url", "http://127.0.0.1:1", code=1)
    assert line == "gateway: cannot connect to 127.0.0.1:1: Connection refused"
    assert "--url" in refused("stream", speech, "--url", "127.0.0.1:1")


def test_stream_into_a_closed_pipe(speech: str) -> None:
    """A reader that leaves ends the stream without a traceback."""
    with emulator() as url:
        stream = shlex.join([sys.executable, "-m", "gateway", "stream", speech, "--url", url, "--key", "k"])
        command = f"{stream} --json | head -0; true"
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=ROOT,
            env=CLEAN,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    assert done.stderr == ""


def test_exit_codes_are_documented() -> None:
    """Every code is a number that a shell can see, with a sentence."""
    assert sorted(EXIT_CODES) == [0, 1, 2, 130]
    assert all(meaning.endswith(".") for meaning in EXIT_CODES.values())


def test_defaults_need_no_file() -> None:
    """The address that `stream` calls is where `serve` listens."""
    config = Config()
    _, out, _ = run("stream", "--help")
    assert f"http://{config.server.host}:{config.server.port}" in re.sub(r"\s+", " ", out)
