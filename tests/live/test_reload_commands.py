"""``prefork reload --wait`` and ``upgrade --wait`` with a server of the command line: what they say, what they leave alone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

import prefork
from prefork.workers.scoreboard import PoolField
from prefork.workers.states import ReloadState
from tests.support.board import board_of
from tests.support.clients import ask, ask_datagram
from tests.support.load import Load
from tests.support.processes import cpu_seconds, fds_of, status_of, title_of
from tests.support.server import environment
from tests.support.terminal import Terminal
from tests.support.waiting import let_pass, wait_until
from tests.support.web import fetch, metrics_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.clients import Address
    from tests.support.server import Program

PATIENCE = 30.0
"""Seconds that one command may take in a test: an interpreter starts slowly on a loaded machine."""

APPLICATION = """
import os, socketserver, time
import prefork

VERSION = {version!r}
{first}


class Handler(prefork.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if line == b"version\\n":
            line = b"%s %d" % (VERSION.encode(), self.server.worker.generation)
        if line:
            self.wfile.write(b"%d %s" % (os.getpid(), line))


class Both(socketserver.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            data, back = self.request
            back.sendto(b"%s %s" % (VERSION.encode(), data), self.client_address)
        else:
            self.request.recv(1000)
            self.request.sendall(VERSION.encode())
"""


class Done:
    """One command that has ended: its exit code and what it said."""

    def __init__(self, ended: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = ended.returncode, ended.stdout, ended.stderr

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


class Served:
    """``prefork run app.py:Handler`` with a settings file, both of which a test rewrites."""

    def __init__(
        self,
        start: Callable[..., Program],
        folder: Path,
        *,
        target: str = "app.py:Handler",
        flags: tuple[str, ...] = (),
        first: str = "",
        environ: dict[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.folder = folder
        self.settings = {"workers": 2, "max_children": 4, "bind": ["127.0.0.1:0"], **settings}
        self.configure()
        self.code(first=first)
        # -P: the folder of the application must not hide a package that a test puts on the path.
        arguments = ["-P", "-m", "prefork", "run", target, "--config", "pool.toml", *flags]
        self.program = start(None, arguments=arguments, environ=environ)
        wait_until(
            lambda: (
                self.program.logged(r"master pid=\d+ ready")
                or self.program.popen.poll() is not None
            ),
            lambda: f"a pool that is ready:\n{self.program.log}",
        )
        assert self.program.popen.poll() is None, self.program.log

    def code(self, version: str = "1", first: str = "") -> None:
        """Write the application."""
        (self.folder / "app.py").write_text(APPLICATION.format(version=version, first=first))

    def configure(self, **changes: object) -> None:
        """Write the settings file; None takes a setting out."""
        self.settings |= changes
        lines = [
            f"{key} = {json.dumps(value)}"
            for key, value in self.settings.items()
            if value is not None
        ]
        (self.folder / "pool.toml").write_text("\n".join(lines) + "\n")

    def run(self, command: str = "reload", *flags: str) -> Done:
        """Run one command about this pool to its end."""
        return Done(
            subprocess.run(
                [sys.executable, "-m", "prefork", command, str(self.program.pid), *flags],
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        )

    def reload(self, command: str = "reload") -> Done:
        """Reload, and wait until all workers are new."""
        done = self.run(command, "--wait")
        assert done.code == 0, f"{done}\n{self.program.log[-3000:]}"
        return done

    @property
    def address(self) -> Address:
        """Where the first listener is, an internet one."""
        match = re.search(
            r"started listeners=\S+?://([\d.]+):(\d+)", self.program.log.replace('"', "")
        )
        assert match is not None, self.program.log
        return match[1], int(match[2])

    def version(self) -> str:
        """Ask a worker for its code and its generation."""
        return ask(self.address, "version").partition(" ")[2]


@pytest.fixture
def served(start: Callable[..., Program], tmp_path: Path) -> Callable[..., Served]:
    """``served(workers=3)`` starts such a server."""
    return lambda **how: Served(start, tmp_path, **how)


# --- what a reload takes over ----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["reload", "upgrade"])
def test_settings_of_the_file_and_new_code_take_effect(
    served: Callable[..., Served], command: str
) -> None:
    """After ``--wait`` has returned 0, the code and the settings file of now are served, in the same process."""
    server = served()
    server.code(version="2")
    server.configure(workers=3, name="renamed", client_timeout=7)
    done = server.reload(command)
    assert done.out == (
        f"reloaded: {server.program.pid} renamed tcp://127.0.0.1:{server.address[1]}, generation 1\n"
    )
    assert server.version() == "2 1"
    assert len(server.program.wait_workers(3)) == 3
    server.program.wait_logged("setting changed key=workers old=2 new=3")
    server.program.wait_logged("setting changed key=client_timeout old=30s new=7s")


def test_reload_that_is_not_waited_for(served: Callable[..., Served]) -> None:
    """Without ``--wait`` it returns at once and says that it has asked."""
    server = served()
    done = server.run("reload")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"asked to reload: {server.program.pid}")
    with board_of(server.program.pid) as board:
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, "reloaded")


def test_pid_file_stays_locked_and_the_same(served: Callable[..., Served], tmp_path: Path) -> None:
    """Through good and failed reloads the pid file is one inode, is held, and names the same process."""
    server = served(pidfile="pid")
    path = tmp_path / "pid"
    before = path.stat().st_ino, path.read_text()
    assert before[1] == f"{server.program.pid}\n"

    def is_held() -> bool:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    ending = threading.Event()
    gaps: list[bool] = []

    def look_on() -> None:
        while not ending.wait(0.002):
            if not is_held():
                gaps.append(True)

    watch = threading.Thread(target=look_on)
    watch.start()
    try:
        server.reload()
        server.code(first="def")
        assert server.run("reload", "--wait").code == 1
        server.code()
        server.reload()
    finally:
        ending.set()
        watch.join()
    assert gaps == []
    assert (path.stat().st_ino, path.read_text()) == before
    assert server.program.stop() == 0
    assert not path.exists()


def test_pid_file_follows_the_settings(served: Callable[..., Served], tmp_path: Path) -> None:
    """A reload that names another pid file moves the pid there; one that names none removes it."""
    server = served(pidfile="one")
    server.configure(pidfile="other")
    server.reload()
    assert (tmp_path / "other").read_text() == f"{server.program.pid}\n"
    assert not (tmp_path / "one").exists()
    server.configure(pidfile=None)
    server.reload()
    assert not (tmp_path / "other").exists()
    assert not [
        link for link in fds_of(server.program.pid).values() if link.startswith(f"{tmp_path}/o")
    ]


def test_titles_name_the_new_state(served: Callable[..., Served]) -> None:
    """After a reload the titles of the master and all workers bear the new name."""
    server = served(name="before")
    server.configure(name="after")
    server.reload()
    where = f"[after] tcp://127.0.0.1:{server.address[1]}"
    assert title_of(server.program.pid) == f"prefork: master {where}"
    titles = {title_of(pid) for pid in server.program.wait_workers(2)}
    assert {re.sub(r"worker \d", "worker N", title) for title in titles} == {
        f"prefork: worker N {where}"
    }


# --- broken code -----------------------------------------------------------------------------------


def test_broken_code_is_told_with_its_traceback(served: Callable[..., Served]) -> None:
    """Exit code 1 and the application's own traceback, from its first frame on; the same workers serve."""
    server = served()
    workers = server.program.wait_workers(2)
    server.code(first="def load():\n    raise LookupError('no such shop')\nload()")
    done = server.run("reload", "--wait")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("prefork: error: reload failed, still serving the previous code: ")
    assert 'app.py", line' in done.err
    assert "LookupError: no such shop" in done.err
    assert server.program.workers() == workers
    assert server.version() == "1 0"


def test_broken_settings_are_told(served: Callable[..., Served]) -> None:
    """A settings file that is no TOML, or says what cannot be, fails the reload with the file's name and the key."""
    server = served()
    server.configure(workers=99)
    done = server.run("reload", "--wait")
    assert done.code == 1
    assert "workers = 99" in done.err
    (server.folder / "pool.toml").write_text("workers = = 2\n")
    done = server.run("reload", "--wait")
    assert done.code == 1
    assert "pool.toml" in done.err
    assert "not valid TOML" in done.err
    assert server.version() == "1 0"


def test_workers_that_do_not_boot_are_told(served: Callable[..., Served]) -> None:
    """When the first new worker fails, ``--wait`` returns 1 with its traceback."""
    server = served(target="app.py:Server", first=SERVER.format(init="pass"))
    server.code(first=SERVER.format(init="raise LookupError('no database')"))
    done = server.run("reload", "--wait")
    assert done.code == 1
    assert "the first new worker did not start" in done.err
    assert "LookupError: no database" in done.err
    assert ask(server.address, "x").endswith("x")


SERVER = """
class Echo(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())


class Server(prefork.PreForkingTCPServer):
    RequestHandlerClass = Echo

    def worker_init(self, worker):
        {init}
"""


def test_code_that_fails_only_after_the_exec_takes_over_once_it_is_corrected(
    served: Callable[..., Served],
) -> None:
    """When the trial was good and the run is not, ``--wait`` says so with 1; corrected code needs no further command."""
    server = served()
    server.code(first="from prefork.host.process import process\nassert process.handover is None")
    done = server.run("reload", "--wait")
    assert done.code == 1
    assert "the new code ended before it served" in done.err
    assert server.version() == "1 0"
    server.code(version="2")
    wait_until(lambda: server.version() == "2 1", "the corrected code")
    # What the program has raised stands in the log, below a line that has a time.
    assert re.search(r"Z ERROR +master the program has failed error=.*app.py", server.program.log)
    assert re.search(r"^    AssertionError", server.program.log, re.MULTILINE)
    assert not re.search(r"^Traceback|^prefork:", server.program.log, re.MULTILINE)


def test_paths_that_are_no_text(served: Callable[..., Served], tmp_path: Path) -> None:
    """A pool whose sockets and metrics folder have names that are no UTF-8 is reloaded and stopped as any other."""
    folder = os.fsencode(tmp_path)
    serves, metrics, kept = (
        os.fsdecode(folder + name) for name in (b"/s\xff", b"/m\xfe", b"/d\xfd")
    )
    os.mkdir(kept)
    flags = ("--bind", f"unix:{serves}", "--metrics", f"unix:{metrics}", "--metrics-dir", kept)
    server = served(bind=None, flags=flags)
    server.code(version="2")
    server.reload()
    assert ask(serves, "version").endswith(" 2 1")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(metrics)
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert server.program.stop() == 0
    assert not os.path.lexists(serves)
    assert not os.path.lexists(metrics)


def test_pid_file_is_kept_by_new_code_that_fails_only_after_the_exec(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    """New code that fails when its pid file is in hand already leaves it, locked, to the next try; a stop removes it."""
    path = tmp_path / "pid"
    server = served(target="app.py:Server", pidfile=str(path), first=SERVER.format(init="pass"))
    fails = (
        "    def server_activate(self):\n"
        "        from prefork.host.process import process\n"
        "        assert process.handover is None\n"
        "        super().server_activate()\n"
    )
    server.code(first=SERVER.format(init="pass") + fails)
    for stop_in_the_gap in (False, True):
        assert server.run("reload", "--wait").code == 1
        assert path.read_text() == f"{server.program.pid}\n"
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stop_in_the_gap:
            assert server.run("stop").code == 0
            server.program.wait()
            assert not path.exists()
        else:
            server.code(version="2", first=SERVER.format(init="pass"))
            server.program.wait_logged("reloaded generation=1")
            server.code(first=SERVER.format(init="pass") + fails)


@pytest.mark.parametrize("address", [None, "127.0.0.1:0", "unix:{folder}/other"])
def test_metrics_address_is_kept_for_new_code_that_fails_only_after_the_exec(
    served: Callable[..., Served], tmp_path: Path, address: str | None
) -> None:
    """New code with another metrics address, or with none, that fails once its master is made can be mended."""
    server = served(metrics=f"unix:{tmp_path}/metrics")
    server.configure(metrics=address and address.format(folder=tmp_path), fork_check="error")
    threads = (
        "import threading\n"
        "from prefork.host.process import process\n"
        "if process.handover is not None:\n"
        "    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    )
    pid = metrics_pid(server)
    server.code(first=threads)
    assert server.run("reload", "--wait").code == 1
    assert server.version() == "1 0"
    assert metrics_pid(server) == pid
    assert fetch(f"{tmp_path}/metrics", "/livez").text == "live\n"
    server.code(version="2")
    wait_until(lambda: server.version() == "2 1", "the corrected code")
    wait_until(lambda: not (tmp_path / "metrics").exists(), "the former address is given up")


def metrics_pid(server: Served) -> int:
    """Return the pid of the metrics process, once there is one."""
    with board_of(server.program.pid) as board:
        wait_until(lambda: board.pool(PoolField.METRICS_PID), "a metrics process")
        return board.pool(PoolField.METRICS_PID)


def test_master_without_an_application_is_stopped_by_command(served: Callable[..., Served]) -> None:
    """``prefork stop`` ends a master whose new code has failed after the exec, and its workers with it."""
    server = served()
    server.code(first="from prefork.host.process import process\nassert process.handover is None")
    assert server.run("reload", "--wait").code == 1
    assert server.run("stop").code == 0
    server.program.wait()
    server.program.wait_silent()


def test_order_to_stop_while_the_new_code_fails_is_not_lost(served: Callable[..., Served]) -> None:
    """TERM that comes while new code is loaded after the exec, or is cleaned up after, stops the pool all the same."""
    server = served()
    server.code(
        first="from prefork.host.process import process\n"
        "if process.handover is not None:\n"
        "    os.kill(os.getpid(), 15)\n"
        "    raise LookupError('only after the exec')\n"
    )
    server.program.signal(signal.SIGHUP)
    assert server.program.wait() == 0
    server.program.wait_silent()


def test_progress_on_a_terminal(served: Callable[..., Served], tmp_path: Path) -> None:
    """On a terminal the line says that the code is tried, then how many workers are new, then the outcome."""
    server = served(
        target="app.py:Server",
        workers=4,
        max_children=5,
        first="time.sleep(0.7)\n" + SERVER.format(init="time.sleep(0.4)"),
    )
    with Terminal(["reload", "--wait", str(server.program.pid)], tmp_path) as terminal:
        assert terminal.wait(PATIENCE) == 0
        text = terminal.text
    assert "loading the new code" in text
    shown = [int(done) for done in re.findall(r"(\d) of 4 workers replaced", text)]
    assert shown == sorted(shown)
    assert set(shown) >= {1, 2, 3}
    assert text.rstrip().endswith("generation 1")


def test_reload_is_seen_through_the_exec_whatever_the_descriptors(
    served: Callable[..., Served],
) -> None:
    """``--wait`` takes no exec for the end of the pool, although the master's descriptors are numbered anew."""
    # Held in the first image only: the scoreboard gets a high number, later duplicates lower ones.
    holes = "held = [open('/dev/null') for _ in range(20)] if VERSION == '1' else []"
    server = served(first=holes)
    server.code(version="2", first=holes + "\ntime.sleep(0.3)")
    for generation in (1, 2, 3):
        assert f"generation {generation}" in server.reload().out


# --- metrics ---------------------------------------------------------------------------------------

COUNTING = """
from prometheus_client import Counter

SEEN = Counter("shop_requests", "Requests.")


class Counting(prefork.StreamRequestHandler):
    def handle(self):
        if self.rfile.readline():
            SEEN.inc()
            self.wfile.write(b"counted")
"""

TOTALS = (
    "prefork_requests_total",
    "prefork_worker_starts_total",
    "prefork_worker_exits_total",
    "prefork_reloads_total",
    "shop_requests_total",
)


class Scrapes:
    """``with Scrapes(address) as scrapes:`` asks for /metrics and /readyz until the block ends."""

    def __init__(self, address: Address) -> None:
        self.failures: list[str] = []
        self.count = 0
        self._address = address
        self._last = dict.fromkeys(TOTALS, 0.0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask_on)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _ask_on(self) -> None:
        while not self._ending.wait(0.01):
            try:
                self._look()
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def _look(self) -> None:
        if (status := fetch(self._address, "/readyz").status) != 200:
            self.failures.append(f"/readyz {status}")
        page = fetch(self._address)
        for name, before in self._last.items():
            now = page.total(name)
            if now < before:
                self.failures.append(f"{name} fell from {before} to {now}")
            self._last[name] = now
        self.count += 1


def test_metrics_answer_and_never_fall_across_reloads(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    """At the same port, through good and broken reloads under load: every scrape answered, ready, no total falls."""
    (tmp_path / "kept").mkdir()
    server = served(
        target="app.py:Counting", first=COUNTING, metrics="127.0.0.1:0", metrics_dir="kept"
    )
    address = metrics_of(server.program).address
    asked = 0
    with Scrapes(address) as scrapes:
        for version in ("2", "3", "4"):
            for _ in range(20):
                assert ask(server.address, "x") == "counted"
                asked += 1
            server.code(version=version, first=COUNTING)
            server.reload()
            server.code(first="def")
            assert server.run("reload", "--wait").code == 1
    assert scrapes.failures == []
    assert scrapes.count > 10
    assert fetch(address).total("shop_requests_total") == asked
    assert fetch(address).total("prefork_requests_total") == asked
    assert len(list((tmp_path / "kept").glob("counter_*.db"))) <= 4 + 1  # a slot each, the master


def test_metrics_can_be_switched_off_on_and_elsewhere(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    """A reload follows ``metrics``: off leaves nothing of it behind and an idle master, another address answers there."""
    server = served(metrics=f"unix:{tmp_path}/metrics")
    program = server.program
    old = metrics_of(program)
    sockets = count_sockets(program.pid)
    server.configure(metrics=None)
    server.reload()
    wait_until(lambda: not (tmp_path / "metrics").exists(), "the path is removed")
    program.wait_workers(2)
    assert old.pid not in program.workers()
    assert count_sockets(program.pid) == sockets - 1
    before = cpu_seconds(program.pid)
    let_pass(1.0)  # a master that spins shows in its processor time only
    assert cpu_seconds(program.pid) - before < 0.3
    server.configure(metrics="127.0.0.1:0")
    server.reload()
    assert fetch(metrics_of(program, 1).address, "/readyz").status == 200


def count_sockets(pid: int) -> int:
    """Return how many sockets a process has."""
    return sum(link.startswith("socket:") for link in fds_of(pid).values())


# --- sockets ---------------------------------------------------------------------------------------


def test_unix_path_keeps_its_inode_and_mode(served: Callable[..., Served], tmp_path: Path) -> None:
    """A Unix socket is the same file with the same rights after a reload, and answers all the while."""
    path = tmp_path / "socket"
    server = served(bind=["unix:socket"])
    path.chmod(0o600)  # an administrator's change is not undone either
    before = path.stat()
    with Load(str(path), clients=2) as load:
        server.code(version="2")
        server.reload()
    after = path.stat()
    assert load.lost == {}
    assert load.verdicts["refused"] == 0
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert ask(str(path), "version").endswith("2 1")
    assert server.program.stop() == 0
    assert not path.exists()


def test_datagrams_and_streams_of_one_pool(served: Callable[..., Served], tmp_path: Path) -> None:
    """TCP, UDP and both Unix kinds in one pool each keep their socket through a reload."""
    server = served(
        target="app.py:Both",
        bind=["127.0.0.1:0", "udp://127.0.0.1:0", "unix:stream", "unixgram:datagrams"],
    )
    with board_of(server.program.pid) as board:
        before = [one["inode"] for one in json.loads(board.description.read())["listeners"]]
        names = [one["name"] for one in json.loads(board.description.read())["listeners"]]
        server.code(version="2")
        server.reload()
        assert [one["inode"] for one in json.loads(board.description.read())["listeners"]] == before
    udp = names[1].rpartition(":")[2]
    assert ask(server.address, "x") == "2"
    assert ask_datagram(("127.0.0.1", int(udp)), "x") == "2 x"
    assert ask(str(tmp_path / "stream"), "x") == "2"
    assert ask_datagram(str(tmp_path / "datagrams"), "x", own=f"\0{tmp_path}") == "2 x"


def test_trial_that_fails_after_binding_leaves_the_socket_file(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    """When a trial has made the Unix server and fails at the next one, the live socket file is there as it was."""
    path = tmp_path / "socket"
    server = served(bind=["unix:socket"])
    path.chmod(0o600)
    before = path.stat()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        server.configure(bind=["unix:socket", "unix:second", taken])
        done = server.run("reload", "--wait")
    assert done.code == 1
    assert "in use" in done.err
    after = path.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert not (tmp_path / "second").exists()
    assert ask(str(path), "version").endswith("1 0")


FACTORY = """
class Second(prefork.PreForkingUnixStreamServer):
    def server_activate(self):
        if {fails}:
            raise RuntimeError("the second cannot be")
        super().server_activate()


def servers():
    return [prefork.PreForkingUnixStreamServer("one", Handler), Second("two", Handler)]
"""


def test_factory_that_fails_in_the_trial_leaves_the_socket_files(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    """A factory that raises while it makes its second server costs none of the sockets that are served."""
    server = served(
        target="app.py:servers", flags=("--factory",), bind=None, first=FACTORY.format(fails=False)
    )
    paths = [tmp_path / "one", tmp_path / "two"]
    before = [(path.stat().st_ino, path.stat().st_mode) for path in paths]
    server.code(first=FACTORY.format(fails=True))
    done = server.run("reload", "--wait")
    assert done.code == 1
    assert "the second cannot be" in done.err
    assert [(path.stat().st_ino, path.stat().st_mode) for path in paths] == before
    for path in paths:
        assert ask(str(path), "version").endswith("1 0")


# --- upgrade ---------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a copy of prefork that a test may change, in a folder for PYTHONPATH."""
    copy = tmp_path / "installed"
    source = Path(prefork.__file__).parent
    shutil.copytree(source, copy / "prefork", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def changed(package: Path, module: str, old: str, new: str) -> None:
    """Put something else into a module of the copy."""
    path = package / "prefork" / module
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {module}"
    path.write_text(text.replace(old, new))


def with_package(package: Path) -> dict[str, str]:
    """Return the environment in which the copy is imported."""
    return {"PYTHONPATH": os.pathsep.join([str(package), environment()["PYTHONPATH"]])}


@pytest.mark.once  # numbers that are compared
@pytest.mark.parametrize(
    ("module", "old"),
    [("workers/scoreboard.py", "\nVERSION = "), ("host/handover.py", "FORMAT: Final = ")],
)
def test_upgrade_that_cannot_go_on_is_refused(
    served: Callable[..., Served], package: Path, module: str, old: str
) -> None:
    """A prefork with another scoreboard or another handover is refused by the trial, and says that it takes a restart."""
    server = served(environ=with_package(package))
    program = server.program
    workers = program.wait_workers(2)
    changed(package, module, old, f"{old}99 + ")
    with Load(server.address, clients=2) as load:
        done = server.run("upgrade", "--wait")
    assert done.code == 1
    assert "this version of prefork has another format of its state" in done.err
    assert "restart" in done.err
    assert load.lost == {}
    assert program.workers() == workers
    changed(package, module, "99 + ", "")
    server.reload("upgrade")
    assert server.version() == "1 1"


def test_upgrade_to_another_version(served: Callable[..., Served], package: Path) -> None:
    """A prefork that differs in what it calls itself is taken over, and says so itself."""
    server = served(environ=with_package(package))
    with board_of(server.program.pid) as board:
        assert json.loads(board.description.read())["version"] == prefork.__version__
        changed(package, "_version.py", prefork.__version__, "77.7")
        server.reload("upgrade")
        assert json.loads(board.description.read())["version"] == "77.7"
        assert board.pool(PoolField.RELOAD_STATE) == ReloadState.DONE
        assert board.pool(PoolField.MASTER_PID) == server.program.pid
    server.program.wait_logged("new code passed its trial version=77.7")


def test_upgrade_to_a_prefork_that_is_broken(served: Callable[..., Served], package: Path) -> None:
    """A prefork that cannot be imported, or none at all, fails the trial; the old one serves on."""
    server = served(environ={**with_package(package), "PYTHONPATH": str(package)})
    changed(package, "mixin.py", "from __future__", "import nothing_of_the_kind\nfrom __future__")
    done = server.run("upgrade", "--wait")
    assert done.code == 1
    assert "SyntaxError" in done.err or "nothing_of_the_kind" in done.err
    assert server.version() == "1 0"


def test_signal_mask_and_dispositions_are_as_before(served: Callable[..., Served]) -> None:
    """After a reload neither the master nor a worker has a signal blocked or ignored that it had not before."""
    server = served()

    def masks(pid: int) -> list[str]:
        status = status_of(pid)
        return [status["SigBlk"], status["SigIgn"], status["SigCgt"]]

    pids = (server.program.pid, server.program.worker())
    before = [masks(pid) for pid in pids]
    server.reload()
    assert [masks(pid) for pid in (server.program.pid, server.program.worker())] == before
    server.program.signal(signal.SIGTERM)
    assert server.program.wait() == 0
