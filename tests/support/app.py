"""What the programs under test import: handlers whose answers say who served, and lines for the test.

A program talks to its test on standard output, one JSON line per fact: ``["address", ["127.0.0.1", 40001]]``.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from typing import Any

__all__ = [
    "LOOPBACK",
    "Echo",
    "EchoDatagram",
    "Run",
    "TellingEcho",
    "TellingRun",
    "announce",
    "log_to_stderr",
    "serve",
    "tell",
]
__all__ += [
    "ctypes",
    "os",
    "resource",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "threading",
    "time",
]

LOOPBACK = ("127.0.0.1", 0)


def tell(key: str, value: object = None) -> None:
    """Tell the test a fact, in one write, so that the lines of several processes never mix."""
    os.write(1, json.dumps([key, value], default=os.fsdecode).encode() + b"\n")


def announce(*servers: socketserver.BaseServer) -> None:
    """Tell the test where each server listens; also fit to be the ``when_ready`` of a server class."""
    for server in servers:
        tell("address", server.server_address)


def log_to_stderr(level: int = logging.DEBUG) -> None:
    """Send every log record to standard error, where the test looks."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )


class Echo(socketserver.StreamRequestHandler):
    """Answers a line with the pid of the worker and the line, after the server's ``pause`` in seconds."""

    def handle(self) -> None:
        """Serve one line; a client that leaves without one gets nothing."""
        line = self.rfile.readline()
        if line:
            time.sleep(getattr(self.server, "pause", 0.0))
            self.wfile.write(b"%d %s" % (os.getpid(), line))


class Run(socketserver.StreamRequestHandler):
    """Evaluates a line of Python in the worker, ``self`` being the handler; answers the pid and the value."""

    def handle(self) -> None:
        """Do what the client says, whatever becomes of it."""
        line = self.rfile.readline().decode()
        if line:
            value = eval(line, globals(), {"self": self})
            self.wfile.write(f"{os.getpid()} {value!r}\n".encode())


class Telling(socketserver.StreamRequestHandler):
    """Tells "busy" and the pid of the worker when it has taken a request."""

    def setup(self) -> None:
        """Tell the test."""
        super().setup()
        tell("busy", os.getpid())


class TellingEcho(Telling, Echo):
    """An ``Echo`` that tells when it is busy."""


class TellingRun(Telling, Run):
    """A ``Run`` that tells when it is busy."""


class EchoDatagram(socketserver.DatagramRequestHandler):
    """Answers a datagram with the pid of the worker and the datagram; an empty one with nothing."""

    def handle(self) -> None:
        """Serve one datagram."""
        if self.packet:
            time.sleep(getattr(self.server, "pause", 0.0))
            self.wfile.write(b"%d %s" % (os.getpid(), self.packet))


def serve(
    handler: type, base: type | None = None, address: Any = LOOPBACK, **members: object
) -> None:
    """Serve with a class made of ``base`` (the pre-forking TCP server) and ``members``, until a stop.

    The address is told when the pool is ready, "left" when ``serve_forever()`` has returned and
    "closed" after ``server_close()``.
    """
    import prefork

    log_to_stderr()
    server_class = type(
        "Server", (base or prefork.PreForkingTCPServer,), {"when_ready": announce, **members}
    )
    with server_class(address, handler) as server:
        server.serve_forever()
        tell("left")
    tell("closed")
