"""The edge of running pools: the client's name in the books, refusals counted by reason, identities that park."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.scoreboard import PoolField
from prefork.workers.states import Rejection
from tests.support.board import board_of
from tests.support.clients import connect, read_all, read_to_the_end, send, send_line
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

REFUSED = {Rejection.AUTHENTICATION: 1, Rejection.TIMEOUT: 1}

NAMED = """
from tests.support.app import *
import prefork, socketserver

class Named(prefork.AuthenticationMixIn, {bases}):
    edge_timeout = 0.6

    def authenticate(self, request, client_address):
        name = b""
        while not name.endswith(b"\\n"):
            byte = request.recv(1)
            if not byte:
                raise ConnectionError("closed")
            name += byte
        if name == b"nobody\\n":
            raise prefork.AuthenticationError("it is nobody")
        return name.decode().strip()

class Handler(prefork.ParkingMixIn, socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if line == b"fail\\n":
            raise ValueError("failed")
        address = self.client_address
        self.wfile.write(f"{{address.identity}} {{address.peer == address}} {{line.decode()}}".encode())

serve(Handler, Named, workers=1, access_log="json")
"""


def facts(program: Program, count: int) -> list[dict[str, Any]]:
    """Return the facts of the access log, once there are this many lines."""
    found = wait_until(
        lambda: seen if len(seen := program.logged(r"INFO \{")) >= count else [],
        lambda: f"{count} lines of the access log",
    )
    return [json.loads(line.partition(" INFO ")[2]) for line in found]


@pytest.mark.parametrize(
    "bases",
    ["prefork.PreForkingTCPServer", "socketserver.ThreadingMixIn, prefork.PreForkingTCPServer"],
    ids=["plain", "threads"],
)
def test_books_know_the_client(start: Callable[..., Program], bases: str) -> None:
    """Good, failed, refused and silent clients each count once, by outcome and reason, with their names in the log."""
    program = start(NAMED.format(bases=bases))
    address = program.address()
    with connect(address) as client, board_of(program.pid) as board:
        send_line(client, "alice")
        for word in ("one", "two"):  # the connection is parked in between, and the name comes back
            send_line(client, word)
            assert client.recv(100).decode() == f"alice True {word}\n"
            wait_until(lambda: board.pool(PoolField.PARKED) == 1, lambda: "it is parked")
    for said in ("bob\nfail", "nobody"):
        with send(address, said) as client:
            assert read_to_the_end(client) == ""
    with connect(address) as silent:
        assert read_all(silent) == ""
    with board_of(program.pid) as board:
        wait_until(
            lambda: +Counter(board.snapshot().slots[0].rejections) == REFUSED,
            lambda: f"rejections are {board.snapshot().slots[0].rejections}",
        )

    def found() -> Counter[tuple[str, str]]:
        return Counter((line["outcome"], line.get("identity")) for line in facts(program, 5))

    wait_until(
        lambda: (found()[("error", "bob")], found()[("rejected", None)]) == (1, 2),
        lambda: f"a line for each client: {found()}",
    )
    assert found()[("ok", "alice")] in (2, 3)  # a last one is the end of the connection
    (failed,) = program.wait_logged("request failed")
    assert "identity=bob" in failed
    assert len(program.wait_logged("refused a client reason=")) in (1, 2)  # at most one a second
    assert len(program.logged("Traceback")) == 1  # that of the handler


def test_stacks_name_the_client(start: Callable[..., Program]) -> None:
    """The stacks of a slow request, and of one that is ended at its timeout, say whose request it is, escaped."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Server(prefork.AuthenticationMixIn, prefork.PreForkingTCPServer):\n"
        "    slow_request = 0.2\n"
        "    request_timeout = 1.5\n"
        "    proxy_from = '127.0.0.1'\n"
        "    def authenticate(self, request, client_address):\n"
        "        return 'al\\nice client=x'\n"
        "serve(TellingRun, Server, workers=1)\n"
    )
    header = "PROXY TCP4 192.0.2.7 192.0.2.1 4711 1\r"
    with send(program.address(), header) as client:
        send_line(client, "time.sleep(60)")
        program.wait_logged("has a slow request")
        (line,) = program.wait_logged("Request of ")
        assert re.search(
            r'Request of client=192\.0\.2\.7:4711 peer=127\.0\.0\.1:\d+ identity="al\\nice client=x"$',
            line,
        )
        assert read_to_the_end(client) == ""
    program.wait_logged("Request of ", times=2)
    program.wait_logged("request_timeout")


def test_guesses_at_several_workers(start: Callable[..., Program]) -> None:
    """The bound on failures holds for the pool: a client wins nothing by guessing at another worker."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Server(prefork.AuthenticationMixIn, prefork.PreForkingTCPServer):\n"
        "    max_auth_failures = 3\n"
        "    def authenticate(self, request, client_address):\n"
        "        request.sendall(f'{os.getpid()}\\n'.encode())\n"
        "        raise prefork.AuthenticationError('wrong')\n"
        "serve(Echo, Server, workers=2)\n"
    )
    address = program.address()

    def guess() -> str:
        with connect(address) as client:
            return read_to_the_end(client).strip()

    stopped = int(guess())
    os.kill(stopped, signal.SIGSTOP)
    try:
        others = [guess() for _ in range(3)]
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert str(stopped) not in others
    assert (others[0] == others[1] != "", others[2]) == (True, "")
    with board_of(program.pid) as board:
        wait_until(
            lambda: sum(one.rejections[Rejection.THROTTLED] for one in board.snapshot().slots) == 1,
            lambda: "the last guess was refused without being asked",
        )


def test_parked_clients_are_held_to_the_rules_of_a_reload(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A client that a reload denies is refused when it speaks again, although it was parked before the reload."""
    denied = tmp_path / "denied"
    denied.write_text("192.0.2.1")
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Handler(prefork.ParkingMixIn, prefork.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.wfile.write(self.rfile.readline())\n"
        "class Server(prefork.PreForkingTCPServer):\n"
        f"    deny = open({str(denied)!r}).read()\n"
        "serve(Handler, Server, workers=1)\n"
    )
    with connect(program.address()) as client, board_of(program.pid) as board:
        send_line(client, "hello")
        assert client.recv(100) == b"hello\n"
        wait_until(lambda: board.pool(PoolField.PARKED) == 1, lambda: "the connection is parked")
        denied.write_text("127.0.0.1")
        program.popen.send_signal(signal.SIGHUP)
        program.wait_logged("INFO master reloaded")
        send_line(client, "hello again")
        assert read_to_the_end(client) == ""
    program.wait_logged("refused a client reason=address client=127.0.0.1:")
