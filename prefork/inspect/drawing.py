"""The screen of ``prefork top`` as text with colours, drawn with rich (extra ``top``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefork.inspect import humanize
from prefork.inspect.columns import COLUMNS, SortOrder
from prefork.inspect.view import SlotRow, View
from prefork.metrics.status import LETTERS

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES: Final = {
    "idle": "green",
    "busy": "bold yellow",
    "starting": "cyan",
    "retiring": "magenta",
    "gone": "dim",
}
"""The style of each state. The letters carry the same meaning on a terminal without colours."""

_SPARKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII_SPARKS: Final = " .:-=+*#%@"
_BARS: Final = "█░"
_ASCII_BARS: Final = "#-"
_BAR: Final = 20
_LABEL: Final = 7
_MOST_QUEUES: Final = 3
_WIDEST_GAP: Final = 6
"""Columns of a table that are further apart are hard to read as one row."""

_FEW_LINES: Final = 6
"""Lines that the table needs to be of use. On a terminal with less room the lines below it are left
out.
"""

_KEYS: Final = "q quit   s S next or previous column   r reverse"


def drawing(
    view: View,
    order: SortOrder,
    rates: Sequence[float],
    width: int,
    height: int,
    *,
    ascii_only: bool = False,
) -> RenderableType:
    """Return a view laid out for a terminal of this size.

    rates: requests per second at the previous looks, for the sparkline. ascii_only: the terminal
    cannot show block characters.
    """
    above = [
        _title(view, width),
        *_saturation(view, width),
        _traffic(view, rates, width, ascii_only=ascii_only),
        _utilization(view, width, ascii_only=ascii_only),
        *_queues(view, width),
        *_parked(view, width),
        *_slots(view, width),
    ]
    below = [*_history(view, width), _footer(order, width)]
    if height < len(above) + len(below) + _FEW_LINES:
        below = below[-1:]
    room = height - len(above) - len(below) - 2  # a line of air, and one of headings
    rows, missing = fitting(order.sorted(view.rows), room)
    left_out = [Text(f"and {missing} more slots", style="dim")] if missing else []
    # Empty lines keep the keys in the last line of the terminal, however many rows there are.
    filling = [Text()] * max(0, room - len(rows) - len(left_out))
    return Group(*above, Text(), _table(rows, order, width), *left_out, *filling, *below)


def fitting(rows: Sequence[SlotRow], room: int) -> tuple[Sequence[SlotRow], int]:
    """Return the rows that fit into ``room`` lines, and how many are left out.

    Where rows are left out, one of the lines is kept free for their number.
    """
    if len(rows) <= room:
        return rows, 0
    kept = rows[: max(0, room - 1)]
    return kept, len(rows) - len(kept)


def _title(view: View, width: int) -> Text:
    left = Text.assemble(
        ("prefork ", "bold"),
        (f"{view.name} " if view.name else "", "bold"),
        (view.condition, _style_of_condition(view)),
    )
    facts = f"pid {view.pid}", f"up {humanize.duration(view.uptime)}", f"gen {view.generation}"
    room = width - left.cell_len - 1
    shown = [facts[:number] for number in range(len(facts), 0, -1)]
    right = next((line for line in map("  ".join, shown) if len(line) <= room), "")
    return _spread(left, Text(right), width)


def _style_of_condition(view: View) -> str:
    if not view.is_well:
        return "bold red"
    return "green" if view.saturation is None else "bold yellow"


def _saturation(view: View, width: int) -> list[Text]:
    """Return the reason and the remedy in whole lines, because the remedy stands at the end."""
    if view.saturation is None:
        return []
    lines = humanize.wrapped(view.saturation.split(), width - _LABEL, gap=" ")
    return [
        Text.assemble(_label("" if number else "full"), (line, "yellow"))
        for number, line in enumerate(lines)
    ]


def _traffic(view: View, rates: Sequence[float], width: int, *, ascii_only: bool) -> Text:
    left = Text.assemble(
        _label("rate"),
        (f"{humanize.rate(view.rate):<5}", "bold"),
        " req/s  p50 ",
        (f"{view.p50:<6}", "bold"),
        " p99 ",
        (f"{view.p99:<6}", "bold"),
        f" in hand {view.in_progress}  total {humanize.count(view.total)}  ",
    )
    levels = _ASCII_SPARKS if ascii_only else _SPARKS
    return _spread(left, Text(sparkline(rates, width - left.cell_len, levels), "cyan"), width)


def _utilization(view: View, width: int, *, ascii_only: bool) -> Text:
    full, empty = _ASCII_BARS if ascii_only else _BARS
    filled = round(min(1.0, view.busy) * _BAR)
    workers = view.workers
    text = f"{workers['busy']} busy of {workers['ready']} ready, target {workers['target']}, max {workers['max']}"
    line = Text.assemble(
        _label("busy"),
        (full * filled, STYLES["busy"]),
        (empty * (_BAR - filled), STYLES["idle"]),
        (f" {humanize.percent(view.busy):>4}  ", "bold"),
        text,
    )
    cpus = "".join(f", {one}" for one in humanize.cpus(view.usable_cpus))
    if line.cell_len + len(cpus) <= width:
        line.append(cpus)
    line.truncate(width, overflow="ellipsis")
    return line


def _queues(view: View, width: int) -> list[Text]:
    lines = []
    for number, listener in enumerate(view.listeners[:_MOST_QUEUES]):
        line = Text.assemble(
            _label("" if number else "queue"),
            (f"{humanize.queue(listener):<12} ", _queue_style(listener)),
            listener["name"],
        )
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if (more := len(view.listeners) - _MOST_QUEUES) > 0:
        lines.append(Text.assemble(_label(""), (f"and {more} more listeners", "dim")))
    return lines


def _parked(view: View, width: int) -> list[Text]:
    """Return one line about the idle connections; none in a pool that has no lot."""
    if view.parked is None:
        return []
    line = Text.assemble(
        _label("parked"),
        (humanize.count(view.parked["now"]), "bold"),
        f" idle connections, {humanize.rate(view.resumed_rate)} resumed/s",
    )
    for reason in humanize.closed_while_parked(view.parked):
        line.append(f", {reason}", STYLES["busy"])
    line.truncate(width, overflow="ellipsis")
    return [line]


def _queue_style(listener: Mapping[str, Any]) -> str:
    """Return red where datagrams are dropped or the queue is more than half full, yellow where clients wait."""
    depth, limit = listener["depth"] or 0, listener["limit"] or 0
    if listener["drops"] or 2 * depth > limit > 0:
        return "bold red"
    return "yellow" if depth else ""


def _slots(view: View, width: int) -> list[Text]:
    """Return the scoreboard as one coloured letter for each slot, with the meaning of the letters at the right.

    What does not fit into the last line is left out: first the meaning, then the number of unused
    slots.
    """
    used = view.scoreboard.rstrip(".")
    unused = len(view.scoreboard) - len(used)
    styles = {LETTERS[state]: style for state, style in STYLES.items()}
    lines = []
    for number, piece in enumerate(humanize.chunks(used, width - _LABEL) or [""]):
        letters = ((letter, styles[letter]) for letter in piece)
        lines.append(Text.assemble(_label("" if number else "slots"), *letters))
    if unused and lines[-1].cell_len + len(note := f" + {unused} unused") <= width:
        lines[-1].append(note, "dim")
    return [*lines[:-1], _spread(lines[-1], _meaning(), width)]


def _meaning() -> Text:
    """Return the letters of the states, each in its style and with its name."""
    return Text("  ").join(
        Text.assemble((LETTERS[state], STYLES[state]), (f" {state}", "dim")) for state in STYLES
    )


def _history(view: View, width: int) -> list[Text]:
    lines = []
    for label, pairs, style in (
        ("failed", view.failed, "red"),
        ("exits", view.exits, ""),
        ("events", view.events, "red"),
    ):
        said = "  ".join(f"{humanize.count(n)} {what}" for what, n in pairs)
        if said:
            line = Text.assemble(_label(label), (said, style))
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
    return lines


def _footer(order: SortOrder, width: int) -> Text:
    first = "largest" if order.descends else "smallest"
    text = (
        f"{order.column.heading}, {first} first"
        if not order.column.is_text
        else order.column.heading
    )
    return _spread(Text(_KEYS, "dim"), Text(f"sorted by {text}", "dim"), width)


def _table(rows: Sequence[SlotRow], order: SortOrder, width: int) -> Table:
    spare = width - sum(column.width for column in COLUMNS)
    gap = max(1, min(_WIDEST_GAP, spare // len(COLUMNS)))
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column in COLUMNS:
        style = "reverse" if column.key == order.key else ""
        table.add_column(
            Text(column.heading, style),
            justify="left" if column.is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
            # Values change at every look. With a least width the columns beside them do not move.
            min_width=column.width,
        )
    for row in rows:
        table.add_row(*_cells(row), style="dim" if not row.pid else "")
    return table


def _cells(row: SlotRow) -> list[Text]:
    styles = {"state": STYLES[row.state]}
    return [Text(column.text(row), styles.get(column.key, "")) for column in COLUMNS]


def _label(name: str) -> tuple[str, str]:
    return f"{name:<{_LABEL}}", "dim"


def _spread(left: Text, right: Text, width: int) -> Text:
    """Return a line with one text at each end; the right one is left out where both do not fit."""
    gap = width - left.cell_len - right.cell_len
    if gap < 1:
        left.truncate(width, overflow="ellipsis")
        return left
    return Text.assemble(left, " " * gap, right)


def sparkline(numbers: Sequence[float], width: int, levels: str) -> str:
    """Return the latest numbers as one character each.

    levels: from the lowest to the highest. The largest number gets the last level, 0 the first one,
    and every other number at least the second, so that it can be seen.
    """
    latest = list(numbers)[-width:] if width > 0 else []
    most = max(latest, default=0.0)
    if most <= 0:
        return levels[0] * len(latest)
    steps = len(levels) - 1
    return "".join(levels[max(n > 0, round(n / most * steps))] for n in latest)
