"""The children of others that fall to PID 1 or a subreaper (master)."""

from __future__ import annotations

from prefork.workers import system

ORPHAN_AGE = 0.5
"""Seconds an unknown ended child is left to whoever in this program may be waiting for it."""


class Orphans:
    """Collects them where they are this process's to collect; elsewhere it does nothing."""

    def __init__(self) -> None:
        self._are_ours = system.is_init()
        self._since: dict[int, float] = {}

    def collect(self, own: set[int], now: float) -> None:
        """Collect what has ended some time ago, but for the workers: the program's own children come first."""
        if not self._are_ours:
            return
        seen = set(system.zombies_except(own))
        self._since = {pid: self._since.get(pid, now) for pid in seen}
        for pid, since in self._since.items():
            if now - since >= ORPHAN_AGE:
                system.collect_orphan(pid)
