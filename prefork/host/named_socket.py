"""A listening socket by its name: the kind of socket and the address that it is bound to."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Self

import msgspec

from prefork.workers.files import Identity, identity_of, is_still


class SocketName(msgspec.Struct, frozen=True):
    """The name of a bound socket, in a form that JSON can hold.

    address: as ``getsockname()`` returns it; for a Unix socket the bytes of its path in
    hexadecimal, because a path need not be UTF-8 and an abstract name begins with a zero.
    file: which file the path of a Unix socket leads to. None where the file is gone, or belongs to
    another socket by now; no client can reach the socket then.
    """

    family: int
    kind: int
    address: Any
    file: Identity | None = None

    @classmethod
    def of(cls, fd: int) -> Self:
        """Return the name of an open socket. Its path is taken to lead to its own file."""
        sock = socket.socket(fileno=fd)
        try:
            address, file = sock.getsockname(), None
            if sock.family == socket.AF_UNIX:
                with contextlib.suppress(OSError, ValueError):
                    file = identity_of(address)
                address = os.fsencode(address).hex()
            return cls(sock.family, sock.type, address, file)
        finally:
            sock.detach()

    @property
    def sockname(self) -> Any:
        """The address as ``getsockname()`` returns it, except that an abstract name is text."""
        if self.family == socket.AF_UNIX:
            return os.fsdecode(bytes.fromhex(self.address))
        return tuple(self.address) if isinstance(self.address, list) else self.address

    def fits(self, family: int, kind: int, asked: Any, *, any_port: bool = True) -> bool:
        """Return whether a program means this socket when it binds one to that address.

        any_port: whether port 0 means this socket, too. A Unix socket without its file is never
        meant: the program has to bind the path anew.
        """
        if (self.family, self.kind) != (family, kind):
            return False
        if family == socket.AF_UNIX:
            return _path(self.sockname) == _path(asked) and self.can_be_reached
        if family not in (socket.AF_INET, socket.AF_INET6):
            return bool(self.sockname == asked)
        host, port = _resolved(family, kind, asked)
        ports = (0, self.address[1]) if any_port else (self.address[1],)
        return self.address[0] == host and port in ports

    @property
    def can_be_reached(self) -> bool:
        """Whether clients find the socket: always, except for a Unix socket whose file is gone."""
        if self.family != socket.AF_UNIX:
            return True
        path = _path(self.sockname)
        return path.startswith(b"\0") or is_still(os.fsdecode(path), self.file)


def _path(address: Any) -> bytes:
    name = os.fsencode(address)
    return name if name.startswith(b"\0") or not name else os.path.abspath(name)


def _resolved(family: int, kind: int, asked: Any) -> tuple[str, int]:
    """Return host and port as the kernel would name them after a bind."""
    host, port = asked[0], asked[1]
    with contextlib.suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host or None, port, family, kind, flags=socket.AI_PASSIVE)
        host = found[0][4][0]
    return str(host), port
