"""How a worker parks connections, and takes them back (worker).

When a handler that can park has served a request, there are three ways to go on with its connection:

1. The client asks again at once. Then the same handler serves the next request, for little more than
   the price of a held connection. ``Parking.asks_again()`` waits for it, ``linger`` at most, and
   ``Parking.converse()`` goes on from there.
2. The handler returns, and the connection goes to the lot (``Parking.park()``).
3. The client has left, or the connection cannot be parked: it is closed.

**Lingering.** A detour through the lot costs as much as a request. So the first way pays if the client
answers soon, and is a loss if it does not: the worker then has waited in vain, while other clients may
have come. Three rules keep the loss small:

- A worker lingers only while nothing else is there to do, and stops as soon as something comes.
- A worker lingers only for a client that is quick: one whose last request came within ``linger`` of the
  answer before, or that has asked only once. Others go to the lot at once (``ParkedSocket.is_quick``).
- After IN_A_ROW_NS the connection goes through the lot once.

A connection that comes back from the lot is taken like a new one (``Parking.take()``): the lanes and
the loop do not know the difference.

While the pool stops nothing is parked. A connection whose client has spoken already is served by
the first way, and all others are closed. During ``drain_delay`` before that, a connection ends after its
request, and a connection that has had its last answer before goes on: it is parked, and its client
gets one more answer. HTTP says in the answer whether the connection ends (``announces_end()``), and there that
decides.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from enum import Enum, auto
from time import monotonic_ns
from typing import Any, Final, Protocol

from prefork.workers import forks
from prefork.workers.listener import Listener
from prefork.workers.parking import (
    INSTANT,
    LOOK,
    MOST_STATE,
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
from prefork.workers.scoreboard import SHORTEST_NS, SlotField
from prefork.workers.slot_writer import ORDER, REQUEST_NS, SlotWriter
from prefork.workers.states import Phase
from prefork.workers.worker.reader import Reader
from prefork.workers.worker.turn import AT_ONCE_NS

ATTRIBUTE: Final = "_prefork_parking"
"""The attribute of a server that holds its ``Parking``, in a worker of a pool that has a lot."""

IN_A_ROW_NS: Final = 50_000_000
"""How long one connection is served before the worker looks at everything else, in nanoseconds."""

DRAIN_WAIT: Final = 20
"""Milliseconds for which a worker that drains waits for the lot to give back the next connection."""

ROOM_WAIT_NS: Final = 500_000_000
"""How long a worker waits for a lot that does not keep up, in nanoseconds: twice what it takes to replace one."""

MOST_TRIES: Final = 16
"""How often a worker tries to send a connection: others may take the room that the lot has made."""

ROOM_PAUSE_NS: Final = 10_000_000_000
"""How long a worker does not wait again for a lot that has not kept up meanwhile."""

_SERVING: Final = int(Phase.SERVING)
_NOT_READY: Final = int(Phase.NOT_READY)


class Books(Protocol):
    """What keeps the books of a worker's requests, as far as parking concerns it: an ``Account``.

    most_shared: how many short requests of a connection may share their books; 1 for none.
    """

    most_shared: int

    def note_end(self, ended: int) -> None:
        """Note when the request in hand ended, where the worker has waited since for the next one."""

    def next_on_connection(self, request: Any, ended: int, since: int) -> None:
        """Note that a good request ended, and that the next one of its connection is in hand."""

    def close_shared(self, count: int, duration_ns: int, since: int) -> None:
        """Note that good short requests have ended, and since when another one is in hand."""


class Next(Enum):
    """When a connection has its next request."""

    NOW = auto()
    """The request is here, and this handler serves it."""
    LATER = auto()
    """The client is quiet, or others come first: the connection is to be parked."""
    NEVER = auto()
    """The client has left, or the pool stops: the connection is to be closed."""


NOW: Final = Next.NOW  # an enum's look-up costs as much as a frame
LATER: Final = Next.LATER
NEVER: Final = Next.NEVER


def can_be_parked(request: Any) -> bool:
    """Return whether a connection can leave its process: that of TLS cannot, because its state is here."""
    kind = type(request)
    return kind is ParkedSocket or kind is socket.socket


class Parking:
    """The parked connections of one server, as one worker sees them.

    link: the workers' end of the link to the lot. linger: seconds to wait for a client's next
    request. in_a_row_ns: how long one connection is served before it is parked. phase: the word of
    the scoreboard that says what the pool is doing. writer: counts the connections that could not be
    parked.
    """

    _socket: socket.socket
    _receive: Callable[[], tuple[bytes, int]]
    _account: Books
    _epoll: select.epoll

    def __init__(
        self,
        listener: Listener,
        link: int,
        *,
        linger: float,
        in_a_row_ns: int,
        phase: memoryview[int],
        writer: SlotWriter,
    ) -> None:
        self.link = link
        self.is_draining = False
        """Whether this worker only serves what has spoken already, and then leaves."""
        self._listener = listener
        self._linger = linger
        self._quick_ns = int(linger * 1e9)
        self._in_a_row_ns = in_a_row_ns
        self._phase = phase
        self._writer = writer
        self._others, self._both = select.poll(), select.poll()
        """Look at the worker's epoll, which has everything else, and at that and one connection."""
        self._connection = -1
        """The descriptor of that connection; -1 for none."""
        self._room_until = -ROOM_PAUSE_NS
        """The end of the last wait for a lot that did not make room."""
        self._thread = 0
        """The thread whose handlers may linger: the one that runs the loop. 0 in no worker, and in its children."""

    def begin(
        self, epoll: select.epoll, account: Books, go_to_the_tail: Callable[[], None]
    ) -> None:
        """Become the one of this worker and its thread.

        epoll: where the worker waits for everything else. account: keeps the books of its requests.
        go_to_the_tail: makes this worker the last one that the kernel wakes for other work.
        """
        self._thread = threading.get_ident()
        forks.add(self._enter_fork)
        self._account = account
        self._epoll = epoll
        self._go_to_the_tail = go_to_the_tail
        for poll in (self._others, self._both):
            poll.register(epoll.fileno(), select.POLLIN)
        # Made here and not in the master, where the object would close the descriptor at its end.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, self.link)
        self._receive = Receiver(self._socket).receive
        vars(self._listener.server)[ATTRIBUTE] = self

    # --- for handlers

    def for_this_thread(self) -> Parking | ParkingOnly:
        """Return what the handlers of the calling thread use: only the loop's own thread lingers.

        The loop waits for everything else meanwhile, where a thread or a child serves a connection.
        """
        return self if self._thread == threading.get_ident() else ParkingOnly(self)

    def asks_again(self, reader: Reader) -> Next:
        """Return what becomes of a connection after a request, and wait for the next one where that pays.

        With NOW the request so far is counted as finished, and the next one as begun. reader: what
        the handler reads its requests through.
        """
        ended = monotonic_ns()
        reader.ahead = reader.read_ahead()
        reader.until_ns = reader.until_ns or ended + self._in_a_row_ns
        if reader.request.fileno() < 0:  # the handler has closed or passed on the connection
            following = NEVER
        elif ended >= reader.until_ns or self._phase[0] != _SERVING or self._writer.words[ORDER]:
            following = self._without_waiting(reader, ends=self.ends(reader))
        else:
            following = self._wait_for_first(reader)
        if following is NOW:
            reader.began_ns = monotonic_ns()
            self._account.next_on_connection(reader.request, ended, reader.began_ns)
        elif monotonic_ns() - ended >= AT_ONCE_NS:
            self._account.note_end(ended)
        return following

    def converse(
        self, handler: Any, handle: Callable[[], None], reader: Reader, as_new: dict[str, Any]
    ) -> Next:
        """Serve a client that asks again at once until it does not; return what becomes of its connection.

        Called when ``handle()`` has served a request that was waited for, and was read through the
        file. as_new: the attributes of the handler as ``setup()`` has left them.
        """
        # The hot path of a kept connection. All that a request costs in addition to a handler that
        # loops until the end is in this function, in next_on_connection() and in account(). What
        # each request needs is in local variables, for the reasons that OneByOne.serve() has.
        #
        # The connection is in the worker's own epoll meanwhile. So one system call waits for the
        # client and for everything else, and reports what came first: work that was there before
        # the client spoke goes before its request. A worker that lingers counts as one that waits:
        # for a new client the kernel wakes one of these, and not all who linger. It wakes the first
        # in its queue. So this worker goes to the tail, behind those that have nothing to do.
        # Short requests share their books, as those of datagrams do (rounds.py).
        attributes, request, until = handler.__dict__, reader.request, reader.until_ns
        look, fetch = reader.calls()
        wait, linger, others = self._epoll.poll, self._linger, self._others.poll
        phase, writer, account = self._phase, self._writer, self._account
        known, following = as_new.get("state", b""), LATER
        most, short, short_ns, since = account.most_shared, 0, 0, reader.began_ns
        fd = self._wait_also_for(request)
        spoke = [(fd, select.EPOLLIN)]
        try:
            while True:
                ended = monotonic_ns()
                if handler.close_connection:
                    return NEVER
                state = handler.state
                if state is not known:
                    refuse_state(state)
                if ended >= until or phase[0] != _SERVING or writer.words[ORDER]:
                    if (then := self._without_waiting(reader, ends=self.ends(reader))) is not NOW:
                        following = then
                        break
                elif look():
                    if others(0):
                        break
                elif (events := wait(linger, 1)) == spoke:
                    fetch()
                else:
                    following = self._gone_or_later(events, fd)
                    break
                now, duration = monotonic_ns(), ended - since
                short, short_ns = short + 1, short_ns + duration
                if short == most or duration > SHORTEST_NS:
                    account.close_shared(short - 1, short_ns - duration, since)
                    account.next_on_connection(request, ended, now)
                    short = short_ns = 0
                else:
                    writer.words[REQUEST_NS] = now
                since = now
                attributes.clear()
                attributes.update(as_new)
                attributes["state"] = known = state
                handle()
        finally:
            account.close_shared(short, short_ns, since)
            self._wait_no_more_for(fd)
        reader.ahead = reader.read_ahead()
        account.note_end(ended)
        return following

    def park(self, request: Any, luggage: Luggage) -> None:
        """Give a connection to the lot. What cannot be parked stays as it is, to be closed.

        Otherwise the socket object is detached: it has no descriptor, and closing it does nothing.
        Only plain sockets can be parked, because the state of an encrypted connection cannot leave
        its process.
        """
        if not can_be_parked(request) or request.fileno() < 0 or self._closes_idle():
            return
        if request.gettimeout() is not None:
            request.settimeout(None)  # the flag O_NONBLOCK would go along
        kind, now = READY if luggage.read_ahead else PARK, monotonic_ns()
        payload = INSTANT.pack(now) + _packed(request, luggage)
        try:
            for _ in range(MOST_TRIES):
                if self._is_sent(kind, now, payload, request.fileno()):
                    os.close(request.detach())
                    return
                if not self._lot_makes_room():
                    break
        except OSError:
            pass
        self._writer.count(SlotField.PARK_FAILURES)

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
            (parked_ns,), packed = INSTANT.unpack_from(payload), payload[INSTANT.size :]
            luggage = decode(packed)
        except (ValueError, struct.error):
            os.close(fd)
            raise BlockingIOError from None
        request = ParkedSocket(self._listener.family, self._listener.socket_type, 0, fd)
        request.luggage, request.packed = luggage, packed
        request.waited_ns = max(0, monotonic_ns() - spoke_ns)
        request.is_quick = spoke_ns - parked_ns < self._quick_ns
        address = luggage.address
        return request, tuple(address) if isinstance(address, list) else address

    def take_new(self, take: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Take a new connection whose client has spoken. Those whose clients have not are parked."""
        while True:
            request, address = take()
            if self._closes_idle() or _has_spoken(request):
                return request, address
            self.park(request, Luggage(address, is_new=True))
            request.close()

    # --- inside

    def _enter_fork(self) -> None:
        """Have the handlers of a child never linger, and leave the worker's epoll alone."""
        self._thread = 0

    def is_closing(self) -> bool:
        """Return whether the pool is about to stop, so that a connection ends after its request."""
        return self.is_draining or self._phase[0] != _SERVING

    def _closes_idle(self) -> bool:
        """Return whether the pool stops, so that an idle connection is closed and not parked."""
        return self.is_draining or self._phase[0] > _NOT_READY

    def ends(self, reader: Reader) -> bool:
        """Return whether a connection ends after the request that was just answered."""
        # Where an answer says so, the handler has ended the connection by itself: here are those of
        # which the answer has said that they go on.
        return self._closes_idle() or (self.is_closing() and not reader.announces_end())

    def _without_waiting(self, reader: Reader, *, ends: bool) -> Next:
        """Return what becomes of a connection for whose client the worker is not to wait."""
        request = reader.request
        reader.ahead = reader.read_ahead()
        if ends:
            return NOW if _has_some(reader) or has_spoken(request.fileno()) else NEVER
        # To give up a connection that cannot be parked would lose the request.
        return LATER if can_be_parked(request) or not _has_some(reader) else NOW

    def _wait_for_first(self, reader: Reader) -> Next:
        """Wait for the next request of a connection with which there is no conversation yet."""
        request = reader.request
        if _has_some(reader):
            others = self._others.poll(0)
            return self._without_waiting(reader, ends=self._closes_idle()) if others else NOW
        if not getattr(request, "is_quick", True):
            return LATER
        fd = request.fileno()
        if self._connection != fd:  # a poll knows a descriptor by its number alone
            if self._connection >= 0:
                self._both.unregister(self._connection)
            self._both.register(fd, select.POLLIN | select.POLLRDHUP)
            self._connection = fd
        events = self._both.poll(self._linger * 1000)
        if len(events) != 1 or events[0][0] != fd:
            return self._without_waiting(reader, ends=self._closes_idle())
        # A client that has closed its side may have spoken before that.
        if events[0][1] & select.POLLRDHUP and not has_spoken(fd):
            return NEVER
        if can_be_parked(request):
            reader.note_use()
        return NOW

    def _gone_or_later(self, events: list[tuple[int, int]], fd: int) -> Next:
        """Return what becomes of a connection whose client has not just spoken."""
        hung_up = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        is_gone = any(one == fd and what & hung_up for one, what in events) and not has_spoken(fd)
        return NEVER if is_gone else LATER

    def _wait_also_for(self, request: Any) -> int:
        """Have the worker's epoll report a connection; return its descriptor.

        Edge-triggered: the handler may leave the connection open in another process, where nothing
        here can take it out of the epoll again. The loop then hears of each word of the client once,
        and ignores it.
        """
        fd: int = request.fileno()
        self._go_to_the_tail()
        with contextlib.suppress(OSError, ValueError):
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        return fd

    def _wait_no_more_for(self, fd: int) -> None:
        # The handler may have closed the connection.
        if self._thread:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def _is_sent(self, kind: bytes, answered_ns: int, payload: bytes, fd: int) -> bool:
        """Send a connection to the lot; return False where the link is full."""
        try:
            send(self._socket, kind, answered_ns, payload, fd)
        except BlockingIOError:
            return False
        return True

    def _lot_makes_room(self) -> bool:
        """Wait until the link takes messages again; return False where that takes too long.

        A burst of connections can fill the link, and a lot that runs empties it in a moment. A lot that
        was stopped does not. The wait for it is ROOM_WAIT_NS at most, and ROOM_PAUSE_NS pass until the
        next wait, and the master has replaced such a lot by then. Without room the connection is closed.
        """
        now = monotonic_ns()
        if now >= self._room_until + ROOM_PAUSE_NS:
            self._room_until = now + ROOM_WAIT_NS
        left = self._room_until - now
        if left <= 0:
            return False
        poll = select.poll()
        poll.register(self.link, select.POLLOUT)
        if not poll.poll(left / 1e6):
            return False
        self._room_until = -ROOM_PAUSE_NS  # the lot runs: the next wait has its whole time
        return True

    def _wait_for_the_lot(self) -> None:
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        poll.poll(DRAIN_WAIT)


class ParkingOnly:
    """The same for a thread, or a child of the worker: a connection is parked after each request."""

    def __init__(self, parking: Parking) -> None:
        self.park = parking.park
        self.ends = parking.ends

    def asks_again(self, reader: Reader) -> Next:
        """Return LATER, or NEVER where the connection ends after this request."""
        reader.ahead = reader.read_ahead()
        return NEVER if self.ends(reader) else LATER


def start_anew(handler: Any, as_new: dict[str, Any]) -> None:
    """Put back the attributes of a handler, except its state."""
    state = handler.state
    handler.__dict__.clear()
    handler.__dict__.update(as_new, state=state)


def refuse_state(state: object) -> None:
    """Raise TypeError or ValueError for a state that cannot be parked."""
    if not isinstance(state, bytes):
        raise TypeError(f"state must be bytes to be parked, not {type(state).__name__}")
    if len(state) > MOST_STATE:
        raise ValueError(f"state has {len(state)} bytes, and at most {MOST_STATE} can be parked")


def _has_spoken(request: Any) -> bool:
    """Return whether a client has sent something. Of a plain socket this is one call, and no other object."""
    if type(request) is not socket.socket or request.gettimeout() is not None:
        return has_spoken(request.fileno())
    try:
        return bool(request.recv(1, LOOK))
    except OSError:
        return False


def _has_some(reader: Reader) -> bool:
    """Return whether bytes of the next request have been read with the last one."""
    return bool(reader.ahead) or has_decrypted(reader.request)


def _packed(request: Any, luggage: Luggage) -> bytes:
    """Return the bytes of a luggage; those that came with the connection where it is the same."""
    if type(request) is ParkedSocket and luggage is request.luggage:
        return request.packed
    packed: bytes = encode(luggage)
    return packed


def has_decrypted(request: Any) -> bool:
    """Return whether TLS has decrypted bytes that nothing has read yet: no poll() knows of them."""
    pending = getattr(request, "pending", None)
    return pending is not None and pending() > 0
