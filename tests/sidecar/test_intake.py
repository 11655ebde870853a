"""Recordings, forms and JSON that are wrong: each gets a 4xx that names the field, and leaves nothing."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.prerecorded import upload
from gateway.store.databases import Connection
from gateway.store.schema import JOBS, TRANSCRIPTS
from tests.fakes.stand import LISTEN, Stand, call, eventually, stand
from tests.fakes.wire_client import WireClient, exchange
from tests.sidecar.test_transcribe import wav

__all__ = ["stand"]
AUDIO, _ = call(4)
LIMIT = 1_000_000
PATHS = ("/v1/transcribe", "/v1/jobs")


def raw(
    body: bytes, *headers: str, query: str = "model=nova-3", length: int | None = None
) -> tuple[str, bytes]:
    """The target's query, and all that follows the first line."""
    lines = [
        "Host: x",
        "Connection: close",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return query, "\r\n".join([*lines, "", ""]).encode() + body


def js(said: Any) -> tuple[str, bytes]:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return raw(body, "Content-Type: application/json", query="")


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> tuple[str, bytes]:
    body = b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end
    return raw(body, "Content-Type: multipart/form-data; boundary=B")


def part(name: str, data: bytes, filename: str = "") -> bytes:
    extra = f'; filename="{filename}"' if filename else ""
    return f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data


WAV = "Content-Type: audio/wav"
MULAW = "Content-Type: audio/basic"
URL = "https://voice.example.com/a.wav"

BAD: dict[str, tuple[tuple[str, bytes], int, str]] = {
    "an empty body": (raw(b"", WAV), 400, "body"),
    "a WAV that ends in its header": (raw(wav(AUDIO)[:30], WAV), 415, "body: is a WAV file that ends"),
    "a WAV that ends in its format": (
        raw(b"RIFF\0\1\0\0WAVEJUNK\x14\0\0\0" + bytes(20) + wav(AUDIO)[12:23], WAV),
        415,
        "body: is a WAV file that was cut off",
    ),
    "a truncated WAV": (raw(wav(AUDIO)[:-1000], WAV), 415, "body: is a WAV file that was cut off"),
    "a WAV of 0 seconds": (raw(wav(b""), WAV), 415, "body: is a WAV file without a sample"),
    "a PDF": (
        raw(b"%PDF-1.7\n" + bytes(5000), "Content-Type: application/octet-stream"),
        415,
        "body: is a PDF",
    ),
    "a PDF that says so": (raw(b"%PDF-1.7", "Content-Type: application/pdf"), 415, "Content-Type"),
    "3 GB, announced": (raw(b"x" * 100, WAV, length=3_000_000_000), 413, f"{LIMIT} bytes"),
    "a gzip bomb": (
        raw(gzip.compress(bytes(10_000_000)), WAV, "Content-Encoding: gzip"),
        415,
        "Content-Encoding",
    ),
    "a gzip bomb in disguise": (raw(gzip.compress(bytes(10_000_000)), WAV), 415, "compressed with gzip"),
    "an unknown mode": (raw(AUDIO, MULAW, query=f"{LISTEN}&mode=soon"), 400, "mode:"),
    "a negative duration": (raw(AUDIO, MULAW, query=f"{LISTEN}&duration=-1"), 400, "duration:"),
    "a duration that is none": (raw(AUDIO, MULAW, query=f"{LISTEN}&duration=nan"), 400, "duration:"),
    "a priority that is none": (raw(AUDIO, MULAW, query=f"{LISTEN}&priority=0"), 400, "priority:"),
    "a callback to loopback": (
        raw(AUDIO, MULAW, query=f"{LISTEN}&callback=https://127.0.0.1/x"),
        400,
        "callback:",
    ),
    "a callback to metadata": (
        raw(AUDIO, MULAW, query=f"{LISTEN}&callback=https://169.254.169.254/x"),
        400,
        "callback:",
    ),
    "audio and a url": (raw(AUDIO, MULAW, query=f"{LISTEN}&url={URL}"), 400, "url:"),
    "invalid JSON": (js(b'{"url": '), 400, "JSON"),
    "JSON that is too deep": (js(b"[" * 100_000), 400, "JSON"),
    "no url": (js({"model": "nova-3"}), 400, "url:"),
    "a url to loopback": (js({"url": "https://127.0.0.1/a.wav"}), 400, "url:"),
    "a url of another kind": (js({"url": "file:///etc/passwd"}), 400, "url:"),
    "a bad option": (js({"url": URL, "model": {"a": 1}}), 400, "model:"),
    "an id that is none": (js({"url": URL, "id": "../x"}), 400, "id:"),
    "a form without a file": (form(part("mode", b"auto")), 400, "file:"),
    "a form with two files": (form(part("file", AUDIO, "a"), part("more", AUDIO, "b")), 400, "more:"),
    "a form with an empty file": (form(part("file", b"", "a")), 400, "empty"),
    "a form with a PDF": (form(part("file", b"%PDF-1.7" + bytes(99), "a")), 415, "file: is a PDF"),
    "a form with a bad field": (form(part("file", AUDIO, "a"), part("mode", b"soon")), 400, "mode:"),
    "a form with a type that is none": (
        form(b'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: a/\xff\r\n\r\nxx'),
        415,
        "Content-Type",
    ),
    "an option of ours in JSON": (js({"url": URL, "gw_store": False}), 400, "gw_store:"),
    "a wish that is none": (raw(AUDIO, MULAW, query=f"{LISTEN}&gw_store=no"), 400, "gw_store:"),
    "a form that stops": (form(part("file", AUDIO, "a"), end=b""), 400, "form"),
    "a form of another boundary": (
        raw(b"--A\r\n\r\nx\r\n--A--\r\n", "Content-Type: multipart/form-data; boundary=B"),
        400,
        "form",
    ),
    "a form without a boundary": (raw(b"--A--", "Content-Type: multipart/form-data"), 400, "form"),
}


async def gateway_in(stand: Stand, folder: Path, uploads: int = 1000, **sections: Any) -> Gateway:
    emulator = await stand.emulator()
    return await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{folder}/gateway.db"},
        prerecorded={"spool_dir": str(folder / "spool"), "spool_bytes": 8_000_000, "max_uploads": uploads},
        jobs={"max_upload_bytes": LIMIT},
        **sections,
    )


