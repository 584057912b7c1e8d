"""The master's clock, which stands still while the master does not run."""

from __future__ import annotations

import logging
import time

from prefork.workers import log

LATE = 1.0
"""Seconds by which a wait may overrun before the master takes it that it did not run (suspend, SIGSTOP)."""


class Clock:
    """Monotonic seconds without those that were lost: nobody is late for what the master did not look at.

    lost: seconds that an earlier image of the master has lost.
    """

    def __init__(self, lost: float = 0.0) -> None:
        self.lost = lost
        self._woke_at = self.now()

    def now(self) -> float:
        """Return the time; every instant of the policy is one of this clock."""
        return time.monotonic() - self.lost

    def waited(self, length: float) -> None:
        """Note the end of a wait that was to take so long; called after each, the time between them counts."""
        # From the end of the last wait: it may have been stopped within the tick, too.
        overrun = self.now() - self._woke_at - length
        if overrun > LATE:
            self.lost += overrun
            log.event(
                logging.WARNING,
                "master",
                "did not run for a while; deadlines are moved",
                seconds=overrun,
            )
        self._woke_at = self.now()
