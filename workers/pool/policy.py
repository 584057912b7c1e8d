"""Decide what the pool should do next (pure): view, settings and ``now`` in, a Plan out.

Nothing here reads a clock, a scoreboard or a process; the tests invent all three. How many
workers load asks for stands in spares.py, who is late in deadlines.py; here is who is started,
who is asked to leave and who is woken.
"""

from __future__ import annotations

import msgspec

from prefork.workers.pool import cancelling
from prefork.workers.pool.deadlines import DUMP_TIME, escalations, instants, slow_requests
from prefork.workers.pool.spares import Load, Spares, follow_load
from prefork.workers.pool.views import Plan, PoolView, Retirement, WorkerView
from prefork.workers.settings import Settings
from prefork.workers.states import ExitCause, ExitKind, Order, Phase, StartReason

SPAWN_BATCH = 32
"""Most forks in one tick. They take some 30 ms, after which the master looks at its signals again."""

_NEVER = float("inf")


class _Outlook(msgspec.Struct, frozen=True):
    """What has been decided on the way to a plan.

    size: workers wanted. staying: those that were not asked to leave. replacing: those of them to
    be replaced now and why, the first to go first. successors: how many workers beyond the size
    may be started for them.
    """

    view: PoolView
    settings: Settings
    now: float
    size: int
    staying: list[WorkerView]
    replacing: list[tuple[WorkerView, ExitKind]]
    successors: int


def decide(view: PoolView, settings: Settings, now: float) -> Plan:
    """Compute the next actions of the master."""
    spares = _follow_load(view, settings, now)
    outlook = _look_out(view, settings, now, spares.size)
    starts, retire = _starts(outlook), _retirements(outlook)
    dump, kill = escalations(view, settings, now)
    return Plan(
        spares=spares,
        starts=starts,
        retire=retire,
        dump=dump,
        slow=slow_requests(view, settings, now),
        cancel=cancelling.cancels(view, settings, now),
        kill=kill,
        poke=_pokes(view),
        wake=_next_instant(outlook, starts, retire, dump),
    )


def _follow_load(view: PoolView, settings: Settings, now: float) -> Spares:
    before = view.spares or Spares(view.floor)
    if not view.phase.keeps_size:
        return before
    load = load_of(view)
    return follow_load(before, load, view.floor, settings, now)


def load_of(view: PoolView) -> Load:
    """Return the load that a view shows. The master uses this, too, to read the memory only when load asks for growth."""
    staying = view.staying
    missing = 0 if view.spares is None else max(0, view.spares.size - len(staying))
    return Load(
        idle=sum(worker.ready and worker.idle for worker in staying),
        # Those that the size still lacks count, too: they will be started when fork can.
        starting=sum(not worker.ready for worker in staying) + missing,
        waiting=view.work_waiting,
        affordable=view.affordable,
        oom_killed=view.oom_killed,
    )


def _look_out(view: PoolView, settings: Settings, now: float, size: int) -> _Outlook:
    # A tenth of the pool at a time: a wave of replacements must not take its capacity.
    replacing = _outdated_workers(view, settings, now)[: _replaced_at_once(size)]
    successors = max(0, min(len(replacing), settings.max_children - size))
    return _Outlook(view, settings, now, size, view.staying, replacing, successors)


def _outdated_workers(
    view: PoolView, settings: Settings, now: float
) -> list[tuple[WorkerView, ExitKind]]:
    found = [
        (worker, kind)
        for worker in view.staying
        if worker.ready and (kind := _outdated(worker, view, settings, now)) is not None
    ]
    return sorted(found, key=lambda one: (one[0].generation, not one[0].idle, one[0].spawned_at))


def _outdated(
    worker: WorkerView, view: PoolView, settings: Settings, now: float
) -> ExitKind | None:
    if worker.generation < view.oldest_generation:
        return ExitKind.RELOADED
    if _may_ask(worker.recycle_request, settings):
        return worker.recycle_request
    if now >= _end_of_life(worker, settings):
        return ExitKind.MAX_LIFETIME
    return None


def _may_ask(recycle_request: ExitKind | None, settings: Settings) -> bool:
    """Return whether a worker can have reached this limit. Any worker can write the word."""
    match recycle_request:
        case ExitKind.MAX_REQUESTS:
            return settings.max_requests is not None
        case ExitKind.MAX_MEMORY:
            return settings.max_memory is not None
    return False


def _end_of_life(worker: WorkerView, settings: Settings) -> float:
    if settings.max_lifetime is None:
        return _NEVER
    return worker.spawned_at + settings.max_lifetime * (1 - settings.jitter * worker.spread)


