"""Stopping: nothing that a worker or the kernel's queue had is lost, nothing is left, and it is in time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from prefork.inspect.find import find_pool
from prefork.workers.scoreboard import PoolField
from tests.support.clients import ask, can_bind, hangs_up, read_to_the_end, send
from tests.support.load import Load, Verdict
from tests.support.processes import fds_of
from tests.support.server import serving
from tests.support.waiting import Stopwatch, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program


def is_refused(address: object) -> bool:
    """Whether a client is turned away at once."""
    try:
        ask(address, timeout=1)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_term_returns_after_the_requests_in_hand(start: Callable[..., Program]) -> None:
    """TERM finishes what workers have in hand, then serve_forever() returns to the program."""
    program = start(serving("TellingEcho", workers=2, pause=0.3))
    with send(program.address(), "late") as client:
        busy = program.told("busy")
        program.terminate()
        assert read_to_the_end(client) == f"{busy} late"
    assert program.wait() == 0
    assert program.told("left") is None
    assert program.told("closed") is None
    program.wait_logged("master stopped")


def test_idle_server_stops_at_once(start: Callable[..., Program]) -> None:
    """An idle server is gone at once after a TERM: it waits for nothing."""
    program = start(serving(workers=4))
    program.address()
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 3.0  # far below graceful_timeout


def test_everything_queued_is_served(start: Callable[..., Program]) -> None:
    """Sixty clients wait for two workers when TERM comes: all sixty get their answers."""
    program = start(serving("TellingEcho", workers=2, pause=0.05))
    address = program.address()
    clients = [send(address, str(number)) for number in range(60)]
    program.told("busy")
    program.terminate()
    answers = [read_to_the_end(client).split()[-1:] for client in clients]
    for client in clients:
        client.close()
    assert answers == [[str(number)] for number in range(60)]
    assert program.wait() == 0
    assert can_bind(address)


def test_five_hundred_that_are_queued_are_served(start: Callable[..., Program]) -> None:
    """Five hundred connections wait in the queue when TERM comes: five hundred get their answers."""
    program = start(serving("TellingEcho", workers=2, pause=0.005))
    address = program.address()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(send(address, str(number))) for number in range(500)]
        program.told("busy")
        program.terminate()
        answers = [read_to_the_end(client).split()[-1:] for client in clients]
    assert answers == [[str(number)] for number in range(500)]
    assert program.wait() == 0


@pytest.mark.parametrize("kind", ["unix", "abstract", "inet6"])
def test_everything_queued_is_served_on_other_listeners(
    start: Callable[..., Program], tmp_path: Path, kind: str
) -> None:
    """The queue of a Unix socket and of an IPv6 one is drained just so."""
    address: object = {
        "unix": str(tmp_path / "socket"),
        "abstract": f"\0prefork-test-{os.getpid()}",
        "inet6": ("::1", 0),
    }[kind]
    base = "PreForkingTCPServer" if kind == "inet6" else "PreForkingUnixStreamServer"
    program = start(serving("TellingEcho", base=base, address=address, workers=2, pause=0.03))
    clients = [send(program.address(), str(number)) for number in range(30)]
    program.told("busy")
    program.terminate()
    answers = [read_to_the_end(client).split()[-1:] for client in clients]
    for client in clients:
        client.close()
    assert answers == [[str(number)] for number in range(30)]
    assert program.wait() == 0


def test_graceful_stop_under_load_loses_nothing(start: Callable[..., Program]) -> None:
    """Under load a client is served or refused; none is accepted and then dropped, in five stops of five."""
    for _ in range(5):
        program = start(serving(workers=2, pause=0.002))
        with Load(program.address(), clients=12, until_refused=True) as load:
            wait_until(lambda load=load: load.answered > 100, "requests go on")
            program.terminate()
            load.join()
        assert program.wait() == 0
        assert load.lost == {}
        assert load.verdicts[Verdict.REFUSED] == 12


def test_outcomes_during_a_stop_come_in_order(start: Callable[..., Program]) -> None:
    """Once a client has been refused, none is served any more."""
    program = start(serving(workers=2, pause=0.005))
    with Load(program.address(), clients=4) as load:
        wait_until(lambda: load.answered > 50, "requests go on")
        program.terminate()
        program.wait()
    refused = min(done.ended for done in load.requests if done.verdict is Verdict.REFUSED)
    served = max(done.began for done in load.requests if done.verdict is Verdict.ANSWERED)
    assert served < refused
    assert load.lost == {}


def test_kills_during_a_stop_cost_no_queued_client(start: Callable[..., Program]) -> None:
    """Workers killed while the queue is drained lose what they had in hand, not what still waits."""
    program = start(serving("TellingEcho", workers=2, pause=0.05))
    address = program.address()
    clients = [send(address, str(number)) for number in range(20)]
    first = program.told("busy")
    program.terminate()
    program.told("busy", 4)
    os.kill(first, signal.SIGKILL)
    answered = [bool(read_to_the_end(client)) for client in clients]
    for client in clients:
        client.close()
    assert answered.count(False) <= 1
    assert program.wait() == 0


def test_drain_serves_the_queue_when_all_workers_are_killed(start: Callable[..., Program]) -> None:
    """When every worker dies during the drain, somebody still serves what the kernel has queued."""
    program = start(serving("TellingEcho", workers=2, pause=0.05))
    address = program.address()
    clients = [send(address, str(number)) for number in range(20)]
    program.told("busy", 1)
    program.terminate()
    program.told("busy", 3)
    for worker in program.workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    answered = [bool(read_to_the_end(client)) for client in clients]
    for client in clients:
        client.close()
    assert answered.count(False) <= 2
    assert program.wait() == 0


def test_second_term_stops_now(start: Callable[..., Program]) -> None:
    """A second TERM does not wait for a request that takes for ever."""
    program = start(serving("TellingRun", workers=2))
    with send(program.address(), "time.sleep(1000)") as client:
        program.told("busy")
        program.terminate()
        first = Stopwatch()
        wait_until(lambda: len(program.workers()) == 1, "the idle worker has left")
        wait_until(lambda: first.seconds > 0.1, "the second is no echo of the first")
        watch = Stopwatch()
        program.terminate()
        assert program.wait() == 0
        assert watch.seconds < 5.0
        assert read_to_the_end(client) == ""


STOPPING = """
    from tests.support.app import *

    def pool_resized(self, old, new, why):
        tell("resized", [old, new, why])

    serve(TellingRun, workers=2, max_children=6, drain_delay={delay}, pool_resized=pool_resized)
