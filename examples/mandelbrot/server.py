"""A server that has something to compute: tiles of the Mandelbrot set, one tile per request.

    $ python examples/mandelbrot/server.py --port 9000
    Serving on 127.0.0.1:9000 with 2 workers

The protocol is lines, so ``nc 127.0.0.1 9000`` is a client too. A request is

    tile LEFT TOP STEP WIDTH HEIGHT LIMIT

with LEFT, TOP the first pixel's place in the complex plane, STEP the distance between two pixels,
WIDTH and HEIGHT in pixels, LIMIT the iterations after which a pixel counts as inside the set. The
answer is the pid of the worker, then HEIGHT lines of WIDTH numbers: the iterations that the pixel took
to escape (with two decimals, for smooth colours), or 0.00 if it did not escape.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import prefork

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WORK = 100_000_000  # iterations of one request: the longest that a worker may be kept busy
LONGEST_LINE = 200  # bytes


@dataclass(frozen=True)
class Tile:
    left: float
    top: float
    step: float
    width: int
    height: int
    limit: int

    @classmethod
    def read(cls, line: str) -> Self:
        """Read a request; ValueError says what is wrong with it."""
        try:
            word, left, top, step, width, height, limit = line.split()
            tile = cls(float(left), float(top), float(step), int(width), int(height), int(limit))
        except ValueError:
            word = ""
        if word != "tile":
            raise ValueError("expected: tile LEFT TOP STEP WIDTH HEIGHT LIMIT")
        if min(tile.width, tile.height, tile.limit) < 1:
            raise ValueError("expected: WIDTH, HEIGHT and LIMIT of at least 1")
        if tile.width * tile.height * tile.limit > MOST_WORK:
            raise ValueError(f"too much: WIDTH times HEIGHT times LIMIT is more than {MOST_WORK}")
        return tile

    def rows(self) -> Iterator[list[float]]:
        """Compute the tile, row by row: this is where the processor time goes."""
        for y in range(self.height):
            imaginary = self.top - y * self.step
            yield [
                escape_time(complex(self.left + x * self.step, imaginary), self.limit)
                for x in range(self.width)
            ]


def escape_time(c: complex, limit: int) -> float:
    """Return after how many steps z² + c leaves the circle of radius 16, as a smooth number."""
    z = c
    for steps in range(1, limit):
        z = z * z + c
        size = abs(z)
        if size > 16:
            return steps + 1 - math.log2(math.log2(size))
    return 0.0


class TileHandler(prefork.StreamRequestHandler):
    timeout = 10  # seconds; a client that connects and says nothing must not keep a worker forever
    wbufsize = -1  # many short writes become few long ones

    def handle(self) -> None:
        line = self.rfile.readline(LONGEST_LINE).decode("ascii", "replace")
        try:
            tile = Tile.read(line)
        except ValueError as error:
            self.wfile.write(f"error {error}\n".encode())
            return
        self.wfile.write(b"%d\n" % os.getpid())
        for row in tile.rows():
            self.wfile.write(" ".join([f"{steps:.2f}" for steps in row]).encode() + b"\n")


class TileServer(prefork.PreForkingTCPServer):
    max_children = 256  # room for one worker per core on large machines

    def when_ready(self) -> None:
        count = len(self.active_children or ())
        address = "{}:{}".format(*self.server_address)
        print(f"Serving on {address} with {count} worker{'s' * (count != 1)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve tiles of the Mandelbrot set.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0 takes any free one")
    parser.add_argument("--workers", default="auto", help="how many; auto is one per usable core")
    given = parser.parse_args()
    workers = given.workers if given.workers == "auto" else int(given.workers)

    with TileServer((given.host, given.port), TileHandler) as server:
        server.workers = workers
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is a good way to stop it
            server.serve_forever()


if __name__ == "__main__":
    main()
