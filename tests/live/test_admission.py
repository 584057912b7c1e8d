"""What is refused before it takes a worker's time: requests that have waited too long, and clients that hold too many workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import SlotField
from prefork.workers.states import Rejection
from tests.support.board import board_of
from tests.support.clients import (
    TIMEOUT,
    ask,
    ask_datagram,
    connect,
    datagram_client,
    read_to_the_end,
    send_line,
)
from tests.support.server import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def rejected(pid: int, reason: Rejection) -> int:
    """Return how many requests of a pool were rejected for a reason."""
    with board_of(pid) as board:
        return sum(one.rejections[reason] for one in board.snapshot().slots)


def test_request_that_has_waited_too_long_is_shed(start: Callable[..., Program]) -> None:
    """With max_queue_wait a client that has waited longer gets shed_request(), one that has not is served."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            def shed_request(self, request, client_address):
                request.sendall(b"busy\\n")

            def verify_request(self, request, client_address):
                tell("verified")
                return True

        serve(TellingRun, Server, workers=1, max_queue_wait=1.0)
        """
    )
    address = program.address()
    with connect(address) as first, connect(address) as old:
        send_line(first, "[tell('waiting'), self.rfile.readline(), time.sleep(0.2)]")
        program.told("waiting")
        wait_until(lambda: _age(program.pid) > 1.05, "a request that is old enough")
        with connect(address) as young:
            send_line(young, "1 + 1")
            send_line(first, "go on")
            assert read_to_the_end(old) == "busy"
            assert read_to_the_end(young).endswith(" 2")
    wait_until(lambda: rejected(program.pid, Rejection.QUEUE_WAIT) == 1, "one shed")
    assert len(program.all_told("verified")) == 2
    program.wait_logged(r"request shed reason=queue_wait client=127\.0\.0\.1:\d+ waited=\d+\.\d+")


def _age(pid: int) -> float:
    """Return the age of the request in hand of the first slot."""
    with board_of(pid) as board:
        since = board.word(0, SlotField.REQUEST_NS)
    return (time.monotonic_ns() - since) / 1e9 if since else 0.0


def test_datagram_that_has_waited_too_long_is_dropped(start: Callable[..., Program]) -> None:
    """A datagram older than max_queue_wait gets no answer, and costs no handler's time."""
    program = start(
        serving(
            "EchoDatagram", base="PreForkingUDPServer", workers=1, max_queue_wait=0.5, pause=0.8
        )
    )
    address = program.address()
    with datagram_client(address) as client:
        for number in range(3):
            client.send(b"%d" % number)
        assert client.recv(64).endswith(b" 0")
        wait_until(
            lambda: rejected(program.pid, Rejection.QUEUE_WAIT) == 2, "two that were dropped"
        )
        assert ask_datagram(address, "late").endswith(" late")


@pytest.mark.parametrize("kind", ["OneByOne", "Accounted"])
def test_client_holds_a_few_workers_only(start: Callable[..., Program], kind: str) -> None:
    """With max_per_client the next connection of an address is refused, others are served, and a killed worker counts no more."""
    access_log = "text" if kind == "Accounted" else "off"
    program = start(
        serving("TellingRun", workers=4, max_per_client=2, access_log=access_log, min_spare=None)
    )
    host, port = program.address()  # type: ignore[misc]
    held = [connect((host, port)) for _ in range(2)]
    try:
        for number, client in enumerate(held):
            send_line(client, "[tell('holds', os.getpid()), self.rfile.readline()]")
            program.told("holds", number)
        assert ask((host, port), "1 + 1") == ""
        # The client may see its end before the worker has counted it.
        wait_until(lambda: rejected(program.pid, Rejection.PER_CLIENT) == 1, "one refused")
        with socket.create_connection((host, port), source_address=("127.0.0.2", 0)) as other:
            send_line(other, "1 + 1")
            assert read_to_the_end(other).endswith(" 2")
        os.kill(program.told("holds"), signal.SIGKILL)
        program.wait_logged("exited cause=killed")
        assert ask((host, port), "1 + 1").endswith(" 2")
        send_line(held[1], "go on")
        read_to_the_end(held[1])
        # Workers count their last requests until they have closed them, which the client sees earlier.
        wait_until(lambda: ask((host, port), "1 + 1").endswith(" 2"), "it is served again")
    finally:
        for client in held:
            client.close()
    program.wait_logged(r"client refused reason=per_client client=127\.0\.0\.1:\d+ workers=2")


