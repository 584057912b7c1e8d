"""The order of the rows of ``prefork top``, and the keys that change it."""

from __future__ import annotations

import pytest

from prefork.inspect.columns import COLUMNS, SortOrder
from tests.support.boards import slot_row


def test_keys_walk_through_the_columns() -> None:
    """The keys s and S select the next and the previous column in a circle, r reverses, other keys do nothing."""
    order = SortOrder()
    seen = []
    for _ in COLUMNS:
        seen.append(order.key)
        order = order.after_key("s")
    assert seen == [column.key for column in COLUMNS]
    assert order == SortOrder()
    assert order.after_key("S").key == COLUMNS[-1].key
    assert order.after_key("r").descends
    assert not order.after_key("r").after_key("r").descends
    assert order.after_key("r").after_key("s").is_reversed is False
    assert order.after_key("x") == order


@pytest.mark.parametrize(
    ("order", "slots"),
    [
        (SortOrder("slot"), [0, 1, 2, 3]),
        (SortOrder("slot", is_reversed=True), [3, 2, 1, 0]),
        (SortOrder("requests"), [2, 0, 1, 3]),
        (SortOrder("requests", is_reversed=True), [1, 0, 2, 3]),
        (SortOrder("state"), [2, 1, 0, 3]),
        (SortOrder("busy"), [1, 2, 0, 3]),
        (SortOrder("exit"), [0, 1, 2, 3]),
    ],
)
def test_rows_are_sorted(order: SortOrder, slots: list[int]) -> None:
    """Numbers and requests are sorted with the largest first, and slots without a worker come last."""
    rows = [
        slot_row(slot=0, requests=5, last_exit="killed"),
        slot_row(slot=1, requests=1, state="busy", request_age=1.0, busy=0.9),
        slot_row(slot=2, requests=9, state="busy", request_age=2.0, busy=0.5),
        slot_row(slot=3, pid=0, requests=7, state="gone", age=None, last_exit="exited"),
    ]
    assert [one.slot for one in order.sorted(rows)] == slots
