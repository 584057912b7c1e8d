"""Parked connections: what a worker and the lot say to each other, and in which shape (both).

A connection whose client says nothing must not hold a worker. After its handler has returned, a
worker gives such a connection to the *lot*, one small process that waits for the idle connections
of the whole pool. When a client speaks again, the lot gives the connection to whichever worker is
free.

**The link.** For each server that parks there is one pair of Unix sockets, the *link*. The lot has
one end, and all workers share the other. A connection travels over the link as one message: its
descriptor (SCM_RIGHTS) and a few bytes that say whose it is. The same link serves both directions:

    worker ── PARK, or READY when the next request was read ahead ──> lot
    worker <── RESUMED, when the client has spoken ── lot

For a worker, the end of the link is one more descriptor to wait on, beside the listening socket and
in the same epoll (``ResumeQueue``). The kernel balances the load here as it does there: a worker
that is busy does not receive, so a free one does.

The sockets are of the kind SOCK_SEQPACKET: messages keep their boundaries, and an end that is shut
down is seen at the other. The lot never waits for a worker. A worker that cannot send because the
link is full waits for some milliseconds, and then closes the connection. The lot keeps what it
cannot send in a queue of its own.

**Trust.** The lot believes nothing of a message but that it is bytes: the payload goes back to a
worker as it came. Workers can send garbage, and could take each other's connections; they are of
one pool and one user. The master reads nothing from a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
from socketserver import BaseServer
from typing import Any, Final, Self

import msgspec

from prefork.workers.listener import Kind, Listener

MOST_STATE: Final = 4096
"""Bytes that a handler may keep with a parked connection."""

MOST_READ_AHEAD: Final = 64 * 1024
"""Bytes that a handler may have read ahead of its request."""

MOST_OF_CLIENT: Final = 32 * 1024
"""Bytes for what the edge has learned of the client, as MessagePack has it.

A header of a proxy has 16 KiB at most. MessagePack adds two bytes to each of its extensions, of which the
smallest have three, so all of them take 27 KiB at most. The rest is for addresses and the identity.
"""

PARK: Final = b"P"
"""The connection is idle: wait until its client speaks."""
READY: Final = b"R"
"""The client has spoken already: give the connection to a worker when its turn comes."""
RESUMED: Final = b"S"
"""The client has spoken."""
DRAIN: Final = b"D"
"""The pool stops: close what is idle, give back what has spoken, and shut the link down."""

_HEADER: Final = struct.Struct("=cq")
"""The kind of a message, and when the client spoke: nanoseconds of CLOCK_MONOTONIC, 0 for unknown."""

MOST_PAYLOAD: Final = MOST_STATE + MOST_READ_AHEAD + MOST_OF_CLIENT
"""The longest payload: state, read-ahead, and whose connection it is."""

MESSAGE_BYTES: Final = _HEADER.size + MOST_PAYLOAD
"""The longest message."""

# Plain numbers: to combine two members of an enumeration takes a microsecond.
_INT: Final = struct.calcsize("@i")
_ROOM: Final = socket.CMSG_SPACE(2 * _INT)  # for one descriptor more than is wanted, to be closed
_SOCKET, _RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC)
LOOK: Final = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)

SHORTAGES: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
"""Why a message cannot be sent now, although the other end is there.

