"""WSGI applications behind a pool: kept connections hold no worker, and failures cost their request."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import textwrap
from http.client import HTTPConnection
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from prefork.workers.answers import COUNTS, place_of
from prefork.workers.scoreboard import SlotField
from prefork.workers.states import WorkerState
from tests.support import board
from tests.support.clients import read_to_the_end
from tests.support.http_exchange import answers
from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.clients import Address
    from tests.support.server import Program

APPLICATION = """
    from tests.support.app import *
    from wsgiref.validate import validator
    from prefork.wsgi import UnixWSGIServer, WSGIServer

    def application(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/fail":
            raise LookupError("no such row")
        if path == "/exit":
            sys.exit("wanted")
        while path == "/long":
            pass
        body = environ["wsgi.input"].read(1 << 20) if path == "/body" else path.encode()
        environ["wsgi.errors"].write(f"served {path}\\n")
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker", str(os.getpid()))])
        return [body]

    class Server(BASE):
        workers = 2
        linger = 0
        when_ready = announce

    log_to_stderr()
    with Server(ADDRESS, validator(application)) as server:
        server.serve_forever()
"""


def program_on(
    address: object = ("127.0.0.1", 0), base: str = "WSGIServer", settings: str = ""
) -> str:
    """Return a program that serves an application. settings: a line of the server class."""
    source = APPLICATION.replace("BASE", base).replace("ADDRESS", repr(address))
    return source.replace("linger = 0", f"linger = 0; {settings}")


def get(client: HTTPConnection, path: str) -> tuple[int, bytes, str | None]:
    """Return status, body and worker of one answer on a kept connection."""
    client.request("GET", path)
    answer = client.getresponse()
    return answer.status, answer.read(), answer.getheader("X-Worker")


def test_kept_connections_hold_no_worker(start: Callable[..., Program]) -> None:
    """Twenty connections that stay open are served by two workers, over a reload, and without a failure."""
    program = start(program_on())
    host, port = program.address()
    with contextlib.ExitStack() as stack:
        clients = [HTTPConnection(host, port, timeout=CEILING) for _ in range(20)]
        for client in clients:
            stack.callback(client.close)
        workers: set[str | None] = set()
        for turn in range(3):
            if turn == 2:
                program.signal(signal.SIGHUP)
                program.wait_logged("reloaded")
            for number, client in enumerate(clients):
                status, body, worker = get(client, f"/{turn}/{number}")
                assert (status, body) == (200, f"/{turn}/{number}".encode())
                workers.add(worker)
    assert 2 <= len(workers) <= 4
    assert program.stop() == 0


def test_silent_clients_hold_no_worker(start: Callable[..., Program]) -> None:
    """Clients that connect and say nothing, more than there are workers, keep nobody from being served."""
    program = start(program_on())
    address = program.address()
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(socket.create_connection(address, CEILING))
        client = HTTPConnection(*address, timeout=CEILING)
        stack.callback(client.close)
        assert [get(client, "/a")[:2] for _ in range(4)] == [(200, b"/a")] * 4


def test_failures_cost_their_request(start: Callable[..., Program]) -> None:
    """An application that raises is answered by 500 and logged; the next requests are served."""
    program = start(program_on())
    address = program.address()
    for path, status in (("/fail", 500), ("/body", 200), ("/fail", 500)):
        with contextlib.closing(HTTPConnection(*address, timeout=CEILING)) as client:
            assert get(client, path)[0] == status
    program.wait_logged("LookupError: no such row", times=2)
    program.wait_logged(r"application says text=.?served /body", times=1)
    with board.board_of(program.pid) as scores:
        wait_until(lambda: scores.total(SlotField.ERRORS) == 2, "two requests that failed")


def test_exit_of_an_application_is_answered(start: Callable[..., Program]) -> None:
    """``sys.exit()`` in a request ends the worker, after its client has got a 500 that is logged."""
    program = start(program_on(settings="workers, access_log = 1, 'common'"))
    address = program.address()
    first = program.worker()
    for path, status in (("/exit", 500), ("/a", 200)):
        with contextlib.closing(HTTPConnection(*address, timeout=CEILING)) as client:
            found, _, worker = get(client, path)
            assert found == status
    assert worker != str(first)
    program.wait_logged(r'"GET /exit HTTP/1\.1" 500 ')


def test_each_answer_is_logged_and_counted(start: Callable[..., Program]) -> None:
    """Answers are counted by method and class of status, also those of the server itself, and each has its line."""
    program = start(program_on(settings="access_log, workers, limit_body = 'timed', 1, 100"))
    address = program.address()
    asked = [
        # two on one connection
        (
            b"GET /a?b HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
            'GET /a?b HTTP/1.1" 200 2',
        ),
        (b"", 'GET /b HTTP/1.1" 200 2'),
        (b"HEAD /a HTTP/1.0\r\n\r\n", 'HEAD /a HTTP/1.0" 200 0'),
        (b"GET /fail HTTP/1.1\r\nHost: a\r\n\r\n", 'GET /fail HTTP/1.1" 500 26'),
        (b"BAD\r\n\r\n", 'BAD" 501 20'),
        (b"PUT /body HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n", "413"),
    ]
    for sent in filter(None, (sent for sent, _ in asked)):
        with socket.create_connection(address, CEILING) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            read_to_the_end(client)
    lines = wait_until(
        lambda: found if len(found := program.logged(r" \+0000\] ")) == len(asked) else [],
        "the lines of the access log",
    )
    for line, (_, expected) in zip(lines, asked, strict=True):
        assert re.search(r" INFO 127\.0\.0\.1 - - \[", line)
        assert expected in line
        assert re.search(r' "-" "(-|me)" 0\.\d{6} \d\.\d{6}$', line)
    with board.board_of(program.pid) as scores:

        def counts() -> dict[int, int]:
            totals = {place: scores.total(SlotField.ANSWERS + place) for place in range(COUNTS)}
            return {place: count for place, count in totals.items() if count}

        expected = {
            place_of("GET", "2"): 2,
            place_of("GET", "5"): 1,
            place_of("HEAD", "2"): 1,
            place_of("PUT", "4"): 1,
            place_of("OTHER", "5"): 1,
        }
        wait_until(lambda: counts() == expected, lambda: f"{expected} counted: {counts()}")
        wait_until(lambda: scores.total(SlotField.REJECTED) == 2, "two rejected")


def test_client_hears_of_a_stop(start: Callable[..., Program]) -> None:
    """While the pool drains, an answer says that its connection ends, so that the client asks elsewhere next."""
    program = start(program_on(settings="drain_delay = 30"))
    with contextlib.closing(HTTPConnection(*program.address(), timeout=CEILING)) as client:
        client.request("GET", "/a")
        before = client.getresponse()
        assert (before.getheader("Connection"), before.read()) == (None, b"/a")
        program.terminate()
        program.wait_logged("phase changed old=serving")
        client.request("GET", "/b")
        after = client.getresponse()
        assert (after.getheader("Connection"), after.read()) == ("close", b"/b")
    program.signal(signal.SIGQUIT)
    program.wait()


def test_request_that_is_ended_is_answered(start: Callable[..., Program]) -> None:
    """A request that soft_timeout ends gets 504, and what waited too long meanwhile gets 503."""
    program = start(program_on(settings="soft_timeout, max_queue_wait, workers = 1.0, 0.4, 1"))
    address = program.address()
    with contextlib.ExitStack() as stack:
        clients = [HTTPConnection(*address, timeout=CEILING) for _ in range(2)]
        for client in clients:
            stack.callback(client.close)
        clients[0].request("GET", "/long")
        with board.board_of(program.pid) as scores:
            wait_until(lambda: scores.state(0) is WorkerState.BUSY, "the worker is busy")
        clients[1].request("GET", "/other")
        answers = [client.getresponse() for client in clients]
        assert [answer.status for answer in answers] == [504, 503]
        assert answers[1].getheader("Retry-After") == "1"
        assert [answer.getheader("Connection") for answer in answers] == ["close", "close"]
    with contextlib.closing(HTTPConnection(*address, timeout=CEILING)) as client:
        assert get(client, "/a")[0] == 200


def test_application_that_waits_for_a_body_is_ended(start: Callable[..., Program]) -> None:
    """soft_timeout holds while an application waits for the body of a slow client; the client gets 504."""
    program = start(program_on(settings="soft_timeout, workers = 0.6, 1"))
    with socket.create_connection(program.address(), CEILING) as client:
        client.sendall(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx")
        assert client.recv(100).startswith(b"HTTP/1.1 504 ")
    with contextlib.closing(HTTPConnection(*program.address(), timeout=CEILING)) as other:
        assert get(other, "/a")[0] == 200


@pytest.mark.parametrize("base", ["WSGIServer", "UnixWSGIServer"])
def test_pipelined_requests_are_answered_in_order(
    start: Callable[..., Program], tmp_path: Path, base: str
) -> None:
    """A hundred requests that are sent at once, with bodies, get their hundred answers in their order."""
    path = str(tmp_path / "socket")
    unix = base != "WSGIServer"
    program = start(program_on(path if unix else ("127.0.0.1", 0), base))
    address: Address = program.address()
    request = (
        b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    )
    bodies = [b"%d " % number * 50 for number in range(100)]
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as client:
        client.settimeout(CEILING)
        client.connect(path if unix else address)
        client.sendall(b"".join(request % (len(body), body) for body in bodies))
        client.shutdown(socket.SHUT_WR)
        received = bytearray()
        while piece := client.recv(65536):
            received += piece
    assert answers(bytes(received)) == [(200, body) for body in bodies]
    assert program.stop() == 0
    assert not os.path.exists(path)


def test_stop_closes_idle_connections(start: Callable[..., Program]) -> None:
    """A stop does not wait for clients whose connections are idle."""
    program = start(program_on())
    clients = [HTTPConnection(*program.address(), timeout=CEILING) for _ in range(5)]
    try:
        assert [get(client, "/a")[0] for client in clients] == [200] * 5
        assert program.stop(ceiling=10) == 0
        wait_until(lambda: clients[0].sock.recv(1) == b"", "the end of the connection")
    finally:
        for client in clients:
            client.close()


SERVED = """
    import prefork

    class Limited(Server):
        def __init__(self, address):
            super().__init__(address, application)

    if __name__ == "__main__":
        log_to_stderr()
        with Limited(ADDRESS) as server:
            given = prefork.Settings(workers=1, limit_body=3, edge_timeout="300ms")
            prefork.serve(server, settings=given)
"""


@pytest.mark.parametrize("way", ["serve", "command"])
def test_limits_reach_a_server_of_the_program(
    start: Callable[..., Program], tmp_path: Path, way: str
) -> None:
    """A limit of ``serve(settings=…)`` or of a flag counts for a server class of the program."""
    source = program_on().partition("    log_to_stderr()")[0]
    source += SERVED.replace("ADDRESS", repr(("127.0.0.1", 0)))
    (tmp_path / "app.py").write_text(textwrap.dedent(source))
    flags = ["--limit-body", "3", "--edge-timeout", "300ms", "-w", "1", "-b", "127.0.0.1:0"]
    run = ["-m", "prefork", "run", "app.py:Limited", *flags]
    program = start(None, arguments=["app.py"] if way == "serve" else run)
    address = program.address()
    post = b"POST /body HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    asked = ((post % (3, b"abc"), 200), (post % (4, b"abcd"), 413), (b"GET / HTTP/1.1\r\n", 408))
    for sent, status in asked:
        with socket.create_connection(address, CEILING) as client:
            client.sendall(sent)
            begun = monotonic()
            assert read_to_the_end(client).startswith(f"HTTP/1.1 {status} ")
            assert monotonic() - begun < 4  # the default for a head is 5 s
