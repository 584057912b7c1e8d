"""Draw small SVG charts by hand: as text they differ line by line, and need no plotting library.

The ground is white and the colours are fixed, so that a chart looks the same on a dark page.
"""
# ruff: noqa: INP001 - a folder of pictures beside the module that draws them, not a package

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from xml.sax.saxutils import escape

Point = tuple[float, float]

INK, PALE, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, BLUE_FILL = "#1f6fb4", "#c6dcef"
ORANGE = "#c2500a"
GREEN = "#2f7d4f"
GREY_FILL = "#9aa5b1"

_WIDTH = 760
_FONT = "font-family='-apple-system,Segoe UI,Helvetica,Arial,sans-serif'"


@dataclass(frozen=True, slots=True)
class Axis:
    """What one side shows: its range, where its ticks are and what they say."""

    least: float
    most: float
    ticks: Sequence[float]
    show: Callable[[float], str] = "{:g}".format
    title: str = ""
    is_log: bool = False

    def part(self, value: float) -> float:
        """Return where a value lies between the ends, 0 to 1; what is outside is put at the end."""
        value = min(self.most, max(self.least, value))
        if self.is_log:
            return math.log(value / self.least) / math.log(self.most / self.least)
        return (value - self.least) / (self.most - self.least)


@dataclass
class Panel:
    """One pair of axes within a chart; left, top, width and height in pixels."""

    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis
    title: str = ""
    _parts: list[str] = field(default_factory=list)

    def area(self, points: Sequence[Point], colour: str) -> None:
        """Fill what is below a line of steps, the most of each column of two pixels."""
        columns = self._columns(points, 2.0)
        if not columns:
            return
        corners = [f"M{_n(columns[0][0])} {_n(self._y(self.y.least))}"]
        for (at, value), following in zip(columns, [*columns[1:], columns[-1]], strict=True):
            corners.append(f"L{_n(at)} {_n(self._y(value))}H{_n(following[0])}")
        corners.append(f"V{_n(self._y(self.y.least))}Z")
        self._parts.append(f"<path d='{''.join(corners)}' fill='{colour}'/>")

    def steps(self, points: Sequence[Point], colour: str, dash: str = "") -> None:
        """Draw a line that keeps each value until the next point."""
        path, last = "", None
        for at, value in points:
            x, y = _n(self._x(at)), _n(self._y(value))
            if y != last:
                path += f"M{x} {y}" if last is None else f"H{x}V{y}"
            last = y
        self._stroke(path + f"H{_n(self._x(self.x.most))}", colour, 2.2, dash)

    def line(
        self, points: Sequence[Point], colour: str, width: float = 2.2, dash: str = ""
    ) -> None:
        """Draw a line from point to point."""
        corners = [f"{_n(self._x(at))} {_n(self._y(value))}" for at, value in points]
        self._stroke("M" + "L".join(corners), colour, width, dash)

    def label(self, at: Point, text: str, colour: str, anchor: str = "start") -> None:
        """Write beside a line what it is; with a white edge, to be read across other lines."""
        self._parts.append(
            f"<text x='{_n(self._x(at[0]))}' y='{_n(self._y(at[1]))}' fill='{colour}' font-weight='600' "
            f"text-anchor='{anchor}' paint-order='stroke' stroke='#fff' stroke-width='4'>{escape(text)}</text>"
        )

    def svg(self) -> str:
        """Return the panel, the grid below what was drawn."""
        return "\n".join([*self._grid(), *self._parts, *self._frame()])

    def _stroke(self, path: str, colour: str, width: float, dash: str) -> None:
        dashes = f" stroke-dasharray='{dash}'" if dash else ""
        self._parts.append(
            f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='{width}' stroke-linejoin='round'{dashes}/>"
        )

    def _columns(self, points: Sequence[Point], pixels: float) -> list[Point]:
        most: dict[float, float] = {}
        held = self.y.least
        for at, value in points:
            column = math.floor((self._x(at) - self.left) / pixels) * pixels + self.left
            # The value from before holds into this column, this one from the next one on.
            most[column] = max(most.get(column, held), value)
            most[column + pixels] = held = value
        last = self.left + self.width
        return [*sorted(column for column in most.items() if column[0] < last), (last, held)]

    def _grid(self) -> list[str]:
        drawn = []
        for tick in self.y.ticks:
            y = self._y(tick)
            drawn.append(
                f"<path d='M{_n(self.left)} {_n(y)}h{_n(self.width)}' stroke='{GRID}'/>"
                f"<text x='{_n(self.left - 8)}' y='{_n(y + 4)}' fill='{PALE}' text-anchor='end'>{escape(self.y.show(tick))}</text>"
            )
        return drawn

    def _frame(self) -> list[str]:
        bottom = self.top + self.height
        drawn = [
            f"<path d='M{_n(self.left)} {_n(bottom)}h{_n(self.width)}' stroke='{PALE}'/>",
            f"<text x='{_n(self.left)}' y='{_n(self.top - 10)}' fill='{PALE}'>{escape(self.title)}</text>",
        ]
        for tick in self.x.ticks:
            x = self._x(tick)
            drawn.append(
                f"<path d='M{_n(x)} {_n(bottom)}v4' stroke='{PALE}'/>"
                f"<text x='{_n(x)}' y='{_n(bottom + 18)}' fill='{PALE}' text-anchor='middle'>{escape(self.x.show(tick))}</text>"
            )
        if self.x.title:
            drawn.append(
                f"<text x='{_n(self.left + self.width / 2)}' y='{_n(bottom + 36)}' fill='{PALE}' "
                f"text-anchor='middle'>{escape(self.x.title)}</text>"
            )
        return drawn

    def _x(self, value: float) -> float:
        return self.left + self.width * self.x.part(value)

    def _y(self, value: float) -> float:
        return self.top + self.height * (1 - self.y.part(value))


class Drawing(Protocol):
    """A part of a chart, which knows where it stands."""

    def svg(self) -> str:
        """Return the part."""


def chart(title: str, description: str, height: float, panels: Sequence[Drawing]) -> str:
    """Return a whole SVG file. description: one sentence for those who cannot see it."""
    size = f"width='{_WIDTH}' height='{_n(height)}' viewBox='0 0 {_WIDTH} {_n(height)}'"
    ground = f"width='{_WIDTH - 1}' height='{_n(height - 1)}' rx='6' fill='#fff' stroke='{GRID}'"
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img' {_FONT} font-size='12'>",
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<rect x='.5' y='.5' {ground}/>",
            f"<text x='24' y='32' font-size='16' font-weight='600' fill='{INK}'>{escape(title)}</text>",
            *(panel.svg() for panel in panels),
            "</svg>\n",
        ]
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