ETOOMANYREFS: the descriptors that this user has in flight, in all sockets, are as many as
RLIMIT_NOFILE allows.
"""


class Luggage(msgspec.Struct, frozen=True, array_like=True):
    """What goes along with a parked connection, from one handler to the next.

    address: as ``client_address``, text or a list. state: what the handler wants to find again.
    read_ahead: bytes of the next request that were read with the last one. is_new: the connection
    was parked before its first request. client: what the edge has learned of the client; None without
    an edge.

    The lot may hold what code of an earlier image has packed: new fields come last and have a default.
    """

    address: Any
    state: bytes = b""
    read_ahead: bytes = b""
    is_new: bool = False
    client: Any = None


_TEXT: Final = 1
"""The type of the extension of MessagePack for text that UTF-8 cannot carry."""

_encode = msgspec.msgpack.Encoder().encode


def encode(luggage: Luggage) -> bytes:
    """Return the bytes of a luggage.

    A path is bytes, and Python makes text of it: each byte that is no UTF-8 becomes half of a surrogate
    pair, which MessagePack has no form for. So all text of a luggage with such a path goes as an extension.
    """
    try:
        return _encode(luggage)
    except UnicodeEncodeError:
        address, client = _as_extensions(luggage.address), _as_extensions(luggage.client)
        return _encode(msgspec.structs.replace(luggage, address=address, client=client))


def _as_extensions(value: Any) -> Any:
    if isinstance(value, str):
        return msgspec.msgpack.Ext(_TEXT, value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (tuple, list)):
        return [_as_extensions(one) for one in value]
    return value


def _from_extension(_kind: int, data: memoryview) -> str:
    return str(data, "utf-8", "surrogatepass")


decode = msgspec.msgpack.Decoder(Luggage, ext_hook=_from_extension).decode

INSTANT: Final = struct.Struct("=q")
"""What precedes the luggage in a payload: when the connection was parked, in nanoseconds of CLOCK_MONOTONIC.

The instant is not a part of the luggage. So the luggage of a quiet connection stays the same, and a worker
sends it back as it came.
"""


def unpack(message: bytes) -> tuple[bytes, int, bytes]:
    """Return kind, instant and payload of a message. Raises ValueError for one that is too short."""
    try:
        kind, spoke_ns = _HEADER.unpack_from(message)
    except struct.error:
        raise ValueError("a message without a header") from None
    return kind, spoke_ns, message[_HEADER.size :]


def send(
    sock: socket.socket, kind: bytes, spoke_ns: int, payload: bytes = b"", fd: int = -1
) -> None:
    """Send a message, with the descriptor of its connection; never waits.

    spoke_ns: when the client spoke. fd: -1 for no descriptor. Raises OSError: one of SHORTAGES where
    the link is full, EPIPE where its other end is shut down, EMSGSIZE for a message that the other end
    could not receive as a whole.
    """
    if len(payload) > MOST_PAYLOAD:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    header = _HEADER.pack(kind, spoke_ns)
    rights = () if fd < 0 else ((_SOCKET, _RIGHTS, fd.to_bytes(_INT, sys.byteorder)),)
    sock.sendmsg((header, payload), rights, _SEND)


class Receiver:
    """Receives messages from one socket, into memory that is allocated once."""

    def __init__(self, sock: socket.socket) -> None:
        self._receive = sock.recvmsg_into
        self._memory = bytearray(MESSAGE_BYTES)
        self._view = memoryview(self._memory)

    def receive(self) -> tuple[bytes, int]:
        """Receive a message and its descriptor; b"" for the end of a link that was shut down.

        The descriptor is -1 where the message has none, or has another number than one; these are
        closed. A message that is longer than MESSAGE_BYTES becomes one without a header: what is left of
        it means nothing. Raises BlockingIOError where nothing is queued.
        """
        count, ancillary, flags, _ = self._receive((self._memory,), _ROOM, _RECEIVE)
        if flags & _CUT:
            count = 1
        return bytes(self._view[:count]), _descriptor_in(ancillary)


def _descriptor_in(ancillary: list[tuple[int, int, bytes]]) -> int:
    if len(ancillary) == 1:
        level, kind, data = ancillary[0]
        if len(data) == _INT and level == _SOCKET and kind == _RIGHTS:
            return int.from_bytes(data, sys.byteorder)
    for level, kind, data in ancillary:
        if level == _SOCKET and kind == _RIGHTS:
            for at in range(0, len(data) - _INT + 1, _INT):
                os.close(int.from_bytes(data[at : at + _INT], sys.byteorder))
    return -1


class borrowed(contextlib.AbstractContextManager[socket.socket]):  # noqa: N801 - used as a function
    """A socket object for a descriptor that somebody else closes."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(self, *_error: object) -> None:
        self._sock.detach()


def has_spoken(fd: int) -> bool:
    """Return whether the client of a connection has sent something, other than the end."""
    if fd < 0:
        return False
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)  # of any family, to receive
    try:
        return bool(sock.recv(1, LOOK))
    except OSError:
        return False
    finally:
        sock.detach()


