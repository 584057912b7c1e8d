"""What a worker may do to a socket that all share: the master opens it again, or says that it is closed."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import socketserver
import struct
from typing import TYPE_CHECKING, Any

import pytest

from prefork.master import intakes
from prefork.master.intakes import LOG_INTERVAL, Intakes
from prefork.workers.listener import SO_BINDTOIFINDEX, Listener
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Make = Callable[..., Listener]

NO_INTERFACE = 0x7FFFFFFF

SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_LOCK_FILTER = 26, 27, 44
"""Options of sockets, as Linux numbers them on most machines."""


@pytest.fixture(name="make")
def _make() -> Iterator[Make]:
    """Give what makes a listener of a server class, and close all afterwards."""
    with contextlib.ExitStack() as stack:

        def make(server_class: Any, address: Any = ("127.0.0.1", 0), **members: Any) -> Listener:
            chosen = type("Server", (server_class,), {"allow_reuse_address": True, **members})
            server = stack.enter_context(chosen(address, socketserver.BaseRequestHandler))
            return Listener(server)

        yield make


@pytest.fixture(name="log", autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Note all that is logged."""
    caplog.set_level(logging.DEBUG, "prefork")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the event and the reason of each line, and forget them."""
    found = [(one.facts["event"], one.facts.get("why", "")) for one in log.records]  # type: ignore[attr-defined]
    log.clear()
    return found


def takes_a_client(listener: Listener) -> bool:
    """Whether a client reaches the queue of a TCP listener."""
    with listener.as_socket() as sock:
        try:
            with socket.create_connection(sock.getsockname(), timeout=0.5):
                return listener.has_work()
        except OSError:
            return False


def test_backlog_that_a_program_sets_for_all_servers_is_kept(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may set the attribute of TCPServer itself, and then has said how many clients may wait."""
    monkeypatch.setattr(socketserver.TCPServer, "request_queue_size", 37)
    with make(socketserver.TCPServer, ("127.0.0.1", 0)).as_socket() as sock:
        assert intakes.backlog_of(sock) == 37


@pytest.mark.parametrize("chosen", [True, False], ids=["port of the kernel", "own port"])
def test_tcp_listener_that_was_shut_down_listens_again(
    make: Make, log: pytest.LogCaptureFixture, *, chosen: bool
) -> None:
    """A TCP listener that was shut down listens again at the same address, with the same backlog."""
    address = ("127.0.0.1", 0 if chosen else free_port())
    listener = make(socketserver.TCPServer, address, request_queue_size=37)
    watch = Intakes([listener])
    assert watch.check(0.0) == 0
    before = listener.server.socket.getsockname()
    listener.server.socket.shutdown(socket.SHUT_RD)
    assert not takes_a_client(listener)
    assert watch.check(1.0) == 0
    assert takes_a_client(listener)
    with listener.as_socket() as sock:
        assert sock.getsockname() == before
        assert intakes.backlog_of(sock) == 37
    assert lines(log) == [("listener was closed by a worker and is open again", "it was shut down")]


def test_listener_that_is_closed_again_and_again_is_logged_seldom(
    make: Make, log: pytest.LogCaptureFixture
) -> None:
    """A worker that closes a listener at every tick costs one line in LOG_INTERVAL."""
    listener = make(socketserver.TCPServer)
    watch = Intakes([listener])
    for number in range(20):
        listener.server.socket.shutdown(socket.SHUT_RD)
        assert watch.check(number * LOG_INTERVAL / 10) == 0
    assert len(lines(log)) == 2


def test_datagram_socket_that_was_connected_has_no_peer_again(
    make: Make, log: pytest.LogCaptureFixture
) -> None:
    """A datagram socket that a handler has connected to one peer receives from all again."""
    listener = make(socketserver.UDPServer)
    watch = Intakes([listener])
    server = listener.server.socket
    address = server.getsockname()
    server.connect(("127.0.0.1", 9))
    assert watch.check(0.0) == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", address)
        server.settimeout(5.0)
        assert server.recv(9) == b"hello"
    assert lines(log)[0][1] == "it was connected to one peer"


