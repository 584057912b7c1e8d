"""What one request costs the server: CPU time of all its processes, beside a hand-written loop."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass

from load import ask
from processes import Server, running
from table import markdown, spread

CROWD = 64
"""Clients at once: enough that the server always has the next request waiting, though they share one core."""
BASELINE = "handwritten"
SHOWN = {
    "handwritten": "hand-written loop",
    "accounted": "the same, with a worker's scoreboard",
    "prefork": "PreForking…Server, 1 worker",
    "seen": "PreForking…Server with metrics",
    "threading": "ThreadingMixIn",
    "forking": "ForkingMixIn",
}


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    """Length of one turn of one server in one round."""


def report(effort: Effort, server_cpu: int, transports: list[str]) -> str:
    """Return a table: every server under a crowd of clients, and with one client at a time."""
    rows = []
    for transport in transports:
        with contextlib.ExitStack() as stack:
            servers = {
                variant: stack.enter_context(running(transport, variant, "--cpu", server_cpu))
                for variant in SHOWN
            }
            for clients in (CROWD, 1):
                costs = measure(servers, clients, effort)
                rows += [_row(transport, clients, variant, costs) for variant in costs]
    head = ["transport", "clients", "server", "µs per request", "least", "ratio", "ratios seen"]
    return markdown(head, rows)


def measure(servers: dict[str, Server], clients: int, effort: Effort) -> dict[str, list[float]]:
    """Return the CPU seconds per request of every server, one value per round.

    All servers run at once and take turns, so that whatever else the machine does in a round
    falls on all of them alike and cancels in the round's ratios.
    """
    costs: dict[str, list[float]] = {variant: [] for variant in servers}
    for server in servers.values():
        ask(server, clients, min(0.1, effort.seconds))
    for _ in range(effort.rounds):
        for variant, server in servers.items():
            costs[variant].append(cost(server, clients, effort.seconds))
    return costs


def cost(server: Server, clients: int, seconds: float) -> float:
    """Load a server for a while; return its CPU seconds per request."""
    before = server.cpu_seconds()
    answered = ask(server, clients, seconds)
    time.sleep(0.01)  # what ends after the last answer belongs to it: a forked child's exit
    return (server.cpu_seconds() - before) / answered


def _row(transport: str, clients: int, variant: str, costs: dict[str, list[float]]) -> list[str]:
    ratios = [cost / base for cost, base in zip(costs[variant], costs[BASELINE], strict=True)]
    micros = statistics.median(costs[variant]) * 1e6
    least = min(costs[variant]) * 1e6
    cells = [transport, str(clients), SHOWN[variant], f"{micros:.1f}", f"{least:.1f}"]
    if variant == BASELINE:
        return [*cells, "1", ""]
    return [*cells, f"{statistics.median(ratios):.2f}", spread(ratios, "{:.2f}")]
