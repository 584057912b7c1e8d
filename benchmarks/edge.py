"""What address rules and a PROXY header cost a short connection.

    python benchmarks/edge.py                   measure, print the table
    python benchmarks/edge.py --rounds 5        sooner, and less exactly

The figures are CPU time of the server, user and system, for one connection: connect, one line each way, close.
All servers run at once on one core, with one worker each, and the clients on another (processes.py). ``tls.py`` measures what encryption costs.
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import statistics
import sys
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

from processes import OnOneCore, costs_in_turns  # noqa: E402 - of this folder
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


class Running(OnOneCore):
    """One server, and clients that come one after the other."""

    requests = 400

    def __init__(self, script: str, variant: str, cpu: int) -> None:
        super().__init__(script, variant, cpu)
        self.header = HEADERS.get(variant, b"")
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


def measure(rounds: int) -> str:
    """Return the table."""
    costs = costs_in_turns(Running, __file__, VARIANTS, rounds)
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
