"""Listeners of every family: bound once, shared by all, and gone when they should be."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, connect, server_of
from tests.support.load import Load
from tests.support.server import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program


def unix_server(path: object, **members: object) -> str:
    """Return a program that serves ``Echo`` on a Unix stream socket."""
    given = "".join(f", {name}={value!r}" for name, value in members.items())
    return f"""
from tests.support.app import *
import prefork

try:
    serve(Echo, base=prefork.PreForkingUnixStreamServer, address={path!r}{given})
except OSError as error:
    tell("refused", [error.errno, str(error)])
"""


def test_port_zero_is_reported(start: Callable[..., Program]) -> None:
    """Bound to port 0, the server knows its real port, and says it in the log."""
    program = start(serving(workers=1))
    host, port = program.address()[:2]
    assert port > 0
    program.wait_logged(rf"tcp://{host}:{port}\b")


def test_ipv6(start: Callable[..., Program]) -> None:
    """An IPv6 address makes an IPv6 listener."""
    program = start(serving(workers=2, address=("::1", 0)))
    assert program.address()[0] == "::1"
    assert server_of(program.address()) in program.wait_workers(2)
    program.wait_logged(r"tcp://\[::1\]:\d+")


def test_unix_socket_is_for_owner_and_group(start: Callable[..., Program], tmp_path: Path) -> None:
    """A Unix socket has mode 0660 and is gone after a stop."""
    path = tmp_path / "socket"
    program = start(unix_server(str(path), workers=2))
    assert server_of(program.address()) in program.wait_workers(2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert program.stop() == 0
    assert not path.exists()


def test_abstract_name(start: Callable[..., Program]) -> None:
    """An abstract name needs no file."""
    program = start(unix_server(f"\0prefork-test-{os.getpid()}", workers=2))
    assert server_of(program.address()) in program.wait_workers(2)
    assert program.stop() == 0


def test_stale_unix_socket_is_replaced(start: Callable[..., Program], tmp_path: Path) -> None:
    """A socket file on which nobody listens any more is replaced."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    program = start(unix_server(str(path), workers=1))
    assert server_of(program.address()) in program.wait_workers(1)
    assert program.stop() == 0
    assert not path.exists()


@pytest.mark.leaves_socket
def test_live_unix_socket_is_left_alone(start: Callable[..., Program], tmp_path: Path) -> None:
    """A socket file on which somebody listens makes the start fail, and stays."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        inode = path.stat().st_ino
        program = start(unix_server(str(path), workers=1))
        assert program.told("refused")[0] == 98
        assert path.stat().st_ino == inode
        assert connect(str(path)).close() is None


def test_file_that_is_no_socket_is_left_alone(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A file that is no socket makes the start fail, and keeps its contents."""
    path = tmp_path / "socket"
    path.write_text("precious")
    program = start(unix_server(str(path), workers=1))
    assert program.told("refused")
    assert path.read_text() == "precious"


def test_successors_socket_is_not_removed(start: Callable[..., Program], tmp_path: Path) -> None:
    """At its end a server removes its own socket file only, not one that has taken its place."""
    path = tmp_path / "socket"
    program = start(unix_server(str(path), workers=1))
    program.address()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        assert program.stop() == 0
        assert path.exists()
        path.unlink()


