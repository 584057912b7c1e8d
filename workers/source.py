"""One listener as one worker takes requests from it, without ever blocking in it (worker)."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Callable
from socketserver import BaseServer
from typing import Any, TypeGuard

from prefork.workers import quiet
from prefork.workers.listener import Kind, Listener
from prefork.workers.scoreboard import SlotField, SlotWriter
from prefork.workers.waits import (
    STAMP_BYTES,
    QueueWaits,
    wait_of_connection,
    wait_of_datagram,
)

Take = Callable[[], tuple[Any, Any]]
Process = Callable[[Any, Any], None]


class Source:
    """Where requests come from, and the server they are for.

    client_timeout: seconds that is set on every connection taken; None or 0 for none.
    sample_every: of how many requests one's queue wait is measured; 0 for none.

    take: returns the next request and its client's address. Raises what ``get_request()``
    raises; BlockingIOError is the usual way to say that a sibling was faster.
    waits: the queue waits that ``take`` measures; None where that is not wanted, or not known.
    """

    def __init__(
        self,
        listener: Listener,
        writer: SlotWriter,
        *,
        client_timeout: float | None = None,
        sample_every: int = 0,
    ) -> None:
        self.listener = listener
        self.server = listener.server
        found = getattr(self.server, "socket", None)
        self._socket = found if isinstance(found, socket.socket) else None
        self.waits: QueueWaits | None = None
        self.take = self._take_for(writer, client_timeout, sample_every)
        self.settle_steps()
        self.assert_nonblocking()

    def settle_steps(self) -> None:
        """Look once which steps of a request the server leaves as the standard library has them.

        Again after ``worker_init()``, which may have given the object methods of its own.

        verify: ``verify_request()``, None where that is the one which lets everybody in.
        process: ``process_request()``, or what comes to the same in fewer calls.
        """
        server = self.server
        everybody = _has(server, "verify_request", BaseServer)
        self.verify = None if everybody else server.verify_request
        self.process = _process_for(server)

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

    def _take_for(
        self, writer: SlotWriter, client_timeout: float | None, sample_every: int
    ) -> Take:
        if is_plain_datagram(self.server):
            if sample_every:
                self.waits = QueueWaits(writer)
                return _stamped_take(self.server, writer, self.waits, sample_every)
            return _datagram_take(self.server, writer)
        if self.listener.kind is Kind.STREAM and self._socket is not None:
            take = _stream_take(self.server, self._socket)
            if sample_every and self.listener.family in (socket.AF_INET, socket.AF_INET6):
                self.waits = QueueWaits(writer)
                take = _measured_take(take, self.waits, sample_every)
            return _timed_take(take, client_timeout) if client_timeout else take
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


def _timed_take(take: Take, seconds: float) -> Take:
    """Give each connection a timeout, unless ``get_request()`` has given it one.

    A handler class that has a ``timeout`` of its own sets it later, in its ``setup()``.
    """

    def timed_take() -> tuple[Any, Any]:
        request, address = take()
        if isinstance(request, socket.socket) and request.gettimeout() is None:
            request.settimeout(seconds)
        return request, address

    return timed_take


def _measured_take(take: Take, waits: QueueWaits, every: int) -> Take:
    """Measure the queue wait of the first connection, and then of every so many."""
    left = 1

    def measured_take() -> tuple[Any, Any]:
        nonlocal left
        taken = take()
        left -= 1
        if not left:
            left = every
            waits.note(wait_of_connection(taken[0]))
        return taken

    return measured_take


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


def _stamped_take(
    server: socketserver.UDPServer, writer: SlotWriter, waits: QueueWaits, every: int
) -> Take:
    """Do the same, and ask the kernel of the first datagram, and then of every so many, when it had come."""
    plain_take = _datagram_take(server, writer)
    sock, size = server.socket, server.max_packet_size
    flags = int(socket.MSG_DONTWAIT)
    left = 1

    def take() -> tuple[Any, Any]:
        nonlocal left
        if left > 1:
            taken = plain_take()
            left -= 1
            return taken
        if sock.gettimeout():
            sock.settimeout(None)
        data, ancillary, _, address = sock.recvmsg(size + 1, STAMP_BYTES, flags)
        left = every
        waits.note(wait_of_datagram(ancillary))
        return (_cut(data, size, writer), sock), address

    return take


def _cut(data: bytes, size: int, writer: SlotWriter) -> bytes:
    if len(data) > size:
        writer.count(SlotField.TRUNCATED)
    return data[:size]


def _other_take(server: socketserver.BaseServer, listener: Listener) -> Take:
    get_request: Take = server.get_request

    def take() -> tuple[Any, Any]:
        if not listener.has_work():
            raise BlockingIOError
        return get_request()

    return take


# --- the steps of a request, in fewer calls than BaseServer's where those are the standard ones


def _has(server: BaseServer, name: str, owner: type) -> bool:
    """Tell whether a method is that of the class: neither overridden nor replaced on the object."""
    return getattr(getattr(server, name), "__func__", None) is vars(owner)[name]


def _process_for(server: BaseServer) -> Process:
    """Return ``process_request()``, or what comes to the same in one call for a datagram.

    A call of Python costs 0.1 µs after a system call, all of a datagram's way is 6.5 µs, and after
    its handler nothing is left to do. Whatever a class overrides is called as ever. For connections
    the same was tried, and what it gained was less than the noise.
    """
    plain = _has(server, "process_request", BaseServer) and all(
        _has(server, name, socketserver.UDPServer) for name in ("shutdown_request", "close_request")
    )
    if plain and _has(server, "finish_request", BaseServer):
        return _run(server)
    if plain and getattr(server.finish_request, "__func__", None) is quiet.finish_request:
        return _run_quietly(server)
    return server.process_request


def _run(server: BaseServer) -> Process:
    def process(request: Any, address: Any) -> None:
        server.RequestHandlerClass(request, address, server)

    return process


def _run_quietly(server: BaseServer) -> Process:
    given = used = None

    def process(request: Any, address: Any) -> None:
        nonlocal given, used
        if given is not server.RequestHandlerClass:
            given = server.RequestHandlerClass
            used = quiet.quiet_class(given)
        used(request, address, server)

    return process
