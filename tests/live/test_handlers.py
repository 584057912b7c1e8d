"""Handlers that misbehave: the server goes on, the cause is in the log, the client's socket is closed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import (
    ask,
    connect,
    hangs_up,
    read_all,
    read_to_the_end,
    reset_on_close,
    send,
    server_of,
)
from tests.support.processes import cpu_seconds, is_alive, process
from tests.support.sampling import ChildrenWatch
from tests.support.server import serving
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

ERRORS = [
    ("1 / 0", "ZeroDivisionError"),
    ("(_ for _ in ()).throw(RecursionError('too deep'))", "RecursionError: too deep"),
    ("(_ for _ in ()).throw(MemoryError('too much'))", "MemoryError: too much"),
    ("'\\udfff'.encode()", "UnicodeEncodeError"),
]


@pytest.mark.parametrize(("line", "logged"), ERRORS)
def test_exception_costs_that_request_only(
    start: Callable[..., Program], line: str, logged: str
) -> None:
    """An exception is logged with its traceback, the client's connection closed, the worker serves on."""
    program = start(serving("Run", workers=1))
    address = program.address()
    worker = program.worker()
    assert hangs_up(address, line) == ""
    program.wait_logged(logged)
    assert "Traceback" in program.log
    assert server_of_run(address) == worker


def test_exit_of_a_process_that_a_handler_forked_is_no_workers(
    start: Callable[..., Program],
) -> None:
    """A copy of the worker that leaves by sys.exit() runs no worker_exit() and is not in the log."""
    program = start("""
        from tests.support.app import *

        class Forking(Run):
            def handle(self):
                self.rfile.readline()
                copy = os.fork()
                if not copy:  # which ends the connection when it leaves, so not before the answer
                    while not os.path.exists("answered"):
                        time.sleep(0.002)
                    sys.exit(3)
                self.wfile.write(b"%d %d" % (os.getpid(), copy))

        def worker_exit(self, worker, cause):
            tell("exit", str(cause))

        serve(Forking, workers=1, worker_exit=worker_exit)
    """)
    address = program.address()
    worker, copy = map(int, ask(address).split())
    (program.stderr_path.parent / "answered").touch()
    wait_until(lambda: not is_alive(copy), "the copy has ended")
    assert program.workers() == {worker}
    assert program.logged("sys.exit") == []
    assert program.all_told("exit") == []
    assert program.stop() == 0
    assert program.told("exit") == "retired"


def server_of_run(address: object) -> int:
    """Return the pid of the worker that serves one request of a ``Run``."""
    return int(ask(address, "0").split()[0])


DEATHS = [
    ("sys.exit(3)", r"exited\(3\)"),
    ("sys.exit()", r"exited\(0\)"),
    ("sys.exit('no more')", r"exited\(1\)"),
    ("(_ for _ in ()).throw(KeyboardInterrupt)", r"KeyboardInterrupt"),
    ("os._exit(7)", r"exited\(7\)"),
    ("os.abort()", r"killed\(SIGABRT\)"),
    ("ctypes.string_at(0)", r"killed\(SIGSEGV\)"),
    ("os.kill(os.getpid(), signal.SIGKILL)", r"killed\(SIGKILL\)"),
    ("signal.raise_signal(signal.SIGALRM)", r"killed\(SIGALRM\)"),
]


@pytest.mark.parametrize(("line", "logged"), DEATHS)
def test_end_of_the_worker_costs_that_request_only(
    start: Callable[..., Program], line: str, logged: str
) -> None:
    """However a handler ends its process, the client is hung up on, the cause is logged, another takes over."""
    program = start(serving("Run", workers=1))
    address = program.address()
    worker = program.worker()
    assert hangs_up(address, line) == ""
    program.wait_logged(logged)
    wait_until(lambda: not is_alive(worker), "the end of the worker")
    assert server_of_run(address) != worker
    assert program.stop() == 0
    assert program.all_told("closed") == [None], "a worker returned into the program"


def test_handler_that_forks_and_returns(start: Callable[..., Program]) -> None:
    """The process that a handler forked ends after its request; it never serves, and the client is hung up on."""
    program = start(serving("Run", workers=1))
    address = program.address()
    worker = program.worker()
    assert hangs_up(address, "os.fork() or tell('forked', os.getpid())")
    forked = program.told("forked")
    assert forked != worker
    wait_until(lambda: not is_alive(forked), "the end of the forked process")
    assert {server_of_run(address) for _ in range(5)} == {worker}
    assert program.stop() == 0
    assert program.all_told("closed") == [None], "the forked process returned into the program"


