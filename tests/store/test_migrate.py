"""Which revisions there are."""

from __future__ import annotations

from gateway.store import migrate


def test_the_head_is_known() -> None:
    """And what a newer version made is not."""
    assert migrate.known(migrate.head())
    assert not migrate.known("9999")
