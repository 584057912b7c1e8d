"""Write the simulated tables of docs/CLUSTER.md: ``python -m docs.images.cluster``.

Everything comes out of tests/cluster/fleet.py, with fixed seeds: the same code gives the same tables. A test compares
some of them. The measured tables of that page come from ``python -m tests.cluster``.
"""
# ruff: noqa: INP001, S311 - a folder of pictures, not a package; dice of a simulation, no secrets

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from docs.images.markdown import filled, table
from tests.cluster.fleet import Fleet, Found, Loss, Reports, Simulation, Way
from tests.support.simulator import exponential, poisson, quantile

DOCUMENT: Final = Path(__file__).parents[1] / "CLUSTER.md"

MEAN: Final = 0.1
"""Seconds of a request, on average."""

WARM_UP: Final = 0.3
"""Of the requests, which find the machines too idle."""

MACHINES, WORKERS, BALANCERS = 1000, 8, 10
RACK: Final = 40

SIZES: Final = ((3, 1), (3, 4), (3, 16), (3, 64), (10, 4), (100, 4), (100, 16))
SIZE_LOAD: Final = 0.8
LOADS: Final = (0.7, 0.9)
TURNS: Final = (1.0, 4.0, 10.0, 30.0, 100.0)
"""Lengths of a request, in ways to a machine and back."""

REPORTS: Final = (5.0, 1.0, 0.1, 0.025)
"""Intervals of the agent for weights, in mean lengths of a request."""

TURN_LOAD: Final = 0.7

INTERVALS: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
RESIZED_EVERY, RESIZED_TO = 10.0, 6


def simulate(fleet: Fleet, load: float, requests: int, mean: float = MEAN) -> Found:
    """Let this many requests come to a fleet. load: of all its workers."""
    dice = random.Random(20)
    workers = fleet.machines * (fleet.workers + (fleet.resized_to or fleet.workers)) / 2
    rate = load * workers / mean
    end = requests / rate
    arrivals = poisson(dice, rate, exponential(mean), end)
    return Simulation(fleet, arrivals, dice, WARM_UP * end).run()


# --- which way for which size


@functools.cache
def sizes_row(machines: int, workers: int) -> list[str]:
    """Say what the ways cost for machines of one size, in mean lengths of a request."""
    cells = []
    for way in (Way.ROUND_ROBIN, Way.LEASTCONN, Way.ONE_QUEUE):
        found = simulate(Fleet(machines, workers, way), SIZE_LOAD, 100_000)
        cells.append(_in_means(quantile(found.waits, 0.99)))
    return [str(machines), str(workers), *cells]


def sizes_table() -> str:
    """Say what the ways cost for machines of several sizes."""
    rows = [sizes_row(*size) for size in SIZES]
    return table(["machines", "workers in each", "round robin", "leastconn", "one queue"], rows)


def turns_table() -> str:
    """Say what one queue costs where requests are short: a worker idles while its next request is on the way."""
    rows = []
    for turns in TURNS:
        most = turns / (1 + turns)
        cells = []
        for way in (Way.LEASTCONN, Way.ONE_QUEUE):
            if way is Way.ONE_QUEUE and most < TURN_LOAD:
                cells.append("never caught up")
                continue
            fleet = Fleet(3, 4, way, way_there=MEAN / turns / 2)
            cells.append(_in_means(quantile(simulate(fleet, TURN_LOAD, 100_000).waits, 0.99)))
        rows.append([f"{turns:g}", f"{most:.0%}", *cells])
    head = [
        "length of a request, in round trips",
        "most load of one queue",
        "leastconn",
        "one queue",
    ]
    return table(head, rows)


def weights_table() -> str:
    """Say how fresh a weight by the share of idle workers has to be."""
    cells = [
        _in_means(quantile(simulate(fleet, SIZE_LOAD, 100_000).waits, 0.99))
        for fleet in (
            Fleet(3, 4, Way.ROUND_ROBIN),
            *(Fleet(3, 4, Way.WEIGHTS, reports=Reports(share * MEAN)) for share in REPORTS),
        )
    ]
    head = ["agent-inter, in lengths of a request", "no weights", *(f"{one:g}" for one in REPORTS)]
    return table(head, [["wait of one request in a hundred", *cells]])


# --- a thousand machines


