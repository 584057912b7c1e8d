"""Intakes: whether each listener still lets clients in, and opening it again where a worker has closed it (master).

The socket of a listener is shared by all processes of the pool. What one worker does to it, by mistake or
on purpose, happens to all: from then on no client arrives, all workers are idle, and nothing looks wrong. So
the master looks at each socket once in a tick, and compares what the kernel says with the beginning:

    what a worker may have done            what the master does
    ---------------------------            --------------------
    shut a TCP listener down               listens again, on the same address
    lowered the backlog of a TCP listener  listens again, with the former backlog
    attached a socket filter               detaches it
    bound a socket to another interface    binds it back, which takes the capability CAP_NET_RAW
    connected a datagram socket to a peer  dissolves the connection
    shut a Unix socket down                nothing: the kernel has no way back

Where a socket stays closed, the pool reports that it is not ready. The master also leaves a socket alone that
other processes hold (``listener_inherited``): they may have closed it themselves, to stop.

What the master cannot notice is a client that the kernel refuses for another reason, such as a full queue
or a firewall, and a backlog of a Unix socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from prefork.workers import log
from prefork.workers.listener import SO_BINDTOIFINDEX, Kind, Listener, backlog_of

LOG_INTERVAL = 10.0
"""Seconds between two lines of the log about one listener: a worker may close it again at once."""

_SO_GET_FILTER = 26
_SO_DETACH_FILTER = 27

_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)
"""The address to which a datagram socket connects to have no peer any more."""

_libc = ctypes.CDLL(None, use_errno=True)


class Before(msgspec.Struct, frozen=True):
    """What a socket was like when the pool began to serve.

    backlog: 0 for a socket that does not listen. interface: the index of the network interface that it was
    bound to, 0 for none. has_filter: whether the program has attached a socket filter. has_peer: whether it
    was connected, which only a datagram socket can be.
    """

    address: object
    backlog: int
    interface: int
    has_filter: bool
    has_peer: bool


class Intake:
    """The way in for the clients of one listener."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.is_closed = False
        self._before: Before | None = None
        self._quiet_until = float("-inf")
        if listener.is_socket:
            with contextlib.suppress(OSError), listener.as_socket() as sock:
                self._before = _look(sock, listener)

    def check(self, now: float) -> None:
        """Open the intake where it was closed, if that is possible, and find whether it is open."""
        found = fault = ""
        try:
            found = fault = self._fault()
            if fault and not self.listener.is_inherited:
                self._open()
                fault = self._fault()
        except OSError as error:
            fault = found and f"{found}, and cannot be opened: {error.strerror}"
        self._report(found, fault, now)

    def _fault(self) -> str:
        before, listener = self._before, self.listener
        if before is None:
            return ""
        try:
            with listener.as_socket() as sock:
                fault = _fault(sock, listener, before)
        except OSError:
            return (
                ""  # the program has closed its server; the workers have descriptors of their own
            )
        # The number of a closed descriptor may be another socket's by now.
        return fault if fault and listener.is_still(listener.fd) else ""

    def _open(self) -> None:
        if self._before is not None:
            with self.listener.as_socket() as sock:
                _open(sock, self.listener, self._before)

    def _report(self, found: str, fault: str, now: float) -> None:
        """Log the first of a row of faults, and the end of a fault that could not be mended."""
        was_closed, self.is_closed = self.is_closed, bool(fault)
        name = self.listener
        if fault and not was_closed:
            what = "listener takes no clients, the pool is not ready"
            log.event(logging.ERROR, "master", what, listener=name, why=fault)
        elif was_closed and not fault:
            log.event(logging.WARNING, "master", "listener takes clients again", listener=name)
        elif found and not fault and now >= self._quiet_until:
            self._quiet_until = now + LOG_INTERVAL
            what = "listener was closed by a worker and is open again"
            log.event(logging.WARNING, "master", what, listener=name, why=found)


