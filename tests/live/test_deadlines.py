"""Deadlines: a request that takes too long ends with its worker, after its stacks were logged."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.inspect.find import find_pool
from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.states import ExitKind
from tests.support.board import board_of
from tests.support.clients import ask, connect, read_to_the_end, send, send_line
from tests.support.load import Load
from tests.support.server import serving
from tests.support.waiting import Stopwatch, let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

TIMEOUT = 0.5
"""Seconds of request_timeout; after it come the dump and the master's tick."""

LATE = 4.0
"""Seconds for the dump and the tick on a busy machine; what hangs would hang without end."""

TRIES = 3
"""How many requests may hang until one of them shows where."""

HANGS = {
    "sleeps": ("time.sleep(1000)", "in handle"),
    "spins": ("any(iter(int, 1))", "in handle"),
    # One call of C that keeps the interpreter lock and looks at no signal.
    "holds the lock in C": ("sum(range(10**13))", "in handle"),
    "is deaf": (
        "[signal.pthread_sigmask(0, signal.valid_signals()), time.sleep(1000)]",
        "no answer",
    ),
    "ignores TERM": ("[signal.signal(15, signal.SIG_IGN), time.sleep(1000)]", "in handle"),
}


@pytest.mark.parametrize("how", HANGS)
def test_hung_request_ends_with_its_worker(start: Callable[..., Program], how: str) -> None:
    """Whatever a handler hangs in, its client is hung up on in time, its stacks and the cause are logged, others go on."""
    line, seen = HANGS[how]
    program = start(serving("Run", workers=2, request_timeout=TIMEOUT))
    address = program.address()
    hung = 0
    # On a busy machine a worker may get no CPU within the 0.25 s that it has for its dump.
    while seen not in program.log and hung < TRIES:
        with connect(address) as client:
            took = Stopwatch()
            send_line(client, line)
            assert read_to_the_end(client) == ""
            seconds = took.seconds
        assert TIMEOUT <= seconds < TIMEOUT + LATE
        hung += 1
        exited = program.wait_logged("exited cause=request_timeout", times=hung)
        assert re.search(r"request_age=[0-4]\.", exited[-1])
        assert ask(address, "1 + 1").endswith(" 2")
    assert seen in program.log[program.log.index(" stacks ") :]
    with board_of(program.pid) as board:

        def counts() -> tuple[int, ...]:
            snapshot = board.snapshot()
            fields = (SlotField.TIMEOUTS, SlotField.ABORTED)
            totals = [sum(one[field] for one in snapshot.slots) for field in fields]
            return (snapshot.exits[ExitKind.REQUEST_TIMEOUT], *totals)

        wait_until(lambda: counts() == (hung, hung, 0), lambda: f"{hung} timeouts: {counts()}")
    sys.stdout.write(f"request_timeout {TIMEOUT} s: hung up on after {seconds:.2f} s\n")


TAKING = {
    "blocks in get_request()": """
class Server(prefork.PreForkingTCPServer):
    def get_request(self):
        sock, address = super().get_request()
        if sock.recv(1, socket.MSG_PEEK) == b"H":
            HANG
        return sock, address
""",
    "in front of threads": """
class Server(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):
    def get_request(self):
        sock, address = super().get_request()
        if sock.recv(1, socket.MSG_PEEK) == b"H":
            HANG
        return sock, address
""",
    "in the accept() of a wrapped socket": """
class Wrapped(socket.socket):
    def accept(self):
        sock, address = super().accept()
        if sock.recv(1, socket.MSG_PEEK) == b"H":
            HANG
        return sock, address

class Server(prefork.PreForkingTCPServer):
    def server_activate(self):
        super().server_activate()
        self.socket = Wrapped(fileno=self.socket.detach())
""",
}
"""Server classes that hang for a client whose first letter is H, before the request is theirs."""


@pytest.mark.parametrize("access_log", ["off", "text"])
@pytest.mark.parametrize("how", TAKING)
def test_take_that_hangs_ends_with_its_worker(
    start: Callable[..., Program], how: str, access_log: str
) -> None:
    """A worker that hangs in get_request() is killed at request_timeout, and counted as a request that timed out."""
    server = TAKING[how].replace("HANG", "time.sleep(1000)")
    program = start(
        f"from tests.support.app import *\nimport prefork, socketserver\n{server}\n"
        f"serve(Run, Server, workers=1, request_timeout={TIMEOUT}, access_log={access_log!r})\n"
    )
    address = program.address()
    for _ in range(3):
        assert ask(address, "1 + 1").endswith(" 2")
    with connect(address) as client:
        took = Stopwatch()
        send_line(client, "H")
        assert read_to_the_end(client) == ""
        assert TIMEOUT <= took.seconds < TIMEOUT + LATE
    assert ask(address, "1 + 1").endswith(" 2")
    program.wait_logged("exited cause=request_timeout")
    assert "in get_request" in program.log or "in accept" in program.log
    with board_of(program.pid) as board:
        wait_until(
            lambda: sum(one[SlotField.TIMEOUTS] for one in board.snapshot().slots) == 1,
            "the timeout is counted",
        )


def test_time_in_get_request_counts_as_part_of_the_request(start: Callable[..., Program]) -> None:
    """The deadline counts from the beginning of get_request(), so that the two together take no longer."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            def get_request(self):
                taken = super().get_request()
                time.sleep(1.5)
                return taken

        serve(Run, Server, workers=1, request_timeout=2.2)
        """
    )
    address = program.address()
    assert ask(address, "1 + 1").endswith(" 2")
    with connect(address) as client:
        took = Stopwatch()
        send_line(client, "time.sleep(1000)")
        assert read_to_the_end(client) == ""
        assert 2.2 <= took.seconds < 1.5 + 2.2


