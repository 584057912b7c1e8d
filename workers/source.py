"""One listener as one worker takes requests from it, without ever blocking in it (worker)."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Callable
from typing import Any, TypeGuard

from prefork.workers.listener import Kind, Listener
from prefork.workers.scoreboard import SlotField, SlotWriter

Take = Callable[[], tuple[Any, Any]]


class Source:
    """Where requests come from, and the server they are for.

    take: returns the next request and its client's address. Raises what ``get_request()``
    raises; BlockingIOError is the usual way to say that a sibling was faster.
    """

    def __init__(self, listener: Listener, writer: SlotWriter) -> None:
        self.listener = listener
        self.server = listener.server
        found = getattr(self.server, "socket", None)
        self._socket = found if isinstance(found, socket.socket) else None
        self.take = self._take_for(writer)
        self.assert_nonblocking()

    @property
    def is_closed(self) -> bool:
        """Whether a handler has closed this worker's copy of the server's socket."""
        return self._socket is not None and self._socket.fileno() < 0

    def assert_nonblocking(self) -> None:
        """Have accept() return at once when a sibling was faster.

        What a handler did through the socket object is undone before the next take; what it did
        otherwise, here, every few requests.
        """
        self.listener.assert_nonblocking()

    def _take_for(self, writer: SlotWriter) -> Take:
        if is_plain_datagram(self.server):
            return _datagram_take(self.server, writer)
        if self.listener.kind is Kind.STREAM and self._socket is not None:
            return _stream_take(self.server, self._socket)
        return _other_take(self.server, self.listener)


def is_plain_datagram(server: socketserver.BaseServer) -> TypeGuard[socketserver.UDPServer]:
    """Tell whether the server receives as ``UDPServer`` does."""
    return getattr(type(server), "get_request", None) is socketserver.UDPServer.get_request


def _stream_take(server: socketserver.BaseServer, sock: socket.socket) -> Take:
    get_request: Take = server.get_request
    timeout, set_blocking = sock.gettimeout, sock.setblocking

    def take() -> tuple[Any, Any]:
        # A handler may have set a timeout on its worker's object: accept() would poll for it.
        if timeout() != 0.0:
            set_blocking(False)
        return get_request()

    return take


def _datagram_take(server: socketserver.UDPServer, writer: SlotWriter) -> Take:
    """Do what ``UDPServer.get_request()`` does, without blocking when a sibling was faster.

    The socket is not set non-blocking instead: handlers reply through it, and those sends have
    to be able to wait. One byte more than allowed tells a datagram that was cut.
    """
    sock, size = server.socket, server.max_packet_size
    receive, most = sock.recvfrom, server.max_packet_size + 1
    flags = int(socket.MSG_DONTWAIT)
    timeout, set_timeout = sock.gettimeout, sock.settimeout

    def take() -> tuple[Any, Any]:
        if timeout():
            set_timeout(None)
        data, address = receive(most, flags)
        if len(data) > size:
            writer.count(SlotField.TRUNCATED)
            data = data[:size]
        return (data, sock), address

    return take


def _other_take(server: socketserver.BaseServer, listener: Listener) -> Take:
    get_request: Take = server.get_request

    def take() -> tuple[Any, Any]:
        if not listener.has_work():
            raise BlockingIOError
        return get_request()

    return take
