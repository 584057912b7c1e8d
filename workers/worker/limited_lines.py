"""Lines of the log that a stranger can cause: one for each kind of event and second, with the number of others (worker)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, Final

from prefork.workers import log

INTERVAL: Final = 1.0
"""The least number of seconds between two lines of one kind."""


class LimitedLines:
    """The lines of one worker. subject: names the worker; set when the worker knows who it is."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.subject = ""
        self._clock = clock
        self._quiet_until: dict[Hashable, float] = {}
        self._others: dict[Hashable, int] = {}

    def write(self, kind: Hashable, what: str, **facts: Any) -> None:
        """Log a warning, or count an event whose kind had a line within the last INTERVAL."""
        now = self._clock()
        if now < self._quiet_until.get(kind, now):
            self._others[kind] = self._others.get(kind, 0) + 1
            return
        self._quiet_until[kind] = now + INTERVAL
        others = self._others.pop(kind, 0)
        log.event(logging.WARNING, self.subject, what, **facts, others=others)
