"""The settings tree itself."""

from __future__ import annotations

import msgspec
import pytest

from gateway.config import settings
from gateway.config.tree import Config


def test_frozen() -> None:
    """Settings cannot be changed once they are in use."""
    with pytest.raises(AttributeError, match="immutable"):
        Config().server.port = 1  # type: ignore[misc]  # the attempt is the test


def test_defaults_are_within_their_own_limits() -> None:
    """A default that its own key would refuse is found here: msgspec does not check defaults."""
    assert msgspec.convert(msgspec.to_builtins(Config()), Config) == Config()


def test_descriptions_are_one_line() -> None:
    """Each description is a sentence of one line, fit for a comment."""
    unfit = [s.path for s in settings(Config()) if "\n" in s.description or not s.description.endswith(".")]
    assert unfit == []
