"""Jobs in a whole gateway: what ends together, other processes, a drain."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.app import Gateway
from gateway.app.jobs import JobRoom
from gateway.config import Config
from gateway.errors import ConfigError
from tests.fakes.s3 import URL, object_store
from tests.fakes.stand import Stand, eventually, settings, stand  # noqa: F401 - pytest finds fixtures by name

AUDIO = b"\xff" * 8000
QUERY = "model=nova-3&encoding=mulaw&sample_rate=8000"
HEADERS = {"Content-Type": "audio/basic"}


async def submit(gateway: Gateway, query: str = "") -> dict[str, Any]:
    host, port = gateway.sidecar_address
    async with (
        aiohttp.ClientSession(f"http://{host}:{port}") as session,
        session.post(f"/v1/jobs?{QUERY}&{query}", data=AUDIO, headers=HEADERS) as response,
    ):
        job: dict[str, Any] = await response.json()
        assert response.status == 202, job
    return job


def kept(tmp_path: Path, **jobs: Any) -> dict[str, Any]:
    return {
        "store": {"url": f"sqlite:///{tmp_path}/gateway.db"},
        "prerecorded": {"spool_dir": str(tmp_path / "spool")},
        "jobs": {"starts_per_minute": 0, "lease": 0.9, **jobs},
    }


async def test_the_client_is_told(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """By a callback that was written with the job's end."""
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        told.put_nowait(await request.json())
        return web.Response()

    receiver = web.Application()
    receiver.router.add_post("/hook", receive)
    runner = web.AppRunner(receiver)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{base64.b64encode(b'k' * 32).decode()}\n")
    callback = {"secrets_file": str(secret), "allow_http": True, "allow": ["127.0.0.1"], "ports": [port]}
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, callback=callback, **kept(tmp_path))
    job = await submit(gateway, f"callback=http://127.0.0.1:{port}/hook")
    event = await asyncio.wait_for(told.get(), 10)
    assert event["type"] == "job.succeeded"
    assert (event["data"]["id"], event["data"]["state"]) == (job["id"], "succeeded")
    assert event["data"]["result"]["metadata"]["duration"] == 1.0
    await runner.cleanup()


async def test_files_without_a_job_are_deleted(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """At the start, when they are old: a crash between upload and row leaves them. Those of jobs stay."""
    emulator = await stand.emulator()
    taking = await stand.gateway(emulator.url, **kept(tmp_path, work=False))
    await submit(taking)
    [wanted] = (tmp_path / "spool").iterdir()
    (tmp_path / "spool" / "orphan").write_bytes(b"audio")
    for path in (tmp_path / "spool").iterdir():
        os.utime(path, (0, 0))
    await stand.gateway(emulator.url, **kept(tmp_path, work=False))
    await eventually(lambda: list((tmp_path / "spool").iterdir()) == [wanted])
    await asyncio.sleep(0.1)
    assert wanted.exists()


async def test_a_worker_alone(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """It runs what another process takes in, and has no client port."""
    emulator = await stand.emulator()
    taking = await stand.gateway(emulator.url, **kept(tmp_path, work=False))
    job = await submit(taking)
    async with asyncio.TaskGroup() as tasks:
        worker = Gateway(settings(emulator.url, **kept(tmp_path)), "k", tasks, worker=True)
        await worker.start()
        assert worker.ready() == (True, "")
        assert worker.address == ("", 0)
        await eventually(lambda: worker.metrics.jobs_ended["succeeded"])
        await worker.stop(1)
        await worker.close()
    assert taking.jobs
    found = await taking.jobs.jobs.get(job["id"], "anonymous")
    assert found
    assert found.state == "succeeded"


async def test_hosts_without_a_folder_in_common(
    stand: Stand,  # noqa: F811 - a fixture is asked for by name
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The audio waits in an object store until the job has ended; while that is away nothing is taken."""
    emulator = await stand.emulator()

    def host(name: str, **jobs: Any) -> dict[str, Any]:
        spool = {"spool_dir": str(tmp_path / name), "spool_url": URL}
        return kept(tmp_path, **jobs) | {"prerecorded": spool}

    with object_store(tmp_path / "objects") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        taking = await stand.gateway(emulator.url, **host("taking", work=False))
        job = await submit(taking)
        assert len(server.objects) == 1
        working = await stand.gateway(emulator.url, **host("working"))
        await eventually(lambda: working.metrics.jobs_ended["succeeded"])
        await eventually(lambda: not server.objects)
        assert taking.jobs
        found = await taking.jobs.jobs.get(job["id"], "anonymous")
        assert found
        assert found.state == "succeeded"
        assert [*(tmp_path / "taking").iterdir(), *(tmp_path / "working").iterdir()] == []
        server.kill()
        address, port = taking.sidecar_address
        async with (
            aiohttp.ClientSession(f"http://{address}:{port}") as session,
            session.post(f"/v1/jobs?{QUERY}", data=AUDIO, headers=HEADERS) as response,
        ):
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert await taking.jobs.jobs.page("anonymous", "queued", None, 10) == []


async def test_a_key_outlives_the_process(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """The next one knows the job of a request that is sent again, and refuses another by its key."""
    emulator = await stand.emulator()
    found = []
    for audio in (AUDIO, AUDIO, AUDIO * 2):
        async with asyncio.TaskGroup() as tasks:
            gateway = Gateway(settings(emulator.url, **kept(tmp_path)), "k", tasks)
            await gateway.start()
            base = "http://{}:{}".format(*gateway.sidecar_address)
            async with (
                aiohttp.ClientSession(base, headers={**HEADERS, "Idempotency-Key": "k"}) as session,
                session.post(f"/v1/transcribe?{QUERY}&mode=async", data=audio) as response,
            ):
                found.append((response.status, (await response.json()).get("id")))
            await gateway.stop(1)
            await gateway.close()
    assert found == [(202, found[0][1]), (202, found[0][1]), (422, None)]
    assert len([upload for upload in emulator.uploads if upload.received]) <= 1


async def test_a_stop_puts_back(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """What is under way at the deadline is the next process's, at no attempt's cost."""
    emulator = await stand.emulator()
    emulator.act("mute")
    async with asyncio.TaskGroup() as tasks:
        config: Config = settings(emulator.url, **kept(tmp_path))
        gateway = Gateway(config, "k", tasks)
        await gateway.start()
        job = await submit(gateway)
        assert gateway.jobs
        await eventually(lambda: gateway.metrics.job_wait.counts != [0] * 10)
        await gateway.stop(0)
        found = await gateway.jobs.jobs.get(job["id"], "anonymous")
        await gateway.close()
    assert found
    assert found.state in ("queued", "succeeded")
    assert found.max_attempts - found.attempts == (3 if found.state == "queued" else 2)


async def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, with the setting."""
    monkeypatch.setitem(__import__("sys").modules, "bullmq", None)
    monkeypatch.delitem(__import__("sys").modules, "gateway.prerecorded.fleet", raising=False)
    config = settings("http://127.0.0.1:1", **kept(tmp_path, backend="fleet"))
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(ConfigError, match=r"^jobs\.backend: .*\.\[fleet\]"):
            Gateway(config, None, tasks)


async def test_a_gateway_may_leave_jobs_to_others(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """With `jobs.work` off they are taken in and stay."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, **kept(tmp_path, work=False))
    assert isinstance(gateway.jobs, JobRoom)
    job = await submit(gateway)
    await asyncio.sleep(0.3)
    found = await gateway.jobs.jobs.get(job["id"], "anonymous")
    assert found
    assert found.state == "queued"