"""


@pytest.mark.parametrize("delay", [0, 60])
@pytest.mark.parametrize("name", ["SIGTTIN", "SIGTTOU", "SIGHUP", "SIGUSR2"])
def test_pool_that_stops_neither_grows_nor_shrinks_nor_reloads(
    start: Callable[..., Program], name: str, delay: int
) -> None:
    """After TERM, while a request is in hand or clients are still accepted, an order for a serving pool does nothing."""
    phase = "not_ready" if delay else "draining"
    program = start(STOPPING.format(delay=delay))
    with send(program.address(), "self.rfile.read()"):
        program.told("busy")
        program.terminate()
        program.wait_logged(f"phase changed old=.* new={phase}")
        floor = floor_of(program)
        program.signal(signal.Signals[name])
        program.wait_logged(f"master order has no effect order={name} phase={phase}")
        program.settle()  # and a tick after it, which would act on another size
        assert floor_of(program) == floor == 2
        assert program.logged("resized|reload|tried|spawned reason=(grew|started)")[2:] == []
        if delay:
            assert len(program.workers()) == 2
            program.signal(signal.SIGQUIT)
    program.wait()
    assert program.all_told("resized") == []


def floor_of(program: Program) -> int:
    """Return how many workers the master means to keep."""
    with find_pool(str(program.pid)) as pool:
        return pool.snapshot()[PoolField.FLOOR]


def test_stop_is_logged_phase_by_phase(start: Callable[..., Program]) -> None:
    """Each phase that a stop enters is one line of the log, with the phase before and what made it change."""
    program = start(serving(workers=2, drain_delay=0.1))
    program.address()
    assert program.stop() == 0
    changes = [line.partition("changed ")[2] for line in program.logged("master phase changed")]
    assert changes == [
        "old=serving new=not_ready why=SIGTERM",
        "old=not_ready new=draining why=drain_delay",
    ]


def test_status_is_reported_while_the_pool_stops(start: Callable[..., Program]) -> None:
    """USR1 logs the state and the stacks of a pool that drains, and the request in hand goes on."""
    program = start(serving("TellingRun", workers=2))
    with send(program.address(), "self.rfile.readline()") as client:
        busy = program.told("busy")
        program.terminate()
        program.wait_logged("new=draining")
        program.signal(signal.SIGUSR1)
        program.wait_logged("master status phase=draining")
        program.wait_logged(rf"pid={busy} stacks state=retiring")
        client.sendall(b"done\n")
        assert read_to_the_end(client) == f"{busy} b'done\\n'"
    assert program.wait() == 0


def test_shutdown_then_term_finishes_the_request(start: Callable[..., Program]) -> None:
    """After shutdown() the first TERM changes nothing: the request in hand is finished. The second one stops now."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            when_ready = announce

            def service_actions(self):
                super().service_actions()
                if os.path.exists("stop"):
                    os.unlink("stop")
                    threading.Thread(target=self.shutdown).start()

        log_to_stderr()
        with Server(LOOPBACK, TellingRun) as server:
            server.serve_forever(poll_interval=0.02)
    """)
    with send(program.address(), "self.rfile.readline()") as client:
        busy = program.told("busy")
        (program.stderr_path.parent / "stop").touch()
        program.wait_logged(r"phase changed old=serving new=leaving why=shutdown\(\)")
        program.terminate()
        program.wait_logged("order has no effect order=SIGTERM phase=leaving")
        client.sendall(b"done\n")
        assert read_to_the_end(client) == f"{busy} b'done\\n'"
    assert program.wait() == 0
    assert program.logged("new=stopping_now") == []


def test_interrupt_stops_gracefully_and_leaves_as_an_exception(
    start: Callable[..., Program],
) -> None:
    """INT finishes the requests in hand, then KeyboardInterrupt leaves serve_forever()."""
    program = start("""
        from tests.support.app import *

        try:
            serve(TellingEcho, workers=2, pause=0.3)
        except KeyboardInterrupt:
            tell("interrupted")
    """)
    with send(program.address(), "late") as client:
        busy = program.told("busy")
        program.signal(signal.SIGINT)
        assert read_to_the_end(client) == f"{busy} late"
    assert program.wait() == 0
    assert program.told("interrupted") is None
    assert program.all_told("left") == []


def test_ctrl_c_reaches_the_whole_group_and_is_heard_once(start: Callable[..., Program]) -> None:
    """Ctrl-C, sent to all processes, is one KeyboardInterrupt in the master and no traceback in workers."""
    program = start(serving("TellingEcho", workers=3, pause=0.2))
    with send(program.address(), "late") as client:
        busy = program.told("busy")
        os.killpg(program.pid, signal.SIGINT)
        assert read_to_the_end(client) == f"{busy} late"
    assert program.wait() != 0
    assert program.log.count("Traceback") == 1
    assert program.log.rstrip().endswith("KeyboardInterrupt")


def test_quit_dumps_stacks_and_stops_now(start: Callable[..., Program]) -> None:
    """QUIT writes every worker's stack to the log and waits for no request."""
    program = start("""
        from tests.support.app import *

        class Stuck(Echo):
            def handle(self):
                self.stuck_in_here()

            def stuck_in_here(self):
                tell("busy", os.getpid())
                time.sleep(1000)

        serve(Stuck, workers=2)
    """)
    with send(program.address(), "never") as client:
        busy = program.told("busy")
        watch = Stopwatch()
        program.signal(signal.SIGQUIT)
        program.wait()
        assert watch.seconds < 10.0
        assert read_to_the_end(client) == ""
    assert "stuck_in_here" in program.log
    assert program.logged(rf"pid={busy} ")