def test_forked_children_of_handlers_are_the_workers_business(
    start: Callable[..., Program],
) -> None:
    """A handler can use subprocess and os.wait: the status of its child is not taken by anybody."""
    program = start(serving("Run", workers=2))
    address = program.address()
    assert ask(address, "subprocess.run(['sh', '-c', 'exit 9']).returncode").endswith(" 9")
    assert ask(
        address, "os.waitstatus_to_exitcode(os.wait()[1]) if os.fork() else os._exit(4)"
    ).endswith(" 4")


@pytest.mark.parametrize("daemon", [True, False])
def test_leaked_threads_do_not_hold_a_worker(start: Callable[..., Program], daemon: bool) -> None:
    """A handler's thread that never ends holds a leaving worker until graceful_timeout, a daemon not at all."""
    program = start(serving("Run", workers=1, graceful_timeout=60.0 if daemon else 0.5))
    address = program.address()
    for _ in range(3):
        ask(address, "threading.Thread(target=signal.pthread_sigmask, args=(0, [])).start()")
        ask(address, f"threading.Thread(target=time.sleep, args=(1000,), daemon={daemon}).start()")
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 10.0  # far below graceful_timeout
    assert bool(program.logged("stacks state=retiring")) is not daemon


CLOSERS = {
    "closed": ("self.request.close()", "None"),  # the handler's files keep it open until finish()
    "taken": ("os.close(self.connection.detach())", ""),
    "closed below": ("os.close(self.request.fileno())", ""),
    "shut down": ("self.request.shutdown(socket.SHUT_RDWR)", ""),
}


@pytest.mark.parametrize("way", CLOSERS)
def test_handler_that_closes_its_socket(start: Callable[..., Program], way: str) -> None:
    """A handler that has closed or taken its socket does no harm to the next one."""
    program = start(serving("Run", workers=1))
    address = program.address()
    line, answer = CLOSERS[way]
    assert hangs_up(address, line).endswith(answer)
    for _ in range(3):
        assert ask(address, "'next'").endswith("'next'")


def test_handler_that_breaks_the_listener(start: Callable[..., Program]) -> None:
    """A worker whose handler closes the listening socket takes nobody down and does not spin."""
    program = start(serving("Run", workers=2))
    address = program.address()
    worker = int(hangs_up(address, "self.server.socket.close()").split()[0])
    before = cpu_seconds(worker) if is_alive(worker) else 0.0
    watch = Stopwatch()
    while watch.seconds < 0.5:
        assert ask(address, "'served'").endswith("'served'")
    if is_alive(worker):
        assert cpu_seconds(worker) - before < 0.2
    assert program.stop() == 0


def test_handler_that_shuts_the_listener_down_is_noticed(start: Callable[..., Program]) -> None:
    """A shutdown() of the shared socket closes it for everyone; the pool says so, does not spin, and can be stopped."""
    program = start(serving("Run", workers=2))
    address = program.address()
    ask(address, "self.server.socket.shutdown(socket.SHUT_RDWR)")
    # A worker meets it first, or the master, which opens the listener again.
    program.wait_logged("cannot take requests|open again")
    pids = [program.pid, *program.workers()]
    before = sum(map(cpu_seconds, pids))
    watch = Stopwatch()
    wait_until(lambda: watch.seconds > 0.5, "half a second")
    assert sum(map(cpu_seconds, pids)) - before < 0.1
    assert program.stop() == 0


def test_worker_with_all_signals_blocked_obeys_a_stop(start: Callable[..., Program]) -> None:
    """A handler that leaves all signals blocked keeps its worker neither from serving nor from leaving."""
    program = start(serving("Run", workers=2))
    address = program.address()
    for _ in range(8):
        ask(address, "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()) and None")
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 10.0  # far below graceful_timeout


BREAKERS = [
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "signal.set_wakeup_fd(-1)",
    "os.closerange(3, 256)",
    "sys.stdout.close()",
    "sys.stderr.close()",
    "os.closerange(0, 3)",
    "os.chdir('/')",
    "threading.excepthook and os.nice(5)",
    "setattr(self.server, 'handle_error', None)",
]


@pytest.mark.parametrize("line", BREAKERS)
def test_worker_that_a_handler_has_damaged_can_be_stopped(
    start: Callable[..., Program], line: str
) -> None:
    """Whatever a handler breaks in its own process, others are served, and a stop is obeyed in time."""
    program = start(serving("Run", workers=2))
    address = program.address()
    hangs_up(address, line)
    for _ in range(4):
        hangs_up(address, "1 / 0")
        with contextlib.suppress(ConnectionError):
            ask(address, "'served'")
    assert ask(address, "'served'").endswith("'served'")
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 10.0  # far below graceful_timeout
    program.wait_silent()


