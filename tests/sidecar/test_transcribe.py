"""`POST /v1/transcribe`: each route, and the ways from one to another, against the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from gateway.app import Gateway
from gateway.emulator import BatchFault, Emulator
from gateway.emulator.tokens import id_for
from tests.fakes.stand import LISTEN, Stand, call, eventually, stand

__all__ = ["stand"]
AUDIO, SAID = call(8)
HEADERS = {"Content-Type": "audio/basic", "Authorization": "Token k"}


def wav(audio: bytes, rate: int = 8000) -> bytes:
    """Mu-law in a WAV file."""
    hertz = rate.to_bytes(4, "little")
    fmt = b"fmt \x10\0\0\0\x07\0\x01\0" + hertz + hertz + b"\x01\0\x08\0"
    size = len(audio).to_bytes(4, "little")
    return b"RIFF" + (36 + len(audio)).to_bytes(4, "little") + b"WAVE" + fmt + b"data" + size + audio


def heard(result: Any) -> list[int | None]:
    return [id_for(word["word"]) for word in result["results"]["channels"][0]["alternatives"][0]["words"]]


class Caller:
    """Requests to one gateway, by its client port unless said otherwise."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self.session = session
        self.gateway = gateway

    def url(self, path: str, port: str = "client") -> str:
        host, number = self.gateway.address if port == "client" else self.gateway.sidecar_address
        return f"http://{host}:{number}{path}"

    async def post(
        self, data: Any = AUDIO, query: str = LISTEN, port: str = "client", **options: Any
    ) -> tuple[int, Any]:
        options.setdefault("headers", HEADERS)
        url = self.url(f"/v1/transcribe?{query}", port)
        async with self.session.post(url, data=data, **options) as response:
            return response.status, json.loads(await response.read())

    async def ended(self, job_id: str) -> Any:
        """The job, once it has ended."""
        async with asyncio.timeout(15):
            while True:
                async with self.session.get(self.url(f"/v1/jobs/{job_id}", "sidecar")) as response:
                    job = await response.json()
                if job.get("ended_at"):
                    return job
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def caller(
    stand: Stand, emulator: Emulator, folder: Path, *, host: tuple[str, int] | None = None, **sections: Any
) -> AsyncIterator[Caller]:
    """A gateway with a store and a spool of its own in `folder`."""
    server = {"host": host[0], "port": host[1]} if host else {}
    settings: dict[str, Any] = {
        "store": {"url": f"sqlite:///{folder}/gateway.db"},
        "prerecorded": {"spool_dir": str(folder / "spool"), **sections.pop("prerecorded", {})},
        "jobs": {"backoff_seconds": 0.05, **sections.pop("jobs", {})},
        "server": {**server, **sections.pop("server", {})},
    }
    gateway = await stand.gateway(emulator.url, **settings, **sections)
    async with aiohttp.ClientSession() as session:
        yield Caller(session, gateway)
    await eventually(lambda: not gateway.http.uploads.active)
    await eventually(lambda: gateway.recordings.spool.used == 0, what="something is left in the spool")
    assert not list((folder / "spool").iterdir())


