"""How a worker parks connections, and takes them back (worker).

When a handler that can park has served a request, there are three ways to go on with its connection:

1. The client asks again at once. Then the same handler serves the next request, for the price of a
   kept connection. ``Parking.asks_again()`` waits for it, ``linger`` at most, and only while nothing
   else is there for this worker to do. So a chatty client pays no detour, and nobody waits for it.
2. The handler returns, and the connection goes to the lot (``Parking.park()``).
3. The connection cannot be parked: it is closed.

A connection that comes back from the lot is taken like a new one (``Parking.take()``): the lanes and
the loop do not know the difference.

While the pool stops nothing is parked. A connection whose client has spoken already is served by
the first way, and all others are closed.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final, Protocol

from prefork.workers.listener import Listener
from prefork.workers.parking import (
    PARK,
    READY,
    Luggage,
    ParkedSocket,
    Receiver,
    decode,
    encode,
    has_spoken,
    send,
    unpack,
)
from prefork.workers.scoreboard import SlotField
from prefork.workers.slot_writer import ORDER, SlotWriter
from prefork.workers.states import Phase

ATTRIBUTE: Final = "_prefork_parking"
"""The attribute of a server that holds its ``Parking``, in a worker of a pool that has a lot."""

MOST_IN_A_ROW: Final = 64
"""Requests of one connection after which the worker looks at everything else."""

DRAIN_WAIT: Final = 20
"""Milliseconds for which a worker that drains waits for the lot to give back the next connection."""

_SERVING: Final = int(Phase.SERVING)


class Books(Protocol):
    """What keeps the books of a worker's requests, as far as parking concerns it: an ``Account``."""

    def note_end(self, ended: int) -> None:
        """Note when the request in hand ended, where the worker has waited since for the next one."""

    def next_on_connection(self, request: Any, ended: int, since: int) -> None:
        """Note that a good request ended, and that the next one of its connection is in hand."""


def can_be_parked(request: Any) -> bool:
    """Return whether a connection can leave its process: that of TLS cannot, because its state is here."""
    return type(request) in {socket.socket, ParkedSocket}


