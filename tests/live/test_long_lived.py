"""docs/PARKING.md: its examples keep connections open without workers that wait for them."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.support.clients import connect, read_all, send_line
from tests.support.documents import programs_of, serve_program

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.clients import Address
    from tests.support.server import Program

PROGRAMS = programs_of("PARKING.md")


def talk(client: socket.socket, line: str) -> str:
    """Send a line on a connection that stays open; return the line of the answer."""
    send_line(client, line)
    with client.makefile() as answers:
        return answers.readline().strip()


def connections(stack: ExitStack, address: Address, count: int) -> list[socket.socket]:
    """Open connections that end with the stack."""
    return [stack.enter_context(connect(address)) for _ in range(count)]


def test_every_example_is_run() -> None:
    """Each program of the page has a test here."""
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert PROGRAMS.keys() == tested - {"every_example_is_run", "threads_without_parking"}


def test_echo(start: Callable[..., Program], tmp_path: Path) -> None:
    """One worker serves five connections that are all open, each twice."""
    program, address = serve_program(
        start, tmp_path, "echo", PROGRAMS["echo"], target="Echo", workers=1
    )
    with ExitStack() as stack:
        clients = connections(stack, address, 5)
        for word in ("first", "second"):
            assert [talk(client, word) for client in clients] == [word.upper()] * 5
        assert program.stop() == 0
    assert "Traceback" not in program.log


def test_pages(start: Callable[..., Program], tmp_path: Path) -> None:
    """A connection of HTTP stays open between two requests, and holds no worker meanwhile."""
    _, address = serve_program(
        start, tmp_path, "pages", PROGRAMS["pages"], target="Page", workers=1
    )
    with ExitStack() as stack:
        for client in connections(stack, address, 3) * 2:
            send_line(client, "GET /pages.py HTTP/1.1\r\nHost: x\r\n\r")
            with client.makefile() as answer:
                head = "".join(iter(answer.readline, "\n"))
                length = re.search(r"Content-Length: (\d+)", head)
                assert length is not None
                assert "protocol_version" in answer.read(int(length[1]))


def test_login(start: Callable[..., Program], tmp_path: Path) -> None:
    """Each connection remembers its own name, whichever workers serve it, and ends when its client asks for that."""
    _, address = serve_program(
        start, tmp_path, "login", PROGRAMS["login"], target="Session", workers=2
    )
    with ExitStack() as stack:
        clients = connections(stack, address, 4)
        for number, client in enumerate(clients):
            assert talk(client, f"login user{number}") == f"you are user{number}"
        for number, client in enumerate(clients):
            assert talk(client, "who") == f"you are user{number}"
        send_line(clients[0], "quit")
        assert read_all(clients[0]) == "you are user0"


def test_threads(start: Callable[..., Program], tmp_path: Path) -> None:
    """One worker has ten requests wait at the same time, and idle connections do not hold a stop."""
    program, address = serve_program(start, tmp_path, "threads", PROGRAMS["threads"], workers=1)
    with ExitStack() as stack:
        clients = connections(stack, address, 10)
        began = time.monotonic()
        for client in clients:
            send_line(client, "report")
        for client in clients:
            assert client.recv(100) == b"done\n"
        assert time.monotonic() - began < 0.5 * len(clients)
        assert program.stop() == 0
    assert "killed" not in program.log


def test_threads_without_parking(start: Callable[..., Program]) -> None:
    """A stop waits for the idle connection of a thread that does not park, and kills its worker after graceful_timeout."""
    program = start("""
        from tests.support.app import *
        import socketserver, prefork
        class Server(prefork.PreForkingMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
            graceful_timeout = 0.3
        class Lines(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    self.wfile.write(line)
        serve(Lines, Server, workers=1)
        """)
    with connect(program.address()) as client:
        assert talk(client, "hello") == "hello"
        program.stop()
        program.wait_logged("killed cause=retired")
