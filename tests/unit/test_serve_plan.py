"""Plans: what can be served, and what is refused before anything is bound."""

from __future__ import annotations

import socket
import socketserver
from http.server import HTTPServer, SimpleHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.cli.commands.loading import OF_APPLICATIONS
from prefork.cli.serve_plan import Requested, plan
from prefork.host.addresses import Address
from prefork.workers.errors import BindError, BootError, TargetError
from prefork.wsgi import WSGIServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Shout(socketserver.StreamRequestHandler):
    """A handler class."""


class Datagrams(socketserver.DatagramRequestHandler):
    """A handler class for datagrams."""


def planned(found: object, *addresses: str, factory: bool = False, **more: Any) -> Any:
    """Plan to serve something on addresses."""
    requested = Requested([Address.parse(text) for text in addresses or ["127.0.0.1:0"]], **more)
    return plan("app:it", found, requested, factory=factory)


def refused(found: object, *addresses: str, **more: Any) -> str:
    """Return the reason for which something is not served on addresses."""
    with pytest.raises(TargetError) as caught:
        planned(found, *addresses, **more)
    return caught.value.reason


@pytest.fixture
def built() -> Iterator[Callable[..., list[Any]]]:
    """``built(found, *addresses)`` plans and builds; the servers are closed after the test."""
    servers: list[Any] = []

    def build(found: object, *addresses: str, **more: Any) -> list[Any]:
        made = planned(found, *addresses, **more).build()
        servers.extend(made)
        return list(made)

    yield build
    for server in servers:
        server.server_close()


# --- WSGI applications


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer, as an application does."""
    start_response("200 OK", [])
    return [b"hello"]


class Framework:
    """A class whose instances are applications."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Answer."""
        return application(environ, start_response)


class Old:
    """A class that is an application itself: its instances are the bodies."""

    def __init__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        self.body = application(environ, start_response)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body."""
        return iter(self.body)


@pytest.mark.parametrize(
    "found", [application, Framework(), Old], ids=["function", "object", "class"]
)
@pytest.mark.parametrize("factory", [False, True])
def test_applications_are_served(
    built: Callable[..., list[Any]], tmp_path: Path, found: Any, *, factory: bool
) -> None:
    """Whatever can be called with environment and start_response gets a server of HTTP on each address."""
    target = (lambda: found) if factory else found
    if factory and found is Old:
        target = lambda: Old  # noqa: E731
    unix = f"unix:{tmp_path}/socket"
    servers = built(target, "127.0.0.1:0", unix, factory=factory, limits={"limit_body": 7})
    assert [type(server).__name__ for server in servers] == ["WSGIServer", "UnixWSGIServer"]
    assert {server.RequestHandlerClass.__name__ for server in servers} == {"WSGIHandler"}
    assert all(server.RequestHandlerClass.application is found for server in servers)
    assert [server.limit_body for server in servers] == [7, 7]


def test_application_has_the_defaults_of_its_server_class() -> None:
    """The command line and the server class agree on what is the default for WSGI applications."""
    found = {name: getattr(WSGIServer, name) for name in OF_APPLICATIONS}
    assert found == OF_APPLICATIONS == {"park_new": True, "defer_accept": 1.0}


def test_application_serves_no_datagrams() -> None:
    """A datagram address is refused for an application before anything is bound."""
    assert "cannot serve datagrams" in refused(application, "udp://127.0.0.1:0")


# --- handler classes


def test_handler_gets_the_server_of_the_scheme(
    built: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """A handler class gets one ready-made server for each address."""
    servers = built(Shout, "127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/socket", "unix:@prefork-t")
    assert [type(server) for server in servers] == [
        prefork.PreForkingTCPServer,
        prefork.PreForkingTCPServer,
        prefork.PreForkingUnixStreamServer,
        prefork.PreForkingUnixStreamServer,
    ]
    assert all(server.RequestHandlerClass is Shout for server in servers)
    (udp,) = built(Datagrams, "udp://127.0.0.1:0")
    assert type(udp) is prefork.PreForkingUDPServer


def test_handler_of_the_other_kind_is_refused() -> None:
    """A stream handler is refused for a datagram address, and a datagram handler for a stream address."""
    assert refused(Shout, "udp://:0") == (
        "Shout is a StreamRequestHandler and cannot serve udp://0.0.0.0:0"
    )
    assert "Datagrams is a DatagramRequestHandler" in refused(Datagrams, "unix:/x")


def test_text_of_the_plan() -> None:
    """The text of a plan names the handler class and the addresses."""
    assert planned(Shout, ":80", "unix:/x").text == (
        "handler class Shout on tcp://0.0.0.0:80 unix:/x"
    )


def test_second_address_in_use_closes_the_first(tmp_path: Path) -> None:
    """If the second address is in use, the first server is closed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "socket"
        with pytest.raises(
            BindError, match=rf"tcp://127\.0\.0\.1:{port}: this process listens there"
        ):
            planned(Shout, f"unix:{path}", f"127.0.0.1:{port}").build()
    assert not path.exists()