class Parking:
    """The parked connections of one server, as one worker sees them.

    link: the workers' end of the link to the lot. linger: seconds to wait for a client's next
    request. most_in_a_row: requests of one connection that are served one after the other. phase: the
    word of the scoreboard that says what the pool is doing. writer: counts the connections that could
    not be parked.
    """

    _socket: socket.socket
    _receive: Callable[[], tuple[bytes, int]]
    _account: Books

    def __init__(
        self,
        listener: Listener,
        link: int,
        *,
        linger: float,
        most_in_a_row: int,
        phase: memoryview[int],
        writer: SlotWriter,
    ) -> None:
        self.link = link
        self.is_draining = False
        """Whether this worker only serves what has spoken already, and then leaves."""
        self._listener = listener
        self._linger = math.ceil(linger * 1000)
        self._most_in_a_row = most_in_a_row
        self._phase = phase
        self._writer = writer
        self._poll = select.poll()
        self._epoll = -1
        self._pid = self._thread = 0
        self._connection = -1
        """The descriptor that the poll looks at; -1 for none."""

    def begin(self, epoll: select.epoll, account: Books) -> None:
        """Become the one of this worker and its thread.

        epoll: where the worker waits for everything else. account: keeps the books of its requests.
        """
        self._pid, self._thread = os.getpid(), threading.get_ident()
        self._account = account
        self._epoll = epoll.fileno()
        self._poll.register(self._epoll, select.POLLIN)
        # Made here and not in the master, where the object would close the descriptor at its end.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, self.link)
        self._receive = Receiver(self._socket).receive
        vars(self._listener.server)[ATTRIBUTE] = self

    # --- for handlers

    def asks_again(self, request: Any, ahead: bytes | int, in_a_row: int) -> bool:
        """Return whether the next request of a connection is here, and is to be served at once.

        Then the request so far is counted as finished, and the next one as begun. ahead: what the
        handler has read ahead, or the number of bytes that TLS has. in_a_row: how many requests this handler has served.
        """
        if self._pid != os.getpid() or self._thread != threading.get_ident():
            return False  # a thread or a child serves this connection, and the loop waits meanwhile
        ended = monotonic_ns()
        if not self._is_here(request, ahead, in_a_row):
            self._account.note_end(ended)
            return False
        self._account.next_on_connection(request, ended, monotonic_ns())
        return True

    def park(self, request: Any, luggage: Luggage) -> None:
        """Give a connection to the lot. What cannot be parked stays as it is, to be closed.

        Otherwise the socket object is detached: it has no descriptor, and closing it does nothing.
        Only plain sockets can be parked, because the state of an encrypted connection cannot leave
        its process.
        """
        if not can_be_parked(request) or request.fileno() < 0:
            return
        if self._is_closing():
            return
        if request.gettimeout() is not None:
            request.settimeout(None)  # the flag O_NONBLOCK would go along
        kind = READY if luggage.read_ahead else PARK
        try:
            send(self._socket, kind, monotonic_ns(), encode(luggage), request.fileno())
        except OSError:  # a worker never waits for the lot
            self._writer.count(SlotField.PARK_FAILURES)
        else:
            os.close(request.detach())

    # --- for the sources

    def take(self) -> tuple[Any, Any]:
        """Return the next connection whose client has spoken, and its address.

        Raises BlockingIOError if there is none.
        """
        if self.is_draining:
            self._wait_for_the_lot()
        message, fd = self._receive()
        if fd < 0:  # the end of the link, or the kernel had no descriptor for this process
            raise BlockingIOError
        try:
            _, spoke_ns, payload = unpack(message)
            luggage = decode(payload)
        except ValueError:
            os.close(fd)
            raise BlockingIOError from None
        request = ParkedSocket(self._listener.family, self._listener.socket_type, 0, fd)
        request.luggage = luggage
        request.waited_ns = max(0, monotonic_ns() - spoke_ns)
        address = luggage.address
        return request, tuple(address) if isinstance(address, list) else address

    def take_new(self, take: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Take a new connection whose client has spoken. Those whose clients have not are parked."""
        while True:
            request, address = take()
            if self._is_closing() or has_spoken(request.fileno()):
                return request, address
            self.park(request, Luggage(address, is_new=True))
            request.close()

    # --- inside

    def _is_closing(self) -> bool:
        """Return whether the pool stops, so that an idle connection is closed and not parked."""
        return self.is_draining or self._phase[0] != _SERVING

    def _is_here(self, request: Any, ahead: bytes | int, in_a_row: int) -> bool:
        """Return whether the next request is here, and this worker is to go on with it."""
        fd = request.fileno()
        if fd < 0:
            return False
        if self._is_closing():
            return bool(ahead) or has_spoken(fd)
        if ahead and not can_be_parked(request):
            return True  # to give the connection up now would lose the request
        if in_a_row >= self._most_in_a_row or self._writer.words[ORDER]:
            return False
        self._look_at(fd)
        events = dict(self._poll.poll(0 if ahead else self._linger))
        if self._epoll in events:
            return False
        spoke = events.get(fd, 0)
        # A client that has closed its side may have spoken before that.
        return bool(ahead) or (has_spoken(fd) if spoke & select.POLLRDHUP else bool(spoke))

    def _look_at(self, fd: int) -> None:
        """Have the poll look at a connection; it knows a descriptor by its number alone."""
        if self._connection != fd:
            if self._connection >= 0:
                self._poll.unregister(self._connection)
            self._poll.register(fd, select.POLLIN | select.POLLRDHUP)
            self._connection = fd

    def _wait_for_the_lot(self) -> None:
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        poll.poll(DRAIN_WAIT)
