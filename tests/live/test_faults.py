"""Faults that belong to no other file: docs/FAULTS.md lists all of them with the tests that hold them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import prefork
from tests.support.app import Echo
from tests.support.clients import (
    ask,
    can_bind,
    connect,
    hangs_up,
    read_all,
    read_to_the_end,
    send,
    send_line,
)
from tests.support.groups import FREEZE, NO_MORE_PROCESSES, group_with, why_no_group
from tests.support.load import Load
from tests.support.processes import (
    children_of,
    fds_of,
    is_alive,
    kind_of,
    private_bytes,
    zombies_of,
)
from tests.support.server import ENDED, serving
from tests.support.tracing import why_no_strace
from tests.support.waiting import Stopwatch, let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

READY = r"worker slot=\d+ gen=\d+ pid=\d+ ready"

COMMAND = """
    import sys
    from prefork.cli import main
    sys.argv[0] = "prefork"
    sys.exit(main())
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can arrange this fault")


def why_not(command: list[str]) -> str:
    """Why a command that arranges a fault does not work here; "" when it does."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{command[0]} cannot do that here: {tried.stderr.strip()}" if tried.returncode else ""


# --- the death of workers

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
NEXT_PID = "/proc/sys/kernel/ns_last_pid"
no_choice_of_pids = why_not([*CONTAINER, "sh", "-c", f"echo 100 > {NEXT_PID}"])

TAKEN_PID = """
    from tests.support.app import *
    import prefork

    def stranger(pid, *command):
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
        child = subprocess.Popen(command)
        tell("taken", [pid, child.pid])
        return child

    class Server(prefork.PreForkingTCPServer):
        workers = 2
        when_ready = announce
        theirs = None

        def worker_died(self, worker, cause):
            tell("died", str(cause))
            if "{thief}" == "hook" and self.theirs is None:
                self.theirs = stranger(worker.pid, "sleep", "1000")

        def service_actions(self):
            if "{thief}" == "wait" and self.theirs is None:
                with contextlib.suppress(ChildProcessError):
                    pid, _ = os.waitpid(-1, os.WNOHANG)
                    if pid:
                        self.theirs = stranger(pid, "sleep", "1000")
            super().service_actions()

    import contextlib
    log_to_stderr()
    with Server(LOOPBACK, Run) as server:
        server.serve_forever()
        tell("spared", server.theirs.poll())
        server.theirs.kill()
        tell("status", server.theirs.wait())
"""


@pytest.mark.skipif(no_choice_of_pids != "", reason=no_choice_of_pids)
@pytest.mark.parametrize("thief", ["hook", "wait"])
def test_process_that_gets_the_pid_of_a_dead_worker_is_left_alone(
    start: Callable[..., Program], thief: str
) -> None:
    """A stranger with a dead worker's pid is neither signalled nor collected nor taken for it, also when the program took the status away."""
    program = start(TAKEN_PID.replace("{thief}", thief), before=CONTAINER)
    address = program.address()
    master = wait_until(lambda: children_of(program.pid), "the child of unshare")[0].pid
    try:
        # Whether the program or the pool sees a death first is a matter of luck: until it was the program.
        for _ in range(20):
            hangs_up(address, "os.kill(os.getpid(), signal.SIGKILL)")
            with contextlib.suppress(AssertionError):
                program.told("taken", ceiling=1)
                break
        before, after = program.told("taken")
        assert before == after, "the stranger did not get the pid; the test shows nothing"
        program.told("died")
        program.wait_logged(READY, times=3)
        with send(address, "time.sleep(1000)") as client:  # so that there is somebody to kill
            os.kill(master, signal.SIGQUIT)
            read_to_the_end(client)
        assert program.told("spared") is None
        assert program.told("status") == -signal.SIGKILL
    finally:
        program.popen.kill()


def test_status_that_the_kernel_has_thrown_away_is_unknown(start: Callable[..., Program]) -> None:
    """Under a launcher that ignores SIGCHLD a death has an unknown cause, one line; handlers still get their children's statuses."""
    # Not by "trap '' CHLD" of a shell: dash does not hand that on.
    ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    launcher = [sys.executable, "-c", ignore + "os.execv(sys.argv[1], sys.argv[1:])"]
    program = start(serving("Run", workers=2), before=launcher)
    address = program.address()
    victim = program.worker()
    os.kill(victim, signal.SIGKILL)
    program.wait_logged(READY, times=3)
    exited = program.logged(f"pid={victim} exited")
    assert len(exited) == 1
    assert "cause=exited(unknown)" in exited[0]
    assert zombies_of(program.pid) == set()
    assert ask(address, "subprocess.call(['sh', '-c', 'exit 7'])").endswith(" 7")
    assert program.stop() == 0


