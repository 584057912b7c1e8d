"""What a short encrypted connection costs the server, beside a hand-written loop.

As a program, ``python tls.py tcp handwritten --certificate FILE`` is one of the servers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import socketserver
import ssl
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from processes import Server, running
from servers import BACKLOG, Echo, tell
from table import markdown, spread

import prefork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requests_cost import Effort

BASELINE = "handwritten"
SHOWN = {
    "handwritten": "hand-written loop, one context",
    "orderly": "the same, with a deadline and close_notify",
    "contexts": "hand-written loop, a context for each connection",
    "prefork": "PreForkingTCPServer, 1 worker",
}
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
MESSAGE = b"m" * 64


# --- the servers


class HandWritten(socketserver.TCPServer):
    """The loop that one writes without a server class: one process, no deadline, no error handling."""

    request_queue_size = BACKLOG
    certificate = ""
    shares_context = True

    def serve_forever(self, _poll_interval: float = 0.5) -> None:
        """Accept, shake hands, serve, close."""
        handler, listener, context = self.RequestHandlerClass, self.socket, self.make_context()
        while True:
            plain, client_address = listener.accept()
            if not self.shares_context:
                context = self.make_context()
            with context.wrap_socket(plain, server_side=True) as request:
                handler(request, client_address, self)

    def make_context(self) -> ssl.SSLContext:
        """Return a context with the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context


class Orderly(HandWritten):
    """The same loop with what TLS asks for at the end, and a bound for clients that say nothing."""

    def serve_forever(self, _poll_interval: float = 0.5) -> None:
        """Accept, shake hands in time, serve, say goodbye."""
        handler, listener, context = self.RequestHandlerClass, self.socket, self.make_context()
        while True:
            plain, client_address = listener.accept()
            plain.settimeout(5.0)
            with context.wrap_socket(plain, server_side=True) as request:
                request.settimeout(None)
                handler(request, client_address, self)
                request.settimeout(0)
                with contextlib.suppress(OSError):
                    request.unwrap()
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_WR)


def serve() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport")
    parser.add_argument("variant", choices=SHOWN)
    parser.add_argument("--path")
    parser.add_argument("--certificate")
    parser.add_argument("--cpu", type=int)
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.cpu})
    bases: dict[str, tuple[type, dict[str, object]]] = {
        "handwritten": (HandWritten, {"certificate": given.certificate}),
        "orderly": (Orderly, {"certificate": given.certificate}),
        "contexts": (HandWritten, {"certificate": given.certificate, "shares_context": False}),
        "prefork": (
            prefork.PreForkingTCPServer,
            {"tls_certificate": given.certificate, "workers": 1, "max_children": 1},
        ),
    }
    base, attributes = bases[given.variant]
    server: Any = type(given.variant, (base,), attributes)(("127.0.0.1", 0), Echo)
    tell(address=server.server_address, prefork=prefork.__file__, serving=time.monotonic())
    server.serve_forever()


# --- the measurement


def report(effort: Effort, server_cpu: int) -> str:
    """Return a table: every server with full and with resumed handshakes, one client at a time."""
    rows = []
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(certificate())
        options = ("--certificate", file, "--cpu", server_cpu)
        servers = {
            variant: stack.enter_context(running("tcp", variant, *options, script="tls.py"))
            for variant in SHOWN
        }
        # A context for each connection means other keys for the tickets: nothing can be resumed.
        able = {variant: one for variant, one in servers.items() if variant != "contexts"}
        for version in VERSIONS:
            for kind, asked in (("full", servers), ("resumed", able)):
                costs = measure(asked, Client(version, resumed=kind == "resumed"), effort)
                rows += [_row(version, kind, variant, costs) for variant in costs]
    head = ["version", "handshake", "server", "µs per connection", "least", "ratio", "ratios seen"]
    return markdown(head, rows)


@contextlib.contextmanager
def certificate() -> Iterator[str]:
    """Have openssl make a certificate with a key on the curve P-256; yield its file."""
    with tempfile.TemporaryDirectory(prefix="prefork-bench-") as folder:
        file, key = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-days", "2", "-subj", "/CN=localhost", "-nodes"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-keyout", str(key), "-out", str(file)),
            ],
            check=True,
            capture_output=True,
        )
        file.write_text(key.read_text() + file.read_text())
        yield str(file)


class Client:
    """A client that connects afresh for each message."""

    def __init__(self, version: str, *, resumed: bool) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.minimum_version = self._context.maximum_version = VERSIONS[version]
        self._resumed = resumed
        self._sessions: dict[int, ssl.SSLSession | None] = {}

    def ask(self, server: Server, seconds: float) -> int:
        """Ask for a while; return how many connections were answered."""
        answered, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            self._ask_once(server)
            answered += 1
        return answered

    def _ask_once(self, server: Server) -> None:
        session = self._sessions.get(server.pid) if self._resumed else None
        with (
            socket.create_connection(server.address, timeout=10) as plain,
            self._context.wrap_socket(plain, session=session) as client,
        ):
            client.sendall(MESSAGE)
            if client.recv(1024) != MESSAGE:
                raise RuntimeError(f"{server.address} closed without an answer")
            if session is not None and not client.session_reused:
                raise RuntimeError(f"{server.address} has not resumed a session")
            if self._resumed and session is None:
                self._sessions[server.pid] = client.session
            while client.recv(1024):
                pass  # until the end: the server has closed its side


def measure(servers: dict[str, Server], client: Client, effort: Effort) -> dict[str, list[float]]:
    """Return the CPU seconds per connection of every server, one value per round; they take turns."""
    costs: dict[str, list[float]] = {variant: [] for variant in servers}
    for server in servers.values():
        client.ask(server, min(0.1, effort.seconds))
    for _ in range(effort.rounds):
        for variant, server in servers.items():
            before = server.cpu_seconds()
            answered = client.ask(server, effort.seconds)
            costs[variant].append((server.cpu_seconds() - before) / answered)
    return costs


def _row(version: str, kind: str, variant: str, costs: dict[str, list[float]]) -> list[str]:
    ratios = [cost / base for cost, base in zip(costs[variant], costs[BASELINE], strict=True)]
    micros = statistics.median(costs[variant]) * 1e6
    cells = [version, kind, SHOWN[variant], f"{micros:.0f}", f"{min(costs[variant]) * 1e6:.0f}"]
    if variant == BASELINE:
        return [*cells, "1", ""]
    return [*cells, f"{statistics.median(ratios):.2f}", spread(ratios, "{:.2f}")]


if __name__ == "__main__":
    serve()