def test_unix_listener_that_was_shut_down_is_closed(
    make: Make, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The kernel has no way back for a Unix socket: it is reported as closed, once."""
    stream = make(socketserver.UnixStreamServer, str(tmp_path / "stream"))
    datagram = make(socketserver.UnixDatagramServer, str(tmp_path / "datagram"))
    watch = Intakes([stream, datagram])
    assert watch.check(0.0) == 0
    for number, listener in enumerate((stream, datagram), start=1):
        listener.server.socket.shutdown(socket.SHUT_RD)
        assert [watch.check(1.0), watch.check(2.0)] == [number, number]
        assert lines(log) == [
            ("listener takes no clients, the pool is not ready", "it was shut down")
        ]
        listener.remove_path()


def attach_filter(sock: socket.socket) -> None:
    """Attach a filter that drops all packets: one instruction, which returns the length 0."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    given = struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, given)


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.UDPServer])
def test_socket_filter_is_detached(make: Make, log: pytest.LogCaptureFixture, kind: Any) -> None:
    """A filter that a worker attaches is detached; one that the program had before stays."""
    with_filter, without = make(kind), make(kind)
    attach_filter(with_filter.server.socket)
    watch = Intakes([with_filter, without])
    assert watch.check(0.0) == 0
    assert lines(log) == []
    attach_filter(without.server.socket)
    assert watch.check(1.0) == 0
    assert lines(log) == [
        ("listener was closed by a worker and is open again", "it has a socket filter")
    ]
    with pytest.raises(FileNotFoundError):  # there is none any more
        without.server.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    with_filter.server.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def test_socket_filter_that_is_locked_keeps_the_pool_from_being_ready(
    make: Make, log: pytest.LogCaptureFixture
) -> None:
    """A filter that a worker has locked cannot be detached by anybody: the pool is not ready, and says why."""
    listener = make(socketserver.TCPServer)
    watch = Intakes([listener])
    attach_filter(listener.server.socket)
    listener.server.socket.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
    assert watch.check(0.0) == 1
    ((_, why),) = lines(log)
    assert why == "it has a socket filter, and cannot be opened: Operation not permitted"


def test_backlog_that_was_lowered_is_raised_again(
    make: Make, log: pytest.LogCaptureFixture
) -> None:
    """A worker that listens with a backlog of 0 takes no place from the clients; a larger backlog stays."""
    listener = make(socketserver.TCPServer, request_queue_size=37)
    watch = Intakes([listener])
    sock = listener.server.socket
    for given, kept in ((0, 37), (50, 50)):
        sock.listen(given)
        assert watch.check(float(given)) == 0
        assert intakes.backlog_of(sock) == kept
    assert lines(log) == [
        ("listener was closed by a worker and is open again", "its backlog was lowered")
    ]


def test_inherited_listener_is_left_alone(make: Make, log: pytest.LogCaptureFixture) -> None:
    """A socket that another process holds, too, is not touched; the pool is not ready until it is open again."""
    listener = make(socketserver.TCPServer, listener_inherited=True)
    watch = Intakes([listener])
    address = listener.server.socket.getsockname()
    listener.server.socket.shutdown(socket.SHUT_RD)
    assert watch.check(0.0) == 1
    assert not takes_a_client(listener)
    listener.server.socket.bind(address)
    listener.server.socket.listen()
    assert watch.check(1.0) == 0
    assert [event for event, _ in lines(log)] == [
        "listener takes no clients, the pool is not ready",
        "listener takes clients again",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="unbinding from an interface takes CAP_NET_RAW")
@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.UDPServer])
def test_listener_that_was_bound_to_no_interface_is_unbound(make: Make, kind: Any) -> None:
    """A socket that was bound to an interface is bound back, also where that was before the first look."""
    listener = make(kind)
    listener.server.socket.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)
    watch = Intakes([listener])
    for now in (0.0, 1.0):
        assert watch.check(now) == 0
        assert listener.server.socket.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX) == 0
        listener.server.socket.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, 1)


def test_listener_that_cannot_be_unbound_is_closed(
    make: Make, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the privilege the pool is not ready, and the line says what the kernel said."""
    listener = make(socketserver.TCPServer)
    watch = Intakes([listener])
    listener.server.socket.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(intakes, "_open", refuse)
    assert watch.check(0.0) == 1
    ((_, why),) = lines(log)
    assert (
        why
        == "it was bound to another network interface, and cannot be opened: Operation not permitted"
    )


def test_closed_descriptor_is_nobodys_fault(make: Make, log: pytest.LogCaptureFixture) -> None:
    """A server that the program has closed is not reported, nor is the socket that has its number now."""
    listener = make(socketserver.TCPServer)
    watch = Intakes([listener])
    number = listener.fd
    listener.server.socket.close()
    assert watch.check(0.0) == 0
    with socket.socket() as other:  # the lowest free number
        assert other.fileno() == number
        assert watch.check(1.0) == 0
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
    assert lines(log) == []
