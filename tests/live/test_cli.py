"""The command line with real processes: what it serves, what it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import (
    TIMEOUT,
    ask,
    ask_datagram,
    can_bind,
    connect,
    listens,
    read_to_the_end,
    send,
    server_of,
)
from tests.support.processes import is_alive, status_of, title_of
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

ECHO = "tests.support.app:Echo"
RUN = "tests.support.app:Run"

HANGS = "while True:\n    time.sleep(0.01)\n"
"""Goes on until a signal ends it. An Event's wait() could begin just after the signal, and never end."""


@pytest.fixture
def command(start: Callable[..., Program]) -> Callable[..., Program]:
    """``command(*arguments, **options)`` starts ``python -m prefork`` in the test's folder."""

    def start_command(*arguments: str, **options: Any) -> Program:
        return start(None, arguments=["-m", "prefork", *arguments], **options)

    return start_command


@pytest.fixture
def serving(command: Callable[..., Program]) -> Callable[..., Program]:
    """``serving(*arguments, **options)`` starts ``prefork run`` and returns when the pool is ready."""

    def start_serving(*arguments: str, **options: Any) -> Program:
        program = command("run", *arguments, **options)
        wait_until(
            lambda: re.search(r"master pid=\d+ ready", program.log) or program.popen.poll(),
            lambda: f"a pool that is ready:\n{program.log}",
        )
        assert program.popen.poll() is None, program.log
        return program

    return start_serving


def addresses_of(program: Program) -> list[str]:
    """Return the addresses in a program's first log line."""
    match = re.search(r"listeners=(\"[^\"]*\"|\S+)", program.log.replace('\\"', '"'))
    assert match is not None, program.log
    return match[1].strip('"').split()


def port_of(program: Program, nth: int = 0) -> tuple[str, int]:
    """Return the internet address of a program's nth listener."""
    host, _, port = addresses_of(program)[nth].partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)


def outcome(program: Program) -> tuple[int, str]:
    """Return exit status and standard error of a command that ends by itself."""
    return program.wait(), program.log


def write(folder: Path, source: str) -> None:
    """Write the application."""
    start = "from tests.support.app import *\nimport prefork, socketserver\n"
    (folder / "app.py").write_text(start + source)


# --- serving


def test_handler_class_becomes_a_server(serving: Callable[..., Program]) -> None:
    """A handler class is served by workers with titles, and TERM ends with exit code 0 and a free port."""
    program = serving(ECHO, "-b", "127.0.0.1:0", "-w", "2", "-n", "shout")
    address = port_of(program)
    workers = program.workers()
    assert len(workers) == 2
    assert server_of(address) in workers
    assert title_of(program.pid) == f"prefork: master [shout] tcp://127.0.0.1:{address[1]}"
    titles = {title_of(worker) for worker in workers}
    assert titles == {
        f"prefork: worker {slot} [shout] tcp://127.0.0.1:{address[1]}" for slot in (0, 1)
    }
    assert program.stop() == 0
    assert program.leftovers() == []
    assert can_bind(address)


def test_short_form_and_several_kinds_of_addresses(
    command: Callable[..., Program], tmp_path: Path
) -> None:
    """``prefork FLAGS TARGET`` serves TCP, IPv6 and Unix sockets with one pool."""
    binds = ["127.0.0.1:0", "[::1]:0", "unix:socket", f"unix:@{tmp_path.name}"]
    program = command(*(word for bind in binds for word in ("-b", bind)), "-w1", ECHO)
    program.wait_logged(r"master pid=\d+ ready")
    (worker,) = program.workers()
    assert server_of(port_of(program, 0)) == worker
    assert server_of(port_of(program, 1)) == worker
    assert server_of(str(tmp_path / "socket")) == worker
    assert server_of(f"\0{tmp_path.name}") == worker
    assert program.stop() == 0
    assert not (tmp_path / "socket").exists()


def test_datagrams(serving: Callable[..., Program]) -> None:
    """A datagram address gets a datagram server."""
    program = serving("tests.support.app:EchoDatagram", "-b", "udp://127.0.0.1:0", "-w", "1")
    assert int(ask_datagram(port_of(program)).split()[0]) in program.workers()
    assert program.stop() == 0


