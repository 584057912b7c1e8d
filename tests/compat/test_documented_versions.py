"""The programs that the documentation of ``socketserver`` has had since Python 2, server and client, beside the library itself.

Each pair of programs has the shape of those of one time: how the server is made and how its handler reads has
changed with the versions. Every pair is run twice, once with ``socketserver`` and once with prefork under the same name,
and client and server have to print the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.server import environment
from tests.support.waiting import CEILING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

HEAD = """
import sys
import IMPORTED as socketserver
from tests.support.app import announce

sys.stdout = open("printed", "w", buffering=1)
"""

WITHOUT_WITH = """
server = socketserver.SERVER(("localhost", 0), Shout)
announce(server)
server.serve_forever()
"""

WITH = """
with socketserver.SERVER(("localhost", 0), Shout) as server:
    announce(server)
    server.serve_forever()
"""

ONE_RECV = """
class Shout(socketserver.BaseRequestHandler):
    def handle(self):
        self.data = self.request.recv(1024).strip()
        print("{} wrote:".format(self.client_address[0]))
        print(self.data)
        self.request.send(self.data.upper())
"""

READLINE = """
class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        self.data = self.rfile.readline().strip()
        print("{} wrote:".format(self.client_address[0]))
        print(self.data)
        self.wfile.write(self.data.upper())
"""

UNTIL_NEWLINE = """
class Shout(socketserver.BaseRequestHandler):
    def handle(self):
        parts, size = [b""], 0
        while b"\\n" not in parts[-1] and size < 10_000:
            parts.append(self.request.recv(2000))
            size += len(parts[-1])
        self.data = b"".join(parts)
        print(f"Received from {self.client_address[0]}:")
        print(self.data.decode("utf-8"))
        self.request.sendall(self.data.upper())
"""

BOUNDED_READLINE = """
class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        self.data = self.rfile.readline(10000).rstrip()
        print(f"{self.client_address[0]} wrote:")
        print(self.data.decode("utf-8"))
        self.wfile.write(self.data.upper())
"""

DATAGRAM = """
class Shout(socketserver.BaseRequestHandler):
    def handle(self):
        data = self.request[0].strip()
        socket = self.request[1]
        print("{} wrote:".format(self.client_address[0]))
        print(data)
        socket.sendto(data.upper(), self.client_address)
"""

STREAM_CLIENT = """
import socket
import sys

host, port, *words = sys.argv[1:]
data = " ".join(words)
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
try:
    sock.connect((host, int(port)))
    sock.sendall(bytes(data + "\\n", "utf-8"))
    received = str(sock.recv(1024), "utf-8")
finally:
    sock.close()
print("Sent:     {}".format(data))
print("Received: {}".format(received))
"""

STREAM_CLIENT_WITH = """
import socket
import sys

host, port, *words = sys.argv[1:]
data = " ".join(words)
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
    sock.connect((host, int(port)))
    sock.sendall(bytes(data, "utf-8"))
    sock.sendall(b"\\n")
    received = str(sock.recv(1024), "utf-8")
print("Sent:    ", data)
print("Received:", received)
"""

DATAGRAM_CLIENT = """
import socket
import sys

host, port, *words = sys.argv[1:]
data = " ".join(words)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.sendto(bytes(data + "\\n", "utf-8"), (host, int(port)))
received = str(sock.recv(1024), "utf-8")
print("Sent:     {}".format(data))
print("Received: {}".format(received))
sock.close()
"""


class Documented(NamedTuple):
    """A server program and the client that goes with it."""

    handler: str
    main: str
    server: str
    client: str


PAIRS = {
    "2 and 3.0 to 3.5, recv": Documented(ONE_RECV, WITHOUT_WITH, "TCPServer", STREAM_CLIENT),
    "2 and 3.0 to 3.5, streams": Documented(READLINE, WITHOUT_WITH, "TCPServer", STREAM_CLIENT),
    "2 and 3.0 to 3.5, datagrams": Documented(DATAGRAM, WITHOUT_WITH, "UDPServer", DATAGRAM_CLIENT),
    "3.6 to 3.12, recv": Documented(ONE_RECV, WITH, "TCPServer", STREAM_CLIENT),
    "3.6 to 3.12, streams": Documented(READLINE, WITH, "TCPServer", STREAM_CLIENT),
    "3.13 and 3.14, recv": Documented(UNTIL_NEWLINE, WITH, "TCPServer", STREAM_CLIENT_WITH),
    "3.13 and 3.14, streams": Documented(BOUNDED_READLINE, WITH, "TCPServer", STREAM_CLIENT_WITH),
    "3.6 to 3.14, datagrams": Documented(DATAGRAM, WITH, "UDPServer", DATAGRAM_CLIENT),
}


def outputs(
    start: Callable[..., Program], folder: Path, pair: Documented, imported: str, server: str
) -> tuple[list[str], list[str]]:
    """Run a pair of programs; return what the clients print, and what the server prints."""
    head = HEAD.replace("IMPORTED", imported)
    program = start(head + pair.handler + pair.main.replace("SERVER", server))
    host, port = program.address()[:2]
    client = folder / "client.py"
    client.write_text(pair.client)
    printed = []
    for words in (["hello", "world", "with", "TCP"], ["python", "is", "nice"]):
        done = subprocess.run(
            [sys.executable, str(client), host, str(port), *words],
            env=environment(),
            stdout=subprocess.PIPE,
            timeout=CEILING,
            check=True,
            text=True,
        )
        printed.append(done.stdout)
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait() == -signal.SIGINT
    program.wait_silent()
    assert program.logged("^KeyboardInterrupt$") == ["KeyboardInterrupt"]
    return printed, sorted((folder / "printed").read_text().splitlines())


@pytest.mark.parametrize("version", PAIRS)
def test_documented_programs_print_the_same(
    start: Callable[..., Program], tmp_path: Path, version: str
) -> None:
    """Client and server of each version's documentation print with prefork what they print with socketserver (E01-E03)."""
    pair = PAIRS[version]
    expected = outputs(start, tmp_path, pair, "socketserver", pair.server)
    assert "HELLO WORLD WITH TCP" in expected[0][0]
    assert outputs(start, tmp_path, pair, "prefork", f"PreForking{pair.server}") == expected
