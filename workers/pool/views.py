"""What the policy sees and what it decides (pure): values in, values out.

Every instant is in seconds on the master's clock, which stands still while the master does not
run, so that no worker is punished for a time in which nobody looked.
"""

from __future__ import annotations

import msgspec

from prefork.workers.pool.failures import most_respawns
from prefork.workers.pool.spares import Spares
from prefork.workers.states import ExitCause, ExitKind, Order, Phase, StartReason


class WorkerView(msgspec.Struct, frozen=True):
    """One live worker as the policy sees it. Instants are None where the thing has not happened."""

    slot: int
    ready: bool
    idle: bool
    generation: int
    spawned_at: float
    leave_by: float | None = None
    """The deadline of its retirement; None as long as it was not asked to leave."""
    busy_since: float | None = None
    """When its request (the oldest) began; None when it has none."""
    extension: float = 0.0
    """Seconds by which its handler has extended that request's deadline."""
    recycle_request: ExitKind | None = None
    """The limit that it says it has reached: ``max_requests`` or ``max_memory``."""
    spread: float = 0.0
    """0 to 1: its share of ``jitter``, so that not all reach their limits at once."""
    unread_since: float | None = None
    """Since when it has left a wake-up unread although it was idle and could have run."""
    stopped: bool = False
    """Whether it was stopped by a signal (SIGSTOP) when it was last looked at for that."""
    dumped_at: float | None = None
    slow_noted: bool = False
    """Whether its request was reported as slow already."""
    cpu_used: float | None = None
    """CPU seconds that its request has used at least; None where that is not measured."""
    seen_at: float = 0.0
    """When it was looked at, for ``cpu_used``."""
    is_unwanted: bool = False
    """Whether an operator wants its request to end."""
    asked: int = 0
    """The flags of the reasons for which its request was asked to end (workers/cancel.py)."""
    asked_at: float | None = None
    """When it was last asked."""
    times_asked: int = 0
    """How many signals it was sent for them since the last new reason."""
    has_heard: bool = False
    """Whether it reports that it has raised an exception for each of them."""
    client_looked_at: float | None = None
    """When it was last to look at the client of its request."""
    killed: bool = False
    leaving_since: float | None = None
    """When the master saw that it leaves without having been asked."""
    is_spent: bool = False
    """Whether it has taken its only request (``max_requests = 1``) and will take no other."""
    is_away: bool = False
    """Whether it has been leaving for long enough to be replaced before its process has ended."""


class PoolView(msgspec.Struct, frozen=True):
    """The pool as the policy sees it.

    floor: the number of workers to keep, whatever the load. spares: what was decided of the load
    before. affordable: how many workers more the memory can bear, None when nobody looked.
    oom_killed: workers that the kernel has killed because of low memory since the last decision.
    oldest_generation: the policy replaces workers of an older one; 0 for none. lost: workers that died unexpectedly and have not
    been replaced yet. lost_after_serving: those of them that had served, so that their deaths say
    nothing against the next worker. fork_at, try_at, probing, respawns_left: what ``Failures`` says of
    new workers. stop_by: end of the graceful stop. dump_first: stopping now, but
    with stack dumps. work_waiting: the kernel's queue is not empty.
    """

    phase: Phase
    floor: int
    workers: tuple[WorkerView, ...]
    spares: Spares | None = None
    affordable: int | None = None
    oom_killed: int = 0
    oldest_generation: int = 0
    lost: int = 0
    lost_after_serving: int = 0
    fork_at: float = 0.0
    try_at: float = 0.0
    probing: bool = False
    respawns_left: int = most_respawns(0)
    stop_by: float = 0.0
    dump_first: bool = False
    work_waiting: bool = False

    @property
    def staying(self) -> list[WorkerView]:
        """The workers that have not been asked to leave and take requests, or will."""
        return [one for one in self.unasked if not one.is_spent]

    @property
    def unasked(self) -> list[WorkerView]:
        """The workers that have not been asked to leave, those included that take no more requests."""
        return [
            one
            for one in self.workers
            if one.leave_by is None and not one.killed and not one.is_away
        ]

    @property
    def spent(self) -> list[WorkerView]:
        """The workers that have taken their only request and have not been asked to leave."""
        return [one for one in self.unasked if one.is_spent]

    @property
    def away(self) -> int:
        """How many workers are replaced before their processes have ended."""
        return sum(one.is_away for one in self.workers)


class Retirement(msgspec.Struct, frozen=True):
    """Ask this worker to leave, for this cause, until this instant.

    order: RETIRE to leave after the request in hand, DRAIN to serve what is queued first.
    """

    slot: int
    cause: ExitCause
    leave_by: float
    order: Order = Order.RETIRE


class Kill(msgspec.Struct, frozen=True):
    """Kill this worker. cause: None keeps the cause of its retirement."""

    slot: int
    cause: ExitCause | None


class Cancel(msgspec.Struct, frozen=True):
    """Ask this worker to end its request.

    flags: of the reasons that are new; 0 to send the signal once more. look: whether the worker is to look at
    its client.
    """

    slot: int
    flags: int
    look: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What to do now, and the instant at which to think again at the latest (None: only on events)."""

    spares: Spares
    starts: tuple[StartReason, ...] = ()
    """One for each worker to spawn: why."""
    retire: tuple[Retirement, ...] = ()
    dump: tuple[int, ...] = ()
    slow: tuple[int, ...] = ()
    """Workers whose request is slow: their stacks are wanted, and they go on."""
    cancel: tuple[Cancel, ...] = ()
    kill: tuple[Kill, ...] = ()
    poke: tuple[int, ...] = ()
    """Idle workers to wake: something waits, so the kernel's own wake-up may have been lost."""
    wake: float | None = None

    @property
    def spawn(self) -> int:
        """How many workers to spawn."""
        return len(self.starts)
