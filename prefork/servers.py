"""Ready-made servers, with defaults that lose no request where the standard library's do."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import sys
from typing import TYPE_CHECKING, Any

from prefork.host import systemd_sockets
from prefork.host.process import pending
from prefork.host.socket_file import one_start_at_a_time, remove_stale
from prefork.mixin import PreForkingMixIn
from prefork.reloading.sockets import is_adopted
from prefork.reloading.trial import is_on_trial
from prefork.workers import log
from prefork.workers.errors import BindError
from prefork.workers.files import Identity, identity_of, unlink_if_still
from prefork.workers.worker import no_empty_reply
from prefork.workers.worker.clients import LostClients, is_clients_doing

if TYPE_CHECKING:
    from prefork.host.addresses import Address

    _Behind = socketserver.TCPServer
else:
    _Behind = object


_lost_clients = LostClients()


class _Logged(PreForkingMixIn, _Behind):
    """What the ready-made servers share: errors of handlers go to the log, not to stderr."""

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Log the exception with its traceback, or in a line when it is the client's doing (worker)."""
        error, subject = sys.exception(), str(self.worker or "master")
        if error is not None and is_clients_doing(error):
            _lost_clients.note(subject, error, client_address)
        elif error is not None:
            log.failure(logging.ERROR, subject, "request failed", error, client=client_address)


class _Internet(_Logged):
    """IPv4 or IPv6, chosen by the address; ``::`` takes both unless ``ipv6_only``."""

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
        """Bind; what is set on the listener is inherited by the connections."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self.ipv6_only)
        if self.socket_type == socket.SOCK_STREAM:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().server_bind()


class _Unix(_Logged):
    """A path in the file system (or an abstract name), handled so that no two servers harm each other."""

    unix_mode = 0o660
    _bound: tuple[int, str, Identity] | None = None

    def server_bind(self) -> None:
        """Bind; replace a path that nobody listens on any more, and give it its mode without a gap."""
        path = self.server_address
        if not isinstance(path, str) or path.startswith("\0"):
            super().server_bind()
            return
        if is_adopted(self.socket):
            super().server_bind()
            if not is_on_trial():
                self.remember_path()
            return
        with one_start_at_a_time(path):
            remove_stale(path, self.socket_type)
            # The file is made with this mode, less the umask.
            os.fchmod(self.socket.fileno(), self.unix_mode)
            super().server_bind()
            os.chmod(path, self.unix_mode)
            if self.socket_type == socket.SOCK_STREAM:
                # At once, and again in server_activate(): bound and not listening it looks stale.
                self.socket.listen(self.request_queue_size)
        self.remember_path()

    def remember_path(self) -> None:
        """Note which file is ours, so that ``server_close()`` removes no successor's."""
        path = str(self.server_address)
        self._bound = os.getpid(), path, identity_of(path)

    def server_close(self) -> None:
        """Close, and remove the path if it is still ours."""
        super().server_close()
        bound, self._bound = self._bound, None
        # New code that fails before it serves leaves the path to the next try.
        if bound is not None and bound[0] == os.getpid() and pending() is None:
            unlink_if_still(bound[1], bound[2])


class PreForkingTCPServer(_Internet, socketserver.TCPServer):
    """A pre-forked TCP server."""

    request_queue_size = 1024
    allow_reuse_address = True


class PreForkingUDPServer(_Internet, socketserver.UDPServer):
    """A pre-forked UDP server.

    Unlike the standard one it sends no empty reply when a ``DatagramRequestHandler`` wrote
    nothing: two servers that face each other would answer each other for ever.
    """

    finish_request = no_empty_reply.finish_request


class PreForkingUnixStreamServer(_Unix, socketserver.UnixStreamServer):
    """A pre-forked server on a Unix stream socket."""

    request_queue_size = 1024


class PreForkingUnixDatagramServer(_Unix, socketserver.UnixDatagramServer):
    """A pre-forked server on a Unix datagram socket; silent like ``PreForkingUDPServer``."""

    finish_request = no_empty_reply.finish_request


def server_for(
    address: Address, handler: type[socketserver.BaseRequestHandler], *, backlog: int | None = None
) -> PreForkingMixIn:
    """Make the ready-made server that fits the address; raises BindError when it cannot listen there."""
    if address.scheme == "systemd":
        return _adopt(_named(address), handler)
    if address.scheme == "fd":
        return _adopt(address, handler)
    server_class = _CLASSES[address.scheme]
    if backlog is not None and "request_queue_size" in vars(server_class):
        server_class = type(server_class.__name__, (server_class,), {"request_queue_size": backlog})
    try:
        server: PreForkingMixIn = server_class(address.sockaddr, handler)
    except OSError as error:
        raise BindError(str(address), _reason(error)) from error
    return server


_CLASSES: dict[str, Any] = {
    "tcp": PreForkingTCPServer,
    "udp": PreForkingUDPServer,
    "unix": PreForkingUnixStreamServer,
    "unixgram": PreForkingUnixDatagramServer,
}


def _named(address: Address) -> Address:
    """Return the one socket of a name; the command line has put several in its place before."""
    found = systemd_sockets.addresses_named(address.name)
    if not found:
        raise BindError(str(address), systemd_sockets.why_none())
    if len(found) > 1:
        raise BindError(str(address), f"{len(found)} sockets bear that name; give each its own")
    return found[0]


def _adopt(address: Address, handler: type[socketserver.BaseRequestHandler]) -> PreForkingMixIn:
    try:
        inherited = socket.socket(fileno=address.fd)
    except OSError as error:
        raise BindError(str(address), f"no socket there: {_reason(error)}") from error
    if reason := _why_not(inherited):
        inherited.detach()
        raise BindError(str(address), reason)
    stream = inherited.type == socket.SOCK_STREAM
    unix = inherited.family == socket.AF_UNIX
    server_class = _CLASSES[
        ("unix" if stream else "unixgram") if unix else ("tcp" if stream else "udp")
    ]
    server: _Logged = server_class(inherited.getsockname(), handler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_address = inherited, inherited.getsockname()
    server.address_family = inherited.family
    server.listener_inherited = True
    inherited.set_inheritable(False)
    return server


def _why_not(inherited: socket.socket) -> str:
    """Say why a socket of somebody else's making cannot be served; "" where it can."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if inherited.family not in families or inherited.type not in kinds:
        return "that socket is of a kind that is not served"
    listens = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if inherited.type == socket.SOCK_STREAM and not listens:
        # Of systemd that is a client: its socket unit says Accept=yes.
        return "that socket does not listen"
    return ""


def _family_of(address: Any) -> socket.AddressFamily:
    """Choose IPv6 where the host says so, or where a name has no IPv4 address."""
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


def _reason(error: OSError) -> str:
    # strerror of an unknown host is getaddrinfo()'s own; its numbers are none of errno's.
    return (error.strerror or str(error)).lower()
