"""docs/FAULTS.md is complete: every test that it names exists, and every fault has a test or a reason."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.once  # a table

HOME = Path(__file__).parents[2]
PAGE = HOME / "docs" / "FAULTS.md"

GROUPS = (
    "Workers die and are replaced",
    "Fork fails, and other scarcity",
    "Accepting, and the bounds of the pool",
    "What a fork copies",
    "An attacker controls a worker",
    "The master is lost; orphans; PID 1",
    "Logs, clocks, metrics and the service manager",
    "Several machines behind a balancer",
)

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Row(NamedTuple):
    """One fault, the promise, and the tests that hold it."""

    group: str
    fault: str
    promise: str
    held_by: str


def rows() -> list[Row]:
    """Return the rows of all tables."""
    found, group = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            group = line.removeprefix("## ")
        elif line.startswith("|") and not line.startswith(("|---", "| fault |")):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 3, f"a row of {len(cells)} cells: {line}"
            found.append(Row(group, *cells))
    return found


@functools.cache
def functions_in(path: str) -> set[str]:
    """Return the test functions of a file."""
    source = HOME / path
    if not source.is_file():
        return set()
    body = ast.parse(source.read_text(encoding="utf-8")).body
    return {one.name for one in body if isinstance(one, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.fault[:60])
def test_fault_has_a_test_or_a_reason(row: Row) -> None:
    """Each fault has a promise, and names tests that exist or the reason why there is none."""
    assert row.fault
    assert row.promise
    named = NAMED.findall(row.held_by)
    if row.held_by.startswith("no test:"):
        assert not named
        assert len(row.held_by) > 30, "that is no reason"
        return
    assert ", ".join(f"`{path}::{name}`" for path, name in named) == row.held_by
    assert [one for one in named if one[1] not in functions_in(one[0])] == []


def test_no_group_is_missing() -> None:
    """The page has these groups, each with a fault, and each fault appears once."""
    found = rows()
    assert tuple(dict.fromkeys(row.group for row in found)) == GROUPS
    assert len({row.fault for row in found}) == len(found)


def test_unit_of_the_example_outlives_a_worker() -> None:
    """The systemd unit of the example continues when the kernel kills one worker."""
    units = list((HOME / "examples" / "systemd").glob("*.service"))
    assert units
    for unit in units:
        assert "\nOOMPolicy=continue\n" in unit.read_text(encoding="utf-8")
