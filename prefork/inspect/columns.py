"""The columns of ``prefork top``, and the order of its rows (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from prefork.inspect import humanize
from prefork.inspect.view import SlotRow
from prefork.metrics.status import LETTERS


class Column(msgspec.Struct, frozen=True):
    """One column of the table.

    key: the name that ``--sort`` takes. width: least number of characters. sort_by: what rows are
    compared by. text: the cell of a row. largest_first: the usual direction of sorting. is_text:
    aligned left.
    """

    key: str
    heading: str
    width: int
    sort_by: Callable[[SlotRow], Any]
    text: Callable[[SlotRow], str]
    largest_first: bool = True
    is_text: bool = False


_STATES: Final = ("busy", "starting", "retiring", "idle", "gone")


def _state_order(row: SlotRow) -> tuple[int, float]:
    return _STATES.index(row.state), -(row.request_age or 0.0)


def _state(row: SlotRow) -> str:
    letter = LETTERS[row.state]
    return letter if row.request_age is None else f"{letter} {humanize.duration(row.request_age)}"


COLUMNS: Final = (
    Column("slot", "slot", 4, lambda r: r.slot, lambda r: str(r.slot), largest_first=False),
    Column(
        "pid", "pid", 5, lambda r: r.pid, lambda r: str(r.pid or humanize.NONE), largest_first=False
    ),
    Column("gen", "gen", 3, lambda r: r.generation, lambda r: str(r.generation)),
    Column("state", "state", 7, _state_order, _state, largest_first=False, is_text=True),
    Column("age", "age", 5, lambda r: r.age or 0.0, lambda r: humanize.duration(r.age)),
    Column("requests", "reqs", 5, lambda r: r.requests, lambda r: humanize.count(r.requests)),
    Column("rate", "req/s", 5, lambda r: r.rate or 0.0, lambda r: humanize.rate(r.rate)),
    Column("busy", "busy", 4, lambda r: r.busy or 0.0, lambda r: humanize.percent(r.busy)),
    Column("cpu", "cpu", 4, lambda r: r.cpu or 0.0, lambda r: humanize.percent(r.cpu)),
    Column("memory", "mem", 4, lambda r: r.memory or 0, lambda r: humanize.size(r.memory)),
    Column("spawns", "spawns", 6, lambda r: r.spawns, lambda r: humanize.count(r.spawns)),
    Column(
        "exit",
        "last exit",
        9,
        lambda r: r.last_exit or "~",
        lambda r: r.last_exit or humanize.NONE,
        largest_first=False,
        is_text=True,
    ),
)
"""The columns of the table of slots, from left to right."""


class SortOrder(msgspec.Struct, frozen=True):
    """The column by which rows are sorted, and whether the usual direction is reversed."""

    key: str = "slot"
    is_reversed: bool = False

    @property
    def column(self) -> Column:
        """The column with this key."""
        return next(column for column in COLUMNS if column.key == self.key)

    @property
    def descends(self) -> bool:
        """Whether the largest value comes first."""
        return self.column.largest_first is not self.is_reversed

    def after_key(self, pressed: str) -> SortOrder:
        """Return the order after a key was pressed: s and S select another column, r reverses, others do nothing."""
        keys = [column.key for column in COLUMNS]
        step = {"s": 1, "S": -1}.get(pressed, 0)
        if step:
            return SortOrder(keys[(keys.index(self.key) + step) % len(keys)])
        return SortOrder(self.key, not self.is_reversed) if pressed == "r" else self

    def sorted(self, rows: Sequence[SlotRow]) -> list[SlotRow]:
        """Return rows in this order.

        Equal rows stay in the order of their slots. Slots without a worker come last, except when
        the slot number decides.
        """
        ordered = sorted(rows, key=self.column.sort_by, reverse=self.descends)
        return sorted(ordered, key=lambda row: not row.pid) if self.key != "slot" else ordered
