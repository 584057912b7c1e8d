"""Leaving workers that have a request in hand are told to end idle connections (master).

The worker decides whether there is one (workers/worker/hang_up.py). A worker that leaves within the
first moment is not disturbed, since a signal interrupts system calls of C libraries. The others get
the signal again and again: the connection may become idle later.
"""

from __future__ import annotations

from prefork.workers.identity import HANG_UP_NUMBER
from prefork.workers.pool.handle import Handle
from prefork.workers.pool.table import Table
from prefork.workers.system import System

FIRST_HANG_UP = 0.3
"""Seconds between asking a worker to leave and the first signal."""

HANG_UP_INTERVAL = 1.0
"""Seconds between two signals."""


class HangUps:
    """The signals for the workers of one pool. now: on the master's clock."""

    def __init__(self, table: Table, system: System) -> None:
        self._table = table
        self._system = system

    def look(self, now: float) -> None:
        """Signal the workers for which it is time (in every tick)."""
        for handle in self._table:
            if handle.asked_for is not None and handle.request_ns and handle.killed_for is None:
                self._step(handle, now)

    def _step(self, handle: Handle, now: float) -> None:
        if handle.hang_up_at is None:
            handle.hang_up_at = now + FIRST_HANG_UP
        elif now >= handle.hang_up_at:
            handle.hang_up_at = now + HANG_UP_INTERVAL
            self._system.send(handle.child, HANG_UP_NUMBER)
