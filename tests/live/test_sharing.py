"""docs/SHARING.md: its examples do what the page says, and what it says does not work does not."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, connect, read_all, read_to_the_end, send, send_line
from tests.support.documents import programs_of, serve_program
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.clients import Address
    from tests.support.server import Program

PROGRAMS = programs_of("SHARING.md")


def ask_at_once(address: Address, line: str, times: int) -> list[str]:
    """Ask the same of all workers at once; return the answers."""
    with ExitStack() as clients:
        asked = [clients.enter_context(send(address, line)) for _ in range(times)]
        return [read_all(client) for client in asked]


def counts_up(program: Program, address: Address) -> None:
    """Check that no number is given twice and none is left out, whichever workers give them."""
    answers = ask_at_once(address, "alice", 12)
    assert sorted(map(int, answers)) == [*range(1, 13)]


def counts_up_over_http(program: Program, address: Address) -> None:
    """Check the same of a WSGI application."""
    request = "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r"
    bodies = [answer.rpartition("\n")[2] for answer in ask_at_once(address, request, 12)]
    assert sorted(map(int, bodies)) == [*range(1, 13)]


def sends_mail(_program: Program, address: Address) -> None:
    """Check that what workers put into the queue reaches the process behind it."""
    assert [ask(address, name) for name in "abc"] == ["accepted"] * 3
    sent = Path("sent.txt")
    wait_until(
        lambda: sent.exists() and sorted(sent.read_text().split()) == ["a", "b", "c"], "mail"
    )


def paints(program: Program, address: Address) -> None:
    """Check that all workers see one memory and one dictionary, and that the memory has an end."""
    answers = [answer.split() for answer in ask_at_once(address, "7", 12)]
    assert sorted(int(colour) for colour, _ in answers) == [*range(1, 13)]
    assert ask(address, "8").startswith("1 ")
    assert max(int(painters) for _, painters in answers) <= 3
    assert program.stop() == 0
    program.wait_silent()
    assert "leaked" not in program.log


def adds_up(_program: Program, address: Address) -> None:
    """Check that the processes of a worker's executor do the work."""
    assert ask(address, "1 2 3 4") == "10"


def caches(_program: Program, address: Address) -> None:
    """Check that a worker which has answered the same before has it in its cache."""
    wait_until(lambda: re.fullmatch(r"5 [1-9]\d*", ask(address, "three")), "an answer of a cache")


def throws_dice(_program: Program, address: Address) -> None:
    """Check that no number comes twice."""
    assert len(set(ask_at_once(address, "", 20))) == 20


def refreshes(_program: Program, address: Address) -> None:
    """Check that the thread of a worker changes what its handlers read."""
    wait_until(lambda: int(ask(address)) > 1, "the first look of the thread")


def cleans(program: Program, address: Address) -> None:
    """Check that one worker cleans, and another one when the first is killed."""

    def cleaner() -> int:
        found = ask(address)
        return int(found) if found.isdigit() and int(found) in program.workers() else 0

    wait_until(Path("cleaner.txt").exists, "the file of the first cleaner")
    first = wait_until(cleaner, "the first cleaner")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: cleaner() not in (0, first), "the next cleaner")


CHECKS: dict[str, Callable[[Program, Address], None]] = {
    "visits": counts_up,
    "hits": counts_up_over_http,
    "number": counts_up,
    "served": counts_up,
    "mail": sends_mail,
    "picture": paints,
    "total": adds_up,
    "words": caches,
    "dice": throws_dice,
    "rates": refreshes,
    "cleaner": cleans,
}
"""What is tried of each example, by the name of its file."""


def test_every_example_is_run() -> None:
    """Each program of the page has a check here."""
    assert PROGRAMS.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_example(
    start: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An example of the page, served as the page says, does what the page says."""
    monkeypatch.chdir(tmp_path)
    target = "application" if name == "hits" else "Server"
    program, address = serve_program(start, tmp_path, name, PROGRAMS[name], target=target)

    CHECKS[name](program, address)

    assert program.stop() == 0
    assert "Traceback" not in program.log


FACTS = """
from tests.support.app import *
import concurrent.futures, fcntl, multiprocessing, random, socketserver

shared, held = open("lock", "w"), multiprocessing.Lock()
generator = random.Random(1)
threads, processes = concurrent.futures.ThreadPoolExecutor(1), concurrent.futures.ProcessPoolExecutor(1)
threads.submit(int).result()
processes.submit(int).result()

def locked(lock, file):
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

def ends(executor):
    try:
        return executor.submit(int).result(timeout=0.2) == 0
    except concurrent.futures.TimeoutError:
        return False

class Facts(socketserver.StreamRequestHandler):
    '''Answers each line with a fact, and keeps what it has until its client has left.'''
    def handle(self):
        own = open("lock", "r+")
        for word in self.rfile:
            answer = eval(word, globals(), {"own": own})
            self.wfile.write(f"{answer}\\n".encode())

serve(Facts, workers=2, fork_check="off", graceful_timeout=0.5)
"""


def say(clients: Sequence[socket.socket], code: str) -> list[str]:
    """Return what the workers of these clients answer, the first one first."""
    answers = []
    for client in clients:
        send_line(client, code)
        answers.append(client.makefile().readline().strip())
    return answers


def test_what_does_not_work(start: Callable[..., Program]) -> None:
    """Locks, generators and executors from before the fork fail in the ways that the page names."""
    program = start(FACTS)
    address = program.address()
    with connect(address) as first, connect(address) as second:
        both = (first, second)
        pids = say(both, "os.getpid()")
        assert pids[0] != pids[1]

        # flock() excludes no other worker from a file that was opened before the fork; lockf() does, and so
        # does flock() on a file of the worker's own.
        assert say(both, "locked(fcntl.flock, shared)") == ["True", "True"]
        assert say(both, "fcntl.flock(shared, fcntl.LOCK_UN)") == ["None", "None"]
        assert say(both, "locked(fcntl.flock, own)") == ["True", "False"]
        assert say(both, "locked(fcntl.lockf, shared)") == ["True", "False"]

        assert len(set(say(both, "generator.random()"))) == 1
        assert len(set(say(both, "random.random()"))) == 2

        # Executors that the master has used have no threads here, so that no job ends.
        assert say(both, "ends(threads)") == ["False", "False"]
        assert say(both, "ends(processes)") == ["False", "False"]

        # A lock of multiprocessing outlives a worker that is killed, a lock on a file does not.
        assert say(both, "held.acquire(timeout=0.1)") == ["True", "False"]
        os.kill(int(pids[0]), signal.SIGKILL)
        assert read_to_the_end(first) == ""
        with connect(address) as third:
            assert say([third], "held.acquire(timeout=0.1)") == ["False"]
            assert say([third], "locked(fcntl.flock, own)") == ["True"]
