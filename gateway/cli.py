"""The command line: arguments in, one exit code out; a user's mistake is one line, never a traceback.

Commands import what they need when they run: `gateway version` must not wait for aiohttp.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

from gateway import __version__, compiled
from gateway.errors import ConfigError, GatewayError, UpstreamError, UsageError, reason

if TYPE_CHECKING:
    from gateway.client import LiveStream, ResumingStream
    from gateway.client.bench import Report
    from gateway.client.captions import Display
    from gateway.config import Config
    from gateway.emulator import Knobs

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130

EXIT_CODES: Final = {
    OK: "The command did what it was asked; `serve` was stopped by SIGTERM or SIGINT and has drained.",
    FAILED: "It failed while it ran: a server refused or was not reached, a stream or a recording failed, or "
    "a second signal cut `serve` short.",
    MISUSED: "Wrong arguments, settings or input file, no API key, or an address that cannot be listened on.",
    INTERRUPTED: "Ctrl-C.",
}

_NO_KEY: Final = (
    "no Deepgram API key: set DEEPGRAM_API_KEY or deepgram.api_key_file, or auth.upstream = 'client'"
)
_STATES: Final = ("queued", "running", "succeeded", "failed", "cancelled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `EXIT_CODES`."""
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except (ConfigError, UsageError) as error:
        return _complain(str(error), MISUSED)
    except GatewayError as error:
        return _complain(str(error), FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _complain(reason(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, which names the help of the command that it was made in."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # The standard library hands what a command does not know up to the parser of all commands.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog="gateway",
        description="One daemon between live audio and Deepgram.",
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_jobs(commands)
    _add_transcribe(commands)
    _add_config_commands(commands)
    _add_db(commands)
    _add_emulate(commands)
    _add_stream(commands)
    _add_bench(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=lambda _options: _say(_version()))
    return parser


_Commands = argparse._SubParsersAction  # the standard library gives it no public name


def _add_serve(commands: _Commands[_Parser]) -> None:
    serve = commands.add_parser("serve", help="run the gateway until SIGTERM or SIGINT")
    _add_config_option(serve)
    serve.set_defaults(run=_serve)


def _add_jobs(commands: _Commands[_Parser]) -> None:
    worker = commands.add_parser("worker", help="run jobs, and nothing else, until SIGTERM or SIGINT")
    _add_config_option(worker)
    worker.set_defaults(run=_work)
    jobs = commands.add_parser("jobs", help="look at jobs, cancel them, run them again, delete them")
    verbs = jobs.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="verb")
    listing = verbs.add_parser("list", help="the newest first")
    listing.add_argument("--state", choices=_STATES, help="failed: the dead letters")
    listing.add_argument("--limit", type=_positive, default=50, metavar="N", help="(default: %(default)s)")
    parsers = [listing]
    for verb, does in (
        ("show", "one job with its result"),
        ("retry", "run again"),
        ("cancel", "end now"),
        ("delete", "end now, and delete with audio, words and callbacks"),
    ):
        parsers.append(verbs.add_parser(verb, help=does))
        parsers[-1].add_argument("id", nargs="+", metavar="ID")
    for parser in parsers:
        parser.add_argument("--url", default="http://127.0.0.1:8081", help="gateway (default: %(default)s)")
        _add_key_option(parser)
        parser.add_argument("--json", action="store_true", help="the answers as they are, one JSON document")
        parser.set_defaults(run=_jobs)


def _add_transcribe(commands: _Commands[_Parser]) -> None:
    transcribe = commands.add_parser("transcribe", help="transcribe recordings, at once or as jobs")
    transcribe.add_argument("sources", nargs="+", metavar="FILE|URL", help="recordings; URLs are https://")
    transcribe.add_argument(
        "--mode",
        choices=("auto", "sync", "async", "callback"),
        default="auto",
        help="at once, as a job, by Deepgram's callback, or by the recording's length (default: %(default)s)",
    )
    transcribe.add_argument(
        "--output",
        choices=("json", "text", "srt", "vtt"),
        default="text",
        help="json: Deepgram's response (default: %(default)s)",
    )
    transcribe.add_argument(
        "--directory",
        type=Path,
        help="write one file for each recording, named like it (default: standard output)",
    )
    transcribe.add_argument("--url", default="http://127.0.0.1:8080", help="gateway (default: %(default)s)")
    _add_key_option(transcribe)
    transcribe.add_argument("--model", default="nova-3", help="(default: %(default)s)")
    transcribe.add_argument("--language", help="as Deepgram has it: en-GB, multi, … (default: Deepgram's)")
    transcribe.add_argument("--encoding", help="of raw audio: linear16, mulaw or alaw")
    transcribe.add_argument("--sample-rate", type=_positive, metavar="HZ", help="of raw audio")
    transcribe.add_argument(
        "--at-once",
        type=_positive,
        default=4,
        metavar="N",
        help="at a time (default: %(default)s)",
    )
    transcribe.set_defaults(run=_transcribe)


def _add_config_commands(commands: _Commands[_Parser]) -> None:
    check = commands.add_parser("check-config", help="check settings, and say where they are wrong")
    _add_config_option(check)
    check.set_defaults(run=_check_config)
    show = commands.add_parser("print-config", help="print settings; secrets are masked")
    _add_config_option(show)
    what = show.add_mutually_exclusive_group(required=True)
    what.add_argument("--defaults", action="store_true", help="every setting's default, as TOML")
    what.add_argument("--effective", action="store_true", help="the file and the environment taken together")
    what.add_argument("--env", action="store_true", help="the environment variables that override settings")
    show.set_defaults(run=_print_config)


def _add_config_option(parser: _Parser) -> None:
    parser.add_argument("-c", "--config", metavar="FILE", help="TOML file (default: built-in defaults)")


def _add_key_option(parser: _Parser) -> None:
    parser.add_argument(
        "--key",
        help="API key (default: $DEEPGRAM_API_KEY); a gateway with auth.upstream 'gateway' needs none",
    )


def _add_db(commands: _Commands[_Parser]) -> None:
    ways = commands.add_parser("db", help="look at the store's tables, or change them").add_subparsers(
        title="actions", metavar="ACTION", required=True
    )
    upgrade = ways.add_parser("upgrade", help="make the tables that this version needs")
    upgrade.add_argument(
        "revision",
        metavar="REVISION",
        nargs="?",
        default="head",
        help="go up to this one (default: the newest)",
    )
    downgrade = ways.add_parser("downgrade", help="go back to older tables")
    downgrade.add_argument(
        "revision", metavar="REVISION", help="go down to this one; base: drop all tables, and what is in them"
    )
    current = ways.add_parser("current", help="print the tables' revision")
    current.set_defaults(revision="")
    for name, way in (("upgrade", upgrade), ("downgrade", downgrade), ("current", current)):
        _add_config_option(way)
        way.set_defaults(run=_db, way=name)


def _add_emulate(commands: _Commands[_Parser]) -> None:
    emulate = commands.add_parser("emulate", help="run a stand-in for Deepgram")
    emulate.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    emulate.add_argument("--port", type=_port, default=8090, help="0: any (default: %(default)s)")
    emulate.add_argument(
        "--engine",
        choices=("tokens", "script", "asr"),
        default="tokens",
        help="what recognises: coded tokens in the audio, a script, or speech (default: %(default)s)",
    )
    emulate.add_argument("--knobs", metavar="FILE", help="TOML or JSON file with the emulator's knobs")
    emulate.set_defaults(run=_emulate)


def _add_stream(commands: _Commands[_Parser]) -> None:
    stream = commands.add_parser("stream", help="stream audio at the pace of speech and show captions")
    stream.add_argument(
        "file", metavar="FILE", help="16-bit PCM WAV, or raw audio with --encoding; - for stdin"
    )
    stream.add_argument(
        "--url", default="http://127.0.0.1:8080", help="gateway or Deepgram (default: %(default)s)"
    )
    _add_key_option(stream)
    stream.add_argument("--model", default="nova-3", help="(default: %(default)s)")
    stream.add_argument("--language", help="as Deepgram has it: en-GB, multi, … (default: Deepgram's)")
    stream.add_argument("--encoding", help="of raw audio: linear16, linear32, mulaw or alaw")
    stream.add_argument("--sample-rate", type=_positive, metavar="HZ", help="of raw audio")
    stream.add_argument("--channels", type=_positive, default=1, help="of raw audio (default: %(default)s)")
    stream.add_argument(
        "--frame-ms",
        type=_frame_ms,
        default=50,
        metavar="MS",
        help="of one message, 20 to 100 (default: %(default)s)",
    )
    stream.add_argument(
        "--resume", action="store_true", help="survive a lost connection; needs a gateway (docs/resume.md)"
    )
    stream.add_argument("--no-interim", action="store_true", help="ask for final results only")
    stream.add_argument("--json", action="store_true", help="one JSON object a line; see docs/stream-json.md")
    stream.set_defaults(run=_stream)


def _add_bench(commands: _Commands[_Parser]) -> None:
    bench = commands.add_parser("bench", help="load-test a gateway or Deepgram with paced calls")
    bench.add_argument(
        "--calls", type=_positive, default=10, metavar="N", help="at once (default: %(default)s)"
    )
    bench.add_argument(
        "--seconds", type=_positive, default=30, metavar="S", help="of audio in each (default: %(default)s)"
    )
    bench.add_argument(
        "--url", default="http://127.0.0.1:8080", help="gateway or Deepgram (default: %(default)s)"
    )
    _add_key_option(bench)
    bench.add_argument("--model", default="nova-3", help="(default: %(default)s)")
    bench.add_argument(
        "--audio", metavar="FILE", help="16-bit PCM WAV, repeated as needed (default: soft noise, G.711)"
    )
    bench.add_argument(
        "--frame-ms",
        type=_frame_ms,
        default=20,
        metavar="MS",
        help="of one message, 20 to 100 (default: %(default)s)",
    )
    bench.add_argument(
        "--ramp",
        type=_positive,
        default=50,
        metavar="N",
        help="calls begun in a second (default: %(default)s)",
    )
    bench.add_argument("--json", action="store_true", help="only the report, without figures on the way")
    bench.add_argument("--yes-i-pay", action="store_true", help="more than 5 calls to Deepgram itself")
    bench.set_defaults(run=_bench)


def _serve(options: argparse.Namespace, *, worker: bool = False) -> int:
    from gateway.config import api_key, load

    config = load(options.config, os.environ)
    key = api_key(config, os.environ)
    if key is None and _needs_key(config):
        raise ConfigError(_NO_KEY)
    from gateway.app import serve

    return serve(config, key.reveal() if key else None, options.config or "defaults", worker=worker)


def _work(options: argparse.Namespace) -> int:
    return _serve(options, worker=True)


def _jobs(options: argparse.Namespace) -> int:
    import asyncio

    from gateway.client.jobs import JobsClient, show

    async def ask() -> list[bytes]:
        async with JobsClient(options.url, options.key or os.environ.get("DEEPGRAM_API_KEY")) as client:
            if options.verb == "list":
                return [await client.list(options.state, options.limit)]
            return [await client.ask(options.verb, job_id) for job_id in options.id]

    for answer in asyncio.run(ask()):
        if options.json:
            _say(answer.decode())
        else:
            show(answer)
    return OK


def _transcribe(options: argparse.Namespace) -> int:
    import asyncio

    from rich.console import Console

    from gateway.client.transcribe import Results, Shown, TranscribeClient, transcribe_all

    parameters = {
        "mode": options.mode,
        "model": options.model,
        "language": options.language,
        "encoding": options.encoding,
        "sample_rate": str(options.sample_rate) if options.sample_rate else None,
        "smart_format": "true",
    }
    results = Results(options.sources, options.output, options.directory)
    shown = Shown(results, Console(stderr=True), _say, len(options.sources))

    async def run() -> int:
        key = options.key or os.environ.get("DEEPGRAM_API_KEY")
        async with TranscribeClient(options.url, key, parameters) as client:
            return await transcribe_all(client, options.sources, options.at_once, shown.done)

    with shown.progress:
        failed = asyncio.run(run()) + shown.broken
    if failed and len(options.sources) > 1:
        raise UpstreamError(f"{failed} of {len(options.sources)} recordings were not transcribed")
    return FAILED if failed else OK  # of a single one all has been said


def _needs_key(config: Config) -> bool:
    """Not where clients bring theirs, nor where all regions are this machine, as with the emulator."""
    from gateway.config import is_loopback

    urls = [urlsplit(region.url) for region in config.deepgram.regions]
    local = all(url.scheme == "http" and is_loopback(url.hostname or "") for url in urls)
    return config.auth.upstream == "gateway" and not local


def _check_config(options: argparse.Namespace) -> int:
    from gateway.config import api_key, callback_secrets, load
    from gateway.store.databases import location

    config = load(options.config, os.environ)
    key = api_key(config, os.environ)
    callback_secrets(config, os.environ)
    location(config.store.url, os.environ)
    note = f"; {_NO_KEY}" if key is None and _needs_key(config) else ""
    return _say(f"{options.config or 'defaults'}: ok{note}")


def _print_config(options: argparse.Namespace) -> int:
    from gateway.config import defaults_toml, env_names, load, render_toml

    if options.env:
        return _say("\n".join(f"{name}  {description}" for name, description in env_names()))
    text = defaults_toml() if options.defaults else render_toml(load(options.config, os.environ))
    return _say(text.rstrip("\n"))


def _db(options: argparse.Namespace) -> int:
    import asyncio

    from gateway.commands import db
    from gateway.config import load

    config = load(options.config, os.environ)
    return _say(asyncio.run(db.go(config, os.environ, options.way, options.revision)))


def _emulate(options: argparse.Namespace) -> int:
    import asyncio

    from gateway.emulator import Knobs, run

    knobs = _read_knobs(options.knobs) if options.knobs else Knobs()

    def ready(url: str) -> None:
        _say(f"emulator listening on {url}")

    try:
        asyncio.run(run(knobs, options.engine, options.host, options.port, ready))
    except OSError as error:
        raise UsageError(f"cannot listen on {options.host}:{options.port}: {reason(error)}") from None
    return OK


def _read_knobs(path: str) -> Knobs:
    import msgspec

    from gateway.emulator import Knobs

    decode = msgspec.json.decode if path.endswith(".json") else msgspec.toml.decode
    try:
        return decode(Path(path).read_bytes(), type=Knobs)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None


def _stream(options: argparse.Namespace) -> int:
    import asyncio

    from gateway.client import LiveStream, ResumingStream, listen_url, open_source

    parameters = {
        "model": options.model,
        "language": options.language,
        "interim_results": None if options.no_interim else "true",
    }
    key = options.key or os.environ.get("DEEPGRAM_API_KEY")
    with open_source(options.file, options.encoding, options.sample_rate, options.channels) as source:
        url = listen_url(options.url, parameters, source)
        frame = options.frame_ms / 1000
        stream: LiveStream | ResumingStream = (
            ResumingStream(url, source.frames(frame), key=key)
            if options.resume
            else LiveStream(url, source, key=key, frame=frame)
        )
        asyncio.run(_show(stream, _display(options.json)))
    if isinstance(stream, ResumingStream) and stream.dropped_seconds:
        raise UpstreamError(
            f"{stream.dropped_seconds:.1f} s of audio were dropped: the gateway was away too long"
        )
    if not (stream.complete and stream.close_code in (1000, 1005)):
        reason = f" {stream.close_reason}" if stream.close_reason else ""
        raise UpstreamError(f"the stream broke: closed with {stream.close_code}{reason}")
    return OK


async def _show(stream: LiveStream | ResumingStream, display: Display) -> None:
    from gateway.client import Result, summarise

    results: list[Result] = []
    async with aclosing(stream.messages()) as messages:
        with display.open():
            async for message in messages:
                if isinstance(message, Result):
                    results.append(message)
                display.show(message)
    display.end(summarise(results, stream.audio_seconds, stream.close_code, stream.close_reason))


def _display(json: bool) -> Display:
    from gateway.client.captions import Captions, JsonLines, PlainLines

    if json:
        return JsonLines()
    if not sys.stdout.isatty():
        return PlainLines()
    from rich.console import Console

    return Captions(Console())


def _bench(options: argparse.Namespace) -> int:
    import msgspec
    import uvloop

    from gateway.client.bench import check_cost

    if options.model.startswith("flux"):
        raise UsageError("--model flux…: its turns do not cover all audio, so nothing can be said about loss")
    check_cost(options.url, options.calls, options.seconds, options.yes_i_pay)
    report = uvloop.run(_load(options))
    _say(msgspec.json.encode(report).decode())
    if report.failed:
        error, count = next(iter(report.errors.items()))
        raise UpstreamError(f"{report.failed} of {report.calls} calls failed; {count} with: {error}")
    if report.uncovered_seconds or report.repeated_seconds:
        raise UpstreamError(
            f"{report.uncovered_seconds:g} s of audio are in no final, {report.repeated_seconds:g} s in two"
        )
    return OK


async def _load(options: argparse.Namespace) -> Report:
    from rich.console import Console

    from gateway.client import listen_url, open_source
    from gateway.client.bench import Audio, LoadTest, watch

    frame = options.frame_ms / 1000
    audio = Audio.noise(frame)
    if options.audio:
        with open_source(options.audio, None, None, 1) as source:
            audio = await Audio.read(source, frame)
    parameters = {"model": options.model, "interim_results": "true", **audio.parameters}
    test = LoadTest(
        listen_url(options.url, parameters),
        audio,
        key=options.key or os.environ.get("DEEPGRAM_API_KEY"),
        calls=options.calls,
        seconds=options.seconds,
        ramp=options.ramp,
    )
    console = Console(stderr=True)
    return await test.run() if options.json or not console.is_terminal else await watch(test, console)


def _positive(text: str) -> int:
    return _number(text, 1, 10_000_000)


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _frame_ms(text: str) -> int:
    return _number(text, 20, 100)


def _number(text: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")


def _version() -> str:
    return f"gateway {__version__}{' (compiled)' if compiled() else ''}"


def _say(text: str) -> int:
    print(text, flush=True)
    return OK


def _complain(problem: str, code: int) -> int:
    print(f"gateway: {' '.join(problem.split())}", file=sys.stderr)
    return code
