"""The edge before the handlers of plain servers: one way in, one deadline, and refusals that disturb nobody."""

from __future__ import annotations

import contextlib
import gc
import socket
import socketserver
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.edge.edge import Refusals, edge_of, install, remove
from prefork.edge.passage import Passage
from prefork.edge.setup import prepare
from prefork.workers.states import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = ("127.0.0.1", 0)


class Asking(prefork.AuthenticationMixIn, socketserver.TCPServer):
    """A server of the standard library whose clients say their names, and that notes what happens."""

    edge_timeout = 5.0

    def __init__(self, *given: Any, **more: Any) -> None:
        self.handled: list[Any] = []
        self.errors: list[Any] = []
        super().__init__(*given, **more)

    def authenticate(self, request: Any, client_address: Any) -> str | None:
        """Take a line as the name."""
        name: str = request.recv(100).decode().strip()
        if name == "fail":
            raise RuntimeError(name)
        if not name:
            raise prefork.AuthenticationError("no name")
        return name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note the error, with the socket that the handler had."""
        self.errors.append((request, client_address))


class Note(socketserver.BaseRequestHandler):
    """Notes its client, and fails for one."""

    def handle(self) -> None:
        """Note the client."""
        server: Any = self.server
        server.handled.append(self.client_address)
        if self.client_address.identity == "bad":
            raise ValueError("bad")
        self.request.sendall(b"hello " + self.client_address.identity.encode())


@contextlib.contextmanager
def one_request(server: socketserver.BaseServer) -> Iterator[socket.socket]:
    """Handle one request in a thread; the block is the client."""
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with socket.create_connection(server.server_address[:2], timeout=5) as client:  # type: ignore[arg-type]
        yield client
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def server() -> Iterator[Asking]:
    """Give a plain server with an edge."""
    with Asking(LOOPBACK, Note) as made:
        yield made


def test_admits_a_client_under_its_name(server: Asking) -> None:
    """What ``authenticate()`` returns is the identity that the handler finds, also with ``handle_request()``."""
    with one_request(server) as client:
        client.sendall(b"alice")
        assert client.recv(100) == b"hello alice"
        own = client.getsockname()
    (address,) = server.handled
    assert (address, address.peer, address.identity) == (own, own, "alice")


def test_refuses_a_client(server: Asking, caplog: pytest.LogCaptureFixture) -> None:
    """A refused client costs a count and a line; neither the handler nor ``handle_error()`` sees it."""
    with one_request(server) as client:
        client.sendall(b"\n")
        assert client.recv(100) == b""
    assert (server.handled, server.errors) == ([], [])
    edge = edge_of(server)
    assert edge is not None
    assert edge.refusals.counts == {Rejection.AUTHENTICATION: 1}
    assert "refused a client reason=authentication client=127.0.0.1:" in caplog.text
    assert "Traceback" not in caplog.text


def test_error_of_the_program_is_one(server: Asking) -> None:
    """An exception of ``authenticate()`` that refuses nobody goes to ``handle_error()``."""
    with one_request(server) as client:
        client.sendall(b"fail")
        assert client.recv(100) == b""
    assert len(server.errors) == 1
    assert server.handled == []


def test_files_and_databases_of_the_program_are_not_the_client(
    server: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    """Where ``authenticate()`` raises an OSError of something else than its client, it has failed as any handler."""
    own, other = socket.socketpair()
    other.close()
    own.setblocking(False)
    raising = (
        lambda: Path("/nonexistent/users.db").read_bytes(),
        lambda: socket.create_connection(("127.0.0.1", 1)),
        lambda: own.send(b"x"),  # a BrokenPipeError of the kernel
        lambda: _raise(TimeoutError("timed out")),  # as a socket of the program raises it
    )
    caught = []
    server.handle_error = lambda *_: caught.append(sys.exception())  # type: ignore[method-assign]
    with own:
        for fail in raising:
            server.authenticate = lambda *_, fail=fail: fail()  # type: ignore[method-assign]
            with one_request(server) as client:
                assert client.recv(100) == b""
    causes = [type(one.__cause__) for one in caught]
    assert causes == [FileNotFoundError, ConnectionRefusedError, BrokenPipeError, TimeoutError]
    assert "'/nonexistent/users.db'" in str(caught[0])
    assert "refused a client" not in caplog.text


def _raise(error: Exception) -> None:
    raise error


def test_client_that_leaves_within_its_name_is_refused(server: Asking) -> None:
    """A ConnectionError that ``authenticate()`` raises itself says that the client has gone."""
    server.authenticate = lambda *_: _raise(ConnectionError("closed within a line"))  # type: ignore[method-assign]
    with one_request(server) as client:
        assert client.recv(100) == b""
    edge = edge_of(server)
    assert edge is not None
    assert (server.errors, edge.refusals.counts) == ([], {Rejection.GONE: 1})


def test_failed_handler_is_reported_with_its_client(server: Asking) -> None:
    """``handle_error()`` gets the client as the handler had it."""
    with one_request(server) as client:
        client.sendall(b"bad")
        assert client.recv(100) == b""
    ((_, address),) = server.errors
    assert address.identity == "bad"


def test_one_deadline_for_everything(server: Asking) -> None:
    """A client that sends one byte after the other has as long as one that is silent."""

    def trickle(request: Any, _client_address: Any) -> str:
        while request.recv(1):
            pass
        return "never"

    server.edge_timeout = 0.3
    server.authenticate = trickle  # type: ignore[method-assign,assignment]
    begun = time.monotonic()
    with one_request(server) as client:
        client.settimeout(0.02)
        answer: bytes | None = None
        while answer is None and time.monotonic() - begun < 3:
            with contextlib.suppress(TimeoutError):
                client.sendall(b"x")
                answer = client.recv(1)
        assert answer == b""
    assert time.monotonic() - begun < 3
    edge = edge_of(server)
    assert edge is not None
    assert edge.refusals.counts == {Rejection.TIMEOUT: 1}


def test_client_that_leaves(server: Asking) -> None:
    """A client that goes away in the edge is counted as gone."""
    with one_request(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    edge = edge_of(server)
    assert edge is not None
    assert edge.refusals.counts == {Rejection.GONE: 1}


def test_handler_has_its_timeout_back() -> None:
    """After the edge the socket has the timeout that it had before."""
    timeouts = []

    class Server(prefork.AuthenticationMixIn, socketserver.TCPServer):
        def get_request(self) -> Any:
            request, address = super().get_request()
            request.settimeout(7)
            return request, address

        def authenticate(self, request: Any, client_address: Any) -> str | None:
            request.recv(1)
            return None

        def finish_request(self, request: Any, client_address: Any) -> None:
            timeouts.append(request.gettimeout())

    with Server(LOOPBACK, Note) as server, one_request(server) as client:
        client.sendall(b"x")
    assert timeouts == [7]


def test_threads_wait_in_the_edge() -> None:
    """With ``ThreadingMixIn`` behind, a silent client holds its own thread, and the next one is served."""

    class Server(prefork.AuthenticationMixIn, socketserver.ThreadingTCPServer):
        handled: list[Any] = []  # noqa: RUF012 - one server

        def authenticate(self, request: Any, client_address: Any) -> str | None:
            return request.recv(10).decode() or None

    with Server(LOOPBACK, Note) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        with (
            socket.create_connection(server.server_address, timeout=5),
            socket.create_connection(server.server_address, timeout=5) as second,
        ):
            second.sendall(b"bob")
            assert second.recv(100) == b"hello bob"
        server.shutdown()
        serving.join(5)


def test_files_of_a_timed_socket() -> None:
    """What ``authenticate()`` gets makes files, too, and closing these leaves the socket open."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        timed = Passage(ours, "", 5).timed()
        theirs.sendall(b"a line\n")
        with timed.makefile("rb") as file:
            assert file.readline() == b"a line\n"
        timed.sendall(b"more")
        assert theirs.recv(10) == b"more"
        assert timed.fileno() == ours.fileno() >= 0


