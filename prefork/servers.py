"""Ready-made servers, and the choice of the one that fits an address.

Their defaults lose no request where those of the standard library do: a longer accept queue, and
a socket file that is replaced and removed without a gap.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefork.host.bind_errors import bind_reason
from prefork.host.process import process
from prefork.host.socket_file import one_start_at_a_time, remove_stale
from prefork.mixin import PreForkingMixIn
from prefork.reloading.sockets import is_adopted
from prefork.workers import log
from prefork.workers.errors import BindError
from prefork.workers.files import Identity, binding_with_mode, identity_of, unlink_if_still
from prefork.workers.worker import no_empty_reply
from prefork.workers.worker.clients import client_facts, is_clients_doing, lost_clients

if TYPE_CHECKING:
    from prefork.host.addresses import Address

    _ServerBase = socketserver.TCPServer
else:
    _ServerBase = object


class _LoggingServer(PreForkingMixIn, _ServerBase):
    """The base of all ready-made servers.

    Exceptions of handlers go to the log instead of standard error.
    """

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception of a request (worker).

        A client that went away or timed out costs one line, any other exception a line and its
        traceback.
        """
        error, subject = sys.exception(), str(self.worker or "master")
        if error is not None and is_clients_doing(error, request):
            lost_clients.note(subject, error, client_address)
        elif error is not None:
            facts = client_facts(client_address)
            log.failure(logging.ERROR, subject, "request failed", error, **facts)


class _InternetServer(_LoggingServer):
    """A server for IPv4 or IPv6; the address decides.

    ``::`` accepts both unless ``ipv6_only`` is set.
    """

    ipv6_only = False

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,  # noqa: N803 - the standard library's name
        bind_and_activate: bool = True,
    ) -> None:
        if self.address_family == socket.AF_INET:
            self.address_family = _family_of(server_address)
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)

    def server_bind(self) -> None:
        """Bind the socket.

        Connections inherit the options that are set here, such as TCP_NODELAY.
        """
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self.ipv6_only)
        if self.socket_type == socket.SOCK_STREAM:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().server_bind()


class _UnixServer(_LoggingServer):
    """A server on a path in the file system or on an abstract name.

    A start takes a path from no server that still listens on it, and ``server_close()`` removes no
    path that another server has bound since.
    """

    unix_mode = 0o660
    """The mode of the socket file; who may write to it may connect."""

    _bound: tuple[int, str, Identity] | None = None
    """The process, path and file that this server has bound, None before and after."""

    def server_bind(self) -> None:
        """Bind the socket with ``unix_mode``, and replace a path that no server listens on any more.

        A stream socket listens before the lock is released and again in ``server_activate()``,
        because a socket that is bound and does not listen looks like a stale one to the next start.
        """
        path = self.server_address
        if not isinstance(path, str) or path.startswith("\0"):
            super().server_bind()
            return
        if is_adopted(self.socket):
            super().server_bind()
            if not process.is_trial:
                self.remember_path()
            return
        with one_start_at_a_time(path):
            remove_stale(path, self.socket_type)
            with binding_with_mode(self.socket, self.unix_mode):
                super().server_bind()
            if self.socket_type == socket.SOCK_STREAM:
                self.socket.listen(self.request_queue_size)
        self.remember_path()

    def remember_path(self) -> None:
        """Note which file this server has bound, so that ``server_close()`` removes only that one."""
        path = str(self.server_address)
        # A file that was removed while the server served is no reason to fail the next reload.
        with contextlib.suppress(FileNotFoundError):
            self._bound = os.getpid(), path, identity_of(path)

    def server_close(self) -> None:
        """Close the socket, and remove the path if it still is the file that this server has bound."""
        super().server_close()
        bound, self._bound = self._bound, None
        # After an exec, new code that fails before it serves leaves the path to the next attempt.
        if bound is not None and bound[0] == os.getpid() and process.handover is None:
            unlink_if_still(bound[1], bound[2])


class PreForkingTCPServer(_InternetServer, socketserver.TCPServer):
    """A pre-forked TCP server on IPv4 or IPv6."""

    request_queue_size = 1024
    allow_reuse_address = True


class PreForkingUDPServer(_InternetServer, socketserver.UDPServer):
    """A pre-forked UDP server on IPv4 or IPv6.

    The standard server sends an empty reply when a ``DatagramRequestHandler`` has written nothing.
    This one sends no reply then, because two such servers would answer each other's empty replies
    for ever.
    """

    finish_request = no_empty_reply.finish_request


