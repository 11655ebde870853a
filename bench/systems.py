"""The systems that `bench.run` measures: how each is started between softphones and Deepgram.

A name that ends in `+tls` is that system with TLS to Deepgram. All speak plaintext to the softphones.
With `*2` it is two processes of the system that share their port, each on a core of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from bench.machine import NATIVE, ROOT, is_native

MADE: Final = ROOT / ".bench"
RIVALS: Final = ROOT / "bench" / "rivals"
RIVALS_PYTHON: Final = MADE / "rivals" / "bin" / "python"
NODE_FOLDER: Final = MADE / "node-ws"
FRAME_BYTES: Final = 168
"""What 20 ms of G.711 are on the wire: the load's frames have an extended length and a mask."""


class Place(NamedTuple):
    """Where a system runs: its ports, and a folder for what it needs."""

    port: int
    upstream: int
    sidecar: int
    folder: Path
    ca: str
    """The file with Deepgram's certificate authority; empty: no TLS."""
    dials: int
    """How many a second a gateway may begin; 0: its default."""
    shared: bool = False
    """Other processes of the system listen on the same port."""

    @property
    def upstream_url(self) -> str:
        return f"http{'s' if self.ca else ''}://127.0.0.1:{self.upstream}"

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


class System(NamedTuple):
    """`command` gives arguments and environment; `missing` says why it cannot run here, or nothing."""

    command: Callable[[Place], tuple[list[str], dict[str, str]]]
    missing: Callable[[], str]
    window_ms: int = 0
    """How long it collects audio."""
    realtime: bool = True
    """May run under SCHED_FIFO; not where threads of its own would wait for each other on the one core."""
    tls: bool = True
    """Can speak TLS to Deepgram."""


def gateway(batch_ms: str, *, stored: bool = True, native: bool = True) -> System:
    """As a user runs it: every feature on; what is said is kept, unless it is not to be `stored`.

    The compiled build where there is one, unless it is not to be `native`.
    """

    def command(place: Place) -> tuple[list[str], dict[str, str]]:
        settings = {
            "SERVER__PORT": str(place.port),
            "SERVER__BATCH_MS": batch_ms,
            "SERVER__REUSE_PORT": str(place.shared).lower(),
            "SIDECAR__PORT": str(place.sidecar),
            "STORE__URL": f"sqlite:///{place.folder}/gateway.db" if stored else "none",
            "DEEPGRAM__REGIONS__0__URL": place.upstream_url,
            "DEEPGRAM__CA_FILE": place.ca,
        }
        if place.dials:
            settings["DEEPGRAM__MAX_DIALS_PER_SECOND"] = str(place.dials)
        env = {f"GATEWAY_{name}": value for name, value in settings.items()}
        env |= {"DEEPGRAM_API_KEY": "bench", "PYTHONPATH": str(NATIVE if native and is_native() else ROOT)}
        # -P: the folder that it is started in is the checkout, and would come first.
        return [sys.executable, "-P", "-m", "gateway", "serve"], env

    return System(command, lambda: "", window_ms=100 if batch_ms == "auto" else int(batch_ms))


def _bare(low_water_frames: int) -> System:
    def command(place: Place) -> tuple[list[str], dict[str, str]]:
        return [
            str(MADE / "bare"),
            str(place.port),
            str(place.upstream),
            str(low_water_frames * FRAME_BYTES),
        ], {}

    def missing() -> str:
        return "" if (MADE / "bare").exists() else "not built: no gcc"

    return System(command, missing, window_ms=max(0, 20 * (low_water_frames - 1)), tls=False)


def _nginx(place: Place) -> tuple[list[str], dict[str, str]]:
    modules = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{module}_temp_path {place.folder}/{module};" for module in modules)
    text = f"""
daemon off; worker_processes 1; error_log stderr; pid {place.folder}/nginx.pid;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 16384; }}
http {{
  access_log off;
  {temporary}
  server {{
    listen 127.0.0.1:{place.port} backlog=4096;
    location / {{
      proxy_pass {place.upstream_url};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_read_timeout 1h;
      proxy_ssl_verify off;
    }}
  }}
}}
"""
    path = place.write("nginx.conf", text)
    return ["nginx", "-p", str(place.folder), "-e", "stderr", "-c", path], {}