async def rows(gateway: Gateway) -> int:
    async def count(connection: Connection) -> int:
        return sum([len(list(await connection.execute(table.select()))) for table in (JOBS, TRANSCRIPTS)])

    assert gateway.store is not None
    return await gateway.store.read(count)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def nothing_left(gateway: Gateway, folder: Path, tasks: int, files: int) -> None:
    """No file, row, task or descriptor more than before."""
    await eventually(lambda: not gateway.http.uploads.active, what="a request goes on")
    await eventually(lambda: gateway.recordings.spool.used == 0, what="bytes of the spool are taken")
    await eventually(lambda: not list((folder / "spool").iterdir()), what="a file is left")
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks, what="a task is left")
    await eventually(lambda: open_files() <= files, what="a descriptor is left open")
    assert await rows(gateway) == 0


def refused(found: tuple[int, Any, bytes], status: int, named: str) -> None:
    got, _, body = found
    assert got == status, body
    said = json.loads(body)
    assert {"err_code", "err_msg", "request_id"} <= set(said)
    assert named in said["err_msg"]


async def test_what_is_wrong_is_named_and_leaves_nothing(stand: Stand, tmp_path: Path) -> None:
    """Every case, by both routes, all at once."""
    await all_refused(await gateway_in(stand, tmp_path), tmp_path, cuts=())


@pytest.mark.parametrize("cuts", [(), (3,), (1, 4, 11, 43)])
async def test_however_it_comes(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...]
) -> None:
    """The same, where bodies come in pieces and the disk takes its time."""
    real = os.pwrite

    def slow(fd: int, data: bytes, at: int) -> int:
        time.sleep(0.01)
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", slow)
    await all_refused(await gateway_in(stand, tmp_path), tmp_path, cuts)


