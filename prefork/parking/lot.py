"""The lot: one process that waits for the idle connections of a whole pool (lot process).

The lot holds a descriptor and a few bytes for each parked connection, and waits for all of them in
one epoll. It reads no byte of a client and runs no code of the program. Its loop has four parts:

1. A client has spoken: take the connection out of the epoll and put it at the end of the queue of
   its link. A client that has closed without a word is closed here and troubles no worker.
2. A worker has sent a connection: hold it. Where that would be more than ``max_parked``, the one
   that has been idle for longest is closed first.
3. A link takes messages again: send what is queued, in the order in which the clients spoke.
4. A connection has been idle for ``park_timeout``: close it.

All connections are held in the order in which they were parked. So the oldest is always the first,
and neither eviction nor timeouts ever search.

**Descriptors.** An epoll watches the open connection and not the descriptor. A descriptor that is
closed while another process has the connection open stays in the epoll, and its events come under a
number that may belong to another connection by then. Therefore a connection leaves the epoll before
its descriptor is closed. For the same reason the clients' events of one wait are handled before
anything that opens a descriptor.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Final

import msgspec

from prefork.workers.parking import (
    DRAIN,
    PARK,
    READY,
    RESUMED,
    SHORTAGES,
    Receiver,
    has_spoken,
    send,
    unpack,
)
from prefork.workers.scoreboard import PoolField, Scoreboard

BATCH: Final = 256
"""Most events of one wait, and most messages that are received from one link before the others."""

RETRY_NS: Final = 50_000_000
"""How long the lot waits after a shortage of the kernel that no event ends."""

_FOR_CLIENT: Final = select.EPOLLIN | select.EPOLLRDHUP
_CLOSED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Parked(msgspec.Struct, frozen=True):
    """One idle connection. payload: what the worker has sent along. since_ns: when it was parked."""

    end: End
    payload: bytes
    since_ns: int


class Spoken(msgspec.Struct, frozen=True):
    """A connection that waits for a worker. spoke_ns: when its client spoke."""

    fd: int
    payload: bytes
    spoke_ns: int


class End:
    """The lot's end of one link, with the connections that wait to go through it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        self.receive = Receiver(self.sock).receive
        self.spoken: deque[Spoken] = deque()
        self.is_draining = False
        self.waits_for_room = False


