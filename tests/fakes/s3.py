"""An object store that speaks S3, from a wheel and without root: rclone, whose buckets are folders."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

BUCKET: Final = "recordings"
URL: Final = f"s3://{BUCKET}/jobs"
ID, KEY = "gateway-tests", "not-a-secret-of-anyones"


class ObjectStore:
    """`folder` holds what is kept under `URL`, a file for each object; `environment` leads a client here."""

    def __init__(self, root: Path) -> None:
        self.folder = root / BUCKET / "jobs"
        self.folder.mkdir(parents=True)
        self._root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self.environment = {
            "AWS_ACCESS_KEY_ID": ID,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def objects(self) -> set[str]:
        """What there is; the last one takes the folder with it."""
        with contextlib.suppress(FileNotFoundError):
            return {path.name for path in self.folder.iterdir()}
        return set()

    def start(self) -> None:
        """Returns when it answers."""
        self._process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", os.devnull),
                *("--addr", f"127.0.0.1:{self._port}", "--auth-key", f"{ID},{KEY}"),
                *("--vfs-cache-mode", "off", "--dir-cache-time", "0", str(self._root)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            assert time.monotonic() < end, "rclone does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def object_store(root: Path) -> Iterator[ObjectStore]:
    """One of one's own."""
    made = ObjectStore(root)
    try:
        made.start()
        yield made
    finally:
        made.kill()
