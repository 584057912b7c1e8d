"""Looks once a second at what the machine or container allows (master).

A look reads the affinity and a few small files of control groups, 0.4 ms of CPU time. The memory of a
worker is read only if the answer can matter: while there are more CPUs than workers, and after the
memory limit has become lower.
"""

from __future__ import annotations

from collections.abc import Callable

from prefork.master.box import Following, MemoryUse, allowed, follow
from prefork.workers.machine import LEAST_PRIVATE, Memory, Usable, usable_cpus
from prefork.workers.pool.table import Table
from prefork.workers.units import shown_size

LOOK_EVERY = 1.0
"""Seconds between two looks."""


class BoxWatch:
    """Keeps what the policy remembers, and asks the machine.

    size: the number of workers for the limits that hold now, which were just counted. memory, cpus:
    what answers; tests pass others.
    """

    def __init__(
        self,
        size: int,
        table: Table,
        *,
        memory: Memory | None = None,
        cpus: Callable[[], Usable] | None = None,
    ) -> None:
        self.following = Following(size)
        self.cpus = 0
        """What the last look has found of CPUs; 0 before the first one."""
        self.reason = ""
        """What the number of workers comes from, for the log."""
        self._table = table
        self._memory = memory or Memory()
        self._cpus = cpus or usable_cpus
        self._first_limit = self._memory.limit()
        self._look_at = 0.0

    def look(self, now: float) -> bool:
        """Look if it is time to, and return whether the pool follows other limits than before."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_EVERY
        before, usable = self.following, self._cpus()
        self.cpus = usable.count
        limit = self._memory.limit()
        is_tight = limit is not None and (self._first_limit is None or limit < self._first_limit)
        memory = None
        if limit is not None and (is_tight or usable.count > before.size):
            memory = self._use_of_memory(limit)
        look = allowed(before.size, usable.count, memory, is_tight=is_tight)
        self.following = follow(before, look)
        self.reason = usable.reason
        if limit is not None and look < usable.count:
            self.reason += f", memory limit {shown_size(limit)}"
        return self.following.size != before.size

    def _use_of_memory(self, limit: int) -> MemoryUse | None:
        used = self._memory.used(limit)
        ready = self._table.ready_pids
        private = self._memory.private(ready[0]) if ready else None
        if used is None or private is None:
            return None
        return MemoryUse(limit, used, max(LEAST_PRIVATE, private), len(self._table))
