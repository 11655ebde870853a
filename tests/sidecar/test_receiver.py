"""Deepgram's callbacks as they come: late, twice, wrong, or for an attempt that is over."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from yarl import URL

from gateway.emulator import Emulator
from tests.fakes.stand import LISTEN, Stand, eventually, stand
from tests.sidecar.test_transcribe import AUDIO, Caller, caller, loopback

__all__ = ["stand"]
RESPONSE = {"metadata": {"duration": 2.0}, "results": {"channels": []}}
ERROR = {"err_code": "INTERNAL_SERVER_ERROR", "err_msg": "no luck", "request_id": "r"}


async def deliver(client: Caller, url: str, body: Any, method: str = "POST") -> int:
    async with client.session.request(method, url, data=json.dumps(body)) as response:
        await response.read()
        return response.status


async def address(emulator: Emulator, nth: int) -> str:
    """Where the nth request is to be answered."""
    await eventually(lambda: len(emulator.uploads) >= nth and emulator.uploads[nth - 1].status)
    return URL(f"http://x/?{emulator.uploads[nth - 1].query}").query["callback"]


async def test_each_attempt_is_fenced(stand: Stand, tmp_path: Path) -> None:
    """An error begins another attempt; what comes late for the one before it changes nothing."""
    host = loopback()
    emulator = await stand.emulator(batch_delay=1e6)
    settings = {"public_url": f"http://{host[0]}:{host[1]}"}
    async with caller(stand, emulator, tmp_path, host=host, callback=settings) as client:
        _, job = await client.post(AUDIO, f"{LISTEN}&mode=callback")
        first = await address(emulator, 1)
        assert await deliver(client, first, ERROR) == 200
        second = await address(emulator, 2)
        assert first != second
        assert await deliver(client, first, RESPONSE) == 404
        assert await deliver(client, second, RESPONSE, "PUT") == 200
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["attempts"], ended["result"]) == ("succeeded", 2, RESPONSE)
        async with client.session.post(second, json=ERROR) as response:
            assert await response.json() == {"received": False}
        assert await client.ended(job["id"]) == ended


async def test_a_cancelled_job_stays_so(stand: Stand, tmp_path: Path) -> None:
    """Whatever Deepgram brings then is taken, and thrown away."""
    host = loopback()
    emulator = await stand.emulator(batch_delay=1e6)
    settings = {"public_url": f"http://{host[0]}:{host[1]}"}
    async with caller(stand, emulator, tmp_path, host=host, callback=settings) as client:
        _, job = await client.post(AUDIO, f"{LISTEN}&mode=callback")
        url = await address(emulator, 1)
        async with client.session.delete(client.url(f"/v1/jobs/{job['id']}")) as response:
            assert (await response.json())["state"] == "cancelled"
        assert await deliver(client, url, RESPONSE) == 200
        assert (await client.ended(job["id"]))["state"] == "cancelled"


async def test_a_store_that_is_down(stand: Stand, tmp_path: Path) -> None:
    """Is 503, so that Deepgram tries again; a duplicate at the same time is one result."""
    host = loopback()
    emulator = await stand.emulator(batch_delay=1e6)
    settings = {"public_url": f"http://{host[0]}:{host[1]}"}
    async with caller(stand, emulator, tmp_path, host=host, callback=settings) as client:
        _, job = await client.post(AUDIO, f"{LISTEN}&mode=callback")
        url = await address(emulator, 1)
        store = client.gateway.store
        assert store is not None
        store.healthy = False
        assert await deliver(client, url, RESPONSE) == 503
        store.healthy = True
        assert await asyncio.gather(*(deliver(client, url, RESPONSE) for _ in range(4))) == [200] * 4
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["attempts"]) == ("succeeded", 1)