# --- server classes


class Ready(prefork.PreForkingTCPServer):
    """A server class that knows its handler."""

    RequestHandlerClass = Shout


class Plain(socketserver.TCPServer):
    """A server class of the standard library's kind, that takes an address only."""

    workers = 3
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Shout)


def test_server_class_with_its_handler(built: Callable[..., list[Any]]) -> None:
    """A server class is called once for each address."""
    first, second = built(Ready, "127.0.0.1:0", "127.0.0.1:0")
    assert type(first) is Ready
    assert type(second) is Ready
    assert first.RequestHandlerClass is Shout


def test_server_class_without_the_mix_in(built: Callable[..., list[Any]]) -> None:
    """A class without the mix-in gets it, and keeps its name, its module and its settings."""
    (server,) = built(Plain)
    assert isinstance(server, Plain)
    assert isinstance(server, prefork.PreForkingMixIn)
    assert type(server).__qualname__ == "Plain"
    assert (server.workers, server.max_children) == (3, 40)


def test_backlog_is_set_before_listening(built: Callable[..., list[Any]]) -> None:
    """A requested backlog replaces that of the class before the server listens."""
    (server,) = built(Plain, backlog=7)
    assert server.request_queue_size == 7
    assert Plain.request_queue_size != 7
    (server,) = built(Ready, backlog=7)
    assert server.request_queue_size == 7
    assert type(server).__name__ == "Ready"


def test_class_for_ipv4_serves_ipv6_when_asked(built: Callable[..., list[Any]]) -> None:
    """A class for IPv4 serves IPv6 where the address is an IPv6 address."""
    (server,) = built(Plain, "[::1]:0")
    assert server.socket.family is socket.AF_INET6


def test_http_server_with_a_handler(built: Callable[..., list[Any]]) -> None:
    """``http.server.HTTPServer`` with a handler class attribute can be served."""

    class Files(HTTPServer):
        RequestHandlerClass = SimpleHTTPRequestHandler

    (server,) = built(Files)
    assert server.server_port == server.server_address[1]


def test_server_class_that_needs_more_than_an_address() -> None:
    """The error for a class that cannot be called with an address names the remedy."""
    reason = refused(prefork.PreForkingTCPServer)
    assert reason.startswith("PreForkingTCPServer cannot be made from an address (missing")
    assert "set the class attribute RequestHandlerClass, or use --factory" in reason

    class Odd(Ready):
        RequestHandlerClass = 5

    assert refused(Odd) == "Odd.RequestHandlerClass is an instance of int, not a handler class"


@pytest.mark.parametrize(
    ("kind", "base", "address"),
    [
        ("tcp", socketserver.TCPServer, "udp://127.0.0.1:0"),
        ("tcp", socketserver.TCPServer, "unix:/x"),
        ("udp", socketserver.UDPServer, "127.0.0.1:0"),
        ("unix", socketserver.UnixStreamServer, "unixgram:/x"),
        ("unixgram", socketserver.UnixDatagramServer, "unix:/x"),
    ],
)
def test_address_of_another_kind(kind: str, base: Any, address: str) -> None:
    """A server class is refused for an address of another kind than its sockets."""
    made = type("Made", (base,), {"RequestHandlerClass": Shout})
    assert refused(made, address) == f"Made serves {kind} addresses, not {Address.parse(address)}"


def test_server_class_cannot_take_a_descriptor() -> None:
    """A server class is refused for a socket that was handed over."""
    assert "binds a socket of its own; serve fd://7 with a handler class" in refused(
        Ready, "fd://7"
    )


