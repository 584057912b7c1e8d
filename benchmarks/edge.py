"""What address rules and a PROXY header cost a short connection.

    python benchmarks/edge.py                   measure, print the table
    python benchmarks/edge.py --rounds 5        sooner, and less exactly

The figures are CPU time of the server, user and system, for one connection: connect, one line each way, close.
All servers run at once on one core, with one worker each, and the clients on another. They take turns, so that
whatever else the machine does falls on all of them alike. ``tls.py`` measures what encryption costs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import socketserver
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

import psutil  # noqa: E402
from table import machine, markdown, spread  # noqa: E402 - of this folder

import prefork  # noqa: E402 - a plain checkout: the package lies beside this folder

HEADERS: Final = {
    "proxy1": b"PROXY TCP4 127.0.0.1 127.0.0.1 4711 443\r\n",
    "proxy2": bytes.fromhex("0d0a0d0a000d0a515549540a2111000c7f0000017f000001126701bb"),
}
"""What the client sends first, by variant."""

VARIANTS: Final = {
    "loop": "hand-written loop",
    "plain": "PreForkingTCPServer",
    "rules": "the same with 4 address rules",
    "proxy1": "the same behind a proxy, PROXY version 1",
    "proxy2": "the same behind a proxy, PROXY version 2",
}

ATTRIBUTES: Final[dict[str, dict[str, str]]] = {
    "plain": {},
    "rules": {"allow": "127.0.0.0/8 10.0.0.0/8", "deny": "127.0.0.2 192.0.2.0/24"},
    "proxy1": {"proxy_from": "127.0.0.1"},
    "proxy2": {"proxy_from": "127.0.0.1"},
}

CONNECTIONS: Final = 400
"""Of one turn."""


class Echo(socketserver.StreamRequestHandler):
    """Answers one line."""

    def handle(self) -> None:
        """Serve."""
        self.wfile.write(self.rfile.readline())


class Loop(socketserver.TCPServer):
    """Accept, serve, close, and nothing else."""

    request_queue_size = 128

    def serve_forever(self, poll_interval: float = 0.5) -> None:  # noqa: ARG002 - the signature
        """Serve until killed."""
        while True:
            request, address = self.socket.accept()
            Echo(request, address, self)
            request.shutdown(socket.SHUT_WR)
            request.close()


def serve(variant: str) -> None:
    """Serve one variant, and print the port first."""
    cls: Any = Loop
    if variant != "loop":
        members = {"workers": 1, **ATTRIBUTES[variant]}
        cls = type("Server", (prefork.PreForkingTCPServer,), members)
    with cls(("127.0.0.1", 0), Echo) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


class Running:
    """One server on one core."""

    def __init__(self, variant: str, cpu: int) -> None:
        self.header = HEADERS.get(variant, b"")
        command = [sys.executable, __file__, "--serve", variant]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self.process.pid, {cpu})
        assert self.process.stdout is not None
        self.address = "127.0.0.1", int(self.process.stdout.readline())
        self.ask(20)

    def ask(self, count: int) -> None:
        """Make connections, one after the other."""
        for _ in range(count):
            with socket.create_connection(self.address) as client:
                client.sendall(self.header + b"hello\n")
                answer = b""
                while part := client.recv(100):
                    answer += part
                assert answer == b"hello\n", answer

    def cost(self) -> float:
        """Return the CPU seconds of one connection."""
        before = self._cpu_seconds()
        self.ask(CONNECTIONS)
        return (self._cpu_seconds() - before) / CONNECTIONS

    def _cpu_seconds(self) -> float:
        family = psutil.Process(self.process.pid).children(recursive=True)
        pids = [self.process.pid, *(one.pid for one in family)]
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)  # clock_getcpuclockid(3)

    def end(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def all_running(cpu: int) -> Iterator[dict[str, Running]]:
    """Run all servers."""
    with contextlib.ExitStack() as ends:
        servers = {}
        for variant in VARIANTS:
            servers[variant] = Running(variant, cpu)
            ends.callback(servers[variant].end)
        yield servers


def measure(rounds: int) -> str:
    """Return the table."""
    server_cpu, client_cpu = sorted(os.sched_getaffinity(0))[:2]
    costs: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with all_running(server_cpu) as servers:
        os.sched_setaffinity(0, {client_cpu})
        for _ in range(rounds):
            for variant, server in servers.items():
                costs[variant].append(server.cost())
    rows = []
    for variant, found in costs.items():
        ratios = [one / other for one, other in zip(found, costs["loop"], strict=True)]
        more = [one - other for one, other in zip(found, costs["plain"], strict=True)]
        rows.append(
            [
                VARIANTS[variant],
                f"{statistics.median(found) * 1e6:.1f}",
                f"{min(found) * 1e6:.1f}",
                f"{statistics.median(ratios):.2f}",
                spread(ratios, "{:.2f}"),
                f"{statistics.median(more) * 1e6:+.1f}",
            ]
        )
    head = ["server", "µs per connection", "least", "ratio", "ratios seen", "more than without"]
    return markdown(head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what the edge costs without TLS.")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    print(f"Measured {machine()}, prefork {prefork.__version__}.\n", flush=True)
    print(measure(given.rounds))


if __name__ == "__main__":
    main()