def test_inherited_socket(serving: Callable[..., Program]) -> None:
    """An inherited socket is served, and stays open for the process that handed it over."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        program = serving(ECHO, "-b", f"fd://{fd}", "-w", "1", pass_fds=[fd])
        assert server_of(listener.getsockname()) in program.workers()
        assert program.stop() == 0
        with socket.create_connection(listener.getsockname()):
            listener.settimeout(TIMEOUT)
            listener.accept()[0].close()


def test_plain_server_class_keeps_its_settings(
    serving: Callable[..., Program], tmp_path: Path
) -> None:
    """A server class without the mix-in gets it, and keeps its attributes as settings."""
    write(
        tmp_path,
        "class Plain(socketserver.TCPServer):\n"
        "    RequestHandlerClass, workers, pool_name = Echo, 3, 'plain'\n",
    )
    program = serving("app.py:Plain", "-b", "127.0.0.1:0")
    assert len(program.workers()) == 3
    assert "[plain]" in title_of(program.pid)
    assert server_of(port_of(program)) in program.workers()
    assert program.stop() == 0


def test_server_instance_and_factory(serving: Callable[..., Program], tmp_path: Path) -> None:
    """Server instances are served, and the first one has the settings and hooks."""
    write(
        tmp_path,
        "def make():\n"
        "    first = prefork.PreForkingTCPServer(LOOPBACK, Echo)\n"
        "    first.workers = 1\n"
        "    return [first, prefork.PreForkingUDPServer(LOOPBACK, EchoDatagram)]\n"
        "if __name__ == 'app': one = make()[0]\n",
    )
    program = serving("app.py:make", "--factory", name="factory")
    (worker,) = program.workers()
    assert server_of(port_of(program)) == worker
    assert int(ask_datagram(port_of(program, 1)).split()[0]) == worker
    assert program.stop() == 0
    program = serving("app:one", name="instance")
    assert server_of(port_of(program)) in program.workers()
    assert program.stop() == 0


def test_no_workers_serve_in_the_master(command: Callable[..., Program], tmp_path: Path) -> None:
    """Without workers the handler runs in the process that was started, the log says what nothing answers at, and TERM cleans up."""
    program = command("run", ECHO, "-w", "0", "-b", "unix:socket", "--agent", "127.0.0.1:0")
    wait_until(lambda: listens(tmp_path / "socket"), lambda: program.log)
    assert server_of(str(tmp_path / "socket")) == program.pid
    (line,) = program.logged("without workers nothing answers at these addresses")
    assert line.endswith(" agent=127.0.0.1:0")
    assert program.stop() == 0
    assert not (tmp_path / "socket").exists()


def test_environment_sets_what_flags_do_not(serving: Callable[..., Program]) -> None:
    """PREFORK_* and WEB_CONCURRENCY set what flags do not, and a misspelt variable is logged."""
    environ = {"PREFORK_BIND": "127.0.0.1:0", "WEB_CONCURRENCY": "3", "PREFORK_WORKRES": "9"}
    program = serving(ECHO, environ=environ)
    assert len(program.workers()) == 3
    assert program.logged(
        "ignores the environment variable PREFORK_WORKRES; did you mean PREFORK_WORKERS"
    )
    assert program.stop() == 0


def test_automatic_workers_are_explained(serving: Callable[..., Program]) -> None:
    """One log line says what the automatic number of workers was computed from."""
    program = serving(ECHO, "-b", "127.0.0.1:0")
    assert program.logged(r'master counted cpus cpus=\d+ reason=".*affinity')
    assert program.stop() == 0


def test_more_workers_than_usual_are_explained(serving: Callable[..., Program]) -> None:
    """One log line says that max_children is larger than usual, because nobody has given it."""
    program = serving(ECHO, "-b", "127.0.0.1:0", "-w", "41", "--min-spare", "1")
    assert program.logged("master max_children rises with workers workers=41 max_children=82")
    assert program.stop() == 0


def test_umask_and_user_of_workers(serving: Callable[..., Program]) -> None:
    """Workers get the umask and become the user, and the master keeps its own."""
    program = serving(RUN, "-b", "127.0.0.1:0", "-w1", "-m", "027", "-u", "65534", "-g", "65534")
    assert ask(port_of(program), "oct(os.umask(0o27))").split()[1] == "'0o27'"
    assert status_of(program.worker())["Uid"].split() == ["65534"] * 4
    assert status_of(program.pid)["Uid"].split() == [str(os.getuid())] * 4
    assert status_of(program.pid)["Umask"] == "0027"
    assert program.stop() == 0


COUNTING = (
    "import prometheus_client\n"
    "shouts = prometheus_client.Counter('shouts', 'Shouts.')\n"
    "class Shout(Echo):\n"
    "    def handle(self): shouts.inc(); super().handle()\n"
)


def test_metrics_of_the_application_are_kept_by_slot(
    serving: Callable[..., Program], tmp_path: Path
) -> None:
    """The metrics directory is prepared before the application makes its first metric."""
    write(tmp_path, COUNTING)
    folder = tmp_path / "counts"
    folder.mkdir()
    arguments = ["app.py:Shout", "-b", "127.0.0.1:0", "-w", "1", "--metrics-dir", "counts"]
    program = serving(*arguments)
    assert server_of(port_of(program)) == program.worker()
    assert (folder / "counter_0.db").exists()
    assert program.stop() == 0


def test_check_leaves_the_metrics_directory_alone(
    command: Callable[..., Program], tmp_path: Path
) -> None:
    """``check`` writes nothing into the metrics directory."""
    write(tmp_path, COUNTING)
    folder = tmp_path / "counts"
    folder.mkdir()
    for number, name in enumerate(("check", "config")):
        program = command(
            name,
            "app.py:Shout",
            environ={"PROMETHEUS_MULTIPROC_DIR": str(folder)},
            name=f"program{number}",
        )
        assert outcome(program)[0] == 0
    assert list(folder.iterdir()) == []


def test_silent_client_is_let_go(serving: Callable[..., Program]) -> None:
    """A client that sends nothing loses its worker after the command line's client_timeout."""
    program = serving(ECHO, "-b", "127.0.0.1:0", "-w", "1", "--client-timeout", "300ms")
    with connect(port_of(program)) as silent:
        assert read_to_the_end(silent) == ""
    assert server_of(port_of(program)) == program.worker()
    assert program.stop() == 0


