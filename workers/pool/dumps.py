"""Stack dumps of workers: asked for, insisted on, shown in the log (master).

A dump answers "where does this worker hang?". A worker writes it into memory that it shares with
the master (workers/reports.py), and the master logs it DUMP_TIME later. It is asked for in two
ways, because neither works for every worker.

SIGUSR1 comes first. Its handler is Python code that runs between two bytecodes of the main thread.
No frame changes meanwhile, so this dump is always safe. But a worker whose main thread is inside a
call of C that does not return - a regular expression, a query, a lock - runs no bytecode and does
not answer.

DUMP_AT_ONCE is sent INSIST_TIME later to a worker that has not answered. faulthandler answers this
signal from within the signal handler itself, whatever the interpreter is doing, also while a C call
holds the interpreter lock. It walks the frames of all threads without stopping any of them. Where a
thread runs Python code at that moment, its frames change during the walk, and one walk in a few
hundred follows a pointer that is no longer valid: the worker dies of SIGSEGV (docs/DESIGN.md,
Deadlines, has the figures).

So the master insists only where this cannot do harm:

- The worker is to be killed after the dump anyway. Losing it a moment earlier changes nothing.
- The worker has one thread, and this thread has received SIGUSR1, which the kernel shows as no
  longer pending. Python has not run the handler, so the thread is in C, and no other thread changes
  frames.

Any other worker gets no second signal, and the log says that there was no answer.
"""

from __future__ import annotations

import logging
import signal

from prefork.workers import log, reports
from prefork.workers.identity import DUMP_AT_ONCE
from prefork.workers.pool.deadlines import DUMP_TIME, INSIST_TIME
from prefork.workers.pool.handle import Handle
from prefork.workers.pool.table import Table
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.system import System


class Dumps:
    """The stack dumps that are under way in one pool. now: on the master's clock."""

    def __init__(self, table: Table, board: Scoreboard, system: System) -> None:
        self._table = table
        self._board = board
        self._system = system

    # --- asking

    def ask_all(self, now: float) -> None:
        """Ask every ready worker, except those that were asked just now."""
        for handle in self._table:
            if handle.is_ready and handle.dump.show_at is None:
                self._ask(handle, now)

    def ask_before_kill(self, handle: Handle, now: float) -> None:
        """Ask a worker that is to be killed DUMP_TIME later."""
        handle.dump.dumped_at, handle.dump.kill_follows = now, True
        # What makes the worker late may be a word that another worker has written into its slot. The
        # signal wakes a worker that is idle in truth, and the worker then says so (Common.publish).
        self._ask(handle, now)

    def ask_slow(self, handle: Handle, now: float) -> None:
        """Ask a worker whose request is slow; the request goes on."""
        handle.slow_noted = True
        self._board.count_pool(PoolField.SLOW_REQUESTS)
        self._board.count_slot(handle.slot, SlotField.SLOW)
        age = now - handle.busy_since if handle.busy_since is not None else 0.0
        log.event(logging.WARNING, str(handle), "has a slow request", request_age=age)
        self._ask(handle, now)

    def _ask(self, handle: Handle, now: float) -> None:
        # Also where a dump is under way already: that one may show the moment before the request.
        reports.clear(handle.pipes.report)
        handle.dump.insist_at, handle.dump.show_at = now + INSIST_TIME, now + DUMP_TIME
        self._system.send(handle.child, signal.SIGUSR1)

    # --- insisting

    def insist(self, now: float) -> None:
        """Ask again, by the second signal, where no answer has come and it is safe to.

        Called before the policy decides about kills: where the master is late, insisting postpones
        the kill until this answer is due.
        """
        for handle in self._table:
            if handle.dump.insist_at is not None and now >= handle.dump.insist_at:
                handle.dump.insist_at = None
                if not reports.read(handle.pipes.report):
                    self._insist(handle, now)

    def _insist(self, handle: Handle, now: float) -> None:
        """Send the second signal, unless it could kill a worker that is to live."""
        dump = handle.dump
        if dump.kill_follows:
            dump.dumped_at = now - INSIST_TIME
        elif not self._system.has_received_alone(handle.child, signal.SIGUSR1):
            return
        dump.show_at = now + DUMP_TIME - INSIST_TIME
        self._system.send(handle.child, DUMP_AT_ONCE)

    # --- showing

    @property
    def next_at(self) -> float | None:
        """The next instant at which there is a dump to insist on, or to show; None for none."""
        instants = [at for one in self._table for at in (one.dump.insist_at, one.dump.show_at)]
        return min((at for at in instants if at is not None), default=None)

    def show_due(self, now: float) -> None:
        """Log the dumps that were asked for DUMP_TIME ago."""
        for handle in self._table:
            if handle.dump.show_at is not None and now >= handle.dump.show_at:
                self.show(handle)

    def show(self, handle: Handle) -> None:
        """Log what a worker has written, if a dump is under way; also before its kill."""
        dump = handle.dump
        if dump.show_at is None:
            return
        dump.insist_at = dump.show_at = None
        dump.kill_follows = False
        state = self._board.state(handle.slot).name.lower()
        stacks = reports.shown(reports.read(handle.pipes.report))
        log.event(
            logging.WARNING, str(handle), "stacks", state=state, report=stacks or "(no answer)"
        )
