"""The listener: what a pool knows of a server's socket, and all that it does to the socket.

The socket belongs to the server class. It is found through ``fileno()`` and never through
``self.socket``, so that a server works whose requests come from elsewhere, such as a pipe or an
eventfd. Whatever is changed here for the time of ``serve_forever()`` is put back afterwards.

**Waiting.** A server that forks or starts a thread for each request accepts at once, and the standard
library gives its accept queue 5 places. A pool accepts when a worker is free, so the queue is where
clients wait. With 5 places the kernel drops the handshakes of a burst, and their clients try again
after 1, 3 and 7 seconds. So a class that has the standard library's own ``request_queue_size`` gets
``WAITING_ROOM`` places for the time of serving. A class or an object with a value of its own keeps it.
For a similar reason connections get TCP_NODELAY: an unbuffered handler that writes twice would wait
for the client's delayed acknowledgement in between, 40 ms for each answer on a connection that stays
open.

**Sharing.** All processes of a pool share one open file description, and with it the flag
O_NONBLOCK and every socket option. A handler can change them for everybody at any time. So nothing
is assumed: the master sets the flag again at each tick, and each worker every few requests.

**Stopping without loss.** When a listening socket is closed, the kernel resets every connection in
its accept queue. A stop that loses no client therefore has two steps. ``close_intake()`` first lets
no new client in and keeps the queue; the workers then serve the queue until it is empty. How the
intake is closed depends on the kind of the socket:

- TCP: the listening socket is bound to a network interface that does not exist (SO_BINDTOIFINDEX).
  The kernel looks up the listener of each SYN by its interface and finds none, so new clients are
  refused. A handshake that has begun belongs to the listener already: it completes and reaches the
  queue. This needs no privilege. The alternative was ``listen(0)``, which drops the last packet of
  handshakes under way, and needs a connection of our own to fill the queue.
- UDP: a socket filter drops every datagram that arrives. An interface that does not exist would
  also fail the replies, which go out through the same socket.
- Unix: ``shutdown()`` for reading refuses new clients and keeps the queue readable.

A server that serves again afterwards needs an open intake. Unbinding a socket from its interface
takes a privilege (CAP_NET_RAW) and a shutdown cannot be undone. So where the intake cannot be
opened, a fresh socket with the same address and options takes the place of the old one, under the
same descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import math
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator
from socketserver import BaseServer, TCPServer

from prefork.workers.files import (
    Identity,
    binding_with_mode,
    identity_of,
    is_still,
    unlink_if_still,
)
from prefork.workers.hosts import with_port
from prefork.workers.settings import Settings
from prefork.workers.text import escaped
from prefork.workers.waits import SO_TIMESTAMPNS, sample_every

# The socket module has no names for these options.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
SO_BINDTOIFINDEX = 62  # in Linux since 5.1
_NO_SUCH_INTERFACE = 0x7FFFFFFF


STANDARD_BACKLOG = 5
"""``TCPServer.request_queue_size`` as the standard library has it."""

WAITING_ROOM = 1024
"""Connections that may wait in the accept queue of a class that has not said how many."""

_SHORT_WAIT = struct.pack("@ll", 0, 1000)  # struct timeval: a millisecond


class Kind(enum.Enum):
    """How a worker takes requests from a listener without blocking."""

    STREAM = enum.auto()
    """A listening socket. It is set non-blocking: accept() returns at once."""
    DATAGRAM = enum.auto()
    """One socket for requests and replies. It stays blocking, because a reply may have to wait."""
    OTHER = enum.auto()
    """Anything else with a descriptor. get_request() is called when it is readable."""
    RESUMED = enum.auto()
    """No listener, but the link by which parked connections come back (workers/parking.py)."""
    POLLED = enum.auto()
    """No descriptor at all: get_request() is called at intervals (workers/polled.py)."""


class Listener:
    """The file descriptor of one server, which the master and its workers share.

    fd: the descriptor. name: the address for people, such as ``tcp://127.0.0.1:9000``. family,
    socket_type: of the socket module; -1 for a descriptor that is no socket.
    """

    def __init__(self, server: BaseServer) -> None:
        self.server = server
        self.fd: int = server.fileno()  # type: ignore[attr-defined]  # typeshed leaves it out of BaseServer
        self.kind, self.family, self.socket_type, self.name = _describe(self.fd)
        self._was_blocking = True
        self._receive_timeout = b""
        self._changed: list[tuple[int, int, int]] = []
        """Options that were set for the time of serving: level, option and former value."""
        self._intake_closed = False
        self._identity = identity_of(self.fd)
        self._path = _path_and_identity(self)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN | select.POLLRDHUP)

    @property
    def is_inherited(self) -> bool:
        """Whether another process holds the socket, too, and uses it after this pool."""
        return bool(getattr(self.server, "listener_inherited", False))

    @property
    def is_socket(self) -> bool:
        """Whether it is a socket: a reload hands a socket over by its address."""
        return self.family >= 0

    @property
    def file(self) -> Identity | None:
        """The file that this Unix socket was bound to, whatever its path leads to by now."""
        return None if self._path is None else self._path[1]

    @file.setter
    def file(self, file: Identity | None) -> None:
        if self._path is not None:
            self._path = None if file is None else (self._path[0], file)

    def is_still(self, fd: int | None) -> bool:
        """Return whether that descriptor is still this listener. None: the server has no descriptor."""
        return fd is not None and fd == self.fd and is_still(fd, self._identity)

    def __str__(self) -> str:
        return self.name

    def prepare(self, settings: Settings | None = None) -> None:
        """Set the socket up for sharing and for the settings (master, before the first fork)."""
        self._was_blocking = os.get_blocking(self.fd)
        if self.kind is Kind.DATAGRAM:
            self._receive_timeout = self._swap_receive_timeout(_SHORT_WAIT)
        if self._intake_closed:
            self._reopen_intake()
        if self._has_standard_queue():
            self._listen(WAITING_ROOM)
        if settings is not None:
            self._set_options(settings)

    def restore(self) -> None:
        """Leave the socket as it was found (master, after the last worker)."""
        with contextlib.suppress(OSError):  # the program may have closed it
            os.set_blocking(self.fd, self._was_blocking)
            if self.kind is Kind.DATAGRAM:
                self._swap_receive_timeout(self._receive_timeout)
            if self._has_standard_queue():
                self._listen(TCPServer.request_queue_size)
            self._restore_options()

    def _has_standard_queue(self) -> bool:
        """Whether nobody but the standard library has said how many connections may wait."""
        return (
            self.kind is Kind.STREAM and not self.is_inherited and has_standard_backlog(self.server)
        )

    def _listen(self, backlog: int) -> None:
        with self.as_socket() as sock:
            sock.listen(backlog)

    def _set_options(self, settings: Settings) -> None:
        """Set the socket options that a pool and its settings need.

        With ``defer_accept`` a connection enters the accept queue when its client has sent data, or
        when the time is up and the client acknowledges once more. Until then a stop by signal does
        not see the connection: the workers serve the accept queue only, and the client is reset
        when it speaks to a server that has gone. It has lost no request, because it had sent none.
        """
        tcp = self.kind is Kind.STREAM and self.family in (socket.AF_INET, socket.AF_INET6)
        if tcp:
            self._set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if settings.defer_accept is not None and tcp:
            # Whole seconds. The kernel rounds up to a number of retransmissions: 5 s become 7.
            self._set_option(
                socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, math.ceil(settings.defer_accept)
            )
        if sample_every(settings) and self.kind is Kind.DATAGRAM:
            self._set_option(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def _set_option(self, level: int, option: int, value: int) -> None:
        with contextlib.suppress(OSError), self.as_socket() as sock:
            before = sock.getsockopt(level, option)
            sock.setsockopt(level, option, value)
            self._changed.append((level, option, before))

    def _restore_options(self) -> None:
        changed, self._changed = self._changed, []
        with self.as_socket() as sock:
            for level, option, before in changed:
                sock.setsockopt(level, option, before)

    def _swap_receive_timeout(self, timeout: bytes) -> bytes:
        """Set SO_RCVTIMEO and return the former value (struct timeval).

        A server class with a ``get_request()`` of its own reads from a blocking socket: when
        another worker was faster, the read would wait for the next datagram.
        """
        with self.as_socket() as sock:
            before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            return before

    def assert_nonblocking(self) -> None:
        """Make accept() return at once, whatever a handler has done (master, worker)."""
        if self.kind is Kind.STREAM:
            with contextlib.suppress(OSError):  # the program may have closed it
                os.set_blocking(self.fd, False)

    def has_work(self) -> bool:
        """Return whether something waits in the kernel's queue (any process).

        A Unix socket after ``shutdown()`` is readable for ever, so that ``poll()`` does not say
        whether its queue is empty. False then: no client can have come after the shutdown.
        """
        return any(
            events & select.POLLIN and not events & select.POLLRDHUP
            for _, events in self._poll.poll(0)
        )

    def is_empty(self) -> bool:
        """Return whether the kernel's queue is known to be empty.

        Always False for a Unix socket after ``shutdown()``, which is readable for ever.
        """
        return not self._poll.poll(0)

    def may_bring_more(self) -> bool:
        """Return whether a request may follow although nothing is queued: not while the pool stops."""
        return False

    def needs_draining(self) -> bool:
        """Return whether clients are left that were queued when the intake was closed (master)."""
        return self._intake_closed and self.has_work()

    def close_intake(self) -> None:
        """Let no new client in, and keep everything that is queued (master).

        The text at the top of this module says how. Where the kernel refuses, the intake stays open
        and the workers serve what is queued at that moment. An inherited socket is left alone,
        because another process uses it.
        """
        if self.is_inherited or self._intake_closed:
            return
        with contextlib.suppress(OSError), self.as_socket() as sock:
            if self.family == socket.AF_UNIX:
                sock.shutdown(socket.SHUT_RD)
            elif self.kind is Kind.DATAGRAM:
                _drop_what_arrives(sock)
            elif self.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, _NO_SUCH_INTERFACE)
            else:
                return
            self._intake_closed = True

    def _reopen_intake(self) -> None:
        """Undo close_intake(), for a serve_forever() after a stop by signal."""
        with self.as_socket() as sock:
            try:
                if self.family == socket.AF_UNIX:
                    self._renew(sock)
                elif self.kind is Kind.DATAGRAM:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, 0)
            except PermissionError:  # unbinding from an interface takes a privilege
                self._renew(sock)
        self._intake_closed = False

    def _renew(self, old: socket.socket) -> None:
        """Put a fresh socket with the same address and options under the same descriptor."""
        address, backlog = old.getsockname(), backlog_of(old)
        listening = old.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with socket.socket(old.family, old.type, old.proto) as fresh:
            for level, option in _KEPT_OPTIONS:
                with contextlib.suppress(OSError):  # an option of another family
                    fresh.setsockopt(level, option, old.getsockopt(level, option))
            # The old socket has to be closed before the new one can have its address. Under the
            # same number, so that the server object and everything else that knows it need no
            # change.
            os.dup2(fresh.fileno(), old.fileno(), inheritable=False)
        mode = self.remove_path()
        with contextlib.nullcontext() if mode is None else binding_with_mode(old, mode):
            old.bind(address)
        if listening:
            old.listen(backlog)
        self._identity, self._path = identity_of(self.fd), _path_and_identity(self)
        remember_path = getattr(self.server, "remember_path", None)
        if self._path is not None and remember_path is not None:
            remember_path()

    def remove_path(self) -> int | None:
        """Remove the file of this Unix socket, unless the path is a successor's by now (master).

        Returns the mode of the removed file, None where there was none to remove.
        """
        return None if self._path is None else unlink_if_still(*self._path)

    @contextlib.contextmanager
    def as_socket(self) -> Iterator[socket.socket]:
        """Lend the descriptor to a socket object, which does not close it."""
        sock = socket.socket(fileno=self.fd)
        try:
            yield sock
        finally:
            sock.detach()


def has_standard_backlog(server: BaseServer) -> bool:
    """Return whether ``request_queue_size`` of a server is the standard library's own value.

    It is not if the program has set it on the object, on a class, or on ``TCPServer`` itself.
    """
    if "request_queue_size" in vars(server) or TCPServer.request_queue_size != STANDARD_BACKLOG:
        return False
    owners = (cls for cls in type(server).__mro__ if "request_queue_size" in vars(cls))
    return next(owners, None) is TCPServer


def _drop_what_arrives(sock: socket.socket) -> None:
    """Attach a classic BPF filter of one instruction, "return 0": keep no byte of a datagram."""
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(instruction))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _describe(fd: int) -> tuple[Kind, int, int, str]:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return Kind.OTHER, -1, -1, f"fd://{fd}"
    sock = socket.socket(fileno=fd)
    try:
        stream = sock.type == socket.SOCK_STREAM
        kind = Kind.DATAGRAM if sock.type == socket.SOCK_DGRAM else Kind.OTHER
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            kind = Kind.STREAM
        return kind, sock.family, sock.type, _name(sock.family, stream, sock.getsockname())
    finally:
        sock.detach()


def _name(family: int, stream: bool, address: object) -> str:
    if family == socket.AF_UNIX:
        path = address.decode("utf-8", "replace") if isinstance(address, bytes) else str(address)
        path = "@" + path[1:] if path.startswith("\0") else path
        return f"{'unix' if stream else 'unixgram'}:{escaped(path)}"
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{'tcp' if stream else 'udp'}://{with_port(str(address[0]), address[1])}"
    return f"family {family}: {escaped(str(address))}"


# What a fresh socket takes over from the one that it replaces.
_KEPT_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_BROADCAST),
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT),
)


def _path_and_identity(listener: Listener) -> tuple[str, Identity] | None:
    """Return the path of a Unix socket and which file is there; None where there is no file."""
    if listener.family != socket.AF_UNIX:
        return None
    sock = socket.socket(fileno=listener.fd)
    path = sock.getsockname()
    sock.detach()
    with contextlib.suppress(OSError, ValueError):
        return path, identity_of(path)
    return None


def backlog_of(sock: socket.socket) -> int:
    """Return the backlog in force; the maximum where the kernel does not say."""
    if sock.family != socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
        # TCP_INFO of a listening socket: tcpi_sacked is the limit of its accept queue.
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        limit: int = struct.unpack_from("=I", info, 28)[0]
        return limit
    return socket.SOMAXCONN
