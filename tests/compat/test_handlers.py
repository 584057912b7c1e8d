"""Request handlers of all kinds, as they are, behind the pool."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import socketserver
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from tests.support.app import LOOPBACK
from tests.support.clients import (
    TIMEOUT,
    ask,
    ask_datagram,
    connect,
    datagram_client,
    read_all,
    send_line,
    server_of,
)
from tests.support.processes import zombies_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefork.testing import ServedPool
    from tests.support.server import Program

HEAD = """
import os
import socketserver
import time
from tests.compat.inside import MIXIN, Pool, serve_here
from tests.support.app import LOOPBACK, Echo, EchoDatagram, tell

Pool.workers = 2
"""


class Large(socketserver.StreamRequestHandler):
    """Answers with ten megabytes."""

    content = bytes(range(250)) * 40_000

    def handle(self) -> None:
        """Answer one line."""
        self.rfile.readline()
        self.wfile.write(self.content)


@pytest.mark.processes
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_large_answers(
    prefork_pool: Callable[..., ServedPool], tmp_path: Path, transport: str
) -> None:
    """Ten megabytes written to wfile arrive whole, though the client reads late (P13, H05, H06)."""
    server: Any = (
        prefork.PreForkingTCPServer(LOOPBACK, Large)
        if transport == "tcp"
        else prefork.PreForkingUnixStreamServer(str(tmp_path / "socket"), Large)
    )
    server.workers = 3
    pool = prefork_pool(server)
    expected = hashlib.sha256(Large.content).hexdigest()

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(pool.address)) for _ in range(3)]
        for client in clients:
            send_line(client, "all of it")
        for client in reversed(clients):
            digest = hashlib.sha256()
            while part := client.recv(1 << 16):
                digest.update(part)
            assert digest.hexdigest() == expected


class Careful(socketserver.StreamRequestHandler):
    """Says which settings of a handler class its connection has got."""

    timeout = 0.05
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Wait for a line that does not come."""
        nodelay = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        try:
            self.rfile.readline()
        except TimeoutError:
            self.wfile.write(f"{nodelay} {self.connection.gettimeout()}".encode())


@pytest.mark.processes
def test_handler_settings(prefork_pool: Callable[..., ServedPool]) -> None:
    """A handler's own timeout, buffering and Nagle setting work as documented (H05-H08)."""
    pool = prefork_pool(prefork.PreForkingTCPServer(LOOPBACK, Careful))

    with connect(pool.address) as client:
        assert read_all(client) == "1 0.05"


def test_handlers_explicit_fork(start: Callable[..., Program]) -> None:
    """A handler may fork and let the child finish the request; the pool does not count that child (D19, P33)."""
    program = start(
        HEAD
        + """
class Forking(socketserver.StreamRequestHandler):
    def handle(self):
        child = os.fork()
        if not child:
            self.wfile.write(b"from the child of %d" % os.getppid())
            os._exit(0)
        os.waitpid(child, 0)

serve_here(Pool, Forking)
"""
    )

    answers = [ask(program.address()) for _ in range(4)]

    assert {int(answer.split()[-1]) for answer in answers} <= program.workers()
    assert len(program.workers()) == 2
    assert program.stop() == 0


def test_datagram_requests(start: Callable[..., Program]) -> None:
    """A datagram request is the pair (data, socket); the reply comes from the address that was asked (H04, D05)."""
    program = start(
        HEAD
        + """
class Upper(socketserver.BaseRequestHandler):
    def handle(self):
        data, reply_from = self.request
        assert type(data) is bytes and reply_from.getsockname() == self.server.server_address
        reply_from.sendto(data.upper(), self.client_address)

class Server(*MIXIN, socketserver.UDPServer):
    workers = 3

serve_here(Server, Upper)
"""
    )

    for number in range(20):
        assert ask_datagram(program.address(), f"number {number}") == f"NUMBER {number}"


def test_datagram_handler(start: Callable[..., Program]) -> None:
    """DatagramRequestHandler sends what was written to wfile, and only up to max_packet_size is received (H10, A08)."""
    program = start(
        HEAD
        + """
class Server(*MIXIN, socketserver.UDPServer):
    workers = 2
    max_packet_size = 10

serve_here(Server, EchoDatagram)
"""
    )

    assert ask_datagram(program.address(), "hello").endswith(" hello")
    assert ask_datagram(program.address(), "a longer one than fits").endswith(" a longer o")


def test_many_workers_race_for_datagrams(start: Callable[..., Program]) -> None:
    """Each of many datagrams is answered exactly once, and no worker that lost a race sticks in recvfrom() (D05, P26)."""
    program = start(
        HEAD
        + """
class Server(*MIXIN, socketserver.UDPServer):
    workers = 4

serve_here(Server, EchoDatagram)
"""
    )

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(datagram_client(program.address())) for _ in range(8)]
        for turn in range(25):
            for number, client in enumerate(clients):
                client.send(f"{turn}-{number}".encode())
            for number, client in enumerate(clients):
                assert client.recv(100).decode().split()[1] == f"{turn}-{number}"

    assert program.stop() == 0


