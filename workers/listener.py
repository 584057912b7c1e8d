"""What the pool knows of a server's socket, and what it may do to it.

The socket belongs to the server class: it is found through ``fileno()``, never through
``self.socket``, and a server whose requests come from elsewhere (a pipe, an eventfd) works too.
Whatever is changed here for the time of ``serve_forever()`` is put back afterwards.
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
from socketserver import BaseServer

from prefork.workers.files import Identity, identity_of, is_still, unlink_if_still
from prefork.workers.settings import Settings
from prefork.workers.text import escaped
from prefork.workers.waits import SO_TIMESTAMPNS, sample_every

# The socket module has no names for these.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_SO_BINDTOIFINDEX = 62  # in Linux since 5.1
_NO_SUCH_INTERFACE = 0x7FFFFFFF


_SHORT_WAIT = struct.pack("@ll", 0, 1000)  # struct timeval: a millisecond


class Kind(enum.Enum):
    """How requests are taken from a listener without ever blocking."""

    STREAM = enum.auto()
    """A listening socket: set non-blocking, accept() says at once whether there is something."""
    DATAGRAM = enum.auto()
    """One socket for requests and replies: not set non-blocking, since replies may have to wait."""
    OTHER = enum.auto()
    """Anything with a fileno(): get_request() is called when it is readable."""


class Listener:
    """One server's file descriptor, as master and workers share it."""

    def __init__(self, server: BaseServer) -> None:
        self.server = server
        self.fd: int = server.fileno()  # type: ignore[attr-defined]  # typeshed leaves it out of BaseServer
        self.kind, self.family, self.socket_type, self.name = _describe(self.fd)
        self._was_blocking = True
        self._receive_timeout = b""
        self._changed: list[tuple[int, int, int]] = []
        """Options that were set for the time of serving, each with its former value."""
        self._intake_closed = False
        self._identity = identity_of(self.fd)
        self._path = _path_and_identity(self)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN | select.POLLRDHUP)

    @property
    def is_inherited(self) -> bool:
        """Whether another process holds the socket, too, and counts on it after we have stopped."""
        return bool(getattr(self.server, "listener_inherited", False))

    @property
    def is_socket(self) -> bool:
        """Whether it is a socket at all: what has an address can be handed over by it."""
        return self.family >= 0

    def is_still(self, fd: int) -> bool:
        """Tell whether that descriptor is still this listener."""
        return fd == self.fd and is_still(fd, self._identity)

    def __str__(self) -> str:
        return self.name

    def prepare(self, settings: Settings | None = None) -> None:
        """Set up for sharing and for what the settings want (master, before the first fork)."""
        self._was_blocking = os.get_blocking(self.fd)
        if self.kind is Kind.DATAGRAM:
            self._receive_timeout = self._swap_receive_timeout(_SHORT_WAIT)
        if self._intake_closed:
            self._reopen_intake()
        if settings is not None:
            self._set_options(settings)

    def restore(self) -> None:
        """Leave the socket as it was found (master, after the last worker)."""
        with contextlib.suppress(OSError):  # the program may have closed it
            os.set_blocking(self.fd, self._was_blocking)
            if self.kind is Kind.DATAGRAM:
                self._swap_receive_timeout(self._receive_timeout)
            self._restore_options()

    def _set_options(self, settings: Settings) -> None:
        """Ask the kernel for what the settings need of it.

        With ``defer_accept`` a connection gets into the accept queue when its client has sent
        something, or when the time is up and it answers once more. Until then it is parked in
        the kernel, and a stop by signal does not see it there: the drain serves the accept queue,
        and a client that has connected and said nothing is reset when it speaks to a server that
        is gone. It has lost no request, because it had not sent one.
        """
        tcp = self.kind is Kind.STREAM and self.family in (socket.AF_INET, socket.AF_INET6)
        if settings.defer_accept is not None and tcp:
            # Whole seconds; the kernel rounds up to a number of retransmissions: 5 s become 7.
            self._set_option(
                socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, math.ceil(settings.defer_accept)
            )
        if sample_every(settings) and self.kind is Kind.DATAGRAM:
            self._set_option(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def _set_option(self, level: int, option: int, value: int) -> None:
        with contextlib.suppress(OSError), self._as_socket() as sock:
            before = sock.getsockopt(level, option)
            sock.setsockopt(level, option, value)
            self._changed.append((level, option, before))

    def _restore_options(self) -> None:
        changed, self._changed = self._changed, []
        with self._as_socket() as sock:
            for level, option, before in changed:
                sock.setsockopt(level, option, before)

    def _swap_receive_timeout(self, timeout: bytes) -> bytes:
        """Set SO_RCVTIMEO, so that a get_request() of a class of its own cannot block for ever."""
        with self._as_socket() as sock:
            before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            return before

    def assert_nonblocking(self) -> None:
        """Make accept() return at once, whatever a handler has done (master, at each tick; worker).

        The flag lives in the file description that all processes share: it is never assumed.
        """
        if self.kind is Kind.STREAM:
            with contextlib.suppress(OSError):  # the program may have closed it
                os.set_blocking(self.fd, False)

    def has_work(self) -> bool:
        """Tell whether something waits in the kernel's queue (any process)."""
        # After shutdown() a Unix socket is readable for ever: poll() does not tell whether its
        # queue is empty, but then nothing can have come late either.
        return any(
            events & select.POLLIN and not events & select.POLLRDHUP
            for _, events in self._poll.poll(0)
        )

    def is_empty(self) -> bool:
        """Tell whether surely nothing waits in the kernel's queue.

        False, too, for a Unix socket after shutdown(), which is readable for ever.
        """
        return not self._poll.poll(0)

    def needs_draining(self) -> bool:
        """Tell whether something is left of what was queued when the intake was closed (master)."""
        return self._intake_closed and self.has_work()

    def close_intake(self) -> None:
        """Let no new client in, and keep everything that is queued (master).

        TCP: the listener is bound to an interface that does not exist. New SYNs find no listener
        and are refused, while handshakes that have begun still reach the queue; needs no
        privilege. listen(0) was the alternative: it drops the last packet of handshakes in
        flight, and needs a connection of our own as a plug. UDP: a filter drops what arrives; the
        interface trick would fail the replies. Unix: shutdown() for reading refuses new clients
        and leaves the queue readable.

        An inherited socket is left alone: its other holder counts on it.
        """
        if self.is_inherited or self._intake_closed:
            return
        with (
            contextlib.suppress(OSError),
            self._as_socket() as sock,
        ):  # an old kernel: drain plainly
            if self.family == socket.AF_UNIX:
                sock.shutdown(socket.SHUT_RD)
            elif self.kind is Kind.DATAGRAM:
                _drop_what_arrives(sock)
            elif self.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_SUCH_INTERFACE)
            else:
                return
            self._intake_closed = True

    def _reopen_intake(self) -> None:
        """Undo close_intake() for a serve_forever() that is called again after a stop by signal."""
        with self._as_socket() as sock:
            try:
                if self.family == socket.AF_UNIX:
                    self._renew(sock)
                elif self.kind is Kind.DATAGRAM:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, 0)
            except PermissionError:  # to be bound to no interface again takes a privilege
                self._renew(sock)
        self._intake_closed = False

    def _renew(self, old: socket.socket) -> None:
        """Put a fresh socket with the same address and options under the same descriptor."""
        address, backlog = old.getsockname(), _backlog(old)
        listening = old.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with socket.socket(old.family, old.type, old.proto) as fresh:
            for level, option in _KEPT_OPTIONS:
                with contextlib.suppress(OSError):  # an option of another family
                    fresh.setsockopt(level, option, old.getsockopt(level, option))
            # The old socket has to go before the new one can have its address; the number stays taken.
            os.dup2(fresh.fileno(), old.fileno(), inheritable=False)
        mode = self.remove_path()
        old.bind(address)
        if mode is not None:
            os.chmod(address, mode)
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
    def _as_socket(self) -> Iterator[socket.socket]:
        sock = socket.socket(fileno=self.fd)
        try:
            yield sock
        finally:
            sock.detach()


def _drop_what_arrives(sock: socket.socket) -> None:
    """Attach a classic BPF filter of one instruction: keep 0 bytes."""
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
        host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        return f"{'tcp' if stream else 'udp'}://{host}:{address[1]}"
    return f"family {family}: {escaped(str(address))}"


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
    """Return the file of a Unix socket and which file it is; None where there is none."""
    if listener.family != socket.AF_UNIX:
        return None
    sock = socket.socket(fileno=listener.fd)
    path = sock.getsockname()
    sock.detach()
    with contextlib.suppress(OSError, ValueError):
        return path, identity_of(path)
    return None


def _backlog(sock: socket.socket) -> int:
    """Return the backlog in force; where the kernel does not tell, its maximum."""
    if sock.family != socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
        # TCP_INFO of a listening socket: tcpi_sacked is the limit of its accept queue.
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        limit: int = struct.unpack_from("=I", info, 28)[0]
        return limit
    return socket.SOMAXCONN
