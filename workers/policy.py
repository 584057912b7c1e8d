"""Decide what the pool should do next (pure): view, settings and ``now`` in, a Plan out.

Nothing here reads a clock, a scoreboard or a process; the tests invent all three. ``now`` and
every instant are seconds on the master's clock, which stands still while the master does not
run, so that no worker is punished for a time in which nobody looked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from prefork.workers.settings import Settings
from prefork.workers.states import ExitCause, ExitKind, Phase

SPAWN_BATCH = 32
"""Most forks in one tick: Apache's top rate, some 30 ms here, so that the master stays awake to signals."""

DUMP_TIME = 0.25
"""Seconds between a stack dump and the kill: faulthandler needs about 1 ms, a loaded machine more."""

FIRST_BACKOFF = 0.1
BOOT_BACKOFF_CAP = 30.0
FORK_BACKOFF_CAP = 1.0
"""A fork fails for want of memory or processes, which return without notice: look once a second."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One live worker as the policy sees it. Instants are None where the thing has not happened."""

    slot: int
    ready: bool
    idle: bool
    generation: int
    spawned_at: float
    leave_by: float | None = None
    """The deadline of its retirement; None as long as it was not asked to leave."""
    dumped_at: float | None = None
    killed: bool = False


@dataclass(frozen=True, slots=True)
class PoolView:
    """The pool as the policy sees it.

    retry_at: no fork before this instant (back-off). probing: the last spawn failed, so try one
    at a time. drain_at: end of the ``drain_delay``. stop_by: end of the graceful stop. dump_first:
    stopping now, but with stack dumps. work_waiting: the kernel's queue is not empty.
    """

    phase: Phase
    target: int
    workers: tuple[WorkerView, ...]
    retry_at: float = 0.0
    probing: bool = False
    drain_at: float = 0.0
    stop_by: float = 0.0
    dump_first: bool = False
    work_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Retirement:
    """Ask this worker to leave, for this cause, until this instant."""

    slot: int
    cause: ExitCause
    leave_by: float


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill this worker. cause: None keeps the cause of its retirement."""

    slot: int
    cause: ExitCause | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and the instant at which to think again at the latest (None: only on events)."""

    phase: Phase
    spawn: int = 0
    retire: tuple[Retirement, ...] = ()
    dump: tuple[int, ...] = ()
    kill: tuple[Kill, ...] = ()
    poke: tuple[int, ...] = ()
    """Idle workers to wake: something waits, so the kernel's own wake-up may have been lost."""
    wake: float | None = None


def decide(view: PoolView, settings: Settings, now: float) -> Plan:
    """Compute the next actions of the master."""
    phase = _next_phase(view, now)
    retire = _retirements(view, phase, settings, now)
    dump, kill = _escalations(view, phase, settings, now)
    spawn = _spawns(view, phase, settings, now)
    plan = Plan(phase, spawn, retire, dump, kill, _pokes(view, phase))
    return dataclasses.replace(plan, wake=_next_instant(view, plan, settings, now))


def backoff(failures: int, cap: float) -> float:
    """Seconds to wait after so many failures in a row: 0.1, 0.2, 0.4 … up to the cap."""
    return min(cap, FIRST_BACKOFF * 2 ** min(failures - 1, 16)) if failures > 0 else 0.0


def _next_phase(view: PoolView, now: float) -> Phase:
    if view.phase is Phase.NOT_READY and now >= view.drain_at:
        return Phase.DRAINING
    return view.phase


def _staying(workers: Iterable[WorkerView]) -> list[WorkerView]:
    return [worker for worker in workers if worker.leave_by is None and not worker.killed]


def _spawns(view: PoolView, phase: Phase, settings: Settings, now: float) -> int:
    if now < view.retry_at:
        return 0
    wanted = _missing(view, phase, now)
    room = settings.max_children - len(view.workers)
    return max(0, min(wanted, room, 1 if view.probing else SPAWN_BATCH))