# --- stopping


def test_ctrl_c_ends_with_success(serving: Callable[..., Program]) -> None:
    """Ctrl-C to the whole process group finishes the request in hand and ends with exit code 0."""
    program = serving(RUN, "-b", "127.0.0.1:0", "-w", "2")
    with send(port_of(program), "(tell('busy'), time.sleep(0.2))") as client:
        program.told("busy")
        os.killpg(program.pid, signal.SIGINT)
        assert client.recv(100)
    assert program.wait() == 0
    assert "Traceback" not in program.log
    assert program.leftovers() == []


def test_term_while_the_application_is_imported(
    command: Callable[..., Program], tmp_path: Path
) -> None:
    """TERM during the import ends the command without a traceback."""
    write(tmp_path, "tell('importing')\n" + HANGS)
    program = command("app.py:Echo")
    program.told("importing")
    assert program.stop() == 0
    assert "Traceback" not in program.log


def test_term_after_binding_leaves_nothing(command: Callable[..., Program], tmp_path: Path) -> None:
    """TERM after binding removes the socket file and the pid file."""
    write(
        tmp_path,
        "class Slow(prefork.PreForkingUnixStreamServer):\n"
        "    RequestHandlerClass = Echo\n"
        "    def __init__(self, address, handler):\n"
        "        super().__init__(address, handler)\n"
        "        tell('bound')\n",
    )
    program = command("app.py:Slow", "-b", "unix:socket", "-p", "pid")
    program.told("bound")
    assert program.stop() == 0
    assert not (tmp_path / "socket").exists()
    assert not (tmp_path / "pid").exists()


def test_second_term_does_not_wait_for_a_constructor(
    command: Callable[..., Program], tmp_path: Path
) -> None:
    """The first TERM waits for the constructor of a server, and the second one does not."""
    write(
        tmp_path,
        "class Hanging(prefork.PreForkingTCPServer):\n"
        "    def __init__(self, address):\n"
        "        reader, writer = os.pipe()\n"
        "        os.set_blocking(writer, False)\n"
        "        signal.set_wakeup_fd(writer)\n"
        "        tell('hangs')\n"
        "        os.read(reader, 1)\n"
        "        tell('noted')\n" + textwrap.indent(HANGS, " " * 8),
    )
    program = command("app.py:Hanging", "-p", "pid")
    program.told("hangs")
    program.terminate()
    program.told("noted")
    assert program.stop() == 0
    assert not (tmp_path / "pid").exists()


