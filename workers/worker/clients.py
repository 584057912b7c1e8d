"""Clients that went away or kept a handler waiting: a line of the log, not a traceback each (worker).

Whoever can reach the port can make a thousand of them a second. So there is at most one line per
second and worker, which counts the others; at level DEBUG each has its traceback.
"""

from __future__ import annotations

import logging
import os
import socketserver
import traceback
from collections.abc import Callable
from time import monotonic

from prefork.workers import log

INTERVAL = 1.0
"""Seconds between two lines of one worker at least."""

_NOT_THE_PLACE = {os.path.dirname(socketserver.__file__), os.path.dirname(__file__)}
"""Folders whose files say nothing of where a handler was: every read ends in socket.py."""


def is_clients_doing(error: BaseException) -> bool:
    """Tell whether the exception is what a client makes a handler raise by leaving or by silence.

    Also those that another peer of the handler causes: the line names the place. Except a refused
    connection, which is nobody's who was connected.
    """
    gone = isinstance(error, (TimeoutError, ConnectionError))
    return gone and not isinstance(error, ConnectionRefusedError)


class LostClients:
    """Logs what clients did; for one process, since each worker has its own."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._quiet_until = 0.0
        self._others = 0

    def note(self, subject: str, error: BaseException, client: object) -> None:
        """Log that a request ended so; at level DEBUG with the traceback, too.

        The line's ``others`` are those since the last line, which had none of their own.
        """
        what = "client timed out" if isinstance(error, TimeoutError) else "client went away"
        if log.logger.isEnabledFor(logging.DEBUG):
            log.failure(logging.DEBUG, subject, what, error, client=client)
        now = self._clock()
        if now < self._quiet_until:
            self._others += 1
            return
        others, self._others = self._others, 0
        self._quiet_until = now + INTERVAL
        place = place_of(error)
        log.event(
            logging.WARNING, subject, what, client=client, error=error, place=place, others=others
        )


def place_of(error: BaseException) -> str:
    """Return ``file:line`` of the innermost code that is neither socketserver's and its like nor ours."""
    frames = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    tellings = [place for place in frames if os.path.dirname(place[0]) not in _NOT_THE_PLACE]
    file, line = (tellings or frames or [("unknown", 0)])[-1]
    return f"{file}:{line}"
