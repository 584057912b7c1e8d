"""Jobs from a table of SQLite, done by a pool of workers.

    $ python examples/jobs/sqlite_jobs.py jobs.sqlite --add 1000
    added 1000 jobs
    $ python examples/jobs/sqlite_jobs.py jobs.sqlite --workers 4

The server has no socket: ``get_request()`` returns a row of the table, or None if there is none yet. Workers
ask again after ``poll_interval``.

Every job is done once, or is visibly given back. A worker marks the row that it takes with its process id.
When a worker dies, the master gives the worker's rows back, and ``tries`` counts how often a job was taken.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socketserver
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prefork

if TYPE_CHECKING:
    from prefork import ExitCause, WorkerInfo

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'new',
    worker INTEGER,
    tries INTEGER NOT NULL DEFAULT 0,
    result TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, id);
"""
TAKE = """
UPDATE jobs SET state = 'taken', worker = ?, tries = tries + 1
WHERE id = (SELECT id FROM jobs WHERE state = 'new' ORDER BY id LIMIT 1)
RETURNING id, number
"""
END = "UPDATE jobs SET state = ?, result = ?, worker = NULL WHERE id = ?"
GIVE_BACK = "UPDATE jobs SET state = 'new', worker = NULL WHERE state = 'taken' AND worker = ?"


class Factors(socketserver.BaseRequestHandler):
    """Finds the factors of a number. The request is a row of the table: id and number."""

    def handle(self) -> None:
        """Do one job."""
        job, number = self.request
        self.server.end(job, "done", " ".join(map(str, factors(number))))  # type: ignore[attr-defined]


class JobServer(prefork.PreForkingMixIn, socketserver.BaseServer):
    """A server whose requests are the jobs of a table. Its address is the path of the database."""

    database: sqlite3.Connection | None = None

    def worker_init(self, worker: WorkerInfo) -> None:  # noqa: ARG002 - the contract of the hook
        """Open the database in this worker: SQLite does not allow to use a connection across a fork."""
        self.database = connect(self.server_address)

    def get_request(self) -> Any:
        """Take a job, for this worker alone; None if there is none."""
        assert self.database is not None  # noqa: S101 - worker_init() comes before any request
        rows = self.database.execute(TAKE, [os.getpid()]).fetchall()
        return (rows[0], "jobs") if rows else None

    def end(self, job: int, state: str, result: str) -> None:
        """Write down what became of a job."""
        assert self.database is not None  # noqa: S101
        self.database.execute(END, [state, result, job])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Mark a job whose handler has failed, and log why."""
        super().handle_error(request, client_address)
        self.end(request[0], "failed", "see the log")

    def request_cancelled(self, request: Any, client_address: Any, reason: str) -> None:  # noqa: ARG002
        """Mark a job that was ended, by ``soft_timeout`` or ``prefork cancel``."""
        self.end(request[0], "failed", f"ended: {reason}")

    def worker_died(self, worker: WorkerInfo, cause: ExitCause) -> None:
        """Give back what a dead worker had in hand (master)."""
        self.give_back(worker.pid, str(cause))

    def give_back(self, pid: int, why: str) -> None:
        """Give the jobs of a process back."""
        with contextlib.closing(connect(self.server_address)) as database:
            if count := database.execute(GIVE_BACK, [pid]).rowcount:
                print(f"{count} given back: {why}", file=sys.stderr, flush=True)

    def give_back_of_the_dead(self) -> None:
        """Give back what the workers of an earlier master had in hand, when that was killed."""
        with contextlib.closing(connect(self.server_address)) as database:
            taken = database.execute("SELECT DISTINCT worker FROM jobs WHERE state = 'taken'")
            pids = [pid for (pid,) in taken]
        for pid in pids:
            if not Path(f"/proc/{pid}").exists():
                self.give_back(pid, "its process is gone")


def factors(number: int) -> list[int]:
    """Return the prime factors of a number, by trial division."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


def connect(path: Any) -> sqlite3.Connection:
    """Open the database. Each statement is a transaction of its own, and waits for those of others."""
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(SCHEMA)
    return database


def add(path: str, count: int) -> None:
    """Add some jobs."""
    with contextlib.closing(connect(path)) as database:
        database.execute("BEGIN")
        numbers = ([600_000_000 + number] for number in range(count))
        database.executemany("INSERT INTO jobs (number) VALUES (?)", numbers)
        database.execute("COMMIT")
    print(f"added {count} jobs")


def main() -> None:
    """Add jobs, or do them."""
    parser = argparse.ArgumentParser(description="Do the jobs of a table of SQLite.")
    parser.add_argument("path", help="the database, which is made if it is not there")
    parser.add_argument("--add", type=int, metavar="N", help="add some jobs, and end")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    if options.add is not None:
        add(options.path, options.add)
        return
    with JobServer(options.path, Factors) as server:
        server.workers = options.workers
        if not prefork.on_trial():
            server.give_back_of_the_dead()
        server.serve_forever()


if __name__ == "__main__":
    main()
