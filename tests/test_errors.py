"""The tree of errors says whose fault it is and whether trying again may help."""

from __future__ import annotations

import inspect
import socket

import pytest

from gateway import errors


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(400, False), (401, False), (402, False), (403, False), (404, False), (405, False), (413, False),
     (408, True), (425, True), (429, True), (500, True), (503, True), (504, True)],
)  # fmt: skip
def test_a_refusal_says_whether_to_try_again(status: int, retryable: bool) -> None:
    """Only timeouts, capacity and Deepgram's own faults are worth another dial (deepgram.com/docs/errors)."""
    assert errors.UpstreamRejected(status, [], b"").retryable is retryable


def test_no_connection_is_worth_another_dial() -> None:
    """What never reached Deepgram may do so the next time."""
    assert errors.UpstreamUnavailable("x").retryable
    assert errors.UpstreamTimeout("x").retryable
    assert not errors.SessionLost("x").retryable


def test_every_error_has_one_root_and_one_line() -> None:
    """Whoever catches GatewayError catches them all, and the tree in the module's text names each."""
    classes = [
        cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__
    ]
    assert len(classes) == 13
    for cls in classes:
        assert issubclass(cls, errors.GatewayError)
        assert cls.__name__ in (errors.__doc__ or "")
    assert str(errors.ClientError("no", status=401, close_code=1008)) == "no"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("two\nlines"), "two lines"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("bad"), "bad"),
    ],
)
def test_a_reason_is_a_few_words(error: Exception, text: str) -> None:
    """The system's own words where there are some, without numbers, tuples and line ends."""
    assert errors.reason(error) == text
