"""Wake-ups: idle workers are woken for clients that wait, and those that do not react are found (master).

A worker that says that it is idle waits for its listeners and for the pipe by which the master wakes it
(workers/worker/loop.py). It reads the pipe as soon as it runs. So a byte that stays in the pipe shows
that the worker is not where it says: it was stopped, or it hangs between two requests. This holds
whether or not the worker finds a client. A listener that is readable and brings nothing (a datagram with
a wrong checksum, a client that is gone again) makes no good worker suspicious.

What the master measures is how long a worker has left a wake-up unread, and the policy decides what is
too long (``deadlines.py``). The machine may simply be overloaded: then the worker is not to blame. So only
time in which the worker could have run counts. At each look the kernel says what the worker's main
thread does, and that decides how the time since the previous look counts:

- It sleeps, or a signal has stopped it: all of this time counts. A thread that waited for the pipe would
  have become runnable.
- It runs, or waits for a processor: as much time counts as the CPU time that the thread has used. A worker
  that gets no processor is not blamed, and one that computes without end is.
- It waits for a disk, or a debugger holds it, or the kernel does not tell: none of this time counts.

The time begins anew when the worker is seen with a request, or has served one since the previous look:
it reads the pipe after its requests.
"""

from __future__ import annotations

from prefork.workers.pool.handle import Handle, Unread
from prefork.workers.pool.table import Table
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.states import MainThread, WorkerState
from prefork.workers.system import System

FIRST_LOOK = 0.25
"""Seconds after which the kernel is asked about a worker. Nearly all read their wake-up within a millisecond."""


class Wakeups:
    """The wake-ups of the workers of one pool. now: on the master's clock."""

    def __init__(self, table: Table, board: Scoreboard, system: System) -> None:
        self._table = table
        self._board = board
        self._system = system

    def wake(self, handle: Handle, now: float) -> None:
        """Have an idle worker look for clients."""
        if handle.unread is None:  # or there is a byte in the pipe already
            handle.pipes.wake()
            handle.unread = Unread(now, now, self._progress(handle))

    def look(self, now: float) -> None:
        """Find which workers have read their wake-up, and judge the time of those that have not."""
        for handle in self._table:
            if handle.unread is not None:
                handle.unread = self._unread(handle, handle.unread, now)

    def _unread(self, handle: Handle, unread: Unread, now: float) -> Unread | None:
        if not handle.pipes.is_unread:
            return None
        progress = self._progress(handle)
        is_idle = self._board.state(handle.slot) is WorkerState.IDLE
        if not is_idle or progress != unread.progress:
            return Unread(now, now, progress)
        # While a dump before a kill is under way, the verdict stands: a deadline that moved once more would
        # have the stacks asked for again, over those that are being written.
        if now - unread.since >= FIRST_LOOK and not handle.dump.kill_follows:
            judge(unread, self._system.main_thread(handle.child), now)
        return unread

    def _progress(self, handle: Handle) -> tuple[int, int]:
        slot = handle.slot
        return self._board.requests(slot), self._board.word(slot, SlotField.REQUEST_NS)


def judge(unread: Unread, thread: MainThread | None, now: float) -> None:
    """Decide how much of the time since the previous look counts against the worker (pure)."""
    passed = now - unread.looked_at
    unread.since += passed - _counted(unread, thread, passed)
    unread.looked_at = now
    unread.cpu = None if thread is None else thread.cpu
    unread.stopped = thread is not None and thread.state == "T"


def _counted(unread: Unread, thread: MainThread | None, passed: float) -> float:
    match thread:
        case MainThread(state="S" | "T"):
            return passed
        case MainThread(state="R", cpu=cpu) if unread.cpu is not None:
            return min(passed, max(0.0, cpu - unread.cpu))
    return 0.0
