"""What is done to a cluster under load, and what is counted. Each trial returns a record and judges nothing."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from tests.cluster.cluster import FRONT_LINES, FRONT_WEB, WORKERS, Cluster
from tests.cluster.load import Done, Order, Outcome
from tests.cluster.network import MACHINES
from tests.support.simulator import quantile
from tests.support.waiting import let_pass, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MEAN: Final = 0.1
"""Seconds of a request, on average."""

CAPACITY: Final = len(MACHINES) * WORKERS / MEAN
"""Requests a second that keep all workers busy."""

WARM_UP: Final = 1.0


class Tail(msgspec.Struct, frozen=True):
    """How long clients have waited for their answers. Seconds."""

    load: float
    requests: int
    failed: int
    median: float
    p99: float


def tail(cluster: Cluster, load: float, seconds: float, *, is_http: bool = False) -> Tail:
    """Ask at random for a while. load: as a share of what all workers together can do."""
    order = Order(
        FRONT_WEB if is_http else FRONT_LINES,
        seed=20,
        rate=load * CAPACITY,
        seconds=WARM_UP + seconds,
        mean=MEAN,
        deadline=20,
        is_http=is_http,
    )
    done = cluster.ask(order).done()
    begin = min(one.due for one in done) + WARM_UP
    lengths = [one.seconds for one in done if one.due >= begin]
    return Tail(load, len(done), _failed(done), quantile(lengths, 0.5), quantile(lengths, 0.99))


class Rolling(msgspec.Struct, frozen=True):
    """A load through reloads and restarts of all machines, one machine after the other."""

    requests: int
    failed: int
    reloads: int
    restarts: int
    seconds: float
    slowest: float
    outcomes: dict[str, int]


def rolling(
    cluster: Cluster, order: Order, wait_back: Callable[[str], None], rounds: int | None = None
) -> Rolling:
    """Reload and restart every machine in turn, for a number of rounds or until the load ends by itself.

    wait_back: returns when the balancer sends requests to a machine again, as an operator would wait before the next
    machine.
    """
    load = cluster.ask(order)
    reloads = restarts = 0
    while load.is_under_way and (rounds is None or restarts < rounds * len(cluster.machines)):
        for machine in cluster.machines.values():
            machine.reload()
            reloads += 1
        for name, machine in cluster.machines.items():
            machine.restart()
            wait_back(name)
            restarts += 1
    load.stop()
    done = load.done()
    seconds = max(one.ended for one in done) - min(one.due for one in done)
    slowest = max(one.seconds for one in done)
    outcomes = Counter(one.outcome.value for one in done)
    return Rolling(len(done), _failed(done), reloads, restarts, seconds, slowest, dict(outcomes))


class Fault(msgspec.Struct, frozen=True):
    """A machine that is lost under load and comes back.

    lost: requests without an answer. moved: seconds from the fault after which none was lost. well: seconds from the fault
    after which every request was answered within ``SOON``, which also depends on how busy the machine of the trial is.
    back: seconds from the end of the fault until the machine has answered a request that came after it.
    """

    requests: int
    lost: int
    moved: float
    well: float
    back: float
    outcomes: dict[str, int]


FAULT_MEAN: Final = 0.02
"""Seconds of a request while machines are lost."""

FAULT_SECONDS: Final = 3.0

PATIENCE: Final = 2.5
"""Seconds after which a client gives up; less than a fault lasts, so that no answer comes because the fault is over."""

SOON: Final = 1.0
"""Seconds within which a cluster that has noticed the fault answers; a connection that fails takes half of it."""


def fault(
    cluster: Cluster,
    name: str,
    begin: Callable[[str], None],
    end: Callable[[str], None],
    *,
    load: float = 0.4,
    is_http: bool = False,
) -> Fault:
    """Do something to a machine for a while, under load, and undo it."""
    order = Order(
        FRONT_WEB if is_http else FRONT_LINES,
        seed=7,
        rate=load * CAPACITY * MEAN / FAULT_MEAN,
        seconds=WARM_UP + 2 * FAULT_SECONDS,
        mean=FAULT_MEAN,
        deadline=PATIENCE,
        is_http=is_http,
    )
    asked = cluster.ask(order)
    let_pass(WARM_UP)
    began = time.monotonic()
    begin(name)
    let_pass(FAULT_SECONDS)
    ended = time.monotonic()
    end(name)
    done = asked.done()
    bad = [one.due - began for one in done if one.outcome is not Outcome.OK]
    slow = [one.due - began for one in done if began <= one.due < ended and not _is_soon(one)]
    answers = [one.ended - ended for one in done if one.machine == name and one.due > ended]
    return Fault(
        requests=len(done),
        lost=_failed(done),
        moved=max(bad, default=0.0),
        well=max(slow, default=0.0),
        back=min(answers, default=math.inf),
        outcomes=dict(Counter(one.outcome.value for one in done)),
    )


def _is_soon(one: Done) -> bool:
    return one.outcome is Outcome.OK and one.seconds < SOON


class Share(msgspec.Struct, frozen=True):
    """What part of the requests one machine has answered, before it got more workers and after.

    followed: seconds from the signals until the balancer has known the new number of workers.
    """

    workers: int
    more: int
    before: float
    after: float
    expected: float
    followed: float


def share(
    cluster: Cluster,
    name: str,
    more: int,
    limit_of: Callable[[str], int],
    *,
    warm_up: float = WARM_UP,
    is_http: bool = False,
) -> Share:
    """Give one machine more workers while more clients ask than there are workers.

    limit_of: what is known of the machine's number of workers, by the balancer or by the machine's agent. warm_up: seconds
    of load before that.
    """
    order = Order(
        FRONT_WEB if is_http else FRONT_LINES,
        seed=3,
        clients=2 * (len(MACHINES) * WORKERS + more),
        seconds=warm_up + 3.5,
        mean=FAULT_MEAN,
        deadline=10.0,
        is_http=is_http,
    )
    asked = cluster.ask(order)
    let_pass(warm_up)
    began = time.monotonic()
    cluster.machines[name].grow(more)
    wait_until(lambda: limit_of(name) == WORKERS + more, f"{more} workers more are known")
    followed = time.monotonic() - began
    done = asked.done()
    before = [one.machine for one in done if began - 0.7 <= one.ended < began]
    # From a second after the signals on.
    after = [one.machine for one in done if began + 1.0 <= one.ended < began + 3.0]
    return Share(
        WORKERS,
        more,
        before.count(name) / len(before),
        after.count(name) / len(after),
        (WORKERS + more) / (len(MACHINES) * WORKERS + more),
        followed,
    )


def _failed(done: Iterable[Done]) -> int:
    return sum(one.outcome is not Outcome.OK for one in done)
