"""Deepgram's refusals."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.errors import (
    INVALID_AUTH,
    MAX_REASON_BYTES,
    NET_0001,
    ErrorBody,
    Refusal,
    close_reason,
    error_text,
    named_code,
)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            b'{"err_code":"INVALID_AUTH","err_msg":"Invalid credentials.","request_id":"r"}',
            "Invalid credentials.",
        ),
        (b'{"category":"INVALID_JSON","message":"Invalid JSON submitted."}', "Invalid JSON submitted."),
        (b'{"details":"only details"}', "only details"),
        (b"", ""),
        (b"<html>502</html>", ""),
        (b"[]", ""),
        (b'{"err_msg":7}', ""),
        (b'{"err_msg":"\xff"}', ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_error_text(body: bytes, text: str) -> None:
    """A refusal's words, whichever of Deepgram's forms they come in; nothing from anything else."""
    assert error_text(body) == text


def test_codes_have_three_names() -> None:
    """`error_code` and `category` mean what `err_code` means."""
    assert [ErrorBody(err_code="a").code, ErrorBody(error_code="b").code, ErrorBody(category="c").code] == [
        *"abc"
    ]


def test_a_refusal_of_ours_has_deepgrams_form() -> None:
    """SDKs read these three members."""
    assert json.loads(INVALID_AUTH.body("r")) == {
        "err_code": "INVALID_AUTH",
        "err_msg": "Invalid credentials.",
        "request_id": "r",
    }
    assert Refusal(503, "a", "b").retry_after is None


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (NET_0001, "NET-0001"),
        ("NET-0000", "NET-0000"),
        ("see https://dpgr.am/data0000", "DATA-0000"),
        ("Net0003 after an hour", "NET-0003"),
        ("", ""),
        ("internet 0001", ""),
    ],
)
def test_a_close_is_known_by_its_reason(reason: str, code: str) -> None:
    """1011 alone does not say what it was."""
    assert named_code(reason) == code


def test_our_reasons_fit_a_close_frame() -> None:
    """NET-0001 must go out word for word."""
    assert close_reason(NET_0001) == NET_0001


@given(st.text())
def test_a_reason_is_cut_at_a_character(text: str) -> None:
    """What is left is the longest beginning that fits and is still UTF-8."""
    reason = close_reason(text)
    assert text.startswith(reason)
    assert len(reason.encode()) <= MAX_REASON_BYTES
    assert reason == text or len(text[: len(reason) + 1].encode()) > MAX_REASON_BYTES