def test_stuck_handler_is_killed_at_the_graceful_timeout(start: Callable[..., Program]) -> None:
    """A request that never ends holds a stop for graceful_timeout; its stack is logged, then it is killed."""
    program = start(serving("TellingRun", workers=2, graceful_timeout=0.5))
    with send(
        program.address(), "[signal.pthread_sigmask(signal.SIG_BLOCK, [15]), time.sleep(1000)]"
    ):
        busy = program.told("busy")
        watch = Stopwatch()
        assert program.stop() == 0
        assert 0.45 < watch.seconds < 10.0
    program.wait_logged(rf"pid={busy} .*(killed|exited)")
    assert "time.sleep" in program.log or "in handle" in program.log


def test_stopped_worker_is_killed_at_the_graceful_timeout(start: Callable[..., Program]) -> None:
    """A worker that somebody has stopped, time after time, does not hold a stop for ever."""
    program = start(serving("TellingRun", workers=2, graceful_timeout=0.5))
    with send(program.address(), "[os.kill(os.getpid(), signal.SIGSTOP) for _ in range(99)]"):
        program.told("busy")
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 10.0


def test_stop_before_the_first_worker_is_ready(start: Callable[..., Program]) -> None:
    """A TERM while the first workers boot ends the server, without error and leaving nothing."""
    program = start("""
        from tests.support.app import *

        def worker_init(self, worker):
            tell("booting", worker.pid)
            time.sleep(0.3)

        serve(Echo, workers=2, worker_init=worker_init)
    """)
    program.told("booting")
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 5.0
    program.wait_silent()


