"""Programs that keep their connections open, as their users start them, against handlers that park."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import xmlrpc.client
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import PoolField
from tests.live.test_examples import EXAMPLES, serving
from tests.live.test_parking import ask_on, clients_of, program_with, wait_parked
from tests.support import board
from tests.support.browser import Browser, why_no_browser
from tests.support.clients import connect
from tests.support.engines import needs
from tests.support.waiting import CEILING, Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

pytestmark = pytest.mark.once  # the interpreter of the server makes no difference to its clients

FILES = """
    from tests.support.app import *
    import http.server, prefork

    class Pages(prefork.ParkingMixIn, http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            images = "".join(f'<img src="/{n}.svg">' for n in range(12))
            text = f"<link rel=icon href=data:,><p id=said>{os.getpid()}{images}" if self.path == "/" else (
                '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if self.path == "/" else "image/svg+xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_arguments):
            pass

    class Server(prefork.PreForkingMixIn, http.server.HTTPServer):
        pass

    serve(Pages, Server, workers=2, park_new=True)
"""


def run(*command: str | int, stdin: str | None = None) -> str:
    """Run a client; return what it has printed."""
    done = subprocess.run(
        [needs(str(command[0])), *map(str, command[1:])],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=CEILING * 3,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_fifty_clients_of_redis_benchmark(tmp_path: Path) -> None:
    """redis-benchmark keeps 50 connections on four workers, and each of its requests is answered."""
    needs("redis-benchmark")
    with serving(tmp_path, f"{EXAMPLES}/resp/server.py", "--port", "0") as example:
        asked = ("-p", example.port, "-c", 50, "-n", 500, "-t", "ping,set,get", "--csv")
        said = run("redis-benchmark", *asked)
        tests = [line.split(",")[0].strip('"') for line in said.splitlines()[1:]]
        assert tests[-3:] == ["PING_MBULK", "SET", "GET"]
        assert run("redis-cli", "-p", example.port, "get", "key:__rand_int__").startswith("VXK")


def test_clients_of_http(start: Callable[..., Program]) -> None:
    """curl, ab and wrk keep their connections to http.server; ab and wrk have more of them than there are workers."""
    program = start(FILES)
    host, port = program.address()
    url = f"http://{host}:{port}/"
    for client in ("curl", "ab", "wrk"):
        needs(client)
    with board.board_of(program.pid) as scores:
        said = run("curl", "-sv", *[f"{url}{n}" for n in range(5)], "-o", "/dev/null")
        assert (
            len(re.findall("Re-?using existing connection", said)) == 4
        )  # with a hyphen before 8.0
        said = run("ab", "-k", "-c", 20, "-n", 1000, "-q", url)
        assert re.search(r"Failed requests: +0$", said, re.MULTILINE)
        assert re.search(r"Keep-Alive requests: +1000$", said, re.MULTILINE)
        said = run("wrk", "-c", 20, "-t", 1, "-d", 1, url)
        assert "Socket errors" not in said
        assert "Non-2xx" not in said
        assert scores.pool(PoolField.RESUMED_TOTAL) > 0
        assert scores.pool(PoolField.PARKED_LOST) == 0


@pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser())
def test_browser_keeps_its_connections(start: Callable[..., Program]) -> None:
    """Chromium gets a page with twelve images over connections that it keeps, more than there are workers."""
    program = start(FILES)
    host, port = program.address()
    with Browser() as browser:
        browser.open(f"http://{host}:{port}/")
        whole = "return [...document.images].every((one) => one.complete && one.naturalWidth)"
        wait_until(lambda: browser.run(whole), "all images are there", CEILING)
        with board.board_of(program.pid) as scores:
            wait_until(lambda: scores.pool(PoolField.PARKED) > 2, "idle connections of the browser")
        assert browser.complaints() == []


def test_clients_of_lines(start: Callable[..., Program]) -> None:
    """Whois and telnet are served beside a monitor that keeps its line open, with one worker."""
    program = start(program_with(workers=1, park_new=True))
    host, port = program.address()
    for client in ("whois", "inetutils-telnet"):
        needs(client)
    with connect((host, port)) as monitor:
        for number in range(1, 4):
            assert ask_on(monitor, "status")[1] == number
            # The handler keeps the connection, so whois waits for the end that its "bye" asks for.
            said = run("inetutils-telnet", host, port, stdin="typed\nbye\n")
            assert " 1 typed" in said or "Connected" in said
        telnet = subprocess.Popen(
            [needs("inetutils-telnet"), host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert telnet.stdin is not None
        assert telnet.stdout is not None
        with telnet:
            # Connected, and silent: parked until its user types something.
            assert ask_on(monitor, "status")[1] == 4
            telnet.stdin.write("hello\n")
            telnet.stdin.flush()
            lines = iter(telnet.stdout.readline, "")
            assert any(" 1 hello" in line for line in lines)
            assert ask_on(monitor, "status")[1] == 5
            telnet.stdin.write("bye\n")
            telnet.stdin.close()
            assert "closed" in telnet.stdout.read()
        assert run("whois", "-h", host, "-p", port, "bye") is not None
        assert ask_on(monitor, "status")[1] == 6


def test_xmlrpc_client_with_a_kept_transport(start: Callable[..., Program]) -> None:
    """Ten clients of xmlrpc.client keep their transports on two workers."""
    program = start("""
        from tests.support.app import *
        import xmlrpc.server, prefork

        class Requests(prefork.ParkingMixIn, xmlrpc.server.SimpleXMLRPCRequestHandler):
            protocol_version = "HTTP/1.1"

        class Server(prefork.PreForkingMixIn, xmlrpc.server.SimpleXMLRPCServer):
            def __init__(self, address, handler):
                super().__init__(address, handler, logRequests=False)
                self.register_function(pow)

        serve(Requests, Server, workers=2)
    """)
    host, port = program.address()
    proxies = [xmlrpc.client.ServerProxy(f"http://{host}:{port}/RPC2") for _ in range(10)]
    for power in (2, 3, 4):
        assert [proxy.pow(number, power) for number, proxy in enumerate(proxies)] == [
            number**power for number in range(10)
        ]
    with board.board_of(program.pid) as scores:
        wait_parked(scores, 10)
    for proxy in proxies:
        proxy("close")()


def test_slow_clients_before_their_first_word(start: Callable[..., Program]) -> None:
    """Of 500 connections that never say anything other clients notice nothing, with two workers and park_new."""
    program = start(program_with(park_new=True))
    address = program.address()
    with board.board_of(program.pid) as scores, clients_of(address, 500):
        wait_parked(scores, 500)
        watch = Stopwatch()
        with connect(address) as client:
            for number in range(1, 101):
                assert ask_on(client)[1] == number
        assert watch.seconds < 10.0


def test_new_clients_and_old_ones_share_the_workers(start: Callable[..., Program]) -> None:
    """While twelve kept connections ask without a pause, new clients are served all the same, and the other way round."""
    program = start(program_with(linger=0.001))
    address = program.address()
    stop = threading.Event()
    served = [0] * 12

    def ask_on_and_on(at: int, client: socket.socket) -> None:
        while not stop.is_set():
            ask_on(client)
            served[at] += 1

    with clients_of(address, 12) as clients:
        threads = [threading.Thread(target=ask_on_and_on, args=pair) for pair in enumerate(clients)]
        for thread in threads:
            thread.start()
        try:
            watch = Stopwatch()
            for _ in range(50):
                with connect(address) as new:
                    assert ask_on(new)[1] == 1
            assert watch.seconds < 20.0
            wait_until(lambda: min(served) >= 20, lambda: f"each kept one is served: {served}")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
