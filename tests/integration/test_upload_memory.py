"""Recordings pass through on disk: memory does not grow with them."""

from __future__ import annotations

from pathlib import Path

from bench import sync
from bench.memory import pss_kib
from tests.fakes.daemon import CONFIG, Daemon
from tests.fakes.stand import Stand

UPLOADS = 10


async def test_memory_is_flat(stand: Stand, tmp_path: Path) -> None:
    """Ten uploads of 32 MiB in flight take less than a MiB each of the gateway's process."""
    emulator = await stand.emulator("script")
    text = CONFIG.format(port=0, drain=1, url=emulator.url)
    async with await Daemon.start(tmp_path, text, DEEPGRAM_API_KEY="k") as daemon:
        url = f"http://127.0.0.1:{daemon.address[1]}"
        async with sync.held(url, 2):
            pass
        before = pss_kib(daemon.pid)
        async with sync.held(url, UPLOADS):
            assert pss_kib(daemon.pid) - before < UPLOADS * 1024
        assert len(emulator.uploads) == 2 + UPLOADS
        assert {upload.received for upload in emulator.uploads} == {sync.LARGE + 1}
