"""A program as a user writes it. tests/unit/test_typing.py has type checkers read it; nothing runs it."""

from __future__ import annotations

import enum
import http.server
import socketserver
from typing import Annotated

import msgspec

import prefork
from prefork.rpc import Program, RPCServer, UDPRPCServer, procedure, xdr


class Upper(prefork.StreamRequestHandler):
    """A handler that asks about its worker."""

    def handle(self) -> None:
        """Answer with the slot of the worker."""
        worker = prefork.current_worker()
        if worker is not None and not prefork.is_stopping():
            worker.extend_deadline(5)
            self.wfile.write(b"%d %d" % (worker.slot, worker.pid))


class Server(prefork.PreForkingMixIn, http.server.HTTPServer):
    """The mix-in in front of a class of the standard library."""

    workers = 4
    max_memory = "256M"
    request_timeout = 30
    crash_loop = "exit"
    access_log = "json"

    def worker_init(self, worker: prefork.WorkerInfo) -> None:
        """Open what a worker needs."""
        self.slot = worker.slot

    def worker_died(self, worker: prefork.WorkerInfo, cause: prefork.ExitCause) -> None:
        """Note a death."""
        if cause.kind is prefork.ExitKind.KILLED:
            print(worker.generation, self.worker, self.stopping)


class Threaded(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):
    """Threads in the workers."""

    workers = "auto"


class Kind(enum.IntEnum):
    """An enum of XDR."""

    OTHER = 0
    POINT = 1


class Point(msgspec.Struct):
    """A struct of XDR."""

    x: xdr.int32
    name: Annotated[str, xdr.Length(255)]


class Points(Program):
    """A program of ONC RPC."""

    number, version = 0x20000042, 1

    @procedure(1)
    def add(self, a: xdr.int32, b: xdr.float64) -> xdr.float64:
        """Return the sum."""
        return a + b

    @procedure(2, idempotent=True)
    def find(
        self, points: list[Point], kind: Kind
    ) -> Annotated[xdr.Arm, xdr.Switch(Kind, {0: None, 1: Point})]:
        """Return the first one."""
        return xdr.Arm(kind, points[0] if kind is Kind.POINT else None)


def serve_points() -> None:
    """Serve a program on two transports."""
    with (
        RPCServer(("127.0.0.1", 0), Points) as tcp,
        UDPRPCServer(("127.0.0.1", 0), [Points]) as udp,
    ):
        tcp.rpcbind = "try"
        tcp.limit_message = "64K"
        prefork.serve(tcp, udp)


def main() -> None:
    """Serve."""
    settings = prefork.Settings(
        workers="auto", min_spare=2, request_timeout="30s", umask="027", crash_loop="retry"
    )
    counted: int = settings.workers
    seconds: float | None = settings.request_timeout
    with (
        prefork.PreForkingTCPServer(("127.0.0.1", 0), Upper) as server,
        Server(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other,
    ):
        server.workers = 2
        try:
            prefork.serve(server, other, settings=settings, poll_interval=1.0)
        except prefork.SettingsError as error:
            print(error.key, error.source, counted, seconds)
