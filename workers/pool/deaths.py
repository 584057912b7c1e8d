"""Deaths of workers: from the collected process to the log line, the totals and the hook (master).

A death is handled in three steps. First all workers that have ended are collected and taken off the
table, with the last words that they left. Then each is judged: the cause comes from what the master
wanted and from the wait status, never from shared memory (states.cause_of_exit). Then it is buried:
the scoreboard, the log, the back-off of new workers and the hook ``worker_died()`` learn of it.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

import msgspec

from prefork.workers import log, reports
from prefork.workers.pool.descriptors import Descriptors
from prefork.workers.pool.failures import PROVEN, Failures, is_crash
from prefork.workers.pool.handle import Handle
from prefork.workers.pool.oom import OomAttribution
from prefork.workers.pool.table import Table
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.states import ExitCause, ExitKind, ExitStatus, cause_of_exit
from prefork.workers.system import System


class Death(msgspec.Struct, frozen=True):
    """A worker that has been collected and is off the table.

    last_words: what the worker left in its report, not yet escaped: the traceback of a failed boot.
    """

    handle: Handle
    status: ExitStatus
    last_words: str


class Deaths:
    """Collects the workers of one pool that have ended, and makes each death known.

    oom: says whether the kernel has killed for lack of memory. call_hook: calls a hook of the first
    server, and does not raise.
    """

    def __init__(
        self,
        table: Table,
        descriptors: Descriptors,
        failures: Failures,
        oom: OomAttribution,
        *,
        call_hook: Callable[..., object],
        system: System,
    ) -> None:
        self.oom_killed = 0
        """Workers that the kernel has killed for lack of memory since the last plan."""
        self._table = table
        self._descriptors = descriptors
        self._board: Scoreboard = descriptors.board
        self._failures = failures
        self._oom = oom
        self._call_hook = call_hook
        self._system = system

    def reap(self, now: float) -> None:
        """Collect the workers that have ended, and no other process. now: the master's clock."""
        ended = self._descriptors.ended()
        if not ended:
            return
        # All of them before the first hook runs: a hook may call this again.
        deaths = [death for one in self._table.with_pidfds(ended) if (death := self._collect(one))]
        for death in deaths:
            self._bury(death, self._judge(death, now), now)

    def _collect(self, handle: Handle) -> Death | None:
        status = self._system.collect(handle.child)
        if status is None:
            return None
        # At once: now that the process is gone, a reader finds its totals nowhere else.
        self._board.carry_over(handle.slot, status.usage)
        last_words = reports.read(handle.pipes.report)
        self._descriptors.forget(handle.child)
        self._system.release(handle.child)
        self._descriptors.close_pipes(handle.slot)
        self._table.remove(handle.slot)
        return Death(handle, status, last_words)

    def _judge(self, death: Death, now: float) -> ExitCause:
        handle, status = death.handle, death.status
        handle.note_ready(self._board, now)  # it may have become ready since the last tick
        killed_by_others = status.signal == signal.SIGKILL and handle.killed_for is None
        return cause_of_exit(
            status,
            asked=handle.asked_for,
            killed_for=handle.killed_for,
            was_ready=handle.is_ready,
            out_of_memory=killed_by_others and self._oom.explains(now),
        )

    def _bury(self, death: Death, cause: ExitCause, now: float) -> None:
        handle = death.handle
        expected = handle.asked_for is not None
        report = "" if handle.is_ready else reports.shown(death.last_words)
        has_served = handle.has_served(self._board)
        facts = self._last_facts(death, now)
        self._board.vacate_slot(handle.slot, cause.kind, time.monotonic_ns(), cause.status)
        level = _level_of(cause, handle)
        repeats = bool(report) and self._failures.was_reported(report, now)
        if repeats and self._failures.is_row:
            level = logging.DEBUG
        elif repeats:
            facts["traceback"] = "as before"
        shown = "" if "traceback" in facts else report
        log.event(level, str(handle), "exited", cause=cause, report=shown, **facts)
        if not expected:
            self._note_failure(handle, cause, report, now, has_served=has_served)
        self._call_hook("worker_died", handle.info, cause)

    def _last_facts(self, death: Death, now: float) -> dict[str, object]:
        """Return what the log says about a worker's life; before its slot is cleared."""
        handle, usage = death.handle, death.status.usage
        facts: dict[str, object] = {"age": max(0.0, now - handle.spawned_at)}
        if request_ns := self._board.word(handle.slot, SlotField.REQUEST_NS):
            facts["request_age"] = max(0.0, (time.monotonic_ns() - request_ns) / 1e9)
        facts["cpu"] = (usage.user_ns + usage.system_ns) / 1e9
        facts["peak_memory"] = f"{usage.peak_bytes / 2**20:.0f}M"
        return facts

    def _note_failure(
        self, handle: Handle, cause: ExitCause, report: str, now: float, *, has_served: bool
    ) -> None:
        """Judge what this death says about the next worker: that it would die in the same way, or nothing.

        That a worker has served is its own word. A worker that lies about it is replaced at once, within the
        bound that ``Failures.respawns_left()`` sets for all.
        """
        words, forked_at = report or f"{handle} exited: {cause}", handle.spawned_at
        if handle.ready_at is None:
            own_fault = cause.kind is ExitKind.BOOT_ERROR
            self._failures.boot_failed(words, now, forked_at=forked_at, own_fault=own_fault)
        elif cause.kind is ExitKind.OOM_KILLED:
            self.oom_killed += 1
            self._failures.died_early(words, now, forked_at=forked_at)
        elif is_crash(cause) and not has_served and now - handle.ready_at < PROVEN:
            self._failures.died_early(words, now, forked_at=forked_at)
        else:
            self._table.lost_after_serving += 1


def _level_of(cause: ExitCause, handle: Handle) -> int:
    """Return the level at which a death is logged.

    A worker that ends with status 0 without having been asked is no error: TERM from outside ends it
    so. But ``sys.exit()`` in the application's code does the same, which is worth a warning.
    """
    if cause == handle.asked_for:
        return logging.INFO
    return logging.WARNING if cause == ExitCause(ExitKind.EXITED, 0) else logging.ERROR
