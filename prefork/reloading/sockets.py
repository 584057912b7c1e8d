"""How a server of the new image gets the socket that it had before, instead of binding its address.

A program makes its servers as ever. While the state of an earlier image waits to be adopted, each server with the mix-in binds
through ``_bind``: where a socket with that address was handed over, it becomes the server's,
and ``bind()`` on it does nothing. So whatever else a class does in ``server_bind()`` is done. In a
trial there are no sockets: what was handed over is known by name, and stands in for them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import socket
from typing import Any

from prefork.host.named_socket import SocketName
from prefork.host.process import process
from prefork.workers.listener import Listener


class _AdoptedSocket(socket.socket):
    """A socket that has its address already."""

    def setsockopt(self, *how: Any) -> None:
        """Set an option, unless it is one for before the address, such as IPV6_V6ONLY: that was set."""
        with contextlib.suppress(OSError):
            super().setsockopt(*how)

    def bind(self, address: Any, /) -> None:
        """Keep the address: it is the one that was asked for."""


class _StandIn(socket.socket):
    """A socket of a trial: it takes the place of one that another process has."""

    bound: Any = None

    def bind(self, address: Any, /) -> None:
        """Leave the address to its owner."""

    def listen(self, backlog: int = 0, /) -> None:
        """Leave the clients to the owner of the address."""

    def getsockname(self) -> Any:
        """Return the address that it stands for."""
        return self.bound


def prepare(server: Any) -> None:
    """Have a server that is being made take its socket from here, if there is one for it."""
    if process.has_adoptable_sockets and hasattr(type(server), "server_bind"):
        server.server_bind = functools.partial(_bind, server)


def _bind(server: Any) -> None:
    del server.server_bind  # its class's own from now on
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
    # A duplicate: if the new code fails before it serves and closes its server, as a with
    # block does, the socket itself is still there for the next try.
    return _AdoptedSocket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))


class _Unclaimed:
    """A listening socket of the previous image that no server of this one has claimed."""

    listener_inherited = False

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd


def unclaimed_listeners() -> list[Listener]:
    """Return the sockets of the previous image that no server has claimed, once (master, servers are made)."""
    return [Listener(_Unclaimed(fd)) for fd in process.unclaimed()]  # type: ignore[arg-type]  # it has what a Listener needs


def is_adopted(sock: Any) -> bool:
    """Tell whether a server's socket had its address before the server was made."""
    return isinstance(sock, _AdoptedSocket | _StandIn)
