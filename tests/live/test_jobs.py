"""Servers without a socket: the examples with SQLite and PostgreSQL do each job once, whoever is killed meanwhile.

``PREFORK_JOBS=10000 make test ARGS="-s tests/live/test_jobs.py"`` is the full form.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from tests.support.processes import cpu_seconds
from tests.support.server import Program, environment
from tests.support.waiting import CEILING, Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOBS = int(os.environ.get("PREFORK_JOBS", "400"))
LONG = CEILING + JOBS / 20
"""Seconds that all jobs may take on a loaded machine, where one takes a few milliseconds."""

WORKERS = 3
EXAMPLES = Path(__file__).parents[2] / "examples" / "jobs"

LISTED = """
    from tests.support.app import *
    import prefork, socketserver

    log_to_stderr()

    class Numbers(socketserver.BaseServer):
        "Takes numbers from the lines of a file, each worker those that it is asked for by its own name."
        asked = 0

        def get_request(self):
            self.asked += 1
            tell("asked", [os.getpid(), time.monotonic()])
            PROBLEM
            return None

    class Server(prefork.PreForkingMixIn, Numbers):
        workers = 1

    with Server("nowhere", socketserver.BaseRequestHandler) as server:
        server.when_ready = lambda: tell("ready")
        server.serve_forever(POLL)
        tell("left")
"""


def program_that_asks(poll: float, problem: str = "pass") -> str:
    """Return a program whose server never finds a request."""
    return LISTED.replace("POLL", str(poll)).replace("PROBLEM", problem)


def run(program: Path, *arguments: str) -> str:
    """Run a program to its end, and return what it prints."""
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(
        command, env=environment(), timeout=CEILING, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def do_all(program: Program, count_left: Callable[[], int], *, reload: bool) -> int:
    """Wait until no job is left, while workers are killed; return how many were killed."""
    dice, step = random.Random(21), JOBS // 20
    killed = 0
    for goal in range(JOBS - step, -1, -step):
        wait_until(lambda goal=goal: count_left() <= goal, f"no more than {goal} left", LONG)  # type: ignore[misc]
        if reload and goal == JOBS // 2:
            program.signal(signal.SIGHUP)
        workers = sorted(program.workers())
        if goal and workers:
            # Most of the time it has a job in hand.
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(workers), signal.SIGKILL)
                killed += 1
    return killed


# --- SQLite


def rows(path: Path, query: str) -> list[tuple[int, ...]]:
    """Return what a query of the jobs says."""
    with contextlib.closing(sqlite3.connect(path, timeout=CEILING)) as database:
        return database.execute(query).fetchall()


def test_jobs_of_sqlite(start: Callable[..., Program], tmp_path: Path) -> None:
    """Through kills and a reload every job of a table is done once, and each job that was taken twice was visibly given back."""
    path = tmp_path / "jobs.sqlite"
    assert run(EXAMPLES / "sqlite_jobs.py", str(path), "--add", str(JOBS)) == f"added {JOBS} jobs\n"
    program = start(EXAMPLES / "sqlite_jobs.py", arguments=[str(path), "--workers", str(WORKERS)])
    count = "SELECT count(*) FROM jobs WHERE state != 'done'"
    killed = do_all(program, lambda: rows(path, count)[0][0], reload=True)
    assert program.stop() == 0

    assert killed >= 5
    assert rows(path, "SELECT count(*), min(tries) FROM jobs WHERE state = 'done'") == [(JOBS, 1)]
    given_back = sum(
        int(found) for found in re.findall(r"^(\d+) given back", program.log, re.MULTILINE)
    )
    assert rows(path, "SELECT sum(tries - 1) FROM jobs") == [(given_back,)]
    assert given_back <= killed


# --- PostgreSQL


def postgres_program(name: str) -> str | None:
    """Return the path of a program of PostgreSQL; Debian keeps them in a folder for each version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(versions[-1]) if versions else None)


@pytest.fixture
def postgres() -> Iterator[str]:
    """Give the connection string of a PostgreSQL server on a Unix socket."""
    pytest.importorskip("psycopg", exc_type=ImportError)  # or the C library that it needs
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed")
    # Not in tmp_path: another run of pytest takes the other users' access to its parents away.
    with tempfile.TemporaryDirectory(prefix="prefork-pg-") as name:
        folder, user = Path(name), None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            user = "postgres"
            shutil.chown(folder, user)
        with serving(initdb, server, folder, user):
            yield f"host={folder} user=postgres dbname=postgres"


