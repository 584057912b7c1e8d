"""Escape times to colours, and colours to a PNG file or to a terminal."""

from __future__ import annotations

import math
import struct
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Colour = tuple[int, int, int]

INSIDE: Colour = (4, 6, 24)
# Where in the cycle (0 to 1) the palette has which colour: night, sea, foam, sand, ember, night.
STOPS: list[tuple[float, Colour]] = [
    (0.00, (6, 10, 48)),
    (0.17, (18, 72, 148)),
    (0.36, (96, 184, 214)),
    (0.50, (252, 246, 220)),
    (0.66, (246, 170, 52)),
    (0.82, (150, 42, 30)),
    (0.92, (48, 8, 38)),
    (1.00, (6, 10, 48)),
]
SHADES = 2048
# Times grow without bound towards the set; their logarithm keeps the bands of colour equally wide.
BANDS_PER_E = 0.38


def palette() -> list[Colour]:
    """Blend the stops into one cycle of SHADES colours, without a corner at any stop."""
    shades = []
    for number in range(SHADES):
        place = number / SHADES
        (begin, first), (end, last) = next(
            both for both in pairwise(STOPS) if both[0][0] <= place < both[1][0]
        )
        part = (place - begin) / (end - begin)
        part = part * part * (3 - 2 * part)
        red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, last, strict=True))
        shades.append((red, green, blue))
    return shades


def colours(rows: Sequence[Sequence[float]]) -> list[list[Colour]]:
    """Colour escape times; the earliest of all begins the palette."""
    shades = palette()
    outermost = min((time for row in rows for time in row if time > 0), default=1.0)
    turn = BANDS_PER_E * SHADES
    return [
        [
            shades[int(turn * math.log(time / outermost)) % SHADES] if time > 0 else INSIDE
            for time in row
        ]
        for row in rows
    ]


def write_png(path: Path, rows: Sequence[Sequence[Colour]]) -> None:
    """Write colours as a PNG file, which is three chunks and a checksum each."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)  # 8 bits, RGB
    lines = b"".join(b"\0" + bytes(part for colour in row for part in colour) for row in rows)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""):
            checksum = zlib.crc32(kind + content)
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", checksum))


def preview(rows: Sequence[Sequence[Colour]], columns: int, *, exact: bool) -> list[str]:
    """Shrink the picture to lines for a terminal, two pixels per character.

    exact: the terminal knows 24-bit colours, and not just the usual 256.
    """
    code = code_of_24_bits if exact else code_of_256
    cell = max(1, len(rows[0]) // columns)
    small = [
        [code(average(rows, left, top, cell)) for left in range(0, len(rows[0]) - cell + 1, cell)]
        for top in range(0, len(rows) - cell + 1, cell)
    ]
    return [
        "".join(f"\x1b[38;{above};48;{below}m▀" for above, below in zip(*both, strict=True))
        + "\x1b[0m"
        for both in zip(small[::2], small[1::2], strict=False)
    ]


def code_of_24_bits(colour: Colour) -> str:
    return "2;{};{};{}".format(*colour)


def code_of_256(colour: Colour) -> str:
    """The nearest of the 6 by 6 by 6 colours, whose levels are 0, 95, 135, 175, 215 and 255."""
    red, green, blue = (0 if part < 48 else max(1, (part - 35) // 40) for part in colour)
    return f"5;{16 + 36 * red + 6 * green + blue}"


def average(rows: Sequence[Sequence[Colour]], left: int, top: int, cell: int) -> Colour:
    """Mix the colours of one square of the picture."""
    found = [colour for row in rows[top : top + cell] for colour in row[left : left + cell]]
    red, green, blue = (sum(parts) // len(found) for parts in zip(*found, strict=True))
    return red, green, blue
