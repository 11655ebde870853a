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


def anchors(page: Path) -> set[str]:
    """Those of a Markdown page as GitHub makes them: of its headings, and what is written as `<a id=…>`."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="(\w+)">', text))


def test_every_link_leads_somewhere() -> None:
    """Relative links of all pages name a file that is there, and a heading in it."""
    folders = ("docs", "bench", "tests")
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    dead = []
    for page in pages:
        for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert pages
    assert dead == []
