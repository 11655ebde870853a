"""What is answered on which port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.app import Gateway
from gateway.app.ports import listening
from gateway.errors import ConfigError
from tests.fakes.stand import Stand, get, scrape, settings, stand  # noqa: F401 - pytest finds fixtures by name


async def test_both_ports_answer(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """The client port and the sidecar, each with what is its own."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url)
    assert gateway.address != gateway.sidecar_address
    assert (await get(gateway.sidecar_address, "/healthz"))[0] == 200
    assert (await get(gateway.sidecar_address, "/v1/listen"))[0] == 405
    assert (await get(gateway.address, "/healthz"))[0] == 404
    assert "gw_build_info" in await scrape(gateway)


async def paths(gateway: Gateway) -> set[str]:
    """What the sidecar says that it answers."""
    return set(json.loads((await get(gateway.sidecar_address, "/openapi.json"))[2]).get("paths", ()))


async def test_the_store_decides_what_there_is(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """Without one there is nothing to list; what is stored is not shown on the client port."""
    bare = await stand.gateway("http://127.0.0.1:1")
    kept = await stand.gateway(
        "http://127.0.0.1:1",
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
    )
    assert {"/v1/listen", "/v1/transcribe", "/v1/sessions"} <= await paths(bare)
    stored = {"/v1/jobs", "/v1/transcripts", "/v1/deliveries"}
    assert not stored & await paths(bare)
    assert stored <= await paths(kept)
    assert (await get(kept.address, "/v1/jobs"))[0] == 200
    assert (await get(kept.address, "/v1/transcripts"))[0] == 404
    assert (await get(kept.address, "/v1/sessions"))[0] == 404


async def test_a_workers_sidecar_only_tells_how_it_is(tmp_path: Path) -> None:
    """It takes no recordings."""
    async with asyncio.TaskGroup() as tasks:
        store = {"url": f"sqlite:///{tmp_path}/gateway.db"}
        config = settings(
            "http://127.0.0.1:1", store=store, prerecorded={"spool_dir": str(tmp_path / "spool")}
        )
        worker = Gateway(config, None, tasks, worker=True)
        await worker.start()
        assert (await get(worker.sidecar_address, "/readyz"))[0] == 200
        assert (await get(worker.sidecar_address, "/v1/jobs"))[0] == 404
        await worker.stop(0)
        await worker.close()


async def test_a_worker_without_a_store() -> None:
    """It would wait for jobs for ever."""
    async with asyncio.TaskGroup() as tasks:
        config = settings("http://127.0.0.1:1", store={"url": "none"})
        with pytest.raises(ConfigError, match=r"^store\.url: is 'none', so there are no jobs for a worker$"):
            Gateway(config, None, tasks, worker=True)


async def test_a_taken_sidecar_port_raises(stand: Stand) -> None:  # noqa: F811 - a fixture is asked for by name
    """With the keys to change."""
    first = await stand.gateway("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"^sidecar\.host, sidecar\.port: .* in use$"):
        await stand.gateway("http://127.0.0.1:1", sidecar={"port": first.sidecar_address[1]})


def test_errors_without_a_number() -> None:
    """What has no errno, as a name that is not found, says what it says."""
    with (
        pytest.raises(ConfigError, match=r"^a\.host, a\.port: cannot listen on b:1: no such name$"),
        listening("a", "b", 1),
    ):
        raise OSError("no such name")
