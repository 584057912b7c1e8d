"""The steps of a request: those that a server leaves as they are cost no call, those it overrides are called."""

from __future__ import annotations

import functools
import importlib.util
import socket
import socketserver
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.waits import SO_TIMESTAMPNS
from prefork.workers.worker.source import CLIENT_TIMEOUT, Source
from prefork.workers.worker.standard import is_standard

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = (
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
)
STANDARD = [socketserver.TCPServer, socketserver.UDPServer]
OURS = [prefork.PreForkingTCPServer, prefork.PreForkingUDPServer]


class Handler(socketserver.BaseRequestHandler):
    """Notes on its server that it ran."""

    def handle(self) -> None:
        """Note the call."""
        self.server.called.append("handle")  # type: ignore[attr-defined]


class Silent(socketserver.DatagramRequestHandler):
    """Writes nothing."""

    def handle(self) -> None:
        """Write nothing."""


def noting(name: str) -> Any:
    """Return a method that notes its call and does what the next class does."""

    def method(self: Any, *arguments: Any) -> Any:
        self.called.append(name)
        return getattr(super(type(self), self), name)(*arguments)

    return method


@contextmanager
def source_of(server: Any, **options: Any) -> Iterator[Source]:
    """Give the source of a server as a worker has it, and take all of it down."""
    board = Scoreboard.create(1)
    writer = SlotWriter(board, 0)
    server.called = []
    with server:
        listener = Listener(server)
        listener.prepare()
        try:
            yield Source(listener, writer, **options)
        finally:
            writer.detach()
            board.close()


@contextmanager
def request_to(server: Any) -> Iterator[socket.socket]:
    """Send a request; give the client."""
    with socket.socket(socket.AF_INET, server.socket_type) as client:
        client.settimeout(5)
        client.connect(server.server_address)
        client.send(b"request")
        yield client


def serve_one(source: Source) -> list[str]:
    """Do with one request what the loop does; return the calls."""
    server: Any = source.server
    with request_to(server):
        request, address = source.take()
        if source.verify is None or source.verify(request, address):
            source.process(request, address)
    return server.called


@pytest.mark.parametrize("base", [*STANDARD, *OURS])
@pytest.mark.parametrize("name", CALLS)
def test_overridden_step_is_called(base: Any, name: str) -> None:
    """Each step that a class overrides is called once, and the handler runs all the same."""
    server = type("Server", (base,), {name: noting(name)})(("127.0.0.1", 0), Handler)
    with source_of(server) as source:
        called = serve_one(source)
    assert sorted(called) == sorted([name, "handle"])


@pytest.mark.parametrize("base", [*STANDARD, *OURS])
def test_all_steps_come_in_the_standard_order(base: Any) -> None:
    """A class that overrides all of them sees the order of BaseServer."""
    server = type("Server", (base,), {name: noting(name) for name in CALLS})(
        ("127.0.0.1", 0), Handler
    )
    with source_of(server) as source:
        called = serve_one(source)
    assert called == [*CALLS[:3], "handle", *CALLS[3:]]


@pytest.mark.parametrize("base", [*STANDARD, *OURS])
@pytest.mark.parametrize("name", CALLS)
def test_step_replaced_on_the_object_is_called(base: Any, name: str) -> None:
    """A method that worker_init() puts on the server object counts as one of the class does."""
    server = base(("127.0.0.1", 0), Handler)
    with source_of(server) as source:
        standard = getattr(server, name)

        def replaced(*arguments: Any) -> Any:
            server.called.append(name)
            return standard(*arguments)

        setattr(server, name, replaced)
        source.settle_steps()
        called = serve_one(source)
    assert sorted(called) == sorted([name, "handle"])


