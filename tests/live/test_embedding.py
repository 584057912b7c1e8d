"""Inside a program: threads, several pools, serving again, and the hooks a program sees."""

from __future__ import annotations

import signal
import socket
import statistics
import threading
from typing import TYPE_CHECKING

import pytest

import prefork
from prefork.workers.states import WorkerState
from tests.support.board import board_of
from tests.support.clients import ask, ask_datagram, can_bind, hangs_up, server_of
from tests.support.processes import fds_of, is_alive
from tests.support.server import serving
from tests.support.waiting import Stopwatch, let_pass, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

THREADED = """
    from tests.support.app import *
    import prefork

    log_to_stderr()

    class Server(prefork.PreForkingTCPServer):
        workers = 2
        when_ready = announce

    with Server(LOOPBACK, Run) as server:
        thread = threading.Thread(target=server.serve_forever)
        handler = signal.getsignal(signal.SIGTERM)
        thread.start()
        signal.sigwait({signal.SIGUSR2})
        began = time.monotonic()
        server.shutdown()
        took = time.monotonic() - began
        thread.join()
        tell("handler kept", handler == signal.getsignal(signal.SIGTERM))
        tell("active", sorted(server.active_children or ()))
        tell("shutdown", took)
"""


def test_serving_in_a_thread_and_shutdown_from_another(start: Callable[..., Program]) -> None:
    """serve_forever() serves in any thread; shutdown() from another returns when it has stopped, at once."""
    program = start(
        "import signal\nsignal.pthread_sigmask(0, [signal.SIGUSR2])\n" + dedented(THREADED)
    )
    address = program.address()
    workers = program.wait_workers(2)
    assert {server_of_run(address) for _ in range(20)} <= workers
    program.signal(signal.SIGUSR2)
    assert program.told("shutdown") < 3.0
    assert program.told("handler kept") is True
    assert program.told("active") == []
    assert program.wait() == 0


def dedented(source: str) -> str:
    """Return the source at the left margin, so that lines can be put before it."""
    import textwrap

    return textwrap.dedent(source)


def server_of_run(address: object) -> int:
    """Return the pid of the worker that serves one request of a ``Run``."""
    return int(ask(address, "0").split()[0])


def test_dead_worker_is_replaced_when_a_thread_serves(start: Callable[..., Program]) -> None:
    """In a thread, too, the dead are replaced, and workers that were forked there obey a stop."""
    program = start(
        "import signal\nsignal.pthread_sigmask(0, [signal.SIGUSR2])\n" + dedented(THREADED)
    )
    address = program.address()
    first = program.wait_workers(2)
    hangs_up(address, "os._exit(1)")
    wait_until(
        lambda: len(program.workers() & first) == 1 and len(program.workers()) == 2, "a new worker"
    )
    ask(address, "0")
    program.signal(signal.SIGUSR2)
    assert program.told("shutdown") < 3.0
    assert program.wait() == 0


def test_orphans_of_a_serving_thread_leave(start: Callable[..., Program]) -> None:
    """Workers forked by a thread do not end with that thread's life but with the master's."""
    program = start(dedented(THREADED))
    program.address()
    workers = program.wait_workers(2)
    program.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), "the orphans gone", ceiling=4)


def test_shutdown_in_a_handler_stops_the_pool(start: Callable[..., Program]) -> None:
    """A handler that calls shutdown() gets its answer out; serve_forever() returns in the master."""
    program = start(serving("Run", workers=2))
    address = program.address()
    assert ask(address, "self.server.shutdown()").endswith(" None")
    assert program.wait() == 0
    assert program.told("left") is None


@pytest.mark.parametrize(
    ("place", "workers"),
    [
        ("pre_fork", 2),
        ("when_ready", 2),
        ("worker_ready", 2),
        ("on_reload", 2),
        ("service_actions", 2),
        ("service_actions", 0),
        ("a signal handler", 2),
        ("a signal handler", 0),
    ],
)
def test_shutdown_in_the_thread_that_serves(
    start: Callable[..., Program], place: str, workers: int
) -> None:
    """In the serving thread shutdown() asks and returns, wherever it is called; serve_forever() returns then."""
    program = start(
        f"""
        from tests.support.app import *
        import prefork

        log_to_stderr()

        class Server(prefork.PreForkingTCPServer):
            workers = {workers}

        def stop(self, *_arguments):
            if not hasattr(self, "asked"):
                self.asked = True
                self.shutdown()
                tell("returned")

        def service_actions(self):
            prefork.PreForkingTCPServer.service_actions(self)
            stop(self)

        server = Server(LOOPBACK, Echo)
        if "{place}" == "a signal handler":
            signal.signal(signal.SIGALRM, lambda *_arguments: stop(server))
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        elif "{place}" == "service_actions":
            Server.service_actions = service_actions
        else:
            setattr(Server, "{place}", stop)
        if "{place}" == "on_reload":
            Server.worker_ready = lambda self, _worker: os.kill(os.getpid(), signal.SIGHUP)
        with server:
            server.serve_forever()
        server.shutdown()  # after the end there is nothing to wait for
        tell("left")
        """
    )
    program.told("returned")
    program.told("left")
    assert program.wait() == 0


