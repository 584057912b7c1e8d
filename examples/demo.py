"""What ``make demo`` runs: the Mandelbrot server with one worker, then with one per usable core.

Both runs answer the same requests on a free loopback port. The table at the end shows the requests
per second, the speed-up, and how many each process served. Nothing is left behind. The exit status
is 0, or 1 with a sentence about what went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "mandelbrot"))  # its client imports its neighbours

import picture  # noqa: E402 - found through the line above
from client import Drawn, View, draw, progress_bar, size  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60.0  # seconds for the server to start or stop, and for its workers to be gone
INDENT = "  "
WIDTH = 76  # characters, of what stands to the right of the indent
PREVIEW = 64  # characters
GOOD = 0.8  # of one core's speed, per core; below it the conclusion adds a sentence


class WentWrongError(Exception):
    """The demo could not show what it promises; the message says why."""


@dataclass(frozen=True)
class Run:
    workers: int
    drawn: Drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=size, default=(640, 400), help="pixels, such as 640x400")
    width, height = parser.parse_args().size
    view = View(width, height)
    for number in (signal.SIGTERM, signal.SIGHUP):  # they, too, must not leave the server behind
        signal.signal(number, signal.default_int_handler)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # "─" in an ASCII terminal
    try:
        show(view)
    except WentWrongError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def show(view: View) -> None:
    print(introduction(view), flush=True)
    runs = [run("1", view), run("auto", view)]
    if sys.stdout.isatty():
        print()  # after the progress bars
    first, second = (run.drawn.rows(view) for run in runs)
    if first != second:
        raise WentWrongError("the two runs did not draw the same picture")
    if colours := terminal_colours():
        lines = picture.preview(picture.colours(first), PREVIEW, exact=colours == "exact")
        print(textwrap.indent("\n".join(lines), INDENT) + "\n")
    print(table(runs))
    print(conclusion(runs))


def introduction(view: View) -> str:
    return textwrap.indent(
        f"""
{bold("prefork demo")}
{len(view.tiles())} tiles of the Mandelbrot set, computed in plain Python, one request each:
first by one worker, then by one worker per usable core.
""",
        INDENT,
    )


def run(workers: str, view: View) -> Run:
    """Start the server, have it draw the picture, stop it, and check that nothing of it is left."""
    with serving(workers) as (address, count):
        label = INDENT + of_workers(count)
        try:
            drawn = draw(address, view, progress_bar(f"{label:13}"))
        except (OSError, RuntimeError) as error:
            raise WentWrongError(f"a tile was not answered: {error}") from error
    served = drawn.served()
    if len(served) > count:
        raise WentWrongError(f"{count} workers, but {len(served)} pids served: {served}")
    wait_until_gone(set(served))
    return Run(count, drawn)


@contextlib.contextmanager
def serving(workers: str) -> Iterator[tuple[tuple[str, int], int]]:
    """Run the server as a program of its own; yield its address and its number of workers."""
    program = str(HERE / "mandelbrot" / "server.py")
    command = [sys.executable, program, "--port=0", f"--workers={workers}"]
    # In a process group of its own: Ctrl-C reaches the demo only, which then asks the server to stop.
    with subprocess.Popen(  # noqa: S603 - our own file
        command, stdout=subprocess.PIPE, text=True, process_group=0
    ) as server:
        try:
            yield first_line(server)
        finally:
            server.terminate()
            try:
                status = server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                raise WentWrongError(f"the server did not stop within {PATIENCE:g} s") from None
    if status != 0:
        raise WentWrongError(f"the server ended with status {status}")


def first_line(server: subprocess.Popen[str]) -> tuple[tuple[str, int], int]:
    """Wait until the server says where it serves, and with how many workers."""
    assert server.stdout is not None  # noqa: S101 - it is a pipe
    ready, _, _ = select.select([server.stdout], [], [], PATIENCE)
    line = server.stdout.readline() if ready else ""
    found = re.fullmatch(r"Serving on (\S+):(\d+) with (\d+) workers?\n", line)
    if found is None:
        raise WentWrongError(f"the server did not start; it said {line!r}")
    return (found[1], int(found[2])), int(found[3])


def wait_until_gone(pids: set[int]) -> None:
    end = time.monotonic() + PATIENCE
    while left := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        if time.monotonic() > end:
            raise WentWrongError(f"the server has ended, but its workers {left} are still there")
        time.sleep(0.01)


def table(runs: list[Run]) -> str:
    """Return the table: requests per second, the speed-up, and how many each pid served."""
    head = f"{'workers':>7}   {'seconds':>7}   {'requests/s':>10}   {'speed-up':>8}   "
    beside = "requests served by each pid"
    lines = [bold(head + beside), "─" * WIDTH]
    for run in runs:
        numbers = (
            f"{run.workers:>7}   {run.drawn.seconds:>7.2f}   {run.drawn.rate:>10.1f}   "
            f"{speed_up(runs[0], run):>7.2f}x   "
        )
        served = "   ".join(f"{pid}: {count}" for pid, count in sorted(run.drawn.served().items()))
        wrapped = textwrap.wrap(served, WIDTH - len(head), break_on_hyphens=False)
        lines += [numbers + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
    return textwrap.indent("\n".join(lines), INDENT)


def conclusion(runs: list[Run]) -> str:
    one, many = runs
    if many.workers == 1:
        text = "One core is usable here, so one worker is all that pays."
    else:
        text = (
            f"Every request was answered, and the picture is the same: {of_workers(many.workers)} on as many "
            f"cores drew it {speed_up(one, many):.2f} times as fast as one."
        )
        if speed_up(one, many) < GOOD * many.workers:
            text += (
                " These cores could do better: either other programs compute here, too (the load "
                f"average is {os.getloadavg()[0]:.1f}), or some are two halves of the same core."
            )
    return "\n" + textwrap.fill(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT) + "\n"


def of_workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def speed_up(one: Run, other: Run) -> float:
    return one.drawn.seconds / other.drawn.seconds


def bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def terminal_colours() -> str:
    """Return how well the terminal can show a picture: "exact", "256", or "" for not at all."""
    if "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return ""
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return "exact"
    return "256" if "256color" in os.environ.get("TERM", "") else ""


if __name__ == "__main__":
    sys.exit(main())