def thousand() -> dict[str, Fleet]:
    """Return the ways to have 1,000 machines behind 10 balancers, by what is said of them."""
    mine = MACHINES // BALANCERS
    every = {"machines": MACHINES, "workers": WORKERS, "balancers": BALANCERS}
    return {
        "each balancer has 100 machines, one queue": Fleet(mine, WORKERS, Way.ONE_QUEUE),
        "each balancer has 100 machines, leastconn": Fleet(mine, WORKERS, Way.LEASTCONN),
        "all have all machines, one queue each": Fleet(way=Way.ONE_QUEUE, **every),
        "all have all machines, round robin": Fleet(way=Way.ROUND_ROBIN, **every),
        "all have all machines, weights by idle share": Fleet(
            way=Way.WEIGHTS, reports=Reports(0.5), **every
        ),
    }


def thousand_table() -> str:
    """Say how long requests wait, and what the agents' answers cost."""
    rows = []
    for name, fleet in thousand().items():
        cells = []
        for load in LOADS:
            requests = 30_000 if fleet.balancers == 1 else 150_000
            waits = simulate(fleet, load, requests).waits
            cells += [_length(quantile(waits, part)) for part in (0.99, 0.999)]
        rows.append([name, *cells])
    head = ["", *(f"{load:.0%}: {part}" for load in LOADS for part in ("p99", "p99.9"))]
    return table(head, rows)


def traffic_table() -> str:
    """Say how many checks there are."""
    rows = []
    for name, balancers in (("each balancer has 100 machines", 1), ("all have all machines", 10)):
        for interval in (0.25, 1.0):
            a_machine = balancers / interval
            a_balancer = a_machine * MACHINES / BALANCERS
            rows.append([name, _length(interval), f"{a_machine:g}", f"{a_balancer:,.0f}"])
    head = ["", "agent-inter", "checks a second, a machine", "checks a second, a balancer"]
    return table(head, rows)


def stale_table() -> str:
    """Say what old answers of the agents cost where pools grow and shrink."""
    rows = []
    for interval in INTERVALS:
        fleet = Fleet(
            *(100, WORKERS, Way.ONE_QUEUE),
            reports=Reports(interval),
            resized_every=RESIZED_EVERY,
            resized_to=RESIZED_TO,
        )
        found = simulate(fleet, 0.9, 60_000)
        share = found.misplaced / found.requests
        rows.append([_length(interval), f"{share:.2%}", _length(quantile(found.waits, 0.999))])
    head = ["agent-inter", "requests that waited for a busy machine", "p99.9 of all waits"]
    return table(head, rows)


def rack_table() -> str:
    """Say what it costs that machines are cut off."""
    rows = []
    for name, fleet in thousand().items():
        if fleet.way is Way.WEIGHTS:
            continue
        # Of a balancer's own machines, a tenth of the rack is lost.
        lost = RACK * fleet.machines // MACHINES
        requests = 150_000 if fleet.balancers > 1 else 30_000
        half = 0.5 * requests * MEAN / (LOADS[0] * fleet.machines * fleet.workers)
        struck = msgspec.structs.replace(fleet, loss=Loss(at=half, machines=lost))
        found = simulate(struck, LOADS[0], requests)
        scale = MACHINES // fleet.machines
        rows.append(
            [
                name,
                f"{found.lost * scale:,}",
                f"{found.delayed * scale:,}",
                _length(quantile(found.noticed, 0.5)),
                _length(found.noticed[-1]),
            ]
        )
    head = ["", "lost", "delayed by timeout connect", "half of it noticed after", "all of it after"]
    return table(head, rows)


# --- the page

TABLES: Final[dict[str, Callable[[], str]]] = {
    "sizes": sizes_table,
    "turns": turns_table,
    "weights": weights_table,
    "thousand": thousand_table,
    "traffic": traffic_table,
    "stale": stale_table,
    "rack": rack_table,
}
"""Name of each pair of markers ``<!-- name -->``, ``<!-- /name -->`` in the document, and what stands between."""


def document(text: str, tables: dict[str, Callable[[], str]] = TABLES) -> str:
    """Return the document with these tables brought up to date."""
    return filled(text, tables)


def _in_means(seconds: float) -> str:
    return f"{seconds / MEAN:.1f}"


def _length(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s".replace(".0 s", " s")


def main() -> None:
    """Write the tables."""
    DOCUMENT.write_text(document(DOCUMENT.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
