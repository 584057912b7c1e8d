"""What each machine of the cluster serves: lines, or HTTP. Each request says how many seconds it takes.

    $ prefork run -c prefork.toml -b :9000 work.py:Lines
    $ echo 0.05 | nc 10.20.0.11 9000
    h1

    $ prefork run -c prefork.toml -b :8000 work.py:application
    $ curl http://10.20.0.11:8000/0.05
    h1

The answer names the machine. ``application`` reports its load to Envoy as well (load_report.py).
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from load_report import LoadReport

import prefork

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

MACHINE = os.environ.get("MACHINE", socket.gethostname())
MOST_SECONDS = 10.0


def work(said: str) -> None:
    """Wait, as a request waits for a database."""
    time.sleep(min(max(float(said), 0.0), MOST_SECONDS))


class Lines(prefork.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline(64)
        if line:  # a health check connects and says nothing
            work(line.decode())
            self.wfile.write(f"{MACHINE}\n".encode())


class Datagrams(prefork.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(f"{MACHINE}\n".encode())


def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    work(environ["PATH_INFO"].lstrip("/") or "0")
    body = f"{MACHINE}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


application = LoadReport(answer)