def _haproxy(place: Place) -> tuple[list[str], dict[str, str]]:
    tls = " ssl verify none" if place.ca else ""
    text = f"""
global
  nbthread 1
defaults
  mode http
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
listen all
  bind 127.0.0.1:{place.port} backlog 4096
  server deepgram 127.0.0.1:{place.upstream}{tls}
"""
    return ["haproxy", "-db", "-f", place.write("haproxy.cfg", text)], {}


def _installed(program: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(program) else f"not installed: apt install {program}"


def _rival(script: str, *more: str, window_ms: int = 0) -> System:
    def command(place: Place) -> tuple[list[str], dict[str, str]]:
        url = place.upstream_url.replace("http", "ws", 1)
        words = [str(RIVALS_PYTHON), str(RIVALS / script), str(place.port), url, *more]
        return words, {"SSL_CERT_FILE": place.ca} if place.ca else {}

    def missing() -> str:
        return "" if RIVALS_PYTHON.exists() else "no packages: make .bench/rivals/.installed"

    return System(command, missing, window_ms=window_ms)


def _node(place: Place) -> tuple[list[str], dict[str, str]]:
    url = place.upstream_url.replace("http", "ws", 1)
    env = {"NODE_PATH": str(NODE_FOLDER / "node_modules"), "NODE_EXTRA_CA_CERTS": place.ca}
    return ["node", str(RIVALS / "node-ws" / "relay.js"), str(place.port), url], env


def _node_missing() -> str:
    if not shutil.which("node"):
        return "not installed: apt install nodejs npm"
    return "" if (NODE_FOLDER / "node_modules").exists() else "no packages: make .bench/node-ws/.installed"


SYSTEMS: Final[dict[str, System]] = {
    "nginx": System(_nginx, _installed("nginx")),
    "haproxy": System(_haproxy, _installed("haproxy")),
    "bare": _bare(0),
    "bare-5": _bare(5),
    "gateway-0": gateway("0"),
    "gateway-auto": gateway("auto"),
    "gateway-60": gateway("60"),
    "gateway-100": gateway("100"),
    "gateway-100-unstored": gateway("100", stored=False),
    "gateway-auto-source": gateway("auto", native=False),
    "gateway-100-source": gateway("100", native=False),
    "websockets": _rival("websockets_relay.py"),
    "aiohttp": _rival("aiohttp_relay.py"),
    "node-ws": System(_node, _node_missing, realtime=False),
    "fastapi-sdk": _rival("fastapi_sdk.py"),
    "picows": _rival("picows_relay.py"),
}
QUICK: Final = "bare,haproxy,gateway-0,gateway-auto,gateway-100,gateway-100+tls,websockets,aiohttp"


class Named(NamedTuple):
    """What a name stands for."""

    system: System
    tls: bool
    processes: int


def named(name: str) -> Named:
    """Raises KeyError for a system that there is not, ValueError for a number of processes that cannot be."""
    whole, _, tls = name.partition("+")
    base, _, processes = whole.partition("*")
    if tls not in ("", "tls") or (processes and not base.startswith("gateway")):
        raise ValueError(name)
    return Named(SYSTEMS[base], bool(tls), int(processes or 1))


def versions() -> str:
    """Of the rivals that are here, on one line."""
    found = [
        _first_match(r"[\w.]+/([\d.]+)", "nginx", "-v"),
        _first_match(r"version ([\d.]+)", "haproxy", "-v"),
    ]
    names = ["nginx", "HAProxy", "Node.js"]
    found.append(_first_match(r"v([\d.]+)", "node", "--version"))
    parts = [f"{name} {version}" for name, version in zip(names, found, strict=True) if version]
    lock = ROOT / "bench" / "requirements" / "rivals.txt"
    wanted = r"^(websockets|aiohttp|picows|fastapi|deepgram-sdk|uvloop)==([\w.]+)"
    return ", ".join(parts + [" ".join(pin) for pin in re.findall(wanted, lock.read_text(), re.M)])


def _first_match(pattern: str, *command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else ""
