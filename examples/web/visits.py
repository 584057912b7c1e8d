"""A WSGI application with a pool, whose workers share a database instead of memory.

    $ python examples/web/visits.py --port 8000
    Serving on http://127.0.0.1:8000/
    $ curl http://127.0.0.1:8000/
    This is visit 1, and the first to worker 4711.
    $ curl http://127.0.0.1:8000/
    This is visit 2, and the first to worker 4712.

Requests also change ``self.own``, but each worker has its own copy, which ends with the worker.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer, make_server

import prefork

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


class Visits:
    """The application. It is made once, before the workers are forked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database: sqlite3.Connection | None = None
        self.own = 0
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS visits (pid INTEGER)")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/":
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"There is only /\n"]
        visit = self.count()
        self.own += 1
        before = f"number {self.own} of" if self.own > 1 else "the first to"
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"This is visit {visit}, and {before} worker {os.getpid()}.\n".encode()]

    def connect(self) -> None:
        """Open the database in this process; SQLite does not allow to use a connection across a fork."""
        self.database = sqlite3.connect(self.path, timeout=10)

    def count(self) -> int | None:
        """Add a visit, and return the number of visits."""
        assert self.database is not None  # noqa: S101 - worker_init() comes before any request
        with self.database:
            return self.database.execute("INSERT INTO visits VALUES (?)", [os.getpid()]).lastrowid


class VisitsServer(prefork.PreForkingMixIn, WSGIServer):
    def worker_init(self, worker: prefork.WorkerInfo) -> None:  # noqa: ARG002
        """Open the worker's own connection; runs in each new worker before it serves."""
        application = self.get_app()
        if isinstance(application, Visits):
            application.connect()


def main() -> None:
    parser = argparse.ArgumentParser(description="Count visits, over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="prefork-visits-") as folder:
        application = Visits(Path(folder, "visits.sqlite"))
        with make_server(given.host, given.port, application, server_class=VisitsServer) as server:
            print(f"Serving on http://{given.host}:{server.server_port}/", flush=True)
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is a good way to stop it
                server.serve_forever()


if __name__ == "__main__":
    main()
