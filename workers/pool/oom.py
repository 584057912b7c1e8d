"""Which dead workers the kernel has killed because of low memory (master).

The kernel kills with SIGKILL, and a wait status does not say who has sent the signal. But the
kernel counts its own kills. So when a worker dies of a SIGKILL that the master has not sent, the
master looks whether that count has risen since the last look, and lets each counted kill explain
one such death.

The count is of the whole group, and may have risen for a process that is no worker. Such a kill
explains no death of a worker that comes more than CREDIT_TIME later. Within that time it is a wrong
verdict, which cannot be told from a right one.
"""

from __future__ import annotations

from prefork.workers.machine import Memory

CREDIT_TIME = 2.0
"""Seconds for which a counted kill may explain the death of a worker."""


class OomAttribution:
    """Attributes the kernel's kills to dead workers. Made before the first worker is forked."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._seen = memory.oom_kills()
        self._credit = 0
        self._credit_until = 0.0

    def explains(self, now: float) -> bool:
        """Return whether a counted kill explains the death of a worker, and use that kill up.

        Called for each worker that died of a SIGKILL which the master has not sent. now: seconds on
        the master's clock.
        """
        kills = self._memory.oom_kills()
        fresh, self._seen = kills - self._seen, kills
        if fresh > 0:
            self._credit, self._credit_until = fresh, now + CREDIT_TIME
        if self._credit <= 0 or now > self._credit_until:
            return False
        self._credit -= 1
        return True
