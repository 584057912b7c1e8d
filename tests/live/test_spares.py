"""A pool that follows load: grows at once, shrinks slowly, and never leaves its bounds."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from prefork.metrics.saturation import REASONS
from prefork.workers.pool.failures import PROVEN
from prefork.workers.scoreboard import PoolField
from prefork.workers.states import StartReason, WorkerState
from tests.support.board import board_of
from tests.support.cgroup import memory_group, why_no_cgroup
from tests.support.clients import ask, connect, send_line
from tests.support.load import Load
from tests.support.processes import cpu_seconds
from tests.support.sampling import ChildrenWatch
from tests.support.server import serving
from tests.support.waiting import Stopwatch, let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.workers.scoreboard import Scoreboard
    from tests.support.clients import Address
    from tests.support.server import Program

HOLD = "Run"
"""The handler: its clients say how long they hold a worker."""


def hold(clients: ExitStack, address: Address, count: int) -> None:
    """Have this many clients hold a worker each, until the stack is closed."""
    for _ in range(count):
        client = clients.enter_context(connect(address))
        send_line(client, "self.rfile.readline()")


def busy(board: Scoreboard) -> int:
    """Return how many workers are busy."""
    return board.snapshot().count(WorkerState.BUSY)


def test_burst_reaches_the_ceiling_within_a_second(start: Callable[..., Program]) -> None:
    """From an idle pool to 32 busy workers takes under a second where Apache's rhythm needs six, and no worker more."""
    program = start(serving(HOLD, workers=1, max_children=32, min_spare=1, max_spare=4))
    address = program.address()
    with (
        ExitStack() as clients,
        ChildrenWatch(program.pid) as watch,
        board_of(program.pid) as board,
    ):
        took = Stopwatch()
        hold(clients, address, 40)
        wait_until(lambda: busy(board) == 32, "32 busy workers")
        seconds = took.seconds
        wait_until(lambda: board.pool(PoolField.CEILING_REACHED) == 1, "the ceiling counted")
        stays(lambda: board.pool(PoolField.CEILING_REACHED) == 1, "counted once", span=0.5)
        assert board.snapshot().starts[StartReason.GREW] == 31
    sys.stdout.write(f"1 idle worker to 32 busy ones: {seconds * 1000:.0f} ms\n")
    assert seconds < 4.0  # one, with room for a loaded machine
    assert watch.most == 32
    assert len(program.logged("has reached max_children")) == 1


def test_last_idle_worker_that_becomes_busy_grows_the_pool(start: Callable[..., Program]) -> None:
    """The pool grows when its last idle worker takes a request, although nothing waits in the queue."""
    # Without the call of the worker the master would not look before the end of the test.
    program = start("""
        from tests.support.app import *
        import prefork.master.master

        class Server(prefork.PreForkingTCPServer):
            workers, max_children, min_spare, max_spare = 2, 8, 1, 2
            when_ready = announce

        prefork.master.master.LOOK_INTERVAL = 1000.0
        log_to_stderr()
        with Server(LOOPBACK, Run) as server:
            server.serve_forever(1000.0)
    """)
    address = program.address()
    with board_of(program.pid) as board:
        rests = PROVEN + 0.2  # after which it looks at new workers once more
        wait_until(
            lambda: time.monotonic_ns() - board.pool(PoolField.TICK_NS) > rests * 1e9,
            "a master that rests",
        )
    with ExitStack() as clients:
        hold(clients, address, 2)
        program.wait_workers(3)
    program.wait_logged("resized old=2 new=3 why=load")


@pytest.mark.once  # the pace of the policy, which is arithmetic
def test_pool_shrinks_to_its_floor_and_loses_no_request(start: Callable[..., Program]) -> None:
    """When load ends workers leave one at a time, oldest first, while a client goes on being served."""
    program = start(serving("Echo", workers=2, max_children=8, min_spare=1, max_spare=2, pause=0.3))
    address = program.address()
    with Load(address, clients=6):
        wait_until(lambda: len(program.workers()) >= 7, "the pool has grown")
    with Load(address, clients=1, text="x") as load, ChildrenWatch(program.pid) as watch:
        program.wait_workers(4, ceiling=40)
    assert load.lost == {}
    assert watch.most <= 8
    program.wait_logged("exited cause=scaled_down", times=3)
    sizes = [line.split("old=")[1] for line in program.logged("resized .* why=load")]
    shrinking = [
        size for size in sizes if int(size.split()[0]) > int(size.split("new=")[1].split()[0])
    ]
    assert all(int(s.split()[0]) - int(s.split("new=")[1].split()[0]) == 1 for s in shrinking)


