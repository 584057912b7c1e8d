"""The names of socketserver: all there, the same objects, and nothing of a server class hidden."""

from __future__ import annotations

import http.server
import os
import socketserver
import wsgiref.simple_server
import xmlrpc.server

import pytest

import prefork
from tests.support.processes import children_of

OWN_SERVERS = [
    "PreForkingMixIn",
    "PreForkingTCPServer",
    "PreForkingUDPServer",
    "PreForkingUnixStreamServer",
    "PreForkingUnixDatagramServer",
]

NEVER_DEFINED = [
    "__init__",
    "get_request",
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
    "handle_error",
    "server_bind",
    "server_activate",
    "fileno",
    "request_queue_size",
    "allow_reuse_address",
    "allow_reuse_port",
    "address_family",
    "socket_type",
    "max_packet_size",
    "timeout",
    "daemon_threads",
]

REPLACED = {
    "handle_request",
    "serve_forever",
    "shutdown",
    "service_actions",
    "server_close",
    "block_on_close",
}
"""What the mix-in is there to replace (block_on_close keeps its meaning and its default).

handle_request() has the edge made ready that the attributes ask for, and then is the class's own.
"""

SERVER_CLASSES = [
    socketserver.TCPServer,
    socketserver.UDPServer,
    socketserver.UnixStreamServer,
    socketserver.UnixDatagramServer,
    socketserver.ThreadingTCPServer,
    http.server.HTTPServer,
    http.server.ThreadingHTTPServer,
    wsgiref.simple_server.WSGIServer,
    xmlrpc.server.SimpleXMLRPCServer,
]


def public_names() -> list[str]:
    """Return what the running Python's socketserver offers, documented in ``__all__`` or just there."""
    defined = {
        name
        for name, value in vars(socketserver).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == "socketserver"
    }
    return sorted(defined | set(socketserver.__all__))


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_the_same_object(name: str) -> None:
    """Each public name of socketserver can be taken from prefork and is identical (D11, D27, K07)."""
    assert getattr(prefork, name) is getattr(socketserver, name)


def test_all_holds_the_names_of_socketserver_and_our_own() -> None:
    """``from prefork import *`` gives at least what it gives for socketserver, and our five (D27)."""
    assert {*socketserver.__all__, *OWN_SERVERS} <= set(prefork.__all__)
    assert [name for name in prefork.__all__ if not hasattr(prefork, name)] == []


@pytest.mark.parametrize("name", NEVER_DEFINED)
def test_the_mixin_does_not_define(name: str) -> None:
    """The mix-in comes first in the MRO and must hide no method or setting (D12, D13, M01, M17, A01-A08)."""
    definers = [c for c in prefork.PreForkingMixIn.__mro__ if c is not object and name in vars(c)]
    assert definers == []


@pytest.mark.parametrize("base", SERVER_CLASSES, ids=lambda base: base.__name__)
def test_a_mixed_class_keeps_everything_public_of_its_base(base: type) -> None:
    """In front of a server class, only what the mix-in is for becomes different (D13, D30)."""
    mixed = type("Mixed", (prefork.PreForkingMixIn, base), {})

    changed = {
        name
        for name in dir(base)
        if not name.startswith("_") and getattr(mixed, name) != getattr(base, name)
    }

    assert changed <= REPLACED


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (prefork.PreForkingTCPServer, socketserver.TCPServer),
        (prefork.PreForkingUDPServer, socketserver.UDPServer),
        (prefork.PreForkingUnixStreamServer, socketserver.UnixStreamServer),
        (prefork.PreForkingUnixDatagramServer, socketserver.UnixDatagramServer),
    ],
)
def test_ready_made_classes_derive_as_their_names_say(ours: type, theirs: type) -> None:
    """A ready-made server is the standard one behind the mix-in, with its constants (D11, D12, A01, A02, A08)."""
    order = ours.__mro__
    assert order.index(prefork.PreForkingMixIn) < order.index(theirs)
    for name in ("socket_type", "max_packet_size", "allow_reuse_port", "timeout"):
        assert getattr(ours, name, None) == getattr(theirs, name, None)


def test_block_on_close_is_true_as_in_the_other_mixins() -> None:
    """``block_on_close`` exists and is true by default (A13)."""
    assert prefork.PreForkingMixIn.block_on_close is True


def test_a_constructor_forks_nothing() -> None:
    """Workers exist in serve_forever() only, so a server can be made, looked at and closed (D31, A10, K01)."""
    with prefork.PreForkingTCPServer(("127.0.0.1", 0), prefork.BaseRequestHandler) as server:
        assert children_of(os.getpid()) == []
        assert not server.active_children
        assert server.worker is None
        assert server.stopping is False
        assert server.collect_children() is None
        assert server.collect_children(blocking=True) is None
        server.service_actions()
    server.server_close()  # a second time, as Werkzeug does
