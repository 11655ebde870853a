"""Real clients, unchanged, straight against the emulator and through Gateway: both must tell the same story.

`make test-clients` runs Deepgram's SDKs, `make test-frameworks` what voice frameworks build on them. Each
driver in drivers/ streams the same recording at real-time pace from the environment of its client, and asks
for it whole, as a file and by its URL, where its client can. Compared are the finals, how the call ended, the
responses, and the status of what was refused; the words must be those that were spoken. pytest does not
collect it, because it needs environments that `make test` does not make. Nothing leaves 127.0.0.1, and
nothing is skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gateway
from gateway.emulator import tokens
from gateway.emulator.sound import Format

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
GATEWAY = ROOT / ".venv" / "bin" / "gateway"
AT_ONCE = 3  # more, and two cores no longer hold real-time pace
# For clients that hang up half a second after CloseStream, whether or not the end has come. A machine that
# was busy for so long is no difference; a gateway that is too slow is so every time. The table tells the try.
IMPATIENT = 3
PATIENCE = 60.0  # seconds for a recording of six: far beyond slow, so it means stuck

FORMAT = Format("linear16", 8000)
QUERY = {
    "model": "nova-3",
    "encoding": FORMAT.encoding,
    "sample_rate": str(FORMAT.sample_rate),
    "interim_results": "true",
    "endpointing": "300",  # some pauses end an utterance, some do not
    "vad_events": "true",
}
NO_MODEL = "no-such-model"
RECORDING_QUERY = {"model": "nova-3", "punctuate": "true", "paragraphs": "true"}
# Nothing that chance or a busy machine makes different from one connection to the next.
KNOBS = {"api_keys": ["a-key"], "short_final": 1.0, "ingest_speed": None}

# The older JavaScript SDKs use a global WebSocket if there is one: in browsers, and in Node.js from 22 on. It
# takes the key as a subprotocol and hides the status of a refusal. Without it they bring the ws package.
BROWSER, WS_PACKAGE = ("--experimental-websocket",), ("--no-experimental-websocket",)

Message = dict[str, Any]


@dataclass(frozen=True)
class Client:
    """A driver and the environment under .clients that it runs in."""

    package: str
    environment: str
    driver: str
    switches: tuple[str, ...] = ()
    note: str = ""
    delivers_metadata: bool = True
    sees_status: bool = True
    takes_recordings: bool = True
    tries: int = 1

    @property
    def version(self) -> str:
        locked = HERE / "requirements" / self.environment
        if self.driver.endswith(".cjs"):
            lock = json.loads((locked / "package-lock.json").read_text())
            return str(lock["packages"][f"node_modules/{self.package}"]["version"])
        found = re.search(rf"^{re.escape(self.package)}==(\S+)", locked.with_suffix(".txt").read_text(), re.M)
        assert found, f"{self.package} is not in {locked}.txt"
        return found[1]

    @property
    def command(self) -> list[str]:
        environment, driver = ROOT / ".clients" / self.environment, str(HERE / "drivers" / self.driver)
        if self.driver.endswith(".cjs"):
            return [shutil.which("node") or "node", *self.switches, driver]
        return [str(environment / "bin" / "python"), driver]


SUITES = {
    "sdks": [
        Client("deepgram-sdk", "py7", "py6_py7.py"),
        Client("deepgram-sdk", "py6", "py6_py7.py"),
        Client("deepgram-sdk", "py5", "py5.py"),
        Client("deepgram-sdk", "py4", "py3_py4.py", tries=IMPATIENT),
        Client("deepgram-sdk", "py3", "py3_py4.py", tries=IMPATIENT),
        Client("@deepgram/sdk", "js5", "js5.cjs"),
        Client("@deepgram/sdk", "js4", "js3_js4.cjs", WS_PACKAGE),
        Client(
            *("@deepgram/sdk", "js4", "js3_js4.cjs", BROWSER, "as in a browser"),
            sees_status=False,
            takes_recordings=False,
        ),
        Client("@deepgram/sdk", "js3", "js3_js4.cjs", WS_PACKAGE),
        Client(
            *("@deepgram/sdk", "js3", "js3_js4.cjs", BROWSER, "as in a browser"),
            sees_status=False,
            takes_recordings=False,
        ),
    ],
    "frameworks": [
        Client(
            *("livekit-plugins-deepgram", "livekit", "livekit_agents.py"),
            delivers_metadata=False,
            takes_recordings=False,
        ),
        Client("pipecat-ai", "pipecat", "pipecat_ai.py", delivers_metadata=False, takes_recordings=False),
    ],
}


@dataclass(frozen=True)
class Recording:
    path: Path
    file: Path  # the same with a header
    words: list[str]
    finalize: float  # seconds: a pause between two words, so that no word is cut in two


def record(folder: Path) -> Recording:
    """About six seconds of tokens, the same in every run, each followed by a pause of at least two chunks."""
    said = tokens.ids(10, random.Random(7))
    manner = tokens.Manner(burst_ms=(200, 350), gap_ms=(200, 400), no_gap=0)
    audio, spoken = tokens.speech(said, FORMAT, random.Random(7), manner)
    path, file = folder / "recording.raw", folder / "recording.wav"
    path.write_bytes(audio)
    with wave.open(str(file), "wb") as samples:
        samples.setparams((1, 2, FORMAT.sample_rate, 0, "NONE", ""))
        samples.writeframes(audio)
    middle = spoken[len(spoken) // 2].end_sample / FORMAT.sample_rate
    return Recording(path, file, [tokens.word_for(token) for token in said], middle + 0.05)


def environment_for(client: Client | None = None) -> dict[str, str]:
    """Ours without proxies, keys and settings, which would lead a client or Gateway elsewhere."""
    elsewhere = "(?i)proxy|deepgram|^gateway_"
    kept = {name: value for name, value in os.environ.items() if not re.search(elsewhere, name)}
    if client:
        kept["NODE_PATH"] = str(ROOT / ".clients" / client.environment / "node_modules")
    return kept


@contextmanager
def daemon(command: Sequence[str], env: dict[str, str], log: Path, ready: str) -> Iterator[str]:
    """Run a server until the block ends; gives the group that `ready` found in its output."""
    with log.open("wb") as output:
        process = subprocess.Popen([GATEWAY, *command], env=env, stdout=output, stderr=output, cwd=log.parent)
    try:
        deadline = time.monotonic() + 20
        while not (found := re.search(ready, log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"gateway {command[0]} did not come up:\n{log.read_text()}")
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing about it."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(file: Path) -> Iterator[str]:
    """The URL of a file, until the block ends."""
    handler = partial(Quiet, directory=str(file.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{file.name}"
        finally:
            server.shutdown()


async def drive(client: Client, base: str, recording: Recording, case: Case, url: str) -> list[Message]:
    """Run a driver to its end; gives what its client delivered."""
    options = {"query": case.query, "key": case.key, "rate": FORMAT.bytes_per_second}
    if case.whole:
        options |= {"url": url, "wrong": {**case.query, "model": NO_MODEL}}
    else:
        options |= {"finalize": recording.finalize, "keep_alive": recording.finalize + 1}
    process = await asyncio.create_subprocess_exec(
        *client.command,
        base,
        str(recording.file if case.whole else recording.path),
        json.dumps(options),
        env=environment_for(client),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stuck = asyncio.get_running_loop().call_later(PATIENCE, process.kill)
    out, err = await process.communicate()
    stuck.cancel()
    messages = [json.loads(line) for line in out.splitlines()]
    if process.returncode:
        messages.append({"type": "_crashed", "status": process.returncode, "error": err.decode()[-2000:]})
    return messages


def told(messages: list[Message]) -> Message:
    """What a client learned and would have learned from Deepgram itself."""
    for message in messages:
        if message["type"] == "_answer":  # each request has an id and a time of its own
            for name in ("request_id", "created"):
                message["response"]["metadata"].pop(name)
    finals = [message for message in messages if message.get("is_final")]
    named = ("start", "duration", "is_final", "speech_final", "from_finalize")
    texts = [final["channel"]["alternatives"][0]["transcript"] for final in finals]
    return {
        "finals": [[text, *map(final.get, named)] for text, final in zip(texts, finals, strict=True)],
        "words": " ".join(texts).split(),
        "interims": any(message.get("is_final") is False for message in messages),
        "kinds": sorted({message["type"] for message in messages}),
        "events": [message for message in messages if message["type"].startswith("_")],
    }


@dataclass(frozen=True)
class Case:
    """One thing that a client does, and what is wrong with a story about it."""

    name: str
    key: str
    query: dict[str, str]
    status: int | None = None
    whole: bool = False  # a recording instead of a call

    def wrong(self, story: Message, words: list[str], client: Client) -> str:
        kinds = [event["type"] for event in story["events"]]
        if self.status and not client.sees_status:
            # Whether a close event follows the error depends on the version of Node.js.
            return "" if kinds in (["_error"], ["_error", "_end"]) else "expected a refusal"
        if self.status:
            refused = [event.get("status") for event in story["events"] if event["type"] == "_refused"]
            return "" if refused == [self.status] else f"expected a refusal with {self.status}"
        if self.whole:
            *answers, refusal = story["events"] or [{}]
            if [(answer.get("of"), heard(answer)) for answer in answers] != [("file", words), ("url", words)]:
                return "the words are not those that were spoken"
            return "" if refusal.get("status") == 400 else "expected a refusal with 400"
        if kinds != ["_end"]:
            return "the call did not end cleanly"
        if story["words"] != words:
            return "the words are not those that were spoken"
        if not story["interims"]:
            return "no interim result"
        return "no Metadata" if client.delivers_metadata and "Metadata" not in story["kinds"] else ""

    def summary(self, story: Message) -> str:
        if self.status:
            return " ".join(str(event.get("status", "no status")) for event in story["events"][:1])
        if self.whole:
            return ", ".join(event.get("of") or str(event.get("status")) for event in story["events"])
        return f"{len(story['finals'])} finals" + (", Metadata" if "Metadata" in story["kinds"] else "")


def heard(event: Message) -> list[str]:
    """The words of a response to a recording."""
    if event["type"] != "_answer":
        return []
    return [word["word"] for word in event["response"]["results"]["channels"][0]["alternatives"][0]["words"]]


CASES = [
    Case("a call", "a-key", QUERY),
    Case("wrong key", "wrong-key", QUERY, status=401),
    Case("no such model", "a-key", {**QUERY, "model": NO_MODEL}, status=400),
    Case("recordings", "a-key", RECORDING_QUERY, whole=True),
]


@dataclass(frozen=True)
class Row:
    client: Client
    case: Case
    straight: Message
    through: Message
    words: list[str]
    attempt: int

    @property
    def problem(self) -> str:
        """What is wrong, or an empty text."""
        for way, story in (("straight", self.straight), ("through", self.through)):
            if wrong := self.case.wrong(story, self.words, self.client):
                return f"{way}: {wrong}"
        return "" if self.straight == self.through else "different"

    def cells(self) -> list[str]:
        """The columns of the table."""
        shown = [self.case.summary(self.straight), self.case.summary(self.through)]
        verdict = self.problem or ("same" if self.attempt == 1 else f"same, try {self.attempt}")
        case = ", ".join(filter(None, [self.case.name, self.client.note]))
        return [self.client.package, self.client.version, case, *shown, verdict]


async def compare(
    clients: list[Client], straight: str, through: str, recording: Recording, url: str
) -> list[Row]:
    """Run every client both ways through every case."""
    room = asyncio.Semaphore(AT_ONCE)

    async def story(client: Client, case: Case, base: str) -> Message:
        async with room:
            return told(await drive(client, base, recording, case, url))

    async def row(client: Client, case: Case, attempt: int = 1) -> Row:
        both = await asyncio.gather(story(client, case, straight), story(client, case, through))
        found = Row(client, case, *both, recording.words, attempt)
        return found if not found.problem or attempt == client.tries else await row(client, case, attempt + 1)

    cases = (
        (client, case) for client in clients for case in CASES if client.takes_recordings or not case.whole
    )
    return await asyncio.gather(*(row(client, case) for client, case in cases))


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table with aligned columns."""
    cells = [["client", "version", "case", "straight", "through", "verdict"], *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(map(str.ljust, line, widths)) for line in cells)
    return "\n".join(f"| {line} |" for line in lines)


