"""Clients that went away or kept a handler waiting: one line of the log, and no traceback (worker).

A stranger who can reach the port can make a thousand of them a second. So a worker writes at most one
line a second, which counts the others. At level DEBUG each of them is logged with its traceback.
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
"""The least number of seconds between two lines of one worker."""

_NOT_THE_PLACE = {os.path.dirname(socketserver.__file__), os.path.dirname(__file__)}
"""Folders whose files do not show where a handler was: every read ends in socket.py."""


def is_clients_doing(error: BaseException) -> bool:
    """Return whether the exception is one that a client causes by leaving or by silence.

    A peer that the handler itself connected to can cause the same ones; the line of the log names the
    place. A refused connection is never the doing of a client that was connected.
    """
    gone = isinstance(error, (TimeoutError, ConnectionError))
    return gone and not isinstance(error, ConnectionRefusedError)


class LostClients:
    """The lines about lost clients of one process; each worker has its own."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._quiet_until = 0.0
        self._others = 0

    def note(self, subject: str, error: BaseException, client: object) -> None:
        """Log that a request ended this way; at level DEBUG also the traceback.

        The ``others`` of a line are the lost clients since the previous line that had no line.
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
    """Return ``file:line`` of the innermost frame that is neither in the standard library's modules nor in ours."""
    frames = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    tellings = [place for place in frames if os.path.dirname(place[0]) not in _NOT_THE_PLACE]
    file, line = (tellings or frames or [("unknown", 0)])[-1]
    return f"{file}:{line}"
