"""What the master decides, for invented pools: no clock, no process, hours in a second."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from prefork.master.lifecycle import Life, MasterOrder, advance, next_instant, obey
from prefork.workers.pool.deadlines import DUMP_TIME
from prefork.workers.pool.failures import LONGEST_PAUSE, Failures, backoff
from prefork.workers.pool.handle import LONG_END
from prefork.workers.pool.policy import SPAWN_BATCH, decide
from prefork.workers.pool.spares import Spares
from prefork.workers.pool.views import Kill, Plan, PoolView, Retirement, WorkerView
from prefork.workers.settings import Settings
from prefork.workers.states import ExitCause, ExitKind, Order, Phase, StartReason

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.once  # arithmetic: values in, values out

NOW = 1000.0
RETIRED = ExitCause(ExitKind.RETIRED)
SCALED_DOWN = ExitCause(ExitKind.SCALED_DOWN)
BOOT_TIMEOUT = ExitCause(ExitKind.BOOT_TIMEOUT)
SETTINGS = Settings(
    workers=4, max_children=8, boot_timeout=60.0, graceful_timeout=25.0, drain_delay=5.0
)


def worker(slot: int, **facts: object) -> WorkerView:
    """Invent a worker: idle, of generation 0, a minute older than now."""
    usual = {"ready": True, "idle": True, "generation": 0, "spawned_at": NOW - 60}
    return WorkerView(slot, **{**usual, **facts})  # type: ignore[arg-type]


def workers(count: int, **facts: object) -> tuple[WorkerView, ...]:
    """Invent this many workers that are alike."""
    return tuple(worker(slot, **facts) for slot in range(count))


def plan(
    phase: Phase, *pool: WorkerView, now: float = NOW, floor: int = 4, **facts: object
) -> Plan:
    """Decide for an invented pool."""
    return decide(PoolView(phase, floor, pool, **facts), SETTINGS, now)  # type: ignore[arg-type]


# --- any view whatever

INSTANTS = st.integers(0, 400).map(lambda quarters: quarters * DUMP_TIME)
"""On a grid, so that instants meet to the moment; a hundred seconds hold a boot_timeout."""


@st.composite
def views(draw: st.DrawFn) -> PoolView:
    """Invent a pool, also one that cannot come about."""
    invented = draw(
        st.lists(
            st.builds(
                WorkerView,
                slot=st.just(0),
                ready=st.booleans(),
                idle=st.booleans(),
                generation=st.integers(0, 2),
                spawned_at=INSTANTS,
                leave_by=st.none() | INSTANTS,
                dumped_at=st.none() | INSTANTS,
                killed=st.booleans(),
            ),
            max_size=SETTINGS.max_children,
        )
    )
    return PoolView(
        phase=draw(st.sampled_from(Phase)),
        floor=draw(st.integers(0, 2 * SETTINGS.max_children)),
        workers=tuple(replace(one, slot=slot) for slot, one in enumerate(invented)),
        lost=draw(st.integers(0, 5)),
        lost_after_serving=draw(st.integers(0, 5)),
        fork_at=draw(INSTANTS),
        try_at=draw(INSTANTS),
        respawns_left=draw(st.integers(0, 5)),
        probing=draw(st.booleans()),
        stop_by=draw(INSTANTS),
        dump_first=draw(st.booleans()),
        work_waiting=draw(st.booleans()),
    )


def any_view(test: Callable[[PoolView, float], None]) -> Callable[[], None]:
    """Run a test with invented pools and instants."""
    return given(views(), INSTANTS)(test)


@any_view
def test_live_workers_never_exceed_max_children(view: PoolView, now: float) -> None:
    """Whatever the view, those who live and those to be spawned are at most max_children, the dying included."""
    spawn = decide(view, SETTINGS, now).spawn

    assert spawn >= 0
    assert len(view.workers) + spawn <= SETTINGS.max_children


@any_view
def test_pool_is_not_spawned_beyond_its_target(view: PoolView, now: float) -> None:
    """Those who stay and those to be spawned are at most the target, and spawning and shrinking exclude each other."""
    decided = decide(view, SETTINGS, now)
    staying = [one for one in view.workers if one.leave_by is None and not one.killed]

    if decided.spawn and view.phase is not Phase.DRAINING:
        assert len(staying) + decided.spawn <= view.floor
    assert not (decided.spawn and decided.retire)


@any_view
def test_nobody_is_dumped_or_killed_before_its_deadline(view: PoolView, now: float) -> None:
    """Outside STOPPING_NOW a worker loses nothing before its leave_by, or its boot_timeout when it is not ready."""
    decided = decide(view, SETTINGS, now)
    touched = {*decided.dump, *(kill.slot for kill in decided.kill)}

    if view.phase is not Phase.STOPPING_NOW:
        for one in (one for one in view.workers if one.slot in touched):
            booting = math.inf if one.ready else one.spawned_at + SETTINGS.boot_timeout
            assert now >= (booting if one.leave_by is None else one.leave_by)


@any_view
def test_every_kill_has_its_dump_first(view: PoolView, now: float) -> None:
    """A worker is killed DUMP_TIME after its stack dump, unless the pool stops now and without dumps."""
    decided = decide(view, SETTINGS, now)

    if view.phase is not Phase.STOPPING_NOW or view.dump_first:
        for kill in decided.kill:
            dumped_at = view.workers[kill.slot].dumped_at
            assert dumped_at is not None
            assert now >= dumped_at + DUMP_TIME


@any_view
def test_each_worker_gets_one_order_at_most(view: PoolView, now: float) -> None:
    """Nobody is dumped and killed in one plan, retired twice, or bothered after its kill."""
    decided = decide(view, SETTINGS, now)
    killed = {one.slot for one in view.workers if one.killed}
    retiring = {one.slot for one in view.workers if one.leave_by is not None}
    to_kill = [kill.slot for kill in decided.kill]
    to_retire = [retirement.slot for retirement in decided.retire]

    assert len({*to_kill, *decided.dump}) == len(to_kill) + len(decided.dump)
    assert len(set(to_retire)) == len(to_retire)
    assert not killed & {*to_kill, *decided.dump, *to_retire}
    assert not retiring & set(to_retire)


@any_view
def test_wake_lies_in_the_future(view: PoolView, now: float) -> None:
    """A plan's wake is never now, in the past or infinite: the master would spin, or poll() would refuse it."""
    wake = decide(view, SETTINGS, now).wake

    assert wake is None or now < wake < math.inf