def test_verify_request_that_refuses_or_raises_costs_that_request_only(
    start: Callable[..., Program],
) -> None:
    """A client that verify_request() refuses is closed, also when it raises; the next one is served."""
    program = start("""
        from tests.support.app import *

        def verify_request(self, request, client_address):
            word = request.recv(7, socket.MSG_PEEK)
            if word == b"refused":
                return False
            return word != b"divided" or 1 / 0

        serve(Echo, workers=1, verify_request=verify_request)
    """)
    address = program.address()
    worker = program.worker()
    for line in ("refused", "divided", "refused"):
        assert hangs_up(address, line) == ""
    program.wait_logged("ZeroDivisionError")
    assert server_of(address) == worker


def test_handle_error_that_raises_costs_that_request_only(start: Callable[..., Program]) -> None:
    """When handle_error() itself raises, the client is closed, both errors are logged, the worker serves on."""
    program = start("""
        from tests.support.app import *

        def handle_error(self, request, client_address):
            raise LookupError("in handle_error")

        serve(Run, workers=1, handle_error=handle_error)
    """)
    address = program.address()
    worker = program.worker()
    assert hangs_up(address, "1 / 0") == ""
    program.wait_logged("LookupError: in handle_error")
    assert server_of_run(address) == worker


def test_signals_that_are_the_masters_do_nothing_to_a_worker(start: Callable[..., Program]) -> None:
    """INT, QUIT, HUP, USR2, TTIN, TTOU and WINCH leave a worker and its request alone."""
    program = start(serving("Run", workers=1))
    address = program.address()
    worker = program.worker()
    with send(address, "time.sleep(0.2)") as client:
        for number in ("INT", "QUIT", "HUP", "USR2", "TTIN", "TTOU", "WINCH"):
            os.kill(worker, getattr(signal, f"SIG{number}"))
        assert read_to_the_end(client) == f"{worker} None"
    assert program.workers() == {worker}
    assert program.popen.poll() is None


def test_programs_started_by_handlers_have_ordinary_signals(start: Callable[..., Program]) -> None:
    """A program that a handler starts ignores and blocks nothing on our account."""
    program = start(serving("Run", workers=1))
    answer = ask(
        program.address(), "subprocess.check_output(['grep', '^Sig[BI]', '/proc/self/status'])"
    )
    blocked, ignored = re.findall(r":\\t(\w+)", answer)
    # What the tests themselves were started with is nobody's doing here.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    inherited = re.findall(r"^Sig(?:Blk|Ign):\t(\w+)", status, re.MULTILINE)
    added = [
        int(now, 16) & ~int(then, 16)
        for now, then in zip((blocked, ignored), inherited, strict=True)
    ]
    assert added == [0, 0]


def test_connection_is_open_in_one_process_only(start: Callable[..., Program]) -> None:
    """A worker that is forked while another serves does not hold that client's connection."""
    program = start(serving("TellingRun", workers=2))
    with send(program.address(), "time.sleep(60)") as client:
        busy = program.told("busy")
        idle = (program.workers() - {busy}).pop()
        os.kill(idle, signal.SIGKILL)
        wait_until(lambda: program.workers() - {busy, idle}, "a worker forked meanwhile")
        os.kill(busy, signal.SIGKILL)
        assert read_to_the_end(client) == ""


def test_no_process_is_left_after_misbehaviour(start: Callable[..., Program]) -> None:
    """After forks, threads and damage in handlers, a stop leaves no process of the session."""
    program = start(serving("Run", workers=2))
    address = program.address()
    for line in (
        "os.fork()",
        "os.fork() and os.fork()",
        "threading.Thread(target=os.fork).start()",
    ):
        hangs_up(address, line)
    assert program.stop() == 0
    program.wait_silent()
    assert process(program.pid) is None
    assert program.leftovers() == []


