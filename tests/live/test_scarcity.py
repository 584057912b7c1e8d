"""Want of descriptors, memory, processes and log readers: no spinning, one line, recovery by itself."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import PoolField
from tests.support.board import board_of
from tests.support.clients import (
    ask,
    ask_datagram,
    datagram_client,
    hangs_up,
    listens,
    read_to_the_end,
    send,
)
from tests.support.load import Load
from tests.support.processes import cpu_seconds, fds_of
from tests.support.server import ENDED, serving
from tests.support.tracing import FORKS, injected, why_no_strace
from tests.support.waiting import Stopwatch, let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.server import Program

needs_strace = pytest.mark.skipif(why_no_strace() != "", reason=why_no_strace())

NO_DESCRIPTORS = "EMFILE|Too many open files"

SPINNING = 0.2
"""A fifth of a core: more would be spinning."""


def cpu_share(pid: int, span: float) -> float:
    """Return the share of a core that a process uses during the next seconds."""
    before, watch = cpu_seconds(pid), Stopwatch()
    let_pass(span)
    return (cpu_seconds(pid) - before) / watch.seconds


def warnings_in(program: Program) -> list[str]:
    """Return the log lines that are warnings or worse."""
    return program.logged(" (WARNING|ERROR|CRITICAL) ")


def limit_descriptors(pid: int, soft: int) -> None:
    """Set how many descriptors a process may have; what is open stays open."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def starve(pid: int) -> None:
    """Deny a process its next descriptor; a worker's last connection is closed by then."""

    def held() -> dict[int, str]:
        fds = fds_of(pid)
        return fds if sum(link.startswith("socket") for link in fds.values()) == 1 else {}

    fds = wait_until(held, "no socket but the listener")
    limit_descriptors(pid, min(set(range(max(fds) + 2)) - fds.keys()))


def test_worker_without_descriptors_waits_and_recovers(start: Callable[..., Program]) -> None:
    """EMFILE in a worker: one line, no spinning, and its client is served when there are descriptors again."""
    program = start(serving(workers=1))
    address = program.address()
    worker = program.worker()
    ask(address)
    for shortage in (1, 2):
        starve(worker)
        with send(address, "patient") as client:
            program.wait_logged(NO_DESCRIPTORS, times=shortage)
            assert cpu_share(worker, 0.6) < SPINNING
            assert len(program.logged(NO_DESCRIPTORS)) == shortage
            limit_descriptors(worker, 1024)
            relieved = Stopwatch()
            assert read_to_the_end(client) == f"{worker} patient"
            assert relieved.seconds < 5.0
    assert len(warnings_in(program)) <= 4, "more than one line per transition"


