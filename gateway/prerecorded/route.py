"""Which way a recording takes: at once, as a job, through a live session, or by Deepgram's callback. Pure.

Thresholds are settings. By default what is under a minute is transcribed at once, over five it is a job.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from gateway.config import RouteConfig

Mode = Literal["auto", "sync", "async", "stream", "callback"]
Route = Literal["sync", "async", "stream", "callback"]

SLOWEST_BYTES_PER_SECOND: Final = 500.0
"""AMR's lowest rate is 4.75 kbit/s (3GPP TS 26.071), speech codecs in use are not below it."""
FASTEST_BYTES_PER_SECOND: Final = 1_600_000.0
"""192 kHz, 32 bits, two channels; more than that a second is no recording of speech."""


class Choice(msgspec.Struct, frozen=True):
    """The route, and why in a few words: the answer carries both."""

    route: Route
    reason: str


class Size(msgspec.Struct, frozen=True):
    """What is known of a recording: `seconds` as said or probed (None: not known), and by whom; its bytes."""

    seconds: float | None
    source: str
    size_bytes: int | None


def choose(mode: Mode, size: Size, config: RouteConfig) -> Choice:
    """The route for `mode`; 'auto' goes by duration, or by bytes where that is unknown or cannot be."""
    if mode != "auto":
        return Choice(mode, f"mode={mode} was asked for")
    if size.seconds is not None and is_plausible(size.seconds, size.size_bytes):
        return _by_seconds(size.seconds, f"{size.seconds:.1f} s ({size.source})", config)
    if size.size_bytes is None:
        return Choice("async", "neither duration nor size is known")
    seconds = size.size_bytes / config.assumed_bytes_per_second
    known = f"{size.size_bytes} bytes, about {seconds:.0f} s"
    if size.seconds is not None:
        known += f"; {size.seconds:.1f} s ({size.source}) cannot be true"
    return _by_seconds(seconds, known, config)


def is_plausible(seconds: float, size_bytes: int | None) -> bool:
    """Whether that many bytes can be that long: a header that lies must not pick the route."""
    if size_bytes is None:
        return True
    return SLOWEST_BYTES_PER_SECOND * seconds <= size_bytes + 4096 and (
        size_bytes <= FASTEST_BYTES_PER_SECOND * (seconds + 1)
    )


def _by_seconds(seconds: float, known: str, config: RouteConfig) -> Choice:
    if seconds < config.sync_below:
        return Choice("sync", f"{known}: under {config.sync_below:g} s")
    if seconds > config.async_above:
        return Choice("async", f"{known}: over {config.async_above:g} s")
    between = f"{known}: between {config.sync_below:g} and {config.async_above:g} s"
    return Choice(config.between, between)