def loopback() -> tuple[str, int]:
    """An address of this machine's own with a port that Deepgram calls: nobody else will have it."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}", 8080


# At once


@pytest.mark.parametrize("port", ["client", "sidecar"])
@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
async def test_a_short_recording_is_transcribed_at_once(
    stand: Stand, tmp_path: Path, port: str, form: bool
) -> None:
    """By either port, raw or in a form: the answer names the route and why."""
    emulator = await stand.emulator()
    async with caller(stand, emulator, tmp_path) as client:
        data: Any = AUDIO
        options: dict[str, Any] = {}
        if form:
            data = aiohttp.FormData()
            data.add_field("mode", "auto")
            data.add_field("file", AUDIO, filename="call.ulaw", content_type="audio/basic")
            data.add_field("tag", "x")
            options["headers"] = {}
        status, answer = await client.post(data, port=port, **options)
        assert (status, answer["route"]) == (200, "sync")
        assert answer["reason"].startswith(f"{len(AUDIO) / 8000:.1f} s (probed)")
        assert heard(answer["result"]) == SAID
    query = emulator.uploads[0].query
    assert ("tag=x" in query) == form
    assert "mode=" not in query


async def test_a_key_at_once(stand: Stand, tmp_path: Path) -> None:
    """Transcribed once, whichever way is asked for later; refused meanwhile, and for another recording."""
    emulator = await stand.emulator(batch_delay=0.5)
    headers = {**HEADERS, "Idempotency-Key": "k"}
    async with caller(stand, emulator, tmp_path) as client:
        first = asyncio.create_task(client.post(headers=headers))
        await eventually(lambda: emulator.uploads)
        status, refused = await client.post(headers=headers)
        assert (status, refused["err_code"]) == (409, "IDEMPOTENCY_KEY_IN_USE")
        _, answer = await first
        for query in (LISTEN, f"{LISTEN}&mode=async"):
            status, again = await client.post(query=query, headers=headers)
            assert (status, again["route"], again["result"]) == (200, "sync", answer["result"])
            status, refused = await client.post(AUDIO + b"\xff", query, headers=headers)
            assert (status, refused["err_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
        status, refused = await client.post(query=f"{LISTEN}&mode=stream", headers=headers)
        assert (status, refused["err_msg"][:15]) == (400, "Idempotency-Key")
        assert len(emulator.uploads) == 1


async def test_a_key_whose_caller_leaves(stand: Stand, tmp_path: Path) -> None:
    """Is free again, for whatever comes."""
    emulator = await stand.emulator(batch_delay=1000.0)
    headers = {**HEADERS, "Idempotency-Key": "k"}
    async with caller(stand, emulator, tmp_path) as client:
        leaving = asyncio.create_task(client.post(headers=headers))
        await eventually(lambda: emulator.uploads)
        leaving.cancel()
        await eventually(lambda: not client.gateway.http.uploads.active)
        emulator.patch(batch_delay=0.0)
        assert (await client.post(AUDIO * 2, headers=headers))[0] == 200


async def test_a_key_of_a_job(stand: Stand, tmp_path: Path) -> None:
    """Whichever way is asked for later, it is that job; also one that was begun at once and took too long."""
    emulator = await stand.emulator(batch_delay=0.6)
    headers = {**HEADERS, "Idempotency-Key": "k"}
    async with caller(stand, emulator, tmp_path, route={"patience": 0.2}) as client:
        _, job = await client.post(headers=headers)
        assert job["reruns"] == 1
        for query in (LISTEN, f"{LISTEN}&mode=async", f"{LISTEN}&mode=sync"):
            status, again = await client.post(query=query, headers=headers)
            assert (status, again["id"], again["reason"]) == (202, job["id"], job["reason"])
            status, refused = await client.post(AUDIO + b"\xff", query, headers=headers)
            assert (status, refused["err_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
        await client.ended(job["id"])
        assert (await client.post(headers=headers))[1]["state"] == "succeeded"


async def test_deepgrams_refusals_come_unchanged(stand: Stand, tmp_path: Path) -> None:
    """Status and body are Deepgram's."""
    emulator = await stand.emulator(batch_faults=(BatchFault("refuse", status=402),))
    async with (
        caller(stand, emulator, tmp_path, auth={"upstream": "client"}) as client,
        client.session.post(emulator.url + "/v1/listen?" + LISTEN, data=AUDIO, headers=HEADERS) as straight,
    ):
        status, answer = await client.post()
        wanted = await straight.json()
        assert (status, answer["err_code"]) == (straight.status, wanted["err_code"])


async def test_one_that_takes_too_long_becomes_a_job(stand: Stand, tmp_path: Path) -> None:
    """Beyond route.patience the caller gets a job; the try that was given up counts as billed."""
    emulator = await stand.emulator(batch_faults=(BatchFault("stall", nth=1),))
    async with caller(stand, emulator, tmp_path, route={"patience": 0.3}) as client:
        status, job = await client.post()
        assert (status, job["route"], job["state"]) == (202, "async", "queued")
        assert job["reason"].endswith("not done in 0.3 s")
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["reruns"], heard(ended["result"])) == ("succeeded", 1, SAID)


# Jobs


async def test_a_long_recording_becomes_a_job(stand: Stand, tmp_path: Path) -> None:
    """What is longer than async_above, as it says itself."""
    emulator = await stand.emulator()
    async with caller(stand, emulator, tmp_path, route={"sync_below": 0.5, "async_above": 1.0}) as client:
        async with client.session.post(
            client.url("/v1/transcribe?model=nova-3"), data=wav(AUDIO), headers={"Content-Type": "audio/wav"}
        ) as response:
            job = await response.json()
            assert response.status == 202
            assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
        assert job["route"] == "async"
        assert "over 1 s" in job["reason"]
        ended = await client.ended(job["id"])
        assert (ended["state"], heard(ended["result"])) == ("succeeded", SAID)


