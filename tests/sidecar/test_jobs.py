"""`/v1/jobs` over HTTP, in a running gateway in front of the emulator."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.auth import Principal
from gateway.sidecar.jobs import _id_of
from tests.fakes.stand import Stand, eventually, stand  # noqa: F401 - pytest finds fixtures by name
from tests.fakes.wire_client import WireClient

AUDIO = b"\xff" * 8000
MULAW = "model=nova-3&encoding=mulaw&sample_rate=8000"
HEADERS = {"Content-Type": "audio/basic"}


class Client:
    def __init__(self, session: aiohttp.ClientSession, spool: Path) -> None:
        self.post, self.get = session.post, session.get
        self._session = session
        self.spool = spool

    @property
    def kept(self) -> list[str]:
        return os.listdir(self.spool)

    async def said(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self._session.request(method, path, **options) as response:
            text = await response.text()
            return response.status, await response.json() if text else None

    async def upload(self, query: str = "", data: bytes = AUDIO) -> tuple[int, Any]:
        return await self.said("POST", f"/v1/jobs?{MULAW}&{query}", data=data, headers=HEADERS)

    async def ended(self, job_id: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                _, job = await self.said("GET", f"/v1/jobs/{job_id}")
                if job.get("ended_at"):
                    found: dict[str, Any] = job
                    return found
                await asyncio.sleep(0.02)


@pytest.fixture
async def client(stand: Stand, tmp_path: Path) -> AsyncIterator[Client]:  # noqa: F811 - a fixture is asked for by name
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
        jobs={"starts_per_minute": 0, "backoff_seconds": 0.05, "max_upload_bytes": 100_000},
    )
    host, port = gateway.sidecar_address
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        yield Client(session, tmp_path / "spool")


async def test_an_upload_becomes_a_result(client: Client) -> None:
    """202 with its place, then Deepgram's response; the audio is gone, the transcript is there."""
    async with client.post(f"/v1/jobs?{MULAW}", data=AUDIO, headers=HEADERS) as response:
        accepted = await response.json()
        assert response.status == 202
        assert response.headers["Location"] == f"/v1/jobs/{accepted['id']}"
    assert (accepted["state"], accepted["attempts"], accepted["size_bytes"]) == ("queued", 0, 8000)
    job = await client.ended(accepted["id"])
    assert (job["state"], job["attempts"], job["duration"]) == ("succeeded", 1, 1.0)
    assert job["result"]["metadata"]["duration"] == 1.0
    await eventually(lambda: not client.kept)
    assert (await client.said("GET", f"/v1/transcripts/{job['id']}"))[0] == 200


async def test_a_form(client: Client) -> None:
    """One file, and fields on either side of it."""
    form = aiohttp.FormData()
    form.add_field("priority", "1")
    form.add_field("audio", AUDIO, filename="a.ul", content_type="audio/basic")
    form.add_field("metadata", '{"case": 7}')
    for name, value in (("encoding", "mulaw"), ("sample_rate", "8000"), ("model", "nova-3")):
        form.add_field(name, value)
    status, job = await client.said("POST", "/v1/jobs", data=form)
    assert (status, job["priority"], job["metadata"]) == (202, 1, {"case": 7})
    assert (await client.ended(job["id"]))["state"] == "succeeded"


async def test_bad_audio_fails_at_once(client: Client) -> None:
    """With Deepgram's words; it stays a dead letter with its audio, and can be run again."""
    status, job = await client.said("POST", "/v1/jobs?model=nova-3", data=b"no audio at all", headers=HEADERS)
    assert status == 202
    failed = await client.ended(job["id"])
    assert (failed["state"], failed["attempts"], failed["error"]["status"]) == ("failed", 1, 400)
    assert len(client.kept) == 1
    _, dead = await client.said("GET", "/v1/jobs?state=failed")
    assert [one["id"] for one in dead["jobs"]] == [job["id"]]
    status, again = await client.said("POST", f"/v1/jobs/{job['id']}/retry")
    assert (status, again["state"]) == (202, "queued")
    assert (await client.ended(job["id"]))["attempts"] == 2