def test_no_time_left() -> None:
    """Once the time is over, no call waits any more."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        Passage(ours, "", -1).receive_exactly(ours, 1)


# --- the lines of the log


def test_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """A flood of refusals has a line a second, which counts the others."""
    now = 100.0
    refusals = Refusals(lambda: now)
    passage = Passage(None, ("192.0.2.7", 1), 1)
    for _ in range(5):
        refusals.note(Rejection.TLS, passage, OSError("bad record"))
    now += 1
    refusals.note(Rejection.TLS, passage, OSError("bad\nrecord"))

    assert [record.getMessage() for record in caplog.records] == [
        'master refused a client reason=tls client=192.0.2.7:1 error="bad record" others=0',
        r"master refused a client reason=tls client=192.0.2.7:1 error=bad\nrecord others=4",
    ]
    assert refusals.counts[Rejection.TLS] == 6


# --- how a server gets its edge


def test_server_without_an_edge_is_left_alone() -> None:
    """No method of a server object is replaced where nothing is asked for: a request pays nothing."""
    with prefork.PreForkingTCPServer(LOOPBACK, Note) as server:
        prepare(server)
        assert edge_of(server) is None
        assert not {"finish_request", "verify_request"} & vars(server).keys()


def test_edge_keeps_no_server_alive() -> None:
    """The program alone decides how long a server object lives: the edge makes no circle."""
    gc.disable()
    try:
        server = Asking(LOOPBACK, Note)
        assert edge_of(server) is not None
        server.server_close()
        ref = weakref.ref(server)
        del server
        assert ref() is None
    finally:
        gc.enable()


def test_method_of_the_object_comes_back() -> None:
    """A ``finish_request()`` that the program has put on the object is called, and is back afterwards."""
    with Asking(LOOPBACK, Note) as server:
        edge = edge_of(server)
        assert edge is not None
        remove(server)
        called = []

        def own(_request: Any, _address: Any) -> None:
            called.append(1)

        server.finish_request = own  # type: ignore[method-assign]
        install(server, edge)
        with one_request(server) as client:
            client.sendall(b"alice")
        assert called == [1]
        remove(server)
        assert server.finish_request is own


def test_settings_that_changed_make_another_edge(server: Asking) -> None:
    """Attributes that are set until the server serves count; without a change the edge stays."""
    first = edge_of(server)
    prepare(server)
    assert edge_of(server) is first
    server.edge_timeout = "2s"  # type: ignore[assignment]
    prepare(server)
    second = edge_of(server)
    assert second is not None
    assert second.timeout == 2.0


def test_wrong_setting_is_refused_before_the_bind() -> None:
    """A value that cannot be is refused with its place, when the server is made."""

    class Server(Asking):
        edge_timeout = "soon"  # type: ignore[assignment]

    with pytest.raises(prefork.SettingsError, match=r"attribute Server\.edge_timeout"):
        Server(LOOPBACK, Note)


def test_mixin_behind_the_server_is_refused() -> None:
    """A mix-in that would never be asked is an error of the class."""
    with pytest.raises(prefork.MisuseError, match=r"write class Wrong\(AuthenticationMixIn, TCP"):

        class Wrong(socketserver.TCPServer, prefork.AuthenticationMixIn):
            pass


def test_threads_in_front_of_a_server_with_an_edge_are_refused() -> None:
    """The advice is a class in which the threads have an effect: they stand in front of the plain server."""

    class Checked(prefork.AccessMixIn, socketserver.TCPServer):
        allow = "127.0.0.1"

    advice = "name ThreadingMixIn in class Checked itself, in front of its server class"
    with pytest.raises(prefork.MisuseError, match=advice):
        type("Wrong", (socketserver.ThreadingMixIn, Checked), {})

    class Right(prefork.AccessMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
        allow = "127.0.0.1"

    assert Right.process_request is socketserver.ThreadingMixIn.process_request


def test_identity_is_text() -> None:
    """Anything else than text as the identity is a mistake of the program, and admits nobody."""

    class Server(Asking):
        def authenticate(self, request: Any, client_address: Any) -> Any:
            return 7

    with Server(LOOPBACK, Note) as server:
        with one_request(server) as client:
            assert client.recv(10) == b""
        assert (server.handled, len(server.errors)) == ([], 1)


def test_server_without_a_socket_has_no_edge() -> None:
    """Rules for clients are refused where requests come from no socket: they would lose each request that was taken."""

    class Jobs(prefork.PreForkingMixIn, socketserver.BaseServer):
        deny = ("127.0.0.1",)

    with (
        Jobs("a table", socketserver.BaseRequestHandler) as server,
        pytest.raises(
            prefork.SettingsError, match=r"attribute Jobs\.deny.*do not come from a socket"
        ),
    ):
        server.serve_forever()
