"""`gateway transcribe` against a gateway: files, jobs that are waited for, and what cannot be transcribed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from gateway.emulator.tokens import id_for
from tests.fakes.stand import Stand, call, stand

__all__ = ["stand"]
ROOT = Path(__file__).resolve().parents[2]
RAW = ("--encoding", "mulaw", "--sample-rate", "8000")


def command(port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "transcribe", "--url", f"http://127.0.0.1:{port}", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=40,
    )


async def test_many_recordings(stand: Stand, tmp_path: Path) -> None:
    """One is answered at once, one is a job, one is no audio: two files are written, exit code 1."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
        route={"sync_below": 1.5, "async_above": 1.5},
    )
    said = {}
    for name, count in (("short", 6), ("long", 20)):
        audio, said[name] = call(count)
        (tmp_path / f"{name}.ulaw").write_bytes(audio)
    (tmp_path / "nothing.ulaw").write_bytes(b"")
    files = [str(tmp_path / f"{name}.ulaw") for name in ("short", "long", "nothing")]
    out = tmp_path / "out"
    options = ("--output", "json", "--directory", str(out))
    ran = await asyncio.to_thread(command, gateway.address[1], *files, *options, *RAW)
    assert (ran.returncode, ran.stdout) == (1, ""), ran.stderr
    assert "nothing.ulaw: HTTP 400: The body is empty" in ran.stderr
    assert "1 of 3 recordings were not transcribed" in ran.stderr
    for name, wanted in said.items():
        response = json.loads((out / f"{name}.ulaw.json").read_text())
        words = response["results"]["channels"][0]["alternatives"][0]["words"]
        assert [id_for(word["word"]) for word in words] == wanted
    assert gateway.metrics.jobs_accepted == 1


async def test_forms(stand: Stand, tmp_path: Path) -> None:
    """Text and captions of one file on standard output."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(emulator.url, prerecorded={"spool_dir": str(tmp_path / "spool")})
    audio, said = call(6)
    file = tmp_path / "call.ulaw"
    file.write_bytes(audio)
    for form, start in (("text", ""), ("srt", "1\n00:00:00,"), ("vtt", "WEBVTT")):
        ran = await asyncio.to_thread(command, gateway.address[1], str(file), "--output", form, *RAW)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith(start)
        words = [id_for(word.strip(".,").lower()) for word in ran.stdout.split()]
        assert [word for word in words if word is not None] == said


def test_what_would_mix_up_transcripts() -> None:
    """Is a mistake of the command line: exit code 2, and nothing is sent."""
    for arguments, text in (
        (("a.wav", "b.wav", "--output", "srt"), "--output srt of several recordings needs --directory"),
        (("x/a.wav", "y/a.wav", "--directory", "out"), "both be written to a.wav"),
        (("a.wav", "--directory", __file__), f"--directory: {__file__}: File exists"),
    ):
        ran = command(9, *arguments)
        assert ran.returncode == 2
        assert text in ran.stderr


def test_no_gateway() -> None:
    """Is said for each recording."""
    ran = command(9, __file__)
    assert ran.returncode == 1
    assert "127.0.0.1:9" in ran.stderr


def test_nobody_there() -> None:
    """One line, whatever is wrong: nobody listens, or the address is none."""
    ran = command(1, __file__)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"gateway: {__file__}: cannot connect to 127.0.0.1:1: Connection refused\n"
    ran = command(1, __file__, "--url", "gateway.internal")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "gateway: --url gateway.internal: must be http:// or https:// and a host\n"