def test_overridden_get_request_races_for_datagrams(start: Callable[..., Program]) -> None:
    """Also with a get_request() of its own a UDP worker that lost a race does not stick in recvfrom() (D05, P26)."""
    program = start(
        HEAD
        + """
class Server(*MIXIN, socketserver.UDPServer):
    workers = 4
    def get_request(self):
        time.sleep(0.005)  # so that several workers have seen the same datagram
        return super().get_request()

serve_here(Server, EchoDatagram)
"""
    )

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(datagram_client(program.address())) for _ in range(4)]
        for _ in range(5):
            for client in clients:
                client.send(b"hello")
            for client in clients:
                assert client.recv(100).endswith(b" hello")

    assert program.stop() == 0
    assert program.logged("killed") == []


def test_sequenced_packets(start: Callable[..., Program], tmp_path: Path) -> None:
    """socket_type makes a server of another kind of connection, whose workers race for it as well (D03, A02)."""
    program = start(
        HEAD
        + """
import socket
class Server(*MIXIN, socketserver.UnixStreamServer):
    socket_type = socket.SOCK_SEQPACKET
    workers = 4
    def get_request(self):
        time.sleep(0.005)  # so that several workers have seen the same connection
        return super().get_request()

class Packets(socketserver.BaseRequestHandler):
    def handle(self):
        while packet := self.request.recv(100):
            self.request.send(packet.upper())

serve_here(Server, Packets, "server")
os.unlink("server")
"""
    )
    address = str(tmp_path / program.address())

    for _ in range(5):
        with contextlib.ExitStack() as stack:
            clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
            for client in clients:
                stack.enter_context(client)
                client.settimeout(TIMEOUT)
                client.connect(address)
                client.send(b"one")
                client.send(b"two")
            for client in clients:
                assert [client.recv(100), client.recv(100)] == [b"ONE", b"TWO"]

    assert program.stop() == 0
    assert program.logged("killed") == []


def test_unix_datagrams(start: Callable[..., Program], tmp_path: Path) -> None:
    """A bound Unix client is answered; one without an address costs an error report and nothing else (P14, H11, D02)."""
    program = start(
        HEAD
        + """
import os
class Server(*MIXIN, socketserver.UnixDatagramServer):
    workers = 1

serve_here(Server, EchoDatagram, "server")
os.unlink("server")
"""
    )
    address = str(tmp_path / program.address())
    first = ask_datagram(address, "hello", own=str(tmp_path / "one"))

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
        nameless.sendto(b"nowhere to answer to", address)
    second = ask_datagram(address, "hello", own=str(tmp_path / "two"))

    assert first == second
    program.wait_logged("^Exception occurred during processing of request")
    assert program.stop() == 0
    for name in ("one", "two"):
        (tmp_path / name).unlink()


def test_unix_stream_server(start: Callable[..., Program], tmp_path: Path) -> None:
    """The standard Unix server behind the mix-in serves, and keeps its path in the file system as it does (D02, P24)."""
    program = start(
        HEAD
        + """
class Server(*MIXIN, socketserver.UnixStreamServer):
    workers = 2

serve_here(Server, Echo, "server")
tell("path", os.path.exists("server"))
os.unlink("server")
"""
    )
    address = str(tmp_path / program.address())

    assert ask(address).endswith("hello")

    assert program.stop() == 0
    assert program.told("path") is True


def test_abstract_unix_name(start: Callable[..., Program]) -> None:
    """An abstract name, which no file system knows, is a Unix address like any other (D02)."""
    program = start(
        HEAD
        + """
class Server(*MIXIN, socketserver.UnixStreamServer):
    workers = 2

serve_here(Server, Echo, f"\\0prefork-test-{os.getpid()}")
"""
    )

    assert program.address() == f"\0prefork-test-{program.pid}"
    assert ask(program.address()).endswith("hello")


def test_forking_mixin_behind(start: Callable[..., Program]) -> None:
    """With ForkingMixIn behind, a worker forks for each request, collects its children, and leaves none (D08, P01)."""
    program = start(
        HEAD
        + """
class Server(*MIXIN, socketserver.ForkingMixIn, socketserver.TCPServer):
    workers = 1

serve_here(Server, Echo)
"""
    )
    (worker,) = program.wait_workers(1)

    assert len({server_of(program.address()) for _ in range(60)} - {worker}) == 60

    wait_until(lambda: not zombies_of(worker), "the children are collected")
    assert program.stop() == 0


def test_ipv6_by_class_attribute(start: Callable[..., Program]) -> None:
    """address_family makes an IPv6 server, with the four-part addresses of its clients (D01, A01)."""
    program = start(
        HEAD
        + """
import socket
class Server(Pool):
    address_family = socket.AF_INET6

serve_here(Server, Echo, ("::1", 0))
"""
    )

    assert len(program.address()) == 4
    assert ask(program.address()).endswith("hello")