def _missing(view: PoolView, phase: Phase, now: float) -> int:
    if phase in (Phase.SERVING, Phase.NOT_READY):
        return view.target - len(_staying(view.workers))
    # The last worker died, or a handshake was completed late: somebody has to serve the rest.
    if phase is Phase.DRAINING and not view.workers and view.work_waiting and now < view.stop_by:
        return 1
    return 0


def _retirements(
    view: PoolView, phase: Phase, settings: Settings, now: float
) -> tuple[Retirement, ...]:
    staying = _staying(view.workers)
    if phase in (Phase.DRAINING, Phase.LEAVING):
        return tuple(
            Retirement(worker.slot, ExitCause(ExitKind.RETIRED), view.stop_by) for worker in staying
        )
    if phase in (Phase.SERVING, Phase.NOT_READY) and len(staying) > view.target:
        # Those that cost least to lose: not yet ready, then idle, then the oldest.
        expendable = sorted(
            staying, key=lambda w: (w.ready, not w.idle, w.generation, w.spawned_at)
        )
        surplus = expendable[: len(staying) - view.target]
        leave_by = now + settings.graceful_timeout
        return tuple(
            Retirement(worker.slot, ExitCause(ExitKind.SCALED_DOWN), leave_by) for worker in surplus
        )
    return ()


def _escalations(
    view: PoolView, phase: Phase, settings: Settings, now: float
) -> tuple[tuple[int, ...], tuple[Kill, ...]]:
    dump: list[int] = []
    kill: list[Kill] = []
    for worker in view.workers:
        if worker.killed:
            continue
        if phase is Phase.STOPPING_NOW and not view.dump_first:
            kill.append(Kill(worker.slot, ExitCause(ExitKind.RETIRED)))
            continue
        patience = _patience_ends(worker, phase, settings)
        dumped_at = _dumped_at(worker, patience)
        if now < patience:
            continue
        if dumped_at is None:
            dump.append(worker.slot)
        elif now >= dumped_at + DUMP_TIME:
            kill.append(Kill(worker.slot, _kill_cause(worker, phase)))
    return tuple(dump), tuple(kill)


def _pokes(view: PoolView, phase: Phase) -> tuple[int, ...]:
    """Answer to a worker that was woken for a client and then stopped or died before it took it.

    All of them: which one the kernel would wake next is unknown, and those that find nothing
    sleep on. Under load this meets a moment like any other, at most once a tick.
    """
    if not view.work_waiting or phase >= Phase.DRAINING:
        return ()
    return tuple(worker.slot for worker in view.workers if worker.idle)


def _kill_cause(worker: WorkerView, phase: Phase) -> ExitCause | None:
    if worker.leave_by is not None:
        return None
    return ExitCause(ExitKind.RETIRED if phase is Phase.STOPPING_NOW else ExitKind.BOOT_TIMEOUT)


def _patience_ends(worker: WorkerView, phase: Phase, settings: Settings) -> float:
    """Return the instant from which a worker is first dumped, then killed."""
    if phase is Phase.STOPPING_NOW:
        return float("-inf")
    if worker.leave_by is not None:
        return worker.leave_by
    return float("inf") if worker.ready else worker.spawned_at + settings.boot_timeout


def _dumped_at(worker: WorkerView, patience: float) -> float | None:
    """Return when it was dumped for what it is late for now; a dump while it booted was for that."""
    dumped_at = worker.dumped_at
    return dumped_at if dumped_at is not None and dumped_at >= patience else None


def _next_instant(view: PoolView, plan: Plan, settings: Settings, now: float) -> float | None:
    """Return the first instant at which there is something to decide, what the plan begins included."""
    instants = [view.retry_at, *(retirement.leave_by for retirement in plan.retire)]
    if plan.phase is Phase.NOT_READY:
        instants.append(view.drain_at)
    if plan.dump:
        instants.append(now + DUMP_TIME)
    if plan.spawn:
        instants.append(now + settings.boot_timeout)
    for worker in view.workers:
        if not worker.killed:
            patience = _patience_ends(worker, plan.phase, settings)
            dumped_at = _dumped_at(worker, patience)
            instants.append(patience if dumped_at is None else dumped_at + DUMP_TIME)
    return min((instant for instant in instants if now < instant < float("inf")), default=None)
