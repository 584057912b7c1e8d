"""Under systemd, as far as a process can tell: a manager that listens, and sockets that it hands over."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.clients import (
    TIMEOUT,
    ask,
    ask_datagram,
    connect,
    read_all,
    send,
    send_line,
    server_of,
)
from tests.support.server import environment, serving
from tests.support.waiting import CEILING, stays, wait_until

if TYPE_CHECKING:
    from tests.support.clients import Address
    from tests.support.server import Program

pytestmark = pytest.mark.once  # a protocol: sockets and the environment

ECHO = "tests.support.app:Echo"
RUN = "tests.support.app:Run"
UNITS = Path(__file__).parents[2] / "examples" / "systemd"


# --- a manager that listens ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One datagram: its assignments, who sent it, and when it was read."""

    fields: dict[str, str]
    pid: int
    at: float

    @property
    def what(self) -> str:
        """The name of the first assignment."""
        return next(iter(self.fields))


class Manager:
    """Listens as systemd does, and keeps what it hears."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.messages: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(path)

    def listen(self, timeout: float) -> None:
        """Take one message, if one comes."""
        self._socket.settimeout(max(timeout, 0.0001))
        try:
            text, ancillary, _, _ = self._socket.recvmsg(4096, 64)
        except TimeoutError:
            return
        pid = struct.unpack_from("i", ancillary[0][2])[0]
        fields = dict(line.split("=", 1) for line in text.decode().splitlines())
        self.messages.append(Message(fields, pid, time.monotonic()))

    def hear(self, *changes: str) -> list[Message]:
        """Return the messages of a life so far (no signs of life, no bare status), once they are these kinds."""

        def heard() -> list[Message]:
            self.listen(0.05)
            return self.changes() if len(self.changes()) >= len(changes) else []

        found = wait_until(heard, lambda: f"{changes}, heard {self.messages}")
        assert tuple(message.what for message in found) == changes
        return found

    def changes(self) -> list[Message]:
        """Return what is more than a status or a sign of life."""
        return [one for one in self.messages if one.what not in ("STATUS", "WATCHDOG")]

    def hear_all(self, silence: float = 0.3) -> None:
        """Take what comes, until nothing has come for a while."""
        before = -1
        while len(self.messages) > before:
            before = len(self.messages)
            self.listen(silence)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        os.unlink(self.path)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """Listen to the program of a test."""
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


Starting = Callable[..., "Program"]


@pytest.fixture
def command(start: Starting) -> Starting:
    """``command(target, *flags)`` starts ``prefork run`` with a port of its own."""

    def start_command(*arguments: str, **options: Any) -> Program:
        return start(None, arguments=["-m", "prefork", "run", *arguments], **options)

    return start_command


def address_of(program: Program) -> tuple[str, int]:
    """Return where a program listens, as its log tells."""
    (line, *_) = program.wait_logged("listeners=tcp://")
    match = re.search(r"tcp://([\d.]+):(\d+)", line)
    assert match is not None
    return match[1], int(match[2])


@pytest.mark.parametrize("way", ["command", "script"])
def test_life_is_told_in_order(
    way: str, start: Starting, command: Starting, manager: Manager
) -> None:
    """READY when the pool is ready, RELOADING with the clock and READY around a reload, STOPPING at the end; the master says it."""
    environ = {"NOTIFY_SOCKET": manager.path}
    if way == "command":
        program = command(ECHO, "-b", "127.0.0.1:0", "-w", "2", environ=environ)
    else:
        program = start(serving(workers=2), environ=environ)
    (ready,) = manager.hear("READY")
    assert len(program.workers()) == 2
    assert ready.fields["STATUS"] == "2 workers ready"
    old = program.workers()

    before = time.monotonic_ns() // 1000
    program.signal(signal.SIGHUP)
    _, reloading, reloaded = manager.hear("READY", "RELOADING", "READY")
    assert before <= int(reloading.fields["MONOTONIC_USEC"]) <= reloading.at * 1e6
    assert reloaded.fields["STATUS"] == "reloaded, generation 1"
    assert not old & program.workers()

    program.terminate()
    messages = manager.hear("READY", "RELOADING", "READY", "STOPPING")
    assert {message.pid for message in messages} == {program.pid}
    assert program.wait() == 0
    manager.listen(0)
    assert len(manager.changes()) == 4


def test_reload_that_fails_is_over_too(command: Starting, manager: Manager, tmp_path: Path) -> None:
    """READY comes after a failed reload as well, with the reason as the status, and systemctl does not hang."""
    application = tmp_path / "app.py"
    application.write_text("from tests.support.app import Echo\n")
    environ = {"NOTIFY_SOCKET": manager.path}
    program = command("app.py:Echo", "-b", "127.0.0.1:0", "-w", "1", environ=environ)
    manager.hear("READY")
    application.write_text("raise OSError('no such shop')\n")

    program.signal(signal.SIGHUP)
    *_, over = manager.hear("READY", "RELOADING", "READY")
    assert over.fields["STATUS"].startswith("the reload failed: ")
    assert server_of(address_of(program)) in program.workers()

    application.unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    application.write_text("from tests.support.app import Echo\n")
    program.signal(signal.SIGHUP)
    *_, over = manager.hear("READY", "RELOADING", "READY", "RELOADING", "READY")
    assert over.fields["STATUS"] == "reloaded, generation 1"


def test_ready_is_not_told_before_the_new_workers_are(
    start: Starting, manager: Manager, tmp_path: Path
) -> None:
    """A reload is over, and the new master ready, when workers of the new code have replaced the previous ones."""
    source = serving(workers=2).replace(
        "serve(Echo, prefork.PreForkingTCPServer",
        "def worker_init(self, worker):\n"
        "    tell('init', worker.generation)\n"
        "    while worker.generation and not os.path.exists('go'): time.sleep(0.01)\n"
        "serve(Echo, worker_init=worker_init",
    )
    program = start(source, environ={"NOTIFY_SOCKET": manager.path})
    manager.hear("READY")
    program.signal(signal.SIGHUP)
    assert program.told("init", 2) == 1
    program.wait_logged("continues with new code")
    manager.hear_all()
    manager.hear("READY", "RELOADING")
    (tmp_path / "go").touch()
    manager.hear("READY", "RELOADING", "READY")
    program.wait_logged(r"master pid=\d+ ready", times=2)


def test_reload_that_fails_while_the_pool_starts(
    start: Starting, manager: Manager, tmp_path: Path
) -> None:
    """A reload that fails before the pool was ready does not make it ready; its workers do."""
    source = "import sys\nexec(open('first').read())\n" + serving(workers=1).replace(
        "serve(Echo, prefork.PreForkingTCPServer",
        "def worker_init(self, worker):\n"
        "    while not os.path.exists('go'): time.sleep(0.01)\n"
        "serve(Echo, worker_init=worker_init",
    )
    (tmp_path / "first").write_text("")
    program = start(source, environ={"NOTIFY_SOCKET": manager.path})
    program.wait_logged("master pid=.* started")
    (tmp_path / "first").write_text("sys.exit('no licence')\n")
    program.signal(signal.SIGHUP)
    program.wait_logged("reload failed")
    manager.hear_all()
    manager.hear("RELOADING")
    (tmp_path / "go").touch()
    manager.hear("RELOADING", "READY")


def test_new_code_that_ends_after_its_trial(
    start: Starting, manager: Manager, tmp_path: Path
) -> None:
    """When the new code ends before it serves, the reload is over, its status says so, and the signs of life go on."""
    source = "import sys\nexec(open('first').read())\n" + serving(workers=1)
    (tmp_path / "first").write_text("")
    environ = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "900000"}
    program = start(source, environ=environ)
    manager.hear("READY")
    (tmp_path / "first").write_text(
        "import os, prefork.host.process\n"
        "if not prefork.host.process.process.is_trial: sys.exit('no licence')\n"
    )
    program.signal(signal.SIGHUP)
    *_, over = manager.hear("READY", "RELOADING", "READY")
    assert "the previous workers keep serving" in over.fields["STATUS"]
    signs_after(manager, over.at, 3)
    program.terminate()
    manager.hear("READY", "RELOADING", "READY", "STOPPING")
    program.wait()


def signs_after(manager: Manager, instant: float, count: int) -> list[float]:
    """Return the instants of this many signs of life after one."""

    def signs() -> list[float]:
        manager.listen(0.05)
        found = [one.at for one in manager.messages if "WATCHDOG" in one.fields]
        return found if sum(at > instant for at in found) >= count else []

    return [at for at in wait_until(signs, f"{count} signs of life") if at > instant]


def test_signs_of_life_stop_with_the_master(command: Starting, manager: Manager) -> None:
    """While the master is well it feeds the watchdog in time; while it is stopped it does not; then it does again."""
    span = 3.0
    environ = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": f"{span * 1e6:.0f}"}
    program = command(ECHO, "-b", "127.0.0.1:0", "-w", "1", environ=environ)
    manager.hear("READY")
    signs = signs_after(manager, 0.0, 4)
    gaps = [after - before for before, after in itertools.pairwise(signs)]
    assert max(gaps) < span
    assert sum(gaps) / len(gaps) > span / 4, "three in that time are enough"

    program.signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(program.pid).status() == "stopped", "the master is stopped")
    manager.listen(0.2)  # what was on its way
    before = len(manager.messages)

    def silent() -> bool:
        manager.listen(0.05)
        return len(manager.messages) == before

    stays(silent, "a stopped master gives a sign of life", span * 0.7)
    program.signal(signal.SIGCONT)
    signs_after(manager, time.monotonic(), 1)


def test_watchdog_of_another_process_is_left_alone(command: Starting, manager: Manager) -> None:
    """WATCHDOG_PID that names another process asks nothing of this one."""
    environ = {
        "NOTIFY_SOCKET": manager.path,
        "WATCHDOG_USEC": "600000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    command(ECHO, "-b", "127.0.0.1:0", "-w", "1", environ=environ)
    manager.hear("READY")
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        manager.listen(0.1)
    assert not [one for one in manager.messages if "WATCHDOG" in one.fields]


def test_status_tells_what_goes_on(command: Starting, manager: Manager) -> None:
    """The status line counts busy workers and clients that wait."""
    environ = {"NOTIFY_SOCKET": manager.path}
    program = command(RUN, "-b", "127.0.0.1:0", "-w", "1", environ=environ)
    manager.hear("READY")
    address = address_of(program)
    with connect(address) as first, connect(address):
        wait_until(
            lambda: (
                manager.listen(0.05)
                or manager.messages[-1].fields.get("STATUS")
                == "1/1 workers busy, 1 clients waiting"
            ),
            lambda: f"a status that says so: {manager.messages}",
        )
        send_line(first, "1")


ENVIRON = "sorted(k for k in os.environ if k.startswith(('NOTIFY', 'WATCHDOG', 'LISTEN_')))"
OF_A_PROGRAM = (
    f"subprocess.check_output([sys.executable, '-c', {'import os; print(' + ENVIRON + ')'!r}])"
)


def test_workers_cannot_speak_for_the_service(command: Starting, manager: Manager) -> None:
    """Neither a worker nor a program that a handler starts knows the manager, before and after a reload."""
    environ = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "60000000"}
    program = command(RUN, "-b", "127.0.0.1:0", "-w", "1", environ=environ)
    changes = ["READY"]
    manager.hear(*changes)
    address = address_of(program)
    for _ in range(2):
        assert ask(address, ENVIRON).endswith(" []")
        assert ask(address, OF_A_PROGRAM).endswith(r" b'[]\n'")
        program.signal(signal.SIGHUP)
        changes += ["RELOADING", "READY"]
        manager.hear(*changes)


def test_a_program_that_serves_twice_tells_it_twice(start: Starting, manager: Manager) -> None:
    """The variables are there again when serve_forever() has returned, and shutdown() is no end of the service."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            def when_ready(self):
                threading.Thread(target=self.shutdown).start()

        with Server(LOOPBACK, Echo) as server:
            for _ in range(2):
                server.serve_forever()
                tell("there", "NOTIFY_SOCKET" in os.environ)
        """,
        environ={"NOTIFY_SOCKET": manager.path},
    )
    assert [program.told("there", nth) for nth in range(2)] == [True, True]
    manager.hear("READY", "READY")
    assert program.wait() == 0


def test_nobody_listens(command: Starting, tmp_path: Path) -> None:
    """A manager that is gone harms nothing: the pool serves and stops."""
    environ = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"}
    program = command(ECHO, "-b", "127.0.0.1:0", "-w", "1", environ=environ)
    program.wait_logged("ready workers=1")
    assert server_of(address_of(program)) in program.workers()
    assert program.stop() == 0
    assert len(program.logged("cannot notify the service manager")) == 1


# --- sockets that are handed over ------------------------------------------------------------------

_ACTIVATE = """
import fcntl, os, sys
fds, names, *command = sys.argv[1:]
given = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds.split(",")]
for fd in fds.split(","):
    os.close(int(fd))