class Lot:
    """The idle connections of a pool.

    ends: descriptors of the lot's ends of the links. board: where the lot publishes its counts; it is
    the only writer of their words. most: connections at a time. timeout: seconds of silence, None
    for no limit.
    """

    def __init__(self, board: Scoreboard, *, most: int, timeout: float | None) -> None:
        self.most = most
        self.timeout_ns = None if timeout is None else int(timeout * 1e9)
        self._board = board
        self._epoll = select.epoll()
        self._ends: dict[int, End] = {}
        self._parked: dict[int, Parked] = {}
        self._counts: Counter[PoolField] = Counter()
        """What has happened since the counts were published last."""
        self._waiting = 0
        """Connections in the queues of all links."""
        self._retry_ns = 0
        """When to send again after a shortage that no event ends; 0 for no such shortage."""

    @property
    def held(self) -> int:
        """How many connections the lot holds, those included that wait for a worker."""
        return len(self._parked) + self._waiting

    def add_link(self, fd: int) -> None:
        """Serve one more link. fd: the lot's end."""
        self._ends[fd] = End(fd)
        self._epoll.register(fd, select.EPOLLIN)

    def run(self, heed: Mapping[int, Callable[[], bool]], tick: Callable[[], float]) -> None:
        """Hold connections until one of ``heed`` says that this is over.

        heed: what to call when a descriptor is readable; True ends the run. tick: called after each
        wait; returns the most seconds until the next one.
        """
        for fd in heed:
            self._epoll.register(fd, select.EPOLLIN)
        wait = tick()
        while True:
            if self.handle(self.wait(wait), heed):
                return
            wait = tick()

    def wait(self, most: float) -> list[tuple[int, int]]:
        """Wait for events, ``most`` seconds at most; return at once when something is due."""
        return self._epoll.poll(max(0.0, min(most, self._longest_wait())), BATCH)

    def close(self) -> None:
        """Close everything that the lot holds."""
        for fd in self._parked:
            os.close(fd)
        for end in self._ends.values():
            for spoken in end.spoken:
                os.close(spoken.fd)
            end.sock.close()
        self._epoll.close()

    def handle(self, events: list[tuple[int, int]], heed: Mapping[int, Callable[[], bool]]) -> bool:
        """Handle the events of one wait; return whether the run is over."""
        now = monotonic_ns()
        # The clients first: nothing that follows may give their numbers to other connections.
        for fd, what in events:
            if fd in self._parked:
                self._client_event(fd, what, now)
        for fd, what in events:
            if (end := self._ends.get(fd)) is not None:
                self._link_event(end, what, now)
            elif fd in heed and heed[fd]():
                return True
        if self._retry_ns and now >= self._retry_ns:
            self._retry_ns = 0
            for end in self._ends.values():
                self._send_spoken(end, now)
        self._close_timed_out(now)
        self._publish()
        return False

    def _publish(self) -> None:
        for field, count in self._counts.items():
            self._board.count_pool(field, count)
        self._counts.clear()
        self._board.set_pool(PoolField.PARKED, self.held)
        self._board.set_pool(PoolField.RESUMED_WAITING, self._waiting)

    # --- clients

    def _client_event(self, fd: int, what: int, now: int) -> None:
        parked = self._forget(fd)
        if what & _CLOSED and not has_spoken(fd):
            self._close(fd, PoolField.PARKED_LEFT)
            return
        self._resume(parked.end, Spoken(fd, parked.payload, now), now)

    def _resume(self, end: End, spoken: Spoken, now: int) -> None:
        end.spoken.append(spoken)
        self._waiting += 1
        if not end.waits_for_room:
            self._send_spoken(end, now)

    def _send_spoken(self, end: End, now: int) -> None:
        """Send what is queued for a link, as far as the link takes it."""
        while end.spoken:
            first = end.spoken[0]
            try:
                send(end.sock, RESUMED, first.spoke_ns, first.payload, first.fd)
            except OSError as error:
                if error.errno in SHORTAGES:
                    self._wait_for_room(end, error, now)
                    return
                self._close(first.fd, PoolField.PARKED_LOST)
            else:
                self._close(first.fd, PoolField.RESUMED_TOTAL)
            end.spoken.popleft()
            self._waiting -= 1
        if end.waits_for_room:
            self._watch_room(end, wanted=False)
        if end.is_draining:
            with contextlib.suppress(OSError):
                end.sock.shutdown(socket.SHUT_WR)

    def _wait_for_room(self, end: End, error: OSError, now: int) -> None:
        if isinstance(error, BlockingIOError):
            self._watch_room(end, wanted=True)
        else:
            self._retry_ns = now + RETRY_NS

    def _watch_room(self, end: End, *, wanted: bool) -> None:
        if end.waits_for_room is not wanted:
            end.waits_for_room = wanted
            self._epoll.modify(end.fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    # --- links

    def _link_event(self, end: End, what: int, now: int) -> None:
        if what & select.EPOLLOUT:
            self._send_spoken(end, now)
        if what & ~select.EPOLLOUT:
            self._receive(end, now)

    def _receive(self, end: End, now: int) -> None:
        for _ in range(BATCH):
            try:
                message, fd = end.receive()
            except BlockingIOError:
                return
            except OSError:
                message, fd = b"", -1
            if not message and fd < 0:  # nobody has the other end any more
                self._epoll.unregister(end.fd)
                del self._ends[end.fd]
                return
            self._heed_worker(end, message, fd, now)

    def _heed_worker(self, end: End, message: bytes, fd: int, now: int) -> None:
        """Do what a message asks for. Messages that mean nothing are dropped."""
        try:
            kind, spoke_ns, payload = unpack(message)
        except ValueError:
            kind, spoke_ns, payload = b"", 0, b""
        if fd < 0:
            if kind == DRAIN:
                self._drain(end, now)
        elif kind == READY or (kind == PARK and end.is_draining and has_spoken(fd)):
            self._resume(end, Spoken(fd, payload, min(spoke_ns, now) or now), now)
        elif kind == PARK and not end.is_draining:
            self._park(fd, Parked(end, payload, now))
        else:
            os.close(fd)

    def _park(self, fd: int, parked: Parked) -> None:
        self._counts[PoolField.PARKED_TOTAL] += 1
        while self.held >= self.most and self._parked:
            oldest = next(iter(self._parked))
            self._forget(oldest)
            self._close(oldest, PoolField.PARKED_EVICTED)
        if self.held >= self.most:
            self._close(fd, PoolField.PARKED_EVICTED)
            return
        try:
            self._epoll.register(fd, _FOR_CLIENT)
        except OSError:  # what a worker sent is nothing that can be waited for
            self._close(fd, PoolField.PARKED_LOST)
            return
        self._parked[fd] = parked

    def _drain(self, end: End, now: int) -> None:
        """Close what is idle, give back what has spoken, and shut the link down."""
        end.is_draining = True
        for fd in [fd for fd, parked in self._parked.items() if parked.end is end]:
            parked = self._forget(fd)
            if has_spoken(fd):
                end.spoken.append(Spoken(fd, parked.payload, now))
                self._waiting += 1
            else:
                self._close(fd, PoolField.PARKED_CLOSED)
        self._send_spoken(end, now)

    # --- time

    def _close_timed_out(self, now: int) -> None:
        if self.timeout_ns is None:
            return
        while self._parked:
            oldest, parked = next(iter(self._parked.items()))
            if now - parked.since_ns < self.timeout_ns:
                return
            self._forget(oldest)
            self._close(oldest, PoolField.PARKED_TIMED_OUT)

    def _longest_wait(self) -> float:
        """Return the seconds until a connection times out, or a shortage is to be tried again."""
        now, instants = monotonic_ns(), []
        if self._retry_ns:
            instants.append(self._retry_ns)
        if self._parked and self.timeout_ns is not None:
            instants.append(next(iter(self._parked.values())).since_ns + self.timeout_ns)
        return min(((one - now) / 1e9 for one in instants), default=float("inf"))

    # --- descriptors

    def _forget(self, fd: int) -> Parked:
        """Take an idle connection out of the books and the epoll."""
        self._epoll.unregister(fd)
        return self._parked.pop(fd)

    def _close(self, fd: int, why: PoolField) -> None:
        self._counts[why] += 1
        os.close(fd)
