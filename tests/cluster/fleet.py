"""A thousand machines behind several balancers, in virtual time (pure).

A request comes to one of the balancers at random. The balancer chooses a machine as its ``Way`` says, and the machine has
workers and a queue of its own, as a pool of prefork has. All lengths are in virtual seconds.

What is left out: deaths of workers, the time that a balancer itself takes, and everything that is not a request, unless
``Reports`` or ``Loss`` ask for it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.simulator import Arrival


class Way(StrEnum):
    """How a balancer chooses a machine."""

    ROUND_ROBIN = "round robin"
    LEASTCONN = "leastconn"
    WEIGHTS = "weights"
    ONE_QUEUE = "one queue"


class Reports(msgspec.Struct, frozen=True):
    """What the agents say, and how old it is: the number of workers, or the share of their time that was idle.

    interval: between two reports of a machine to one balancer; the first one is due at random within it.
    """

    interval: float = 0.25


class Loss(msgspec.Struct, frozen=True):
    """Machines that are cut off at an instant, and how a balancer notices.

    machines: the first so many. A check is due every ``inter``, and ``fast`` after one that has failed; it fails after
    ``timeout``, and ``fall`` failures in a row mark the machine down. A connection to a lost machine fails after
    ``connect`` and goes to another one.
    """

    at: float
    machines: int
    inter: float = 0.4
    fast: float = 0.1
    timeout: float = 0.4
    fall: int = 3
    connect: float = 0.5


class Fleet(msgspec.Struct, frozen=True):
    """What there is.

    Every balancer sends to every machine. (Balancers that have machines of their own are fleets of their own.) limit: the
    maxconn of a machine at a balancer, 0 for the number of its workers. way_there: seconds from a balancer to a machine,
    and as long back. resized_every: seconds after which a machine changes between ``workers`` and ``resized_to``.
    """

    machines: int
    workers: int
    way: Way
    balancers: int = 1
    limit: int = 0
    way_there: float = 0.0
    reports: Reports | None = None
    loss: Loss | None = None
    resized_every: float = 0.0
    resized_to: int = 0


class Found(msgspec.Struct):
    """What a simulation has seen, for requests that came after its warm-up.

    waits: what the answers took longer than the work and the ways there and back, sorted. misplaced: requests that have waited on a machine
    while another one of the same balancer had an idle worker. lost: requests that were on a lost machine. delayed:
    requests that have tried to reach one. noticed: seconds from the loss until each balancer has marked each machine.
    """

    requests: int = 0
    waits: list[float] = msgspec.field(default_factory=list)
    misplaced: int = 0
    lost: int = 0
    delayed: int = 0
    noticed: list[float] = msgspec.field(default_factory=list)


class _Machine:
    __slots__ = ("busy", "busy_time", "is_lost", "looked", "queue", "since", "workers")

    def __init__(self, workers: int) -> None:
        self.workers, self.busy, self.is_lost = workers, 0, False
        self.busy_time = self.since = 0.0
        self.looked: dict[int, tuple[float, float]] = {}
        self.queue: deque[tuple[int, _Balancer]] = deque()

    def change(self, by: int, now: float) -> None:
        """Count a worker that begins or ends a request."""
        self.busy_time += self.busy * (now - self.since)
        self.since = now
        self.busy += by

    def idle_share(self, asker: int, now: float) -> float:
        """Return the idle part of the workers' time since the same balancer has asked before."""
        self.change(0, now)
        before, busy_before = self.looked.get(asker, (0.0, 0.0))
        self.looked[asker] = (now, self.busy_time)
        passed = (now - before) * self.workers
        return 1 - (self.busy_time - busy_before) / passed if passed else 1.0


