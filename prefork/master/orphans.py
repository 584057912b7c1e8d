"""Orphans: children of other processes that PID 1 or a subreaper has to collect (master)."""

from __future__ import annotations

from prefork.workers import system
from prefork.workers.system import System

ORPHAN_AGE = 0.5
"""Seconds for which an unknown ended child is left alone: the program may be waiting for it."""


class Orphans:
    """Collects orphans where they become children of this process; elsewhere there are none."""

    def __init__(self, system: System = system) -> None:
        self._system = system
        self._are_ours = system.is_init()
        self._since: dict[int, float] = {}

    def collect(self, own: set[int], now: float) -> None:
        """Collect each child that ended ORPHAN_AGE ago.

        own: the pids of workers, which are collected elsewhere. now: seconds on the master's clock.
        """
        if not self._are_ours:
            return
        seen = set(self._system.zombies_except(own))
        self._since = {pid: self._since.get(pid, now) for pid in seen}
        for pid, since in self._since.items():
            if now - since >= ORPHAN_AGE:
                self._system.collect_orphan(pid)