for number, fd in enumerate(given, 3):
    os.dup2(fd, number)
os.environ.update(LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=names)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execv(command[0], command)
"""


@pytest.fixture
def activated(start: Starting) -> Starting:
    """``activated({"web": sock, …}, *arguments)`` starts ``prefork run`` as systemd would hand it these sockets."""

    def start_activated(
        given: dict[str, Any], *arguments: str, source: str | None = None, **options: Any
    ) -> Program:
        fds = [sock if isinstance(sock, int) else sock.fileno() for sock in given.values()]
        names = ":".join(name.partition("#")[0] for name in given)
        return start(
            source,
            before=[sys.executable, "-c", _ACTIVATE, ",".join(map(str, fds)), names],
            arguments=() if source else ["-m", "prefork", "run", *arguments],
            pass_fds=fds,
            **options,
        )

    return start_activated


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen on a TCP socket that is systemd's."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def ready(program: Program, times: int = 1) -> Program:
    """Wait until the pool is ready (again, for an image after a reload)."""
    wait_until(
        lambda: len(program.logged(r"master pid=\d+ ready")) >= times or program.popen.poll(),
        lambda: f"a pool that is ready:\n{program.log}",
    )
    assert program.popen.poll() is None, program.log
    return program


def reload(program: Program, nth: int = 1) -> None:
    """Have it reload, and wait until all workers are new."""
    program.signal(signal.SIGHUP)
    wait_until(
        lambda: program.logged(rf"master reloaded generation={nth}"),
        lambda: f"a reload that is over:\n{program.log[-4000:]}",
    )


def test_sockets_by_name_through_reloads(activated: Starting, listener: socket.socket) -> None:
    """``systemd:NAME`` serves the socket of that name, now and after each reload, and its variables go no further."""
    with socket.create_server(("127.0.0.1", 0)) as admin:
        given = {"admin": admin, "web": listener}
        program = ready(activated(given, RUN, "-b", "systemd:web", "-w", "1"))
        address = listener.getsockname()
        for nth in (1, 2):
            assert ask(address, ENVIRON).endswith(" []")
            assert ask(address, OF_A_PROGRAM).endswith(r" b'[]\n'")
            inherited = "subprocess.check_output(['ls', '/proc/self/fd'], close_fds=False)"
            assert ask(address, inherited).endswith(r" b'0\n1\n2\n3\n'"), "3 is what ls reads"
            reload(program, nth)
        assert program.logged("no server uses a socket that systemd handed over.* name=admin fd=3")
        assert program.stop() == 0


def test_socket_stays_the_managers(activated: Starting, listener: socket.socket) -> None:
    """After a stop the socket is what it was: clients wait in its queue for the next one who serves."""
    program = ready(activated({"web": listener}, ECHO, "-w", "1"))
    address = listener.getsockname()
    reload(program)
    assert server_of(address) in program.workers()
    assert program.stop() == 0
    with send(address, "later") as client:
        second = ready(activated({"web": listener}, ECHO, "-w", "1"))
        assert read_all(client).endswith(" later")
        assert second.stop() == 0


def test_all_kinds_without_a_name(
    activated: Starting, listener: socket.socket, tmp_path: Path
) -> None:
    """Without ``--bind`` all sockets are served, and the path of a Unix one outlives the service and its reload."""
    path = str(tmp_path / "sock")
    with (
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as ipv6,
    ):
        unix.bind(path)
        unix.listen()
        given = {"a": unix, "a#2": listener, "b": ipv6}
        program = ready(activated(given, ECHO, "-w", "2"))
        for times in (1, 2):
            ready(program, times)
            for address in (path, listener.getsockname(), ipv6.getsockname()[:2]):
                assert server_of(address) in program.workers()
            if times == 1:
                reload(program)
        assert program.stop() == 0
        assert os.path.exists(path)
        with connect(path):
            unix.accept()[0].close()
    os.unlink(path)


def test_datagrams(activated: Starting) -> None:
    """A datagram socket is served by the name, too, and after a reload."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        handler = "tests.support.app:EchoDatagram"
        program = ready(activated({"dns": sock}, handler, "-b", "systemd:dns", "-w", "1"))
        for nth in (1, 2):
            pid, text = ask_datagram(sock.getsockname()).split()
            assert (int(pid) in program.workers(), text) == (True, "hello")
            reload(program, nth)


