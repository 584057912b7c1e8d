"""Deadlines (pure): who is late with its boot, its request or its leaving, and what is done about it.

A worker that is late has its stacks dumped, and is killed a moment later. There are no heartbeats
that work could starve. A busy worker says since when it is busy. An idle worker is left in peace until
a client waits. The master wakes it then, and a worker that does not read this wake-up is not idle: it
is stuck (workers/pool/wakeups.py measures the time).
"""

from __future__ import annotations

from collections.abc import Iterator

from prefork.workers.pool.handle import LONG_END
from prefork.workers.pool.views import Kill, PoolView, WorkerView
from prefork.workers.settings import Settings
from prefork.workers.states import ExitCause, ExitKind, Phase

DUMP_TIME = 0.25
"""Seconds between asking for a stack dump and the kill; some ms do, unless the worker has to be asked twice."""

INSIST_TIME = 0.15
"""Seconds after which a worker that has not answered is asked once more, in a way that needs no bytecode."""

STOPPED_TIME = 2.0
"""Seconds after which an idle worker that was stopped by a signal and does not read a wake-up is stuck."""

STUCK_TIME = 10.0
"""The same for a worker that hangs for another reason, where there is no ``request_timeout``.

Between two requests a worker may wait for something that is slow for a while, as in a request. An example is
a handler of the access log whose reader is being restarted.
"""

_NEVER = float("inf")


def escalations(
    view: PoolView, settings: Settings, now: float
) -> tuple[tuple[int, ...], tuple[Kill, ...]]:
    """Return the slots whose stacks are to be dumped now, and the workers to be killed."""
    phase = view.phase
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
            kill.append(Kill(worker.slot, _kill_cause(worker, phase, settings)))
    return tuple(dump), tuple(kill)


def slow_requests(view: PoolView, settings: Settings, now: float) -> tuple[int, ...]:
    """Return the slots whose request is slow and was not reported yet."""
    if settings.slow_request is None:
        return ()
    return tuple(
        worker.slot
        for worker in view.workers
        if worker.busy_since is not None
        and not worker.slow_noted
        and not worker.killed
        and now >= worker.busy_since + settings.slow_request
    )


def instants(worker: WorkerView, phase: Phase, settings: Settings) -> Iterator[float]:
    """Yield the instants at which there is something to decide about a worker, past ones too."""
    patience = _patience_ends(worker, phase, settings)
    dumped_at = _dumped_at(worker, patience)
    yield patience if dumped_at is None else dumped_at + DUMP_TIME
    if worker.leaving_since is not None:
        yield worker.leaving_since + LONG_END
    if settings.slow_request is not None and worker.busy_since is not None:
        yield worker.busy_since + settings.slow_request


def _kill_cause(worker: WorkerView, phase: Phase, settings: Settings) -> ExitCause | None:
    if phase is Phase.STOPPING_NOW:
        return None if worker.leave_by is not None else ExitCause(ExitKind.RETIRED)
    late_for = ExitKind.REQUEST_TIMEOUT if worker.ready else ExitKind.BOOT_TIMEOUT
    causes = (
        (_request_ends(worker, settings), ExitCause(late_for)),
        (_reads(worker, settings), ExitCause(ExitKind.STUCK)),
        (_leaves(worker, settings), _cause_of_leaving(worker)),
    )
    return min(causes, key=lambda one: one[0])[1]


def _cause_of_leaving(worker: WorkerView) -> ExitCause | None:
    return None if worker.leave_by is not None else ExitCause(ExitKind.EXITED)


def _patience_ends(worker: WorkerView, phase: Phase, settings: Settings) -> float:
    """Return the instant from which a worker is first dumped, then killed."""
    if phase is Phase.STOPPING_NOW:
        return -_NEVER
    return min(_leaves(worker, settings), _request_ends(worker, settings), _reads(worker, settings))


def _leaves(worker: WorkerView, settings: Settings) -> float:
    """Return the deadline of its leaving: the one that it was given, or one from when it left by itself."""
    if worker.leave_by is not None:
        return worker.leave_by
    if worker.leaving_since is not None:
        return worker.leaving_since + settings.graceful_timeout
    return _NEVER


def _request_ends(worker: WorkerView, settings: Settings) -> float:
    """Return the deadline of what a worker has in hand: its boot, or its request."""
    if not worker.ready:
        # One that was asked to leave while it booted has until then: it may be about to.
        booting = worker.leave_by is None
        return worker.spawned_at + settings.boot_timeout if booting else _NEVER
    if worker.busy_since is None or settings.request_timeout is None:
        return _NEVER
    return worker.busy_since + settings.request_timeout + worker.extension


def _reads(worker: WorkerView, settings: Settings) -> float:
    """Return the deadline for an idle worker to read the master's wake-up."""
    if worker.unread_since is None:
        return _NEVER
    if worker.stopped:
        return worker.unread_since + STOPPED_TIME
    return worker.unread_since + max(STOPPED_TIME, settings.request_timeout or STUCK_TIME)


def _dumped_at(worker: WorkerView, patience: float) -> float | None:
    """Return when it was dumped for what it is late for now; a dump while it booted was for that."""
    dumped_at = worker.dumped_at
    return dumped_at if dumped_at is not None and dumped_at >= patience else None