@any_view
def test_leaving_and_stopping_never_spawn(view: PoolView, now: float) -> None:
    """A pool that leaves its queue to others, or stops now, gets no new worker."""
    for phase in (Phase.LEAVING, Phase.STOPPING_NOW):
        assert decide(replace(view, phase=phase), SETTINGS, now).spawn == 0


@any_view
def test_leaving_retires_everybody(view: PoolView, now: float) -> None:
    """Draining and leaving ask everyone who was not asked before, until stop_by; draining has them serve the queue first."""
    for phase, order in ((Phase.DRAINING, Order.DRAIN), (Phase.LEAVING, Order.RETIRE)):
        decided = decide(replace(view, phase=phase), SETTINGS, now)
        staying = [one.slot for one in view.workers if one.leave_by is None and not one.killed]

        assert decided.retire == tuple(
            Retirement(slot, RETIRED, view.stop_by, order) for slot in staying
        )


@any_view
def test_only_idle_workers_are_poked(view: PoolView, now: float) -> None:
    """Workers are woken when something waits and they are idle, all of them, and never once the pool drains."""
    decided = decide(view, SETTINGS, now)
    wanted = view.work_waiting and view.phase < Phase.DRAINING

    assert decided.poke == tuple(one.slot for one in view.workers if wanted and one.idle)


@any_view
def test_same_view_same_plan(view: PoolView, now: float) -> None:
    """The policy has no memory and no clock of its own."""
    assert decide(view, SETTINGS, now) == decide(view, SETTINGS, now)


# --- spawning


