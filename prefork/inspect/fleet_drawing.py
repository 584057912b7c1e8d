"""The screen of ``prefork top URL...`` as text with colours, drawn with rich (extra ``top``)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefork.inspect.fleet import (
    HEADINGS,
    NARROWEST_STATE,
    Need,
    Row,
    cells,
    in_order,
    state_lines,
    summary,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES: Final = {
    Need.NO_ANSWER: "bold red",
    Need.HUNG: "bold red",
    Need.NOT_READY: "bold red",
    Need.SATURATED: "bold yellow",
    Need.RELOAD_FAILED: "yellow",
    Need.NONE: "green",
}
"""The style of a state. The words carry the same meaning on a terminal without colours."""

_TEXTS: Final = ("host", "pool", "state")
_NARROW: Final = 72
"""Columns of a terminal below which _LESS is left out, so that hosts and states stay legible."""
_WIDE: Final = 100
_LESS: Final = ("pool", "queue", "p99", "failed", "up")
_SHORTEST_HOST: Final = 8
"""Characters of the column of hosts, at least."""
_AROUND: Final = 5
"""Lines of the summary, the headings, the keys, and the air between them."""


def fleet_drawing(rows: Sequence[Row], width: int, height: int) -> RenderableType:
    """Return the pools laid out for a terminal of this size, those first that need attention."""
    table = _Table(in_order(rows), width)
    room = max(1, height - _AROUND)
    shown = table.rows_in(room)
    if missing := len(rows) - shown:
        shown = table.rows_in(room - 1)
        missing = len(rows) - shown
    note = [Text(f"and {missing} more pools", style="dim")] if missing else []
    filling = [Text()] * max(0, room - table.lines_of(shown) - len(note))
    return Group(
        _summary(rows, width),
        Text(),
        table.drawn(shown),
        *note,
        *filling,
        Text(),
        _one_line(Text("q quit   pools that need attention come first", style="dim"), width),
    )


def _one_line(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def _summary(rows: Sequence[Row], width: int) -> Text:
    worst = min((one.need for one in rows), default=Need.NONE)
    return _one_line(Text.assemble(("prefork ", "bold"), (summary(rows), STYLES[worst])), width)


class _Table:
    """The table of the pools. A state that does not fit beside the other columns goes on in the line below."""

    def __init__(self, rows: Sequence[Row], width: int) -> None:
        self._rows = rows
        self._width = width
        self._gap = 2 if width >= _WIDE else 1
        self._places = [
            place
            for place, heading in enumerate(HEADINGS[:-1])
            if width >= _NARROW or heading not in _LESS
        ]
        self._cells = [cells(one) for one in rows]
        lines = [HEADINGS, *self._cells]
        sizes = [max(len(line[place]) for line in lines) for place in self._places]
        room = width - sum(sizes) - self._gap * len(sizes)
        # Long hosts give way to the states, as far as they can.
        self._hosts = max(_SHORTEST_HOST, sizes[0] - max(0, NARROWEST_STATE - room))
        self._states = [state_lines(one.state, max(NARROWEST_STATE, room)) for one in rows]

    def lines_of(self, count: int) -> int:
        """Return how many lines the first rows need."""
        return sum(map(len, self._states[:count]))

    def rows_in(self, lines: int) -> int:
        """Return how many rows, from the first one on, these lines have room for."""
        ends = itertools.accumulate(map(len, self._states))
        return sum(end <= lines for end in ends)

    def drawn(self, count: int) -> Table:
        """Return the first rows as rich draws them."""
        table = Table(
            box=None,
            pad_edge=False,
            padding=(0, self._gap, 0, 0),
            header_style="bold",
            width=self._width,
        )
        for heading in (*(HEADINGS[place] for place in self._places), HEADINGS[-1]):
            table.add_column(
                heading,
                justify="left" if heading in _TEXTS else "right",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if heading == "state" else None,
                max_width=self._hosts if heading == "host" else None,
            )
        for one, of_row, state in zip(
            self._rows[:count], self._cells[:count], self._states[:count], strict=True
        ):
            others = (Text(of_row[place]) for place in self._places)
            table.add_row(*others, Text("\n".join(state), STYLES[one.need]))
        return table
