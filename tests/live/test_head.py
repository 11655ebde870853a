"""Reading a request's head, as it comes in pieces and as it should not come at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.errors import Refusal
from gateway.live.head import MAX_HEADERS, MAX_LINE_BYTES, NOT_HTTP, TLS, Head, parse

GOOD = b"GET /v1/listen?a=%20&b=+&a HTTP/1.1\r\nHost: x\r\nX-Y:  z \r\nUpgrade: WebSocket\r\n\r\n"


def status(data: bytes) -> int | None:
    """The refusal's status; None for a head or for one that is not complete."""
    found = parse(data)
    return found.status if isinstance(found, Refusal) else None


def test_a_head() -> None:
    """Target and values as they were written, names in lower case."""
    assert parse(GOOD + b"\x82\x00 what follows is not its business") == Head(
        "GET",
        "/v1/listen",
        "a=%20&b=+&a",
        (("host", "x"), ("x-y", "z"), ("upgrade", "WebSocket")),
    )


@given(st.integers(0, len(GOOD) - 1))
def test_an_incomplete_head_waits(length: int) -> None:
    """Wherever it is cut, nothing is said before its end has come."""
    assert parse(GOOD[:length]) is None


@given(st.binary(max_size=300))
def test_garbage_never_raises(data: bytes) -> None:
    """Whatever comes is a head, a refusal or not enough."""
    assert isinstance(parse(data), Head | Refusal | None)
    assert isinstance(parse(data + b"\r\n\r\n"), Head | Refusal)


@given(st.binary(max_size=60))
def test_a_target_is_never_altered(data: bytes) -> None:
    """A request line is taken as it is, or not at all."""
    found = parse(b"GET /v1/listen?" + data + b" HTTP/1.1\r\n\r\n")
    if isinstance(found, Head):
        assert found.path == "/v1/listen"
        assert found.query.encode() == data


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        (b"X: " + b"y" * (MAX_LINE_BYTES - 3), None),
        (b"X: " + b"y" * (MAX_LINE_BYTES - 2), 431),
        (b"\r\n".join([b"X: y"] * MAX_HEADERS), None),
        (b"\r\n".join([b"X: y"] * (MAX_HEADERS + 1)), 431),
        (b"\r\n".join([b"X: " + b"y" * 8000] * 9), 431),
        (b"X", 400),
        (b": y", 400),
        (b"X : y", 400),
        (b" X: y", 400),
        (b"X: y\n\tz", 400),
        (b"X: y\rz", 400),
        (b"X: \x00", 400),
        (b"X: \x7f", 400),
        (b"X: \xe9\t", None),
        (b"X:", None),
    ],
)
def test_headers(field: bytes, wanted: int | None) -> None:
    """Limits are the largest that pass; what can be read in two ways is refused (security.md S14)."""
    assert status(b"GET / HTTP/1.1\r\n" + field + b"\r\n\r\n") == wanted


@pytest.mark.parametrize("length", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
@pytest.mark.parametrize("ended", [b"\r\n\r\n", b""])
def test_the_request_line_has_a_limit(length: int, ended: bytes) -> None:
    """Also one that never ends is refused when it is too long, and not before."""
    line = b"GET /" + b"x" * (length - len(b"GET / HTTP/1.1")) + b" HTTP/1.1"
    assert len(line) == length
    assert status(line + ended) == (414 if length > MAX_LINE_BYTES else None)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_tls_is_told_from_garbage(data: bytes) -> None:
    """By its first byte, whatever its random bytes look like (faults.md 40)."""
    assert parse(data) is TLS


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\x80\x2e\x01",
        b" GET / HTTP/1.1",
        b"GET\t/",
        b"GET /\xff",
        b"GET /\r\rHost: x",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\xff" * 160,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b" / HTTP/1.1\r\n\r\n",
        b"G(T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.10\r\n\r\n",
    ],
)
def test_what_can_be_no_request_is_not_waited_for(data: bytes) -> None:
    """An end of its line would not make it one."""
    assert parse(data) is NOT_HTTP


@pytest.mark.parametrize(
    ("upgrade", "wanted"), [("websocket", True), ("WebSocket", True), ("h2c", False), ("", False)]
)
def test_wants_websocket(upgrade: str, wanted: bool) -> None:
    """By the Upgrade header, in any case."""
    assert Head("GET", "/", "", (("upgrade", upgrade),)).wants_websocket is wanted
    assert not Head("GET", "/", "", ()).wants_websocket


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ((), False),
        ((("content-length", "0"),), False),
        ((("content-length", "5"),), True),
        ((("content-length", "0"), ("content-length", "5")), True),
        ((("transfer-encoding", "chunked"),), True),
    ],
)
def test_what_announces_a_body(headers: tuple[tuple[str, str], ...], wanted: bool) -> None:
    """Only a length of nothing is none."""
    assert Head("GET", "/", "", headers).has_body is wanted
