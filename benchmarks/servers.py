"""One server process under measurement: ``python servers.py tcp prefork --workers 2``.

It prints its address as one JSON line and serves until it is killed. Every variant serves the
same handler with the same backlog. The variants differ in how requests reach the handler.
"""

from __future__ import annotations

import argparse
import http.server
import json
import logging
import os
import socket
import socketserver
import time
from typing import Any

import prefork

BACKLOG = 1024


class PreForkingHTTPServer(prefork.PreForkingMixIn, http.server.HTTPServer):
    """The standard library's HTTP server with a pool, as its users would write it."""

    request_queue_size = BACKLOG


STREAM_OF = {
    "tcp": socketserver.TCPServer,
    "unix": socketserver.UnixStreamServer,
    "http": http.server.HTTPServer,
}
DATAGRAM_OF = {"udp": socketserver.UDPServer}
POOL_OF = {
    "tcp": prefork.PreForkingTCPServer,
    "udp": prefork.PreForkingUDPServer,
    "unix": prefork.PreForkingUnixStreamServer,
    "http": PreForkingHTTPServer,
}


class Echo(socketserver.BaseRequestHandler):
    """Answer with what came, in as few calls as the protocol allows."""

    def handle(self) -> None:
        """Serve one request of either kind."""
        if isinstance(self.request, tuple):
            data, reply_from = self.request
            reply_from.sendto(data, self.client_address)
        else:
            self.request.sendall(self.request.recv(1024))


class Lines(socketserver.StreamRequestHandler):
    """Answer each line with itself, until the client closes: a connection holds its worker."""

    def handle(self) -> None:
        """Serve all requests of a connection."""
        for line in self.rfile:
            self.wfile.write(line)


class LinesOnce(socketserver.StreamRequestHandler):
    """Answer one line with itself."""

    def handle(self) -> None:
        """Serve one request."""
        self.wfile.write(self.rfile.readline())


class LinesParked(prefork.ParkingMixIn, socketserver.StreamRequestHandler):
    """The same, with the connection parked between two requests."""

    def handle(self) -> None:
        """Serve one request."""
        self.wfile.write(self.rfile.readline())


HANDLER_OF = {"lines-held": Lines, "lines-once": LinesOnce, "lines-parked": LinesParked}


class Page(http.server.BaseHTTPRequestHandler):
    """Answer a GET with a small page."""

    body = b"m" * 64

    def do_GET(self) -> None:
        """Send the page."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class Burn(socketserver.BaseRequestHandler):
    """Compute for about 5 ms. The amount of work is fixed, so a disturbed core takes longer."""

    rounds = 0

    def handle(self) -> None:
        """Compute, then answer with the result."""
        self.request.sendall(b"%d" % burn(self.rounds))


class Hold(socketserver.BaseRequestHandler):
    """Send the pid and the time, hold the worker for a while, then send back what came."""

    seconds = 0.0

    def handle(self) -> None:
        """Name the worker to the client first, so that a lost request can be matched with a kill."""
        asked = self.request.recv(1024)
        self.request.sendall(b"%d %d\n" % (os.getpid(), time.monotonic_ns()))
        time.sleep(self.seconds)
        self.request.sendall(asked)


def burn(rounds: int) -> int:
    """Do the CPU-bound work of a request."""
    value = 1
    for _ in range(rounds):
        value = value * 48271 % 2147483647
    return value


class HandWritten:
    """The loop that one writes without a server class: one process, no error handling."""

    request_queue_size = BACKLOG
    allow_reuse_address = True

    def serve_forever(self: Any) -> None:
        """Serve until killed."""
        if self.socket_type == socket.SOCK_DGRAM:
            self.answer_datagrams()
        else:
            self.answer_connections()

    def answer_connections(self: Any) -> None:
        """Accept, serve, close."""
        handler, listener = self.RequestHandlerClass, self.socket
        while True:
            request, client_address = listener.accept()
            handler(request, client_address, self)
            request.shutdown(socket.SHUT_WR)
            request.close()

    def answer_datagrams(self: Any) -> None:
        """Receive, serve."""
        handler, listener, size = self.RequestHandlerClass, self.socket, self.max_packet_size
        while True:
            data, client_address = listener.recvfrom(size)
            handler((data, listener), client_address, self)


class Threading(socketserver.ThreadingMixIn):
    """The standard library's thread per request, with the backlog of the others."""

    request_queue_size = BACKLOG


