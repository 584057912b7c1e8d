"""The standard library's own servers, and one as Werkzeug writes them, behind the mix-in."""

from __future__ import annotations

import contextlib
import urllib.request
import xmlrpc.client
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import TIMEOUT, connect, read_all, send_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

HEAD = """
import http.server
import os
import socketserver
import threading
import wsgiref.simple_server
import xmlrpc.server
from prefork import PreForkingMixIn
from tests.compat.inside import serve_here
from tests.support.app import LOOPBACK, announce, tell

class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"%d %s" % (os.getpid(), self.path.encode())
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
"""


def get(program: Program, path: str = "/page") -> str:
    """Return the body of a page."""
    host, port = program.address()[:2]
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=TIMEOUT) as answer:
        body: bytes = answer.read()
    return body.decode()


@pytest.mark.parametrize("base", ["http.server.HTTPServer", "http.server.ThreadingHTTPServer"])
def test_http_server(start: Callable[..., Program], base: str) -> None:
    """http.server's servers serve pages from the workers, with their own settings (M17, D09, D12)."""
    program = start(
        HEAD
        + f"""
class Server(PreForkingMixIn, {base}):
    workers = 2

serve_here(Server, Page)
"""
    )

    for _ in range(4):
        pid, path = get(program).split()
        assert int(pid) in program.workers()
        assert path == "/page"
    assert program.stop() == 0


def test_wsgi_server(start: Callable[..., Program]) -> None:
    """The make_server() of wsgiref makes a pre-forking server when it is given the class (M03, D12)."""
    program = start(
        HEAD
        + """
class Server(PreForkingMixIn, wsgiref.simple_server.WSGIServer):
    workers = 2

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d %s" % (os.getpid(), environ["PATH_INFO"].encode())]

with wsgiref.simple_server.make_server("127.0.0.1", 0, application, server_class=Server) as server:
    announce(server)
    server.serve_forever()
"""
    )

    pid, path = get(program).split()
    assert int(pid) in program.workers()
    assert path == "/page"
    assert program.stop() == 0


def test_xmlrpc_server(start: Callable[..., Program]) -> None:
    """SimpleXMLRPCServer, which calls TCPServer.__init__ by name, answers calls from the workers (M01)."""
    program = start(
        HEAD
        + """
class Server(PreForkingMixIn, xmlrpc.server.SimpleXMLRPCServer):
    workers = 2

with Server(LOOPBACK, logRequests=False) as server:
    server.register_function(pow)
    server.register_function(os.getpid, "pid")
    announce(server)
    server.serve_forever()
"""
    )
    host, port = program.address()[:2]

    with xmlrpc.client.ServerProxy(f"http://{host}:{port}") as proxy:
        assert proxy.pow(2, 10) == 1024
        assert proxy.pid() in program.workers()
    assert program.stop() == 0


def test_a_server_that_closes_itself(start: Callable[..., Program]) -> None:
    """A base class whose serve_forever() closes the server is bypassed, and closing twice is harmless (P35)."""
    program = start(
        HEAD
        + """
class Closing(http.server.HTTPServer):
    def serve_forever(self, poll_interval=0.5):
        try:
            super().serve_forever(poll_interval)
        finally:
            self.server_close()

class Server(PreForkingMixIn, Closing):
    workers = 2

server = Server(LOOPBACK, Page)
announce(server)
server.serve_forever()
server.server_close()
server.server_close()
"""
    )

    assert int(get(program).split()[0]) in program.workers()
    assert program.stop() == 0


@pytest.mark.parametrize("base", ["socketserver.TCPServer", "http.server.HTTPServer"])
def test_threads_inside_a_worker(start: Callable[..., Program], base: str) -> None:
    """With ThreadingMixIn behind the mix-in, one worker serves several requests at once (D09, D12, P30)."""
    program = start(
        HEAD
        + f"""
barrier = threading.Barrier(4, timeout=5)

class Meeting(socketserver.StreamRequestHandler):
    def handle(self):
        barrier.wait()
        self.wfile.write(b"%d met" % os.getpid())

class Server(PreForkingMixIn, socketserver.ThreadingMixIn, {base}):
    workers = 1

serve_here(Server, Meeting)
"""
    )
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(program.address())) for _ in range(4)]
        answers = {read_all(client) for client in clients}

    (worker,) = program.wait_workers(1)
    assert answers == {f"{worker} met"}
    assert program.stop() == 0


def test_threads_in_flight_are_finished(start: Callable[..., Program]) -> None:
    """When a worker stops, its non-daemon threads in flight finish their requests first (A12)."""
    program = start(
        HEAD
        + """
from tests.support.waiting import wait_until

class Slow(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        tell("at work")
        wait_until(lambda: self.server.stopping, "the worker is asked to leave")
        self.wfile.write(b"finished " + line)

class Server(PreForkingMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
    workers = 1

serve_here(Server, Slow)
"""
    )
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(program.address())) for _ in range(3)]
        for number, client in enumerate(clients):
            send_line(client, str(number))
            program.told("at work", nth=number)
        program.terminate()
        answers = [read_all(client) for client in clients]

    assert answers == ["finished 0", "finished 1", "finished 2"]
    assert program.wait() == 0
