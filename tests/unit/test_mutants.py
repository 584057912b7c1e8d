"""The table of mutants stays true: every text is still there, and every test that it names."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.table import MUTANTS, Mutant

pytestmark = pytest.mark.once  # a table

HOME = Path(__file__).parents[2]
PAGE = HOME / "docs" / "MUTANTS.md"

in_a_checkout = pytest.mark.skipif(
    not (HOME / "workers").is_dir(), reason="the source is not here, only the tests of it"
)


@in_a_checkout
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.promise)
def test_mutant_changes_what_is_there(mutant: Mutant) -> None:
    """The text that a mutant replaces stands in its file exactly once, and the tests that it names are there.

    After a change of the product, write the new text into the row of tests/mutants/table.py.
    """
    source = (HOME / mutant.file).read_text(encoding="utf-8")
    files = [word for word in shlex.split(mutant.tests) if word.endswith(".py")]

    assert source.count(mutant.text) == 1
    assert mutant.by != mutant.text
    assert files
    assert [name for name in files if not (HOME / name).is_file()] == []


def test_each_promise_is_broken_once() -> None:
    """No promise stands there twice, and there are many of them."""
    assert max(Counter(mutant.promise for mutant in MUTANTS).values()) == 1
    assert len(MUTANTS) >= 30


def test_page_says_that_each_mutant_was_caught() -> None:
    """docs/MUTANTS.md has every row of the table, and all of them were caught: ``make mutants`` writes it."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]

    assert [row[0] for row in rows] == [mutant.promise for mutant in MUTANTS]
    assert [row for row in rows if not row[-1].startswith("caught")] == []
