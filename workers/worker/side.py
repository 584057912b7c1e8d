"""What a program sees of the worker that its code runs in (worker)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final

from prefork.workers.identity import SHUTDOWN, WorkerInfo
from prefork.workers.scoreboard import SlotField
from prefork.workers.settings import LONGEST
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.worker.accounting import Account
from prefork.workers.worker.turn import Turn


class ThisWorker(WorkerInfo, frozen=True):
    """The worker in which the calling code runs: a ``WorkerInfo`` that can do more.

    ``current_worker()`` and ``server.worker`` return this object, and the hooks that run in the worker
    receive it.
    """

    _writer: SlotWriter
    _turn: Turn

    def __repr__(self) -> str:
        return f"ThisWorker(slot={self.slot}, generation={self.generation}, pid={self.pid})"

    def extend_deadline(self, seconds: float) -> None:
        """Give the request in hand more time than ``request_timeout`` (worker, any thread).

        seconds: how much more. The seconds of several calls add up. Without a request in hand, or
        without ``request_timeout``, the call has no effect. A worker with threads is killed for its
        oldest request, so the oldest request gets the time. Raises ValueError for less than 0 and
        for more than 7 days.
        """
        if not 0 <= seconds <= LONGEST:
            raise ValueError(f"cannot extend a deadline by {seconds!r}: 0 to {LONGEST:.0f} seconds")
        words = self._writer.words
        request = words[SlotField.REQUEST_NS]
        if not request:
            return
        same = words[SlotField.EXTENDED_FOR_NS] == request
        sum_so_far = words[SlotField.EXTENSION_NS] if same else 0
        # The length first: the master reads it only when the other word names the request in hand.
        words[SlotField.EXTENSION_NS] = min(sum_so_far + int(seconds * 1e9), int(LONGEST * 1e9))
        words[SlotField.EXTENDED_FOR_NS] = request
        # Datagrams share one REQUEST_NS for a round: without this the next ones would get the time,
        # too.
        self._turn.end_round()


def current_worker() -> ThisWorker | None:
    """Return the worker in which the calling code runs; None in the master and outside of a pool.

    A handler calls this function from any place, also where it has no server object at hand. The
    result has the attributes ``slot``, ``generation`` and ``pid``, and the method
    ``extend_deadline()``. In a process that a worker has forked, the result is that worker.
    """
    return _sides[-1].info if _sides else None


def is_stopping() -> bool:
    """Return whether the worker in which the calling code runs was asked to leave.

    A long handler can then finish early. False in the master and outside of a pool. True in a process
    that a worker has forked, because such a process ends after its request.
    """
    return bool(_sides) and _sides[-1].stopping


def current_account() -> Account | None:
    """Return what keeps the books of the worker that the calling code runs in, None outside of a pool."""
    return _sides[-1].account if _sides else None


def enter(side: WorkerSide) -> None:
    """Note that this process is a worker from now on (worker, before code of the program runs)."""
    _sides.append(side)


class WorkerSide:
    """The worker as its server objects know it; ``server.worker`` and ``server.stopping`` ask here.

    is_stopping: returns whether the worker has been asked to leave. chores: the list of what the
    worker does between requests. wake: the descriptor that wakes the master. account: what keeps the
    books of the requests; None where the lanes do so alone.
    """

    def __init__(
        self,
        info: ThisWorker,
        is_stopping: Callable[[], bool],
        chores: list[Callable[[], None]],
        wake: int,
        account: Account | None = None,
    ) -> None:
        self.info = info
        self.account = account
        self._is_stopping = is_stopping
        self._chores = chores
        self._wake = wake

    @property
    def stopping(self) -> bool:
        """Whether this worker has been asked to leave."""
        return self._is_stopping()

    def add_chore(self, chore: Callable[[], None]) -> None:
        """Have the worker call this between requests."""
        self._chores.append(chore)

    def ask_shutdown(self) -> None:
        """Ask the master for a ``shutdown()`` of the pool."""
        # The write fails when the master has ended, or has a full pipe of reasons to look.
        with contextlib.suppress(OSError):
            os.write(self._wake, SHUTDOWN)


_sides: Final[list[WorkerSide]] = []
"""What this process is: the last one counts. A worker that serves a pool of its own forks others."""
