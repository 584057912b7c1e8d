"""Jobs from a table of PostgreSQL, done by a pool of workers. Needs psycopg.

    $ python examples/jobs/postgres_jobs.py "dbname=shop" --add 1000
    added 1000 jobs
    $ python examples/jobs/postgres_jobs.py "dbname=shop" --workers 4

The server has no socket: ``get_request()`` returns a row of the table, or None if there is none yet. Then the
worker sleeps until its connection to the database brings a notification.

Every job is done once. A worker locks the row in a transaction, does the job, and writes the result in
the same transaction. When a worker is killed, the database ends its transaction, and the row is free for
another worker, which finds it within five seconds.
"""

from __future__ import annotations

import argparse
import socketserver
from typing import TYPE_CHECKING, Any

import psycopg

import prefork

if TYPE_CHECKING:
    from prefork import WorkerInfo

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id BIGSERIAL PRIMARY KEY,
    number BIGINT NOT NULL,
    state TEXT NOT NULL DEFAULT 'new',
    result TEXT
)
"""
INDEX = "CREATE INDEX IF NOT EXISTS jobs_new ON jobs (id) WHERE state = 'new'"
TAKE = """
SELECT id, number FROM jobs WHERE state = 'new' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
END = "UPDATE jobs SET state = %s, result = %s WHERE id = %s"
ADD = "INSERT INTO jobs (number) SELECT 600000000 + n FROM generate_series(1, %s) AS n"


class Factors(socketserver.BaseRequestHandler):
    """Finds the factors of a number. The request is a row of the table: id and number."""

    def handle(self) -> None:
        """Do one job."""
        job, number = self.request
        self.server.end(job, "done", " ".join(map(str, factors(number))))  # type: ignore[attr-defined]


class JobServer(prefork.PreForkingMixIn, socketserver.BaseServer):
    """A server whose requests are the jobs of a table. Its address is a connection string of PostgreSQL."""

    database: psycopg.Connection[Any] | None = None
    told = False

    def worker_init(self, worker: WorkerInfo) -> None:  # noqa: ARG002 - the contract of the hook
        """Connect this worker: processes cannot share a connection."""
        self.connect()

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection that is told of new jobs."""
        self.database = psycopg.connect(str(self.server_address), autocommit=True)
        self.database.add_notify_handler(self.note)
        self.database.execute("LISTEN jobs")
        return self.database

    def note(self, _notification: psycopg.Notify) -> None:
        """Note a notification that came with the answer to a statement: nothing else will report it."""
        self.told = True

    def fileno(self) -> int | None:  # type: ignore[override]  # a server of socketserver always has one
        """Return the descriptor of this worker's connection. None in the master, which has none."""
        return None if self.database is None else self.database.fileno()

    def get_request(self) -> Any:
        """Lock a job for this worker, and keep its transaction open; None if there is none."""
        database = self.database
        if database is None or database.closed:  # the database was restarted
            database = self.connect()
        row, self.told = None, True
        while row is None and self.told:
            self.told = False
            database.execute("BEGIN")
            row = database.execute(TAKE).fetchone()
            if row is None:
                database.execute("COMMIT")
        return None if row is None else (row, "jobs")

    def end(self, job: int, state: str, result: str) -> None:
        """Write down what became of a job, and end its transaction."""
        assert self.database is not None  # noqa: S101 - the job came from there
        self.database.execute(END, [state, result, job])
        self.database.execute("COMMIT")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Mark a job whose handler has failed, and log why."""
        super().handle_error(request, client_address)
        self.fail(request[0], "see the log")

    def request_cancelled(self, request: Any, client_address: Any, reason: str) -> None:  # noqa: ARG002
        """Mark a job that was ended, by ``soft_timeout`` or ``prefork cancel``."""
        self.fail(request[0], f"ended: {reason}")

    def fail(self, job: int, why: str) -> None:
        """Undo what a job has done, and write down that it failed. A statement may have been cut off."""
        if self.database is not None:
            self.database.close()
        self.connect().execute("BEGIN")
        self.end(job, "failed", why)


def factors(number: int) -> list[int]:
    """Return the prime factors of a number, by trial division."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


def add(conninfo: str, count: int) -> None:
    """Add some jobs, and wake the workers."""
    with psycopg.connect(conninfo) as database:
        database.execute(SCHEMA)
        database.execute(INDEX)
        database.execute(ADD, [count])
        database.execute("NOTIFY jobs")
    print(f"added {count} jobs")


def main() -> None:
    """Add jobs, or do them."""
    parser = argparse.ArgumentParser(description="Do the jobs of a table of PostgreSQL.")
    parser.add_argument("conninfo", help='such as "dbname=shop"')
    parser.add_argument("--add", type=int, metavar="N", help="add some jobs, and end")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    if options.add is not None:
        add(options.conninfo, options.add)
        return
    with JobServer(options.conninfo, Factors) as server:
        server.workers = options.workers
        server.serve_forever()


if __name__ == "__main__":
    main()