def test_service_actions_that_raise_end_with_failure(
    command: Callable[..., Program], tmp_path: Path
) -> None:
    """An exception of service_actions() ends with exit code 1 and its traceback, and leaves nothing behind."""
    write(
        tmp_path,
        "class Failing(prefork.PreForkingUnixStreamServer):\n"
        "    RequestHandlerClass = Echo\n"
        "    def service_actions(self):\n"
        "        super().service_actions()\n"
        "        if self.active_children:\n"
        "            raise RuntimeError('no more')\n",
    )
    status, log = outcome(command("app.py:Failing", "-b", "unix:socket"))
    assert status == 1
    assert "prefork: error: the master ended because of RuntimeError: no more" in log
    assert "master failed" in log
    assert "    RuntimeError: no more" in log
    assert not (tmp_path / "socket").exists()


# --- refusals: nothing is bound, nothing is forked


@pytest.mark.parametrize(
    ("status", "message", "arguments"),
    [
        (
            2,
            "workers = 41 (from flag --workers) is refused: at most",
            [ECHO, "-w", "41", "--max-children", "40"],
        ),
        (2, "there is no such setting; did you mean workers?", [ECHO, "-c", "wrong.toml"]),
        (2, "target 'nowhere:Echo': there is no module nowhere", ["nowhere:Echo"]),
        (2, "target 'tests.support.app:LOOPBACK': an instance", ["tests.support.app:LOOPBACK"]),
        (
            2,
            "metrics_dir = 'nowhere' (from flag --metrics-dir) is refused",
            [ECHO, "--metrics-dir", "nowhere"],
        ),
        (2, "No such option '--wrokers'", ["run", ECHO, "--wrokers", "3"]),
        (3, "prefork: error: app.py cannot be imported: ZeroDivisionError", ["app.py:Echo"]),
        (4, "cannot listen on fd://77: ", [ECHO, "-b", "fd://77"]),
        (4, "cannot listen on tcp://192.0.2.1:1: ", [ECHO, "-b", "192.0.2.1:1"]),
    ],
)
def test_refusals(
    command: Callable[..., Program],
    tmp_path: Path,
    status: int,
    message: str,
    arguments: list[str],
) -> None:
    """A refusal names key, value, source and what is allowed, and has its exit code and no traceback of prefork."""
    (tmp_path / "wrong.toml").write_text("wrokers = 3\n")
    write(tmp_path, "1 / 0\n")
    found, log = outcome(command(*arguments, "-p", "pid"))
    assert (found, message in log) == (status, True), log
    assert "started" not in log
    assert "cli.py" not in log
    assert ("Traceback" in log) is (status == 3)
    assert not (tmp_path / "pid").exists()


def test_address_in_use(command: Callable[..., Program], tmp_path: Path) -> None:
    """A second server on the same address is refused, and the first one keeps serving."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.socket(socket.AF_UNIX) as path,
    ):
        path.bind(str(tmp_path / "socket"))
        path.listen()
        port = taken.getsockname()[1]
        for nth, address in enumerate((f"tcp://127.0.0.1:{port}", "unix:socket")):
            program = command(ECHO, "-b", "unix:other", "-b", address, name=f"second{nth}")
            status, log = outcome(program)
            assert status == 4
            assert f"prefork: error: cannot listen on {address}: " in log
            assert "in use" in log or "listens there" in log
            assert "started" not in log
            assert not (tmp_path / "other").exists()
        assert (tmp_path / "socket").exists()
    (tmp_path / "socket").unlink()


@pytest.mark.parametrize("level", ["info", "critical"])
def test_workers_that_cannot_boot(
    command: Callable[..., Program], tmp_path: Path, level: str
) -> None:
    """Workers that cannot boot end the command with exit code 3 and the first worker's traceback, once."""
    write(
        tmp_path,
        "class Unready(prefork.PreForkingUnixStreamServer):\n"
        "    RequestHandlerClass = Echo\n"
        "    def worker_init(self, worker):\n"
        "        raise RuntimeError('no database')\n",
    )
    arguments = ["app.py:Unready", "-b", "unix:socket", "-w", "1", "--log-level", level]
    status, log = outcome(command(*arguments))
    assert status == 3
    error = "the application cannot boot: no worker became ready: RuntimeError: no database"
    assert f"prefork: error: {error}\n" in log
    assert log.count("Traceback") == 1
    assert log.count("\n    RuntimeError: no database\n") + log.count("\nRuntimeError: no") == 1
    assert not (tmp_path / "socket").exists()


# --- the log