def test_healthy_pool_is_left_alone() -> None:
    """A pool of the wanted size, all ready, makes nothing to do and nothing to wait for."""
    assert plan(Phase.SERVING, *workers(4)) == Plan(Spares(4))


def test_dead_worker_is_replaced_at_once() -> None:
    """One worker less is one to spawn, also while the load balancers take notice of the end."""
    assert plan(Phase.SERVING, *workers(3)).spawn == 1
    assert plan(Phase.NOT_READY, *workers(3)).spawn == 1


def test_leaving_worker_is_replaced_before_it_has_left() -> None:
    """A retiring worker does not count for the target, and a killed one neither, as long as there is room."""
    retiring = worker(3, leave_by=NOW + 9)
    killed = worker(4, killed=True)

    assert plan(Phase.SERVING, *workers(3), retiring, killed).spawn == 1
    assert plan(Phase.SERVING, *workers(8, leave_by=NOW + 9)).spawn == 0


def test_worker_that_takes_long_to_leave_unasked_is_replaced_meanwhile() -> None:
    """A worker that is away counts neither as one of the pool nor twice, and its successor is a respawn."""
    others = [worker(slot) for slot in range(3)]
    begun = worker(3, leaving_since=NOW)
    away = worker(3, leaving_since=NOW - LONG_END, is_away=True)

    assert plan(Phase.SERVING, *others, begun).starts == ()
    assert plan(Phase.SERVING, *others, begun).wake == NOW + LONG_END
    assert plan(Phase.SERVING, *others, away).starts == (StartReason.RESPAWNED,)
    assert plan(Phase.SERVING, *others, away, worker(4)).starts == ()


def test_worker_that_leaves_by_its_word_is_asked() -> None:
    """A worker that leaves unasked is woken until it is replaced: its word may be another one's stray write."""
    begun = worker(0, leaving_since=NOW)
    away = worker(1, leaving_since=NOW - LONG_END, is_away=True)

    assert plan(Phase.SERVING, begun, away, worker(2)).poke == (0,)


def test_worker_with_its_only_request_is_replaced_at_once_and_asked_when_it_is_over() -> None:
    """With max_requests = 1 the successor comes when the request begins, the order to leave when it has ended."""
    others = [worker(slot) for slot in range(3)]
    serving = worker(3, is_spent=True, idle=False, busy_since=NOW - 99)
    over = worker(3, is_spent=True)
    order = Retirement(3, ExitCause(ExitKind.MAX_REQUESTS), NOW + SETTINGS.graceful_timeout)

    begun = plan(Phase.SERVING, *others, serving)
    assert (begun.starts, begun.retire) == ((StartReason.RECYCLED,), ())
    ended = plan(Phase.SERVING, *others, over, worker(4))
    assert (ended.starts, ended.retire) == ((), (order,))
    many = [worker(slot, is_spent=True, idle=False, busy_since=NOW) for slot in range(6)]
    assert plan(Phase.SERVING, *many).spawn == 2, "never more than max_children"
    stopping = plan(Phase.LEAVING, *others, serving, stop_by=NOW + 5)
    assert [one.slot for one in stopping.retire] == [0, 1, 2, 3]


def test_first_start_goes_in_batches() -> None:
    """One tick forks SPAWN_BATCH workers at most, so that the master stays awake to signals."""
    big = Settings(workers=100, max_children=100)

    assert decide(PoolView(Phase.SERVING, 100, ()), big, NOW).spawn == SPAWN_BATCH
    assert decide(PoolView(Phase.SERVING, 100, workers(96)), big, NOW).spawn == 4


def test_probing_spawns_one() -> None:
    """After a failure one worker is tried, not a batch."""
    assert plan(Phase.SERVING).spawn == 4
    assert plan(Phase.SERVING, probing=True).spawn == 1


def test_back_off_spawns_nobody_and_wakes_at_its_end() -> None:
    """Until the end of a pause no worker is spawned, and that end is when to think again."""
    for pause in ({"fork_at": NOW + 0.2}, {"try_at": NOW + 0.2}):
        waiting = plan(Phase.SERVING, **pause)

        assert (waiting.spawn, waiting.wake) == (0, NOW + 0.2)
        assert plan(Phase.SERVING, **pause, now=NOW + 0.2).spawn == 4


