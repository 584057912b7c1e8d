"""Targets: what loads, what can be served, and what is refused before anything is bound."""

from __future__ import annotations

import socket
import socketserver
import sys
import textwrap
from http.server import HTTPServer, SimpleHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.cli.target import Requested, application_report, load, plan
from prefork.host.addresses import Address
from prefork.workers.errors import BindError, BootError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOOPBACK = Address("tcp", "127.0.0.1", 0)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``write(name, source)`` puts a module into the working directory; imports are undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write_module(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path_importer_cache.clear()


def refusal(target: str, **more: Any) -> str:
    """Return the reason for which a target is refused."""
    with pytest.raises(TargetError) as caught:
        load(target) if not more else plan(target, **more)
    assert caught.value.target == target
    assert repr(target) in str(caught.value)
    return caught.value.reason


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


# --- loading


def test_module_in_the_working_directory(write: Callable[..., None]) -> None:
    """The working directory comes first on the path, as with gunicorn."""
    write("app_here.py", "class Up: pass")
    found = load("app_here:Up")
    assert found.__module__ == "app_here"


def test_attributes_of_attributes(write: Callable[..., None]) -> None:
    """A package, a module in it, a class in a class."""
    write("pack_here/__init__.py", "")
    write("pack_here/inner.py", "class Outer:\n    class Inner: pass\n")
    assert load("pack_here.inner:Outer.Inner").__qualname__ == "Outer.Inner"  # type: ignore[attr-defined]


def test_file_finds_its_neighbours(write: Callable[..., None]) -> None:
    """A file imports what lies beside it, as ``python file.py`` would."""
    write("deep/neighbour_here.py", "answer = 42")
    write("deep/file_here.py", "from neighbour_here import answer")
    assert load("deep/file_here.py:answer") == 42
    assert "file_here" in sys.modules


def test_file_named_like_a_module_that_is_there(write: Callable[..., None]) -> None:
    """A target called ``logging.py`` does not become the standard library's."""
    import logging

    write("logging.py", "mine = True")
    assert load("logging.py:mine") is True
    assert sys.modules["logging"] is logging


@pytest.mark.parametrize(
    ("reason", "target"),
    [
        ("what is to be served there? Name it: app.py:ATTRIBUTE", "app.py"),
        ("what is to be served there? Name it: app:ATTRIBUTE", "app"),
        ("what is to be served there? Name it: app.py:ATTRIBUTE", "app.py:"),
        ("it must be module:attribute or file.py:attribute", ":Up"),
        ("it must be module:attribute or file.py:attribute", ":"),
        ("there is no file nowhere.py", "nowhere.py:Up"),
        ("there is no file some/where", "some/where:Up"),
        ("there is no module nowhere_at_all", "nowhere_at_all:Up"),
        ("there is no module nowhere_at_all", "nowhere_at_all.deeper:Up"),
        ("there is no module json.nowhere", "json.nowhere:Up"),
        ("'..x' is no module name", "..x:Up"),
        ("'a b' is no module name", "a b:Up"),
        ("'1' is no module name", "1:Up"),
    ],
)
def test_targets_that_name_nothing(write: Callable[..., None], reason: str, target: str) -> None:
    """A missing or malformed target is told in one sentence."""
    assert refusal(target) == reason


def test_misspelt_names_get_a_hint(write: Callable[..., None]) -> None:
    """The nearest module and the nearest attribute are named."""
    write("shouting_app.py", "class Shout: pass\nclass Whisper: pass")
    assert refusal("shoutin_app:Shout").endswith("did you mean shouting_app?")
    assert refusal("shouting_app:Shuot").endswith("has no Shuot; did you mean Shout?")


def test_far_off_names_get_the_list(write: Callable[..., None]) -> None:
    """Where nothing is near, what the module could serve is listed."""
    write(
        "listing_app.py",
        """
        import socketserver
        from socketserver import StreamRequestHandler, TCPServer
        class One(StreamRequestHandler): pass
        class Two(TCPServer): pass
        three = 3
        """,
    )
    assert refusal("listing_app:qqqqqq") == "listing_app has no qqqqqq; it has One, Two"


@pytest.mark.parametrize(
    ("said", "source"),
    [
        ("ZeroDivisionError: division by zero", "def f():\n    1 / 0\nf()"),
        ("ModuleNotFoundError: No module named 'nowhere_at_all'", "import nowhere_at_all"),
        ("SyntaxError", "def"),
        ("it called sys.exit('no')", "import sys\nsys.exit('no')"),
        ("FileNotFoundError", "open('nowhere')"),
    ],
)
def test_broken_applications_report_themselves(
    write: Callable[..., None], said: str, source: str
) -> None:
    """The traceback begins in the application: nothing of prefork or the import machinery."""
    write("broken_here.py", source)
    for target in ("broken_here:x", "broken_here.py:x"):
        with pytest.raises(BootError) as caught:
            load(target)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "broken_here.py" in caught.value.report
        assert "importlib" not in caught.value.report
        assert "target.py" not in caught.value.report
        assert "broken_here" not in sys.modules


def test_module_that_misses_itself_is_broken(write: Callable[..., None]) -> None:
    """A package that fails to import its own part is no missing target."""
    write("half_here/__init__.py", "import half_here.other")
    with pytest.raises(BootError, match=r"No module named 'half_here\.other'"):
        load("half_here:x")


def test_application_that_binds_an_address_in_use(write: Callable[..., None]) -> None:
    """A server made by the module itself fails like one made by prefork."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(
            "binding_here.py",
            f"import socketserver as s\nx = s.TCPServer(('127.0.0.1', {port}), 0)",
        )
        with pytest.raises(BindError) as caught:
            load("binding_here:x")
    assert str(caught.value).startswith(f"cannot listen on 127.0.0.1:{port}: the address is in use")


def test_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release directory may have been removed under a shell."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "working directory is gone" in refusal("app:Up")


def test_report_keeps_the_chain() -> None:
    """Causes are part of what happened."""
    error = ValueError("second")
    error.__cause__ = KeyError("first")
    report = application_report(error)
    assert report.index("KeyError: 'first'") < report.index("ValueError: second")


# --- handler classes


def test_handler_gets_the_server_of_the_scheme(
    built: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """One ready-made server per address."""
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
    """A stream handler would fail on its first datagram, and the other way round."""
    assert refused(Shout, "udp://:0") == (
        "Shout is a StreamRequestHandler and cannot serve udp://0.0.0.0:0"
    )
    assert "Datagrams is a DatagramRequestHandler" in refused(Datagrams, "unix:/x")


def test_text_of_the_plan() -> None:
    """What ``prefork check`` says."""
    assert planned(Shout, ":80", "unix:/x").text == (
        "handler class Shout on tcp://0.0.0.0:80 unix:/x"
    )


def test_second_address_in_use_closes_the_first(tmp_path: Path) -> None:
    """Nothing stays bound of a start that failed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "socket"
        with pytest.raises(BindError, match=rf"tcp://127\.0\.0\.1:{port}: .*in use"):
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
    """Made as it is, once per address."""
    first, second = built(Ready, "127.0.0.1:0", "127.0.0.1:0")
    assert type(first) is Ready
    assert type(second) is Ready
    assert first.RequestHandlerClass is Shout


def test_server_class_without_the_mix_in(built: Callable[..., list[Any]]) -> None:
    """The mix-in is put in front; the class passes for itself and keeps its settings."""
    (server,) = built(Plain)
    assert isinstance(server, Plain)
    assert isinstance(server, prefork.PreForkingMixIn)
    assert type(server).__qualname__ == "Plain"
    assert (server.workers, server.max_children) == (3, 40)


def test_backlog_is_set_before_listening(built: Callable[..., list[Any]]) -> None:
    """The class's own backlog gives way to the one that was asked for."""
    (server,) = built(Plain, backlog=7)
    assert server.request_queue_size == 7
    assert Plain.request_queue_size != 7
    (server,) = built(Ready, backlog=7)
    assert server.request_queue_size == 7
    assert type(server).__name__ == "Ready"


def test_class_for_ipv4_serves_ipv6_when_asked(built: Callable[..., list[Any]]) -> None:
    """The standard library leaves that to a subclass of two lines."""
    (server,) = built(Plain, "[::1]:0")
    assert server.socket.family is socket.AF_INET6


def test_http_server_with_a_handler(built: Callable[..., list[Any]]) -> None:
    """A real server class: two lines make it a target."""

    class Files(HTTPServer):
        RequestHandlerClass = SimpleHTTPRequestHandler

    (server,) = built(Files)
    assert server.server_port == server.server_address[1]


def test_server_class_that_needs_more_than_an_address() -> None:
    """The remedy is named."""
    reason = refused(prefork.PreForkingTCPServer)
    assert reason.startswith("PreForkingTCPServer cannot be made from an address (missing")
    assert "set the class attribute RequestHandlerClass, or use --factory" in reason

    class Odd(Ready):
        RequestHandlerClass = 5

    assert refused(Odd) == "Odd.RequestHandlerClass is an instance of int"


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
    """A server class cannot serve what its sockets are not."""
    made = type("Made", (base,), {"RequestHandlerClass": Shout})
    assert refused(made, address) == f"Made serves {kind} addresses, not {Address.parse(address)}"


def test_server_class_cannot_take_a_descriptor() -> None:
    """It binds its own socket."""
    assert "binds its own socket; fd://7 needs a handler class" in refused(Ready, "fd://7")


def test_constructor_that_raises(built: Callable[..., list[Any]]) -> None:
    """The application's own failure is reported as one, a failed bind as the other."""

    class Broken(Ready):
        def __init__(self, address: Any, handler: Any) -> None:
            raise RuntimeError("no database")

    with pytest.raises(BootError, match="RuntimeError: no database") as caught:
        built(Broken)
    assert "in __init__" in caught.value.report
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=rf"tcp://127\.0\.0\.1:{port}: the address is in use"):
            built(type("Strict", (Plain,), {"allow_reuse_address": False}), f"127.0.0.1:{port}")


