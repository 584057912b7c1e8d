"""Where the metrics process listens. The master binds the addresses before it forks anything.

There are two: the setting ``metrics`` names the address for HTTP, the setting ``agent`` that for HAProxy's
agent check.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Final

from prefork.host.addresses import Address
from prefork.host.bind_errors import bind_reason
from prefork.host.socket_file import one_start_at_a_time, remove_stale
from prefork.workers.errors import BindError, SettingsError
from prefork.workers.files import Identity, binding_with_mode, identity_of, unlink_if_still
from prefork.workers.settings import ROWS

BACKLOG = 64
UNIX_MODE = 0o660

ENDPOINTS: Final = ("metrics", "agent")
"""The settings that name an address of the metrics process. Each is the key of its endpoint."""


class Endpoint:
    """A bound address and its listening socket (master).

    The socket is kept as a bare descriptor number. Every child closes the number, and in a child a
    socket object would later close whatever file had reused the number.

    setting: the key of the setting. text: its value. fd: a socket that an earlier image of the master has bound there; it stays
    open whatever is raised. Raises SettingsError for a text that is no address, BindError where the
    address cannot be had.
    """

    def __init__(self, setting: str, text: str, fd: int | None = None) -> None:
        self.is_new = fd is None
        """Whether the socket was bound by this object."""
        self.fd = _bound(setting, endpoint_address(setting, text)).detach() if fd is None else fd
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


def is_same_place(setting: str, text: str, address: str) -> bool:
    """Return whether an address is what a setting asks for; port 0 asks for any port."""
    asked = endpoint_address(setting, text)
    if asked.scheme == "unix":  # compared as it is shown: the path need not be UTF-8
        return str(asked) == address
    has = endpoint_address(setting, address)
    return (asked.scheme, asked.host) == (has.scheme, has.host) and asked.port in (0, has.port)


def endpoint_address(setting: str, text: str, source: str = "settings") -> Address:
    """Read one of ENDPOINTS; SettingsError for a text that is no address of TCP or ``unix:``.

    source: where the text came from, for the error.
    """
    allowed = f"it must be {ROWS[setting].about.allowed}"
    try:
        address = Address.parse(text, allowed=allowed)
    except SettingsError as error:
        raise SettingsError(setting, text, source, error.allowed) from None
    if address.scheme not in ("tcp", "unix"):
        raise SettingsError(setting, text, source, allowed)
    return address


def _bound(setting: str, address: Address) -> socket.socket:
    try:
        if address.scheme == "unix":
            return _bound_path(address.path)
        return _bound_port(address.host, address.port)
    except OSError as error:
        raise BindError(f"{address} ({setting})", bind_reason(error, address.sockaddr)) from error


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
