"""Which requests are asked to end, when, and what follows (pure).

The step before the kill of a worker: its request is asked to end (workers/worker/cancelling.py), for the
first of these reasons that holds, and for each further one:

- it takes longer than ``soft_timeout``;
- its worker has used more CPU time for it than ``cpu_timeout``;
- its client may have gone: once a second its worker is asked to look (``check_client``);
- an operator wants it to end (``prefork cancel``).

A worker is asked by a word and a signal. The word stays, and the signal is sent again until the worker
reports that it has raised all that was asked for, or has another request: the handler may just have been in
a part that must not be interrupted. If the request goes on nevertheless, nothing more follows from here.
``request_timeout`` is the hard end (deadlines.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from prefork.workers.cancel import FLAGS, CancelReason
from prefork.workers.pool.views import Cancel, PoolView, WorkerView
from prefork.workers.settings import Settings
from prefork.workers.states import Phase

MIN_AGE = 0.001
"""Seconds that a request is old before it is asked to end: the length of a round of datagrams (SHORTEST_NS).

The datagrams of a round share one number. After that time the round begins no other datagram.
"""

FIRST_REPEAT = 0.05
"""Seconds until the signal is sent again for the first time; then twice as long each time."""

LAST_REPEAT = 1.0
"""The most seconds between two signals for one request. Each one interrupts a system call of a C library."""

CLIENT_LOOK = 1.0
"""Seconds between two looks of a worker at the client of its request."""

_NEVER = float("inf")

_TIMEOUT, _CPU, _COMMAND, _CLIENT = (
    FLAGS[reason]
    for reason in (
        *(CancelReason.SOFT_TIMEOUT, CancelReason.CPU_TIMEOUT),
        *(CancelReason.COMMAND, CancelReason.CLIENT_GONE),
    )
)


def cancels(view: PoolView, settings: Settings, now: float) -> tuple[Cancel, ...]:
    """Return whom to ask now to end its request."""
    if view.phase is Phase.STOPPING_NOW:
        return ()
    found = (_cancel(one, settings, now) for one in view.workers if _may_be_asked(one))
    return tuple(one for one in found if one is not None)


def instants(worker: WorkerView, settings: Settings) -> Iterator[float]:
    """Yield the instants at which there is something to decide about a worker's request, past ones too."""
    if not _may_be_asked(worker):
        return
    yield from (at for flag, at in _dues(worker, settings) if not worker.asked & flag)
    yield _looks_at(worker, settings)
    yield _repeats_at(worker)


def _may_be_asked(worker: WorkerView) -> bool:
    return worker.busy_since is not None and worker.ready and not worker.killed


def _cancel(worker: WorkerView, settings: Settings, now: float) -> Cancel | None:
    new = sum(flag for flag, at in _dues(worker, settings) if now >= at and not worker.asked & flag)
    look = now >= _looks_at(worker, settings)
    if not (new or look or now >= _repeats_at(worker)):
        return None
    return Cancel(worker.slot, new, look=look)


def _dues(worker: WorkerView, settings: Settings) -> Iterator[tuple[int, float]]:
    """Yield the flag of each reason, and the instant from which the reason holds; infinity for unknown."""
    since = worker.busy_since or 0.0
    if settings.soft_timeout is not None:
        yield _TIMEOUT, since + max(MIN_AGE, settings.soft_timeout) + worker.extension
    if settings.cpu_timeout is not None and worker.cpu_used is not None:
        # One thread cannot use more. Where several compute, a later look finds it.
        left = settings.cpu_timeout - worker.cpu_used
        yield _CPU, max(since + MIN_AGE, worker.seen_at + left)
    if worker.is_unwanted:
        yield _COMMAND, since + MIN_AGE


def _looks_at(worker: WorkerView, settings: Settings) -> float:
    """Return when the worker is to look at its client next."""
    if settings.check_client == "off" or worker.busy_since is None:
        return _NEVER
    last = worker.busy_since if worker.client_looked_at is None else worker.client_looked_at
    return last + CLIENT_LOOK


def _repeats_at(worker: WorkerView) -> float:
    """Return when the signal is sent again; infinity where it need not be."""
    if worker.asked_at is None or worker.has_heard:
        return _NEVER
    pause: float = FIRST_REPEAT * 2 ** min(10, worker.times_asked - 1)
    return worker.asked_at + min(LAST_REPEAT, pause)
