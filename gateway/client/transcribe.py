"""`gateway transcribe`: many recordings to /v1/transcribe, and the answers of those that became jobs."""

from __future__ import annotations

import asyncio
import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, unquote, urlencode, urlsplit

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.client.http import HttpClient
from gateway.errors import UpstreamError, UsageError
from gateway.prerecorded.captions import Form, render

POLL_SECONDS: Final = 0.5
"""Between two looks at a job; four times that once it has taken a minute."""
LATER_SECONDS: Final = 2.0
YOUNG: Final = 120
"""Looks at the first pace."""
Output = Form | Literal["json"]
SUFFIXES: Final[Mapping[Output, str]] = {"json": ".json", "text": ".txt", "srt": ".srt", "vtt": ".vtt"}


class _Answer(msgspec.Struct, frozen=True):
    """Of /v1/transcribe and of a job: what this command reads of both."""

    route: str
    id: str = ""
    state: str = ""
    result: msgspec.Raw = msgspec.Raw()
    error: Mapping[str, Any] | None = None


class TranscribeClient(HttpClient):
    """`async with TranscribeClient(url, key, parameters) as client:`, then `transcribe` any number."""

    def __init__(self, url: str, key: str | None, parameters: Mapping[str, str | None]) -> None:
        """`parameters` are the router's and Deepgram's; those that are None are not said.

        Raises UsageError for a `url` that is none.
        """
        super().__init__(url, key, aiohttp.ClientTimeout(total=None, sock_connect=10.0))
        self._query = urlencode({name: value for name, value in parameters.items() if value is not None})

    async def transcribe(self, source: str) -> bytes:
        """Deepgram's response for a file or a URL, whichever way it comes. Raises UpstreamError, OSError."""
        path = f"/v1/transcribe?{self._query}"
        if is_url(source):
            answer = await self._ask("POST", path, json={"url": source})
        else:
            media_type = mimetypes.guess_type(source)[0] or "application/octet-stream"
            with await asyncio.to_thread(open, source, "rb") as file:
                answer = await self._ask("POST", path, data=file, headers={"Content-Type": media_type})
        looks = 0
        while answer.id and answer.state in ("queued", "running"):
            await asyncio.sleep(POLL_SECONDS if (looks := looks + 1) < YOUNG else LATER_SECONDS)
            answer = await self._ask("GET", f"/v1/jobs/{quote(answer.id, safe='')}")
        if not bytes(answer.result):
            why = (answer.error or {}).get("message", "no reason given")
            raise UpstreamError(f"job {answer.id} {answer.state}: {why}")
        return bytes(answer.result)

    async def _ask(self, method: str, path: str, **options: Any) -> _Answer:
        body = await self.request(method, path, **options)
        try:
            return msgspec.json.decode(body, type=_Answer)
        except msgspec.DecodeError as exc:
            raise UpstreamError(f"{self._url} is no gateway: {exc}") from exc


async def transcribe_all(
    client: TranscribeClient, sources: Sequence[str], at_once: int, done: Callable[[str, bytes | str], None]
) -> int:
    """All of `sources`, so many at once; returns how many failed.

    `done` gets the response to each, or what went wrong.
    """
    places, failed = asyncio.Semaphore(at_once), 0

    async def one(source: str) -> None:
        nonlocal failed
        async with places:
            try:
                found: bytes | str = await client.transcribe(source)
            except (UpstreamError, OSError) as exc:
                found, failed = getattr(exc, "strerror", None) or str(exc), failed + 1
        done(source, found)

    async with asyncio.TaskGroup() as tasks:
        for source in sources:
            tasks.create_task(one(source))
    return failed


class Results:
    """Where the transcripts go: files of `folder`, named like their sources, or standard output."""

    def __init__(self, sources: Sequence[str], form: Output, folder: Path | None) -> None:
        """Raises UsageError for what would overwrite or mix up transcripts."""
        self._form = form
        self._folder = folder
        self._many = len(sources) > 1
        if folder is None and self._many and form in ("srt", "vtt"):
            raise UsageError(f"--output {form} of several recordings needs --directory")
        names = Counter(_name(source) for source in sources)
        if folder is not None:
            if twice := [name for name, count in names.items() if count > 1]:
                raise UsageError(f"--directory: two recordings would both be written to {twice[0]}")
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise UsageError(f"--directory: {folder}: {exc.strerror}") from None

    def write(self, source: str, response: bytes) -> str:
        """Keeps one; returns what is to be printed. Raises UpstreamError for a response that is none."""
        try:
            text = response.decode() if self._form == "json" else render(response, self._form)
        except (msgspec.DecodeError, LookupError, TypeError) as exc:
            raise UpstreamError(f"{source}: that is no transcript: {exc}") from exc
        if self._folder is not None:
            (self._folder / (_name(source) + SUFFIXES[self._form])).write_text(text)
            return ""
        if not self._many:
            return text
        if self._form == "json":
            return f'{{"source":{msgspec.json.encode(source).decode()},"response":{text}}}'
        return f"{source}: {text}"


class Shown:
    """What `transcribe_all` tells: a bar on a terminal, transcripts and complaints everywhere."""

    def __init__(self, results: Results, console: Console, say: Callable[[str], Any], count: int) -> None:
        self._results = results
        self._say = say
        self._console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal or count < 2,
            transient=True,
        )
        self._bar = self.progress.add_task("transcribing", total=count)
        self.broken = 0

    def done(self, source: str, found: bytes | str) -> None:
        self.progress.update(self._bar, advance=1, description=source[-40:])
        if isinstance(found, bytes):
            try:
                text = self._results.write(source, found)
            except (UpstreamError, OSError) as exc:
                found = str(exc)
                self.broken += 1
            else:
                if text:
                    self._say(text.rstrip("\n"))
                return
        self._console.print(f"gateway: {source}: {found}", markup=False, highlight=False, soft_wrap=True)


def is_url(source: str) -> bool:
    return source.startswith(("https://", "http://"))


def _name(source: str) -> str:
    path = unquote(urlsplit(source).path) if is_url(source) else source
    return Path(path).name or "recording"
