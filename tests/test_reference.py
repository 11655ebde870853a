"""The documentation says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import PAGES, PARTS, generated
from gateway.deepgram import errors

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_fresh(page: Path) -> None:
    """What the code knows stands in the pages as the code says it: else run `python docs/generate.py`."""
    assert generated(page.read_text()) == page.read_text()


def test_every_part_stands_somewhere() -> None:
    """No generated part is left out of the pages."""
    text = "".join(page.read_text() for page in PAGES)
    assert {name for name in PARTS if f"<!-- begin {name} -->" in text} == set(PARTS)


def test_every_close_code_is_documented() -> None:
    """Each close code that the code names has its row."""
    documented = set(map(int, re.findall(r"^\| (1\d{3}) \|", REFERENCE, flags=re.MULTILINE)))
    named = {errors.NORMAL, errors.NO_STATUS, errors.INVALID_DATA, errors.POLICY, errors.INTERNAL}
    assert documented >= named | {errors.RESTART, errors.TRY_LATER, 1002, 1009}
    assert errors.NET_0001 in REFERENCE


def test_every_log_event_is_documented() -> None:
    """Each event that the code logs above debug has its row, and no row is about something else."""
    event = r'"([a-z]+\.[a-z_]+)"'
    calls = rf"\.(?:info|warning|error|critical|exception)\(\s*{event}"
    others = rf"\blog\((?:record\.levelno, )?{event}"
    alarms = rf"^    40[123]: {event}"
    code = "".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))
    rows = REFERENCE.partition("## Logs")[2].partition("\n## ")[0]
    documented = re.findall(r"`([a-z]+\.[a-z_]+)`", rows)
    logged = {found for form in (calls, others, alarms) for found in re.findall(form, code, re.MULTILINE)}
    assert set(documented) - {"server.drain"} == logged