async def all_refused(gateway: Gateway, folder: Path, cuts: tuple[int, ...]) -> None:
    """`cuts` are places in the body at which it is cut."""
    await exchange(
        gateway.sidecar_address, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    await rows(gateway)
    tasks, files = len(asyncio.all_tasks()), open_files() + 2
    waiting = []
    for path in PATHS:
        for (query, rest), status, named in BAD.values():
            head, _, body = rest.partition(b"\r\n\r\n")
            head = f"POST {path}?{query} HTTP/1.1\r\n".encode() + head + b"\r\n\r\n"
            places = [0, *(cut for cut in cuts if cut < len(body)), len(body)]
            first, *others = (body[start:end] for start, end in itertools.pairwise(places))
            waiting.append((exchange(gateway.sidecar_address, head + first, *others), status, named))
    found = await asyncio.gather(*(one for one, _, _ in waiting))
    names = [f"{path} {name}" for path in PATHS for name in BAD]
    wrong = []
    for name, one, (_, status, named) in zip(names, found, waiting, strict=True):
        try:
            refused(one, status, named)
        except (AssertionError, ValueError) as exc:
            wrong.append(f"{name}: {one[0]} {one[2][:200]!r} {exc if isinstance(exc, ValueError) else ''}")
    assert not wrong, "\n".join(wrong)
    await nothing_left(gateway, folder, tasks, files)


@pytest.mark.parametrize("path", PATHS)
async def test_an_upload_that_drips(
    stand: Stand, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is given up; and one whose client leaves half-way leaves nothing either."""
    monkeypatch.setattr(upload, "GRACE", 0.2)
    gateway = await gateway_in(stand, tmp_path)
    await rows(gateway)
    tasks, files = len(asyncio.all_tasks()), open_files() + 2
    start = f"POST {path}?{LISTEN} HTTP/1.1\r\nHost: x\r\n{MULAW}\r\nContent-Length: 9999\r\n\r\nx".encode()
    refused(await exchange(gateway.sidecar_address, start), 408, "slower than")
    async with await WireClient.connect(gateway.sidecar_address) as client:
        client.writer.write(start)
        await eventually(lambda: gateway.recordings.spool.used == 1)
    await nothing_left(gateway, tmp_path, tasks, files)


async def test_a_job_id_that_is_taken(stand: Stand, tmp_path: Path) -> None:
    """Is 409; the same request again is the same job."""
    gateway = await gateway_in(stand, tmp_path, callback={"allow": ["127.0.0.1"]})

    async def submit(audio: bytes, priority: int = 5) -> tuple[int, Any]:
        query, rest = raw(audio, MULAW, query=f"{LISTEN}&mode=async&id=one&priority={priority}")
        data = f"POST /v1/transcribe?{query} HTTP/1.1\r\n".encode() + rest
        status, _, body = await exchange(gateway.sidecar_address, data)
        return status, json.loads(body)

    assert (await submit(AUDIO))[0] == 202
    status, said = await submit(AUDIO[:-100])
    assert (status, said["err_code"]) == (409, "JOB_EXISTS")
    assert "id:" in said["err_msg"]
    assert (await submit(AUDIO))[0] == 202
    assert await rows(gateway) <= 2
    await eventually(lambda: gateway.recordings.spool.used == 0)


@pytest.mark.parametrize(
    ("sections", "mode", "code"),
    [
        ({}, "callback", "NO_CALLBACK"),
        ({"callback": {"public_url": "https://voice.example.com:9000"}}, "callback", "NO_CALLBACK"),
        ({"auth": {"upstream": "client"}}, "async", "NO_JOBS"),
    ],
)
async def test_what_these_settings_do_not_allow(
    stand: Stand, tmp_path: Path, sections: dict[str, Any], mode: str, code: str
) -> None:
    """Is 422, and says which setting."""
    gateway = await gateway_in(stand, tmp_path, **sections)
    query, rest = raw(AUDIO, MULAW, query=f"{LISTEN}&mode={mode}")
    data = f"POST /v1/transcribe?{query} HTTP/1.1\r\n".encode() + rest
    status, _, body = await exchange(gateway.sidecar_address, data)
    assert (status, json.loads(body)["err_code"]) == (422, code)
    assert await rows(gateway) == 0


async def test_one_count_for_all_routes(stand: Stand, tmp_path: Path) -> None:
    """Uploads for jobs have no places of their own; what is refused, and what came, is counted for each."""
    gateway = await gateway_in(stand, tmp_path, uploads=1)
    address, metrics = gateway.sidecar_address, gateway.metrics
    start = f"?{LISTEN} HTTP/1.1\r\nHost: x\r\n{MULAW}\r\nContent-Length: 9999\r\n\r\nx".encode()
    async with await WireClient.connect(address) as client:
        await client.send(b"POST /v1/jobs" + start)
        await eventually(lambda: gateway.recordings.spool.used)
        assert gateway.http.uploads.active == 1
        assert not gateway.http.uploads.idle.is_set()
        for path in (*PATHS, "/v1/listen"):
            status, _, _ = await exchange(address, f"POST {path}".encode() + start)
            assert status == 503
    await eventually(lambda: not gateway.http.uploads.active)
    assert metrics.uploads_refused["busy"] == 3
    await eventually(lambda: metrics.upload_bytes == 1)
    query, rest = raw(b"%PDF-1.7\n" + bytes(50), WAV)
    assert (await exchange(address, f"POST /v1/jobs?{query} HTTP/1.1\r\n".encode() + rest))[0] == 415
    assert (metrics.uploads_refused["no_audio"], metrics.upload_bytes) == (1, 60)