def measure(suite: str) -> list[Row]:
    """Start the emulator and Gateway before it, and run the suite."""
    with tempfile.TemporaryDirectory(prefix="gateway-clients-") as name:
        folder = Path(name)
        knobs = folder / "knobs.json"
        knobs.write_text(json.dumps(KNOBS))
        emulate = ["emulate", "--port", "0", "--engine", "tokens", "--knobs", str(knobs)]
        env, listening = environment_for(), r"emulator listening on (http://\S+)"
        with daemon(emulate, env, folder / "emulator.log", listening) as straight:
            env |= {
                "GATEWAY_SERVER__PORT": "0",
                "GATEWAY_SIDECAR__PORT": "0",
                "GATEWAY_STORE__URL": "none",
                "GATEWAY_DEEPGRAM__REGIONS__0__URL": straight,
                "GATEWAY_AUTH__UPSTREAM": "client",  # or a wrong key would never reach the emulator
            }
            port = r'^(?=.*"event":\s*"server\.listening").*"port":\s*(\d+)'
            with daemon(["serve"], env, folder / "gateway.log", f"(?m){port}") as found:
                through = f"http://127.0.0.1:{found}"
                recording = record(folder)
                with served(recording.file) as url:
                    return asyncio.run(compare(SUITES[suite], straight, through, recording, url))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--report", type=Path, help="also write the table to this Markdown file")
    args = parser.parse_args()
    began = time.monotonic()
    rows = measure(args.suite)
    text = table(rows)
    print(text)
    failed = [row for row in rows if row.problem]
    for row in failed:
        print(f"\n{row.client.environment}, {row.cells()[2]}: {row.problem}")
        print(f"  straight {json.dumps(row.straight)}\n  through  {json.dumps(row.through)}")
    print(f"\n{len(rows) - len(failed)} of {len(rows)} agree, {time.monotonic() - began:.0f} s")
    if args.report and not failed:
        title = f"# {args.suite.capitalize()} through Gateway {gateway.__version__}"
        source = f"Written by `make test-{args.suite}`; tests/clients/run.py says what is compared."
        args.report.write_text(f"{title}\n\n{source}\n\n{text}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