def test_one_that_nobody_served_is_there_after_a_reload(
    activated: Starting, listener: socket.socket, tmp_path: Path
) -> None:
    """A reload may begin to serve a socket that was handed over at the start, and leave another one."""
    settings = tmp_path / "prefork.toml"
    settings.write_text("workers = 1\nbind = ['systemd:web']\n")
    with socket.create_server(("127.0.0.1", 0)) as admin:
        program = ready(activated({"web": listener, "admin": admin}, ECHO))
        settings.write_text("workers = 1\nbind = ['systemd:admin']\n")
        with send(admin.getsockname(), "early") as client:
            reload(program, 1)
            assert read_all(client).endswith(" early")
        settings.write_text("workers = 1\nbind = ['systemd:web', 'systemd:admin']\n")
        reload(program, 2)
        for sock in (listener, admin):
            assert server_of(sock.getsockname()) in program.workers()


def test_socket_outlives_new_code_that_fails_only_after_the_exec(
    activated: Starting, listener: socket.socket, tmp_path: Path
) -> None:
    """New code that closes its servers before it has served does not close the socket for the next attempt."""
    app = tmp_path / "app.py"
    echo = "from tests.support.app import *\n"
    app.write_text(echo)
    flags = ("-b", "systemd:web", "-w", "1", "--fork-check", "error")
    program = ready(activated({"web": listener}, f"{app}:Echo", *flags))
    app.write_text(
        echo + "from prefork.host.process import process\n"
        "if process.handover is not None:\n"
        "    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    )
    for times in (1, 2):
        program.signal(signal.SIGHUP)
        program.wait_logged("ended before it served", times=times)
        assert server_of(listener.getsockname()) in program.workers()
    app.write_text(echo)
    reload(program)
    assert server_of(listener.getsockname()) in program.workers()
    assert program.stop() == 0


def test_script_takes_one_itself(activated: Starting, listener: socket.socket) -> None:
    """A script that adopts the descriptor by hand keeps it through a reload."""
    source = """
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            listener_inherited = True
            when_ready = announce

        log_to_stderr()
        server = Server(LOOPBACK, Run, bind_and_activate=False)
        server.socket.close()
        server.socket = socket.socket(fileno=3)
        server.server_address = server.socket.getsockname()
        server.serve_forever()
        """
    program = activated({"web": listener}, source=source)
    assert program.address() == listener.getsockname()
    for nth in (1, 2):
        assert ask(listener.getsockname(), ENVIRON).endswith(" []")
        reload(program, nth)


def test_sockets_for_another_process_are_not_touched(
    activated: Starting, listener: socket.socket
) -> None:
    """LISTEN_PID of somebody else: the sockets have no names here, and the variables stay."""
    given, environ = {"web": listener}, {"LISTEN_PID": str(os.getpid())}
    program = activated(given, RUN, "-b", "systemd:web", environ=environ)
    assert program.wait() == 4
    assert "no socket was handed over to this process" in program.log
    program = ready(activated(given, RUN, "-b", "127.0.0.1:0", "-w", "1", environ=environ))
    variables = ["LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"]
    assert ask(address_of(program), ENVIRON).endswith(f" {variables}")


@pytest.mark.parametrize(
    ("given", "bind", "reason"),
    [
        ("listener", "systemd:web", "no socket of that name was handed over, only other"),
        (None, "systemd:web", "no socket was handed over to this process"),
        ("client", "systemd:other", "that socket does not listen"),
        ("file", "systemd:other", "has inherited no socket with that number"),
        ("packets", "systemd:other", "that socket is AF_UNIX SOCK_SEQPACKET; only "),
        ("file", None, "has inherited no socket with that number"),
    ],
)
def test_what_cannot_be_served_is_refused(
    given: str | None,
    bind: str | None,
    reason: str,
    *,
    activated: Starting,
    command: Starting,
    listener: socket.socket,
    tmp_path: Path,
) -> None:
    """A name that is not there, a connection (Accept=yes), a file or a raw socket: exit code 4 and the reason."""
    flags = [] if bind is None else ["-b", bind]
    client, other_end = socket.socketpair()
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with client, other_end, packets, (tmp_path / "file").open("w") as file:
        sockets = {"listener": listener, "client": client, "file": file, "packets": packets}
        if given is None:
            program = command(ECHO, *flags)
        else:
            program = activated({"other": sockets[given]}, ECHO, *flags)
        assert program.wait() == 4
    assert reason in program.log


def test_check_needs_no_socket() -> None:
    """``prefork check`` accepts a name without the sockets: they come with the service."""
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "check", ECHO, "-b", "systemd:web"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "systemd:web" in done.stdout) == (0, True), done.stderr


