"""The screen of ``prefork top URL...`` as text with colours, drawn with rich (extra ``top``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefork.inspect.fleet import HEADINGS, Need, Row, cells, in_order, summary

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
_AROUND: Final = 5
"""Lines of the summary, the headings, the keys, and the air between them."""


def fleet_drawing(rows: Sequence[Row], width: int, height: int) -> RenderableType:
    """Return the pools laid out for a terminal of this size, those first that need attention."""
    room = max(1, height - _AROUND)
    ordered = in_order(rows)
    shown = ordered if len(ordered) <= room else ordered[: room - 1]
    missing = len(ordered) - len(shown)
    note = [Text(f"and {missing} more pools", style="dim")] if missing else []
    filling = [Text()] * max(0, room - len(shown) - len(note))
    return Group(
        _summary(rows, width),
        Text(),
        _table(shown, width),
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


def _table(rows: Sequence[Row], width: int) -> Table:
    gap = 2 if width >= _WIDE else 1
    table = Table(
        box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold", width=width
    )
    shown = [heading for heading in HEADINGS if width >= _NARROW or heading not in _LESS]
    for heading in shown:
        table.add_column(
            heading,
            justify="left" if heading in _TEXTS else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if heading == "state" else None,
        )
    for one in rows:
        by_heading = dict(zip(HEADINGS, cells(one), strict=True))
        *others, state = (by_heading[heading] for heading in shown)
        table.add_row(*map(Text, others), Text(state, STYLES[one.need]))
    return table
