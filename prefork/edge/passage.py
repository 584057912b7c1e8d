"""One connection on its way through the edge, under one deadline (worker)."""

from __future__ import annotations

import socket
import traceback
from time import monotonic
from typing import Any, Final

from prefork.edge.client import ProxyFacts, TLSFacts, client_address
from prefork.workers.states import Rejection


class Refused(Exception):  # noqa: N818 - no error of the program
    """The edge refuses a client. reason: for the counters. Its text says why, in words for the log."""

    def __init__(self, reason: Rejection, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Passage:
    """What the steps of the edge know of one connection, and hand on to each other.

    request: the socket; a step may replace it by one that wraps it. peer: the address of the other
    end. client: the plain address of whom the peer speaks for; the peer itself without a proxy.
    identity, tls, proxy: as in ``ClientAddress``. is_trusted: the peer is a proxy that speaks for
    itself, so that rules for clients do not concern it.
    """

    # What no step has found out is an attribute of the class: each connection makes one of these objects.
    identity: Any = None
    tls: TLSFacts | None = None
    proxy: ProxyFacts | None = None
    is_trusted = False

    def __init__(self, request: Any, peer: Any, seconds: float) -> None:
        self.request = request
        self.peer = self.client = peer
        self._end = monotonic() + seconds

    def address(self) -> Any:
        """Return what the handler gets as ``client_address``."""
        return client_address(
            self.client, self.peer, identity=self.identity, tls=self.tls, proxy=self.proxy
        )

    def allow_time(self, sock: socket.socket) -> None:
        """Give the next call on a socket what is left of the time for the whole edge.

        To be called before each call that may wait, because the timeout of a socket holds for one
        call: a client that sends one byte a second never exceeds it. Raises TimeoutError when no
        time is left.
        """
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError("edge_timeout is over")
        sock.settimeout(left)

    def timed(self) -> Any:
        """Return the socket as code of the program gets it: each call has what is left of the time."""
        return _TimedSocket(self, self.request)

    def receive_exactly(self, sock: socket.socket, count: int) -> bytes:
        """Return the next bytes, exactly this many. Raises ConnectionError where the stream ends before."""
        parts = []
        while count:
            self.allow_time(sock)
            part = sock.recv(count)
            if not part:
                raise ConnectionError("the client has closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class _TimedSocket:
    """A socket of which each call that waits is under the deadline of its passage.

    All other attributes are those of the socket. Code that sets a timeout of its own has no effect.
    """

    def __init__(self, passage: Passage, sock: Any) -> None:
        self._passage = passage
        self._sock = sock
        self._io_refs = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._sock, name)
        if name not in _WAITING:
            return value

        def timed(*arguments: Any, **more: Any) -> Any:
            self._passage.allow_time(self._sock)
            return value(*arguments, **more)

        return timed

    def makefile(self, *how: Any, **more: Any) -> Any:
        """Return a file of this socket, which is under the deadline as well."""
        makefile: Any = socket.socket.makefile  # which asks for no more than this class has
        return makefile(self, *how, **more)

    def _decref_socketios(self) -> None:
        """Do nothing when a file is closed: the socket stays open for the handler."""


def is_of_client(error: OSError) -> bool:
    """Return whether an exception of ``authenticate()`` is the doing of the client.

    It is one if a call on the client's socket has raised it, which its traceback shows. A file or a database
    raises exceptions of the same types. A ConnectionError without a number is one that ``authenticate()`` raises
    itself, where the client has closed the connection within a message.
    """
    frames = traceback.walk_tb(error.__traceback__)
    if any(frame.f_globals.get("__name__") == __name__ for frame, _ in frames):
        return True
    return isinstance(error, ConnectionError) and error.errno is None


_WAITING: Final = frozenset(
    {
        *("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
        *("send", "sendall", "sendmsg", "sendto", "sendfile", "read", "write", "unwrap"),
    }
)
