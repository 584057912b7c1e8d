"""The master's record of one worker: what it is, and how far its retirement has come."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from prefork.workers.bootstrap import WorkerInfo
from prefork.workers.policy import WorkerView
from prefork.workers.states import ExitCause, WorkerState
from prefork.workers.system import Child


@dataclass(slots=True)
class Handle:
    """One live worker. Instants are seconds on the master's clock; escalation is state, not waiting."""

    info: WorkerInfo
    child: Child
    bell: int
    """An eventfd that wakes the worker whatever it has done to its signals."""
    spawned_at: float
    ready_at: float | None = None
    asked_for: ExitCause | None = None
    leave_by: float | None = None
    killed_for: ExitCause | None = None
    dumped_at: float | None = None
    dump_shown: bool = field(default=True)
    """Whether the last stack dump that was asked for is in the log."""

    def __str__(self) -> str:
        return str(self.info)

    def ring(self) -> None:
        """Have the worker look around."""
        with contextlib.suppress(BlockingIOError):  # it has enough rings to come
            os.eventfd_write(self.bell, 1)

    def view(self, state: WorkerState) -> WorkerView:
        """Return what the policy is told of it."""
        return WorkerView(
            slot=self.info.slot,
            ready=self.ready_at is not None,
            idle=state is WorkerState.IDLE,
            generation=self.info.generation,
            spawned_at=self.spawned_at,
            leave_by=self.leave_by,
            dumped_at=self.dumped_at,
            killed=self.killed_for is not None,
        )