# --- systemd's own tools ---------------------------------------------------------------------------

needs_activate = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None,
    reason="systemd-socket-activate is not installed (Debian's package systemd)",
)
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed (Debian's package systemd)",
)


def unit(name: str) -> dict[str, list[str]]:
    """Return the assignments of a unit file, in order, by key."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and line[0] not in "#;[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def seconds(text: str) -> float:
    """Return a duration of a unit file."""
    assert text.endswith("s")
    return float(text[:-1])


SERVICE = unit("prefork-example.service")


def by_systemd(start: Starting, *arguments: str, fds: Sequence[int] = (), **more: str) -> Program:
    """Start ``python -m prefork`` by systemd-socket-activate, which waits for the first client."""
    kept = {key: value for key, value in environment(**more).items() if key in _KEPT or key in more}
    # It takes no port 0, but passes on what was handed over to itself.
    handed = [sys.executable, "-c", _ACTIVATE, ",".join(map(str, fds)), ""] if fds else []
    return start(
        None,
        before=[
            *handed,
            str(shutil.which("systemd-socket-activate")),
            "--fdname=web",
            *(word for key, value in kept.items() for word in ("-E", f"{key}={value}")),
            *arguments[: arguments.index("--")],
        ],
        arguments=["-m", "prefork", *arguments[arguments.index("--") + 1 :]],
        pass_fds=fds,
    )


_KEPT = ("PATH", "PYTHONPATH")


@needs_activate
def test_first_client_starts_the_service(start: Starting, tmp_path: Path) -> None:
    """The tool of systemd hands over a path, the first client is served, and the path outlives reload and stop."""
    path = str(tmp_path / "sock")
    program = by_systemd(start, "-l", path, "--", "run", ECHO, PREFORK_WORKERS="1")
    program.wait_logged("Listening on ")
    for nth in (1, 2):
        assert server_of(path, CEILING) in program.workers()
        reload(program, nth)
    assert program.stop() == 0
    assert os.path.exists(path), "it is systemd's"
    os.unlink(path)


@needs_activate
def test_service_of_the_example_is_activated(
    start: Starting, listener: socket.socket, tmp_path: Path
) -> None:
    """The example's own command serves its application on the socket of that name, also after a reload."""
    shutil.copy(UNITS.parent / "web" / "factors.py", tmp_path)
    command = SERVICE["ExecStart"][0].split()[1:]
    program = by_systemd(start, "--", *command, fds=[listener.fileno()], PREFORK_WORKERS="1")
    for nth in (1, 2):
        assert factors(listener.getsockname(), 21, CEILING) == "[3, 7]"
        reload(program, nth)
    assert program.stop() == 0


