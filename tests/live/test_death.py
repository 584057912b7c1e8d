"""A worker's death is data: it is replaced at once, reaped at once, and nobody else's child is touched."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, hangs_up, read_to_the_end, send
from tests.support.load import Load, percentile
from tests.support.processes import zombies_of
from tests.support.sampling import ChildrenWatch
from tests.support.server import serving
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

READY = r"worker slot=\d+ gen=\d+ pid=\d+ ready"


def kill_and_time(program: Program, count: int) -> float:
    """Kill a worker; return the seconds until another process stands ready in its place."""
    victim = program.worker()
    ready = len(program.logged(READY))
    watch = Stopwatch()
    os.kill(victim, signal.SIGKILL)
    program.wait_logged(READY, times=ready + 1)
    took = watch.seconds
    assert victim not in program.wait_workers(count)
    return took


def test_killed_worker_is_replaced_at_once(start: Callable[..., Program]) -> None:
    """After a kill -9 another worker is ready within 250 ms (p99 on an idle machine), and no zombie stays."""
    program = start(serving(workers=3))
    program.address()
    program.wait_logged(READY, times=3)
    with ChildrenWatch(program.pid, pause=0.005) as watch:
        times = [kill_and_time(program, 3) for _ in range(40)]
    middle, worst = percentile(times, 50), percentile(times, 99)
    sys.stdout.write(f"worker replaced: p50 {middle * 1000:.1f} ms, p99 {worst * 1000:.1f} ms\n")
    assert middle < 0.25
    assert worst < 3.0  # on a busy machine
    assert watch.oldest_zombie < 1.0
    assert watch.most <= 3
    assert len(program.logged(r"exited cause=killed\(SIGKILL\)")) == 40


def test_twenty_killed_at_once_are_replaced(start: Callable[..., Program]) -> None:
    """Twenty deaths at the same moment are all collected and replaced within a second or so."""
    program = start(serving(workers=20, max_children=20))
    address = program.address()
    program.wait_logged(READY, times=20)
    victims = program.wait_workers(20)
    with ChildrenWatch(program.pid) as watch:
        took = Stopwatch()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        program.wait_logged(READY, times=40)
        seconds = took.seconds
    sys.stdout.write(f"twenty workers replaced in {seconds * 1000:.0f} ms\n")
    assert seconds < 5.0  # on a busy machine
    assert victims & program.wait_workers(20) == set()
    assert len(program.logged(r"exited cause=killed\(SIGKILL\)")) == 20
    assert watch.most <= 20
    assert watch.oldest_zombie < 1.0
    ask(address)


def test_kills_under_load_cost_only_the_requests_of_the_killed(
    start: Callable[..., Program],
) -> None:
    """While workers are killed one after the other, only the requests in their hands are lost."""
    program = start(serving(workers=3, pause=0.005))
    address = program.address()
    kills = 0
    with Load(address, clients=6) as load:
        while kills < 15:
            served = load.answered
            wait_until(lambda n=served: load.answered > n + 10, "requests go on")
            os.kill(program.worker(), signal.SIGKILL)
            kills += 1
    assert sum(load.lost.values()) <= kills, load.verdicts
    assert load.answered > 150


def test_death_is_told_to_the_hooks(start: Callable[..., Program]) -> None:
    """worker_died() runs in the master with slot, pid and cause of the worker; worker_exit() in one that leaves."""
    program = start("""
        from tests.support.app import *

        def worker_died(self, worker, cause):
            tell("died", [os.getpid(), worker.slot, worker.pid, str(cause)])

        def worker_exit(self, worker, cause):
            tell("exit", [os.getpid(), worker.pid, str(cause)])

        serve(Echo, workers=1, worker_died=worker_died, worker_exit=worker_exit)
    """)
    program.address()
    victim = program.worker()
    os.kill(victim, signal.SIGKILL)
    assert program.told("died") == [program.pid, 0, victim, "killed(SIGKILL)"]
    program.wait_logged(READY, times=2)
    second = program.worker()
    assert program.stop() == 0
    assert program.told("exit") == [second, second, "retired"]
    assert program.told("died", 1) == [program.pid, 0, second, "retired"]


def test_hook_that_raises_in_the_master_stops_nothing(start: Callable[..., Program]) -> None:
    """An exception in worker_died() is logged and the worker is replaced all the same."""
    program = start("""
        from tests.support.app import *

        def worker_died(self, worker, cause):
            raise ZeroDivisionError("of the hook")

        serve(Echo, workers=1, worker_died=worker_died)
    """)
    address = program.address()
    victim = program.worker()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: program.workers() - {victim}, "another worker")
    assert ask(address)
    program.wait_logged("ZeroDivisionError: of the hook")


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt"])
def test_hooks_that_leave_stop_nothing(start: Callable[..., Program], kind: str) -> None:
    """sys.exit() and KeyboardInterrupt in any hook of the master are logged, and the pool goes on to its stop."""
    program = start(f"""
        from tests.support.app import *

        def leaving(name):
            def hook(self, *_):
                raise {kind}(name)
            return hook

        names = ("when_ready", "pre_fork", "worker_ready", "worker_died", "pool_resized", "on_reload", "on_exit")
        serve(Echo, workers=1, **{{name: leaving(name) for name in names}})
        tell("left")
    """)
    program.wait_logged(f"{kind}: when_ready")
    os.kill(program.worker(), signal.SIGKILL)
    program.wait_logged(f"{kind}: worker_died")
    program.signal(signal.SIGTTIN)
    program.wait_logged(f"{kind}: pool_resized")
    program.wait_workers(2)
    program.signal(signal.SIGHUP)
    program.wait_logged(f"{kind}: on_reload")
    program.wait_logged("master reloaded")
    assert program.stop() == 0
    program.told("left")
    for name in ("pre_fork", "worker_ready", "on_exit"):
        program.wait_logged(f"{kind}: {name}")


def test_children_of_the_embedding_program_keep_their_status(start: Callable[..., Program]) -> None:
    """While workers die, a child of the program itself is never reaped by the pool."""
    program = start("""
        from tests.support.app import *

        child = subprocess.Popen(["sh", "-c", "exit 7"])
        serve(Echo, workers=3)
        tell("status", child.wait())
    """)
    program.address()
    for _ in range(5):
        kill_and_time(program, 3)
    assert len(zombies_of(program.pid)) == 1
    assert program.stop() == 0
    assert program.told("status") == 7


def test_statuses_taken_by_the_embedding_program_do_no_harm(start: Callable[..., Program]) -> None:
    """A program that waits for any child takes our statuses; the dead are replaced nevertheless."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 3
            when_ready = announce

            def service_actions(self):
                try:
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        tell("stolen")
                except ChildProcessError:
                    pass
                super().service_actions()

        log_to_stderr()
        with Server(LOOPBACK, Echo) as server:
            server.serve_forever()
    """)
    address = program.address()
    for _ in range(5):
        kill_and_time(program, 3)
    assert program.all_told("stolen")
    assert program.logged(r"exited cause=exited\(unknown\)")
    ask(address)
    assert program.stop() == 0


def test_term_to_a_worker_ends_it_after_its_request(start: Callable[..., Program]) -> None:
    """A worker that somebody sends a TERM finishes the request in hand, leaves, and is replaced."""
    program = start(serving("TellingEcho", workers=2, pause=0.2))
    address = program.address()
    with send(address, "slow") as client:
        busy = program.told("busy")
        os.kill(busy, signal.SIGTERM)
        assert f"{busy} slow" == read_to_the_end(client)
    wait_until(lambda: busy not in program.workers(), "the worker has left")
    program.wait_workers(2)
    assert program.popen.poll() is None


def test_death_in_a_request_is_logged_and_seen_by_that_client_only(
    start: Callable[..., Program],
) -> None:
    """A worker killed within a request closes its client's connection; its sibling's client is served."""
    program = start(serving("TellingRun", workers=2))
    address = program.address()
    with send(address, "time.sleep(0.5)") as spared:
        first = program.told("busy")
        with send(address, "time.sleep(60)") as victim:
            second = program.told("busy", 1)
            os.kill(second, signal.SIGKILL)
            assert read_to_the_end(victim) == ""
        program.wait_logged(rf"pid={second} exited cause=killed\(SIGKILL\)")
        assert read_to_the_end(spared) == f"{first} None"
    assert hangs_up(address, "1 + 1").endswith(" 2")


def test_requests_that_crash_keep_nobody_out(start: Callable[..., Program]) -> None:
    """Beside a client whose every request kills its worker another one is answered within a second; no crash loop ends the pool."""
    program = start(serving("TellingRun", workers=2, crash_loop="exit"))
    address = program.address()
    slowest = 0.0
    for code in ["os.abort()", "os._exit(1)", "sys.exit(1)"] * 5:
        with contextlib.suppress(ConnectionError):
            ask(address, code)
        watch = Stopwatch()
        ask(address, "1 + 1")
        slowest = max(slowest, watch.seconds)
    assert slowest < 3.0  # one, with room for a loaded machine
    program.wait_logged(r"exited cause=(killed\(SIGABRT\)|exited\(1\))", times=15)


def test_signals_to_newborn_workers_never_reach_the_master(start: Callable[..., Program]) -> None:
    """A TERM that meets a worker in its first moments ends that worker, and never the pool."""
    program = start(serving(workers=3))
    address = program.address()
    for round_ in range(15):
        known = program.wait_workers(3)
        os.kill(min(known), signal.SIGKILL)
        newborn = wait_until(lambda k=known: program.workers() - k, "a newborn", poll=0.0001).pop()
        with contextlib.suppress(ProcessLookupError):
            os.kill(newborn, signal.SIGTERM)
        wait_until(lambda n=newborn: n not in program.workers(), "the end of the newborn")
        # Its replacement is let live, or the pool would back off from what looks like a crash loop.
        program.wait_logged(READY, times=4 + round_)
    assert ask(address)
    assert program.logged("phase changed old=serving") == []
    assert program.stop() == 0


def test_locks_held_by_threads_of_the_master_do_not_hang_newborn_workers(
    start: Callable[..., Program],
) -> None:
    """While threads of the program print, log and import without a pause, every replacement becomes ready."""
    program = start("""
        from tests.support.app import *
        import importlib, logging

        def busy():
            while True:
                print("x" * 100, file=sink)
                sys.stderr.flush()
                logging.getLogger("busy").debug("line")
                sys.modules.pop("colorsys", None)
                importlib.import_module("colorsys")

        sink = open(os.devnull, "w")
        sys.stdout = sink
        logging.getLogger("busy").propagate = False
        logging.getLogger("busy").addHandler(logging.StreamHandler(sink))
        for _ in range(2):
            threading.Thread(target=busy, daemon=True).start()
        serve(Echo, workers=3)
    """)
    address = program.address()
    for round_ in range(20):
        os.kill(program.worker(), signal.SIGKILL)
        program.wait_logged(READY, times=4 + round_)
    assert ask(address)
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 10  # far below graceful_timeout
