"""A gateway's jobs from outside: its HTTP API, and its answers as tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

from gateway.client.http import HttpClient

SECONDS: Final = 30.0
_VERBS: Final = {"show": ("GET", ""), "cancel": ("POST", "/cancel"), "retry": ("POST", "/retry")}


class JobsClient(HttpClient):
    """`async with JobsClient(url, key)`; answers are JSON as it came."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises UsageError for a `url` that is none."""
        super().__init__(url, key, aiohttp.ClientTimeout(total=SECONDS))

    async def list(self, state: str | None, limit: int) -> bytes:
        """The newest jobs. Raises UpstreamError."""
        wanted = f"?limit={limit}" + (f"&state={quote(state)}" if state else "")
        return await self.request("GET", f"/v1/jobs{wanted}")

    async def ask(self, verb: str, job_id: str) -> bytes:
        """`show`, `cancel`, `retry`: the job as it is then; `delete`: its id. Raises UpstreamError."""
        job = f"/v1/jobs/{quote(job_id, safe='')}"
        if verb == "delete":
            while await self.request("DELETE", job):
                pass  # it had not ended and is cancelled now
            return msgspec.json.encode({"deleted": job_id})
        method, path = _VERBS[verb]
        return await self.request(method, job + path)


def show(answer: bytes, console: Console | None = None) -> None:
    """A page of jobs, or one of them, for people."""
    console = console or Console()
    said: dict[str, Any] = msgspec.json.decode(answer)
    if "jobs" in said:
        lines = _lines(said["jobs"]) if said["jobs"] else ["No jobs."]
        console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)
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


def _lines(jobs: list[dict[str, Any]]) -> Iterator[str]:
    """One job a line, in columns but for the error: ids stay whole on a narrow terminal and in a pipe."""
    width = max(len(job["id"]) for job in jobs)
    yield f"{'id':<{width}}  {'state':<9}  tries  created"
    for job in jobs:
        tries = f"{job['attempts']}/{job['max_attempts']}"
        error = (job.get("error") or {}).get("message", "")
        created = _told("created_at", job["created_at"])
        yield f"{job['id']:<{width}}  {job['state']:<9}  {tries:<5}  {created}  {error}".rstrip()


def _told(name: str, value: Any) -> str:
    if name.endswith("_at"):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
