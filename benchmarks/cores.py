"""Two workers on two cores beside one worker: requests per second with a CPU-bound handler."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time

from load import ask
from processes import HERE, Server, environment, running
from servers import burn
from table import markdown, spread

WORK_SECONDS = 0.005
CLIENTS = 6
"""Few enough to cost the cores almost nothing, and enough to keep every worker busy."""


def report(rounds: int, seconds: float) -> str:
    """Return a table of ratios: the pool's, and beside it the machine's own ceiling."""
    if len(os.sched_getaffinity(0)) < 2:
        return "Skipped: needs two usable CPUs."
    work = calibrated()
    pool: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    with contextlib.ExitStack() as stack:
        one, two = (
            stack.enter_context(running("tcp", "prefork", "--workers", n, "--burn", work))
            for n in (1, 2)
        )
        for server in (one, two):
            ask(server, CLIENTS, 0.2)
        for _ in range(rounds):
            turns = [_turn(server, seconds) for server in (one, two)]
            pool.append((turns[0][0], turns[1][0]))
            busy.append((turns[0][1], turns[1][1]))
            bare.append((_bare_rate(1, work, seconds), _bare_rate(2, work, seconds)))
    rows = [
        _row("two workers : one worker", pool),
        _row("the same, CPU time that they got per second", busy),
        _row("two bare processes : one (no server)", bare),
    ]
    work_shown = f"{WORK_SECONDS * 1000:g} ms of computing per request"
    return markdown([work_shown, "ratio", "ratios seen", "all turns together"], rows)


def _row(what: str, rates: list[tuple[float, float]]) -> list[str]:
    ratios = [two / one for one, two in rates]
    all_one, all_two = (sum(column) for column in zip(*rates, strict=True))
    median = f"{statistics.median(ratios):.2f}"
    return [what, median, spread(ratios, "{:.2f}"), f"{all_two / all_one:.2f}"]


def calibrated() -> int:
    """Return the rounds of work that take WORK_SECONDS on this machine when nothing disturbs."""
    rounds, best = 20_000, float("inf")
    for _ in range(20):
        start = time.perf_counter()
        burn(rounds)
        best = min(best, time.perf_counter() - start)
    return round(rounds * WORK_SECONDS / best)


def _turn(server: Server, seconds: float) -> tuple[float, float]:
    """Return requests per second, and the CPU time that the server used per second.

    The pool decides the second value only. The first one also follows the speed of the cores.
    """
    start, used = time.monotonic(), server.cpu_seconds()
    answered = ask(server, CLIENTS, seconds)
    took = time.monotonic() - start
    return answered / took, (server.cpu_seconds() - used) / took


def _bare_rate(processes: int, work: int, seconds: float) -> float:
    """Return the rate of this many processes that share nothing, which is the most a server can reach."""
    command = [sys.executable, str(HERE / "cores.py"), str(work), str(seconds)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in started)


def _burn_alone(work: int, seconds: float) -> float:
    done, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        burn(work)
        done += 1
    return done / (time.monotonic() - start)


if __name__ == "__main__":
    print(_burn_alone(int(sys.argv[1]), float(sys.argv[2])))
