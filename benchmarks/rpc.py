"""What a call of ONC RPC costs, beside the same request as a line.

    python benchmarks/rpc.py                   measure, print the table
    python benchmarks/rpc.py --rounds 5        sooner, and less exactly

The figures are CPU time of the server, user and system, for one call of a procedure that adds two numbers, by one
client on one connection or datagram socket. All servers run at once on one core, with one worker each, and the
client on another (processes.py).
"""

from __future__ import annotations

import argparse
import socket
import statistics
import struct
import sys
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

from processes import OnOneCore, costs_in_turns  # noqa: E402 - of this folder
from table import machine, markdown, spread  # noqa: E402 - of this folder

import prefork  # noqa: E402 - a plain checkout: the package lies beside this folder
from prefork.rpc import Program, RPCServer, UDPRPCServer, procedure, xdr  # noqa: E402 - as above

NUMBER: Final = 0x20000042

VARIANTS: Final = {
    "line": "TCP: a line, parked",
    "rpc": "TCP: RPCServer",
    "line-udp": "UDP: a line",
    "rpc-udp": "UDP: UDPRPCServer",
    "idempotent-udp": "UDP: the same, idempotent",
}

BESIDE: Final = {
    "line": "line",
    "rpc": "line",
    "line-udp": "line-udp",
    "rpc-udp": "line-udp",
    "idempotent-udp": "line-udp",
}
"""What the ratio of each variant is to."""


class Line(prefork.ParkingMixIn, prefork.StreamRequestHandler):
    """Adds the numbers of one line."""

    def handle(self) -> None:
        """Serve one line."""
        line = self.rfile.readline()
        if not line:
            self.close_connection = True
            return
        _, a, b = line.split()
        self.wfile.write(b"%d\n" % (int(a) + int(b)))


class LineDatagram(prefork.DatagramRequestHandler):
    """Adds the numbers of a datagram."""

    def handle(self) -> None:
        """Serve one datagram."""
        _, a, b = self.rfile.readline().split()
        self.wfile.write(b"%d\n" % (int(a) + int(b)))


class Adder(Program):
    """Adds two numbers."""

    number, version = NUMBER, 1

    @procedure(1)
    def add(self, a: xdr.int32, b: xdr.int32) -> xdr.int32:
        """Return the sum."""
        return a + b


class IdempotentAdder(Program):
    """The same, and a call may be executed twice."""

    number, version = NUMBER, 1

    @procedure(1, idempotent=True)
    def add(self, a: xdr.int32, b: xdr.int32) -> xdr.int32:
        """Return the sum."""
        return a + b


SERVERS: Final[dict[str, tuple[Any, Any]]] = {
    "line": (prefork.PreForkingTCPServer, Line),
    "rpc": (RPCServer, Adder),
    "line-udp": (prefork.PreForkingUDPServer, LineDatagram),
    "rpc-udp": (UDPRPCServer, Adder),
    "idempotent-udp": (UDPRPCServer, IdempotentAdder),
}


def serve(variant: str) -> None:
    """Serve one variant, and print the port first."""
    base, what = SERVERS[variant]

    def tell(server: Any) -> None:
        print(server.server_address[1], flush=True)

    cls = type("Server", (base,), {"workers": 1, "when_ready": tell})
    with cls(("127.0.0.1", 0), what) as server:
        server.serve_forever()


class Running(OnOneCore):
    """One server, and its client on one connection or datagram socket."""

    requests = 3000

    def __init__(self, script: str, variant: str, cpu: int) -> None:
        super().__init__(script, variant, cpu)
        self.is_line = variant.startswith("line")
        self.is_udp = variant.endswith("udp")
        kind = socket.SOCK_DGRAM if self.is_udp else socket.SOCK_STREAM
        self.client = socket.socket(socket.AF_INET, kind)
        self.client.connect(self.address)
        if not self.is_udp:
            self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.xid = 0
        self.ask(500)

    def ask(self, count: int) -> None:
        """Make calls, one after the other."""
        for _ in range(count):
            self.xid += 1
            self.client.sendall(self.request())
            answer = self.client.recv(1000)
            right = b"%d\n" % (self.xid + 5) if self.is_line else struct.pack(">i", self.xid + 5)
            assert answer.endswith(right), answer

    def request(self) -> bytes:
        """Return the next request."""
        if self.is_line:
            return b"add %d 5\n" % self.xid
        call = struct.pack(">10I2i", self.xid, 0, 2, NUMBER, 1, 1, 0, 0, 0, 0, self.xid, 5)
        return call if self.is_udp else struct.pack(">I", 0x80000000 | len(call)) + call

    def end(self) -> None:
        """End the client, and then the server."""
        self.client.close()
        super().end()


def measure(rounds: int) -> str:
    """Return the table."""
    costs = costs_in_turns(Running, __file__, VARIANTS, rounds)
    rows = []
    for variant, found in costs.items():
        beside = costs[BESIDE[variant]]
        ratios = [one / other for one, other in zip(found, beside, strict=True)]
        rows.append(
            [
                VARIANTS[variant],
                f"{statistics.median(found) * 1e6:.1f}",
                f"{min(found) * 1e6:.1f}",
                f"{statistics.median(ratios):.2f} to {VARIANTS[BESIDE[variant]]}",
                spread(ratios, "{:.2f}"),
            ]
        )
    head = ["server", "µs per call", "least", "ratio", "ratios seen"]
    return markdown(head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what a call of ONC RPC costs.")
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
