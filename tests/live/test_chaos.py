"""All faults at once, at random but replayable, under load: the short form of the suite in ``tests/chaos``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.chaos.episode import Episode
from tests.chaos.schedule import Temper, plan
from tests.chaos.verdict import table

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 10.0
"""Of faults; the beginning, the rest after them and the end take some ten more."""


@pytest.mark.once
@pytest.mark.parametrize("seed", [1, 2])
def test_invariants_hold_in_chaos(seed: int, tmp_path: Path) -> None:
    """Each lost request is explained by a fault on its own worker, and every invariant of docs/CHAOS.md holds."""
    result = Episode(plan(seed, 0, SECONDS, Temper.CALM), tmp_path).run()
    sys.stdout.write(f"{table(result)}\n")

    assert result.unexplained == []
    assert result.breaches == []
    assert result.requests > 500
    assert result.faults.total() > 10
