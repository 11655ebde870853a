"""Addresses for Deepgram's callbacks, and what their bodies mean."""

from __future__ import annotations

import itertools
import json

import msgspec
import pytest

from gateway.config import CallbackConfig
from gateway.prerecorded.receiver import Receiver, awaits, job_id, told
from gateway.prerecorded.work import Again, Done, Failed
from gateway.store.job import Job

JOB = Job(id="a.b-1", principal="p")


def receiver(url: str = "https://voice.example.com/gw/", key_id: str = "") -> Receiver:
    numbers = itertools.count()
    return Receiver(CallbackConfig(public_url=url, key_id=key_id), lambda: f"secret{next(numbers)}")


def test_each_attempt_has_an_address_of_its_own() -> None:
    """The row keeps a digest, by which the token of the latest attempt is known, and no other."""
    made = receiver()
    first, second = made.address(JOB), made.address(JOB)
    assert first.url == "https://voice.example.com/gw/v1/callbacks/deepgram/a.b-1.secret0"
    job = msgspec.structs.replace(JOB, awaited=second.digest)
    assert "secret" not in second.digest
    tokens = [url.rpartition("/")[2] for url in (first.url, second.url)]
    assert [awaits(job, token) for token in tokens] == [False, True]
    assert [job_id(token) for token in tokens] == [JOB.id, JOB.id]
    assert not awaits(JOB, tokens[0])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "public_url is not set"),
        ("https://a.example:9000", "80, 443, 8080, 8443"),
        ("https://a.example", None),
        ("http://a.example", None),
        ("https://a.example:8443/x", None),
    ],
)
def test_ports_that_deepgram_calls(url: str, why: str | None) -> None:
    """Others are a problem that is said."""
    problem = receiver(url).problem
    assert (problem is None) == (why is None)
    assert why is None or why in str(problem)


def test_the_key_identifier() -> None:
    """Is compared where it is set; it may hold any text."""
    assert receiver().is_deepgram("")
    assert [receiver(key_id="k").is_deepgram(shown) for shown in ("k", "", "kk", "é")] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"metadata": {"duration": 2.5}, "results": {}}, Done),
        ({"err_code": "Bad Request", "err_msg": "corrupt", "request_id": "r"}, Failed),
        ({"err_code": "GATEWAY_TIMEOUT", "err_msg": "", "request_id": "r"}, Failed),
        ({"err_code": "SERVICE_UNAVAILABLE", "err_msg": "later", "request_id": "r"}, Again),
        ({"err_code": "who knows", "err_msg": "", "request_id": "r"}, Again),
    ],
)
def test_what_a_body_means(body: object, kind: type) -> None:
    """A response, or an error by its name."""
    assert isinstance(told(json.dumps(body).encode(), "r"), kind)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'"\xff"'])
def test_bodies_that_are_none(body: bytes) -> None:
    """Are tried again."""
    outcome = told(body, "r")
    assert isinstance(outcome, Again)
    assert outcome.error.code == "BAD_RESPONSE"
