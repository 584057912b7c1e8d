"""Measure prefork beside a hand-written accept loop and the standard library's mix-ins.

Compare the ratios. All servers run at once on one core and the clients on another, and they take
turns (A B C D A B C D …), so that a busy machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import prefork
except ImportError:  # a plain checkout: the package lies beside this folder
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
    import prefork

import against
import cores
import faults
import parking
import pool
import reload
import requests_cost
import table
import tls
import wsgi

if TYPE_CHECKING:
    from collections.abc import Iterator

TRANSPORTS = ["tcp", "udp", "unix", "http"]

SECTIONS = {
    "requests": "What a request costs: CPU time, user and system, of all processes of the server. "
    "Medians, and the least of all rounds. Ratios are to the hand-written loop in the same round.",
    "tls": "What a short encrypted connection costs: CPU time as above, one client at a time.",
    "cores": "What a second core brings: requests per second. Meaningful on an idle machine only.",
    "pool": "What the pool itself costs.",
    "faults": "How soon a pool follows a burst, and what is lost while its workers are killed one after the other. "
    "Each kill explains one loss: a request whose worker had named itself and was killed, or one that was "
    "cut off before its worker had named itself.",
    "parking": "What a request costs on a connection that stays open: CPU time of all processes, two workers on "
    "one core; the ratio is to the line above, in the same round. And what idle connections cost those who speak.",
    "wsgi": "What a hello-world of WSGI costs, beside other servers: CPU time of all processes, two workers on one "
    "core. The application's part is that of requests that compute for some milliseconds. In the mixed load one of ten "
    "requests waits for 20 ms; the latencies are those of the others. Memory is a worker's PSS.",
    "reload": "What reloads cost the clients: handlers of 5 ms on TCP, UDP and a Unix socket, broken code in "
    "between, and a storm of TTIN, TTOU and USR1 during every second reload.",
}

AGAINST = (
    "What a request costs the pool in two checkouts: CPU time as above, medians of interleaved rounds; "
    "half of the rounds' ratios are within the parentheses. there : there is the noise of the machine."
)


def main() -> None:
    """Measure section after section and print each when it is done."""
    given = arguments()
    print(f"Measured {table.machine()}, prefork {prefork.__version__}.\n", flush=True)
    if given.against is not None:
        print(AGAINST + "\n", flush=True)
        print(compare(given.against.resolve(), given.quick, given.transport), flush=True)
        return
    for section in given.only or SECTIONS:
        print(SECTIONS[section] + "\n", flush=True)
        text = (
            compare_wsgi(given.quick, given.peers)
            if section == "wsgi"
            else measure(section, given.quick, given.transport)
        )
        print(text + "\n", flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under 30 s: fewer and shorter rounds")
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="may be given several times"
    )
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS,
        action="append",
        help="of the section requests; may be given several times",
    )
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="where the programs of the other WSGI servers are, such as the bin of a virtual environment",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="measure only what a request costs here and in another checkout of prefork",
    )
    return parser.parse_args()


def compare(other: Path, quick: bool, transports: list[str] | None) -> str:
    """Two checkouts as a Markdown table."""
    effort = requests_cost.Effort(rounds=6 if quick else 60, seconds=0.06 if quick else 0.1)
    with own_core() as server_cpu:
        return against.report(effort, server_cpu, transports or TRANSPORTS, other)


def compare_wsgi(quick: bool, peers: Path | None) -> str:
    """Return the section ``wsgi`` as Markdown tables."""
    with own_core() as server_cpu:
        return wsgi.report(2 if quick else 10, 0.2 if quick else 0.3, server_cpu, peers)


def measure(section: str, quick: bool, transports: list[str] | None) -> str:
    """One section as a Markdown table."""
    if section == "cores":
        return cores.report(rounds=3 if quick else 30, seconds=0.4)
    if section == "pool":
        return pool.report(kills=20 if quick else 100, idle_seconds=1.0 if quick else 10.0)
    if section == "faults":
        return faults.report(kills=100 if quick else 1000, bursts=3 if quick else 15)
    if section == "parking":
        with own_core() as server_cpu:
            costs = parking.report(4 if quick else 40, 0.1 if quick else 0.25, server_cpu)
        idle = parking.idle_report(1000 if quick else 10_000, 2.0 if quick else 20.0)
        return f"{costs}\n\n{idle}"
    if section == "reload":
        return reload.report(
            reloads=4 if quick else 20,
            requests=5_000 if quick else 100_000,
            idle_reloads=5 if quick else 100,
        )
    effort = requests_cost.Effort(rounds=3 if quick else 25, seconds=0.06 if quick else 0.1)
    with own_core() as server_cpu:
        return (
            tls.report(effort, server_cpu)
            if section == "tls"
            else requests_cost.report(effort, server_cpu, transports or TRANSPORTS)
        )


@contextlib.contextmanager
def own_core() -> Iterator[int]:
    """Keep this process, in which the clients run, off the core that it yields for the servers."""
    usable = os.sched_getaffinity(0)
    server_cpu = min(usable)
    os.sched_setaffinity(0, usable - {server_cpu} or usable)
    try:
        yield server_cpu
    finally:
        os.sched_setaffinity(0, usable)


if __name__ == "__main__":
    main()