def test_json_log(serving: Callable[..., Program]) -> None:
    """With JSON every line of standard error is one object."""
    program = serving(ECHO, "-b", "127.0.0.1:0", "-w", "1", "--log-format", "json")
    (worker,) = program.workers()
    assert program.stop() == 0
    said = [json.loads(line) for line in program.log.splitlines()]
    assert {"time", "level", "logger", "pid", "message", "subject", "event"} <= said[0].keys()
    assert {"slot": 0, "gen": 0, "pid": worker}.items() <= next(
        entry["facts"] for entry in said if entry["subject"] == "worker"
    ).items()
    (exited,) = [entry for entry in said if entry["event"] == "exited"]
    assert exited["facts"]["cause"] == "retired"


def test_log_level(serving: Callable[..., Program], command: Callable[..., Program]) -> None:
    """At the level ``error`` a run without errors logs nothing."""
    program = command("run", ECHO, "-b", "127.0.0.1:0", "-w", "1", "--log-level", "error")
    program.wait_workers(1)
    wait_until(lambda: "worker 0" in title_of(program.worker()), "a worker that serves")
    assert program.stop() == 0
    assert program.log == ""


def test_application_logs_the_same_way(serving: Callable[..., Program]) -> None:
    """Records of the application are lines that name the logger and the process."""
    program = serving(RUN, "-b", "127.0.0.1:0", "-w", "1")
    ask(port_of(program), "logging.getLogger('shop').warning('two\\nlines')")
    (line,) = program.wait_logged(r"shop\[")
    assert line.endswith(f"WARNING shop[{program.worker()}]: two")
    assert program.stop() == 0


def test_application_that_configures_logging_anew(
    serving: Callable[..., Program], tmp_path: Path
) -> None:
    """An application that calls ``dictConfig()`` with its defaults still has the lines of the pool, of all processes."""
    write(tmp_path, "import logging.config\nlogging.config.dictConfig({'version': 1})\n")
    program = serving("app.py:Run", "-b", "127.0.0.1:0", "-w", "1")
    ask(port_of(program), "logging.getLogger('shop').warning('from a worker')")
    program.wait_logged(r"WARNING shop\[\d+\]: from a worker")
    assert program.stop() == 0
    assert "master stopped" in program.log