class _Balancer:
    """What one balancer knows: its requests on each machine, and what the agents have said.

    Machines that may get a request are in ``_levels``, by the number of requests that they have, so that the one with the
    fewest is found without a look at all. Within a level the one that has waited longest comes first.
    """

    def __init__(self, fleet: Fleet, first: int) -> None:
        self.queue: deque[int] = deque()
        self.sent = [0] * fleet.machines
        self.is_down = [False] * fleet.machines
        most = fleet.limit or fleet.workers
        self.limits = [most if fleet.way is Way.ONE_QUEUE else 1 << 30] * fleet.machines
        self._levels: dict[int, dict[int, None]] = {0: dict.fromkeys(range(fleet.machines))}
        self._least = 0
        self._turn = first
        self._strides = [(0.0, machine) for machine in range(fleet.machines)]
        self._weights = [1.0] * fleet.machines
        self._choose = {
            Way.ROUND_ROBIN: self._next_in_turn,
            Way.WEIGHTS: self._next_by_weight,
        }.get(fleet.way, self._next_least)

    def choose(self) -> int | None:
        """Return the machine for a request; None where all have as many as they may."""
        return self._choose()

    def _next_in_turn(self) -> int | None:
        for _ in range(len(self.sent)):
            self._turn = (self._turn + 1) % len(self.sent)
            if not self.is_down[self._turn]:
                return self._turn
        return None

    def _next_by_weight(self) -> int | None:
        """Return the machine whose turn it is: one of twice the weight has its turn twice as often."""
        while self._strides:
            passed, machine = heapq.heappop(self._strides)
            if self.is_down[machine]:
                continue
            heapq.heappush(self._strides, (passed + 1 / self._weights[machine], machine))
            return machine
        return None

    def _next_least(self) -> int | None:
        while not self._levels.get(self._least):
            if self._least > max(self._levels, default=-1):
                return None
            self._least += 1
        return next(iter(self._levels[self._least]))

    def weigh(self, machine: int, weight: float) -> None:
        """Hear the share of idle workers of a machine."""
        self._weights[machine] = max(0.01, weight)

    def limit(self, machine: int, workers: int) -> None:
        """Hear how many workers a machine has."""
        self._leave(machine)
        self.limits[machine] = workers
        self._enter(machine)

    def change(self, machine: int, by: int) -> None:
        """Count a request that is sent, or one that has come back."""
        self._leave(machine)
        self.sent[machine] += by
        self._enter(machine)

    def mark_down(self, machine: int) -> None:
        """Send nothing more to a machine, and forget what is there."""
        self._leave(machine)
        self.is_down[machine] = True

    def _leave(self, machine: int) -> None:
        self._levels.get(self.sent[machine], {}).pop(machine, None)

    def _enter(self, machine: int) -> None:
        sent = self.sent[machine]
        if sent < self.limits[machine] and not self.is_down[machine]:
            self._levels.setdefault(sent, {})[machine] = None
            self._least = min(self._least, sent)


