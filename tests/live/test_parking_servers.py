"""Parking with the servers of the standard library in all their forms."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import prefork
from prefork.workers.scoreboard import PoolField
from tests.live.test_parking import ask_on, clients_of, program_with
from tests.support import board
from tests.support.clients import connect
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def test_servers_of_one_pool(start: Callable[..., Program]) -> None:
    """Two servers of one pool park their connections, each for its own handler, beside one that does not park."""
    program = start("""
        from tests.support.app import *
        import prefork

        def parking(answer):
            class Handler(prefork.ParkingMixIn, prefork.StreamRequestHandler):
                def handle(self):
                    line = self.rfile.readline()
                    self.state = self.state + line[:1]
                    self.wfile.write(b"%d %d %s\\n" % (os.getpid(), len(self.state), answer))
            return Handler

        class Server(prefork.PreForkingTCPServer):
            workers = 2
            park_new = True

            def when_ready(self):
                tell("all", [one.server_address for one in servers])

        servers = [Server(LOOPBACK, parking(b"first")), Server(LOOPBACK, parking(b"second"))]
        servers.append(prefork.PreForkingTCPServer(LOOPBACK, Echo))
        log_to_stderr()
        prefork.serve(*servers)
    """)
    first, second, plain = (tuple(one) for one in program.told("all"))
    with clients_of(first, 6) as some, clients_of(second, 6) as others:
        for number in (1, 2, 3):
            assert [ask_on(one)[1:] for one in some] == [(number, "first")] * 6
            assert [ask_on(one)[1:] for one in others] == [(number, "second")] * 6
            with connect(plain) as client:
                client.sendall(b"x\n")
                assert client.recv(100).endswith(b"x\n")
        with board.board_of(program.pid) as scores:
            wait_until(lambda: scores.pool(PoolField.PARKED) == 12, "all are parked")
    assert program.stop() == 0


def test_children_of_a_worker_park(start: Callable[..., Program]) -> None:
    """With ForkingMixIn behind, each request has a process of its own, which gives its connection to the lot."""
    program = start(
        "    from socketserver import ForkingMixIn, TCPServer\n"
        "    import prefork\n"
        "    class Forks(prefork.PreForkingMixIn, ForkingMixIn, TCPServer):\n"
        "        pass\n" + program_with(base="Forks").lstrip("\n")
    )
    with clients_of(program.address(), 6) as clients:
        for number in (1, 2, 3):
            assert [ask_on(client)[1] for client in clients] == [number] * 6
    assert program.stop() == 0


class Numbers(prefork.ParkingMixIn, prefork.StreamRequestHandler):
    """Answers each line with the number of the request on its connection."""

    def handle(self) -> None:
        """Serve one request."""
        if not self.rfile.readline():
            self.close_connection = True
            return
        self.state = b"%d" % (int(self.state or b"0") + 1)
        self.wfile.write(self.state + b"\n")


def numbers_on(address: Any) -> list[bytes]:
    """Ask three times on one connection, the last two times at once."""
    with connect(address) as client, client.makefile("rb") as answers:
        client.sendall(b"a\n")
        first = answers.readline()
        client.sendall(b"b\nc\n")
        said = [first, answers.readline(), answers.readline()]
        client.shutdown(socket.SHUT_WR)
        assert answers.read() == b""
        return said


def test_without_a_pool_the_connection_stays_with_its_handler() -> None:
    """handle_request(), and a server of the standard library, serve all requests of a connection one after the other."""
    for server_class in (prefork.PreForkingTCPServer, prefork.TCPServer):
        with server_class(("127.0.0.1", 0), Numbers) as server:
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            assert numbers_on(server.server_address) == [b"1\n", b"2\n", b"3\n"]
            thread.join()


def test_without_workers_the_master_serves(start: Callable[..., Program]) -> None:
    """With ``workers = 0`` the master serves all requests of a connection one after the other, and has no lot."""
    program = start("""
        from tests.support.app import *
        from tests.live.test_parking_servers import Numbers
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 0

        log_to_stderr()
        with Server(LOOPBACK, Numbers) as server:
            tell("address", server.server_address)
            server.serve_forever()
    """)
    address = tuple(program.told("address"))
    for _ in range(2):
        assert numbers_on(address) == [b"1\n", b"2\n", b"3\n"]
