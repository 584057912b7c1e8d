"""What ``inspect`` shows of a server class: what a caller has to give."""

from __future__ import annotations

import http.server
import inspect
import socketserver
import typing
from typing import Any

import pytest

import prefork


class Behind(prefork.PreForkingMixIn, http.server.HTTPServer):
    """The mix-in in front of a class of the standard library."""


class Own(prefork.PreForkingTCPServer):
    """A server class with a constructor of its own."""

    def __init__(self, port: int, *, strict: bool = True) -> None: ...


class Made(prefork.PreForkingTCPServer):
    """A server class with a ``__new__()`` of its own."""

    def __new__(cls, name: str) -> Any:
        """Make one."""
        return super().__new__(cls)


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (Behind, ["server_address", "RequestHandlerClass", "bind_and_activate"]),
        (
            prefork.PreForkingUDPServer,
            ["server_address", "RequestHandlerClass", "bind_and_activate"],
        ),
        (Own, ["port", "strict"]),
        (Made, ["name"]),
    ],
)
def test_signature_is_that_of_the_constructor(made: Any, names: list[str]) -> None:
    """The signature of a server class is that of its constructor, as without the mix-in."""
    assert list(inspect.signature(made).parameters) == names


def test_signature_of_a_plain_class_is_the_same() -> None:
    """The mix-in changes nothing of the signature of the class behind it."""
    assert str(inspect.signature(Behind)) == str(inspect.signature(socketserver.TCPServer))


def test_instance_has_no_signature() -> None:
    """A server object has no attribute ``__signature__``, like any other object."""
    with Behind(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler, False) as server:
        assert not hasattr(server, "__signature__")


CLASSES = [one for one in map(vars(prefork).get, prefork.__all__) if inspect.isclass(one)]


@pytest.mark.parametrize("public", CLASSES, ids=lambda one: one.__name__)
def test_annotations_of_our_classes_can_be_evaluated(public: type) -> None:
    """``typing.get_type_hints()``, which tools of injection and documentation call, knows every name of ours."""
    ours = [one for one in public.__mro__ if one.__module__.startswith("prefork")]
    for one in ours:
        typing.get_type_hints(one)
        for member in filter(inspect.isfunction, vars(one).values()):
            typing.get_type_hints(member)
