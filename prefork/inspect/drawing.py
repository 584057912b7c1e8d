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
    "gone": "dim",
    "starting": "cyan",
    "idle": "green",
    "busy": "bold yellow",
    "retiring": "magenta",
}
"""How the states look; the letters say the same without colours."""

_SPARKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII_SPARKS: Final = " .:-=+*#%@"
_BARS: Final = "█░"
_ASCII_BARS: Final = "#-"
_BAR: Final = 20
_LABEL: Final = 7
_MOST_QUEUES: Final = 3
_FEW_LINES: Final = 6
"""Lines that the table needs at least to be of use; before it has fewer, what is below it goes."""

_KEYS: Final = "q quit   s S sort by next or previous column   r reverse"


def drawing(
    shown: View,
    order: SortOrder,
    rates: Sequence[float],
    width: int,
    height: int,
    *,
    ascii_only: bool = False,
) -> RenderableType:
    """Lay a view out for a terminal of that size."""
    above = [
        _title(shown, width),
        _traffic(shown, rates, width, ascii_only=ascii_only),
        _utilization(shown, width, ascii_only=ascii_only),
        *_queues(shown, width),
        *_slots(shown, width),
    ]
    below = [*_history(shown, width), _footer(order, width)]
    if height < len(above) + len(below) + _FEW_LINES:
        below = below[-1:]
    room = height - len(above) - len(below) - 2  # a line of air, and one of headings
    rows, missing = fitting(order.sorted(shown.rows), room)
    left_out = [Text(f"and {missing} more slots", style="dim")] if missing else []
    # The last line of a terminal stays where it is, whatever comes and goes above.
    filling = [Text()] * max(0, room - len(rows) - len(left_out))
    return Group(*above, Text(), _table(rows, order, width), *left_out, *filling, *below)


def fitting(rows: Sequence[SlotRow], room: int) -> tuple[Sequence[SlotRow], int]:
    """Return the rows that fit into so many lines, and how many do not: these get a line of their own."""
    if len(rows) <= room:
        return rows, 0
    kept = rows[: max(0, room - 1)]
    return kept, len(rows) - len(kept)


def _title(shown: View, width: int) -> Text:
    left = Text.assemble(
        ("prefork ", "bold"),
        (f"{shown.name} " if shown.name else "", "bold"),
        (shown.condition, "green" if shown.is_well else "bold red"),
    )
    right = f"pid {shown.pid}  up {humanize.duration(shown.uptime)}  gen {shown.generation}"
    return _spread(left, Text(right), width)


def _traffic(shown: View, rates: Sequence[float], width: int, *, ascii_only: bool) -> Text:
    left = Text.assemble(
        _label("rate"),
        (f"{humanize.rate(shown.rate):<5}", "bold"),
        " req/s  p50 ",
        (f"{shown.p50:<6}", "bold"),
        " p99 ",
        (f"{shown.p99:<6}", "bold"),
        f" in hand {shown.in_progress}  total {humanize.count(shown.total)}  ",
    )
    levels = _ASCII_SPARKS if ascii_only else _SPARKS
    return _spread(left, Text(sparkline(rates, width - left.cell_len, levels), "cyan"), width)


def _utilization(shown: View, width: int, *, ascii_only: bool) -> Text:
    full, empty = _ASCII_BARS if ascii_only else _BARS
    filled = round(min(1.0, shown.busy) * _BAR)
    workers = shown.workers
    text = f"{workers['busy']} busy of {workers['ready']} ready, target {workers['target']}, max {workers['max']}"
    line = Text.assemble(
        _label("busy"),
        (full * filled, STYLES["busy"]),
        (empty * (_BAR - filled), STYLES["idle"]),
        (f" {humanize.percent(shown.busy):>4}  ", "bold"),
        text,
    )
    line.truncate(width, overflow="ellipsis")
    return line


def _queues(shown: View, width: int) -> list[Text]:
    lines = []
    for number, listener in enumerate(shown.listeners[:_MOST_QUEUES]):
        line = Text.assemble(
            _label("" if number else "queue"),
            (f"{humanize.queue(listener):<12} ", _queue_style(listener)),
            listener["name"],
        )
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if (more := len(shown.listeners) - _MOST_QUEUES) > 0:
        lines.append(Text.assemble(_label(""), (f"and {more} more listeners", "dim")))
    return lines


def _queue_style(listener: Mapping[str, Any]) -> str:
    """Red for what is lost or soon will be, yellow for what waits."""
    depth, limit = listener["depth"] or 0, listener["limit"] or 0
    if listener["drops"] or 2 * depth > limit > 0:
        return "bold red"
    return "yellow" if depth else ""


def _slots(shown: View, width: int) -> list[Text]:
    """Draw the scoreboard: the picture of the pool, one coloured letter a slot."""
    used = shown.scoreboard.rstrip(".")
    unused = len(shown.scoreboard) - len(used)
    styles = {LETTERS[state]: style for state, style in STYLES.items()}
    lines = []
    for number, piece in enumerate(humanize.chunks(used, width - _LABEL) or [""]):
        letters = ((letter, styles[letter]) for letter in piece)
        lines.append(Text.assemble(_label("" if number else "slots"), *letters))
    if unused and lines[-1].cell_len + len(note := f" + {unused} unused") <= width:
        lines[-1].append(note, "dim")
    return lines


def _history(shown: View, width: int) -> list[Text]:
    lines = []
    for label, pairs, style in (
        ("failed", shown.failed, "red"),
        ("exits", shown.exits, ""),
        ("events", shown.events, "red"),
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
    return _spread(Text(_KEYS, "dim"), Text(f"by {text}", "dim"), width)


def _table(rows: Sequence[SlotRow], order: SortOrder, width: int) -> Table:
    gap = 1 if width < 100 else 2
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column in COLUMNS:
        style = "reverse" if column.key == order.key else ""
        table.add_column(
            Text(column.heading, style),
            justify="left" if column.is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
            # What changes at every look must not make the columns beside it move.
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
    """Put one text at each end of a line; the right one goes where both do not fit."""
    gap = width - left.cell_len - right.cell_len
    if gap < 1:
        left.truncate(width, overflow="ellipsis")
        return left
    return Text.assemble(left, " " * gap, right)


def sparkline(numbers: Sequence[float], width: int, levels: str) -> str:
    """Draw the latest numbers, one character each, the largest as the last of ``levels``; 0 as the first."""
    latest = list(numbers)[-width:] if width > 0 else []
    most = max(latest, default=0.0)
    if most <= 0:
        return levels[0] * len(latest)
    steps = len(levels) - 1
    # Whatever is not nothing shows.
    return "".join(levels[max(n > 0, round(n / most * steps))] for n in latest)
