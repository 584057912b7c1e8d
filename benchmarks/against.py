"""What a request costs here and in another checkout, in interleaved rounds: whether a change made it slower."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING

from load import ask
from processes import HERE, running
from requests_cost import CROWD, Effort, cost
from table import markdown

if TYPE_CHECKING:
    from pathlib import Path

VARIANTS = {"prefork": "", "seen": ", metrics"}
"""What is measured, and how the table calls it."""

SIDES = ("there", "here", "there again")
"""The third is the other checkout once more: its ratio is the noise of the machine."""


def report(effort: Effort, server_cpu: int, transports: list[str], other: Path) -> str:
    """Return a table with the ratio here : there for every transport, and the same for there : there."""
    rows = []
    for transport in transports:
        for variant, suffix in VARIANTS.items():
            for clients in (CROWD, 1):
                costs = measure(effort, server_cpu, (transport, variant), clients, other)
                rows.append([f"{transport}{suffix}", str(clients), *_cells(costs)])
    head = ["server", "clients", "µs there", "µs here", "here : there", "there : there"]
    return markdown(head, rows)


def measure(
    effort: Effort, server_cpu: int, server: tuple[str, str], clients: int, other: Path
) -> dict[str, list[float]]:
    """Return the CPU seconds per request of each side, one value per round.

    server: its transport and its variant. Each round begins with another side, so that none of them
    always comes after the same one.
    """
    checkouts = {"there": other, "here": HERE.parent, "there again": other}
    costs: dict[str, list[float]] = {side: [] for side in SIDES}
    with contextlib.ExitStack() as stack:
        servers = {
            side: stack.enter_context(
                running(*server, "--cpu", server_cpu, checkout=checkouts[side])
            )
            for side in SIDES
        }
        for one in servers.values():
            ask(one, clients, 2 * effort.seconds)
        for number in range(effort.rounds):
            first = number % len(SIDES)
            for side in SIDES[first:] + SIDES[:first]:
                costs[side].append(cost(servers[side], clients, effort.seconds))
    return costs


def _cells(costs: dict[str, list[float]]) -> list[str]:
    there, here, again = (costs[side] for side in SIDES)
    return [
        f"{statistics.median(there) * 1e6:.2f}",
        f"{statistics.median(here) * 1e6:.2f}",
        _ratio(here, there),
        _ratio(again, there),
    ]


def _ratio(costs: list[float], base: list[float]) -> str:
    """Return the median of the rounds' ratios and the range that half of them are in."""
    ratios = [one / other for one, other in zip(costs, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.2f} … {high:.2f})"
