"""A pool in virtual time: invented arrivals against the policy that the master runs, hours in seconds.

Only ``decide()`` is the real thing. Around it stands a model of the rest: workers that boot, take
the oldest request from one accept queue and leave, and a master that ticks when the real one does.
All instants and lengths are in virtual seconds; the pool begins at 0, with its floor ready.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from prefork.master.master import LOOK_INTERVAL
from prefork.master.pool_size import LOOK_PAUSE
from prefork.workers.pool.handle import Asked
from prefork.workers.pool.policy import decide
from prefork.workers.pool.spares import Spares
from prefork.workers.pool.views import Plan, PoolView, WorkerView
from prefork.workers.states import Phase

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prefork.workers.settings import Settings

    Length = Callable[[random.Random], float]
    Choice = Callable[[int], int]
    """Which of the workers the request with that number goes to."""

BURST_END = 0.1
"""Seconds that a burst takes to arrive."""


# --- arrivals


class Arrival(NamedTuple):
    """One request: when it comes, and how long a worker has to do with it.

    deaf: for this long from its beginning it cannot be interrupted.
    """

    at: float
    service: float
    deaf: float = 0.0


def constant(seconds: float) -> Length:
    """Take the same time for each request."""
    return lambda _: seconds


def exponential(mean: float) -> Length:
    """Take memoryless times, those that theory computes with."""
    return lambda dice: dice.expovariate(1 / mean)


def lognormal(mean: float, sigma: float) -> Length:
    """Take times with a heavy tail; sigma is that of the logarithm, 1 to 2 for what servers see."""
    mu = math.log(mean) - sigma * sigma / 2
    return lambda dice: dice.lognormvariate(mu, sigma)


def pareto(mean: float, alpha: float, most: float) -> Length:
    """Take times with a tail so heavy that for ``alpha`` below 2 only the bound gives it a variance."""
    least = mean * (alpha - 1) / alpha
    return lambda dice: min(most, least * dice.paretovariate(alpha))


def poisson(
    dice: random.Random, rate: float, service: Length, end: float, begin: float = 0.0
) -> list[Arrival]:
    """Let clients come independently of each other, ``rate`` of them per second."""
    gaps = itertools.repeat(rate)
    instants = itertools.accumulate((dice.expovariate(one) for one in gaps), initial=begin)
    within = itertools.takewhile(lambda at: at < end, itertools.islice(instants, 1, None))
    return [Arrival(at, service(dice)) for at in within]


def burst(dice: random.Random, count: int, service: Length, at: float) -> list[Arrival]:
    """Let this many clients come within BURST_END."""
    instants = sorted(at + dice.random() * BURST_END for _ in range(count))
    return [Arrival(instant, service(dice)) for instant in instants]


def square_wave(
    dice: random.Random, rates: tuple[float, float], service: Length, half: float, end: float
) -> list[Arrival]:
    """Change between two rates, each for ``half`` seconds, the first one first."""
    waves = zip(itertools.cycle(rates), itertools.count(0.0, half), strict=False)
    within = itertools.takewhile(lambda wave: wave[1] < end, waves)
    return [
        arrival
        for rate, begin in within
        for arrival in poisson(dice, rate, service, min(begin + half, end), begin)
    ]


# --- what is seen


class Served(NamedTuple):
    """A request that has been served."""

    arrived: float
    began: float
    ended: float

    @property
    def wait(self) -> float:
        """Seconds in the accept queue."""
        return self.began - self.arrived

    @property
    def sojourn(self) -> float:
        """Seconds from its arrival to its end."""
        return self.ended - self.arrived


class Sample(NamedTuple):
    """The pool from one instant on, until the next sample.

    live: all workers, those that boot or leave included. ready: those that can take requests.
    wanted: the size that the policy has decided on.
    """

    at: float
    queue: int
    live: int
    ready: int
    busy: int
    wanted: int

    @property
    def idle(self) -> int:
        """Workers that could take a request."""
        return self.ready - self.busy

    @property
    def booting_or_leaving(self) -> int:
        """Workers that live and are not ready (any more)."""
        return self.live - self.ready


@dataclass
class Record:
    """What a simulation has seen, in the order of time."""

    samples: list[Sample] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    """In the order of their ends."""
    cancelled: list[Served] = field(default_factory=list)
    """Those that were asked to end, and have ended for that."""
    signals: list[tuple[float, float]] = field(default_factory=list)
    """The asking: the beginning of the request that was meant, and when."""
    spawns: list[float] = field(default_factory=list)
    retirements: list[float] = field(default_factory=list)
    """When workers were asked to leave."""
    ceilings: list[float] = field(default_factory=list)
    """When the pool came to want more workers than it may have: a line of the log each."""
    ticks: int = 0

    def resizes(self, begin: float = 0.0, end: float = math.inf) -> list[tuple[float, int]]:
        """Return when the size wanted changed, and by how much."""
        pairs = itertools.pairwise(self.samples)
        changes = ((new.at, new.wanted - old.wanted) for old, new in pairs)
        return [(at, change) for at, change in changes if change and begin <= at < end]

    def mean(self, what: Callable[[Sample], float], begin: float, end: float) -> float:
        """Return the mean over time of what the samples say, between two instants."""
        total = 0.0
        for one, following in itertools.pairwise([*self.samples, Sample(end, 0, 0, 0, 0, 0)]):
            total += what(one) * max(0.0, min(end, following.at) - max(begin, one.at))
        return total / (end - begin)

    def first(self, fact: Callable[[Sample], bool], begin: float = 0.0) -> float:
        """Return the first instant from ``begin`` on at which something is so; infinity for never."""
        return next((max(begin, one.at) for one in self.since(begin) if fact(one)), math.inf)

    def since(self, begin: float) -> Iterator[Sample]:
        """Yield the sample that holds at an instant, and all that follow."""
        index = bisect.bisect_right(self.samples, begin, key=lambda one: one.at)
        return itertools.islice(self.samples, max(0, index - 1), None)

    def at(self, instant: float) -> Sample:
        """Return the sample that holds at an instant."""
        return next(self.since(instant))


def quantile(values: Iterable[float], part: float) -> float:
    """Return the least value that at least this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


