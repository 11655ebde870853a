"""The ids of the contract: each is defined once, and whatever is cited exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

# Where an id is defined: the first cell of a table row, in bold, an anchor before it or not.
DEFINITION = re.compile(r'^\| (?:<a id="\w+"></a>)?\*\*([IMS]?\d+)\*\*', re.MULTILINE)
CITATION = re.compile(r"\b(continuity|faults|security)\.md,? ([IMS]?\d+)\b")
# Inside the three documents ids stand alone; plain numbers are not checked, since most numbers are no ids.
BARE = re.compile(r"(?<![\w.])([IMS]\d{1,2})(?![\w.]\w)")
STATUS = re.compile(r"\b(this version|next release|planned|kept|in work)\b")

IDS = {
    "continuity": [f"I{n}" for n in range(1, 23)],
    "faults": [f"M{n}" for n in range(1, 17)] + [str(n) for n in range(1, 75)],
    "security": [f"S{n}" for n in range(1, 77)],
}


def text(document: str) -> str:
    return (DOCS / f"{document}.md").read_text(encoding="utf-8")


def unresolved(source: str) -> list[str]:
    """The citations in `source` of ids that their document does not define."""
    return [
        f"{document}.md {cited}" for document, cited in CITATION.findall(source) if cited not in IDS[document]
    ]


def citing_files() -> list[Path]:
    sources = [path for folder in ("gateway", "tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    return sorted([*sources, *DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "systemd").glob("*")])


@pytest.mark.parametrize("document", IDS)
def test_each_id_is_defined_exactly_once_and_in_order(document: str) -> None:
    """No id is missing, doubled, invented or out of its place."""
    assert DEFINITION.findall(text(document)) == IDS[document]


def test_anchors_name_their_invariant() -> None:
    """A link to continuity.md#i11 arrives at I11."""
    anchors = re.findall(r'<a id="(\w+)"></a>\*\*(I\d+)\*\*', text("continuity"))
    assert [name.upper() for name, _ in anchors] == [cited for _, cited in anchors] == IDS["continuity"]


@pytest.mark.parametrize("document", ["continuity", "security"])
def test_each_rule_says_its_status(document: str) -> None:
    """A promise without a status would read as kept."""
    rows = [line for line in text(document).splitlines() if DEFINITION.match(line)]
    assert rows
    assert [row for row in rows if not STATUS.search(row.rstrip(" |").rsplit("|", 1)[-1])] == []


def test_each_row_has_four_cells() -> None:
    """A stray bar in a cell would push the status out of its column."""
    rows = [line for document in IDS for line in text(document).splitlines() if DEFINITION.match(line)]
    assert [row for row in rows if row.replace("\\|", "").count("|") != 5] == []


@pytest.mark.parametrize("document", IDS)
def test_ids_inside_the_documents_resolve(document: str) -> None:
    """The documents refer to each other by id alone; those ids exist."""
    known = {known for ids in IDS.values() for known in ids}
    assert [cited for cited in BARE.findall(text(document)) if cited not in known] == []


def test_citations_resolve() -> None:
    """What code, tests and documents cite by document and id exists there."""
    broken = {
        str(path.relative_to(ROOT)): found
        for path in citing_files()
        if path.is_file() and (found := unresolved(path.read_text(encoding="utf-8")))
    }
    assert broken == {}


@pytest.mark.parametrize(
    ("document", "cited", "resolves"),
    [
        ("continuity", "I22", True),
        ("continuity", "I23", False),
        ("continuity", "S1", False),
        ("faults", "27", True),
        ("faults", "M16", True),
        ("faults", "75", False),
        ("faults", "M0", False),
        ("security", "S76", True),
        ("security", "S77", False),
    ],
)
def test_the_check_notices_a_wrong_citation(document: str, cited: str, resolves: bool) -> None:
    """The check itself can fail."""
    assert (unresolved(f"# see {document}.md {cited}: why") == []) is resolves