async def test_a_504_at_once_goes_on_in_parts(stand: Stand, tmp_path: Path) -> None:
    """The job asks for parts from the start: the request is never repeated as it was."""
    audio, said = call(60, manner=None)
    assert len(audio) > 8000 * 25
    emulator = await stand.emulator(batch_faults=(BatchFault("refuse", nth=1, status=504),))
    async with caller(stand, emulator, tmp_path, prerecorded={"part_seconds": 12}) as client:
        status, job = await client.post(wav(audio), "model=nova-3&utterances=true")
        assert (status, job["route"]) == (202, "parts"), job
        ended = await client.ended(job["id"])
        assert ended["state"] == "succeeded", ended
        assert heard(ended["result"]) == said
        assert ended["result"]["metadata"]["duration"] == pytest.approx(len(audio) / 8000, abs=0.01)
    sizes = [upload.received for upload in emulator.uploads]
    assert len(sizes) > 2
    assert max(sizes[1:]) <= 8000 * 12 + 44


async def test_a_504_of_a_job_goes_on_in_parts(stand: Stand, tmp_path: Path) -> None:
    """Within the same attempt, and so do later attempts: the row says so."""
    audio, said = call(60, manner=None)
    faults = (BatchFault("refuse", nth=1, status=504), BatchFault("refuse", nth=2, times=1, status=500))
    emulator = await stand.emulator(batch_faults=faults)
    settings = {"part_seconds": 12, "attempts": 1}
    async with caller(stand, emulator, tmp_path, prerecorded=settings) as client:
        query = "model=nova-3&mode=async&encoding=mulaw&sample_rate=8000"
        _, job = await client.post(audio, query)
        assert job["route"] == "async"
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["route"], ended["attempts"]) == ("succeeded", "parts", 2), ended
        assert heard(ended["result"]) == said
    assert max(upload.received for upload in emulator.uploads[1:]) <= 8000 * 12 + 44


@pytest.mark.parametrize(
    ("query", "data", "why"),
    [
        ("summarize=v2", wav(AUDIO), "summarize is about the whole recording"),
        ("model=nova-3", b"ID3" + bytes(3000), "decoded"),
    ],
    ids=["whole", "not to be decoded"],
)
async def test_a_504_that_cannot_be_helped(
    stand: Stand, tmp_path: Path, query: str, data: bytes, why: str
) -> None:
    """The job fails with that cause, at once."""
    emulator = await stand.emulator(batch_faults=(BatchFault("refuse", status=504),))
    async with caller(stand, emulator, tmp_path) as client:
        _, job = await client.post(data, f"{query}&mode=async")
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["attempts"], ended["error"]["code"]) == ("failed", 1, "TOO_LONG")
        assert why in ended["error"]["message"]
        assert len(emulator.uploads) == 1
        await client.gateway.recordings.spool.delete((await _row(client, job["id"])).spooled)


async def _row(client: Caller, job_id: str) -> Any:
    assert client.gateway.jobs is not None
    return await client.gateway.jobs.jobs.get(job_id, "anonymous")


# Deepgram calls back


async def test_deepgram_calls_back(stand: Stand, tmp_path: Path) -> None:
    """The job runs until it has; the token is in no row, and a second delivery changes nothing."""
    host, port = loopback()
    emulator = await stand.emulator(callback_token="our-key-id", callback_any_port=False)
    settings = {"public_url": f"http://{host}:{port}", "key_id": "our-key-id"}
    async with caller(stand, emulator, tmp_path, host=(host, port), callback=settings) as client:
        status, job = await client.post(AUDIO, f"{LISTEN}&mode=callback")
        assert (status, job["route"]) == (202, "callback")
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["attempts"], heard(ended["result"])) == ("succeeded", 1, SAID)
        path = emulator.uploads[0].query.partition("callback=")[2]
        url = URL(f"http://x/?u={path}").query["u"]
        assert url.rpartition(".")[2] not in str(await _row(client, job["id"]))
        body = json.dumps({"results": {"channels": []}, "metadata": {"duration": 1.0}})
        for token, wanted in (("our-key-id", 200), ("another", 401)):
            async with client.session.put(url, data=body, headers={"dg-token": token}) as response:
                assert response.status == wanted
        async with client.session.post(
            url[:-4] + "AAAA", data=body, headers={"dg-token": "our-key-id"}
        ) as response:
            assert response.status == 404
        assert (await client.ended(job["id"])) == ended


