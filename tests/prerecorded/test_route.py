"""Which way a recording takes."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import RouteConfig
from gateway.prerecorded.route import Mode, Size, choose, is_plausible

CONFIG = RouteConfig()
G711 = 8000


@pytest.mark.parametrize(
    ("seconds", "route"),
    [(0.5, "sync"), (59.9, "sync"), (60.0, "sync"), (300.0, "sync"), (300.1, "async"), (7200.0, "async")],
)
def test_by_duration(seconds: float, route: str) -> None:
    """Under a minute at once, over five a job, between as the settings say."""
    choice = choose("auto", Size(seconds, "probed", int(seconds * G711)), CONFIG)
    assert choice.route == route
    assert f"{seconds:.1f} s (probed)" in choice.reason


def test_between_is_a_setting() -> None:
    """Between the thresholds the operator decides."""
    config = RouteConfig(between="async")
    assert choose("auto", Size(120.0, "said", 120 * G711), config).route == "async"
    assert choose("auto", Size(59.0, "said", 59 * G711), config).route == "sync"


@pytest.mark.parametrize(("size", "route"), [(100_000, "sync"), (50_000_000, "async"), (None, "async")])
def test_without_a_duration(size: int | None, route: str) -> None:
    """By the bytes, at a rate that takes nothing long for short."""
    assert choose("auto", Size(None, "", size), CONFIG).route == route


@pytest.mark.parametrize("seconds", [0.01, 1e6])
def test_a_header_that_lies(seconds: float) -> None:
    """Fifty megabytes in 10 ms, or eleven days: what cannot be true does not pick the route."""
    choice = choose("auto", Size(seconds, "probed", 50_000_000), CONFIG)
    assert choice.route == "async"
    assert "cannot be true" in choice.reason


@given(st.floats(min_value=0.1, max_value=1e5), st.sampled_from([600, 4000, 16_000, 192_000, 1_536_000]))
def test_real_rates_are_plausible(seconds: float, rate: int) -> None:
    """Every rate from AMR to 192 kHz PCM can be true."""
    assert is_plausible(seconds, round(seconds * rate))


@pytest.mark.parametrize("mode", [mode for mode in get_args(Mode) if mode != "auto"])
def test_what_was_asked_for(mode: Mode) -> None:
    """A mode that is said is taken, whatever the audio is."""
    choice = choose(mode, Size(10_000.0, "said", 1), CONFIG)
    assert (choice.route, choice.reason) == (mode, f"mode={mode} was asked for")