def test_constructor_that_raises(built: Callable[..., list[Any]]) -> None:
    """An exception of a constructor is a BootError, and a failed bind in it is a BindError."""

    class Broken(Ready):
        def __init__(self, address: Any, handler: Any) -> None:
            raise RuntimeError("no database")

    with pytest.raises(BootError, match="RuntimeError: no database") as caught:
        built(Broken)
    assert "in __init__" in caught.value.report
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            BindError, match=rf"tcp://127\.0\.0\.1:{port}: this process listens there"
        ):
            built(type("Strict", (Plain,), {"allow_reuse_address": False}), f"127.0.0.1:{port}")


def test_address_of_another_machine(built: Callable[..., list[Any]]) -> None:
    """The error for an address of another machine says so."""
    with pytest.raises(BindError, match="this machine does not have that address"):
        built(Plain, "192.0.2.1:0")


# --- instances, factories, and what is none of them


def test_instance_with_the_mix_in(built: Callable[..., list[Any]]) -> None:
    """An instance with the mix-in is served as it is, and settings of the listener are refused."""
    server = Ready(("127.0.0.1", 0), Shout)
    assert built(server) == [server]
    assert "so bind (from flag --bind) has no effect" in refused(server, binds_from="flag --bind")
    reason = refused(server, backlog=5, backlog_from="prefork.toml")
    assert "so backlog (from prefork.toml) has no effect" in reason


def test_instance_without_the_mix_in() -> None:
    """An instance without the mix-in is refused."""
    with Plain(("127.0.0.1", 0)) as server:
        assert "an instance of Plain cannot be pre-forked" in refused(server)


def test_factory_returns_one_or_several(built: Callable[..., list[Any]]) -> None:
    """A factory may return a server, several servers or a class."""

    def make() -> Any:
        return made

    made: Any = Ready(("127.0.0.1", 0), Shout)
    assert built(make, factory=True) == [made]
    made = (Ready(("127.0.0.1", 0), Shout), Ready(("127.0.0.1", 0), Shout))
    assert built(make, factory=True) == list(made)
    made = Shout
    (server,) = built(make, "127.0.0.1:0", factory=True, binds_from="flag --bind")
    assert type(server) is prefork.PreForkingTCPServer


def test_factory_is_not_called_before_it_is_built() -> None:
    """A factory is not called while the plan is made."""
    text = "what the factory <lambda>() returns (not called)"
    assert planned(lambda: 1 / 0, factory=True).text == text


def test_factory_that_returns_something_else() -> None:
    """The error for a wrong result of a factory names the result, and servers in it are closed."""
    for result, kind in (
        (5, "an instance of int"),
        ([], "an instance of list"),
        (None, "an instance of NoneType"),
    ):
        with pytest.raises(TargetError, match=rf"<lambda>\(\) returned {kind}, not a handler"):
            planned(lambda result=result: result, factory=True).build()
    plain = Plain(("127.0.0.1", 0))
    with pytest.raises(TargetError, match="lacks PreForkingMixIn"):
        planned(lambda: [plain], factory=True).build()
    assert plain.fileno() == -1


def test_factory_that_raises() -> None:
    """An exception of a factory is a BootError with the application's traceback."""
    with pytest.raises(BootError, match="ZeroDivisionError") as caught:
        planned(lambda: 1 / 0, factory=True).build()
    assert "1 / 0" in caught.value.report


def test_factories_that_cannot_be_called() -> None:
    """A factory that needs arguments, a class and a plain object are refused."""
    assert "has to work without arguments: missing" in refused(lambda x: x, factory=True)
    assert "servers, not class Shout" in refused(Shout, factory=True)
    assert "servers, not an instance of int" in refused(5, factory=True)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("an instance of int", 5),
        ("class dict", dict),
        ("the callable print", print),
        ("an instance of module", socketserver),
        ("an instance of Shout", Shout.__new__(Shout)),
    ],
)
def test_anything_else_is_refused(kind: str, found: object) -> None:
    """The error for an object that cannot be served says what it is and what can be served."""
    reason = refused(found)
    assert reason.startswith(f"{kind} cannot be served, only a handler class")
    assert "--factory" in reason
