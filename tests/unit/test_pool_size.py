"""The numbers at which a master begins: those of the settings, or those that an earlier image has left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefork.master.pool_size import FirstSize, first_size
from prefork.workers.settings import Settings


def left(floor: int, floor_set: int, size: int) -> Any:
    """Invent what an earlier image has left."""
    return SimpleNamespace(floor=floor, floor_set=floor_set, size=size)


@pytest.mark.parametrize(
    ("settings", "previous", "first"),
    [
        ({"workers": 2}, None, FirstSize(2, 2, 2)),
        ({"workers": 2}, left(4, 4, 4), FirstSize(4, 4, 4)),
        ({"workers": 6}, left(4, 4, 4), FirstSize(4, 4, 4)),
        ({"workers": 4}, left(5, 4, 5), FirstSize(5, 4, 5)),
        ({"workers": 2, "min_spare": 1}, left(4, 4, 7), FirstSize(4, 4, 7)),
        ({"workers": 4}, left(4, 4, 7), FirstSize(7, 0, 7)),
    ],
    ids=["no reload", "fewer", "more", "after TTIN", "with load", "no longer with load"],
)
def test_master_begins_at_the_size_that_the_pool_had(
    settings: dict[str, Any], previous: Any, first: FirstSize
) -> None:
    """The new settings change neither the floor nor the size before new code serves."""
    assert first_size(Settings(**settings), previous) == first
