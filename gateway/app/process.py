"""The process around a gateway: signals (a second one ends it at once), systemd, memory, its loop's lag."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from typing import Any, Final

import structlog
import uvloop

from gateway import __version__, compiled, logs
from gateway.app.gateway import Gateway
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.metrics import Metrics

EXIT_OK: Final = 0
EXIT_FORCED: Final = 1
LAG_INTERVAL: Final = 0.25
"""Seconds between two looks at how late the event loop is."""
YOUNG_OBJECTS: Final = 50_000
"""Allocations between two runs of the cyclic collector. A call makes no cycles per frame, so the default of
700 only adds pauses: it cost 9 ms at the 99.99th percentile in a prototype."""
GIL_SECONDS: Final = 0.0005
"""For which another thread may keep the interpreter from the loop; Python's default of 5 ms is what a result
would then wait while the store writes."""


def serve(config: Config, api_key: str | None, source: str, *, worker: bool = False) -> int:
    """Runs until a signal; returns the exit code. Raises ConfigError. `worker` as `Gateway` has it."""
    sys.setswitchinterval(GIL_SECONDS)
    writer = logs.configure(config.log.level, config.log.format, sys.stderr)
    try:
        return uvloop.run(_serve(config, api_key, source, writer, worker))
    except BaseExceptionGroup as group:  # not except*: what it raises comes wrapped before Python 3.11.4
        mistakes, defects = group.split(ConfigError)
        if mistakes is None or defects is not None:
            raise
        raise _first(mistakes) from None
    finally:
        writer.close()


async def _serve(
    config: Config, api_key: str | None, source: str, writer: logs.LogWriter, worker: bool
) -> int:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(config, api_key, tasks, worker=worker)
        gateway.metrics.on_scrape(lambda: setattr(gateway.metrics, "log_lines_dropped", writer.dropped))
        await gateway.start()
        watching = tasks.create_task(watch_loop(gateway.metrics))
        _settle_memory()
        structlog.get_logger().info("server.ready", version=__version__, compiled=compiled(), config=source)
        notify("READY=1")
        await signals.get()
        notify("STOPPING=1")
        draining = tasks.create_task(gateway.stop(config.server.drain))
        again = tasks.create_task(signals.get())
        done, _ = await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
        forced = draining not in done
        for task in (draining, again, watching):
            task.cancel()
        await gateway.close()
        if forced:
            structlog.get_logger().warning("server.forced")
            writer.close()
            os._exit(EXIT_FORCED)
    return EXIT_OK


async def watch_loop(metrics: Metrics) -> None:
    """Measures how late the event loop is, until cancelled."""
    while True:
        due = time.monotonic() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        metrics.loop_lag.observe(max(0.0, time.monotonic() - due))


def notify(state: str) -> None:
    """Tells systemd (sd_notify(3)); without `NOTIFY_SOCKET` nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def _settle_memory() -> None:
    """What exists now lives as long as the process: the cyclic collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
