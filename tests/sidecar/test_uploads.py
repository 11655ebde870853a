"""Recordings on their way in: so many at once, and each refusal by its reason."""

from __future__ import annotations

import pytest

from gateway.metrics import Metrics
from gateway.prerecorded.request import BadField
from gateway.prerecorded.spool import SpoolFull
from gateway.prerecorded.upload import UploadRefused, empty
from gateway.sidecar.uploads import BUSY, Uploads


def test_no_more_than_most() -> None:
    """One too many is refused and counted, and takes nobody's place."""
    metrics = Metrics([], "0")
    uploads = Uploads(2, metrics)
    with uploads.one():
        assert (uploads.active, uploads.full, uploads.idle.is_set()) == (1, False, False)
        with uploads.one():
            assert uploads.full
            with pytest.raises(UploadRefused) as caught, uploads.one():
                raise AssertionError("it was let in")
            assert caught.value.refusal is BUSY
            assert uploads.active == 2
    assert (uploads.active, uploads.full, uploads.idle.is_set()) == (0, False, True)
    assert metrics.uploads_refused["busy"] == 1


@pytest.mark.parametrize(
    ("raised", "reason"),
    [(empty(), "empty"), (SpoolFull("no room"), "spool_full"), (BadField("mode", "is none"), "malformed")],
)
def test_what_refuses_is_counted(raised: Exception, reason: str) -> None:
    """By its reason, and goes on to whoever answers; the place is free again."""
    metrics = Metrics([], "0")
    uploads = Uploads(1, metrics)
    with pytest.raises(type(raised)), uploads.one():
        raise raised
    assert metrics.uploads_refused[reason] == 1
    assert (uploads.active, uploads.idle.is_set()) == (0, True)