def test_handler_that_closes_the_server_harms_only_its_worker(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A handler that calls server_close() does not take the socket file away, nor the pool down."""
    path = tmp_path / "socket"
    program = start(serving("Run", base="PreForkingUnixStreamServer", address=str(path), workers=2))
    program.address()
    hangs_up(str(path), "self.server.server_close()")
    for _ in range(10):
        assert ask(str(path), "'served'").endswith("'served'")
    assert path.exists()
    assert program.stop() == 0
    assert not path.exists()


def test_handler_that_scribbles_over_the_shared_memory(start: Callable[..., Program]) -> None:
    """Whatever a worker writes into the scoreboard, master and port stay, the bounds hold, a stop is obeyed."""
    program = start("""
        from tests.support.app import *
        import fcntl, mmap, random

        class Scribbling(Echo):
            def handle(self):
                super().handle()
                for name in os.listdir("/proc/self/fd"):
                    with contextlib.suppress(OSError, ValueError):
                        if "memfd" in os.readlink(f"/proc/self/fd/{name}"):
                            scribble(int(name))

        def scribble(fd):
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            with contextlib.suppress(OSError):
                os.write(fd, b"x")
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)
            size = os.fstat(fd).st_size
            with mmap.mmap(fd, size) as memory:
                for _ in range(200):
                    memory[random.randrange(size)] = random.randrange(256)

        import contextlib
        serve(Scribbling, workers=3, max_children=5)
    """)
    address = program.address()
    with ChildrenWatch(program.pid) as watch:
        answers = [hangs_up(address, "hello") for _ in range(100)]
    assert sum(answer.endswith(" hello") for answer in answers) >= 90
    assert watch.most <= 5
    assert watch.oldest_zombie < 1.0
    wait_until(lambda: 1 <= len(program.workers()) <= 5, "a pool")
    program.signal(signal.SIGUSR1)
    program.wait_logged("master.* status")
    assert program.stop(ceiling=40) == 0


def test_handler_that_makes_all_it_has_blocking_and_full(start: Callable[..., Program]) -> None:
    """A master does not wait in what it shares with its workers, whatever they do to that: it ends them in time."""
    program = start("""
        from tests.support.app import *
        import contextlib

        class Blocking(Echo):
            def handle(self):
                for name in os.listdir("/proc/self/fd"):
                    with contextlib.suppress(OSError):
                        if int(name) > 2 and "eventfd" in os.readlink(f"/proc/self/fd/{name}"):
                            os.write(int(name), (2**64 - 2).to_bytes(8, "little"))
                        os.set_blocking(int(name), True)
                tell("blocked")
                time.sleep(60)

        serve(Blocking, workers=2, graceful_timeout=0.3)
    """)
    with send(program.address(), "") as _:
        program.told("blocked")
        assert program.stop(ceiling=15) == 0


def test_clients_that_reset_or_say_nothing_cost_no_worker(start: Callable[..., Program]) -> None:
    """Five hundred clients that reset their connection or leave at once change nothing for the next."""
    program = start(serving(workers=2))
    address = program.address()
    workers = program.wait_workers(2)
    for number in range(500):
        client = connect(address)
        if number % 2:
            reset_on_close(client)
        if number % 5 == 0:
            client.sendall(b"half a line")
        client.close()
    assert ask(address, "hello").endswith(" hello")
    assert program.workers() == workers


def test_half_closed_client_gets_its_whole_answer(start: Callable[..., Program]) -> None:
    """A client that has ended its sending side gets all of a long answer."""
    program = start("""
        from tests.support.app import *

        class Long(Echo):
            def handle(self):
                self.wfile.write(self.rfile.read() * 200_000)

        serve(Long, workers=1)
    """)
    with connect(program.address()) as client:
        client.sendall(b"0123456789")
        client.shutdown(socket.SHUT_WR)
        assert len(read_all(client)) == 2_000_000


# --- what a handler can ask


@pytest.mark.parametrize("base", ["TCPServer", "ThreadingTCPServer"])
def test_handler_knows_its_worker(start: Callable[..., Program], base: str) -> None:
    """current_worker() and is_stopping() answer in handlers, hooks and forked children, and not in the master."""
    program = start(f"""
        from tests.support.app import *
        import prefork, socketserver

        def asked():
            worker = prefork.current_worker()
            return worker and [worker.slot, worker.generation, worker.pid], prefork.is_stopping()

        class Asking(Echo):
            def handle(self):
                tell("handler", [asked(), self.server.worker is prefork.current_worker()])
                if not (child := os.fork()):
                    tell("child", asked())
                    os._exit(0)
                os.waitpid(child, 0)
                self.rfile.read()
                while not prefork.is_stopping():
                    time.sleep(0.01)
                tell("at the end", asked())

        class Server(prefork.PreForkingMixIn, socketserver.{base}):
            workers = 1

            def worker_init(self, worker):
                tell("hook", asked())

            def pre_fork(self, worker):
                tell("master", asked())

        tell("before", asked())
        serve(Asking, Server)
    """)
    worker = [0, 0, *program.wait_workers(1)]
    assert program.told("before") == program.told("master") == [None, False]
    assert program.told("hook") == [worker, False]
    with connect(program.address()) as client:
        assert program.told("handler") == [[worker, False], True]
        assert program.told("child") == [worker, True]
        client.shutdown(socket.SHUT_WR)
        program.terminate()
        assert program.told("at the end") == [worker, True]
    assert program.wait() == 0


def test_numpy_is_reseeded_in_each_worker(start: Callable[..., Program]) -> None:
    """Where numpy.random is loaded, its global generator is reseeded in each worker before worker_init()."""
    program = start("""
        from tests.support.app import *
        import prefork, types

        numbers = types.ModuleType("numpy.random")
        numbers.seed = lambda: tell("reseeded", os.getpid())
        sys.modules["numpy.random"] = numbers
        serve(Echo, workers=2)
    """)
    workers = program.wait_workers(2)
    assert {program.told("reseeded"), program.told("reseeded", nth=1)} == workers
