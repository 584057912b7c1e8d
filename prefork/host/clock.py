"""The master's clock, which stands still while the master does not run (master).

A master may be stopped by SIGSTOP or a debugger, or the whole machine may be suspended. In that time
no worker is collected and no answer of a worker is seen. If that time counted, every deadline that
passed in it would be enforced at once afterwards. So the clock leaves it out.
"""

from __future__ import annotations

import logging
import time

from prefork.workers import log

LATE = 1.0
"""Seconds that a tick and its wait may take beyond what was planned. More means that the master did not run."""


class Clock:
    """Seconds of the monotonic clock, without those in which the master did not run.

    lost: how many seconds an earlier image of the master has left out, so that its instants stay valid.
    """

    def __init__(self, lost: float = 0.0) -> None:
        self.lost = lost
        self._woke_at = self.now()

    def now(self) -> float:
        """Return the time in seconds. Every instant in the master is one of this clock."""
        return time.monotonic() - self.lost

    def waited(self, length: float) -> None:
        """Note the end of a wait. length: how long the wait should have taken, in seconds.

        The master calls this after every wait.
        """
        # The time counts from the end of the previous wait, because the master may also have been
        # stopped in the tick between the two.
        overrun = self.now() - self._woke_at - length
        if overrun > LATE:
            self.lost += overrun
            log.event(
                logging.WARNING,
                "master",
                "did not run for a while, deadlines moved",
                seconds=overrun,
            )
        self._woke_at = self.now()
