"""A gateway's jobs from outside: its HTTP API, and its answers as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

from gateway.deepgram.errors import error_text
from gateway.errors import UpstreamRejected, UpstreamUnavailable, UsageError

SECONDS: Final = 30.0
_VERBS: Final = {"show": ("GET", ""), "cancel": ("DELETE", ""), "retry": ("POST", "/retry")}


class JobsRefused(UpstreamRejected):
    """The gateway's own words for what it will not do."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, [], body)
        self.args = (f"HTTP {status}: {error_text(body) or 'no reason given'}",)


class JobsClient:
    """`async with JobsClient(url, key)`; answers are JSON as it came."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Token {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=SECONDS)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def list(self, state: str | None, limit: int) -> bytes:
        """The newest jobs. Raises UpstreamError."""
        wanted = f"?limit={limit}" + (f"&state={quote(state)}" if state else "")
        return await self._request("GET", f"/v1/jobs{wanted}")

    async def ask(self, verb: str, job_id: str) -> bytes:
        """`show`, `cancel` or `retry` of one job: the job as it is then. Raises UpstreamError."""
        method, path = _VERBS[verb]
        return await self._request(method, f"/v1/jobs/{quote(job_id, safe='')}{path}")

    async def _request(self, method: str, path: str) -> bytes:
        assert self._session is not None, "use `async with` first"
        try:
            async with self._session.request(method, self._url + path) as response:
                body = await response.read()
        except aiohttp.InvalidURL:
            raise UsageError(f"--url: {self._url} is no URL") from None
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise UpstreamUnavailable(f"{self._url}: {str(exc) or type(exc).__name__}") from exc
        if response.status >= 400:
            raise JobsRefused(response.status, body)
        return body


def show(answer: bytes, console: Console | None = None) -> None:
    """A page of jobs, or one of them, for people."""
    console = console or Console()
    said: dict[str, Any] = msgspec.json.decode(answer)
    if "jobs" in said:
        console.print(_table(said["jobs"]))
        if said.get("next"):
            console.print("There are older ones: ask for more with --limit.")
        return
    fields = Table.grid(padding=(0, 2))
    for name, value in said.items():
        if name != "result":
            fields.add_row(name, _told(name, value))
    console.print(fields)
    if "result" in said:
        console.print_json(msgspec.json.encode(said["result"]).decode())


def _table(jobs: list[dict[str, Any]]) -> Table:
    table = Table("id", "state", "attempts", "priority", "created", "error")
    table.columns[0].overflow = "fold"  # `show` needs all of it
    for job in jobs:
        error = job.get("error") or {}
        made = f"{job['attempts']}/{job['max_attempts']}"
        created = _told("created_at", job["created_at"])
        table.add_row(job["id"], job["state"], made, str(job["priority"]), created, error.get("message", ""))
    return table


def _told(name: str, value: Any) -> str:
    if name.endswith("_at"):
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ", timespec="seconds")
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