async def test_a_callback_that_never_comes(stand: Stand, tmp_path: Path) -> None:
    """After callback.wait the attempt is over, and the last one fails the job."""
    emulator = await stand.emulator(batch_delay=1000.0)
    callback = {"public_url": "http://127.0.0.1:8080", "wait": 0.2}
    jobs = {"attempts": 1}
    async with caller(stand, emulator, tmp_path, callback=callback, jobs=jobs) as client:
        _, job = await client.post(AUDIO, f"{LISTEN}&mode=callback")
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["error"]["code"]) == ("failed", "NO_CALLBACK")
        await client.gateway.recordings.spool.delete((await _row(client, job["id"])).spooled)


async def test_a_504_goes_by_callback_where_deepgram_reaches_us(stand: Stand, tmp_path: Path) -> None:
    """A job that is too long is handed over within the same attempt."""
    host, port = loopback()
    emulator = await stand.emulator(batch_faults=(BatchFault("refuse", nth=1, status=504),))
    settings = {"public_url": f"http://{host}:{port}"}
    async with caller(stand, emulator, tmp_path, host=(host, port), callback=settings) as client:
        _, job = await client.post(AUDIO, f"{LISTEN}&mode=async")
        ended = await client.ended(job["id"])
        assert (ended["state"], ended["route"], ended["attempts"]) == ("succeeded", "callback", 1), ended


# Live


async def test_a_recording_through_a_live_session(stand: Stand, tmp_path: Path) -> None:
    """The route, then the session's messages as they come, by type, up to Metadata."""
    emulator = await stand.emulator()
    async with caller(stand, emulator, tmp_path) as client:
        url = client.url(f"/v1/transcribe?{LISTEN}&mode=stream", "sidecar")
        async with client.session.post(url, data=AUDIO, headers=HEADERS) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            events = [_event(block) for block in (await response.text()).split("\r\n\r\n") if block.strip()]
    assert events[0] == ("route", {"route": "stream", "reason": "mode=stream was asked for"})
    assert events[-1][0] == "Metadata"
    finals = [data for name, data in events if name == "Results" and data["is_final"]]
    words = [id_for(word["word"]) for data in finals for word in data["channel"]["alternatives"][0]["words"]]
    assert words == SAID


@pytest.mark.parametrize("wish", ["store=false", "gw_store=false"])
@pytest.mark.parametrize("mode", ["sync", "stream", "async"])
async def test_what_is_not_to_be_stored(stand: Stand, tmp_path: Path, mode: str, wish: str) -> None:
    """Is not, by whichever way it goes; what is wished neither way is refused."""
    emulator = await stand.emulator()
    async with caller(stand, emulator, tmp_path) as client:
        url = client.url(f"/v1/transcribe?{LISTEN}&mode={mode}&{wish}", "sidecar")
        async with client.session.post(url, data=AUDIO, headers=HEADERS) as response:
            assert response.status in (200, 202)
            text = await response.text()
        if mode == "async":
            await client.ended(json.loads(text)["id"])
        metrics = client.gateway.metrics
        await eventually(lambda: not client.gateway._exchange.calls and metrics.store_commit.sum)
        async with client.session.get(client.url("/v1/usage", "sidecar")) as response:
            await response.read()
        async with client.session.get(client.url("/v1/transcripts", "sidecar")) as response:
            assert (await response.json())["transcripts"] == []
        async with client.session.post(url + "x", data=AUDIO, headers=HEADERS) as response:
            assert response.status == 400


async def test_a_caller_that_leaves_ends_its_session(stand: Stand, tmp_path: Path) -> None:
    """Nothing goes on that nobody hears."""
    emulator = await stand.emulator()
    audio, _ = call(60, manner=None)
    async with caller(stand, emulator, tmp_path) as client:
        url = client.url(f"/v1/transcribe?{LISTEN}&mode=stream&interim_results=true")
        async with client.session.post(url, data=audio, headers=HEADERS) as response:
            await response.content.readany()
            response.close()
        await eventually(lambda: not client.gateway._exchange.calls, 15)
    assert emulator.connections[0].audio_bytes < len(audio) / 2


async def test_a_session_that_is_refused(stand: Stand, tmp_path: Path) -> None:
    """The client port's refusal is the answer's."""
    emulator = await stand.emulator()
    async with caller(stand, emulator, tmp_path, server={"max_connections": 1}) as client:
        status, answer = await client.post(AUDIO, f"{LISTEN}&mode=stream")
        assert (status, answer["err_code"]) == (503, "SESSION_REFUSED")
        assert answer["err_msg"] == "The gateway has no room for another connection."


def _event(block: str) -> tuple[str, Any]:
    lines = dict(line.split(": ", 1) for line in block.split("\r\n"))
    return lines["event"], json.loads(lines["data"])
