"""Jobs from the command line, against a running gateway."""

from __future__ import annotations

import asyncio
import json
import os
from io import StringIO
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from gateway import cli
from gateway.client.jobs import show
from tests.fakes.stand import Stand, eventually, stand  # noqa: F401 - pytest finds fixtures by name


async def test_the_commands(
    stand: Stand,  # noqa: F811 - a fixture is asked for by name
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """List, show, retry, cancel, delete: for people, and as JSON."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
    )
    url = "http://{}:{}".format(*gateway.sidecar_address)

    async def run(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli.main, ["jobs", *arguments, "--url", url])
        said = capsys.readouterr()
        return code, said.out, said.err

    async with aiohttp.ClientSession(url) as session:
        headers = {"Content-Type": "audio/wav"}
        await session.post("/v1/jobs?id=mine", data=b"no audio", headers=headers)
    assert gateway.jobs
    await eventually(lambda: gateway.metrics.jobs_ended["failed"])
    code, out, _ = await run("list", "--state", "failed")
    assert code == 0
    assert "mine" in out
    assert "1/3" in out
    assert (await run("list", "--state", "queued"))[1] == "No jobs.\n"
    code, out, _ = await run("list", "--json")
    assert [job["id"] for job in json.loads(out)["jobs"]] == ["mine"]
    assert (await run("show", "mine"))[1].count("DEEPGRAM_ERROR") == 1
    assert json.loads((await run("retry", "mine", "--json"))[1])["state"] == "queued"
    code, _, err = await run("cancel", "nobodys")
    assert (code, err) == (1, "gateway: HTTP 404: id: there is no job nobodys.\n")
    code, _, err = await run("list", "--state", "lost")
    assert code == 2
    assert "'lost' (choose from" in err
    assert os.listdir(tmp_path / "spool")
    assert (await run("delete", "mine"))[1].split()[-2:] == ["deleted", "mine"]
    code, _, err = await run("delete", "mine", "--json")
    assert (code, err) == (1, "gateway: HTTP 404: id: there is no job mine.\n")


def test_ids_are_whole() -> None:
    """On a narrow terminal, too: `show` takes them as they are; a job is one line, with its error."""
    said = StringIO()
    job = {"id": "a1" * 32, "state": "failed", "attempts": 3, "max_attempts": 3, "priority": 5}
    job |= {"created_at": 0, "error": {"message": "[no] audio"}}
    show(json.dumps({"jobs": [job]}).encode(), Console(file=said, width=60))
    assert said.getvalue().splitlines()[1:] == [
        f"{job['id']}  failed     3/3    1970-01-01 00:00:00Z  [no] audio"
    ]


def test_no_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what is wrong, and no traceback."""
    assert cli.main(["jobs", "list", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "gateway: cannot connect to 127.0.0.1:1: Connection refused\n"
    assert cli.main(["jobs", "list", "--url", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err == "gateway: --url 127.0.0.1:1: must be http:// or https:// and a host\n"