# --- a pool that follows load


@dataclass(frozen=True)
class Machine:
    """What things cost.

    boot: from a worker's fork to ready. fork: for which the master does nothing else. reaction:
    from an event to the tick it causes. leave: from the order to leave to the end of an idle worker.
    """

    boot: float = 0.010
    fork: float = 0.001
    reaction: float = 0.0005
    leave: float = 0.002


@dataclass(eq=False, slots=True)
class Worker:
    """One live worker; ``taken`` is when it took the request it has in hand."""

    slot: int
    spawned_at: float
    ready: bool = False
    taken: float | None = None
    leave_by: float | None = None
    arrival: Arrival | None = None
    asked: Asked = field(default_factory=Asked)
    has_heard: bool = False
    _facts: tuple[object, ...] = ()
    _view: WorkerView | None = None

    def view(self) -> WorkerView:
        """Return what the policy sees of it; made anew only when that has changed, ticks are many."""
        asked = self.asked
        facts = (self.ready, self.taken, self.leave_by, asked.flags, asked.times, self.has_heard)
        if self._view is None or facts != self._facts:
            self._facts, self._view = facts, self._seen()
        return self._view

    def _seen(self) -> WorkerView:
        return WorkerView(
            self.slot,
            ready=self.ready,
            idle=self.ready and self.taken is None,
            generation=0,
            spawned_at=self.spawned_at,
            leave_by=self.leave_by,
            busy_since=self.taken,
            asked=self.asked.flags,
            asked_at=self.asked.at,
            times_asked=self.asked.times,
            has_heard=self.has_heard,
        )