class Link(msgspec.Struct, frozen=True):
    """The pair of sockets between the workers and the lot, for one server.

    listener: the name of the server's listener, by which the next image finds the link.
    """

    listener: str
    workers_end: int
    lots_end: int

    @classmethod
    def make(cls, listener: str) -> Link:
        """Make the pair (master). Raises OSError without free descriptors."""
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        return cls(listener, *(end.detach() for end in ends))

    @property
    def fds(self) -> tuple[int, int]:
        """Both descriptors."""
        return self.workers_end, self.lots_end


class ParkedSocket(socket.socket):
    """A connection that was parked, as its next handler gets it: ``request``.

    luggage: what its last handler has left. packed: the same as it came. waited_ns: nanoseconds from the word of its client to
    the take; None where that is not known. is_quick: whether the client spoke so soon that it pays
    to wait for its next request.
    """

    luggage: Luggage
    packed: bytes = b""
    waited_ns: int | None = None
    is_quick: bool = True

    def shutdown(self, how: int) -> None:
        """Do as ``socket.shutdown()``, and nothing once the connection has been parked again.

        The server shuts each request down after its handler. A system call and an exception for a
        descriptor that has left would cost 2 of some 20 us.
        """
        if self.fileno() >= 0:
            super().shutdown(how)


class ServerOfParked:
    """A server as its parked connections see it: all is the server's own, but where they come from."""

    def __init__(self, server: BaseServer, fd: int) -> None:
        self._server = server
        self._fd = fd

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd


class ResumeQueue(Listener):
    """The workers' end of a link as a listener: connections whose clients have spoken (master, workers).

    It is no listening socket, and it has the name of the one whose connections it brings. Of a
    listener it has what the master and a worker ask while they serve.
    """

    def __init__(self, listener: Listener, fd: int) -> None:
        self.kind = Kind.RESUMED
        self.fd = fd
        self.name = listener.name
        self.family, self.socket_type = listener.family, listener.socket_type
        self.server: Any = ServerOfParked(listener.server, fd)
        self._intake_closed = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN | select.POLLRDHUP)

    @property
    def is_inherited(self) -> bool:
        """Whether another process than those of this pool uses it: none does."""
        return False

    @property
    def is_socket(self) -> bool:
        """Whether a reload hands it over by its address: its link is handed over with the lot."""
        return False

    def assert_nonblocking(self) -> None:
        """Do nothing: no call on a link waits, whatever its flags are."""

    def has_work(self) -> bool:
        """Return whether a connection waits for a worker (any process)."""
        return any(
            events & select.POLLIN and not events & select.POLLRDHUP
            for _, events in self._poll.poll(0)
        )

    def is_empty(self) -> bool:
        """Return whether nothing is queued, and nothing can follow."""
        return not self.may_bring_more()

    def may_bring_more(self) -> bool:
        """Return whether something is queued, or the lot can still send."""
        if not any(events & select.POLLRDHUP for _, events in self._poll.poll(0)):
            return True
        with contextlib.suppress(BlockingIOError), borrowed(self.fd) as sock:
            return bool(sock.recv(1, LOOK))
        return False

    def needs_draining(self) -> bool:
        """Return whether connections may still come that spoke before the pool began to stop (master)."""
        return self._intake_closed and self.may_bring_more()

    def close_intake(self) -> None:
        """Have the lot close what is idle, and give back what has spoken (master)."""
        if not self._intake_closed:
            self._intake_closed = True
            with contextlib.suppress(OSError), borrowed(self.fd) as sock:
                send(sock, DRAIN, 0)

    @classmethod
    def of_unclaimed(cls, link: Link) -> Self:
        """Return the end of a link whose listener does not park any more, to close its intake."""
        return cls(_Gone(link), link.workers_end)  # type: ignore[arg-type]

    def give_up(self) -> None:
        """Wait no longer for the lot. What is queued already is still served (master)."""
        with contextlib.suppress(OSError), borrowed(self.fd) as sock:
            sock.shutdown(socket.SHUT_RD)


class _Gone:
    """What a ``ResumeQueue`` needs of a listener that is no more."""

    family = socket_type = -1
    server = None

    def __init__(self, link: Link) -> None:
        self.name = link.listener
