"""One listener as one worker takes requests from it, without blocking (made by the master, used by the worker).

The master makes the sources of a worker just before the fork, because code that runs for the first time
copies pages of memory, and in the master it runs once for all workers.
"""

from __future__ import annotations

import functools
import select
import socket
from collections.abc import Callable
from socketserver import BaseServer, TCPServer, UDPServer
from typing import Any, Final, TypeGuard

from prefork.workers.listener import Kind, Listener
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.waits import QueueWaits, wait_of_connection
from prefork.workers.worker import no_empty_reply
from prefork.workers.worker.datagrams import Datagrams, MeasuredDatagrams
from prefork.workers.worker.parking import Parking
from prefork.workers.worker.shortage import Meaning, meaning
from prefork.workers.worker.standard import (
    accepts_plainly,
    is_standard_step,
    receives_plainly,
)

Take = Callable[[], tuple[Any, Any]]
Verify = Callable[[Any, Any], bool]
Process = Callable[[Any, Any], None]

CLIENT_TIMEOUT: Final = "_prefork_client_timeout"
"""The attribute of a server that holds ``client_timeout`` for a handler class that sets timeouts itself."""


class Source:
    """Where requests come from, and the server that they are for.

    client_timeout: the timeout in seconds that every connection gets; None or 0 for no timeout. A handler
    class with a true ``sets_timeouts`` finds it at the server (CLIENT_TIMEOUT), and sets it itself.
    sample_every: the queue wait of one request in this many is measured; 0 measures none.
    parking: where the server parks its connections; None for a server that does not. park_new: park
    a new connection until its client speaks.

    take: returns the next request and its client's address. Raises what ``get_request()`` raises;
    BlockingIOError usually means that another worker was faster.
    may_hang: whether ``take`` runs code that is not prefork's own, which may not return: a ``get_request()``
    that the class overrides, or a socket that does more in ``accept()``, such as a TLS handshake.
    verify: ``verify_request()``; None where that is the standard one, which accepts every request.
    process: does what ``process_request()`` does, called with a request and its client's address.
    datagrams: what to receive from in rounds, because to handle a request is to call the handler
    class and nothing else; None where there is more to do.
    waits: the queue waits that ``take`` measures; None where they are not wanted, or not known.
    """

    def __init__(
        self,
        listener: Listener,
        writer: SlotWriter,
        *,
        client_timeout: float | None = None,
        sample_every: int = 0,
        parking: Parking | None = None,
        park_new: bool = False,
    ) -> None:
        self.listener = listener
        self.parking = parking
        self._park_new = park_new
        self.server = listener.server
        if getattr(getattr(self.server, "RequestHandlerClass", None), "sets_timeouts", False):
            setattr(self.server, CLIENT_TIMEOUT, client_timeout or None)
            client_timeout = None
        self._writer = writer
        self._client_timeout = client_timeout
        self._sample_every = sample_every
        self.settle_steps()
        self.assert_nonblocking()

    def settle_steps(self) -> None:
        """Find which steps of a request the server leaves as the standard library has them.

        Called once in the master, and again in a worker where the steps may have changed:
        ``worker_init()`` may have given the server object methods of its own, or wrapped its socket.
        """
        # A request goes through six calls on its server, and most servers override none or one of
        # them. A call of Python costs 0.1 µs after a system call, all of a datagram's way is 5 µs and
        # a connection's 14. So a step that is the standard one is replaced, once and here, by
        # something that comes to the same and costs less; a step that a class or an object overrides is
        # called as ever. Whatever the server is, a lane then finds a take, a verify (or None) and a
        # process, and asks no more. A method that a handler puts on the object later is not seen.
        server = self.server
        found = getattr(server, "socket", None)
        self._socket = found if isinstance(found, socket.socket) else None
        measured = self._sample_every and self._tells_waits()
        self.waits = QueueWaits(self._writer) if measured else None
        datagrams = self._datagrams_of(server)
        self.may_hang = datagrams is None and not self._accepts_plainly()
        self.take = datagrams.take if datagrams is not None else self._stream_or_other_take()
        everybody = is_standard_step(server, "verify_request", BaseServer)
        self.verify = None if everybody else self._verify_of(server)
        self._is_quiet = _is_quiet(server)
        one_call = _one_call_for(server)
        self.process = one_call or server.process_request
        self.datagrams = datagrams if everybody and one_call is not None else None

    def handler_class(self) -> Any:
        """Return what handles a datagram when it is called with the request, its client's address and the server."""
        given = self.server.RequestHandlerClass
        return no_empty_reply.quiet_class(given) if self._is_quiet else given

    @property
    def fd(self) -> int:
        """The descriptor that the worker's loop waits for, which names the source in the loop."""
        return self.listener.fd

    @property
    def is_drained(self) -> bool:
        """Whether a worker takes what is queued before it leaves.

        The queue of an inherited socket is left to the other process that holds the socket.
        """
        return not self.listener.is_inherited

    def meaning_of(self, error: Exception, *, draining: bool, empty: bool) -> Meaning:
        """Return what a failed take means (shortage.py)."""
        return meaning(error, draining=draining, empty=empty)

    @property
    def has_connections(self) -> bool:
        """Whether a request is a connection to its client, and not a datagram."""
        return self.listener.kind in (Kind.STREAM, Kind.RESUMED)

    @property
    def is_closed(self) -> bool:
        """Whether a handler has closed this worker's copy of the server's socket."""
        return self._socket is not None and self._socket.fileno() < 0

    def assert_nonblocking(self) -> None:
        """Have ``accept()`` return at once when another worker was faster.

        A handler can make the listening socket blocking for all workers. If it does so through the
        socket object, the next take undoes that. In any other case it is undone here, every few
        requests.
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

    def _verify_of(self, server: BaseServer) -> Verify:
        """Return what verifies a request: once for each connection, however often it is parked."""
        verify: Verify = server.verify_request
        if self.listener.kind is not Kind.RESUMED:
            return verify
        return lambda request, address: not request.luggage.is_new or verify(request, address)

    def _tells_waits(self) -> bool:
        if self.listener.kind is Kind.RESUMED:
            return True
        internet = self.listener.family in (socket.AF_INET, socket.AF_INET6)
        stream = self.listener.kind is Kind.STREAM and self._socket is not None
        return _receives_plainly(self.server) or (stream and internet)

    def _datagrams_of(self, server: BaseServer) -> Datagrams | None:
        if not _receives_plainly(server):
            return None
        if self.waits is None:
            return Datagrams(server, self._writer)
        return MeasuredDatagrams(server, self._writer, self.waits, self._sample_every)

    def _accepts_plainly(self) -> bool:
        stream = self.listener.kind is Kind.STREAM and accepts_plainly(self._socket)
        return stream and is_standard_step(self.server, "get_request", TCPServer)

    def _stream_or_other_take(self) -> Take:
        if self.listener.kind is Kind.RESUMED and self.parking is not None:
            take = _resumed_take(self.parking.take, self.waits)
            return _timed_take(take, self._client_timeout) if self._client_timeout else take
        if self.listener.kind is not Kind.STREAM or self._socket is None:
            return self._take_of_program()
        plain = self._accepts_plainly()
        accept = _plain_accept(self._socket, self.listener) if plain else self.server.get_request
        take = _stream_take(self._socket, accept)
        if self.waits is not None:
            take = _measured_take(take, self.waits, self._sample_every)
        if self.parking is not None and self._park_new:
            take = functools.partial(self.parking.take_new, take)
        return _timed_take(take, self._client_timeout) if self._client_timeout else take

    def _take_of_program(self) -> Take:
        """Return a take of a server that is not plain: its ``get_request()``, if something is there to take."""
        return _take_when_ready(self.server, self.listener)


# --- how a request is taken


def _stream_take(sock: socket.socket, accept: Take) -> Take:
    timeout, set_blocking = sock.gettimeout, sock.setblocking

    def take() -> tuple[Any, Any]:
        # A handler may have set a timeout on its worker's socket object: accept() would wait for it.
        if timeout() != 0.0:
            set_blocking(False)
        return accept()

    return take


def _plain_accept(sock: socket.socket, listener: Listener) -> Take:
    """Return a function that does what ``sock.accept()`` does, in 1 µs less of the 14 that a connection costs.

    ``accept()`` reads ``family`` and ``type`` of the listening socket, and each of these looks up a
    member of an enumeration, for each connection. Here both are looked up once. The listener did
    that before the fork: in a worker the look-up would copy 100 KiB of pages.
    """
    accept, new = sock._accept, socket.socket  # type: ignore[attr-defined]  # noqa: SLF001 - accept() without the object
    family, kind, protocol = listener.family, listener.socket_type, sock.proto

    def plain_accept() -> tuple[Any, Any]:
        fd, address = accept()
        return new(family, kind, protocol, fd), address

    return plain_accept


def _timed_take(take: Take, seconds: float) -> Take:
    """Return a take that gives each connection a timeout, unless ``get_request()`` has given it one.

    A handler class that has a ``timeout`` of its own sets it later, in its ``setup()``.
    """

    def timed_take() -> tuple[Any, Any]:
        request, address = take()
        if isinstance(request, socket.socket) and request.gettimeout() is None:
            request.settimeout(seconds)
        return request, address

    return timed_take


def _measured_take(take: Take, waits: QueueWaits, every: int) -> Take:
    """Return a take that measures the queue wait of the first connection and then of one in ``every``."""
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


def _resumed_take(take: Take, waits: QueueWaits | None) -> Take:
    """Return a take that measures how long a client that has spoken waited for a worker."""
    if waits is None:
        return take

    def resumed_take() -> tuple[Any, Any]:
        taken = take()
        waits.note(taken[0].waited_ns)
        return taken

    return resumed_take


def _take_when_ready(server: BaseServer, listener: Listener) -> Take:
    get_request: Callable[[], tuple[Any, Any] | None] = server.get_request

    def take() -> tuple[Any, Any]:
        taken = get_request() if listener.has_work() else None
        if taken is None:
            raise BlockingIOError
        return taken

    return take


# --- how it is processed


def _one_call_for(server: BaseServer) -> Process | None:
    """Return what does the work of ``process_request()`` in one call; None for all but plain datagrams.

    The standard ``process_request()`` calls ``finish_request()``, which calls the handler class, and
    then ``shutdown_request()``, which calls ``close_request()``; for datagrams the last two do
    nothing. One call in place of four saves 0.3 of 5 µs. For connections the same was tried, and the
    gain was below the noise.
    """
    plain = is_standard_step(server, "process_request", BaseServer) and all(
        is_standard_step(server, name, UDPServer) for name in ("shutdown_request", "close_request")
    )
    if plain and is_standard_step(server, "finish_request", BaseServer):
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
    is_standard = is_standard_step(server, "get_request", UDPServer)
    return is_standard and receives_plainly(getattr(server, "socket", None))


def _is_quiet(server: BaseServer) -> bool:
    return getattr(server.finish_request, "__func__", None) is no_empty_reply.finish_request