def test_master_is_as_it_was_after_five_hundred_respawns(start: Callable[..., Program]) -> None:
    """Five hundred dead workers leave the master as many descriptors as before, and less than 2 MiB more memory."""
    program = start("""
        from tests.support.app import *
        import logging

        logging.disable(logging.ERROR)
        ready = []

        def worker_ready(self, worker):
            ready.append(worker.pid)
            if len(ready) == 20:
                tell("all", ready)
                ready.clear()

        serve(Echo, workers=20, worker_ready=worker_ready)
    """)
    victims = program.told("all")
    held = len(fds_of(program.pid))
    memory = private_bytes(program.pid)
    for round_ in range(1, 26):
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        victims = program.told("all", round_)
    # As many, and not the same numbers: the pipe at which newborn workers wait takes some of them for
    # a moment.
    wait_until(lambda: len(fds_of(program.pid)) == held, "as many descriptors")
    assert private_bytes(program.pid) - memory < 2 << 20
    assert zombies_of(program.pid) == set()


@pytest.mark.parametrize(
    ("line", "released"),
    [
        ("subprocess.Popen(['sleep', '1000']).pid", True),
        ("os.fork() or time.sleep(1000)", False),
    ],
    ids=["program", "fork"],
)
def test_process_that_a_handler_leaves_behind_does_not_hold_a_stop(
    start: Callable[..., Program], line: str, released: bool
) -> None:
    """A stop is not held by what a handler left running; a program holds nothing of the server, a bare fork takes no client."""
    program = start(serving("Run", workers=1))
    address = program.address()
    worker = program.worker()
    with send(address, line) as client:
        left = wait_until(lambda: children_of(worker), "the process left behind")[0].pid
        wait_until(lambda: ask(address, "7").endswith(" 7"), "the worker is free again")
        try:
            took = Stopwatch()
            assert program.stop() == 0
            assert took.seconds < 5.0  # far below graceful_timeout
            assert is_alive(left)
            assert can_bind(address) is released
            with contextlib.suppress(ConnectionRefusedError), connect(address):
                pytest.fail("somebody listens after the stop")
        finally:
            os.kill(left, signal.SIGKILL)
    del client
    wait_until(lambda: can_bind(address), "the address is free")


# --- fork and resources


@needs_root
@pytest.mark.skipif(why_no_group(*NO_MORE_PROCESSES) != "", reason=why_no_group(*NO_MORE_PROCESSES))
def test_pool_at_the_limit_of_its_container_degrades_and_recovers(
    start: Callable[..., Program],
) -> None:
    """While the container may have no more processes the rest serves and signals are heard; afterwards the pool is whole within 2 s."""
    program = start(serving(workers=3))
    address = program.address()
    workers = program.wait_workers(3)
    with group_with(*NO_MORE_PROCESSES) as group:
        group.put([program.pid, *workers])
        group.turn_on()
        os.kill(min(workers), signal.SIGKILL)
        program.wait_logged("fork failed, retrying")
        with Load(address, clients=2) as load:
            wait_until(lambda: load.answered > 100, "the others serve")
            heard = Stopwatch()
            program.settle()
            assert heard.seconds < 3.0
        assert load.lost == {}
        assert program.workers() == workers - {min(workers)}
        group.turn_off()
        relieved = Stopwatch()
        program.wait_workers(3)
        assert relieved.seconds < 4.0  # two, with room for a loaded machine
        assert len(program.logged("fork failed")) == 1
        assert program.stop() == 0


# It may read everything all the same: the interpreter may be in a home of root's.
ANOTHER_USER = [
    *["setpriv", "--reuid=65533", "--clear-groups"],
    *["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"],
]
no_other_user = why_not([*ANOTHER_USER, "true"])