class Forking(socketserver.ForkingMixIn):
    """The standard library's process per request, with the backlog of the others."""

    request_queue_size = BACKLOG


class Seen:
    """A pool with a metrics process, for which the worker measures queue waits."""

    metrics_address = "127.0.0.1:0"


class Told:
    """Print when each worker is ready, on the clock that all processes share."""

    def worker_ready(self, worker: Any) -> None:
        """Report to the runner, and keep the log quiet: the runner kills workers on purpose."""
        logging.getLogger("prefork").setLevel(logging.CRITICAL)
        tell(ready=time.monotonic(), slot=worker.slot, pid=worker.pid)


VARIANTS = (
    *("handwritten", "accounted", "prefork", "seen", "pool", "threading", "forking"),
    *HANDLER_OF,
)


def server_class(transport: str, variant: str) -> type[Any]:
    """Make the class to measure; ``pool`` is ``prefork`` that also reports its workers."""
    plain = STREAM_OF.get(transport) or DATAGRAM_OF[transport]
    bases = {
        "handwritten": (HandWritten, plain),
        "accounted": (*_keeping_books(variant), HandWritten, plain),
        "prefork": (POOL_OF[transport],),
        "seen": (Seen, POOL_OF[transport]),
        "pool": (Told, POOL_OF[transport]),
        "threading": (Threading, plain),
        "forking": (Forking, plain),
        **dict.fromkeys(HANDLER_OF, (POOL_OF[transport],)),
    }[variant]
    return type(variant, bases, {})


def _keeping_books(variant: str) -> tuple[type[Any], ...]:
    """Return the loop that writes a scoreboard, where it is asked for: other versions have that elsewhere."""
    if variant != "accounted":
        return ()
    from accounted import Accounted  # noqa: PLC0415

    return (Accounted,)


def tell(**facts: Any) -> None:
    """Print one line for the runner, at once and in one write."""
    os.write(1, (json.dumps(facts) + "\n").encode())


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=[*STREAM_OF, *DATAGRAM_OF])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--path", help="the Unix socket")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--burn", type=int, default=0, help="compute this many rounds instead of echoing"
    )
    parser.add_argument(
        "--hold", type=float, default=0.0, help="hold each request this many seconds"
    )
    parser.add_argument("--most", type=int, help="grow under load up to this many workers")
    parser.add_argument(
        "--linger", type=float, default=0.001, help="how long a worker waits for a client"
    )
    parser.add_argument("--cpu", type=int, help="run on this core only")
    return parser.parse_args()


def main() -> None:
    """Serve as the command line says."""
    given = arguments()
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    Burn.rounds, Hold.seconds = given.burn, given.hold
    serving = server_class(given.transport, given.variant)
    serving.workers = serving.max_children = given.workers
    if given.hold:
        logging.getLogger("prefork").setLevel(logging.CRITICAL)  # workers are killed on purpose
    if given.most is not None:
        serving.max_children, serving.min_spare, serving.max_spare = given.most, 1, 2
    address = given.path if given.transport == "unix" else ("127.0.0.1", 0)
    if given.variant in HANDLER_OF:
        serving.linger, serving.park_timeout = given.linger, 0
    echo = HANDLER_OF.get(given.variant, Page if given.transport == "http" else Echo)
    server = serving(address, Burn if given.burn else Hold if given.hold else echo)
    tell(address=server.server_address, prefork=prefork.__file__, serving=time.monotonic())
    server.serve_forever()


if __name__ == "__main__":
    main()