def _replaced_at_once(size: int) -> int:
    return max(1, size // 10)


def _starts(outlook: _Outlook) -> tuple[StartReason, ...]:
    """Return whom to fork now, and why.

    The list of those that are wanted begins with the replacements of workers that died unexpectedly, so that
    these come first where there is room for some only.
    """
    view = outlook.view
    if outlook.now < view.fork_at:
        return ()
    wanted = _missing(outlook) if view.phase.keeps_size else _needed_to_drain(outlook)
    room = outlook.settings.max_children - len(view.workers)
    wanted = wanted[: max(0, min(room, SPAWN_BATCH, _may_be_tried(view, outlook.now)))]
    respawns = wanted.count(StartReason.RESPAWNED)
    return tuple(wanted[max(0, respawns - view.respawns_left) :])


def _may_be_tried(view: PoolView, now: float) -> int:
    """Return how many workers new failures leave to be forked (failures.py has the rules)."""
    # One that is away has taken a second or more to leave: that is pause enough.
    served = view.lost_after_serving + view.away
    if now < view.try_at:
        return served
    return max(1, served) if view.probing else SPAWN_BATCH


def _missing(outlook: _Outlook) -> list[StartReason]:
    view, size = outlook.view, outlook.size
    missing = size + outlook.successors - len(outlook.staying)
    kinds = {kind for _, kind in outlook.replacing}
    replaced = StartReason.RELOADED if ExitKind.RELOADED in kinds else StartReason.RECYCLED
    reasons = [
        *[StartReason.RESPAWNED] * (view.lost + view.away),
        *[StartReason.RECYCLED] * len(view.spent),
        *[StartReason.GREW] * (size - view.floor),
        *[StartReason.STARTED] * size,
    ]
    own = max(0, missing - outlook.successors)
    return [*reasons[:own], *[replaced] * (missing - own)]


def _needed_to_drain(outlook: _Outlook) -> list[StartReason]:
    # The last worker died, or a handshake was completed late: somebody has to serve the rest.
    view = outlook.view
    draining = view.phase is Phase.DRAINING and outlook.now < view.stop_by
    return [StartReason.RESPAWNED] if draining and view.work_waiting and not view.workers else []


def _retirements(outlook: _Outlook) -> tuple[Retirement, ...]:
    view = outlook.view
    match view.phase:
        case Phase.DRAINING:
            return _retire_all(outlook, Order.DRAIN)
        case Phase.LEAVING:
            return _retire_all(outlook, Order.RETIRE)
        case Phase.STOPPING_NOW:
            return ()
    leave_by = outlook.now + outlook.settings.graceful_timeout
    leaving = [*_finished(outlook.view), *(_replaced(outlook) or _surplus(outlook))]
    return tuple(Retirement(one.slot, ExitCause(kind), leave_by) for one, kind in leaving)


def _finished(view: PoolView) -> list[tuple[WorkerView, ExitKind]]:
    """Return those whose only request is over; graceful_timeout is no deadline of requests."""
    return [(one, ExitKind.MAX_REQUESTS) for one in view.spent if one.busy_since is None]


def _retire_all(outlook: _Outlook, order: Order) -> tuple[Retirement, ...]:
    retired, stop_by = ExitCause(ExitKind.RETIRED), outlook.view.stop_by
    return tuple(Retirement(one.slot, retired, stop_by, order) for one in outlook.view.unasked)


def _replaced(outlook: _Outlook) -> list[tuple[WorkerView, ExitKind]]:
    """Return those whose successors are ready, or those that have to make room for them first."""
    ready = sum(worker.ready for worker in outlook.staying)
    if outlook.successors:
        return outlook.replacing[: max(0, ready - outlook.size)]
    away = outlook.size - ready
    return outlook.replacing[: max(0, _replaced_at_once(outlook.size) - away)]


def _surplus(outlook: _Outlook) -> list[tuple[WorkerView, ExitKind]]:
    too_many = len(outlook.staying) - outlook.size - outlook.successors
    if too_many <= 0:
        return []
    # Those that cost least to lose: not yet ready, then idle, then the oldest.
    expendable = sorted(
        outlook.staying, key=lambda one: (one.ready, not one.idle, one.generation, one.spawned_at)
    )
    if outlook.settings.min_spare is not None:
        # Load went down: that is no reason to ask a worker that has a request.
        expendable = [one for one in expendable if one.idle or not one.ready]
    return [(one, ExitKind.SCALED_DOWN) for one in expendable[:too_many]]


def _pokes(view: PoolView) -> tuple[int, ...]:
    """Answer to a worker that was woken for a client and then stopped or died before it took it.

    A worker that leaves unasked by its word is woken, too. The word may be a stray write of another
    worker, and a worker that serves writes it again when it is woken.

    All of them: which one the kernel would wake next is unknown, and those that find nothing
    sleep on. Under load this meets a moment like any other, at most once a tick.
    """
    waiting = view.work_waiting and view.phase.keeps_size
    return tuple(
        worker.slot
        for worker in view.workers
        if (waiting and worker.idle) or (worker.leaving_since is not None and not worker.is_away)
    )


def _next_instant(
    outlook: _Outlook,
    starts: tuple[StartReason, ...],
    retire: tuple[Retirement, ...],
    dump: tuple[int, ...],
) -> float | None:
    """Return the next instant at which there is something to decide, also about what this plan begins."""
    view, settings, now = outlook.view, outlook.settings, outlook.now
    coming = [view.fork_at, view.try_at, *(retirement.leave_by for retirement in retire)]
    if dump:
        coming.append(now + DUMP_TIME)
    if starts:
        coming.append(now + settings.boot_timeout)
    for worker in view.workers:
        if not worker.killed:
            coming.extend(instants(worker, view.phase, settings))
            coming.extend(cancelling.instants(worker, settings))
            coming.append(_end_of_life(worker, settings))
    return min((instant for instant in coming if now < instant < _NEVER), default=None)