def test_two_pools_in_one_process(start: Callable[..., Program]) -> None:
    """Two pools serve at once in one process; the workers of one hold nothing of the other's."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        log_to_stderr()

        class Server(prefork.PreForkingTCPServer):
            workers = 2

            def worker_ready(self, worker):
                tell(self.label, [worker.pid, self.server_address[1], os.fstat(self.fileno()).st_ino])

        first, second = Server(LOOPBACK, Echo), Server(LOOPBACK, Echo)
        first.label, second.label = "first", "second"
        threads = [threading.Thread(target=server.serve_forever) for server in (first, second)]
        for thread in threads:
            thread.start()
        for server in (first, second):
            signal.sigwait({signal.SIGUSR2})
            server.shutdown()
            tell("down", server.label)
        for thread in threads:
            thread.join()
        first.server_close()
        second.server_close()
    """.replace("import prefork", "import prefork; signal.pthread_sigmask(0, [signal.SIGUSR2])")
    )
    pools = {}
    for label in ("first", "second"):
        told = [program.told(label, nth) for nth in (0, 1)]
        pools[label] = ({pid for pid, _, _ in told}, told[0][1], told[0][2])
    (pids, port, inode), (other_pids, other_port, other_inode) = pools["first"], pools["second"]
    assert {server_of(("127.0.0.1", port)) for _ in range(10)} <= pids
    assert {server_of(("127.0.0.1", other_port)) for _ in range(10)} <= other_pids
    for mine, listener, foreign in ((pids, inode, other_inode), (other_pids, other_inode, inode)):
        for pid in mine:
            links = fds_of(pid).values()
            assert f"socket:[{listener}]" in links
            assert f"socket:[{foreign}]" not in links
    program.signal(signal.SIGUSR2)
    assert program.told("down") == "first"
    assert server_of(("127.0.0.1", other_port)) in other_pids
    program.signal(signal.SIGUSR2)
    assert program.told("down", 1) == "second"
    assert program.wait() == 0


def test_pools_one_after_the_other(start: Callable[..., Program]) -> None:
    """A program can serve with one server after the other; each stop returns to it."""
    program = start("""
        from tests.support.app import *
        for number in range(3):
            serve(Echo, workers=1 + number)
    """)
    for number in range(3):
        address = program.address(number)
        assert server_of(address) in program.wait_workers(1 + number)
        program.terminate()
        assert program.told("closed", number) is None
        assert can_bind(address)
    assert program.wait() == 0


def test_serving_again_after_a_stop_by_signal(start: Callable[..., Program]) -> None:
    """After TERM the same server object can serve again, on the same address, with fresh workers."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 2
            when_ready = announce

        log_to_stderr()
        with Server(LOOPBACK, Echo) as server:
            for _ in range(3):
                server.serve_forever()
                tell("left")
    """)
    served: set[int] = set()
    for number in range(3):
        address = program.address(number)
        assert address == program.address(0)
        workers = program.wait_workers(2)
        assert {server_of(address) for _ in range(10)} <= workers
        assert not served & workers
        served |= workers
        program.terminate()
        program.told("left", number)
    assert program.wait() == 0


@pytest.mark.parametrize("kind", ["unix", "udp", "inet6"])
def test_serving_again_on_other_listeners(
    start: Callable[..., Program], kind: str, tmp_path: object
) -> None:
    """After TERM a Unix, a UDP and an IPv6 server can serve again as well."""
    base, handler, address = {
        "unix": ("PreForkingUnixStreamServer", "Echo", f"{tmp_path}/socket"),
        "udp": ("PreForkingUDPServer", "EchoDatagram", ("127.0.0.1", 0)),
        "inet6": ("PreForkingTCPServer", "Echo", ("::1", 0)),
    }[kind]
    program = start(f"""
        from tests.support.app import *
        import prefork

        class Server(prefork.{base}):
            workers = 2
            when_ready = announce

        log_to_stderr()
        with Server({address!r}, {handler}) as server:
            for _ in range(3):
                server.serve_forever()
                tell("left")
    """)
    client = ask_datagram if kind == "udp" else ask
    for number in range(3):
        where = program.address(number)
        assert where == program.address(0)
        assert int(client(where).split()[0]) in program.wait_workers(2)
        program.terminate()
        program.told("left", number)
    assert program.wait() == 0


