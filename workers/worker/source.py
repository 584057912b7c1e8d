"""One listener as one worker takes requests from it, without ever blocking in it.

Made by the master just before the fork, used in the worker.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from socketserver import BaseServer, TCPServer, UDPServer
from typing import Any, TypeGuard

from prefork.workers.listener import Kind, Listener
from prefork.workers.scoreboard import SlotWriter
from prefork.workers.waits import QueueWaits, wait_of_connection
from prefork.workers.worker import no_empty_reply
from prefork.workers.worker.datagrams import Datagrams, MeasuredDatagrams

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
        self._writer = writer
        self._client_timeout = client_timeout
        self._sample_every = sample_every
        self.settle_steps()
        self.assert_nonblocking()

    def settle_steps(self) -> None:
        """Look once which steps of a request the server leaves as the standard library has them.

        Again in a worker where they may have changed: ``worker_init()`` may have given the object
        methods of its own, or wrapped its socket.

        verify: ``verify_request()``, None where that is the one which lets everybody in.
        datagrams: where to receive from in rounds, because to handle a request is to call the
        handler class; None where it is more than that.
        """
        server = self.server
        found = getattr(server, "socket", None)
        self._socket = found if isinstance(found, socket.socket) else None
        measured = self._sample_every and self._tells_waits()
        self.waits = QueueWaits(self._writer) if measured else None
        datagrams = self._datagrams_of(server)
        self.take = datagrams.take if datagrams is not None else self._stream_or_other_take()
        everybody = _has(server, "verify_request", BaseServer)
        self.verify = None if everybody else server.verify_request
        self._is_quiet = _is_quiet(server)
        one_call = _one_call_for(server)
        self.process = one_call or server.process_request
        self.datagrams = datagrams if everybody and one_call is not None else None

    def handler_class(self) -> Any:
        """Return what is called with a request, its client's address and the server to handle it."""
        given = self.server.RequestHandlerClass
        return no_empty_reply.quiet_class(given) if self._is_quiet else given

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

    def enter_wait_queue(self, epoll: select.epoll) -> None:
        """Wait for requests in this epoll, as the last in the kernel's wait queue of the listener.

        EPOLLEXCLUSIVE: one request wakes one of the workers that wait, and not all of them.
        """
        epoll.register(self.listener.fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def leave_wait_queue(self, epoll: select.epoll) -> None:
        """Give up the place in the wait queue."""
        epoll.unregister(self.listener.fd)

    def _tells_waits(self) -> bool:
        internet = self.listener.family in (socket.AF_INET, socket.AF_INET6)
        stream = self.listener.kind is Kind.STREAM and self._socket is not None
        return _receives_plainly(self.server) or (stream and internet)

    def _datagrams_of(self, server: BaseServer) -> Datagrams | None:
        if not _receives_plainly(server):
            return None
        if self.waits is None:
            return Datagrams(server, self._writer)
        return MeasuredDatagrams(server, self._writer, self.waits, self._sample_every)

    def _stream_or_other_take(self) -> Take:
        if self.listener.kind is not Kind.STREAM or self._socket is None:
            return _take_when_ready(self.server, self.listener)
        take = _stream_take(self.server, self._socket, self.listener)
        if self.waits is not None:
            take = _measured_take(take, self.waits, self._sample_every)
        return _timed_take(take, self._client_timeout) if self._client_timeout else take


def _stream_take(server: BaseServer, sock: socket.socket, listener: Listener) -> Take:
    plain = _has(server, "get_request", TCPServer) and type(sock) is socket.socket
    accept: Take = _plain_accept(sock, listener) if plain else server.get_request
    timeout, set_blocking = sock.gettimeout, sock.setblocking

    def take() -> tuple[Any, Any]:
        # A handler may have set a timeout on its worker's object: accept() would poll for it.
        if timeout() != 0.0:
            set_blocking(False)
        return accept()

    return take


def _plain_accept(sock: socket.socket, listener: Listener) -> Take:
    """Return what does the same as ``sock.accept()``.

    That looks up the enumeration members of family and type for each connection: 1 µs of the 14
    that a connection costs. The listener knows them since before the fork: here the look-up would
    copy 100 KiB of pages for each worker.
    """
    accept, new = sock._accept, socket.socket  # type: ignore[attr-defined]  # noqa: SLF001 - accept() without the object
    family, kind, protocol = listener.family, listener.socket_type, sock.proto

    def plain_accept() -> tuple[Any, Any]:
        fd, address = accept()
        return new(family, kind, protocol, fd), address

    return plain_accept


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


def _take_when_ready(server: BaseServer, listener: Listener) -> Take:
    get_request: Take = server.get_request

    def take() -> tuple[Any, Any]:
        if not listener.has_work():
            raise BlockingIOError
        return get_request()

    return take


def _one_call_for(server: BaseServer) -> Process | None:
    """Return what comes to the same as ``process_request()`` in one call; None for all but plain datagrams.

    A call of Python costs 0.1 µs after a system call, all of a datagram's way is 5 µs, and after
    its handler nothing is left to do. Whatever a class overrides is called as ever. For connections
    the same was tried, and what it gained was less than the noise.
    """
    plain = _has(server, "process_request", BaseServer) and all(
        _has(server, name, UDPServer) for name in ("shutdown_request", "close_request")
    )
    if plain and _has(server, "finish_request", BaseServer):
        return _run(server)
    if plain and _is_quiet(server):
        return _run_quietly(server)
    return None


def _run(server: BaseServer) -> Process:
    def process(request: Any, address: Any) -> None:
        server.RequestHandlerClass(request, address, server)

    return process


def _run_quietly(server: BaseServer) -> Process:
    given = used = None

    def process(request: Any, address: Any) -> None:
        nonlocal given, used
        if given is not server.RequestHandlerClass:
            used = no_empty_reply.quiet_class(server.RequestHandlerClass)
            given = server.RequestHandlerClass
        used(request, address, server)

    return process


def _receives_plainly(server: BaseServer) -> TypeGuard[UDPServer]:
    return _has(server, "get_request", UDPServer)


def _is_quiet(server: BaseServer) -> bool:
    return getattr(server.finish_request, "__func__", None) is no_empty_reply.finish_request


def _has(server: BaseServer, name: str, owner: type) -> bool:
    """Tell whether a method is that of the class: neither overridden nor replaced on the object."""
    return getattr(getattr(server, name, None), "__func__", None) is vars(owner)[name]
