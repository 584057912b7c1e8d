"""The queue wait: how long a request had waited in the kernel before a worker took it (worker).

The kernel does not say when a connection entered the accept queue. But for each kind of socket it
keeps a clock that was set at about that moment:

TCP. ``TCP_INFO`` has the field ``tcpi_last_data_sent``, the time since this end last sent data. A
connection that was just accepted has not sent any. Its field then counts from the end of the
handshake, which is when the connection entered the queue. (With ``defer_accept`` it enters when the
first data come, and the field counts from then.) The kernel counts in ticks of its timer, of 1 to
10 ms, so one value is that coarse. The mean of many is right all the same: a wait of a quarter of a
tick crosses the end of a tick in one of four cases, and reads as a whole tick then.

UDP and Unix datagrams. With ``SO_TIMESTAMPNS`` each datagram comes with the time of its arrival, to
the nanosecond. It is of the clock that can be set, CLOCK_REALTIME.

Unix streams. There is no such clock, so their waits are not known.
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
"""One of this many requests of a listener is measured, when the numbers are for metrics alone.

A measurement costs 2 to 3 µs and a count 0.1 µs: less than 1 µs for each request. Every seventh
request is as good as a drawn one, because being the seventh has nothing to do with how long a
request has waited. The number is 7 and not 8, because after every eighth request a worker goes to
the tail of the wait queue, and the same period would always meet that request. Measuring only after
a pause, or only a few times a second, would be cheaper and wrong: it would see the short waits, or
those behind long requests.
"""

# The socket module has no names for these.
SO_TIMESTAMPNS = 35
_SINCE_LAST_SENT = 44
"""The offset of tcpi_last_data_sent in struct tcp_info; milliseconds."""

STAMP_BYTES = socket.CMSG_SPACE(16)
"""Room for one struct timespec of 64 bits each."""


# Plain integers, as in the scoreboard's own hot path.
_QUEUE_WAIT_NS = int(SlotField.QUEUE_WAIT_NS)
_QUEUE_WAITS = int(SlotField.QUEUE_WAITS)


def sample_every(settings: Settings) -> int:
    """Return of how many requests one is measured; 0 where none is, which costs nothing.

    With an access log every request is measured: its line costs ten times as much. ``max_queue_wait`` has to
    know each wait.
    """
    if settings.access_log != "off" or settings.max_queue_wait is not None:
        return 1
    return SAMPLE_EVERY if settings.metrics is not None else 0


class QueueWaits:
    """The queue waits of one listener's requests, as this worker measures them.

    last: the wait of the request that was taken last, in nanoseconds, None where it is not known.
    It is meaningful only where every request is measured.
    """

    def __init__(self, writer: SlotWriter) -> None:
        self.last: int | None = None
        self._writer = writer

    def note(self, waited: int | None) -> None:
        """Publish a measurement; None for a wait that is not known."""
        self.last = waited
        if waited is not None:
            words, bucket = self._writer.words, _QUEUE_WAITS + bisect_left(BOUNDS_NS, waited)
            try:
                words[_QUEUE_WAIT_NS] += waited
                words[bucket] += 1
            except ValueError:  # a stray write has filled a counter: see slot_writer.py
                self._writer.add(_QUEUE_WAIT_NS, waited)
                self._writer.add(bucket, 1)


def wait_of_connection(request: Any) -> int | None:
    """Return how long a TCP connection had waited that was just accepted, in nanoseconds.

    None where the kernel does not say, or where ``request`` is no socket.
    """
    try:
        info = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE_LAST_SENT + 4)
        millis: int = struct.unpack_from("=I", info, _SINCE_LAST_SENT)[0]
    except (OSError, AttributeError, TypeError, struct.error):
        return None  # a get_request() of the program's own may return anything
    return millis * 1_000_000


def wait_of_datagram(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    """Return how long a datagram had waited, in nanoseconds; None for one without a time stamp.

    ancillary: what ``recvmsg()`` has returned with the datagram.
    """
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanos = map(int, struct.unpack("@qq", data))
            # The clock may have been set back since the arrival: the wait is not negative then.
            return max(0, time.time_ns() - seconds * 1_000_000_000 - nanos)
    return None