def test_limit_holds_when_many_come_at_once(start: Callable[..., Program]) -> None:
    """However many connections of a client come at the same moment, it never holds more workers than the limit."""
    program = start(
        """
        from tests.support.app import *
        import prefork, socketserver

        class Counting(socketserver.StreamRequestHandler):
            def handle(self):
                tell("served", 1)
                time.sleep(0.005)
                tell("served", -1)

        serve(Counting, prefork.PreForkingTCPServer, workers=6, max_per_client=2)
        """
    )
    address = program.address()
    for _ in range(20):
        clients = [connect(address) for _ in range(12)]
        for client in clients:
            read_to_the_end(client)
            client.close()
    held = most = 0
    for change in program.all_told("served"):
        held += change
        most = max(most, held)
    assert 1 <= most <= 2
    assert rejected(program.pid, Rejection.PER_CLIENT) > 0


def test_limit_for_threads_is_refused(start: Callable[..., Program]) -> None:
    """A server whose workers serve several clients at a time cannot have max_per_client, and says so before it forks."""
    program = start(
        """
        from tests.support.app import *
        import prefork, socketserver

        class Threads(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):
            max_per_client = 2

        with Threads(LOOPBACK, Echo) as server:
            try:
                server.serve_forever()
            except prefork.SettingsError as error:
                tell("refused", str(error))
        """
    )
    assert "serves several clients at a time" in program.told("refused")
    assert program.wait() == 0


BEHIND_A_PROXY = """
    from tests.support.app import *
    import prefork

    class Server(prefork.PreForkingTCPServer):
        workers = 4
        proxy_from = "127.0.0.1"
        max_per_client = 1
        soft_timeout = 2

        def request_cancelled(self, request, client_address, reason):
            request.sendall(f"{client_address[0]} {reason}".encode())

    serve(TellingRun, Server)
"""


def spoken_for(address: tuple[str, int], client: str) -> socket.socket:
    """Connect as a proxy that speaks for a client."""
    sock = connect(address)
    send_line(sock, f"PROXY TCP4 {client} 127.0.0.1 4711 80\r")
    return sock


def test_client_behind_a_proxy_is_the_one_that_counts(start: Callable[..., Program]) -> None:
    """Behind a proxy max_per_client counts the client of the PROXY header, and request_cancelled() gets its address."""
    program = start(BEHIND_A_PROXY)
    address = program.address()
    with spoken_for(address, "192.0.2.1") as first:  # type: ignore[arg-type]
        send_line(first, "[tell('holds'), time.sleep(1000)]")
        program.told("holds")
        for client, answer in (("192.0.2.1", ""), ("192.0.2.2", "2")):
            with spoken_for(address, client) as other:  # type: ignore[arg-type]
                send_line(other, "1 + 1")
                with contextlib.suppress(ConnectionError):
                    assert read_to_the_end(other)[-1:] == answer
        assert read_to_the_end(first) == "192.0.2.1 soft_timeout"
    wait_until(lambda: rejected(program.pid, Rejection.PER_CLIENT) == 1, "one refused")
    program.wait_logged(r"refused a client reason=per_client client=192\.0\.2\.1:4711")

    def is_served() -> bool:
        with spoken_for(address, "192.0.2.1") as again, contextlib.suppress(ConnectionError):  # type: ignore[arg-type]
            send_line(again, "1 + 1")
            return read_to_the_end(again).endswith(" 2")
        return False

    # The worker counts its last request until it has closed it, which the client sees earlier.
    wait_until(is_served, "the client is served again")
    with board_of(program.pid) as board:
        assert sum(one.cancelled for one in board.snapshot().slots) == 1


STALLING = """
    from tests.support.app import *
    import prefork

    class Server(prefork.AuthenticationMixIn, prefork.PreForkingTCPServer):
        workers = 2
        max_per_client = 1
        edge_timeout = 300

        def authenticate(self, request, client_address):
            request.sendall(b"?")
            return request.recv(100).decode()

    class Named(prefork.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.client_address.identity.encode())

    serve(Named, Server)
"""


def test_client_that_stalls_in_the_edge_holds_a_few_workers_only(
    start: Callable[..., Program],
) -> None:
    """A client that is silent in TLS or authentication counts for max_per_client, and others are served meanwhile."""
    program = start(STALLING)
    address = program.address()
    with connect(address) as silent, socket.socket() as neighbour:
        assert silent.recv(1) == b"?"  # of two that come at the same moment both may be refused
        with connect(address) as other:
            assert read_to_the_end(other) == ""
        neighbour.settimeout(TIMEOUT)
        neighbour.bind(("127.0.0.2", 0))
        neighbour.connect(address)
        send_line(neighbour, "alice")
        assert read_to_the_end(neighbour) == "?alice"
    program.wait_logged("refused a client reason=per_client client=127.0.0.1")