def test_serving_again_after_a_shutdown_finds_the_queue(start: Callable[..., Program]) -> None:
    """shutdown() leaves what is queued to the next serve_forever(): no client of that moment is lost."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            when_ready = announce

            def service_actions(self):
                super().service_actions()
                if flag.is_set():
                    flag.clear()
                    threading.Thread(target=self.shutdown).start()

        flag = threading.Event()
        signal.signal(signal.SIGALRM, lambda *_: flag.set())
        log_to_stderr()
        with Server(LOOPBACK, TellingRun) as server:
            server.serve_forever(poll_interval=0.05)
            tell("left")
            server.serve_forever()
    """)
    from tests.support.clients import read_to_the_end, send

    address = program.address()
    with send(address, "time.sleep(0.3)") as first:
        program.told("busy")
        with send(address, "'queued'") as second:
            program.signal(signal.SIGALRM)
            assert read_to_the_end(first).endswith(" None")
            program.told("left")
            assert read_to_the_end(second).endswith("'queued'")
    program.terminate()
    assert program.wait() == 0


def test_child_that_the_program_forks_gets_no_signals_bytes(start: Callable[..., Program]) -> None:
    """In a child that the program forks for itself no signal is written anywhere: the number is soon another file's."""
    program = start("""
        from tests.support.app import *

        def when_ready(self):
            if os.fork() == 0:
                with open("file", "w+b", buffering=0) as file:
                    signal.signal(signal.SIGUSR1, lambda *_: None)  # without a pool it would end the child
                    signal.raise_signal(signal.SIGUSR1)
                    tell("wakeup", signal.set_wakeup_fd(-1))
                    tell("written", file.tell())
                os._exit(0)
            announce(self)

        serve(Echo, workers=1, when_ready=when_ready)
    """)
    address = program.address()
    assert program.told("wakeup") == -1
    assert program.told("written") == 0
    assert ask(address).endswith("hello")
    assert program.stop() == 0


def test_workers_zero_serves_in_the_master(start: Callable[..., Program]) -> None:
    """With no workers the program itself serves, in the standard library's loop, and the log says where."""
    program = start("""
        from tests.support.app import *
        import logging
        import prefork

        logging.basicConfig(level=logging.INFO)

        class Server(prefork.PreForkingTCPServer):
            workers = 0

        with Server(LOOPBACK, Echo) as server:
            announce(server)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                tell("interrupted")
    """)
    address = program.address()
    assert {server_of(address) for _ in range(5)} == {program.pid}
    assert program.workers() == set()
    where = f"tcp://{address[0]}:{address[1]}"
    assert f"master pid={program.pid} serves without workers listeners={where}" in program.log
    program.signal(signal.SIGINT)
    assert program.wait() == 0
    assert program.told("interrupted") is None


def test_one_pool_for_several_listeners(start: Callable[..., Program], tmp_path: object) -> None:
    """TCP, UDP and Unix servers with handlers of their own are served by the same workers."""
    program = start(f"""
        from tests.support.app import *
        import prefork

        class Leader(prefork.PreForkingTCPServer):
            workers = 2

            def when_ready(self):
                announce(*servers)

        log_to_stderr()
        servers = [
            Leader(LOOPBACK, Echo),
            prefork.PreForkingUDPServer(LOOPBACK, EchoDatagram),
            prefork.PreForkingUnixStreamServer("{tmp_path}/socket", Run),
        ]
        prefork.serve(*servers)
        tell("left")
        for server in servers:
            server.server_close()
    """)
    tcp, udp, unix = (program.address(nth) for nth in range(3))
    workers = program.wait_workers(2)
    for _ in range(5):
        assert server_of(tcp) in workers
        assert int(ask_datagram(udp).split()[0]) in workers
        assert server_of_run(unix) in workers
    assert program.stop() == 0
    assert program.told("left") is None


@pytest.mark.parametrize(
    ("servers", "said"),
    [((), "at least one server"), (([],), r"cannot serve \[\]"), ((1,), "serve.first, second.")],
)
def test_serve_says_what_it_takes(servers: tuple[object, ...], said: str) -> None:
    """Whatever else than servers is refused with a TypeError that names it and the way to write it."""
    with pytest.raises(TypeError, match=said):
        prefork.serve(*servers)


def test_busy_listener_does_not_starve_the_others(start: Callable[..., Program]) -> None:
    """While one listener of a pool is under full load, a client of another one is served within 0.5 s."""
    from tests.support.load import Load, request

    program = start("""
        from tests.support.app import *
        import prefork

        class Leader(prefork.PreForkingTCPServer):
            workers = 2

            def when_ready(self):
                announce(*servers)

        log_to_stderr()
        servers = [Leader(LOOPBACK, Echo), prefork.PreForkingTCPServer(LOOPBACK, Echo)]
        prefork.serve(*servers)
        for server in servers:
            server.server_close()
    """)
    hot, cold = program.address(0), program.address(1)
    with Load(hot, clients=8) as load:
        wait_until(lambda: load.answered > 50, "load")
        seconds = [request(cold, str(number)).seconds for number in range(10)]
    assert statistics.median(seconds) < 0.5
    assert max(seconds) < 2.0  # on a busy machine
    assert load.lost == {}