async def test_events(client: Client) -> None:
    """Each state with an id; who comes back with the last one is told not to."""
    _, job = await client.upload()
    async with client.get(f"/v1/jobs/{job['id']}/events") as response:
        assert response.content_type == "text/event-stream"
        text = await response.text()
    assert "id: 1-succeeded" in text
    assert text.count("event: job") == text.count('"state":')
    last = {"Last-Event-ID": "1-succeeded"}
    assert (await client.said("GET", f"/v1/jobs/{job['id']}/events", headers=last))[0] == 204


async def test_many_or_none(client: Client) -> None:
    """Each mistake is named by its place; nothing is taken."""
    jobs = [{"url": "https://1.1.1.1/a.wav"}, {"priority": 3}, {"url": "https://1.1.1.1/", "priority": 0}]
    status, refused = await client.said("POST", "/v1/jobs", json=jobs)
    assert (status, refused["err_code"]) == (400, "INVALID_JOBS")
    assert [(one["index"], one["field"]) for one in refused["errors"]] == [(1, "url"), (2, "priority")]
    status, refused = await client.said("POST", "/v1/jobs", json={"jobs": jobs})
    assert (status, refused["err_msg"]) == (400, "jobs: send the array of jobs as the body itself")
    assert (await client.said("GET", "/v1/jobs"))[1]["jobs"] == []
    status, accepted = await client.said("POST", "/v1/jobs", json=[jobs[0]] * 3)
    assert (status, len({one["id"] for one in accepted["jobs"]})) == (202, 3)