def test_signals_move_the_floor_within_the_bounds(start: Callable[..., Program]) -> None:
    """TTIN and TTOU move the number of workers that are kept without load."""
    program = start(serving(workers=2, max_children=4, min_spare=1, max_spare=4))
    program.address()
    with board_of(program.pid) as board:
        for _ in range(5):
            program.signal(signal.SIGTTIN)
            program.settle()
        assert board.pool(PoolField.FLOOR) == 4
        program.wait_workers(4)
        for _ in range(6):
            program.signal(signal.SIGTTOU)
            program.settle()
        assert board.pool(PoolField.FLOOR) == 1
        assert board.pool(PoolField.SCALED_UP_BY_SIGNAL) == 2
        assert board.pool(PoolField.SCALED_DOWN_BY_SIGNAL) == 3


def test_slow_boots_cause_no_storm_of_forks(start: Callable[..., Program]) -> None:
    """While enough workers boot, no more are forked, however long the queue is."""
    program = start("""
        from tests.support.app import *

        def worker_init(self, worker):
            if worker.slot:
                tell("booting", worker.slot)
                while not os.path.exists("go"):
                    time.sleep(0.01)

        serve(Run, workers=1, max_children=16, min_spare=1, worker_init=worker_init)
    """)
    address = program.address()
    with ExitStack() as clients, board_of(program.pid) as board:
        hold(clients, address, 12)
        program.told("booting")
        stays(lambda: len(program.workers()) <= 2, "more were forked", span=1.0, poll=0.02)
        (program.stderr_path.parent / "go").touch()
        wait_until(lambda: busy(board) == 12, "all clients have a worker")


@pytest.mark.once  # what it costs
def test_pool_that_follows_load_idles_for_next_to_nothing(start: Callable[..., Program]) -> None:
    """Watching load costs an idle pool nothing: under 0.5 % of a core."""
    program = start(serving(workers=4, max_children=16, min_spare=2))
    address = program.address()
    ask(address)
    pids = [program.pid, *program.wait_workers(4)]
    before, watch = sum(map(cpu_seconds, pids)), Stopwatch()
    let_pass(3.0)
    assert (sum(map(cpu_seconds, pids)) - before) / watch.seconds < 0.005


@pytest.mark.skipif(why_no_cgroup() != "", reason=why_no_cgroup())
def test_pool_does_not_grow_beyond_its_memory(start: Callable[..., Program]) -> None:
    """With less memory left than a worker needs no worker is added; each refusal is counted, one line says so."""
    with memory_group(160_000_000) as group:
        program = start(f"""
            from tests.support.app import *

            with open({str(group / "cgroup.procs")!r}, "w") as procs:
                procs.write(str(os.getpid()))

            def worker_init(self, worker):
                self.ballast = bytearray(b"x") * 30_000_000

            serve(Run, workers=1, max_children=16, min_spare=1, worker_init=worker_init)
        """)
        address = program.address()
        with ExitStack() as clients, board_of(program.pid) as board:
            hold(clients, address, 10)
            wait_until(lambda: board.pool(PoolField.GROWTH_REFUSED) > 0, "growth refused")
            stays(lambda: len(program.workers()) <= 5, "grew too far", span=1.0, poll=0.02)
        program.stop()
    assert program.logged("does not grow because of low memory")
    assert program.logged("oom_killed") == []


# --- a pool that cannot keep up


@pytest.mark.parametrize(
    ("request_text", "remedy"),
    [
        (
            "self.rfile.readline()",
            "the workers wait, within requests or for connections that stay open",
        ),
        (
            "sum(range(10**12))",
            "the workers compute: raise workers",
        ),
    ],
    ids=["connections that stay open", "computing"],
)
def test_pool_that_cannot_keep_up_says_so(
    start: Callable[..., Program], request_text: str, remedy: str
) -> None:
    """A saturated pool logs how many wait and the remedy that fits, and one line when it is over."""
    program = start(
        "import prefork.master.saturation as saturation\n"
        "saturation.PATIENCE, saturation.GAP = 1.0, 0.5\n" + serving("Run", workers=1)
    )
    with ExitStack() as clients:
        for _ in range(4):
            send_line(clients.enter_context(connect(program.address())), request_text)
        (line,) = program.wait_logged("saturated: all workers are busy and clients wait")
        assert " WARNING master saturated: " in line
        assert "workers=1 waiting=3 oldest_request=" in line
        assert f'remedy="{remedy}' in line
        with board_of(program.pid) as board:
            cause = board.snapshot().saturation
        assert remedy.startswith(REASONS[cause])
    if "rfile" in request_text:
        program.wait_logged("master no longer saturated seconds=")
    program.signal(signal.SIGQUIT)
    program.wait()