class Simulator:
    """Runs one pool through arrivals; what it saw is in ``record``.

    What of the real thing is missing: deaths, reloads, limits, want of memory. Which of several
    idle workers takes a request does not matter to the policy; here it is the one idle longest.
    """

    def __init__(
        self, settings: Settings, arrivals: Sequence[Arrival], machine: Machine | None = None
    ) -> None:
        self.record = Record()
        self._settings = settings
        self._machine = machine or Machine()
        self._now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = (
            itertools.count()
        )  # things of the same instant happen in the order of planning
        self._arrivals = arrivals
        self._queue: deque[Arrival] = deque()
        self._workers: dict[int, Worker] = {}
        self._idle: dict[Worker, None] = {}  # in the order in which they became so
        self._ready = self._busy = 0
        self._spares = Spares(settings.workers)
        self._tick_at = math.inf
        self._works_until = 0.0
        """Until then the master forks."""
        self._look_again_at = 0.0
        self._was_woken = False
        self._watches = False
        for slot in range(settings.workers):
            self._workers[slot] = worker = Worker(slot, 0.0)
            self._become_ready(worker)
        if arrivals:
            self._plan(arrivals[0].at, lambda: self._arrive(0))

    def run(self, end: float) -> Record:
        """Go on until an instant."""
        while self._agenda and self._agenda[0][0] <= end:
            self._now, _, happen = heapq.heappop(self._agenda)
            happen()
            self._take_sample()
        return self.record

    def _plan(self, at: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), happen))

    def _take_sample(self) -> None:
        counts = (len(self._queue), len(self._workers), self._ready, self._busy, self._spares.size)
        samples = self.record.samples
        if not samples or samples[-1][1:] != counts:
            samples.append(Sample(self._now, *counts))

    # --- clients and workers

    def _arrive(self, number: int) -> None:
        if number + 1 < len(self._arrivals):
            self._plan(self._arrivals[number + 1].at, lambda: self._arrive(number + 1))
        self._queue.append(self._arrivals[number])
        if self._idle:
            self._take(next(iter(self._idle)))
            if self._watches:
                self._wake_master()

    def _take(self, worker: Worker) -> None:
        arrival = self._queue.popleft()
        self._idle.pop(worker, None)
        self._busy += worker.taken is None
        worker.taken, worker.arrival = self._now, arrival
        worker.asked, worker.has_heard = Asked(), False
        self._plan(
            self._now + arrival.service,
            lambda: self._finish(worker, arrival) if worker.arrival is arrival else None,
        )

    def _hear(self, worker: Worker, arrival: Arrival) -> None:
        """Let the signal arrive that is to end this request, or one that has ended meanwhile."""
        if worker.arrival is arrival and worker.taken is not None:
            if self._now < worker.taken + arrival.deaf:
                return
            worker.has_heard = True
            self._finish(worker, arrival, cancelled=True)

    def _finish(self, worker: Worker, arrival: Arrival, *, cancelled: bool = False) -> None:
        began, worker.arrival = worker.taken, None
        assert began is not None
        ended = self.record.cancelled if cancelled else self.record.served
        ended.append(Served(arrival.at, began, self._now))
        if self._queue and worker.leave_by is None:
            self._take(worker)  # it never slept, so it tells the master nothing
            return
        worker.taken = None
        self._busy -= 1
        if worker.leave_by is None:
            self._idle[worker] = None
        else:
            self._leave(worker)

    def _become_ready(self, worker: Worker) -> None:
        if worker.leave_by is not None:
            self._leave(worker)
            return
        worker.ready = True
        self._ready += 1
        self._wake_master()
        if self._queue:
            self._take(worker)
        else:
            self._idle[worker] = None

    def _leave(self, worker: Worker) -> None:
        self._ready -= worker.ready
        self._idle.pop(worker, None)

        def end() -> None:
            del self._workers[worker.slot]
            self._tick_by(self._now + self._machine.reaction)

        self._plan(self._now + self._machine.leave, end)

    # --- the master

    def _wake_master(self) -> None:
        self._was_woken = True
        self._tick_by(self._now + self._machine.reaction)

    def _tick_by(self, at: float) -> None:
        at = max(at, self._works_until)
        if at < self._tick_at:
            self._tick_at = at
            self._plan(at, lambda: self._tick() if self._tick_at == at else None)

    def _tick(self) -> None:
        """Do what ``Master._wait()`` and ``Master._tick()`` do, as far as load is concerned."""
        self.record.ticks += 1
        self._tick_at = math.inf
        if self._was_woken:
            self._was_woken, self._look_again_at = False, self._now + LOOK_PAUSE
        plan = decide(self._view(), self._settings, self._now)
        self._carry_out(plan)
        pausing = self._now < self._look_again_at
        can_grow = (
            self._settings.min_spare is not None and plan.spares.size < self._settings.max_children
        )
        self._watches = can_grow and not pausing
        instants = [self._now + LOOK_INTERVAL]
        if plan.wake is not None:
            instants.append(plan.wake)
        if can_grow and pausing:
            instants.append(self._look_again_at)
        self._tick_by(min(instants))

    def _view(self) -> PoolView:
        return PoolView(
            Phase.SERVING,
            self._settings.workers,
            tuple(worker.view() for worker in self._workers.values()),
            spares=self._spares,
            work_waiting=bool(self._queue),
        )

    def _carry_out(self, plan: Plan) -> None:
        if plan.spares.at_ceiling and not self._spares.at_ceiling:
            self.record.ceilings.append(self._now)
        self._spares = plan.spares
        for retirement in plan.retire:
            worker = self._workers[retirement.slot]
            worker.leave_by = retirement.leave_by
            self.record.retirements.append(self._now)
            if worker.ready and worker.taken is None:
                self._leave(worker)
        for cancel in plan.cancel:
            self._ask_to_end(self._workers[cancel.slot], cancel.flags)
        for number in range(1, plan.spawn + 1):
            self._spawn(self._now + number * self._machine.fork)
        self._works_until = self._now + plan.spawn * self._machine.fork

    def _ask_to_end(self, worker: Worker, flags: int) -> None:
        worker.asked.note(flags, self._now)
        arrival, taken = worker.arrival, worker.taken
        assert arrival is not None
        assert taken is not None
        self.record.signals.append((taken, self._now))
        self._plan(self._now + self._machine.reaction, lambda: self._hear(worker, arrival))

    def _spawn(self, at: float) -> None:
        slot = next(slot for slot in itertools.count() if slot not in self._workers)
        self._workers[slot] = worker = Worker(slot, self._now)
        self.record.spawns.append(at)
        self._plan(at + self._machine.boot, lambda: self._become_ready(worker))