@pytest.mark.parametrize("base", STANDARD)
@pytest.mark.parametrize("name", ["get_request", *CALLS])
def test_step_that_a_handler_replaces(base: Any, name: str) -> None:
    """A change of the server object after worker_init() is noticed where docs/DESIGN.md says so, and nowhere else."""
    noticed = ("finish_request", "shutdown_request", "close_request")
    server = base(("127.0.0.1", 0), Handler)
    with source_of(server) as source:
        standard = getattr(server, name)

        def replaced(*arguments: Any) -> Any:
            server.called.append(name)
            return standard(*arguments)

        setattr(server, name, replaced)
        called = serve_one(source)
    is_noticed = base is socketserver.TCPServer and name in noticed
    assert sorted(called) == sorted([*[name] * is_noticed, "handle"])


def test_longest_datagram_is_settled_early() -> None:
    """A handler that changes max_packet_size changes nothing; worker_init() may change it."""
    server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
    with source_of(server) as source, request_to(server) as client:
        server.max_packet_size = 3
        assert source.take()[0][0] == b"request"
        source.settle_steps()
        client.send(b"request")
        assert source.take()[0][0] == b"req"


@pytest.mark.parametrize("base", [*STANDARD, *OURS])
@pytest.mark.parametrize("name", CALLS)
def test_step_replaced_on_the_standard_class_is_called(
    base: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer or a security patch may replace a step of all servers, also before prefork is imported."""
    owner = next(cls for cls in base.__mro__ if name in vars(cls))
    standard = vars(owner)[name]

    @functools.wraps(standard)
    def replaced(self: Any, *arguments: Any) -> Any:
        self.called.append(name)
        return standard(self, *arguments)

    monkeypatch.setattr(owner, name, replaced)
    with source_of(base(("127.0.0.1", 0), Handler)) as source:
        called = serve_one(source)
    assert sorted(called) == sorted([name, "handle"])


def test_standard_steps_are_known_as_such() -> None:
    """What nobody has replaced is left out: the server's steps cost a worker no call."""
    for base in STANDARD:
        with source_of(base(("127.0.0.1", 0), Handler)) as source:
            assert source.verify is None
            assert not source.may_hang
            assert (source.datagrams is None) == (base is STANDARD[0])


def test_standard_steps_are_those_of_the_one_module() -> None:
    """A second copy of the module, as green-thread libraries make one with changes, is somebody else's code."""
    spec = importlib.util.spec_from_file_location("copy_of_socketserver", socketserver.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    owner = socketserver.BaseServer
    assert is_standard(owner.verify_request, owner, "verify_request")
    assert not is_standard(copy.BaseServer.verify_request, owner, "verify_request")


@pytest.mark.parametrize("base", [*STANDARD, *OURS])
def test_handler_class_may_be_changed_at_any_time(base: Any) -> None:
    """RequestHandlerClass is read for each request."""

    class Other(Handler):
        def handle(self) -> None:
            self.server.called.append("other")  # type: ignore[attr-defined]

    server = base(("127.0.0.1", 0), Handler)
    with source_of(server) as source:
        serve_one(source)
        server.RequestHandlerClass = Other
        assert serve_one(source) == ["handle", "other"]


@pytest.mark.parametrize("overridden", [False, True])
@pytest.mark.parametrize(("base", "empty_replies"), [(STANDARD[1], 1), (OURS[1], 0)])
def test_who_sends_an_empty_reply(base: Any, empty_replies: int, overridden: bool) -> None:
    """The standard datagram server answers with nothing, ours does not answer, by whichever way a request goes."""
    members = {"finish_request": noting("finish_request")} if overridden else {}
    server = type("Server", (base,), members)(("127.0.0.1", 0), Silent)
    with source_of(server) as source, request_to(server) as client:
        source.process(*source.take())
        client.settimeout(0.05)
        replies = 0
        with suppress(TimeoutError):
            replies += client.recv(10) == b""
    assert replies == empty_replies


def test_handlers_may_be_made_by_anything() -> None:
    """What makes handlers need not be a class, nor be hashable: it is called as it is."""

    class Maker:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, *arguments: Any) -> Any:
            return Silent(*arguments)

    maker: Any = Maker()
    server = prefork.PreForkingUDPServer(("127.0.0.1", 0), maker)
    with source_of(server) as source, request_to(server) as client:
        source.process(*source.take())
        assert client.recv(10) == b"", "a standard handler's empty reply"
        assert source.handler_class() is maker


# --- how a connection is accepted


class Wrapped(socket.socket):
    """A socket that gives its connections something, as that of ssl does."""

    def accept(self) -> Any:
        """Accept, and mark the connection."""
        request, address = super().accept()
        request.settimeout(3)
        return request, address


def test_connection_is_as_accept_makes_it() -> None:
    """However it is accepted: family, type and protocol, its address, blocking, not for programs that a handler starts."""
    server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
    with source_of(server) as source, request_to(server) as first, request_to(server) as second:
        server.socket.setblocking(False)
        taken, expected = source.take(), server.socket.accept()
        with taken[0] as ours, expected[0] as theirs:
            assert {taken[1], expected[1]} == {first.getsockname(), second.getsockname()}
            for one in (ours, theirs):
                assert type(one) is socket.socket
                assert one.family is socket.AF_INET
                assert one.type is socket.SOCK_STREAM
                assert (one.proto, one.gettimeout(), one.get_inheritable()) == (
                    server.socket.proto,
                    None,
                    False,
                )


def test_default_timeout_is_given_to_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """What socket.setdefaulttimeout() says holds, as with the standard library's accept()."""
    server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
    with source_of(server) as source, request_to(server):
        socket.setdefaulttimeout(7)
        try:
            request, _ = source.take()
        finally:
            socket.setdefaulttimeout(None)
        with request:
            assert request.gettimeout() == 7


@pytest.mark.parametrize("late", [False, True])
def test_accept_of_another_kind_of_socket_is_called(late: bool) -> None:
    """A wrapped listening socket makes its connections itself, also when worker_init() has wrapped it."""
    server = socketserver.TCPServer(("127.0.0.1", 0), Handler)

    def wrap() -> None:
        server.socket = Wrapped(fileno=server.socket.detach())

    if not late:
        wrap()
    with source_of(server) as source, request_to(server):
        if late:
            wrap()
        source.settle_steps()
        request, _ = source.take()
        with request:
            assert request.gettimeout() == 3


def test_accept_replaced_for_all_sockets_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program has put in the place of socket.accept() makes the connections."""
    accept = socket.socket.accept

    @functools.wraps(accept)
    def replaced(self: socket.socket) -> Any:
        request, address = accept(self)
        request.settimeout(3)
        return request, address

    monkeypatch.setattr(socket.socket, "accept", replaced)
    server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
    with source_of(server) as source, request_to(server):
        request, _ = source.take()
        with request:
            assert request.gettimeout() == 3


class Unwrapping(socket.socket):
    """A socket that takes something off its datagrams, as that of DTLS does."""

    def recvfrom(self, size: int) -> Any:  # type: ignore[override]
        """Receive, and take the first byte off."""
        data, address = super().recvfrom(size)
        return data[1:], address


@pytest.mark.parametrize("every", [0, 1])
def test_recvfrom_of_another_kind_of_socket_is_called(every: int) -> None:
    """A socket that receives in its own way does so, with and without metrics."""
    server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
    server.socket = Unwrapping(fileno=server.socket.detach())
    with source_of(server, sample_every=every) as source, request_to(server):
        assert source.datagrams is None
        (data, _), _ = source.take()
        assert data == b"equest"


# --- what is set on a connection


@pytest.mark.parametrize(("given", "expected"), [(None, None), (0.0, None), (0.5, 0.5)])
def test_connection_gets_the_client_timeout(given: float | None, expected: float | None) -> None:
    """Only where there is one; 0 is none."""
    server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
    with source_of(server, client_timeout=given) as source, request_to(server):
        request, _ = source.take()
        with request:
            assert request.gettimeout() == expected


def test_timeout_of_get_request_wins() -> None:
    """A server class that gives its connections a timeout knows better."""

    class Own(socketserver.TCPServer):
        def get_request(self) -> Any:
            request, address = super().get_request()
            request.settimeout(7)
            return request, address

    server = Own(("127.0.0.1", 0), Handler)
    with source_of(server, client_timeout=0.5) as source, request_to(server):
        request, _ = source.take()
        with request:
            assert request.gettimeout() == 7


def test_handler_class_may_set_timeouts_itself() -> None:
    """Its connections have none, and the server says which one they are to have."""

    class Own(Handler):
        sets_timeouts = True

    server = socketserver.TCPServer(("127.0.0.1", 0), Own)
    with source_of(server, client_timeout=0.5) as source, request_to(server):
        request, _ = source.take()
        with request:
            assert request.gettimeout() is None
        assert getattr(server, CLIENT_TIMEOUT) == 0.5


def test_datagram_socket_gets_no_timeout() -> None:
    """The server's one socket is not the client's to time out."""
    server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
    with source_of(server, client_timeout=0.5) as source, request_to(server):
        (_, sock), _ = source.take()
        assert sock.gettimeout() is None


# --- who can tell a queue wait


@pytest.mark.parametrize(("every", "known"), [(0, False), (1, True)])
@pytest.mark.parametrize("base", STANDARD)
def test_queue_wait_is_measured_where_it_is_wanted(base: Any, every: int, known: bool) -> None:
    """Queue waits of TCP and UDP are measured with metrics or an access log, and not otherwise."""
    server = base(("127.0.0.1", 0), Handler)
    with source_of(server, sample_every=every) as source:
        assert (source.waits is not None) is known


@pytest.mark.parametrize(
    ("every", "expected"), [(1, "xxxxxxxxx"), (3, "x..x..x.."), (7, "x......x.")]
)
@pytest.mark.parametrize("base", STANDARD)
def test_first_request_is_measured_and_then_every_so_many(
    base: Any, every: int, expected: str
) -> None:
    """A take that finds nothing counts for nothing."""
    server = base(("127.0.0.1", 0), Handler)
    seen = ""
    with source_of(server, sample_every=every) as source:
        server.socket.setblocking(False)
        if base is socketserver.UDPServer:
            server.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        assert source.waits is not None
        for _ in expected:
            with suppress(BlockingIOError):
                source.take()
            with request_to(server):
                source.waits.last = None
                request, _ = source.take()
            seen += "." if source.waits.last is None else "x"
            if isinstance(request, socket.socket):
                request.close()
    assert seen == expected


def test_unix_stream_has_no_queue_wait(tmp_path: Any) -> None:
    """Where the kernel does not tell, nothing is asked."""
    server = socketserver.UnixStreamServer(str(tmp_path / "socket"), Handler)
    with source_of(server, sample_every=1) as source:
        assert source.waits is None
    (tmp_path / "socket").unlink()


@pytest.mark.parametrize("every", [0, 1, 3])
def test_stamped_datagrams_are_the_same_datagrams(every: int) -> None:
    """However a datagram is received, what the handler gets is the same, and one too long is cut and counted."""
    server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
    server.max_packet_size = 10
    with source_of(server, sample_every=every) as source, request_to(server) as client:
        client.send(b"x" * 10)
        client.send(b"y" * 11)
        client.send(b"")
        got = [source.take() for _ in range(4)]
        with pytest.raises(BlockingIOError):
            source.take()
    assert [data for (data, _), _ in got] == [b"request", b"x" * 10, b"y" * 10, b""]
    assert {sock for (_, sock), _ in got} == {server.socket}
    assert len({address for _, address in got}) == 1