def test_workers_that_had_served_are_replaced_in_a_pause() -> None:
    """Failures of new workers do not delay the replacement of those that had served; a kernel that cannot fork does."""
    pause = {"try_at": NOW + 0.2, "probing": True, "lost": 3, "lost_after_serving": 2}

    assert plan(Phase.SERVING, **pause).starts == (StartReason.RESPAWNED,) * 2
    assert plan(Phase.SERVING, **pause, now=NOW + 0.2).spawn == 2
    assert plan(Phase.SERVING, **pause, fork_at=NOW + 0.1).spawn == 0
    assert plan(Phase.SERVING, worker(0), worker(1), worker(2), **pause).spawn == 1


def test_respawns_are_bounded_and_nothing_else_with_them() -> None:
    """When the replacements of this second are used up, workers for another reason are still started."""
    lost = {"lost": 3, "lost_after_serving": 3}

    assert plan(Phase.SERVING, **lost).spawn == 4
    assert plan(Phase.SERVING, **lost, respawns_left=2).starts == (
        StartReason.RESPAWNED,
        StartReason.RESPAWNED,
        StartReason.STARTED,
    )
    assert plan(Phase.SERVING, **lost, respawns_left=0).starts == (StartReason.STARTED,)


@pytest.mark.parametrize("cap", [LONGEST_PAUSE, 30.0])
def test_back_off_doubles_up_to_its_cap(cap: float) -> None:
    """Failures in a row are answered by 0.1, 0.2, 0.4 … seconds, none by none, a million by the cap."""
    assert backoff(0, cap) == 0
    assert [backoff(failures, cap) for failures in (1, 2, 3, 4)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8]
    )
    steps = [backoff(failures, cap) for failures in range(40)]
    assert steps == sorted(steps)
    assert [backoff(failures, cap) for failures in (20, 1_000_000)] == [cap, cap]


# --- shrinking


def test_surplus_costs_the_least() -> None:
    """Of too many workers those go that are not ready, then the idle, then the oldest, until graceful_timeout ends."""
    pool = (
        worker(0, idle=False, spawned_at=NOW - 99),
        worker(1, idle=False, spawned_at=NOW - 50),
        worker(2, spawned_at=NOW - 10),
        worker(3, spawned_at=NOW - 20),
        worker(4, ready=False, idle=False, spawned_at=NOW - 1),
    )

    def gone(floor: int) -> list[int]:
        return [retirement.slot for retirement in plan(Phase.SERVING, *pool, floor=floor).retire]

    assert gone(5) == []
    assert gone(4) == [4]
    assert gone(3) == [4, 3]
    assert gone(2) == [4, 3, 2]
    assert gone(1) == [4, 3, 2, 0]
    assert plan(Phase.SERVING, *pool, floor=4).retire == (Retirement(4, SCALED_DOWN, NOW + 25),)


def test_older_generations_go_first() -> None:
    """Among idle workers the older generation goes before the newer one, whenever it was spawned."""
    old, new = worker(0, generation=1), worker(1, generation=2, spawned_at=NOW - 900)

    assert [gone.slot for gone in plan(Phase.SERVING, new, old, floor=1).retire] == [0]


def test_leaving_workers_are_no_surplus() -> None:
    """Who leaves already is not counted when the pool shrinks."""
    assert plan(Phase.SERVING, *workers(4), worker(4, leave_by=NOW + 9)).retire == ()


# --- stopping


def test_nobody_leaves_during_the_drain_delay() -> None:
    """A pool that will stop is kept as it is until it drains."""
    assert plan(Phase.NOT_READY, *workers(4), stop_by=NOW + 30) == Plan(Spares(4))


def test_drain_begins_with_retirements() -> None:
    """The first plan of a draining pool retires every worker until stop_by, and kills none."""
    decided = plan(Phase.DRAINING, *workers(2), stop_by=NOW + 25)

    assert decided.retire == tuple(
        Retirement(slot, RETIRED, NOW + 25, Order.DRAIN) for slot in (0, 1)
    )
    assert (decided.dump, decided.kill) == ((), ())