def test_stop_at_any_moment_of_the_start(start: Callable[..., Program]) -> None:
    """From the moment the signal handlers stand, a TERM ends the server cleanly whatever it is doing."""
    for delay in range(0, 24, 4):
        program = start("""
            from tests.support.app import *

            def pre_fork(self, worker):
                if worker.slot == 0:
                    tell("forking")

            serve(Echo, workers=4, pre_fork=pre_fork)
        """)
        program.told("forking")
        watch = Stopwatch()
        wait_until(lambda d=delay, w=watch: w.seconds * 1000 >= d, "the moment", poll=0.0002)
        assert program.stop() == 0
        program.wait_silent()


def test_nothing_is_left_in_the_program_either(start: Callable[..., Program]) -> None:
    """After serve_forever() and server_close() the program has the descriptors and signal handlers that it had before."""
    program = start("""
        from tests.support.app import *

        def state():
            fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                   if os.path.exists(f"/proc/self/fd/{fd}")}
            handlers = [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())]
            wakeup = signal.set_wakeup_fd(-1)
            return [fds, handlers, wakeup, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))]

        signal.signal(signal.SIGHUP, lambda *_: None)
        before = state()
        serve(Echo, workers=2)
        after = state()
        tell("same", [a == b for a, b in zip(before, after)])
        tell("states", [before, after])
    """)
    ask(program.address())
    program.terminate()
    assert program.told("same") == [True] * 4, program.told("states")


def test_nothing_is_left_in_the_system(start: Callable[..., Program], tmp_path: Path) -> None:
    """After a stop no process holds anything, the socket file is gone, and the address can be bound at once."""
    path = tmp_path / "socket"
    tcp = start(serving(workers=3))
    unix = start(serving("Echo", base="PreForkingUnixStreamServer", address=str(path), workers=2))
    address = tcp.address()
    ask(address)
    ask(unix.address())
    for program in (tcp, unix):
        assert program.stop() == 0
        program.wait_silent()
    assert can_bind(address)
    assert not path.exists()


def test_drain_delay_keeps_accepting(start: Callable[..., Program]) -> None:
    """After TERM clients are still accepted for drain_delay, then refused."""
    program = start(serving(workers=2, drain_delay=1.0))
    address = program.address()
    watch = Stopwatch()
    program.terminate()
    stays(lambda: ask(address), "a client was not served during drain_delay", span=0.5)
    assert program.wait() == 0
    assert watch.seconds >= 1.0
    assert is_refused(address)


def test_handler_can_see_that_the_worker_should_leave(start: Callable[..., Program]) -> None:
    """In a handler, server.stopping turns true when the worker is asked to leave."""
    program = start("""
        from tests.support.app import *

        class Patient(Echo):
            def handle(self):
                tell("busy", self.server.stopping)
                while not self.server.stopping:
                    time.sleep(0.005)
                self.wfile.write(b"stopping")

        serve(Patient, workers=2)
    """)
    with send(program.address(), "wait") as client:
        assert program.told("busy") is False
        program.terminate()
        assert read_to_the_end(client) == "stopping"
    assert program.wait() == 0


def test_long_answer_survives_a_stop(start: Callable[..., Program]) -> None:
    """A long answer that a client reads slowly arrives to the last byte though the server is stopped meanwhile."""
    program = start("""
        from tests.support.app import *

        class Long(Echo):
            def handle(self):
                self.rfile.readline()  # what is left unread at the close turns it into a reset
                tell("busy")
                self.wfile.write(bytes(range(256)) * 40_000)

        serve(Long, workers=1)
    """)
    with send(program.address(), "all") as client:
        program.told("busy")
        program.terminate()
        received = bytearray()
        while part := client.recv(20_000):
            received += part
    assert bytes(received) == bytes(range(256)) * 40_000
    assert program.wait() == 0