def test_worker_that_ends_leaves_the_socket_file(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A worker that leaves or is killed does not take the socket file with it."""
    path = tmp_path / "socket"
    program = start(unix_server(str(path), workers=2))
    program.address()
    for number in (signal.SIGTERM, signal.SIGKILL):
        worker = program.worker()
        os.kill(worker, number)
        wait_until(lambda gone=worker: gone not in program.workers(), "the end of the worker")
        program.wait_workers(2)
        assert server_of(str(path)) in program.workers()
    program.signal(signal.SIGTTOU)
    program.wait_workers(1)
    ask(str(path))


@pytest.mark.parametrize("kind", ["unix", "inet6"])
def test_load_on_other_listeners(start: Callable[..., Program], tmp_path: Path, kind: str) -> None:
    """Unix and IPv6 listeners carry load without a loss, through a graceful stop."""
    source = (
        unix_server(str(tmp_path / "socket"), workers=2)
        if kind == "unix"
        else serving(workers=2, address=("::1", 0))
    )
    program = start(source)
    with Load(program.address(), clients=8, until_refused=True) as load:
        wait_until(lambda: load.answered > 200, "requests go on")
        program.terminate()
        load.join()
    assert load.lost == {}
    assert program.wait() == 0


def test_burst_of_clients_waits_in_the_backlog(start: Callable[..., Program]) -> None:
    """Three hundred clients that come at once are all served: the backlog is deep enough."""
    program = start(serving(workers=2))
    address = program.address()
    clients = [connect(address) for _ in range(300)]
    for client in clients:
        client.sendall(b"hello\n")
    answers = [client.recv(100) for client in clients]
    for client in clients:
        client.close()
    assert all(answer.endswith(b" hello\n") for answer in answers)


@pytest.mark.parametrize(
    ("attributes", "serving", "after"),
    [
        ("pass", 1024, 5),
        ("request_queue_size = 5", 5, 5),
        ("request_queue_size = 17", 17, 17),
    ],
)
def test_standard_class_gets_a_waiting_room(
    start: Callable[..., Program], attributes: str, serving: int, after: int
) -> None:
    """A class with the standard library's backlog has 1024 places while it serves; an own value is kept."""
    program = start(f"""
        from tests.support.app import *
        import prefork, socketserver, struct

        def places():
            info = server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return struct.unpack_from("=I", info, 28)[0]

        class Server(prefork.PreForkingMixIn, socketserver.TCPServer):
            {attributes}
            workers = 1

            def when_ready(self):
                tell("serving", places())
                threading.Thread(target=self.shutdown).start()

        log_to_stderr()
        with Server(LOOPBACK, Echo) as server:
            server.serve_forever()
            tell("after", places())
    """)
    assert program.told("serving") == serving
    assert program.told("after") == after
    assert program.wait() == 0


def test_answers_wait_for_no_acknowledgement(start: Callable[..., Program]) -> None:
    """Connections of a standard class behind the mix-in have TCP_NODELAY, and the listener loses it afterwards."""
    program = start("""
        from tests.support.app import *
        import prefork, socketserver

        class Told(Echo):
            def handle(self):
                tell("nodelay", self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        class Server(prefork.PreForkingMixIn, socketserver.TCPServer):
            workers = 1

            def when_ready(self):
                tell("address", self.server_address)

        log_to_stderr()
        with Server(LOOPBACK, Told) as server:
            server.serve_forever()
            tell("after", server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    """)
    with connect(program.address()):
        assert program.told("nodelay") == 1
    program.terminate()
    assert program.told("after") == 0
    assert program.wait() == 0


def test_burst_behind_the_mix_in_is_served_at_once(start: Callable[..., Program]) -> None:
    """A burst of clients at a standard class behind the mix-in waits for workers: the kernel drops no handshake."""
    program = start("""
        from tests.support.app import *
        import prefork, socketserver

        class Slow(Echo):
            def handle(self):
                time.sleep(0.005)
                super().handle()

        class Server(prefork.PreForkingMixIn, socketserver.TCPServer):
            workers = 2

        serve(Slow, Server)
    """)
    address = program.address()
    ask(address)
    clients = [connect(address) for _ in range(100)]
    for client in clients:
        client.sendall(b"hello\n")
    answers = [client.recv(100) for client in clients]
    sent_again = sum(map(retransmissions, clients))
    for client in clients:
        client.close()
    assert all(answer.endswith(b" hello\n") for answer in answers)
    assert sent_again == 0


def retransmissions(client: socket.socket) -> int:
    """Return how many segments of a connection the kernel has sent again: what was dropped costs a second or more."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (total,) = struct.unpack_from("=I", info, 100)  # tcpi_total_retrans
    return int(total)


def test_server_whose_requests_are_no_sockets(start: Callable[..., Program]) -> None:
    """Any BaseServer with fileno() and get_request() can be served: requests from an eventfd, each one once."""
    program = start("""
        from tests.support.app import *
        import prefork, socketserver

        class Counting(prefork.PreForkingMixIn, socketserver.BaseServer):
            workers = 3

            def __init__(self):
                super().__init__("eventfd", Handler)
                self.eventfd = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)

            def fileno(self):
                return self.eventfd

            def get_request(self):
                return os.eventfd_read(self.eventfd), "nobody"

            def when_ready(self):
                os.eventfd_write(self.eventfd, 30)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                tell("served", [os.getpid(), self.request])

        log_to_stderr()
        Counting().serve_forever()
        tell("left")
    """)
    served = [program.told("served", nth) for nth in range(30)]
    assert {pid for pid, _ in served} <= program.workers()
    assert [value for _, value in served] == [1] * 30
    assert program.stop() == 0
    assert len(program.all_told("served")) == 30
    assert program.told("left") is None


def test_listener_with_a_timeout_of_its_own(start: Callable[..., Program]) -> None:
    """A program that has set a timeout on the listening socket is served all the same, and stops in time."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 2
            when_ready = announce

        with Server(LOOPBACK, Run) as server:
            server.socket.settimeout(30)
            server.serve_forever()
            tell("timeout", server.socket.gettimeout())
    """)
    address = program.address()
    for _ in range(4):
        assert ask(address, "self.request.gettimeout()").endswith(" None")
    assert program.stop(ceiling=10) == 0
    assert program.told("timeout") == 30