def test_retiring_worker_is_dumped_then_killed() -> None:
    """At its deadline a worker's stacks are dumped, DUMP_TIME later it is killed for what it was asked for."""
    asked = worker(0, leave_by=NOW)
    dumped = replace(asked, dumped_at=NOW)
    stopping = {"stop_by": NOW}

    assert plan(Phase.DRAINING, asked, now=NOW - 1, **stopping) == Plan(Spares(4), wake=NOW)
    assert plan(Phase.DRAINING, asked, **stopping).dump == (0,)
    assert plan(Phase.DRAINING, asked, **stopping).kill == ()
    waiting = plan(Phase.DRAINING, dumped, now=NOW + 0.1, **stopping)
    assert waiting == Plan(Spares(4), wake=NOW + DUMP_TIME)
    assert plan(Phase.DRAINING, dumped, now=NOW + DUMP_TIME, **stopping).kill == (Kill(0, None),)


def test_boot_timeout_dumps_then_kills() -> None:
    """A worker not ready after boot_timeout is dumped, and killed DUMP_TIME later, for boot_timeout."""
    booting = worker(0, ready=False, idle=False, spawned_at=NOW)
    end = NOW + SETTINGS.boot_timeout
    dumped = replace(booting, dumped_at=end)

    assert plan(Phase.SERVING, booting, floor=1) == Plan(Spares(1), wake=end)
    assert plan(Phase.SERVING, booting, floor=1, now=end).dump == (0,)
    waiting = plan(Phase.SERVING, dumped, floor=1, now=end + 0.1)
    assert (waiting.dump, waiting.kill, waiting.wake) == ((), (), end + DUMP_TIME)
    assert plan(Phase.SERVING, dumped, floor=1, now=end + DUMP_TIME).kill == (
        Kill(0, BOOT_TIMEOUT),
    )


def test_ready_at_the_last_moment_is_spared() -> None:
    """A worker that becomes ready between its dump and its kill lives."""
    late = worker(0, spawned_at=NOW - 99, dumped_at=NOW - 1)

    assert plan(Phase.SERVING, late, floor=1) == Plan(Spares(1))


def test_dump_at_boot_is_not_the_dump_at_the_end() -> None:
    """A worker dumped while it booted is dumped again before it is killed for not leaving, and the master wakes for it."""
    late = worker(0, spawned_at=NOW - 99, dumped_at=NOW - 30, leave_by=NOW)

    assert plan(Phase.LEAVING, late, now=NOW - 1, stop_by=NOW).wake == NOW
    assert plan(Phase.LEAVING, late, stop_by=NOW).kill == ()
    assert plan(Phase.LEAVING, late, stop_by=NOW).dump == (0,)


def test_killed_worker_is_waited_for() -> None:
    """Who was killed is neither killed again nor a reason to wake: its end is an event."""
    assert plan(Phase.STOPPING_NOW, worker(0, killed=True, dumped_at=NOW)) == Plan(Spares(4))


def test_stopping_now_kills_all() -> None:
    """A second TERM kills at once, the booting, the busy and the retiring alike."""
    pool = (worker(0), worker(1, ready=False), worker(2, idle=False), worker(3, leave_by=NOW + 9))

    assert [kill.slot for kill in plan(Phase.STOPPING_NOW, *pool).kill] == [0, 1, 2, 3]
    assert plan(Phase.STOPPING_NOW, *pool).dump == ()


def test_stopping_now_with_dumps_takes_the_dumps_first() -> None:
    """QUIT has all stacks dumped and kills DUMP_TIME later."""
    first = plan(Phase.STOPPING_NOW, *workers(2), dump_first=True)
    later = plan(
        Phase.STOPPING_NOW, *workers(2, dumped_at=NOW), dump_first=True, now=NOW + DUMP_TIME
    )

    assert (first.dump, first.kill) == ((0, 1), ())
    assert (later.dump, later.kill) == ((), (Kill(0, RETIRED), Kill(1, RETIRED)))