class Simulation:
    """Runs requests through a fleet."""

    def __init__(
        self, fleet: Fleet, arrivals: Sequence[Arrival], dice: random.Random, warm_up: float = 0.0
    ) -> None:
        self.found = Found()
        self._fleet, self._arrivals, self._dice, self._warm_up = fleet, arrivals, dice, warm_up
        self._machines = [_Machine(fleet.workers) for _ in range(fleet.machines)]
        self._balancers = [
            _Balancer(fleet, dice.randrange(fleet.machines)) for _ in range(fleet.balancers)
        ]
        self._idle = fleet.machines * fleet.workers
        self._now = 0.0
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._end = arrivals[-1].at
        self._plan_reports()
        self._plan_resizes()
        self._plan_loss()

    def run(self) -> Found:
        """Go on until the last request has its answer, and return what was seen."""
        for number, arrival in enumerate(self._arrivals):
            self._go_on(arrival.at)
            self._now = arrival.at
            self._send(number, self._dice.choice(self._balancers))
        self._go_on(math.inf)
        self.found.waits.sort()
        return self.found

    def _go_on(self, until: float) -> None:
        agenda = self._agenda
        while agenda and agenda[0][0] <= until:
            self._now, _, happen, arguments = heapq.heappop(agenda)
            happen(*arguments)

    def _plan(self, at: float, happen: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), happen, arguments))

    # --- a request

    def _send(self, number: int, balancer: _Balancer) -> None:
        machine = balancer.choose()
        if machine is None:
            balancer.queue.append(number)
            return
        balancer.change(machine, 1)
        if self._fleet.way_there:
            self._plan(self._now + self._fleet.way_there, self._reach, number, balancer, machine)
        else:
            self._reach(number, balancer, machine)

    def _reach(self, number: int, balancer: _Balancer, machine: int) -> None:
        one = self._machines[machine]
        if one.is_lost:
            self.found.delayed += 1
            assert self._fleet.loss is not None
            self._plan(self._now + self._fleet.loss.connect, self._retry, number, balancer, machine)
        elif one.busy < one.workers:
            self._serve(number, balancer, machine)
        else:
            if self._idle > 0 and self._arrivals[number].at >= self._warm_up:
                self.found.misplaced += 1
            one.queue.append((number, balancer))

    def _serve(self, number: int, balancer: _Balancer, machine: int) -> None:
        self._machines[machine].change(1, self._now)
        self._idle -= 1
        ends = self._now + self._arrivals[number].service
        self._plan(ends, self._finish, number, balancer, machine)

    def _finish(self, number: int, balancer: _Balancer, machine: int) -> None:
        one = self._machines[machine]
        if one.is_lost:
            self.found.lost += 1
            return
        one.change(-1, self._now)
        self._idle += one.busy < one.workers
        if self._fleet.way_there:
            self._plan(self._now + self._fleet.way_there, self._return, number, balancer, machine)
        else:
            self._return(number, balancer, machine)
        self._take(machine)

    def _take(self, machine: int) -> None:
        one = self._machines[machine]
        while one.queue and one.busy < one.workers:
            self._serve(*one.queue.popleft(), machine)

    def _return(self, number: int, balancer: _Balancer, machine: int) -> None:
        came = self._arrivals[number].at
        if came >= self._warm_up:
            least = self._arrivals[number].service + 2 * self._fleet.way_there
            self.found.requests += 1
            self.found.waits.append(max(0.0, self._now - came - least))
        if not balancer.is_down[machine]:
            balancer.change(machine, -1)
        self._empty_queue(balancer)

    def _empty_queue(self, balancer: _Balancer) -> None:
        while balancer.queue and (balancer.choose()) is not None:
            self._send(balancer.queue.popleft(), balancer)

    # --- the agents

    def _plan_reports(self) -> None:
        reports = self._fleet.reports
        if reports is None:
            return
        for balancer in self._balancers:
            for machine in range(self._fleet.machines):
                self._plan(self._dice.random() * reports.interval, self._report, balancer, machine)

    def _report(self, balancer: _Balancer, machine: int) -> None:
        reports, one = self._fleet.reports, self._machines[machine]
        assert reports is not None
        if one.is_lost or self._now > self._end:
            return
        if self._fleet.way is Way.WEIGHTS:
            balancer.weigh(machine, one.idle_share(id(balancer), self._now))
        elif balancer.limits[machine] != one.workers:
            balancer.limit(machine, one.workers)
            self._empty_queue(balancer)
        self._plan(self._now + reports.interval, self._report, balancer, machine)

    # --- workers that come and go

    def _plan_resizes(self) -> None:
        every = self._fleet.resized_every
        if every:
            for machine in range(self._fleet.machines):
                self._plan(self._dice.random() * 2 * every, self._resize, machine)

    def _resize(self, machine: int) -> None:
        """Change between the two numbers of workers. Busy workers finish first."""
        one, fleet = self._machines[machine], self._fleet
        if self._now > self._end:
            return
        new = fleet.resized_to if one.workers == fleet.workers else fleet.workers
        self._idle += max(0, new - one.busy) - max(0, one.workers - one.busy)
        one.workers = new
        self._take(machine)
        self._plan(self._now + fleet.resized_every, self._resize, machine)

    # --- machines that are lost

    def _plan_loss(self) -> None:
        loss = self._fleet.loss
        if loss is None:
            return
        self._plan(loss.at, self._lose)
        for balancer in self._balancers:
            for machine in range(loss.machines):
                first = self._dice.random() * loss.inter
                after = first + loss.fall * loss.timeout + (loss.fall - 1) * loss.fast
                self.found.noticed.append(after)
                self._plan(loss.at + after, self._notice, balancer, machine)
        self.found.noticed.sort()

    def _lose(self) -> None:
        assert self._fleet.loss is not None
        for one in self._machines[: self._fleet.loss.machines]:
            one.is_lost = True
            self.found.lost += len(one.queue)
            one.queue.clear()
            self._idle -= max(0, one.workers - one.busy)

    def _notice(self, balancer: _Balancer, machine: int) -> None:
        balancer.mark_down(machine)
        self._empty_queue(balancer)

    def _retry(self, number: int, balancer: _Balancer, machine: int) -> None:
        if not balancer.is_down[machine]:
            balancer.change(machine, -1)
        self._send(number, balancer)