class Intakes:
    """The intakes of all listeners of a pool. Made when the pool begins to serve."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._all = [Intake(listener) for listener in listeners]

    def check(self, now: float, *, serving: bool = True) -> int:
        """Undo what workers have done to the sockets; return how many are closed and stay closed.

        now: on the master's clock. serving: new clients are wanted. A stop closes the intakes itself.
        """
        for intake in self._all:
            intake.listener.assert_nonblocking()
            if serving:
                intake.check(now)
        return sum(intake.is_closed for intake in self._all)


def _look(sock: socket.socket, listener: Listener) -> Before:
    interface = _interface(sock)
    return Before(
        address=sock.getsockname(),
        backlog=backlog_of(sock) if listener.kind is Kind.STREAM else 0,
        # A worker may have bound it before a reload, in which this look is the first one.
        interface=interface if _exists(interface) else 0,
        has_filter=_has_filter(sock),
        has_peer=_has_peer(sock),
    )


def _fault(sock: socket.socket, listener: Listener, before: Before) -> str:
    """Return why no client can come in, "" where nothing is known to keep them out."""
    return next((why for why, found, _ in _FAULTS if found(sock, listener, before)), "")


def _open(sock: socket.socket, listener: Listener, before: Before) -> None:
    """Undo each fault. Raises OSError where the kernel refuses that."""
    for _, found, undo in _FAULTS:
        if found(sock, listener, before):
            undo(sock, before)


# --- the faults: how each is found, and undone


def _listens_no_more(sock: socket.socket, _listener: Listener, before: Before) -> bool:
    return before.backlog > 0 and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def _bind_and_listen(sock: socket.socket, before: Before) -> None:
    _bind_again(sock, before)
    sock.listen(before.backlog)


def _has_lower_backlog(sock: socket.socket, _listener: Listener, before: Before) -> bool:
    return before.backlog > 0 and backlog_of(sock) < before.backlog


def _listen(sock: socket.socket, before: Before) -> None:
    sock.listen(before.backlog)


def _has_new_filter(sock: socket.socket, _listener: Listener, before: Before) -> bool:
    return not before.has_filter and _has_filter(sock)


def _detach_filter(sock: socket.socket, _before: Before) -> None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _has_other_interface(sock: socket.socket, _listener: Listener, before: Before) -> bool:
    return _interface(sock) != before.interface


def _bind_to_interface(sock: socket.socket, before: Before) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, before.interface)


def _has_new_peer(sock: socket.socket, listener: Listener, before: Before) -> bool:
    return listener.kind is Kind.DATAGRAM and _has_peer(sock) and not before.has_peer


def _dissolve_connection(sock: socket.socket, before: Before) -> None:
    if _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _bind_again(sock, before)


def _is_shut_unix(sock: socket.socket, listener: Listener, _before: Before) -> bool:
    return listener.family == socket.AF_UNIX and _is_shut_down(sock)


def _give_up(_sock: socket.socket, _before: Before) -> None:
    """Do nothing: the kernel has no way back."""


Found = Callable[[socket.socket, Listener, Before], bool]
Undo = Callable[[socket.socket, Before], None]

_FAULTS: Final[tuple[tuple[str, Found, Undo], ...]] = (
    ("it was shut down", _listens_no_more, _bind_and_listen),
    ("its backlog was lowered", _has_lower_backlog, _listen),
    ("it has a socket filter", _has_new_filter, _detach_filter),
    ("it was bound to another network interface", _has_other_interface, _bind_to_interface),
    ("it was connected to one peer", _has_new_peer, _dissolve_connection),
    ("it was shut down", _is_shut_unix, _give_up),
)
"""Each fault in words, whether a socket has it, and what undoes it."""


def _bind_again(sock: socket.socket, before: Before) -> None:
    # A port that the kernel has chosen (port 0) is given back at a shutdown, and any other one is kept. A
    # socket that still has its address refuses another bind().
    try:
        sock.bind(before.address)  # type: ignore[arg-type]
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _interface(sock: socket.socket) -> int:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    return sock.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX)


def _has_filter(sock: socket.socket) -> bool:
    # The length of this option counts instructions of eight bytes, so getsockopt() of Python would give the
    # kernel a buffer that is too short. Asked for none, the kernel says how many there are, and EACCES for a
    # filter of the extended kind.
    count = ctypes.c_uint(0)
    fd, option = sock.fileno(), _SO_GET_FILTER
    if _libc.getsockopt(fd, socket.SOL_SOCKET, option, None, ctypes.byref(count)) != 0:
        return ctypes.get_errno() == errno.EACCES
    return count.value > 0


def _exists(interface: int) -> bool:
    try:
        socket.if_indextoname(interface)
    except OSError:
        return False
    return True


def _has_peer(sock: socket.socket) -> bool:
    try:
        return bool(sock.getpeername())
    except OSError:
        return False


def _is_shut_down(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