def test_worker_without_threads_waits_and_recovers(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """ThreadingMixIn at the limit of processes: one line, no spinning, and no client is dropped."""
    # A stack larger than the address space is refused by the kernel as a thread too many is.
    program = start("""
        from tests.support.app import *
        import prefork, socketserver, threading

        class Threads(prefork.PreForkingMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
            def process_request(self, request, address):
                threading.stack_size(1 << 47 if os.path.exists("short") else 0)
                super().process_request(request, address)

        serve(Echo, Threads, workers=1)
    """)
    address = program.address()
    worker = program.worker()
    assert ask(address, "before").endswith("before")
    for shortage in (1, 2):
        (tmp_path / "short").touch()
        with send(address, "first") as first, send(address, "second") as second:
            program.wait_logged("cannot take requests, retrying", times=shortage)
            assert cpu_share(worker, 0.6) < SPINNING
            assert len(program.logged("cannot take requests, retrying")) == shortage
            (tmp_path / "short").unlink()
            assert read_to_the_end(first) == f"{worker} first"
            assert read_to_the_end(second) == f"{worker} second"
            program.wait_logged("takes requests again", times=shortage)
    assert program.stop() == 0


def test_worker_without_processes_for_requests_waits(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """ForkingMixIn behind the pool, at the limit of processes: the client waits, and is served afterwards."""
    program = start("""
        from tests.support.app import *
        import functools, prefork, socketserver

        class Forks(prefork.PreForkingMixIn, socketserver.ForkingMixIn, socketserver.TCPServer):
            pass

        # What a refused fork raises, EAGAIN, an empty pipe raises as well. Both are functions of C.
        refused = functools.partial(os.read, os.pipe2(os.O_NONBLOCK)[0], 1)

        class Limited:
            def __getattr__(self, name):
                return refused if name == "fork" and os.path.exists("short") else getattr(os, name)

        socketserver.os = Limited()
        serve(Echo, Forks, workers=1)
    """)
    address = program.address()
    (tmp_path / "short").touch()
    with send(address, "patient") as client:
        program.wait_logged("cannot take requests, retrying")
        (tmp_path / "short").unlink()
        assert read_to_the_end(client).endswith("patient")
    assert program.stop() == 0


def test_master_waits_for_more_descriptors_than_it_may_have(start: Callable[..., Program]) -> None:
    """With RLIMIT_NOFILE at 1 the master goes on, and the pool is whole again after the limit was raised."""
    program = start(serving(workers=2, metrics_address="127.0.0.1:0"))
    address = program.address()
    program.wait_logged("metrics pid=.* ready")
    limit_descriptors(program.pid, 1)
    lost = program.worker()
    os.kill(lost, signal.SIGKILL)
    program.wait_logged("fork failed, retrying")
    assert ask(address)
    limit_descriptors(program.pid, 1024)
    program.wait_workers(3)  # the metrics process is one of them
    assert lost not in program.workers()
    assert program.stop() == 0


@pytest.mark.parametrize("base", ["PreForkingTCPServer", "PreForkingUnixStreamServer"])
def test_worker_without_descriptors_serves_who_waits_before_it_leaves(
    start: Callable[..., Program], tmp_path: Path, base: str
) -> None:
    """A worker that is to leave has a descriptor for clients: the one that it waited with."""
    where = {"address": str(tmp_path / "socket")} if "Unix" in base else {}
    program = start(serving(workers=1, base=base, **where))
    address = program.address()
    worker = program.worker()
    starve(worker)
    with send(address, "patient") as first, send(address, "patient") as second:
        program.wait_logged(NO_DESCRIPTORS)
        took = Stopwatch()
        program.terminate()
        assert read_to_the_end(first) == read_to_the_end(second) == f"{worker} patient"
    assert program.wait() == 0
    assert took.seconds < 10.0  # far below graceful_timeout


@needs_strace
def test_worker_without_descriptors_leaves_when_nobody_waits(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """accept() fails before it looks into the queue: with an empty one, that is nobody's concern at a stop."""
    program = start(serving(workers=1))
    program.address()
    with injected(program.worker(), "accept,accept4:error=ENFILE", log=tmp_path / "strace"):
        took = Stopwatch()
        assert program.stop() == 0
        assert took.seconds < 10.0  # far below graceful_timeout
    assert warnings_in(program) == []


@needs_strace
def test_worker_without_descriptors_leaves_nobody_who_waits(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """At a stop, too, it goes on trying while a client waits, and serves it when there are descriptors again."""
    program = start(serving(workers=1))
    address = program.address()
    worker = program.worker()
    with ExitStack() as clients:
        with injected(worker, "accept,accept4:error=ENFILE", log=tmp_path / "strace"):
            client = clients.enter_context(send(address, "patient"))
            program.wait_logged("ENFILE")
            program.terminate()
            program.wait_logged(f"pid={worker} asked to leave")
            stays(lambda: worker in program.workers(), "it has left its client", span=0.3)
        assert read_to_the_end(client) == f"{worker} patient"
    assert program.wait() == 0


@needs_strace
def test_shortage_at_one_listener_keeps_nobody_from_the_others(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """Datagrams need no descriptor: they are served, at a stop, too, and one line tells when connections are again."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Leader(prefork.PreForkingTCPServer):
            workers = 1

            def when_ready(self):
                announce(*servers)

        class Datagrams(prefork.PreForkingUDPServer):
            pause = 0.1

        log_to_stderr()
        servers = [Leader(LOOPBACK, Echo), Datagrams(LOOPBACK, EchoDatagram)]
        prefork.serve(*servers)
        for server in servers:
            server.server_close()
    """)
    tcp, udp = program.address(0), program.address(1)
    worker = program.worker()
    shortage = (worker, "accept,accept4:error=ENFILE")
    with ExitStack() as clients:
        with injected(*shortage, log=tmp_path / "strace"):
            client = clients.enter_context(send(tcp, "patient"))
            program.wait_logged("ENFILE")
            for _ in range(3):
                assert ask_datagram(udp) == f"{worker} hello"
            assert len(warnings_in(program)) == 1
        assert read_to_the_end(client) == f"{worker} patient"
        program.wait_logged("takes requests again listener=tcp")
        with injected(*shortage, log=tmp_path / "strace"):
            client = clients.enter_context(send(tcp, "patient"))
            program.wait_logged("ENFILE", times=2)
            datagrams = [clients.enter_context(datagram_client(udp)) for _ in range(5)]
            for one in datagrams:
                one.send(b"queued")
            program.terminate()
            for one in datagrams:
                assert one.recv(100) == b"%d queued" % worker
        assert read_to_the_end(client) == f"{worker} patient"
    assert program.wait() == 0


def test_siblings_serve_while_a_worker_lacks_descriptors(start: Callable[..., Program]) -> None:
    """One worker in want of descriptors keeps no client from the others, and no stop from its end."""
    program = start(serving(workers=3))
    address = program.address()
    poor = program.worker()
    starve(poor)
    with Load(address, clients=2) as load:
        wait_until(lambda: load.answered > 200, "requests go on")
    assert load.lost == {}
    assert max(done.seconds for done in load.requests) < 3.0
    took = Stopwatch()
    assert program.stop() == 0
    assert took.seconds < 10.0  # far below graceful_timeout


@needs_strace
@pytest.mark.parametrize(
    "error", ["ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPROTO", "EPERM", "EINTR"]
)
def test_errors_of_accept_pass(start: Callable[..., Program], tmp_path: Path, error: str) -> None:
    """No error of accept() ends a worker or loses a client that is still there."""
    program = start(serving(workers=1))
    address = program.address()
    worker = program.worker()
    with injected(worker, f"accept,accept4:error={error}:when=1..5", log=tmp_path / "strace"):
        assert ask(address, "hello") == f"{worker} hello"
    assert program.workers() == {worker}
    assert len(warnings_in(program)) <= 2


@needs_strace
def test_fork_that_fails_is_retried(start: Callable[..., Program], tmp_path: Path) -> None:
    """While fork fails: one line, no spinning, the others serve; afterwards the pool is whole again soon."""
    program = start(serving(workers=2))
    address = program.address()
    workers = program.wait_workers(2)
    trace = tmp_path / "strace"
    with injected(program.pid, f"{FORKS}:error=EAGAIN", log=trace):
        os.kill(min(workers), signal.SIGKILL)
        program.wait_logged("fork failed|EAGAIN|temporarily unavailable")
        with Load(address, clients=1) as load:
            assert cpu_share(program.pid, 1.5) < SPINNING
        assert load.lost == {}
        assert load.answered > 100
        assert program.workers() == {max(workers)}
        assert trace.read_text().count("EAGAIN") <= 10
        assert len(program.logged("fork failed|EAGAIN|temporarily unavailable")) == 1
        program.signal(signal.SIGTTIN)
        program.settle()  # strace that lets go takes a signal with it that has just come
    relieved = Stopwatch()
    program.wait_workers(3)
    assert relieved.seconds < 5.0  # one or two, with room for a loaded machine
    assert program.stop() == 0


@needs_strace
@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
def test_stop_is_obeyed_while_fork_fails(
    start: Callable[..., Program], tmp_path: Path, error: str
) -> None:
    """A master that cannot fork obeys a stop at once."""
    program = start(serving(workers=2))
    program.address()
    workers = program.wait_workers(2)
    with injected(program.pid, f"{FORKS}:error={error}", log=tmp_path / "strace"):
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        program.wait_logged("fork failed|temporarily unavailable|allocate memory")
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 5.0


def test_master_without_descriptors_waits_and_recovers(start: Callable[..., Program]) -> None:
    """EMFILE in the master: no half-made worker, one line, and the pool is whole again afterwards."""
    program = start(serving(workers=2))
    address = program.address()
    program.wait_workers(2)
    starve(program.pid)
    program.signal(signal.SIGTTIN)
    program.wait_logged(NO_DESCRIPTORS)
    stays(
        lambda: len(program.workers()) <= 3 and ask(address),
        "the pool goes on",
        span=0.5,
        poll=0.05,
    )
    assert cpu_share(program.pid, 0.3) < SPINNING
    limit_descriptors(program.pid, 1024)
    program.wait_workers(3)
    assert program.stop() == 0


@needs_strace
def test_worker_that_cannot_be_held_never_runs(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """Workers for which the master has no descriptor run no hook, take no client, and are counted and logged."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 4
            max_children = 4
            def worker_init(self, worker):
                tell("init", worker.pid)

        serve(Echo, Server)
    """)
    address = program.address()
    retired = program.wait_workers(4)
    with Load(address, clients=4) as load:
        with injected(program.pid, "pidfd_open:error=EMFILE", log=tmp_path / "strace"):
            for pid in retired:
                os.kill(pid, signal.SIGTERM)
            program.wait_logged("fork failed, retrying")
            with board_of(program.pid) as board:
                wait_until(lambda: board.pool(PoolField.SPAWN_FAILURES) > 1, "more failures")
        program.wait_logged("fork succeeded again")
        wait_until(lambda: len(program.workers() - retired) == 4, "a whole pool")
        answered = load.answered
        wait_until(lambda: load.answered > answered + 50, "they serve")
    assert load.lost == {}
    spawned = {int(line.split("pid=")[1].split()[0]) for line in program.logged(" spawned ")}
    wait_until(
        lambda: set(program.all_told("init")) == spawned, "each has run its hook, and no other"
    )
    assert program.stop() == 0


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Return the two ends of a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def drained(reader: int) -> bytes:
    """Return what a pipe holds now."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 1 << 20)
    except BlockingIOError:
        return b""


COMMAND = """
    import sys
    from prefork.cli import main
    sys.argv[0] = "prefork"
    sys.exit(main())
"""


def run_command(
    start: Callable[..., Program], listener: socket.socket, **options: object
) -> Program:
    """Start ``prefork run`` with a listener that it inherits."""
    arguments = ["run", "tests.support.app:Run", "-b", f"fd://{listener.fileno()}", "-w", "2"]
    return start(COMMAND, arguments=arguments, pass_fds=[listener.fileno()], **options)


def test_log_pipe_that_nobody_reads_stops_nothing(
    start: Callable[..., Program], full_pipe: tuple[int, int]
) -> None:
    """With a full log pipe requests are served, the dead replaced and a stop obeyed; read again, it has lines again."""
    reader, writer = full_pipe
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        program = run_command(start, listener, stderr=writer)
        for _ in range(30):
            assert ask(address, "'served'").endswith("'served'")
            hangs_up(address, "1 / 0")
        first = program.wait_workers(2)
        for worker in first:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: len(program.workers() - first) == 2, "the dead replaced")
        pids = [program.pid, *program.workers()]
        assert max(cpu_share(pid, 0.2) for pid in pids) < SPINNING
        drained(reader)
        text = b""

        def lines_again() -> bool:
            nonlocal text
            hangs_up(address, "1 / 0")
            text += drained(reader)
            return b"ZeroDivisionError" in text

        wait_until(lines_again, "log lines once the pipe is read again")
        while len(drained(reader)) < 1:
            hangs_up(address, "1 / 0")
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 10.0  # far below graceful_timeout


def test_stop_is_obeyed_with_a_full_log_pipe(
    start: Callable[..., Program], full_pipe: tuple[int, int]
) -> None:
    """TERM is obeyed in time though not one log line can be written."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = run_command(start, listener, stderr=full_pipe[1])
        ask(listener.getsockname(), "'served'")
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 10.0  # far below graceful_timeout


def test_log_pipe_whose_reader_is_gone_stops_nothing(start: Callable[..., Program]) -> None:
    """With nobody at the other end of the log pipe requests are served and a stop is obeyed."""
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = run_command(start, listener, stderr=writer)
        os.close(reader)
        os.close(writer)
        for _ in range(10):
            hangs_up(listener.getsockname(), "1 / 0")
            assert ask(listener.getsockname(), "'served'").endswith("'served'")
        first = program.wait_workers(2)
        os.kill(min(first), signal.SIGKILL)
        wait_until(lambda: program.workers() - first, "the dead replaced")
        assert program.stop() in ENDED


FULL_STDOUT = (
    "[ends := os.pipe(), os.write(ends[1], bytes(65536)), os.dup2(ends[1], 1), print('left over')]"
)
"""What a handler does to have its worker end with output that nobody will ever read."""


def test_worker_whose_output_nobody_reads_still_leaves(start: Callable[..., Program]) -> None:
    """Output that is left in a worker's buffer, for a pipe that is full, holds neither the worker nor a stop."""
    program = start(serving("Run", workers=1))
    address = program.address()
    hangs_up(address, FULL_STDOUT)
    took = Stopwatch()
    assert program.stop() == 0
    assert took.seconds < 10.0  # far below graceful_timeout


CLOSED = [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"]


@pytest.mark.parametrize("closed", CLOSED)
def test_standard_streams_that_are_closed_or_full(
    start: Callable[..., Program], tmp_path: Path, closed: str
) -> None:
    """A server whose standard streams are closed or full starts, serves, logs nothing wrong, and stops the same."""
    path = str(tmp_path / "socket")
    source = f"""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingUnixStreamServer):
            workers = 2

        log_to_stderr()
        with Server({path!r}, Run) as server:
            server.serve_forever()
    """
    program = start(source, before=["sh", "-c", f'exec "$@" {closed}', "sh"])
    wait_until(lambda: listens(path), "a server that listens")
    wait_until(lambda: len(program.workers()) == 2, "two workers")
    for _ in range(5):
        hangs_up(path, "1 / 0")
        hangs_up(path, "print('x' * 100)")
        assert ask(path, "'served'").endswith("'served'")
    first = program.workers()
    os.kill(min(first), signal.SIGKILL)
    wait_until(lambda: program.workers() - first, "the dead replaced")
    assert ask(path, "'served'").endswith("'served'")
    assert program.stop() in ENDED
    assert not os.path.exists(path)
