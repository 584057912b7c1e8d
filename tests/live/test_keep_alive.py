"""Connections that HTTP clients keep open: an idle one does not hold a worker that is to leave, a busy one is served."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from prefork.workers.states import WorkerState
from tests.support.board import board_of
from tests.support.certificates import Authority
from tests.support.clients import connect
from tests.support.waiting import Stopwatch, let_pass, wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

SOURCE = """
    import http.server, socketserver
    from tests.support.app import *
    import prefork

    class Keeping(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            time.sleep(float(self.path[1:] or 0))
            self.answer(b"ok")
        def do_POST(self):
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))
        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *_):
            pass

    class Threading(prefork.PreForkingMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
        pass

    serve(Keeping, {base}, LOOPBACK, graceful_timeout=9.0, **{settings})
"""

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def keeping(start: Callable[..., Program]) -> Callable[..., Program]:
    """``keeping(workers=1)`` starts a program whose handlers keep connections open."""

    def start_it(base: str = "prefork.PreForkingTCPServer", **settings: object) -> Program:
        return start(SOURCE.format(base=base, settings={"workers": 1, **settings}))

    return start_it


def ask_once(client: socket.socket, request: bytes = GET) -> bytes:
    """Send a request, and return its answer; the connection stays open."""
    client.sendall(request)
    return read_answer(client)


def read_answer(client: socket.socket) -> bytes:
    """Return the body of one answer with a length."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = client.recv(1000)
        assert part, f"the connection ended after {got!r}"
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += client.recv(1000)
    return body


@pytest.mark.parametrize("base", ["prefork.PreForkingTCPServer", "Threading"])
def test_idle_connection_does_not_hold_a_stop(keeping: Callable[..., Program], base: str) -> None:
    """A connection that has been answered and is idle ends soon after TERM, also where a thread serves it."""
    program = keeping(base)
    with connect(program.address()) as client:
        assert ask_once(client) == b"ok"
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 5
        assert client.recv(100) == b""


POST = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"


def test_connection_with_a_request_is_served(keeping: Callable[..., Program]) -> None:
    """A request that has begun when its worker is to leave is answered, however slowly it comes."""
    program = keeping(workers=4)
    with ExitStack() as ends:
        slow, body, answer, new = (ends.enter_context(connect(program.address())) for _ in range(4))
        for client in (slow, body, answer):
            assert ask_once(client) == b"ok"
        slow.sendall(GET[:1])
        body.sendall(POST)
        assert b" 100 " in body.recv(1000)
        answer.sendall(GET.replace(b"/ ", b"/1.5 "))
        with board_of(program.pid) as board:
            busy = [WorkerState.BUSY] * 4
            wait_until(lambda: [*map(board.state, range(4))] == busy, "a connection for each")
        program.terminate()
        for nth in range(1, 11):  # longer than the master takes to have the worker look
            slow.sendall(GET[nth : nth + 1])
            let_pass(0.15)
        slow.sendall(GET[11:])
        body.sendall(b"ok")
        new.sendall(GET)
        assert [read_answer(client) for client in (slow, body, answer, new)] == [b"ok"] * 4
        assert program.wait() == 0


def test_idle_connection_with_tls_does_not_hold_a_stop(
    keeping: Callable[..., Program], tmp_path: Path
) -> None:
    """The same holds for a connection with TLS."""
    authority = Authority(tmp_path)
    program = keeping(tls_certificate=authority.server("localhost"))
    with (
        connect(program.address()) as plain,
        authority.trusting.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        assert ask_once(client) == b"ok"
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 5
        with pytest.raises(
            ssl.SSLError
        ):  # no word of farewell: the handler has seen an end of file
            client.recv(100)