def test_stopped_worker_is_replaced_at_its_deadline(start: Callable[..., Program]) -> None:
    """A worker that is stopped while it serves is killed at request_timeout; the others never notice."""
    program = start(serving("Run", workers=2, request_timeout=TIMEOUT))
    address = program.address()
    with connect(address) as client:
        send_line(client, "[tell('busy', os.getpid()), time.sleep(1000)]")
        held = program.told("busy")
        os.kill(held, signal.SIGSTOP)
        with Load(address, clients=2, text="1 #") as load:
            assert read_to_the_end(client) == ""
    assert load.verdicts["late"] == 0
    program.wait_logged(f"pid={held} exited cause=request_timeout")


def test_extended_deadline_is_kept(start: Callable[..., Program]) -> None:
    """A handler that has extended its deadline may take longer, by that much and for that request only."""
    program = start(serving("Run", workers=1, request_timeout=TIMEOUT))
    address = program.address()
    long = "[self.server.worker.extend_deadline(10), time.sleep(1.2), 7][-1]"
    assert ask(address, long).endswith(" 7")
    with connect(address) as client:
        took = Stopwatch()
        send_line(client, "time.sleep(60)")
        assert read_to_the_end(client) == ""
        assert took.seconds < TIMEOUT + LATE


def test_nobody_is_killed_for_time_in_which_the_master_did_not_run(
    start: Callable[..., Program],
) -> None:
    """After a stop of all processes for longer than request_timeout the requests in hand are finished."""
    program = start(serving("TellingRun", workers=1, request_timeout=1.0))
    address = program.address()
    with connect(address) as client:
        send_line(client, "time.sleep(0.3) or 7")
        held = program.told("busy")
        for pid in (program.pid, held):
            os.kill(pid, signal.SIGSTOP)
        let_pass(2.5)
        os.kill(program.pid, signal.SIGCONT)
        stays(lambda: held in program.workers(), "killed for lost time", span=0.5, poll=0.02)
        os.kill(held, signal.SIGCONT)
        assert read_to_the_end(client).endswith(" 7")
    assert program.logged("did not run for a while")
    assert program.logged("request_timeout") == []


def test_slow_request_is_reported_once_and_goes_on(start: Callable[..., Program]) -> None:
    """After slow_request the stacks are logged, once; the request is finished and counted as slow."""
    program = start(serving("Run", workers=1, slow_request=0.2))
    address = program.address()
    assert ask(address, "time.sleep(1.0) or 7").endswith(" 7")
    program.wait_logged("in handle")
    assert len(program.logged("has a slow request")) == 1
    assert len(program.logged(" stacks ")) == 1
    with board_of(program.pid) as board:
        wait_until(lambda: board.pool(PoolField.SLOW_REQUESTS) == 1, "one is counted")
    with send(address, "self.rfile.readline() and 8") as client:
        program.wait_logged("has a slow request", times=2)
        send_line(client, "go on")
        assert read_to_the_end(client).endswith(" 8")


def test_slow_request_gets_a_dump_of_its_own(start: Callable[..., Program]) -> None:
    """A dump that was asked for just before, of an idle worker, is not taken for the slow request's."""
    program = start(serving("Run", workers=1, slow_request=0.1))
    address = program.address()
    with find_pool(str(program.pid)) as pool:
        program.signal(signal.SIGUSR1)
        wait_until(lambda: pool.reports().get(0), "the stacks of the idle worker")
    with send(address, "self.rfile.readline() and 7") as client:
        program.wait_logged("has a slow request")
        program.wait_logged("in handle")
        send_line(client, "go on")
        assert read_to_the_end(client).endswith(" 7")


def test_master_that_is_slow_insists_before_it_kills(start: Callable[..., Program]) -> None:
    """However seldom the master looks, a worker in a call of C has its stacks in the log before it is killed."""
    program = start("""
        from tests.support.app import *

        def service_actions(self):
            time.sleep(0.4)
            self.collect_children()

        serve(Run, workers=1, request_timeout=0.5, service_actions=service_actions)
    """)
    with send(program.address(), "sum(range(10**12))"):
        program.wait_logged("killed cause=request_timeout")
    assert "in handle" in program.log
    assert "(no answer)" not in program.log


def test_requests_add_up(start: Callable[..., Program]) -> None:
    """At rest all requests are ok, error, timeout or aborted: through kills, timeouts and errors nothing is counted twice."""
    program = start(serving("TellingRun", workers=2, request_timeout=TIMEOUT))
    address = program.address()
    lines = ["1", "1 / 0", "time.sleep(60)", "os.kill(os.getpid(), 9)", "os._exit(3)", "2"]
    for line in lines:
        with connect(address) as client:
            send_line(client, line)
            read_to_the_end(client)
    wait_until(lambda: len(program.all_told("busy")) == len(lines), "all were taken")
    with board_of(program.pid) as board:

        def counts() -> tuple[int, ...]:
            slots = board.snapshot().slots
            fields = (SlotField.ERRORS, SlotField.TIMEOUTS, SlotField.ABORTED)
            return (sum(one.ok for one in slots), *(sum(one[f] for one in slots) for f in fields))

        wait_until(lambda: counts() == (2, 1, 1, 2), lambda: f"2 ok, 1 error …: {counts()}")
