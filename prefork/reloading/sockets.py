"""How a server of the new image gets the socket that it had before (new image, trial).

The program does not know that it is a new image. It makes its servers as it always does: the class
makes a socket, binds it to an address and listens. Binding would fail, because the address is in
use by the very socket that the server should have. So a server must be made to take that socket,
whatever its class does in ``server_bind()``, and without a word in the program.

``PreForkingMixIn.__new__`` calls ``prepare()`` for each server, before any ``__init__()``. While
there are adoptable sockets, ``prepare()`` gives the object a ``server_bind()`` of its own, which
hides the one of the class. Sooner or later the constructor calls it (``_bind()``):

1. The attribute is removed. The class's own method is visible again.
2. If a socket of the previous image has the address that the server asks for, ``server.socket``
   becomes an ``_AdoptedSocket`` for it, and the socket that the constructor has made is closed.
3. The class's own ``server_bind()`` runs. What it does besides binding is done (HTTPServer looks up
   its host name, the ready-made servers set socket options). ``bind()`` on the adopted socket does
   nothing.

The adopted socket is a duplicate of the descriptor that was handed over. If the new code fails
before its master has everything in hand, and closes its servers on the way out, the descriptor
itself is still open for the next attempt. ``process.end_handover()`` closes it.

A socket that no server has claimed by the time the pool is made is no longer wanted:
``unclaimed_listeners()``. The master closes its intake, has the old workers serve its queue, and
closes it.

In a trial the same happens with stand-ins: the trial knows the names of the sockets and has none of
them. A stand-in neither binds nor listens. It says that it has the address, so that the class goes
on.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import socket
from typing import Any

from prefork.host.handover import MasterState
from prefork.host.named_socket import SocketName
from prefork.host.process import process
from prefork.workers.files import Identity
from prefork.workers.listener import STANDARD_BACKLOG, WAITING_ROOM, Listener


class _AdoptedSocket(socket.socket):
    """A socket of the previous image, which is bound already."""

    def setsockopt(self, *how: Any) -> None:
        """Set an option, but ignore an error: IPV6_V6ONLY, say, cannot be set after a bind."""
        with contextlib.suppress(OSError):
            super().setsockopt(*how)

    def bind(self, address: Any, /) -> None:
        """Do nothing: the socket has this address."""

    def listen(self, backlog: int = WAITING_ROOM, /) -> None:
        """Listen, but never with the standard library's few places.

        The socket has clients of the pool, and the queue would be short until ``Listener.prepare()``.
        """
        super().listen(WAITING_ROOM if backlog == STANDARD_BACKLOG else backlog)


class _StandIn(socket.socket):
    """A socket of a trial in place of one that the master has. bound: the address of that one."""

    bound: Any = None

    def bind(self, address: Any, /) -> None:
        """Do nothing: the address is in use by the master's socket."""

    def listen(self, backlog: int = 0, /) -> None:
        """Do nothing: the clients of this address are the master's."""

    def getsockname(self) -> Any:
        """Return the address of the master's socket."""
        return self.bound


def prepare(server: Any) -> None:
    """Have a server that is being made adopt its socket, if there is one for it."""
    if process.has_adoptable_sockets and hasattr(type(server), "server_bind"):
        server.server_bind = functools.partial(_bind, server)


def _bind(server: Any) -> None:
    del server.server_bind
    sock = getattr(server, "socket", None)
    if isinstance(sock, socket.socket):
        claimed = process.claim(sock.family, sock.type, server.server_address)
        if claimed is not None:
            server.socket = _socket_for(*claimed)
            sock.close()
    server.server_bind()


def _socket_for(name: SocketName, fd: int | None) -> socket.socket:
    if fd is None:
        stand_in = _StandIn(name.family, name.kind)
        stand_in.bound = name.sockname
        return stand_in
    duplicate = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    process.release_claimed(fd)
    return _AdoptedSocket(fileno=duplicate)


class _Unclaimed:
    """A listening socket of the previous image that no server of this one has claimed."""

    listener_inherited = False

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd


def unclaimed_listeners() -> list[Listener]:
    """Return the sockets of the previous image that no server has claimed; the second time none."""
    return [_unclaimed(fd, name.file) for name, fd in process.unclaimed()]


def remove_paths(state: MasterState) -> None:
    """Remove the files of Unix sockets that this process will not serve any more."""
    for fd in state.listeners:
        with contextlib.suppress(OSError):  # new code may have closed it
            _unclaimed(fd, state.socket_files.get(fd)).remove_path()


def _unclaimed(fd: int, file: Identity | None) -> Listener:
    # It has what a Listener needs of a server.
    listener = Listener(_Unclaimed(fd))  # type: ignore[arg-type]
    listener.file = file  # by now the path may lead to the socket of a server of the new code
    return listener


def is_adopted(sock: Any) -> bool:
    """Return whether a server's socket had its address before the server was made."""
    return isinstance(sock, _AdoptedSocket | _StandIn)
