"""A listening socket by its name: the kind of socket and the address that it is bound to."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Self

import msgspec


class SocketName(msgspec.Struct, frozen=True):
    """The name of a bound socket, in a form that JSON can hold.

    address: as ``getsockname()`` returns it; for a Unix socket the bytes of its path in
    hexadecimal, because a path need not be UTF-8 and an abstract name begins with a zero.
    """

    family: int
    kind: int
    address: Any

    @classmethod
    def of(cls, fd: int) -> Self:
        """Return the name of an open socket."""
        sock = socket.socket(fileno=fd)
        try:
            address = sock.getsockname()
            if sock.family == socket.AF_UNIX:
                address = os.fsencode(address).hex()
            return cls(sock.family, sock.type, address)
        finally:
            sock.detach()

    @property
    def sockname(self) -> Any:
        """The address as ``getsockname()`` returns it, except that an abstract name is text."""
        if self.family == socket.AF_UNIX:
            return os.fsdecode(bytes.fromhex(self.address))
        return tuple(self.address) if isinstance(self.address, list) else self.address

    def fits(self, family: int, kind: int, asked: Any) -> bool:
        """Return whether a program means this socket when it binds one to that address."""
        if (self.family, self.kind) != (family, kind):
            return False
        if family == socket.AF_UNIX:
            return _path(self.sockname) == _path(asked)
        if family not in (socket.AF_INET, socket.AF_INET6):
            return bool(self.sockname == asked)
        host, port = _resolved(family, kind, asked)
        return self.address[0] == host and port in (0, self.address[1])


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
