"""The same stand as the integration tests, on the standard loop."""

from __future__ import annotations

from tests.fakes.stand import stand

__all__ = ["stand"]