async def test_two_at_one_moment(
    stand: Stand,  # noqa: F811 - a fixture is asked for by name
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two jobs with one id and the same audio one is refused: the other's audio stays.

    An object store cannot tell which came first.
    """
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
        jobs={"work": False},
    )
    host, port = gateway.sidecar_address
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        client = Client(session, tmp_path / "spool")
        assert (await client.upload("id=one"))[0] == 202
        kept = client.kept
        monkeypatch.setattr(gateway.recordings.spool, "keep", lambda _file, _name: asyncio.sleep(0))
        status, refused = await client.upload("id=one&punctuate=true")
        assert (status, refused["err_code"]) == (409, "JOB_EXISTS")
        assert client.kept == kept


async def test_ids_of_ones_own(client: Client) -> None:
    """Once; the same again is the same job, with other audio it is refused and leaves nothing."""
    _, job = await client.upload("id=mine")
    await client.ended("mine")
    await eventually(lambda: not client.kept)
    status, again = await client.upload("id=mine")
    assert (status, again["state"], again["created_at"]) == (202, "succeeded", job["created_at"])
    status, refused = await client.upload("id=mine", AUDIO + b"\xff")
    assert (status, refused["err_code"]) == (409, "JOB_EXISTS")
    assert client.kept == []


async def test_a_key(client: Client) -> None:
    """The same request is the same job, before and after its end; another one by that key is refused."""
    key = {"headers": {**HEADERS, "Idempotency-Key": "k-1"}}
    path = f"/v1/jobs?{MULAW}"
    asked = [client.said("POST", path, data=AUDIO, **key) for _ in range(5)]
    first, *others = await asyncio.gather(*asked)
    assert {status for status, _ in (first, *others)} == {202}
    assert {job["id"] for _, job in others} == {first[1]["id"]}
    await client.ended(first[1]["id"])
    await eventually(lambda: not client.kept)
    status, again = await client.said("POST", path, data=AUDIO, **key)
    assert (status, again["id"], again["state"]) == (202, first[1]["id"], "succeeded")
    for query, audio in (("", AUDIO + b"\xff"), ("&tag=x", AUDIO)):
        status, refused = await client.said("POST", path + query, data=audio, **key)
        assert (status, refused["err_code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert client.kept == []
    assert len((await client.said("GET", "/v1/jobs"))[1]["jobs"]) == 1
    for wrong, names in (({"Idempotency-Key": "x" * 256}, "Idempotency-Key"), (key["headers"], "id")):
        status, refused = await client.said("POST", path + "&id=mine", data=AUDIO, headers=HEADERS | wrong)
        assert (status, names in refused["err_msg"]) == (400, True)
    assert (await client.said("DELETE", f"/v1/jobs/{first[1]['id']}"))[0] == 204
    status, new = await client.said("POST", path, data=AUDIO + b"\xff", **key)
    assert (status, new["state"]) == (202, "queued")
    await client.ended(new["id"])


def test_whose_a_key_is() -> None:
    """Its caller's: another who says it has another job."""
    callers = Principal("a", "key"), Principal("b", "key"), Principal("a", "jwt")
    assert len({_id_of(caller, "k", 0) for caller in callers}) == 3
    assert _id_of(callers[0], "k", 0) == _id_of(Principal("a", "key"), "k", 0)


async def test_a_key_for_many(client: Client) -> None:
    """All of them, or it is another request."""
    jobs = [{"url": f"https://1.1.1.1/{number}.wav"} for number in range(3)]
    key = {"headers": {"Idempotency-Key": "many"}}
    _, first = await client.said("POST", "/v1/jobs", json=jobs, **key)
    assert len({job["id"] for job in first["jobs"]}) == 3
    _, again = await client.said("POST", "/v1/jobs", json=jobs, **key)
    assert [job["id"] for job in again["jobs"]] == [job["id"] for job in first["jobs"]]
    for other in (jobs[:2], jobs[1:], jobs + jobs[:1], [*jobs[:2], {"url": "https://1.1.1.1/x.wav"}]):
        status, refused = await client.said("POST", "/v1/jobs", json=other, **key)
        assert (status, refused["err_code"]) == (422, "IDEMPOTENCY_KEY_REUSED"), other
    assert len((await client.said("GET", "/v1/jobs"))[1]["jobs"]) == 3


@pytest.mark.parametrize(
    ("options", "status", "names"),
    [
        ({"data": b"", "headers": HEADERS}, 400, "empty"),
        ({"data": AUDIO, "headers": {"Content-Type": "application/pdf"}}, 415, "application/pdf"),
        ({"data": b"\xff" * 200_000, "headers": HEADERS}, 413, "100000"),
        ({"data": AUDIO, "headers": {**HEADERS, "Content-Encoding": "gzip"}}, 415, "Content-Encoding"),
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400, "JSON"),
        ({"json": 7}, 400, "job"),
        ({"json": []}, 400, "array"),
        ({"json": {"model": "nova-3"}}, 400, "url"),
        ({"json": {"url": "https://127.0.0.1/a.wav"}}, 400, "url"),
        ({"json": {"url": "https://1.1.1.1/", "duration": -1}}, 400, "duration"),
        ({"json": {"url": "https://1.1.1.1/", "mode": "magic"}}, 400, "mode"),
        ({"json": {"url": "https://1.1.1.1/", "mode": "sync"}}, 400, "mode"),
        ({"json": {"url": "https://1.1.1.1/", "id": "../etc"}}, 400, "id"),
        ({"json": {"url": "https://1.1.1.1/", "callback": "https://10.0.0.1/"}}, 400, "callback"),
        ({"data": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "form"),
    ],
)
async def test_bad_requests(client: Client, options: dict[str, Any], status: int, names: str) -> None:
    """Each is told in Deepgram's form what is wrong; no file and no row is left."""
    found, refused = await client.said("POST", "/v1/jobs", **options)
    assert (found, set(refused) - {"errors"}) == (status, {"err_code", "err_msg", "request_id"})
    assert names in refused["err_msg"]
    assert client.kept == []
    assert (await client.said("GET", "/v1/jobs"))[1]["jobs"] == []


async def test_cancel(client: Client) -> None:
    """Once; then it has ended, and its result stays."""
    _, job = await client.upload()
    await client.ended(job["id"])
    status, refused = await client.said("POST", f"/v1/jobs/{job['id']}/cancel")
    assert (status, refused["err_code"]) == (409, "JOB_ENDED")
    assert (await client.said("POST", f"/v1/jobs/{job['id']}/retry"))[0] == 409
    assert (await client.said("POST", "/v1/jobs/nobodys/cancel"))[0] == 404
    assert (await client.ended(job["id"]))["state"] == "succeeded"


async def test_delete(client: Client) -> None:
    """A job that has ended goes with its audio and its transcript; then there is none."""
    _, job = await client.upload()
    await client.ended(job["id"])
    _, failed = await client.said("POST", "/v1/jobs?model=nova-3", data=b"no audio", headers=HEADERS)
    await client.ended(failed["id"])
    await eventually(lambda: len(client.kept) == 1)
    for one in (job["id"], failed["id"]):
        assert await client.said("DELETE", f"/v1/jobs/{one}") == (204, None)
        for method, path in (("GET", "jobs"), ("DELETE", "jobs"), ("GET", "transcripts")):
            assert (await client.said(method, f"/v1/{path}/{one}"))[0] == 404
    await eventually(lambda: not client.kept)
    assert (await client.said("DELETE", "/v1/jobs/nobodys"))[0] == 404


async def test_delete_and_again(
    stand: Stand,  # noqa: F811 - a fixture is asked for by name
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same job has its audio, though an object store takes a while to delete the one before."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
        jobs={"work": False},
    )
    delete = gateway.recordings.spool.delete

    async def slowly(name: str) -> None:
        await asyncio.sleep(0.2)
        await delete(name)

    monkeypatch.setattr(gateway.recordings.spool, "delete", slowly)
    host, port = gateway.sidecar_address
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        client = Client(session, tmp_path / "spool")
        await client.upload("id=mine")
        assert (await client.said("DELETE", "/v1/jobs/mine"))[0] == 200
        assert (await client.said("DELETE", "/v1/jobs/mine"))[0] == 204
        assert (await client.upload("id=mine"))[0] == 202
        await asyncio.sleep(0.5)
        assert len(client.kept) == 1


async def test_pages(client: Client) -> None:
    """The cursor leads through all of them."""
    made = [(await client.upload())[1]["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        _, page = await client.said("GET", f"/v1/jobs?limit=2{cursor}")
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == made[::-1]
    for wrong in ("limit=0", "limit=x", "state=lost", "cursor=x"):
        assert (await client.said("GET", f"/v1/jobs?{wrong}"))[0] == 400


async def test_who_watches_while_the_store_goes_down(
    stand: Stand,  # noqa: F811 - a fixture is asked for by name
    tmp_path: Path,
) -> None:
    """Sees its stream end, with no other answer within it; and no more watch than are let in."""
    emulator = await stand.emulator(batch_delay=1000.0)
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
        sidecar={"max_observers": 1},
    )
    assert gateway.store is not None
    host, port = gateway.sidecar_address
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        client = Client(session, tmp_path / "spool")
        _, job = await client.upload()
        path = f"/v1/jobs/{job['id']}/events"
        asked = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        async with await WireClient.connect(gateway.sidecar_address) as watcher:
            await watcher.send(asked)
            seen = await watcher.reader.readuntil(b"event: job")
            assert (await client.said("GET", path))[0] == 503
            gateway.store.healthy = False
            async with asyncio.timeout(10):
                while b"0\r\n\r\n" not in seen:
                    more = await watcher.reader.read(65_536)
                    seen += more
                    assert more
            gateway.store.healthy = True
            assert seen.count(b"HTTP/1.1 ") == 1
            assert b" 503 " not in seen
        status, cancelled = await client.said("DELETE", f"/v1/jobs/{job['id']}")
        assert (status, cancelled["state"]) == (200, "cancelled")
        assert await client.said("DELETE", f"/v1/jobs/{job['id']}") == (204, None)


async def test_who_leaves_while_the_job_is_written(
    stand: Stand,  # noqa: F811 - a fixture is asked for by name
    tmp_path: Path,
) -> None:
    """Leaves a job with its audio: the row is committed after all."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
    )
    host, port = gateway.sidecar_address
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        client = Client(session, tmp_path / "spool")
        lock = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        upload = asyncio.create_task(client.upload("id=one"))
        await eventually(lambda: client.kept)
        await asyncio.sleep(0.1)
        upload.cancel()
        await asyncio.sleep(0.1)
        lock.execute("COMMIT")
        lock.close()
        await eventually(
            lambda: gateway.metrics.job_attempts["done"] + gateway.metrics.job_attempts["failed"]
        )
        assert (await client.ended("one"))["state"] == "succeeded"
