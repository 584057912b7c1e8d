"""Where the metrics process listens. The master binds the address before it forks anything."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from prefork.host.addresses import Address
from prefork.host.bind_errors import bind_reason
from prefork.host.socket_file import one_start_at_a_time, remove_stale
from prefork.workers.errors import BindError, SettingsError
from prefork.workers.files import Identity, binding_with_mode, identity_of, unlink_if_still
from prefork.workers.settings import ROWS

BACKLOG = 64
UNIX_MODE = 0o660


class Endpoint:
    """A bound address and its listening socket (master).

    The socket is kept as a bare descriptor number. Every child closes the number, and in a child a
    socket object would later close whatever file had reused the number.

    text: the setting. fd: a socket that an earlier image of the master has bound there; it stays
    open whatever is raised. Raises SettingsError for a text that is no address, BindError where the
    address cannot be had.
    """

    def __init__(self, text: str, fd: int | None = None) -> None:
        self.fd = _bound(address_for_metrics(text)).detach() if fd is None else fd
        sock = socket.socket(fileno=self.fd)
        try:
            bound = Address.of_socket(sock)
        finally:
            sock.detach()
        self._path: tuple[str, Identity] | None = None
        self._has_file = bool(bound.path) and not bound.path.startswith("\0")
        if self._has_file:
            path = os.path.abspath(bound.path)
            with contextlib.suppress(FileNotFoundError):  # someone has removed it
                self._path = path, identity_of(path)
        self.address = str(bound).removeprefix("tcp://")
        """The address, such as ``127.0.0.1:9100`` with the real port, or ``unix:/path``."""

    @property
    def file(self) -> Identity | None:
        """The file of this Unix socket; None where it has none."""
        return None if self._path is None else self._path[1]

    @property
    def can_be_reached(self) -> bool:
        """Whether clients find the socket: always, except for a Unix socket whose file was removed."""
        return self._path is not None or not self._has_file

    def close(self) -> None:
        """Close the socket, and remove the path if it is still this socket's (master)."""
        os.close(self.fd)
        if self._path is not None:
            unlink_if_still(*self._path)


def is_same_place(text: str, address: str) -> bool:
    """Return whether an address is what a setting asks for; port 0 asks for any port."""
    asked = address_for_metrics(text)
    if asked.scheme == "unix":  # compared as it is shown: the path need not be UTF-8
        return str(asked) == address
    has = address_for_metrics(address)
    return (asked.scheme, asked.host) == (has.scheme, has.host) and asked.port in (0, has.port)


def address_for_metrics(text: str, source: str = "settings") -> Address:
    """Read the setting ``metrics``; SettingsError for a text that is no address of TCP or ``unix:``.

    source: where the text came from, for the error.
    """
    allowed = f"it must be {ROWS['metrics'].about.allowed}"
    try:
        address = Address.parse(text, allowed=allowed)
    except SettingsError as error:
        raise SettingsError("metrics", text, source, error.allowed) from None
    if address.scheme not in ("tcp", "unix"):
        raise SettingsError("metrics", text, source, allowed)
    return address


def _bound(address: Address) -> socket.socket:
    try:
        if address.scheme == "unix":
            return _bound_path(address.path)
        return _bound_port(address.host, address.port)
    except OSError as error:
        raise BindError(f"{address} (metrics)", bind_reason(error, address.sockaddr)) from error


def _bound_port(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name can have addresses of both families. IPv4 is taken then, as the servers do.
    family, kind, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return _listening(family, kind, address)


def _bound_path(path: str) -> socket.socket:
    if path.startswith("\0"):
        return _listening(socket.AF_UNIX, socket.SOCK_STREAM, path)
    with one_start_at_a_time(path):
        remove_stale(path, socket.SOCK_STREAM)
        return _listening(socket.AF_UNIX, socket.SOCK_STREAM, path)


def _listening(family: int, kind: int, address: Any) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_UNIX:
            with binding_with_mode(sock, UNIX_MODE):
                sock.bind(address)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
