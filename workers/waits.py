"""How long a request had waited in the kernel's queue when it was taken, where the kernel tells (worker).

TCP: TCP_INFO of a connection that was just accepted says how long ago it last sent something;
it has not yet, and so that is when the handshake was over and it could have been accepted
(with ``defer_accept``: when its first data came). Its age is in ticks of the kernel's timer, 1 to
10 ms: one wait is that coarse, the mean of many is exact, because a wait of a quarter of a tick
sees the tick in one of four cases. UDP and Unix datagrams: SO_TIMESTAMPNS says when it arrived, to
the nanosecond. Unix streams: there is nothing.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from prefork.workers.settings import Settings

SAMPLE_EVERY = 7
"""Of so many requests of a listener one is measured, when the numbers are for metrics alone.

A measurement costs 1 to 2 µs. Every seventh one is as good as a drawn one: which request is
the seventh has nothing to do with how long it waited. Seven and not eight: after every eighth a
worker goes to the tail of the wait queue, and the same period would always meet that one.
"Measure after a pause" would be cheaper, and see the short waits only.
"""

# The socket module has no names for these.
SO_TIMESTAMPNS = 35
_SINCE_LAST_SENT = 44
"""Where tcpi_last_data_sent stands in struct tcp_info, milliseconds."""

STAMP_BYTES = socket.CMSG_SPACE(16)
"""Room for one struct timespec of 64 bits each."""

QueueWait = Callable[[Any], int | None]
"""Takes the request, returns nanoseconds, None for unknown or not its turn."""


def sample_every(settings: Settings) -> int:
    """Return of how many requests one is measured; 0 for none, which costs nothing.

    A line of the access log costs ten times what a measurement does: then it is every one.
    """
    if settings.access_log != "off":
        return 1
    return SAMPLE_EVERY if settings.metrics is not None else 0


class Turns:
    """Says whose turn it is: the first one's, and then every so many."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._left = 1

    def is_next(self) -> bool:
        """Tell whether the next request is to be measured."""
        return self._left <= 1

    def passed(self) -> None:
        """Count one request."""
        self._left = self._left - 1 or self._every


class Measurable(Protocol):
    """What a connection has to have; one that was wrapped on the way may lack it."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """As a socket's."""


def tcp_queue_wait(every: int) -> QueueWait:
    """Return the measurement of TCP connections just accepted."""
    turns = Turns(every)

    def queue_wait(request: Measurable) -> int | None:
        its_turn = turns.is_next()
        turns.passed()
        if not its_turn:
            return None
        try:
            info = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE_LAST_SENT + 4)
            millis: int = struct.unpack_from("=I", info, _SINCE_LAST_SENT)[0]
        except (
            OSError,
            AttributeError,
            struct.error,
        ):  # what get_request() returns is its own affair
            return None
        return millis * 1_000_000

    return queue_wait


class Stamps:
    """The kernel's time stamps of datagrams: noted by whoever receives, asked for per request."""

    def __init__(self, every: int) -> None:
        self.turns = Turns(every)
        self._arrived: int | None = None

    def note(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Read when the datagram arrived out of what came with it."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanos = struct.unpack("@qq", data)
                self._arrived = seconds * 1_000_000_000 + nanos

    def queue_wait(self, request: object) -> int | None:  # noqa: ARG002 - a datagram does not know it
        """Return how long the last datagram had waited; None if it was not its turn."""
        arrived, self._arrived = self._arrived, None
        # The stamps are of the clock that can be set: a wait below nothing was none.
        return None if arrived is None else max(0, time.time_ns() - arrived)
