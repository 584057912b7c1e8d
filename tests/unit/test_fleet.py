"""The simulator of many machines: true to theory and to the other simulator, and what docs/CLUSTER.md says of it."""

from __future__ import annotations

import random

import pytest

from docs.images import cluster
from tests.cluster.fleet import Fleet, Found, Loss, Reports, Simulation, Way
from tests.support.simulator import (
    Arrival,
    exponential,
    poisson,
    quantile,
    wait_in_one_queue,
)

REQUESTS = 3000
MEAN = 0.1


def arrivals_for(workers: int, load: float, seed: int = 5) -> list[Arrival]:
    """Return requests that come at random. load: of this many workers."""
    rate = load * workers / MEAN
    return poisson(random.Random(seed), rate, exponential(MEAN), REQUESTS / rate)


def simulated(fleet: Fleet, load: float = 0.8) -> tuple[Found, int]:
    """Return what was seen, and the number of requests."""
    arrivals = arrivals_for(fleet.machines * fleet.workers, load)
    return Simulation(fleet, arrivals, random.Random(9)).run(), len(arrivals)


def test_one_queue_is_one_queue() -> None:
    """Three machines behind one balancer's queue make requests wait exactly as one machine with all the workers does."""
    arrivals = arrivals_for(12, 0.9)
    found = Simulation(Fleet(3, 4, Way.ONE_QUEUE), arrivals, random.Random(9)).run()

    assert found.waits == pytest.approx(sorted(wait_in_one_queue(arrivals, 12)), abs=1e-9)
    assert found.misplaced == 0


@pytest.mark.parametrize("way", Way)
def test_every_request_is_answered(way: Way) -> None:
    """No way of choosing loses a request, with several balancers and with distance."""
    fleet = Fleet(5, 2, way, balancers=3, way_there=0.002, reports=Reports(0.5))
    found, asked = simulated(fleet, 0.6)

    assert (found.requests, found.lost) == (asked, 0)


def test_round_robin_waits_longest() -> None:
    """Where the queues are apart, requests wait for busy workers while others are idle; a balancer that counts does better."""
    tails = {}
    for way in (Way.ROUND_ROBIN, Way.LEASTCONN, Way.ONE_QUEUE):
        found, _ = simulated(Fleet(3, 4, way))
        tails[way] = quantile(found.waits, 0.99)

    assert tails[Way.ROUND_ROBIN] > 1.5 * tails[Way.LEASTCONN]
    assert tails[Way.LEASTCONN] > tails[Way.ONE_QUEUE]


def test_lost_machine_holds_as_many_as_it_has_workers() -> None:
    """With one queue a machine that is cut off loses what it has in hand, and every other request is answered later."""
    fleet = Fleet(3, 4, Way.ONE_QUEUE, loss=Loss(at=3.0, machines=1))
    found, asked = simulated(fleet, 0.5)

    assert 0 < found.lost <= 4
    assert found.delayed > 0
    assert found.requests + found.lost == asked
    assert found.noticed[-1] <= 0.4 + 3 * 0.4 + 2 * 0.1


def test_page_has_the_bounds_of_a_fleet() -> None:
    """The rows of CLUSTER.md that are checked here are those that the simulator gives now."""
    text = cluster.DOCUMENT.read_text("utf-8")

    assert text == cluster.document(text, {"traffic": cluster.traffic_table})
    assert all(f"<!-- {name} -->" in text for name in cluster.TABLES)


@pytest.mark.once
@pytest.mark.simulated_hours
def test_page_is_current() -> None:
    """The figures of CLUSTER.md come from the simulator as it is; the module in docs/images writes them."""
    text = cluster.DOCUMENT.read_text("utf-8")

    for size in ((3, 1), (3, 4)):
        row = f"| {' | '.join(cluster.sizes_row(*size))} |"
        assert row in text, "out of date: python -m docs.images.cluster"
