"""The programs of the standard library's documentation, with ``import prefork as socketserver``."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, ask_datagram
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

HEAD = """
import sys
import prefork as socketserver
from tests.support.app import announce

sys.stdout = open("printed", "w")
"""

TAIL = """
with socketserver.SERVER(("127.0.0.1", 0), Handler) as server:
    announce(server)
    server.serve_forever()
"""

BASE_HANDLER = """
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.data = self.request.recv(1024).strip()
        print(f"{self.client_address[0]} wrote:")
        print(self.data)
        self.request.sendall(self.data.upper())
"""

STREAM_HANDLER = """
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.data = self.rfile.readline().strip()
        print(f"{self.client_address[0]} wrote:")
        print(self.data)
        self.wfile.write(self.data.upper())
"""

DATAGRAM_HANDLER = """
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        data = self.request[0].strip()
        reply_from = self.request[1]
        print(f"{self.client_address[0]} wrote:")
        print(data)
        reply_from.sendto(data.upper(), self.client_address)
"""

PROGRAMS = [
    pytest.param(BASE_HANDLER, "TCPServer", ask, id="E01-plain"),
    pytest.param(BASE_HANDLER, "PreForkingTCPServer", ask, id="E01"),
    pytest.param(STREAM_HANDLER, "TCPServer", ask, id="E02-plain"),
    pytest.param(STREAM_HANDLER, "PreForkingTCPServer", ask, id="E02"),
    pytest.param(DATAGRAM_HANDLER, "UDPServer", ask_datagram, id="E03-plain"),
    pytest.param(DATAGRAM_HANDLER, "PreForkingUDPServer", ask_datagram, id="E03"),
]


@pytest.mark.parametrize(("handler", "server", "asking"), PROGRAMS)
def test_upper_case_program(
    start: Callable[..., Program],
    tmp_path: Path,
    handler: str,
    server: str,
    asking: Callable[..., str],
) -> None:
    """The upper-case server answers, prints who wrote, and ends by Ctrl-C with one KeyboardInterrupt (E01-E03, E05, K08)."""
    program = start(HEAD + handler + TAIL.replace("SERVER", server))

    assert asking(program.address(), "hello world with TCP") == "HELLO WORLD WITH TCP"
    assert asking(program.address(), "yeah") == "YEAH"
    os.killpg(program.pid, signal.SIGINT)

    assert program.wait() == -signal.SIGINT
    program.wait_silent()
    assert program.log.count("Traceback") == 1
    assert program.logged("^KeyboardInterrupt$") == ["KeyboardInterrupt"]
    printed = (tmp_path / "printed").read_text().splitlines()
    assert sorted(printed) == sorted(
        ["127.0.0.1 wrote:", "b'hello world with TCP'", "127.0.0.1 wrote:", "b'yeah'"]
    )


THREADED_PROGRAM = """
import socket
import threading
import prefork as socketserver
from tests.support.app import tell

class ThreadedTCPRequestHandler(socketserver.BaseRequestHandler):
    def handle(self):
        data = str(self.request.recv(1024), "ascii")
        cur_thread = threading.current_thread()
        response = bytes("{}: {}".format(cur_thread.name, data), "ascii")
        self.request.sendall(response)

class ThreadedTCPServer(MIXIN, socketserver.TCPServer):
    pass

def client(ip, port, message):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect((ip, port))
        sock.sendall(bytes(message, "ascii"))
        response = str(sock.recv(1024), "ascii")
        tell("received", response.partition(": ")[2])

server = ThreadedTCPServer(("localhost", 0), ThreadedTCPRequestHandler)
ip, port = server.server_address
server_thread = threading.Thread(target=server.serve_forever)
server_thread.daemon = True
server_thread.start()
client(ip, port, "Hello World 1")
client(ip, port, "Hello World 2")
client(ip, port, "Hello World 3")
server.shutdown()
"""


@pytest.mark.parametrize(
    "mixin",
    [
        "socketserver.ThreadingMixIn",
        "socketserver.PreForkingMixIn",
        "socketserver.PreForkingMixIn, socketserver.ThreadingMixIn",
    ],
)
def test_threaded_program(start: Callable[..., Program], mixin: str) -> None:
    """The documentation's in-process program, which never calls server_close(), exits 0 and leaves nobody (E04, K09)."""
    program = start(THREADED_PROGRAM.replace("MIXIN", mixin))

    assert program.wait() == 0
    program.wait_silent()
    assert program.all_told("received") == ["Hello World 1", "Hello World 2", "Hello World 3"]
    assert "Traceback" not in program.log
    assert program.leftovers() == []


INTERRUPTED_PROGRAM = """
import os
from tests.compat.inside import Pool
from tests.support.app import LOOPBACK, Echo, announce, tell

with Pool(LOOPBACK, Echo) as server:
    server.workers = 3
    announce(server)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        tell("interrupted", os.getpid())
    tell("went on")
"""


def test_ctrl_c_interrupts_the_master_only(start: Callable[..., Program]) -> None:
    """Ctrl-C, which reaches the whole group, is one KeyboardInterrupt in the master and no word from a worker (E05)."""
    program = start(INTERRUPTED_PROGRAM)
    ask(program.address())
    wait_until(lambda: len(program.workers()) == 3, "three workers")

    os.killpg(program.pid, signal.SIGINT)

    assert program.wait() == 0
    program.wait_silent()
    assert program.all_told("interrupted") == [program.pid]
    assert program.all_told("went on") == [None]
    assert "KeyboardInterrupt" not in program.log
