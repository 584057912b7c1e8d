"""A server whose requests are entries of a database: BaseServer with fileno() and get_request(), no socket."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

JOBS = 120

PROGRAM = f"""
import contextlib
import os
import socketserver
import sqlite3
import prefork
from tests.support.app import tell

class Jobs(socketserver.BaseServer):
    "Each unit of the semaphore is one row of the table that nobody has taken yet."

    def __init__(self, path, handler):
        super().__init__(path, handler)
        self.semaphore = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self):
        return self.semaphore

    def database(self):
        return contextlib.closing(sqlite3.connect(self.server_address, isolation_level=None))

    def get_request(self):
        os.eventfd_read(self.semaphore)  # BlockingIOError: another worker was faster
        with self.database() as db:
            take = "DELETE FROM jobs WHERE id = (SELECT min(id) FROM jobs) RETURNING id, work"
            job = db.execute(take).fetchall()[0]
        return job, "jobs"

    def server_close(self):
        os.close(self.semaphore)

class Work(socketserver.BaseRequestHandler):
    def handle(self):
        tell("done", [*self.request, self.client_address, os.getpid()])

class Server(prefork.PreForkingMixIn, Jobs):
    workers = 3

with Server("jobs.sqlite", Work) as server:
    with server.database() as db:
        db.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, work TEXT)")
        db.executemany("INSERT INTO jobs (work) VALUES (?)", [[f"work {{i}}"] for i in range({JOBS})])
    os.eventfd_write(server.semaphore, {JOBS})
    server.serve_forever()
    tell("left")
"""


def test_each_entry_is_served_once(start: Callable[..., Program], tmp_path: Path) -> None:
    """Several workers take entries of one table, each entry exactly once, and the pool stops as any other (D26, D03, E06)."""
    program = start(PROGRAM)

    program.told("done", nth=JOBS - 1)
    workers = program.workers()
    assert program.stop() == 0

    program.wait_silent()
    done = program.all_told("done")
    assert sorted(number for number, *_ in done) == list(range(1, JOBS + 1))
    assert {client for *_, client, _ in done} == {"jobs"}
    assert {pid for *_, pid in done} <= workers
    assert program.all_told("left") == [None]


def test_a_worker_that_dies_is_replaced(start: Callable[..., Program]) -> None:
    """The pool of a server without a socket is supervised like any other (D26)."""
    program = start(PROGRAM)
    program.told("done", nth=JOBS - 1)
    first = program.wait_workers(3)

    os.kill(min(first), signal.SIGKILL)

    wait_until(lambda: len(program.workers()) == 3 and program.workers() != first, "a new worker")
    assert program.stop() == 0