class PreForkingUnixStreamServer(_UnixServer, socketserver.UnixStreamServer):
    """A pre-forked server on a Unix stream socket."""

    request_queue_size = 1024


class PreForkingUnixDatagramServer(_UnixServer, socketserver.UnixDatagramServer):
    """A pre-forked server on a Unix datagram socket.

    It sends no empty replies, like ``PreForkingUDPServer``.
    """

    finish_request = no_empty_reply.finish_request


def server_for(
    address: Address,
    handler: Any,
    *,
    backlog: int | None = None,
    classes: Mapping[str, Any] | None = None,
) -> PreForkingMixIn:
    """Return a new server of the ready-made class that fits the address.

    The address may be a socket that was handed over (``fd://N``, ``systemd:NAME``). handler: what the class
    takes beside the address, a handler class. backlog: connections that may wait to be accepted, None for
    the default of the class. classes: others than the ready-made ones, by the scheme of the address.
    BindError: the server cannot listen there.
    """
    classes = classes or _CLASSES
    if address.scheme == "systemd":
        return _adopt(_named(address), handler, classes)
    if address.scheme == "fd":
        return _adopt(address, handler, classes)
    server_class = classes[address.scheme]
    if backlog is not None and "request_queue_size" in vars(server_class):
        server_class = type(server_class.__name__, (server_class,), {"request_queue_size": backlog})
    try:
        server: PreForkingMixIn = server_class(address.sockaddr, handler)
    except OSError as error:
        reason = bind_reason(error, address.sockaddr, server_class.socket_type)
        raise BindError(str(address), reason) from error
    return server


_CLASSES: dict[str, Any] = {
    "tcp": PreForkingTCPServer,
    "udp": PreForkingUDPServer,
    "unix": PreForkingUnixStreamServer,
    "unixgram": PreForkingUnixDatagramServer,
}


def _named(address: Address) -> Address:
    """Return the only socket that has this name.

    The command line serves several ones, and has replaced the name.
    """
    found = process.systemd_sockets.addresses(address.name)
    if not found:
        raise BindError(str(address), process.systemd_sockets.why_none())
    if len(found) > 1:
        reason = f"{len(found)} sockets have that name; give each one a name of its own (FileDescriptorName=)"
        raise BindError(str(address), reason)
    return found[0]


def _adopt(address: Address, handler: Any, classes: Mapping[str, Any]) -> PreForkingMixIn:
    try:
        inherited = socket.socket(fileno=address.fd)
    except OSError as error:
        reason = f"this process has inherited no socket with that number ({error.strerror})"
        raise BindError(str(address), reason) from error
    if reason := _why_unfit(inherited):
        inherited.detach()
        raise BindError(str(address), reason)
    stream = inherited.type == socket.SOCK_STREAM
    unix = inherited.family == socket.AF_UNIX
    kind = ("unix" if stream else "unixgram") if unix else ("tcp" if stream else "udp")
    if kind not in classes:
        inherited.detach()
        raise BindError(
            str(address), f"that socket is {kind}; only {', '.join(classes)} can be served"
        )
    server_class = classes[kind]
    server: _LoggingServer = server_class(inherited.getsockname(), handler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_address = inherited, inherited.getsockname()
    server.address_family = inherited.family
    server.listener_inherited = True
    inherited.set_inheritable(False)
    return server


def _why_unfit(inherited: socket.socket) -> str:
    """Return why a socket that another process has made cannot be served; "" where it can."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if inherited.family not in families or inherited.type not in kinds:
        kind = " ".join(str(getattr(it, "name", it)) for it in (inherited.family, inherited.type))
        return f"that socket is {kind}; only sockets of TCP, UDP and Unix can be served"
    listens = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if inherited.type == socket.SOCK_STREAM and not listens:
        # With Accept=yes in its socket unit, systemd hands over a client's connection.
        return "that socket does not listen; with systemd, set Accept=no in the socket unit"
    return ""


def _family_of(address: Any) -> socket.AddressFamily:
    """Return AF_INET6 for an IPv6 address and for a name that has only IPv6 addresses, else AF_INET."""
    host = address[0]
    if ":" in host:
        return socket.AF_INET6
    with contextlib.suppress(OSError, UnicodeError):
        families = {
            info[0] for info in socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)
        }
        if families == {socket.AF_INET6}:
            return socket.AF_INET6
    return socket.AF_INET
