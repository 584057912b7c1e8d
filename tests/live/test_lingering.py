"""Lingering: a client that asks again at once is served by the same handler, and keeps nobody else waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.live.test_parking import answer_on, ask_on, clients_of, is_over
from tests.support import board
from tests.support.clients import connect
from tests.support.processes import cpu_seconds, live_children_of, title_of
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

LONG = 1.0
"""The longest linger: a test in which others had to wait for it each time would take far longer than SOON."""

SOON = 8.0

TALKING = """
    from tests.support.app import *
    import subprocess
    import prefork

    handlers = 0
    started = []

    class Talking(prefork.ParkingMixIn, prefork.StreamRequestHandler):
        # Answers a line with how many handlers the worker has made, the number of the request, and the line.

        mark = "new"

        def setup(self):
            global handlers
            handlers += 1
            super().setup()

        def next_line(self):
            return READ

        def handle(self):
            line = self.next_line()
            number = int(self.state or b"0") + 1
            self.state = b"%d" % number
            self.wfile.write(b"%d %d %s %s" % (handlers, number, self.mark.encode(), line or b"end\\n"))
            self.mark = "used"
            if line == b"leave\\n":
                # It ends with this worker.
                started.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[self.request.fileno()]))
                os.close(self.request.detach())

    serve(Talking, prefork.PreForkingTCPServer, workers=1, **SETTINGS)
"""


def talking(read: str = "self.rfile.readline()", **settings: object) -> str:
    """Return a program whose worker lingers. read: how its handler reads a line."""
    source = TALKING.replace("READ", read)
    return source.replace("SETTINGS", repr({"linger": LONG, "park_new": True} | settings))


@pytest.mark.parametrize("read", ["self.rfile.readline()", "self.request.recv(100)"])
@pytest.mark.parametrize("settings", [{}, {"access_log": "text"}])
def test_client_that_asks_again_at_once_keeps_its_handler(
    start: Callable[..., Program], read: str, settings: dict[str, object]
) -> None:
    """A client that asks 300 times in a row meets few handlers, each as new but for its state, and each request counts."""
    program = start(talking(read, **settings))
    with connect(program.address()) as client:
        answers = [ask_on(client, f"{n}") for n in range(300)]
    assert [number for _, number, _ in answers] == [*range(1, 301)]
    assert [rest for _, _, rest in answers] == [f"new {n}" for n in range(300)]
    assert answers[-1][0] <= 100
    with board.board_of(program.pid) as scores:
        counted = lambda: sum(one.ok for one in scores.snapshot().slots)  # noqa: E731
        wait_until(lambda: counted() == 300, lambda: f"300 requests are counted, not {counted()}")


def test_others_are_served_while_a_worker_lingers(start: Callable[..., Program]) -> None:
    """While the one worker lingers for a client, another one is served at once: a new one, and one that was parked."""
    program = start(talking())
    with clients_of(program.address(), 2) as (chatty, other):
        watch = Stopwatch()
        for number in range(1, 20):
            assert ask_on(chatty)[1] == 2 * number - 1
            assert ask_on(chatty)[1] == 2 * number
            assert ask_on(other)[1] == number
            with connect(program.address()) as new:
                assert ask_on(new)[1] == 1
        assert watch.seconds < SOON


def test_requests_at_once_in_a_conversation(start: Callable[..., Program]) -> None:
    """A client that has asked one by one may send several requests at once, and gets each answer in its turn."""
    program = start(talking())
    with connect(program.address()) as client:
        for number in (1, 2, 3):
            assert ask_on(client)[1] == number
        client.sendall(b"a\nb\nc\nd\n")
        assert [answer_on(client)[1:] for _ in range(4)] == [
            (number, f"new {word}") for number, word in enumerate("abcd", 4)
        ]
        assert ask_on(client, "e")[1:] == (8, "new e")


@pytest.mark.parametrize("requests", [1, 5])
def test_client_that_leaves_ends_the_wait(start: Callable[..., Program], requests: int) -> None:
    """A client that closes while the worker lingers for it is noticed at once, and no handler is called for that."""
    program = start(talking())
    watch = Stopwatch()
    for _ in range(20):
        with connect(program.address()) as client:
            for _ in range(requests):
                ask_on(client)
    with board.board_of(program.pid) as scores:
        counted = lambda: sum(one.ok for one in scores.snapshot().slots)  # noqa: E731
        wait_until(lambda: counted() == 20 * requests, lambda: f"{20 * requests}, not {counted()}")
    assert watch.seconds < SOON
    with connect(program.address()) as client:
        assert ask_on(client)[1] == 1
        client.shutdown(1)
        assert is_over(client)


def test_connection_that_a_handler_leaves_to_a_program(start: Callable[..., Program]) -> None:
    """A handler may close a connection that another process has open; the worker then ignores what its client sends."""
    program = start(talking())
    with connect(program.address()) as client:
        for number in (1, 2, 3):
            assert ask_on(client)[1] == number
        (worker,) = (pid for pid in live_children_of(program.pid) if "worker" in title_of(pid))
        assert ask_on(client, "leave")[1] == 4
        with connect(program.address()) as other:
            before = cpu_seconds(worker)
            for number in range(1, 40):
                client.sendall(b"hello\n")
                assert ask_on(other)[1] == number
        assert cpu_seconds(worker) - before < 0.5
        assert worker in live_children_of(program.pid)