def test_queue_of_a_dead_pool_is_drained() -> None:
    """If the last worker dies while clients are queued, one more is spawned, until stop_by and no longer."""
    stopping = {"stop_by": NOW + 1, "floor": 4}

    assert plan(Phase.DRAINING, work_waiting=True, **stopping).spawn == 1
    assert plan(Phase.DRAINING, work_waiting=False, **stopping).spawn == 0
    assert (
        plan(Phase.DRAINING, worker(0, leave_by=NOW + 1), work_waiting=True, **stopping).spawn == 0
    )
    assert plan(Phase.DRAINING, work_waiting=True, now=NOW + 1, **stopping).spawn == 0


# --- hours of a virtual pool

LOOK_INTERVAL = 0.4
"""The master's longest wait, whatever a plan says."""


@dataclass
class VirtualWorker:
    """A process that does what the dice say: boots or not, obeys or not, dies or not."""

    view: WorkerView
    ready_at: float
    dies_at: float
    stubborn: bool


@dataclass
class VirtualPool:
    """Carries out plans as the real pool does, in a time of its own."""

    dice: random.Random
    settings: Settings = SETTINGS
    now: float = 0.0
    life: Life = field(default_factory=Life)
    floor: int = 4
    failures: Failures = field(default_factory=Failures)
    troubled: bool = True
    live: dict[int, VirtualWorker] = field(default_factory=dict)
    kills: int = 0
    spawned: int = 0

    def tick(self) -> Plan:
        """Bury, look, decide, check, act."""
        self._bury()
        self._boot()
        self.life = advance(self.life, self.now)
        view = PoolView(
            self.life.phase,
            self.floor,
            tuple(one.view for one in self.live.values()),
            fork_at=self.failures.fork_at,
            try_at=self.failures.try_at,
            probing=self.failures.probing,
            stop_by=self.life.stop_by,
            dump_first=self.life.dump_first,
            work_waiting=self.dice.random() < 0.2,
        )
        decided = decide(view, self.settings, self.now)
        assert len(self.live) + decided.spawn <= self.settings.max_children
        self._check_kills(decided)
        self._apply(decided)
        return decided

    def pass_time(self, decided: Plan) -> None:
        """Sleep as the master would: until the plan's wake, an event, or LOOK_INTERVAL."""
        events = [min(one.dies_at, one.ready_at) for one in self.live.values()]
        instants = (decided.wake, next_instant(self.life), *events)
        ends = [end for end in instants if end is not None and end > self.now]
        self.now = min([self.now + LOOK_INTERVAL, *ends])

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        while self.now < end:
            self.pass_time(self.tick())

    def stop(self) -> None:
        """Receive TERM."""
        self.life = obey(self.life, MasterOrder.TERM, self.settings, self.now)

    def _bury(self) -> None:
        for slot, one in list(self.live.items()):
            if one.dies_at <= self.now:
                del self.live[slot]
                if not one.view.ready and one.view.leave_by is None:
                    forked_at = one.view.spawned_at
                    self.failures.boot_failed("", self.now, forked_at=forked_at, own_fault=True)

    def _boot(self) -> None:
        for one in self.live.values():
            if one.ready_at <= self.now:
                one.view = replace(one.view, ready=True, idle=self.dice.random() < 0.5)
                one.ready_at = math.inf
                self.failures.became_ready()

    def _check_kills(self, decided: Plan) -> None:
        for kill in decided.kill:
            view = self.live[kill.slot].view
            booted_by = view.spawned_at + self.settings.boot_timeout
            if self.life.phase is not Phase.STOPPING_NOW:
                assert self.now >= (booted_by if view.leave_by is None else view.leave_by)

    def _apply(self, decided: Plan) -> None:
        for kill in decided.kill:
            one = self.live[kill.slot]
            one.view, one.dies_at = replace(one.view, killed=True), self.now + 0.001
            self.kills += 1
        for slot in decided.dump:
            self.live[slot].view = replace(self.live[slot].view, dumped_at=self.now)
        for retirement in decided.retire:
            one = self.live[retirement.slot]
            one.view = replace(one.view, leave_by=retirement.leave_by)
            if not one.stubborn:
                one.dies_at = min(one.dies_at, self.now + self.dice.expovariate(1))
        for _ in range(decided.spawn):
            if self.troubled and self.dice.random() < 0.05:
                self.failures.fork_failed(self.now)
                break
            self._spawn()
        else:
            if decided.spawn:
                self.failures.forked()

    def _spawn(self) -> None:
        slot = next(slot for slot in range(self.settings.max_children) if slot not in self.live)
        dice, bad = self.dice, self.troubled
        self.live[slot] = VirtualWorker(
            WorkerView(slot, ready=False, idle=False, generation=0, spawned_at=self.now),
            ready_at=math.inf if bad and dice.random() < 0.05 else self.now + dice.uniform(0, 2),
            dies_at=self.now + dice.expovariate(1 / 60) if bad else math.inf,
            stubborn=bad and dice.random() < 0.1,
        )
        self.spawned += 1