def test_address_of_another_machine(built: Callable[..., list[Any]]) -> None:
    """The reason is told in words."""
    with pytest.raises(BindError, match="this machine does not have that address"):
        built(Plain, "192.0.2.1:0")


# --- instances, factories, and what is none of them


def test_instance_with_the_mix_in(built: Callable[..., list[Any]]) -> None:
    """It has its address, so it is served as it is."""
    server = Ready(("127.0.0.1", 0), Shout)
    assert built(server) == [server]
    assert "bind (from flag --bind) comes too late" in refused(server, binds_from="flag --bind")
    reason = refused(server, backlog=5, backlog_from="prefork.toml")
    assert "backlog (from prefork.toml) comes too late" in reason


def test_instance_without_the_mix_in() -> None:
    """It is bound already, and too late to change."""
    with Plain(("127.0.0.1", 0)) as server:
        assert "an instance of Plain without PreForkingMixIn" in refused(server)


def test_factory_returns_one_or_several(built: Callable[..., list[Any]]) -> None:
    """A server, a list of servers, or a class."""

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
    """Planning binds nothing and calls nothing."""
    assert planned(lambda: 1 / 0, factory=True).text == "what the factory <lambda>() returns"


def test_factory_that_returns_something_else() -> None:
    """What came back is named, and what was bound on the way is closed."""
    for result, kind in (
        (5, "an instance of int"),
        ([], "an instance of list"),
        (None, "an instance of NoneType"),
    ):
        with pytest.raises(TargetError, match=rf"<lambda>\(\) returned {kind}, not a handler"):
            planned(lambda result=result: result, factory=True).build()
    plain = Plain(("127.0.0.1", 0))
    with pytest.raises(TargetError, match="without PreForkingMixIn"):
        planned(lambda: [plain], factory=True).build()
    assert plain.fileno() == -1


def test_factory_that_raises() -> None:
    """The traceback is the application's."""
    with pytest.raises(BootError, match="ZeroDivisionError") as caught:
        planned(lambda: 1 / 0, factory=True).build()
    assert "1 / 0" in caught.value.report


def test_factories_that_cannot_be_called() -> None:
    """A factory takes no arguments, and is no class."""
    assert "is called without arguments: missing" in refused(lambda x: x, factory=True)
    assert "this is class Shout" in refused(Shout, factory=True)
    assert "this is an instance of int" in refused(5, factory=True)


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
    """The reason says what it is and what could be served."""
    reason = refused(found)
    assert reason.startswith(f"{kind} cannot be served, only a handler class")
    assert "--factory" in reason
