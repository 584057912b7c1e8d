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
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from prefork.workers.scoreboard import BOUNDS_NS, SlotField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import SlotWriter

SAMPLE_EVERY = 7
"""Of so many requests of a listener one is measured, when the numbers are for metrics alone.

A measurement costs 2 to 3 µs, a count 0.1: together less than 1 µs per request. Every seventh one
is as good as a drawn one, because which request is the seventh has nothing to do with how long it
waited. Seven and not eight: after every eighth a worker goes to the tail of the wait queue, and
the same period would always meet that one. To measure only after a pause, or at most so often a
second, would be cheaper and wrong: it would see the short waits, or those behind long requests.
"""

# The socket module has no names for these.
SO_TIMESTAMPNS = 35
_SINCE_LAST_SENT = 44
"""Where tcpi_last_data_sent stands in struct tcp_info, milliseconds."""

STAMP_BYTES = socket.CMSG_SPACE(16)
"""Room for one struct timespec of 64 bits each."""


# Plain integers, as in the scoreboard's own hot path.
_QUEUE_WAIT_NS = int(SlotField.QUEUE_WAIT_NS)
_QUEUE_WAITS = int(SlotField.QUEUE_WAITS)


def sample_every(settings: Settings) -> int:
    """Return of how many requests one is measured; 0 for none, which costs nothing.

    A line of the access log costs ten times what a measurement does: then it is every one.
    """
    if settings.access_log != "off":
        return 1
    return SAMPLE_EVERY if settings.metrics is not None else 0


class QueueWaits:
    """The queue waits of one listener's requests, as this worker measures them.

    last: of the request taken last, nanoseconds, None for unknown; good only where every one
    is measured.
    """

    def __init__(self, writer: SlotWriter) -> None:
        self.last: int | None = None
        self._writer = writer

    def note(self, waited: int | None) -> None:
        """Publish a measurement."""
        self.last = waited
        if waited is not None:
            words = self._writer.words
            words[_QUEUE_WAIT_NS] += waited
            words[_QUEUE_WAITS + bisect_left(BOUNDS_NS, waited)] += 1


def wait_of_connection(request: Any) -> int | None:
    """Return how long a TCP connection that was just accepted had waited, in nanoseconds."""
    try:
        info = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE_LAST_SENT + 4)
        millis: int = struct.unpack_from("=I", info, _SINCE_LAST_SENT)[0]
    except (OSError, AttributeError, TypeError, struct.error):
        return None  # what get_request() returns is its own affair
    return millis * 1_000_000


def wait_of_datagram(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    """Return how long a datagram had waited, by the stamp that came with it, in nanoseconds."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanos = map(int, struct.unpack("@qq", data))
            # The stamps are of the clock that can be set: a wait below nothing was none.
            return max(0, time.time_ns() - seconds * 1_000_000_000 - nanos)
    return None