def factors(address: Address, number: int, timeout: float = TIMEOUT) -> str:
    """Ask the application of the example."""
    answer = ask(address, f"GET /{number} HTTP/1.0\r\n\r", timeout)
    return answer.partition('"factors": ')[2].partition(', "pid"')[0]


@needs_analyze
def test_units_of_the_example_are_verified(tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say about the files, once their command exists."""
    here = shutil.which("true")
    for name in ("prefork-example.service", "prefork-example.socket"):
        text = (UNITS / name).read_text()
        text = re.sub(r"/opt/prefork-example/venv/bin/prefork", str(here), text)
        (tmp_path / name).write_text(text.replace("/opt/prefork-example", str(tmp_path)))
    units = [str(tmp_path / f"prefork-example.{kind}") for kind in ("service", "socket")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "prefork-example" in line]
    assert (done.returncode, said) == (0, [])


@needs_analyze
def test_verification_finds_mistakes(tmp_path: Path) -> None:
    """The check above is no formality: a key that does not exist is told."""
    name = "prefork-example.service"
    text = (UNITS / name).read_text().replace("OOMPolicy=", "OomPolicy=")
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "OomPolicy" in done.stderr


def test_times_of_the_unit_fit_together() -> None:
    """The manager waits longer than a pool may take to boot and to stop, and stops only what does not stop itself."""
    values = dict(value.split("=", 1) for value in SERVICE["Environment"])
    assert seconds(SERVICE["TimeoutStartSec"][0]) > seconds(values["PREFORK_BOOT_TIMEOUT"])
    stop = seconds(values.get("PREFORK_DRAIN_DELAY", "0s"))
    stop += seconds(values["PREFORK_GRACEFUL_TIMEOUT"])
    assert seconds(SERVICE["TimeoutStopSec"][0]) >= stop + 5
    assert SERVICE["KillMode"] == ["mixed"]


def test_names_of_the_units_match() -> None:
    """The service binds the name that the socket unit gives, and asks for that unit."""
    (name,) = unit("prefork-example.socket")["FileDescriptorName"]
    assert f"--bind systemd:{name} " in SERVICE["ExecStart"][0]
    assert SERVICE["Requires"] == ["prefork-example.socket"]


def test_settings_of_the_unit_are_settings() -> None:
    """The command line of the service and its variables are accepted by ``prefork check``, with no word of warning."""
    _, run, target, *flags = SERVICE["ExecStart"][0].split()
    assert run == "run"
    values = dict(value.split("=", 1) for value in SERVICE["Environment"])
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "check", target, *flags],
        env=environment(**values),
        cwd=UNITS.parent / "web",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