def test_log_that_nobody_reads(command: Callable[..., Program], tmp_path: Path) -> None:
    """A full pipe delays neither serving nor stopping, and the lost lines are counted."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        arguments = ["run", RUN, "-b", "unix:socket", "-w", "1"]
        program = command(*arguments, stderr=writer)
        wait_until(lambda: listens(tmp_path / "socket"), "a server that listens")
        for _ in range(50):
            assert ask(str(tmp_path / "socket"), "logging.getLogger().error('x' * 3000)")
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(reader, 65_536):
                pass
        assert ask(str(tmp_path / "socket"), "logging.getLogger().error('heard')")
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 10  # far below graceful_timeout
        said = os.read(reader, 65_536).decode()
    finally:
        os.close(reader)
        os.close(writer)
    assert 'log lost lines lines=50 reason="reader too slow"' in said
    assert "heard" in said
    assert "master stopped" in said


def test_worker_that_has_its_log_block(command: Callable[..., Program], tmp_path: Path) -> None:
    """A worker that makes its descriptor of a full log blocking holds up neither the master nor another worker."""
    reader, writer = os.pipe()
    address = str(tmp_path / "socket")
    hostile = "__import__('tests.support.hostile', fromlist=['each'])"
    try:
        program = command("run", RUN, "-b", "unix:socket", "-w", "2", stderr=writer)
        wait_until(lambda: listens(tmp_path / "socket"), "a server that listens")
        answer = ask(address, f"{hostile}.fill_pipes(self, b'x' * 4096, blocking=True)")
        victim = int(answer.split()[0])
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(program.workers() - {victim}) == 2, "another worker")
        for _ in range(6):
            assert ask(address, "logging.getLogger().error('x')")
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 10  # far below graceful_timeout
    finally:
        os.close(reader)
        os.close(writer)


def test_closed_standard_streams(command: Callable[..., Program], tmp_path: Path) -> None:
    """With standard streams closed, neither listener nor scoreboard gets one of their numbers."""
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    program = command("run", RUN, "-b", "unix:socket", "-w", "1", before=closing)
    wait_until(lambda: listens(tmp_path / "socket"), "a server that listens")
    links = "[os.readlink(f'/proc/self/fd/{n}') for n in range(3)]"
    assert ask(str(tmp_path / "socket"), links).count("/dev/null") == 3
    assert program.stop() == 0


# --- the pid file


def test_pid_file(serving: Callable[..., Program], command: Callable[..., Program]) -> None:
    """The pid file names the master, keeps a second start away, and is removed at the end."""
    first = serving(ECHO, "-b", "127.0.0.1:0", "-w", "1", "-p", "pid", name="first")
    pidfile = first.stderr_path.with_name("pid")
    assert pidfile.read_text() == f"{first.pid}\n"
    second = command("run", ECHO, "-b", "127.0.0.1:0", "-p", "pid", name="second")
    status, log = outcome(second)
    assert status == 1
    assert f"pidfile pid (from flag --pidfile) is held by the running process {first.pid}" in log
    assert pidfile.read_text() == f"{first.pid}\n"
    assert server_of(port_of(first)) in first.workers()
    first.popen.kill()
    first.wait()
    third = serving(ECHO, "-b", "127.0.0.1:0", "-w", "1", "-p", "pid", name="third")
    assert pidfile.read_text() == f"{third.pid}\n"
    assert third.stop() == 0
    assert not pidfile.exists()


# --- check


def test_check_says_ok_and_binds_nothing(command: Callable[..., Program], tmp_path: Path) -> None:
    """``check`` binds no address and calls no factory."""
    write(tmp_path, "print('imported')\ndef make():\n    raise RuntimeError\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for target, *more in (("app.py:Echo",), ("app:make", "--factory")):
            arguments = ["check", target, *more, "-b", f"127.0.0.1:{port}", "-w", "2"]
            program = command(*arguments, name=f"check{len(more)}")
            program.wait_silent()
            assert outcome(program) == (0, "")


@pytest.mark.parametrize("target", [[ECHO], []], ids=["named", "in the file"])
def test_check_tells_what_would_be_served(tmp_path: Path, target: list[str]) -> None:
    """``check`` prints one line about what would be served, whether TARGET is named or in the settings file."""
    from tests.support.server import environment

    (tmp_path / "prefork.toml").write_text(f'target = "{ECHO}"\n')
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "check", "-b", ":80", "-b", "unix:/x y", "-w2", *target],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "OK: handler class Echo on tcp://0.0.0.0:80 unix:/x y, workers=2 max_children=40\n"
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("status", "message", "source", "target"),
    [
        (3, "ZeroDivisionError", "1 / 0", "app.py:Echo"),
        (3, "ended the process while it was loaded", "os._exit(0)", "app.py:Echo"),
        (3, "died of SIGSEGV while", "os.kill(os.getpid(), 11)", "app.py:Echo"),
        (2, "no Ecko; did you mean Echo?", "", "app.py:Ecko"),
        (2, "workers = 7 (from attribute S.workers)", "", "app.py:S"),
    ],
)
def test_check_finds_what_would_fail(
    command: Callable[..., Program],
    tmp_path: Path,
    *,
    status: int,
    message: str,
    source: str,
    target: str,
) -> None:
    """``check`` ends with the exit code that ``run`` would end with."""
    server = "class S(prefork.PreForkingTCPServer):\n    workers, max_children = 7, 6\n"
    write(tmp_path, f"{source}\n{server}    RequestHandlerClass = Echo\n")
    found, log = outcome(command("check", target))
    assert found == status
    assert message in log
    assert "cli.py" not in log


REFUSED = {
    "a server class without its handler": ["app.py:NoHandler"],
    "a server class that binds no such address": ["app.py:S", "-b", "udp://127.0.0.1:0"],
    "an instance without the mix-in": ["app.py:plain"],
    "an instance with an address": ["app.py:made", "-b", "127.0.0.1:0"],
    "an address that is none": ["app.py:Echo", "-b", "80"],
    "metrics that are no address": ["app.py:Echo", "--metrics", "127.0.0.1:2024x"],
    "metrics on a datagram socket": ["app.py:Echo", "--metrics", "udp://127.0.0.1:9100"],
    "metrics of a class that are no address": ["app.py:Measured"],
    "a folder for metrics that is missing": ["app.py:Echo", "--metrics-dir", "nowhere"],
    "a folder for metrics of a class": ["app.py:Kept"],
    "a pid file in a folder that is missing": ["app.py:Echo", "-p", "nowhere/pid"],
    "a pid file that is something else": ["app.py:Echo", "-p", "app.py"],
    "a pid file that is a link": ["app.py:Echo", "-p", "link"],
    "a uid without a group": ["app.py:Echo", "-u", "12345678"],
    "a user that is unknown": ["app.py:Echo", "-u", "nobody-of-this-name"],
    "more workers than there may be": ["app.py:Echo", "-w", "41", "--max-children", "40"],
    "several addresses without workers": ["app.py:Echo", "-w0", "-b", ":0", "-b", ":0"],
    "one address twice": ["app.py:S", "-b", "127.0.0.1:4711", "-b", "127.0.0.1:4711"],
    "metrics where a server listens": ["app.py:S", "-b", ":4711", "--metrics", "127.0.0.1:4711"],
    "a socket in a folder that is missing": ["app.py:Echo", "-b", "unix:nowhere/socket"],
    "clients counted in threads": ["app.py:Overlapping", "--max-per-client", "4"],
    "a format of HTTP for other requests": ["app.py:Echo", "--access-log", "combined"],
    "a TLS context that is none": ["app.py:Unwrapped"],
    "watching without workers": ["app.py:Echo", "-w0", "--watch"],
    "threads that are refused": ["app.py:Threaded", "--fork-check", "error"],
    "a factory that takes arguments": ["app.py:factory", "--factory"],
    "a mix-in in second place": ["order.py:S"],
    "a misspelt attribute": ["misspelt.py:S"],
    "a folder that is missing": ["app.py:Echo", "--chdir", "nowhere"],
    "a file of variables that is missing": ["app.py:Echo", "--env-file", "nowhere"],
    "a configuration of logging that is missing": ["app.py:Echo", "--log-config", "nowhere.json"],
    "a configuration of logging that is none": ["app.py:Echo", "--log-config", "app.py"],
}
"""What ``run`` refuses before it binds anything: the arguments of both commands."""

REFUSED_APPLICATION = """
class NoHandler(prefork.PreForkingMixIn, socketserver.TCPServer): pass
class S(prefork.PreForkingTCPServer): RequestHandlerClass = Echo
class Measured(S): metrics_address = "here"
class Kept(S): metrics_dir = "nowhere"
class Overlapping(prefork.PreForkingMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
    RequestHandlerClass = Echo
class Unwrapped(S): tls_context = 3
plain = socketserver.TCPServer(("127.0.0.1", 0), Echo, False)
made = S(("127.0.0.1", 0), Echo)
def factory(argument): return Echo
if "error" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
class Threaded(S): pass
"""


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED.keys())
def test_check_and_run_refuse_the_same(
    command: Callable[..., Program], tmp_path: Path, arguments: list[str]
) -> None:
    """What ``run`` refuses, ``check`` refuses with the same words and the same exit status."""
    write(tmp_path, REFUSED_APPLICATION)
    head = "import prefork, socketserver\n"
    bases = "socketserver.TCPServer, prefork.PreForkingMixIn"
    (tmp_path / "order.py").write_text(f"{head}class S({bases}): pass\n")
    (tmp_path / "misspelt.py").write_text(
        f"{head}class S(prefork.PreForkingTCPServer): worker = 4\n"
    )
    (tmp_path / "link").symlink_to("pid")
    run, check = (command(name, *arguments, name=name) for name in ("run", "check"))

    status, said = outcome(run)

    assert status in (2, 3, 4)
    assert outcome(check) == (status, said)
    assert said.startswith("prefork: error: ")
    assert "from settings" not in said
    assert "Traceback" not in said


def test_user_that_is_not_oneself(command: Callable[..., Program]) -> None:
    """Without privileges another user is refused by both commands, with the origin of the setting."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for name in ("run", "check"):
        found, said = outcome(
            command(name, ECHO, before=nobody, name=f"{name}-in-a-private-folder")
        )
        if found == 127 or "No module named" in said:  # the interpreter, or prefork
            pytest.skip("another user cannot read this environment")
        assert (found, "the working directory cannot be searched" in said) == (2, True)
    nobody = ("env", "--chdir=/", *nobody)
    for name in ("run", "check"):
        status, said = outcome(command(name, ECHO, "--user", "root", before=nobody, name=name))
        assert (status, "user = 'root' (from flag --user) is refused: only root" in said) == (
            2,
            True,
        )


def test_check_ends_what_the_application_started(
    command: Callable[..., Program], tmp_path: Path
) -> None:
    """``check`` ends although the application has started threads and children."""
    write(
        tmp_path,
        "threading.Thread(target=threading.Event().wait).start()\n"
        "tell('child', subprocess.Popen(['sleep', '1000']).pid)\n",
    )
    program = command("check", "app.py:Echo")
    child = program.told("child")
    assert program.wait() == 0
    program.wait_silent()
    assert not is_alive(child)


def test_check_of_an_application_that_hangs(
    command: Callable[..., Program], tmp_path: Path
) -> None:
    """``check`` of an application that hangs ends after boot_timeout or by TERM, and so does its child."""
    write(tmp_path, "tell('loading', os.getpid())\nthreading.Event().wait()\n")
    status, log = outcome(command("check", "app.py:Echo", "--boot-timeout", "800ms"))
    assert status == 3
    assert "the application was not loaded within 0.8 seconds" in log
    program = command("check", "app.py:Echo")
    child = program.told("loading")
    assert program.stop() == 130
    program.wait_silent()
    assert not is_alive(child)


# --- where a command works, and with what


def test_folder_and_variables(command: Callable[..., Program], tmp_path: Path) -> None:
    """--chdir, --env-file and the file's target count before anything is loaded, and over a reload."""
    (tmp_path / "there").mkdir()
    write(
        tmp_path / "there",
        "tell('imported', [os.getcwd(), os.environ['WORD'], os.environ['KEPT']])",
    )
    (tmp_path / "there" / "prefork.toml").write_text('target = "app:Echo"\nworkers = 1\n')
    (tmp_path / "there" / "env").write_text(
        "# a comment\nWORD='one two'\nexport KEPT=no\nPREFORK_NAME=shop\n"
    )
    flags = ["-b", "127.0.0.1:0", "--chdir", "there", "--env-file", "env"]
    program = command(*flags, environ={"KEPT": "yes"})
    wait_until(lambda: re.search(r"master pid=\d+ ready workers=1", program.log), "a pool")
    told = [str(tmp_path / "there"), "one two", "yes"]
    assert program.told("imported") == told
    assert "[shop]" in title_of(program.pid)

    (tmp_path / "there" / "env").write_text("WORD=three\n")
    program.signal(signal.SIGHUP)
    wait_until(lambda: "master reloaded generation=1" in program.log, lambda: program.log)
    assert program.all_told("imported")[-1] == [told[0], "three", "yes"]
    assert program.stop() == 0


@pytest.mark.parametrize("form", ["json", "toml", "ini"])
def test_log_config(command: Callable[..., Program], tmp_path: Path, form: str) -> None:
    """--log-config replaces the log of the command line, and prefork's logger stays enabled."""
    (tmp_path / "log.json").write_text(
        json.dumps(
            {
                "handlers": {"file": {"class": "logging.FileHandler", "filename": "log"}},
                "root": {"level": "INFO", "handlers": ["file"]},
            }
        )
    )
    (tmp_path / "log.toml").write_text(
        "[handlers.file]\nclass = 'logging.FileHandler'\nfilename = 'log'\n"
        "[root]\nlevel = 'INFO'\nhandlers = ['file']\n"
    )
    (tmp_path / "log.ini").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=file\n[formatters]\nkeys=\n"
        "[logger_root]\nlevel=INFO\nhandlers=file\n"
        "[handler_file]\nclass=FileHandler\nargs=('log',)\n"
    )
    program = command(ECHO, "-b", "127.0.0.1:0", "--log-config", f"log.{form}")
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and "ready workers=" in log.read_text(), lambda: program.log)
    assert program.stop() == 0
    assert "started" not in program.log


