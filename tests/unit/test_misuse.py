"""Server classes that do not do what their author meant: they are refused when they are made."""

from __future__ import annotations

import http.server
import socketserver
from typing import Any

import pytest

import prefork
from prefork import MisuseError, SettingsError
from prefork.misuse import HOOKS
from prefork.rpc import RPCServer
from prefork.workers.settings import ROWS


def made(*bases: type, **attributes: object) -> Any:
    """Make a class ``Server`` with these bases and attributes."""
    return type("Server", bases or (prefork.PreForkingMixIn, socketserver.TCPServer), attributes)


@pytest.mark.parametrize(
    ("bases", "remedy"),
    [
        ((socketserver.TCPServer,), "write class Server(PreForkingMixIn, TCPServer)"),
        ((http.server.HTTPServer,), "write class Server(PreForkingMixIn, HTTPServer)"),
        ((socketserver.ForkingMixIn,), "write class Server(PreForkingMixIn, ForkingMixIn)"),
    ],
)
def test_mix_in_in_second_place_is_refused(bases: tuple[type, ...], remedy: str) -> None:
    """A mix-in whose methods would never be called is refused, with the line to write."""
    with pytest.raises(MisuseError) as refused:
        made(*bases, prefork.PreForkingMixIn)

    assert str(refused.value).endswith(remedy)
    assert isinstance(refused.value, TypeError)


@pytest.mark.parametrize("server", [prefork.PreForkingTCPServer, RPCServer])
def test_server_that_has_the_mix_in_is_no_second_base(server: type) -> None:
    """A ready-made server behind a class that forks is refused, with a remedy that Python accepts and that works."""
    with pytest.raises(MisuseError) as refused:
        made(socketserver.ForkingTCPServer, server)
    assert str(refused.value).endswith(f"write class Server({server.__name__}, ForkingTCPServer)")
    written = made(server, socketserver.ForkingTCPServer)
    assert written.process_request is socketserver.ForkingMixIn.process_request
    with pytest.raises(MisuseError) as refused:
        made(socketserver.ForkingMixIn, server)
    assert str(refused.value).endswith(
        f"leave ForkingMixIn out: the workers of {server.__name__} are processes already"
    )


def test_order_that_works_is_accepted() -> None:
    """Classes in front of the mix-in that hide none of its methods are accepted."""

    class Logged:
        """A mix-in of the program."""

        def serve_forever(self) -> None:
            """Serve."""
            super().serve_forever()  # type: ignore[misc]

    made(Logged, prefork.PreForkingMixIn, socketserver.TCPServer)
    made(socketserver.ThreadingMixIn, prefork.PreForkingMixIn, socketserver.TCPServer)
    made(http.server.HTTPServer, made())


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("worker", 4, "workers"),
        ("max_request", 10, "max_requests"),
        ("request_timout", 5, "request_timeout"),
        ("Workers", 4, "workers"),
        ("acces_log", "text", "access_log"),
        ("jiter", 0.2, "jitter"),
        ("metrics", "127.0.0.1:9100", "metrics_address"),
        ("backlog", 100, "request_queue_size"),
    ],
)
def test_misspelt_setting_is_refused(name: str, value: object, meant: str) -> None:
    """A misspelt attribute is refused with the name that was meant, in a class and on a server object."""
    words = rf"from attribute Server.{name}\) is refused: .*did you mean {meant}\?"
    with pytest.raises(SettingsError, match=words):
        made(**{name: value})
    with made()(("127.0.0.1", 0), socketserver.BaseRequestHandler, False) as server:
        vars(server)[name] = value
        with pytest.raises(SettingsError, match=words):
            server.serve_forever()


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.key)
def test_each_setting_may_be_an_attribute(row: Any) -> None:
    """The names of all settings are accepted, and so is a property for one of them."""
    if row.attribute is not None:
        made(**{row.attribute: row.default})
        made(**{row.attribute: property(lambda _self: row.default)})
        with pytest.raises(SettingsError, match="this is a method"):
            made(**{row.attribute: lambda _self: row.default})


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_hook_is_a_method(name: str) -> None:
    """A hook can be overridden by a method, and by nothing else. The mix-in has a method of that name."""
    assert callable(getattr(prefork.PreForkingMixIn, name))
    made(**{name: lambda *_: None})
    with pytest.raises(SettingsError, match="this name is a hook's"):
        made(**{name: 1})


HOOKS_THAT_FAIL: dict[str, tuple[str, Any]] = {
    "def worker_init(self, worker)": ("worker_init", lambda self: None),
    "def when_ready(self)": ("when_ready", lambda self, worker: None),
    "def pool_resized(self, old, new, why)": ("pool_resized", lambda self, *, old: None),
    "def worker_died(worker, cause)": ("worker_died", staticmethod(lambda worker: None)),
}


def test_hook_that_takes_other_arguments_is_refused() -> None:
    """A hook that its pool could not call is refused with the line to write, in the class or in one of its bases."""
    for remedy, (name, hook) in HOOKS_THAT_FAIL.items():
        for bases in ((), (type("Hooks", (), {name: hook}), made())):
            with pytest.raises(MisuseError) as refused:
                made(*bases, **({} if bases else {name: hook}))
            assert str(refused.value).endswith(f"write {remedy}")


def test_hook_that_can_be_called_is_accepted() -> None:
    """Hooks may have defaults, take any arguments, and be static, bound or made of C."""
    made(worker_init=lambda _self, _worker, _more=1: None, on_exit=staticmethod(print))
    made(worker_died=staticmethod(lambda *_: None), on_reload=classmethod(lambda _cls: None))
    with made()(("127.0.0.1", 0), socketserver.BaseRequestHandler, False) as server:
        server.worker_init = lambda: None
        with pytest.raises(MisuseError, match=r"write def worker_init\(worker\)"):
            server.serve_forever()


def test_misspelt_hook_is_refused() -> None:
    """A method is refused if it has nearly the name of a hook and takes the same arguments, otherwise it is the program's own."""
    with pytest.raises(
        MisuseError, match=r"no hook worker_dies\(\); did you mean worker_died\(\)\?"
    ):
        made(worker_dies=lambda _self, _worker, _cause: None)
    made(worker_dies=lambda _self: None, _worker_inits=lambda _self, _worker: None)


def test_attributes_of_a_program_are_its_own() -> None:
    """Attributes that are like no setting, private ones, methods and those of base classes are accepted."""
    attributes = {
        "timeout": 3,
        "name": "x",
        "user": "y",
        "max_packet_size": 1,
        "server_version": "1",
        "database": object(),
        "_worker": 1,
        "max_request": lambda _self: 1,
        "queue": None,
    }
    with made(**attributes)(("127.0.0.1", 0), socketserver.BaseRequestHandler, False) as server:
        assert server.timeout == 3