@pytest.mark.skipif(no_other_user != "", reason=no_other_user)
def test_user_at_the_limit_of_its_processes_degrades_and_recovers(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A master that is not root and at its RLIMIT_NPROC lives on and fills its pool when there is room again."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        most = resource.getrlimit(resource.RLIMIT_NPROC)

        class Server(prefork.PreForkingTCPServer):
            def worker_died(self, worker, cause):
                resource.setrlimit(resource.RLIMIT_NPROC, (1, most[1]))

            def service_actions(self):
                super().service_actions()
                if os.path.exists("relief"):
                    resource.setrlimit(resource.RLIMIT_NPROC, most)

        serve(Echo, Server, workers=2)
        """,
        before=ANOTHER_USER,
    )
    address = program.address()
    workers = program.wait_workers(2)
    os.kill(min(workers), signal.SIGKILL)
    program.wait_logged("fork failed, retrying")
    for _ in range(5):
        assert ask(address).endswith("hello")
    assert program.workers() == {max(workers)}
    (tmp_path / "relief").touch()
    program.wait_workers(2)
    (tmp_path / "relief").unlink()
    assert program.stop() == 0


@needs_root
@pytest.mark.skipif(why_no_group(*FREEZE) != "", reason=why_no_group(*FREEZE))
def test_frozen_container_costs_nobody_its_life(start: Callable[..., Program]) -> None:
    """After the whole container was frozen for longer than request_timeout the request in hand is finished and nobody was killed."""
    program = start(serving("TellingRun", workers=2, request_timeout=1.6))
    address = program.address()
    workers = program.wait_workers(2)
    # Many short sleeps: one long one would be over as soon as the container is thawed.
    line = "[time.sleep(0.05) for _ in range(16)] and 7"
    with group_with(*FREEZE) as group, send(address, line) as client:
        program.told("busy")
        group.put([program.pid, *workers])
        group.turn_on()
        let_pass(2.0)
        group.turn_off()
        assert read_to_the_end(client).endswith(" 7")
        assert ask(address, "1 + 1").endswith(" 2")
        assert program.workers() == workers
        assert program.logged("killed|request_timeout") == []
        assert program.stop() == 0


def test_full_disk_stops_nothing_that_runs(start: Callable[..., Program]) -> None:
    """With no process able to write to a file, not even to the log, requests are served, the dead replaced, a stop obeyed."""
    program = start(serving("Run", workers=2))
    address = program.address()
    workers = program.wait_workers(2)
    program.signal(signal.SIGUSR1)  # there is something in the reports
    program.wait_logged(" stacks", times=2)
    for pid in [program.pid, *workers]:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
    for _ in range(10):
        assert hangs_up(address, "1 / 0") == ""
        assert ask(address, "'served'").endswith("'served'")
    program.signal(signal.SIGUSR1)
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: len(program.workers() - {min(workers)}) == 2, "the dead replaced")
    for _ in range(10):
        assert ask(address, "'served'").endswith("'served'")
    assert program.stop() in ENDED


FULL_DISK = """
    mkdir full && mount -t tmpfs -o size=4k none full && head -c 8192 /dev/zero > full/file 2> /dev/null
    exec "$@"
"""
no_mounts = why_not(["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt && umount /mnt"])


@pytest.mark.skipif(no_mounts != "", reason=no_mounts)
def test_start_that_cannot_write_its_pid_file_is_refused(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """On a full disk a start with a pid file ends with code 2 and one line that names the file, and nothing was bound."""
    program = start(
        COMMAND,
        arguments=["run", "tests.support.app:Echo", "-b", "unix:socket", "-p", "full/pid"],
        before=["unshare", "--mount", "sh", "-c", FULL_DISK, "sh"],
    )
    assert program.wait() == 2
    assert "full/pid" in program.log
    assert "No space left on device" in program.log
    assert "Traceback" not in program.log
    assert not (tmp_path / "socket").exists()


@pytest.mark.skipif(why_no_strace() != "", reason=why_no_strace())
def test_start_without_shared_memory_fails_cleanly(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A memfd that the kernel refuses ends the start with code 1 and its reason; no process, socket or pid file is left."""
    fault = ["-e", "trace=memfd_create", "-e", "inject=memfd_create:error=ENOMEM"]
    program = start(
        COMMAND,
        arguments=["run", "tests.support.app:Echo", "-b", "unix:socket", "-p", "pid", "-w", "2"],
        before=["strace", "-qq", "-o", str(tmp_path / "trace"), *fault],
    )
    assert program.wait() == 1
    assert "Cannot allocate memory" in program.log
    assert "Traceback" not in program.log
    program.wait_silent()
    assert not (tmp_path / "socket").exists()
    assert not (tmp_path / "pid").exists()


# --- accepting, and the bounds of the pool


def test_full_pool_with_every_worker_busy_hears_everything(start: Callable[..., Program]) -> None:
    """At max_children with all busy the master answers signals and replaces the dead at once, and who waits is served."""
    program = start(serving("TellingRun", workers=2, max_children=2))
    address = program.address()
    with (
        send(address, "time.sleep(60) or 'first'") as first,
        send(address, "time.sleep(60)") as second,
        send(address, "'third'") as third,
    ):
        busy = {program.told("busy"), program.told("busy", 1)}
        assert busy == program.workers()
        heard = Stopwatch()
        program.settle()
        assert heard.seconds < 3.0
        answers = []
        for pid in busy:
            os.kill(pid, signal.SIGKILL)
            answers.append(pid)
        assert read_to_the_end(first) == read_to_the_end(second) == ""
        assert read_to_the_end(third).endswith("'third'")
    assert program.stop() == 0


def test_programs_of_handlers_die_of_a_broken_pipe(start: Callable[..., Program]) -> None:
    """SIGPIPE is what it is by default in a program that a handler starts."""
    program = start(serving("Run", workers=1))
    line = "subprocess.call(['sh', '-c', 'kill -PIPE $$; exit 7'])"
    assert ask(program.address(), line).endswith(f" {-signal.SIGPIPE}")


def test_socket_file_that_somebody_removes_ends_nothing(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """Without its socket file a server serves who is connected, replaces the dead, and stops cleanly."""
    path = str(tmp_path / "socket")
    program = start(
        serving("TellingEcho", base="PreForkingUnixStreamServer", address=path, workers=2)
    )
    assert program.address() == path
    with connect(path) as client:
        busy = program.told("busy")
        os.unlink(path)
        os.kill((program.workers() - {busy}).pop(), signal.SIGKILL)
        program.wait_logged(READY, times=3)
        send_line(client, "hello")
        assert read_all(client) == f"{busy} hello"
    assert program.stop() == 0
    assert "Traceback" not in program.log


PARALLEL = """
    from tests.support.app import *
    from prefork.cli import main
    import tests.support.app

    gate, opener = os.pipe()
    children = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            os.read(gate, 1)
            sys.argv[:] = ["prefork", *sys.argv[1:]]
            try:
                main()
            except SystemExit as stop:
                os._exit(stop.code or 0)
            os._exit(99)
        children.append(pid)
    os.close(opener)
    codes = []
    while len(codes) < 19:
        pid, status = os.wait()
        children.remove(pid)
        codes.append(os.waitstatus_to_exitcode(status))
    tell("refused", sorted(codes))
    tell("winner", children[0])
    tell("code", os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""


def answers(address: str) -> bool:
    """Whether somebody listens there and answers."""
    try:
        return ask(address, "hello").endswith("hello")
    except (ConnectionRefusedError, FileNotFoundError):
        return False


@pytest.mark.parametrize("stale", [False, True], ids=["no file", "stale file"])
@pytest.mark.parametrize("pidfile", [["-p", "pid"], []], ids=["pid file", "no pid file"])
def test_of_twenty_starts_at_once_one_survives(
    start: Callable[..., Program], tmp_path: Path, pidfile: list[str], stale: bool
) -> None:
    """Twenty starts on one Unix socket, with and without a pid file, end as one server and nineteen refusals."""
    path = str(tmp_path / "socket")
    if stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    arguments = ["run", "tests.support.app:Echo", "-b", f"unix:{path}", "-w", "1", *pidfile]
    program = start(PARALLEL, arguments=arguments)
    codes = program.told("refused", ceiling=30)
    winner = program.told("winner")
    try:
        assert set(codes) <= {1, 4}
        wait_until(lambda: answers(path), "the winner serves")
        assert int(ask(path).split()[0]) in {child.pid for child in children_of(winner)}
        if pidfile:
            assert (tmp_path / "pid").read_text().strip() == str(winner)
    finally:
        os.kill(winner, signal.SIGTERM)
    assert program.told("code") == 0
    assert not os.path.exists(path)


def test_start_does_not_take_the_path_of_one_that_is_just_starting(tmp_path: Path) -> None:
    """Also between its bind and its listen a server's Unix socket is its own, with no pid file to guard it."""
    path = str(tmp_path / "socket")
    with prefork.PreForkingUnixStreamServer(path, Echo, bind_and_activate=False) as first:
        first.server_bind()
        with pytest.raises(OSError, match="another process listens there"):
            prefork.PreForkingUnixStreamServer(path, Echo).server_close()


# --- what a fork copies

BIRTHS = 150

NEWBORN = """
    from tests.support.app import *
    import random

    dice = random.Random(7)
    fork, births = os.fork, 0
    others = [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTTIN]

    def fork_and_signal():
        global births
        pid = fork()
        if pid and ready and births < {births}:
            births += 1
            time.sleep(dice.choice([0, dice.random() / 1000]))
            os.kill(pid, dice.choice(others))
            os.kill(pid, signal.SIGTERM)
            if births == {births}:
                tell("born")
        return pid

    os.fork = fork_and_signal
    ready = []
    serve(Echo, workers=3, pool_resized=lambda *_: ready.append(1))
"""


def test_signals_within_a_millisecond_of_birth_end_only_the_newborn(
    start: Callable[..., Program],
) -> None:
    """Hundreds of workers that are signalled 0 to 1 ms after their fork leave; no signal acts in the master or as the master's."""
    program = start(NEWBORN.replace("{births}", str(BIRTHS)))
    address = program.address()
    program.signal(signal.SIGTTIN)
    program.told("born", ceiling=60)
    program.wait_logged(r"exited cause=exited\(0\)", times=BIRTHS)
    program.wait_workers(4)
    wait_until(lambda: ask(address).endswith("hello"), "service")
    program.settle()
    assert program.logged(" master (phase changed|already at its limit|order has)") == []
    assert len(program.logged(" master resized")) == 1
    assert len(program.logged(r"exited cause=exited\(0\)")) == BIRTHS
    assert program.stop() == 0
    assert program.all_told("left") == program.all_told("closed") == [None]


def test_exception_of_any_kind_in_a_newborn_worker_stays_there(
    start: Callable[..., Program],
) -> None:
    """Whatever worker_init() raises, the child ends there: it never returns into the program that forked it."""
    program = start("""
        from tests.support.app import *

        faults = [None, KeyboardInterrupt(), GeneratorExit(), MemoryError(), BaseException("bare")]
        fault = None

        def pre_fork(self, worker):
            global fault
            fault = faults.pop(0) if faults else None

        def worker_init(self, worker):
            if fault is not None:
                raise fault

        try:
            serve(Echo, workers=1, pre_fork=pre_fork, worker_init=worker_init)
        finally:
            tell("returned", os.getpid())
    """)
    address = program.address()
    os.kill(program.worker(), signal.SIGKILL)
    program.wait_logged(READY, times=2)
    for name in ("KeyboardInterrupt", "GeneratorExit", "MemoryError", "BaseException: bare"):
        assert program.logged(f"^ *{name}"), name
    assert len(program.logged("exited cause=boot_error")) == 4
    assert ask(address).endswith("hello")
    assert program.stop() == 0
    assert program.all_told("returned") == [program.pid]


def held_by(pid: int) -> Counter[str]:
    """Return how many descriptors of which kind, and of which direction, a process holds."""
    found: Counter[str] = Counter()
    for fd, link in fds_of(pid).items():
        if fd > 2:
            try:
                info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
            except FileNotFoundError:
                continue  # a connection that was just closed
            flags = int(next(one for one in info.splitlines() if "flags" in one).split()[1], 8)
            kind = kind_of(link)
            found[f"pipe {'rw'[flags & os.O_ACCMODE]}" if kind == "pipe" else kind] += 1
    return found


def test_descriptors_of_a_worker_are_these_and_no_others(start: Callable[..., Program]) -> None:
    """A worker holds listener, epoll, life pipe, both pipes that wake it, the master's wake-up pipe, the scoreboard and its report: nothing else."""
    program = start(serving(workers=3))
    address = program.address()
    os.kill(program.worker(), signal.SIGKILL)
    program.wait_logged(READY, times=4)
    ask(address)
    expected = {
        "socket": 1,
        "anon_inode:[eventpoll]": 1,
        "pipe r": 3,  # the life pipe; the one that the master wakes it by; the one that its signals write to
        "pipe w": 2,  # the master's wake-up pipe; its own
        "/memfd:prefork-scoreboard": 2,  # mmap has one of its own
        "/memfd:prefork-report": 1,
    }
    for worker in program.wait_workers(3):
        wait_until(
            lambda pid=worker: held_by(pid) == expected,
            lambda pid=worker: f"{expected}, but has {dict(held_by(pid))}",
        )


def test_logging_lock_that_a_thread_holds_for_ever_hangs_no_worker(
    start: Callable[..., Program],
) -> None:
    """A lock of logging that a thread holds at every fork is free in the workers: they boot, log and serve."""
    program = start("""
        from tests.support.app import *
        import logging, prefork

        class Logging(Echo):
            def handle(self):
                logging.getLogger("prefork").error("served")
                super().handle()

        log_to_stderr()
        held = logging.StreamHandler(sys.stderr)
        logging.getLogger("prefork").addHandler(held)
        logging.getLogger("prefork").propagate = False
        server = prefork.PreForkingTCPServer(LOOPBACK, Logging)
        server.workers = 2
        server.fork_check = "off"

        def hold():
            held.acquire()
            tell("held")
            threading.Event().wait()

        def when_ready():
            announce(server)
            # From here on the master itself could not log: it logs elsewhere.
            logging.getLogger("prefork").handlers[:] = [logging.StreamHandler(sys.stderr), held]
            threading.Thread(target=hold, daemon=True).start()

        held.setLevel(logging.CRITICAL)
        server.pre_fork = lambda worker: None
        server.worker_init = lambda worker: held.setLevel(logging.DEBUG)
        server.when_ready = when_ready
        server.serve_forever()
        os._exit(0)
    """)
    address = program.address()
    program.told("held")
    for victim in sorted(program.wait_workers(2)):
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda gone=victim: gone not in program.workers(), "its end")
    program.wait_workers(2)
    for _ in range(4):
        assert ask(address).endswith("hello")
    assert program.stop() == 0


COPIES = """
    from tests.support.app import *
    import random, secrets, uuid

    private = random.Random(1)
    forks = []
    os.register_at_fork(after_in_child=lambda: forks.append(os.getpid()))

    class Draw(Echo):
        def handle(self):
            drawn = [random.random(), uuid.uuid4().hex, secrets.token_hex(), private.random()]
            names = [thread.name for thread in threading.enumerate()]
            self.wfile.write(json.dumps([os.getpid(), drawn, forks == [os.getpid()], names]).encode())

    import json
    threading.Thread(target=threading.Event().wait, name="of the program", daemon=True).start()
    serve(Draw, workers=3, fork_check="off")
    os._exit(0)
"""


def test_what_a_fork_copies(start: Callable[..., Program]) -> None:
    """Workers draw different numbers from random, uuid and secrets, the same from a generator of the program's own; hooks of fork run, threads are gone."""
    program = start(COPIES)
    address = program.address()
    first: dict[int, list[object]] = {}

    def all_answered() -> bool:
        pid, drawn, hooked, threads = json.loads(ask(address))
        first.setdefault(pid, drawn)
        assert hooked
        assert threads == ["MainThread"]
        return len(first) == 3

    wait_until(all_answered, "an answer of each worker")
    shared, fresh, secret, private = (set(column) for column in zip(*first.values(), strict=True))
    assert len(shared) == len(fresh) == len(secret) == 3
    assert len(private) == 1
    assert program.stop() == 0


# --- the terminal

TERMINAL = """
    from tests.support.app import *

    tty = os.open(sys.argv[1], os.O_RDWR)  # a session leader's first terminal is its own
    os.dup2(tty, 0)
    os.dup2(tty, 2)
    os.close(tty)
    assert os.tcgetpgrp(0) == os.getpid()
    serve(Run, workers=2)
"""


def test_terminal_that_is_closed_ends_nothing(start: Callable[..., Program]) -> None:
    """When its terminal goes away a server in the foreground gets HUP, which is no order to stop: it serves, heals, and obeys TERM."""
    ours, theirs = os.openpty()
    with open(ours, "rb"), open(theirs, "rb"):
        program = start(TERMINAL, arguments=[os.ttyname(theirs)])
        address = program.address()
        workers = program.wait_workers(2)
    for _ in range(5):
        assert hangs_up(address, "1 / 0") == ""
        assert ask(address, "1 + 1").endswith(" 2")
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: len(program.workers() - {min(workers)}) >= 2, "the dead replaced")
    stays(lambda: program.popen.poll() is None, "it ended with its terminal", span=0.2)
    assert ask(address, "1 + 1").endswith(" 2")
    assert program.stop() in ENDED