@pytest.mark.parametrize("seed", range(5))
def test_hours_of_deaths_keep_every_bound(seed: int) -> None:
    """Through two hours of deaths, failed boots, failed forks and resizing no bound breaks, and the pool comes back."""
    pool = VirtualPool(random.Random(seed))
    for _ in range(120):
        pool.floor = pool.dice.randint(1, pool.settings.max_children)
        pool.run(60)
    assert pool.spawned > 100
    assert pool.kills > 0

    pool.troubled, pool.floor = False, 4
    for one in pool.live.values():  # what has gone wrong so far ends
        one.dies_at = pool.now
    pool.run(2 * LONGEST_PAUSE + 2)  # a boot takes up to two seconds here
    assert [one.view.ready for one in pool.live.values()] == [True] * 4


@pytest.mark.parametrize("seed", range(5))
def test_stop_ends_in_time_whoever_resists(seed: int) -> None:
    """A stopped pool is empty at most one look after drain_delay, graceful_timeout and the dump, although nobody obeys."""
    pool = VirtualPool(random.Random(seed))
    pool.run(600)
    for one in pool.live.values():
        one.stubborn, one.dies_at = True, math.inf
    pool.stop()
    pool.run(pool.settings.drain_delay)
    assert pool.live
    stop_by = pool.life.stop_by
    assert stop_by - pool.now >= pool.settings.graceful_timeout - LOOK_INTERVAL
    while pool.live:
        assert pool.now <= stop_by + DUMP_TIME + 2 * LOOK_INTERVAL
        pool.pass_time(pool.tick())
    assert pool.kills > 0


@pytest.mark.parametrize("seed", range(20))
def test_stop_ends_in_time_whatever_is_ordered_meanwhile(seed: int) -> None:
    """No order during a stop, of any kind and number, keeps a pool alive for longer than the first promised."""
    pool = VirtualPool(random.Random(seed))
    pool.run(60)
    for one in pool.live.values():
        one.stubborn, one.dies_at = True, math.inf
    pool.stop()
    stop_by = pool.life.stop_by
    orders = [order for order in MasterOrder if order is not MasterOrder.AGAIN]
    while pool.live:
        assert pool.now <= stop_by + DUMP_TIME + 2 * LOOK_INTERVAL
        pool.pass_time(pool.tick())
        if pool.dice.random() < 0.3:
            pool.life = obey(pool.life, pool.dice.choice(orders), pool.settings, pool.now)


def test_wake_knows_what_the_plan_has_begun() -> None:
    """A plan that dumps wakes DUMP_TIME later, one that spawns for the boot_timeout, one that retires for the deadline."""
    dumps = plan(Phase.STOPPING_NOW, *workers(2), dump_first=True)
    spawns = plan(Phase.SERVING)
    retires = plan(Phase.LEAVING, *workers(1), stop_by=NOW + 0.1)

    assert [dumps.wake, spawns.wake, retires.wake] == [NOW + DUMP_TIME, NOW + 60, NOW + 0.1]
