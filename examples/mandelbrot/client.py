"""Draw a part of the Mandelbrot set from the tiles of server.py, requested all at once.

$ python examples/mandelbrot/client.py --port 9000 spiral.png
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  360/360  7.1 s
360 tiles in 7.1 s: 50.7 tiles/s
pid 4711: 182 tiles
pid 4712: 178 tiles
spiral.png: 960x600 pixels
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import picture

if TYPE_CHECKING:
    from collections.abc import Callable

Address = tuple[str, int]

SIDE = 40  # pixels of a tile's edge: some ten milliseconds of work
AT_ONCE = 64  # requests under way; those that no worker has taken wait in the accept queue
PATIENCE = 120.0  # seconds for one answer, most of which the request waits for its turn
BAR = 40  # characters


@dataclass(frozen=True)
class View:
    """The part of the complex plane to draw, and into how many pixels."""

    width: int = 960
    height: int = 600
    centre: complex = -0.761574 - 0.0847596j
    extent: float = 0.003  # from the left edge to the right one
    limit: int = 600

    @property
    def step(self) -> float:
        return self.extent / self.width

    def tiles(self) -> list[tuple[int, int]]:
        """List the left upper pixels of the tiles; those at the right and lower edge may be smaller."""
        return [(x, y) for y in range(0, self.height, SIDE) for x in range(0, self.width, SIDE)]

    def request(self, x: int, y: int) -> bytes:
        """Write the line that asks for the tile at a pixel."""
        left = self.centre.real + (x - self.width / 2) * self.step
        top = self.centre.imag - (y - self.height / 2) * self.step
        width, height = min(SIDE, self.width - x), min(SIDE, self.height - y)
        return f"tile {left!r} {top!r} {self.step!r} {width} {height} {self.limit}\n".encode()


@dataclass(frozen=True)
class Drawn:
    """The answers of the server by tile, and the time that all of them took."""

    answers: dict[tuple[int, int], bytes]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.answers) / self.seconds

    def served(self) -> Counter[int]:
        """Count the tiles of each worker, by its pid."""
        return Counter(int(answer.split(None, 1)[0]) for answer in self.answers.values())

    def rows(self, view: View) -> list[list[float]]:
        """Put the tiles together to the escape times of the whole picture."""
        rows: list[list[float]] = [[] for _ in range(view.height)]
        for (_, y), answer in sorted(self.answers.items(), key=lambda item: item[0][0]):
            _, *lines = answer.splitlines()
            for row, line in zip(rows[y:], lines, strict=False):
                row.extend(map(float, line.split()))
        return rows


def draw(address: Address, view: View, progress: Callable[[int, int], None]) -> Drawn:
    """Ask for every tile; after each one, call progress with the numbers of tiles done and in all."""
    answers = {}
    tiles = view.tiles()
    start = time.monotonic()
    threads = ThreadPoolExecutor(AT_ONCE)
    try:
        asked = {threads.submit(ask, address, view.request(*tile)): tile for tile in tiles}
        for done in as_completed(asked):
            answers[asked[done]] = done.result()
            progress(len(answers), len(tiles))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # also after an interrupt
    return Drawn(answers, time.monotonic() - start)


def ask(address: Address, request: bytes) -> bytes:
    """Make one request on one connection: send a line, read until the end of file."""
    with socket.create_connection(address, PATIENCE) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            found = answer.read()
    # If a worker dies while it computes, its answer ends too early.
    _, *lines = found.splitlines() or [b""]
    if len(lines) != int(request.split()[5]):
        raise RuntimeError(f"asked {request!r}, got {found[:100]!r} ({len(lines)} lines)")
    return found


def progress_bar(label: str = "", out: TextIO = sys.stdout) -> Callable[[int, int], None]:
    """Make a progress bar of one line; it shows nothing if ``out`` is no terminal."""
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        if not out.isatty():
            return
        full = BAR * done // total
        bar = "━" * full + "\x1b[2m" + "─" * (BAR - full) + "\x1b[0m"
        seconds = time.monotonic() - start
        out.write(f"\r{label}{bar}  {done:>{len(str(total))}}/{total}  {seconds:.1f} s")
        out.write("\n" if done == total else "")
        out.flush()

    return show


def size(text: str) -> tuple[int, int]:
    """Read 960x600."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    default = View()
    parser = argparse.ArgumentParser(description="Draw a part of the Mandelbrot set.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--size", type=size, default=(default.width, default.height))
    parser.add_argument("--centre", type=complex, default=default.centre, help="such as -0.5+0j")
    parser.add_argument("--extent", type=float, default=default.extent, help="width in the plane")
    parser.add_argument("--limit", type=int, default=default.limit, help="iterations")
    parser.add_argument("png", type=Path, nargs="?", default=Path("mandelbrot.png"))
    given = parser.parse_args()

    width, height = given.size
    view = View(width, height, given.centre, given.extent, given.limit)
    drawn = draw((given.host, given.port), view, progress_bar())
    print(f"{len(drawn.answers)} tiles in {drawn.seconds:.1f} s: {drawn.rate:.1f} tiles/s")
    for pid, count in sorted(drawn.served().items()):
        print(f"pid {pid}: {count} tiles")
    picture.write_png(given.png, picture.colours(drawn.rows(view)))
    print(f"{given.png}: {view.width}x{view.height} pixels")


if __name__ == "__main__":
    main()
