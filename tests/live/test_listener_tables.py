"""One pool from one file: a port with TLS for the world, and a plain one for its own network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.certificates import Authority
from tests.support.clients import ask, connect, read_to_the_end
from tests.support.ports import free_port
from tests.support.server import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program


def test_listeners_differ(start: Callable[..., Program], tmp_path: Path) -> None:
    """Each listener has the edge of its own table, and ``prefork check`` says what stands where."""
    authority = Authority(tmp_path)
    (tmp_path / "told.py").write_text(
        "import socketserver\n"
        "class Told(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        tls = getattr(self.client_address, 'tls', None)\n"
        "        self.wfile.write(f'{tls and tls.version} '.encode() + self.rfile.readline())\n"
    )
    secure, plain = free_port(), free_port()
    (tmp_path / "prefork.toml").write_text(
        "workers = 1\n"
        "[[listener]]\n"
        f"bind = '127.0.0.1:{secure}'\n"
        f"tls_certificate = {json.dumps(authority.server('localhost'))}\n"
        "[[listener]]\n"
        f"bind = '127.0.0.1:{plain}'\n"
        "deny = '127.0.0.2'\n"
    )
    command = ["-m", "prefork", "check", "told:Told"]
    checked = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (
        f"tcp://127.0.0.1:{secure} (TLS) tcp://127.0.0.1:{plain} (address rules)" in checked.stdout
    )
    program = start(None, arguments=["-m", "prefork", "run", "told:Told"])
    program.wait_logged("ready workers=1")
    assert ask(("127.0.0.1", plain)) == "None hello"
    with (
        socket.create_connection(("127.0.0.1", secure), timeout=10) as sock,
        authority.trusting.wrap_socket(sock, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello\n")
        assert client.recv(100) == b"TLSv1.3 hello\n"
    with connect(("127.0.0.1", secure)) as client:
        client.sendall(b"hello\n" * 3)
        answer = b""
        while part := client.recv(100):
            answer += part
    assert b"hello" not in answer
    with socket.socket() as other:
        other.settimeout(5)
        other.bind(("127.0.0.2", 0))
        other.connect(("127.0.0.1", plain))
        assert read_to_the_end(other) == ""
