"""The master's record of one worker: what it is, what it has in hand, how far its retirement has come."""

from __future__ import annotations

import contextlib
import os

import msgspec

from prefork.workers.identity import WAKE, WorkerInfo, WorkerPipes
from prefork.workers.pool.views import WorkerView
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.states import ExitCause, ExitKind, WorkerState, kind_at
from prefork.workers.system import Child

LONGEST_EXTENSION = 7 * 86_400.0
"""Seconds by which a handler may extend its deadline: the word is the worker's own."""

_RECYCLE_REASONS = (ExitKind.MAX_REQUESTS, ExitKind.MAX_MEMORY)


class Handle(msgspec.Struct):
    """One live worker. Instants are seconds on the master's clock; escalation is state, not waiting."""

    info: WorkerInfo
    child: Child
    pipes: WorkerPipes
    spawned_at: float
    spread: float = 0.0
    """0 to 1: its share of ``jitter``."""
    ready_at: float | None = None
    proven: bool = False
    """Whether it has outlived its first moments."""
    request_ns: int = 0
    """The request in hand as the scoreboard names it: since when; 0 for none."""
    busy_since: float | None = None
    seen_at: float = 0.0
    """When the master last looked."""
    slow_noted: bool = False
    asked_for: ExitCause | None = None
    leave_by: float | None = None
    killed_for: ExitCause | None = None
    dumped_at: float | None = None
    dump_due: float | None = None
    """When to show the stack dump that was asked for; None when the last one is in the log."""
    insist_at: float | None = None
    """When to insist on it; None when that was done, or was not needed."""
    doomed: bool = False
    """Whether it is to be killed after that dump."""

    def __str__(self) -> str:
        return str(self.info)

    def wake(self) -> None:
        """Have the worker look around."""
        with contextlib.suppress(BlockingIOError):  # it has enough rings to come
            os.write(self.pipes.wake_write, WAKE)

    def view(self, board: Scoreboard, now: float, now_ns: int) -> WorkerView:
        """Return what the policy is told of it. now_ns: the monotonic clock."""
        slot = self.info.slot
        self._note_request(board.word(slot, SlotField.REQUEST_NS), now, now_ns)
        recycle_request = kind_at(board.word(slot, SlotField.RECYCLE_REQUEST) - 1)
        return WorkerView(
            slot=slot,
            ready=self.ready_at is not None,
            idle=board.state(slot) is WorkerState.IDLE,
            generation=self.info.generation,
            spawned_at=self.spawned_at,
            leave_by=self.leave_by,
            busy_since=self.busy_since,
            extension=self._extension(board),
            recycle_request=recycle_request if recycle_request in _RECYCLE_REASONS else None,
            spread=self.spread,
            dumped_at=self.dumped_at,
            slow_noted=self.slow_noted,
            killed=self.killed_for is not None,
        )

    def _note_request(self, request_ns: int, now: float, now_ns: int) -> None:
        if request_ns != self.request_ns:
            self.request_ns, self.slow_noted, self.busy_since = request_ns, False, None
            if request_ns:
                # It began after the last look: time in which the master did not run does not
                # count, nor what a worker may claim.
                age = min(max(0.0, (now_ns - request_ns) / 1e9), now - self.seen_at)
                self.busy_since = now - age
        self.seen_at = now

    def _extension(self, board: Scoreboard) -> float:
        slot = self.info.slot
        if not self.request_ns or board.word(slot, SlotField.EXTENDED_FOR_NS) != self.request_ns:
            return 0.0
        return min(max(0.0, board.word(slot, SlotField.EXTENSION_NS) / 1e9), LONGEST_EXTENSION)
