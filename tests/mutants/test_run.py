"""The known mistakes can still be made: each replaces text that is there once."""

from __future__ import annotations

import pytest

from tests.mutants.run import MUTANTS, ROOT, SLIP, Mutant


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_it_applies(mutant: Mutant) -> None:
    """Exactly once, it changes something, and what comes of it is Python."""
    text = (ROOT / mutant.path).read_text()
    assert text.count(mutant.old) == 1
    mutated = text.replace(mutant.old, mutant.new)
    assert mutated != text
    compile(mutated, mutant.path, "exec")


@pytest.mark.parametrize(
    ("line", "proves"),
    [
        ("E   AssertionError: not in order", True),
        ("E       AttributeError: 'Uplink' object has no attribute '_catching_up'", False),
        ("E   NameError: name 'x' is not defined", False),
        ("    raise AttributeError", True),
    ],
)
def test_how_it_dies(line: str, proves: bool) -> None:
    """Of a check, and not because what it says is not there."""
    assert (SLIP.search(f"...\n{line}\n...") is None) is proves