def test_flood_at_one_listener_does_not_starve_the_others(start: Callable[..., Program]) -> None:
    """While datagrams come faster than they can be served, a client of another listener is served in time."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Leader(prefork.PreForkingUDPServer):
            workers = 1

            def when_ready(self):
                announce(*servers)

        log_to_stderr()
        servers = [Leader(LOOPBACK, EchoDatagram), prefork.PreForkingTCPServer(LOOPBACK, Echo)]
        prefork.serve(*servers)
        for server in servers:
            server.server_close()
    """)
    hot, cold = program.address(0), program.address(1)
    ending = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not ending.is_set():
                sender.sendto(b"x", hot)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        let_pass(0.2)
        for _ in range(5):
            asked = Stopwatch()
            ask(cold)
            assert asked.seconds < 2.0
    finally:
        ending.set()
        flooding.join()


def test_shutdown_before_serving_makes_it_return(start: Callable[..., Program]) -> None:
    """shutdown() before serve_forever() makes that return at once, and the call after it serves."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            when_ready = announce

        with Server(LOOPBACK, Echo) as server:
            early = threading.Thread(target=server.shutdown)
            early.start()
            tell("asked")
            time.sleep(0.05)  # shutdown() has no sign that it is waiting
            server.serve_forever()
            early.join()
            tell("returned")
            server.serve_forever()
    """)
    program.told("returned")
    ask(program.address(len(program.all_told("address")) and 0))
    assert program.stop() == 0


def test_exception_in_service_actions_leaves_no_worker(start: Callable[..., Program]) -> None:
    """An exception of service_actions() leaves serve_forever() after the workers are gone."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 2
            when_ready = announce

            def service_actions(self):
                super().service_actions()
                if os.path.exists("break"):
                    raise ZeroDivisionError

        with Server(LOOPBACK, Echo) as server:
            try:
                server.serve_forever(poll_interval=0.02)
            except ZeroDivisionError:
                tell("active", sorted(server.active_children or ()))
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                tell("no children")
    """)
    program.address()
    program.wait_workers(2)
    (program.stderr_path.parent / "break").touch()
    assert program.told("active") == []
    program.told("no children")
    assert program.wait() == 0


def test_logging_that_fails_hides_no_exception_and_leaves_no_worker(
    start: Callable[..., Program],
) -> None:
    """A log handler that raises while service_actions() has failed neither replaces that exception nor leaves a worker."""
    program = start("""
        from tests.support.app import *
        import logging
        import prefork

        class Broken(logging.Handler):
            def emit(self, record):
                if "phase changed" in record.getMessage():
                    tell("refused")
                    raise OSError("the disk is full")

        class Server(prefork.PreForkingTCPServer):
            workers = 2
            when_ready = announce

            def service_actions(self):
                super().service_actions()
                if os.path.exists("break"):
                    raise ZeroDivisionError

        logging.basicConfig(level=logging.INFO, handlers=[Broken()])
        with Server(LOOPBACK, Echo) as server:
            try:
                server.serve_forever(poll_interval=0.02)
            except ZeroDivisionError:
                tell("left")
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                tell("no children")
    """)
    program.address()
    program.wait_workers(2)
    (program.stderr_path.parent / "break").touch()
    program.told("refused")
    program.told("left")
    program.told("no children")
    assert program.wait() == 0


def test_threads_and_plain_datagrams_in_one_pool(start: Callable[..., Program]) -> None:
    """Beside a server with threads a plain datagram server's requests are begun, ended and counted."""
    program = start("""
        import socketserver
        from tests.support.app import *
        import prefork

        class Threads(prefork.PreForkingMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
            workers = 1

            def when_ready(self):
                announce(self, datagrams)

        log_to_stderr()
        with Threads(LOOPBACK, Echo) as threads:
            with prefork.PreForkingUDPServer(LOOPBACK, EchoDatagram) as datagrams:
                prefork.serve(threads, datagrams)
    """)
    stream, datagrams = program.address(0), program.address(1)
    worker = program.worker()
    for _ in range(20):
        assert ask(stream) == f"{worker} hello"
        assert ask_datagram(datagrams, "hello") == f"{worker} hello"
    with board_of(program.pid) as board:
        wait_until(lambda: board.snapshot().slots[0].ok == 40, "each is counted once")
        wait_until(lambda: board.state(0) is WorkerState.IDLE, "nothing is in hand")
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 10.0  # far below graceful_timeout
