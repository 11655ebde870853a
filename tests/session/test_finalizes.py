"""Who asked for a Finalize, and whose its answer is."""

from __future__ import annotations

import pytest

from gateway.session.finalizes import Finalizes, unasked

EVERY = '{"type":"Finalize"}'


def test_a_channel_of_its_own() -> None:
    """Answered on its channel it is done with, whatever was answered elsewhere (continuity.md I11)."""
    found = Finalizes()
    found.went_up("a", '{"type":"Finalize","channel":0}', 10)
    found.went_up("b", '{"type":"Finalize","channel":1}', 20)
    assert found.answered(0, 2, 10) == ("a", True)
    assert found.answered(1, 2, 20) == ("b", True)


def test_one_for_all_channels() -> None:
    """The first answer is enough not to ask again; the others are the client's all the same."""
    found = Finalizes()
    found.went_up("a", EVERY, 10)
    found.went_up("b", EVERY, 20)
    assert [found.answered(c, 2, 30) for c in (0, 1, 1, 0)] == [
        ("a", True),
        (None, True),
        ("b", True),
        (None, True),
    ]


@pytest.mark.parametrize(
    "channel",
    ["-5", "1001", "9" * 30, "1.5", '"a"', "null", "[" * 100_000 + "]" * 100_000],
    ids=lambda c: c[:9],
)
def test_one_for_a_channel_that_cannot_be(channel: str) -> None:
    """Counts as one for all: whatever is answered, the client asked."""
    found = Finalizes()
    found.went_up("a", f'{{"type":"Finalize","channel":{channel}}}', 10)
    assert found.answered(0, 1, 10) == ("a", True)


def test_a_channel_that_stands_still_is_asked_for() -> None:
    """Once per span of audio; the others are left alone."""
    found = Finalizes()
    assert found.prompt([0, 0], 100, 100) == []
    assert found.prompt([90, 0], 101, 100) == ['{"type":"Finalize","channel":1}']
    assert found.prompt([190, 0], 200, 100) == []
    assert found.prompt([190, 0], 202, 100) == ['{"type":"Finalize","channel":1}']
    found.clear()
    assert found.prompt([290, 0], 300, 100) == ['{"type":"Finalize","channel":1}']


def test_what_we_asked_for_the_client_did_not() -> None:
    """Unless its own Finalize is answered by the same final."""
    found = Finalizes()
    found.prompt([0], 101, 100)
    assert found.answered(0, 1, 101) == (None, False)
    assert found.answered(0, 1, 150) == (None, True), "nobody knows better"
    found.prompt([101], 300, 100)
    found.went_up("a", EVERY, 400)
    assert found.answered(0, 1, 300) == (None, False)
    assert found.answered(0, 1, 400) == ("a", True)
    found.prompt([400], 600, 100)
    found.went_up("b", EVERY, 600)
    assert found.answered(0, 1, 600) == ("b", True)
    assert found.answered(0, 1, 600) == (None, False)


def test_a_final_without_the_word() -> None:
    """What was said is not touched, be it that very word."""
    said = rb'"transcript":"\"from_finalize\":true"'
    assert unasked(b'{"from_finalize": true,' + said + b"}") == b'{"from_finalize":false,' + said + b"}"