# --- without /proc


def test_without_proc(start: Callable[..., Program], tmp_path: Path) -> None:
    """Without /proc the pool serves, one line says what is missing, and nothing is tried that cannot work."""
    if os.getuid() != 0:
        pytest.skip("only root can unmount /proc for itself")
    script = tmp_path / "script"
    script.write_text('mount -t tmpfs none /proc && exec "$@"\n')
    without = ("unshare", "--mount", "sh", str(script))

    def prefork(*arguments: str, name: str) -> Program:
        return start(None, arguments=["-m", "prefork", *arguments], before=without, name=name)

    program = prefork(ECHO, "-b", "127.0.0.1:0", "-w1", name="pool")
    wait_until(lambda: re.search(r"master pid=\d+ ready", program.log), "a pool")
    assert ask(port_of(program))
    assert program.log.count("/proc is not mounted") == 1

    program.signal(signal.SIGHUP)
    wait_until(lambda: "master reload failed, still serving" in program.log, "a refusal")
    assert ask(port_of(program))

    found, said = outcome(prefork("status", str(program.pid), name="status"))
    assert (found, "/proc is not mounted here" in said) == (2, True)
    found, said = outcome(prefork(ECHO, "--metrics", "127.0.0.1:0", name="metrics"))
    assert (found, "the metrics process reads /proc" in said) == (2, True)
    assert program.stop() == 0