def test_stop_amid_a_storm_of_signals(start: Callable[..., Program]) -> None:
    """TERM wins over TTIN, TTOU, HUP, USR1 and USR2 that rain at the same time."""
    program = start("""
        from tests.support.app import *

        # Without these the storm would end the program after serve_forever() has put back the defaults.
        for name in ("TTIN", "TTOU", "HUP", "USR1", "USR2"):
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
        serve(Echo, workers=2, max_children=6)
    """)
    program.address()
    storming = threading.Event()

    def storm() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not storming.wait(0.0005):
                for number in ("TTIN", "TTOU", "HUP", "USR1", "USR2", "WINCH"):
                    os.kill(program.pid, getattr(signal, f"SIG{number}"))

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        watch = Stopwatch()
        assert program.stop() == 0
        assert watch.seconds < 15.0
    finally:
        storming.set()
        thread.join()


def test_scoreboard_and_wake_up_pipes_go_with_the_pool(start: Callable[..., Program]) -> None:
    """Pools that serve one after the other leave no scoreboard and no pidfd behind."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 2
            when_ready = announce

        with Server(LOOPBACK, Echo) as server:
            for _ in range(5):
                server.serve_forever()
                tell("left")
        tell("end")
        signal.pause()
    """)
    held: list[int] = []
    for number in range(5):
        address = program.address(number)
        ask(address)
        held.append(sum("memfd:" in link for link in fds_of(program.pid).values()))
        program.terminate()
        program.told("left", number)
    program.told("end")
    assert held == [held[0]] * 5
    assert held[0] > 0
    assert [
        link for link in fds_of(program.pid).values() if "memfd:" in link or "pidfd" in link
    ] == []
    program.signal(signal.SIGKILL)


def test_client_that_says_nothing_does_not_hold_a_stop_beyond_its_timeout(
    start: Callable[..., Program],
) -> None:
    """A silent client in hand is waited for until graceful_timeout, not longer."""
    program = start(serving("TellingEcho", workers=1, graceful_timeout=0.4))
    address = program.address()
    with send(address, "") as done:
        read_to_the_end(done)
    with send(address, "x") as client:
        client.sendall(b"")
        read_to_the_end(client)
    assert hangs_up(address, "last")
    assert program.stop() == 0


THREADED = """
    from tests.support.app import *
    import prefork, socketserver

    class Server(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    serve(TellingEcho, base=Server, workers=2, pause=0.3)
"""


def test_requests_in_threads_are_finished(start: Callable[..., Program]) -> None:
    """With ThreadingMixIn in the workers, TERM waits for the requests that their threads have in hand."""
    program = start(THREADED)
    clients = [send(program.address(), str(number)) for number in range(12)]
    for number in range(12):
        program.told("busy", number)
    program.terminate()
    answers = [read_to_the_end(client).split()[-1:] for client in clients]
    for client in clients:
        client.close()
    assert answers == [[str(number)] for number in range(12)]
    assert program.wait() == 0


def test_requests_in_threads_are_finished_by_orphans(start: Callable[..., Program]) -> None:
    """With ThreadingMixIn in the workers, an orphan finishes its threads' requests before it goes."""
    program = start(THREADED)
    clients = [send(program.address(), str(number)) for number in range(6)]
    for number in range(6):
        program.told("busy", number)
    program.signal(signal.SIGKILL)
    answers = [read_to_the_end(client).split()[-1:] for client in clients]
    for client in clients:
        client.close()
    assert answers == [[str(number)] for number in range(6)]
    program.wait_silent()


def test_large_pool_starts_and_stops_in_seconds(start: Callable[..., Program]) -> None:
    """Two hundred and fifty-six workers are up, serve, and are gone again within seconds."""
    program = start(serving(workers=256, max_children=256))
    watch = Stopwatch()
    program.told("address")
    up = watch.seconds
    assert len(program.workers()) == 256
    assert ask(program.address())
    watch = Stopwatch()
    assert program.stop() == 0
    sys.stdout.write(f"256 workers up in {up:.2f} s, gone in {watch.seconds:.2f} s\n")
    assert up < 20
    assert watch.seconds < 20