# --- pools of a fixed size, without a master


def wait_in_one_queue(arrivals: Iterable[Arrival], workers: int) -> list[float]:
    """Return how long each request waits where all workers take from one accept queue."""
    free_at = [0.0] * workers
    waits = []
    for at, service, _ in arrivals:
        begin = max(at, free_at[0])
        heapq.heapreplace(free_at, begin + service)
        waits.append(begin - at)
    return waits


def wait_in_own_queues(arrivals: Iterable[Arrival], workers: int, choose: Choice) -> list[float]:
    """Return how long each request waits where every worker has a queue of its own.

    With ``SO_REUSEPORT`` on a listener for each worker the kernel chooses by a hash of the two
    addresses, when the client comes, and knows nothing of who is busy.
    """
    free_at = [0.0] * workers
    waits = []
    for number, (at, service, _) in enumerate(arrivals):
        chosen = choose(number)
        begin = max(at, free_at[chosen])
        free_at[chosen] = begin + service
        waits.append(begin - at)
    return waits


def by_hash(dice: random.Random, workers: int) -> Choice:
    """Choose as a hash does: evenly, and blindly."""
    return lambda _: int(dice.random() * workers)


def in_turn(workers: int) -> Choice:
    """Choose the next one each time: the most even of the blind ways."""
    return lambda number: number % workers
