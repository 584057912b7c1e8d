"""How a server of the new image gets the socket that it had before, instead of binding its address.

A program makes its servers as ever. While the state of an earlier image waits to be adopted, each server with the mix-in binds
through ``AdoptableSockets.bind``: where a socket with that address was handed over, it becomes the server's,
and ``bind()`` on it does nothing. So whatever else a class does in ``server_bind()`` is done. In a
trial there are no sockets: what was handed over is known by name, and stands in for them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
from typing import Any

import msgspec

from prefork.host import process
from prefork.reloading import trial


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


class Named(msgspec.Struct, frozen=True):
    """A listening socket that was handed over. fd: None in a trial, which has not got it."""

    family: int
    kind: int
    address: Any
    fd: int | None = None

    @classmethod
    def of(cls, fd: int) -> Named:
        """Describe an open socket."""
        sock = socket.socket(fileno=fd)
        try:
            address = sock.getsockname()
            if sock.family == socket.AF_UNIX:
                address = os.fsdecode(address)  # abstract names are bytes
            return cls(sock.family, sock.type, address, fd)
        finally:
            sock.detach()

    @property
    def told(self) -> Any:
        """The address in a form that JSON can hold: the path of a Unix socket need not be UTF-8."""
        return os.fsencode(self.address).hex() if self.family == socket.AF_UNIX else self.address

    @classmethod
    def retold(cls, family: int, kind: int, told: Any) -> Named:
        """Read that again."""
        unix = family == socket.AF_UNIX
        return cls(family, kind, os.fsdecode(bytes.fromhex(told)) if unix else told)

    def fits(self, family: int, kind: int, asked: Any) -> bool:
        """Tell whether this is the socket for an address as a program asks for it."""
        if (self.family, self.kind) != (family, kind):
            return False
        if family == socket.AF_UNIX:
            return _unix_name(self.address) == _unix_name(asked)
        if family not in (socket.AF_INET, socket.AF_INET6):
            return bool(self.address == asked)
        host, port = _resolved(family, kind, asked)
        return self.address[0] == host and port in (0, self.address[1])


class AdoptableSockets:
    """The sockets that wait for their servers."""

    def __init__(self, sockets: list[Named], *, on_trial: bool = False) -> None:
        self.left = sockets
        self._on_trial = on_trial
        self._spare: list[int] = []

    def prepare(self, server: Any) -> None:
        """Have a server that is being made take its socket from here, if there is one for it."""
        if hasattr(type(server), "server_bind"):
            server.server_bind = functools.partial(self._bind, server)

    def give_up(self) -> list[int]:
        """Return the descriptors of the sockets that nobody has asked for; once."""
        left, self.left = self.left, []
        return [named.fd for named in left if named.fd is not None]

    def settle(self) -> None:
        """Close what was kept for another try: the servers have everything in hand."""
        spare, self._spare = self._spare, []
        for fd in spare:
            os.close(fd)

    def _bind(self, server: Any) -> None:
        del server.server_bind  # its class's own from now on
        sock = getattr(server, "socket", None)
        if isinstance(sock, socket.socket):
            for named in self.left:
                if named.fits(sock.family, sock.type, server.server_address):
                    self.left.remove(named)
                    server.socket = self._socket_for(named)
                    sock.close()
                    break
        server.server_bind()

    def _socket_for(self, named: Named) -> socket.socket:
        if self._on_trial:
            stand_in = _StandIn(named.family, named.kind)
            stand_in.bound = named.address
            return stand_in
        assert named.fd is not None  # noqa: S101
        # A duplicate: if the new code fails before it serves and closes its server, as a with
        # block does, the socket itself is still there for the next try.
        self._spare.append(named.fd)
        return _AdoptedSocket(fileno=fcntl.fcntl(named.fd, fcntl.F_DUPFD_CLOEXEC, 3))


def sockets_of_this_process() -> AdoptableSockets | None:
    """Return the sockets that wait for the servers of this process; None where it was started afresh."""
    if (previous := process.pending()) is not None:
        return AdoptableSockets([Named.of(fd) for fd in previous.listeners])
    if (orders := trial.orders_of_this_process()) is not None:
        return AdoptableSockets(
            [Named.retold(*one) for one in orders.inventory.sockets], on_trial=True
        )
    return None


class Abandoned:
    """A listening socket that no server of the new image asked for: served to its end by the old workers."""

    listener_inherited = False

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd


def is_adopted(sock: Any) -> bool:
    """Tell whether a server's socket had its address before the server was made."""
    return isinstance(sock, _AdoptedSocket | _StandIn)


def _unix_name(address: Any) -> bytes:
    name = os.fsencode(address)
    return name if name.startswith(b"\0") or not name else os.path.abspath(name)


def _resolved(family: int, kind: int, asked: Any) -> tuple[str, int]:
    """Return host and port as the kernel would tell them after a bind."""
    host, port = asked[0], asked[1]
    with contextlib.suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host or None, port, family, kind, flags=socket.AI_PASSIVE)
        host = found[0][4][0]
    return str(host), port