@contextlib.contextmanager
def serving(initdb: str, server: str, folder: Path, user: str | None) -> Iterator[None]:
    """Run a PostgreSQL server whose data and socket are in a folder."""
    how: dict[str, Any] = {"user": user, "cwd": folder, "stdin": subprocess.DEVNULL}
    data, log = folder / "data", folder / "log"
    make = [initdb, "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--no-locale"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, timeout=CEILING, **how)
    command = [server, "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    with log.open("wb") as file:
        popen = subprocess.Popen(command, stdout=file, stderr=file, **how)
    try:
        wait_until(lambda: "ready to accept connections" in log.read_text(), log.read_text)
        yield
    finally:
        popen.send_signal(signal.SIGINT)
        assert popen.wait(CEILING) == 0, log.read_text()


def test_jobs_of_postgres(start: Callable[..., Program], postgres: str) -> None:
    """Through kills every job is done once, and a worker that rests takes a job as soon as it is notified."""
    import psycopg

    run(EXAMPLES / "postgres_jobs.py", postgres, "--add", str(JOBS))
    with psycopg.connect(postgres, autocommit=True) as database:

        def left() -> int:
            row = database.execute("SELECT count(*) FROM jobs WHERE state != 'done'").fetchone()
            assert row is not None
            return int(row[0])

        # A trigger notes each change to 'done': a job that is done twice would be noted twice.
        database.execute("CREATE TABLE ends (job BIGINT)")
        database.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO ends VALUES (NEW.id); RETURN NEW; END'"
        )
        database.execute(
            "CREATE TRIGGER note BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION note()"
        )
        program = start(
            EXAMPLES / "postgres_jobs.py", arguments=[postgres, "--workers", str(WORKERS)]
        )
        killed = do_all(program, left, reload=False)
        assert killed >= 5
        ends = database.execute("SELECT count(*), count(DISTINCT job) FROM ends").fetchall()
        assert ends == [(JOBS, JOBS)]

        run(EXAMPLES / "postgres_jobs.py", postgres, "--add", "1")
        took = Stopwatch()
        wait_until(lambda: left() == 0, "the job that was notified", poll=0.01)
        # Without the notification a worker would find it after five seconds.
        assert took.seconds < 4
        assert program.stop() == 0


# --- when there is nothing


def test_worker_without_a_request_sleeps(start: Callable[..., Program]) -> None:
    """A worker that is answered with None asks again after poll_interval, and uses no CPU meanwhile."""
    program = start(program_that_asks(0.3))
    program.told("ready")
    (worker,) = program.wait_workers(1)
    program.told("asked", nth=1)
    before = cpu_seconds(worker)
    program.told("asked", nth=6)
    assert cpu_seconds(worker) - before < 0.1
    times = [at for _, at in program.all_told("asked")]
    assert min(later - at for at, later in itertools.pairwise(times)) > 0.25
    assert program.stop() == 0
    assert program.all_told("left") == [None]


def test_error_of_get_request_is_logged_once(start: Callable[..., Program]) -> None:
    """A get_request() that raises is asked again after poll_interval; the log says so at the first error and at the end of them."""
    problem = "if self.asked < 5: raise ConnectionError('no database')"
    program = start(program_that_asks(0.05, problem))
    program.told("asked", nth=7)
    program.wait_logged("takes requests again")
    assert len(program.logged("cannot take requests, retrying.*Server.*no database")) == 1
    assert len(program.workers()) == 1
    assert program.stop() == 0


def test_request_that_is_taken_is_under_the_deadline(start: Callable[..., Program]) -> None:
    """A get_request() that does not return costs its worker at request_timeout, as a handler does."""
    source = program_that_asks(0.05, "time.sleep(1000)").replace(
        "workers = 1", "workers = 1; request_timeout = 0.3"
    )
    program = start(source)
    first = program.told("asked")[0]
    program.wait_logged("request_timeout")
    assert wait_until(
        lambda: [pid for pid, _ in program.all_told("asked") if pid != first], "another worker"
    )
    assert program.stop() == 0


def test_serving_without_workers_is_refused() -> None:
    """With workers = 0 the standard library's loop would serve, which needs a descriptor: the error says so."""

    class Server(prefork.PreForkingMixIn, socketserver.BaseServer):
        workers = 0

    with (
        Server("nowhere", socketserver.BaseRequestHandler) as server,
        pytest.raises(prefork.SettingsError, match="descriptor"),
    ):
        server.serve_forever()
