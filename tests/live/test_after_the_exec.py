"""New code that fails after the exec: the previous workers serve, it is run again, and no outage outlives its cause."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.states import ReloadState
from tests.support.board import board_of
from tests.support.clients import ask
from tests.support.load import Load
from tests.support.processes import fds_of, title_of, zombies_of
from tests.support.reloadable import Reloadable
from tests.support.server import Program, serving
from tests.support.waiting import let_pass, stays, wait_until
from tests.support.web import agent_line, fetch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENDED = "the new code ended before it served"
"""What the log says when that happens."""

FAILS = "assert prefork.host.process.process.is_trial, 'only after the exec'"
"""Code whose trial is good."""


def fail_after_the_exec(server: Reloadable, code: str = FAILS) -> None:
    """Have it reload code that fails only after the exec, and wait until it has."""
    failures = len(server.program.logged(ENDED))
    server.write(first=code)
    server.program.signal(signal.SIGHUP)
    server.program.wait_logged(ENDED, times=failures + 1)


def test_good_code_comes_up_when_a_shortage_is_over(
    reloadable: Callable[..., Reloadable],
) -> None:
    """When no descriptor is left after the exec, good code fails; when there are some again it takes over by itself, and no request is lost."""
    server = reloadable()
    program = server.program
    workers = program.wait_workers(3)
    server.write(version="2")
    scarce = (
        "import resource\n"
        "if not prefork.host.process.process.is_trial and not os.path.exists('scarce'):\n"
        "    open('scarce', 'w').close()\n"
        "    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))\n"
    )
    with board_of(program.pid) as board, Load(server.address, clients=2) as load:
        fail_after_the_exec(server, scarce)
        program.wait_logged("the new code ended|cannot be executed again", times=4)
        assert program.workers() == workers
        _, hard = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
        scarcely = len(fds_of(program.pid)) + 8
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (scarcely, hard))
        program.wait_logged("cannot be executed again", times=5)  # an interpreter could not start
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (hard, hard))
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
        assert board.pool(PoolField.RELOADS_FAILED) == 1
        assert board.pool(PoolField.RELOAD_STATE) == ReloadState.DONE
        assert board.pool(PoolField.GENERATION) == 1
    assert load.lost == {}
    assert server.version() == ("2", 1)
    assert program.logged("new code serves after attempts that failed")
    assert program.stop() == 0


def test_dead_workers_are_replaced_when_the_code_is_good_again(
    reloadable: Callable[..., Reloadable],
) -> None:
    """Workers that die meanwhile are collected at once and missing on the scoreboard; corrected code replaces them without an order."""
    server = reloadable()
    program = server.program
    with board_of(program.pid) as board:
        fail_after_the_exec(server)
        first, second, third = sorted(program.workers())
        for pid in (first, second):
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: {one[SlotField.PID] for one in board.snapshot().slots} == {0, third},
            "the dead are off the scoreboard",
        )
        assert zombies_of(program.pid) == set()
        assert ask(server.address, "version").split()[1] == "1"
        server.write(first="", version="2")
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
    assert len(program.wait_workers(3)) == 3
    assert server.version() == ("2", 1)


def test_process_ends_when_no_worker_is_left(
    reloadable: Callable[..., Reloadable], tmp_path: Path
) -> None:
    """When the last worker has gone and one more attempt fails, the process ends with status 1 and leaves nothing."""
    path = str(tmp_path / "socket")
    server = reloadable(base="PreForkingUnixStreamServer", address=path)
    program = server.program
    fail_after_the_exec(server)
    for pid in program.workers():
        os.kill(pid, signal.SIGKILL)
    assert program.wait() == 1
    assert len(program.logged("no worker is left and the new code does not serve, ends")) == 1
    program.wait_silent()
    assert not os.path.exists(path)


def test_good_code_takes_over_also_when_no_worker_is_left(
    reloadable: Callable[..., Reloadable],
) -> None:
    """When the last worker has gone, code that is good by now serves at once, however long the pause has become."""
    server = reloadable()
    program = server.program
    patience = "import prefork.reloading.attempts as attempts; attempts.pause = lambda _: 1000.0"
    fail_after_the_exec(server, f"{patience}\n{FAILS}")
    server.write(first="", version="2")
    with board_of(program.pid) as board:
        for pid in program.workers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
    assert server.version() == ("2", 1)
    assert program.stop() == 0


def test_being_stopped_and_continued_changes_nothing(
    reloadable: Callable[..., Reloadable],
) -> None:
    """A process without an application that is stopped and continued, again and again, ends no worker."""
    server = reloadable()
    program = server.program
    workers = program.wait_workers(3)
    fail_after_the_exec(server)
    for span in (0.02, 0.15, 0.6, 0.3, 0.6, 0.11, 0.6):
        program.signal(signal.SIGSTOP)
        let_pass(span)  # how long it is stopped is what the test varies
        program.signal(signal.SIGCONT)
        let_pass(0.05)
    stays(lambda: program.workers() == workers, "a worker that has ended", span=0.5)
    assert ask(server.address, "version").split()[1] == "1"
    program.terminate()
    assert program.wait() == 0


@pytest.mark.parametrize(
    "order", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda one: one.name
)
def test_order_to_stop_ends_it_in_order(
    reloadable: Callable[..., Reloadable], order: signal.Signals
) -> None:
    """TERM, INT and QUIT end such a process with status 0, whatever became of its code, and its workers with it."""
    server = reloadable()
    program = server.program
    fail_after_the_exec(server)
    program.signal(order)
    assert program.wait() == 0
    program.wait_silent()


def test_attempts_leave_no_descriptor_behind(reloadable: Callable[..., Reloadable]) -> None:
    """However often the program is run again, the process has the same descriptors: each has one owner that closes it."""
    server = reloadable()
    program = server.program
    fail_after_the_exec(server)
    before = sorted(fds_of(program.pid))
    program.wait_logged(ENDED, times=5)
    wait_until(lambda: sorted(fds_of(program.pid)) == before, lambda: f"{fds_of(program.pid)}")


def test_metrics_process_is_replaced(reloadable: Callable[..., Reloadable], tmp_path: Path) -> None:
    """A metrics process that dies while the new code fails is collected and replaced, and tells the truth about the pool."""
    path = str(tmp_path / "metrics")
    agent = str(tmp_path / "agent")
    server = reloadable(metrics_address=f"unix:{path}", agent_address=f"unix:{agent}")
    program = server.program
    with board_of(program.pid) as board:

        def metrics_pid() -> int:
            return board.pool(PoolField.METRICS_PID)

        first = wait_until(metrics_pid, "a metrics process")
        fail_after_the_exec(server)
        assert metrics_pid() == first
        os.kill(first, signal.SIGKILL)
        second = wait_until(lambda: metrics_pid() not in (0, first) and metrics_pid(), "another")
        assert fetch(path, "/livez").text == "live\n"
        assert fetch(path, "/readyz").status == 200
        assert agent_line(agent).startswith("ready up 100% maxconn:")
        assert title_of(second).startswith(f"prefork: metrics unix:{path}")
        assert zombies_of(program.pid) == set()
        server.write(first="", version="2")
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
        wait_until(lambda: metrics_pid() not in (0, second), "that of the new code")
    assert fetch(path, "/livez").text == "live\n"
    assert agent_line(agent).startswith("ready up 100% maxconn:")
    assert program.stop() == 0
    assert not os.path.exists(path)
    assert not os.path.exists(agent)


HANGS = {
    "it sleeps": "time.sleep(1000)",
    "it computes": "any(iter(lambda: 0, 1))",
    "it waits for a lock": "(lock := threading.Lock()).acquire() and lock.acquire()",
    "a thread keeps it from ending": (
        "threading.Thread(target=time.sleep, args=(1000,)).start(); raise SystemExit"
    ),
}


@pytest.mark.parametrize("code", HANGS.values(), ids=HANGS)
def test_new_code_that_hangs_is_run_again(reloadable: Callable[..., Reloadable], code: str) -> None:
    """New code that hangs after the exec loses the process after boot_timeout; corrected code takes over, and no request is lost."""
    server = reloadable(boot_timeout=2.0)
    program = server.program
    server.write(first=f"if not prefork.host.process.process.is_trial: {code}")
    with board_of(program.pid) as board, Load(server.address, clients=2) as load:
        program.signal(signal.SIGHUP)
        wait_until(lambda: board.pool(PoolField.QUIET_UNTIL_NS), "no tick is expected for a while")
        program.wait_logged("the new code did not serve in time")
        server.write(first="", version="2")
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
        assert board.pool(PoolField.RELOADS_FAILED) == 1
        assert board.pool(PoolField.QUIET_UNTIL_NS) == 0
    assert load.lost == {}
    assert server.version() == ("2", 1)
    assert program.stop() == 0


def test_order_to_stop_reaches_code_that_hangs(reloadable: Callable[..., Reloadable]) -> None:
    """TERM that comes while new code hangs after the exec is obeyed when the time of the code is over."""
    server = reloadable(boot_timeout=2.0)
    program = server.program
    server.write(
        first="if not prefork.host.process.process.is_trial: tell('hangs', 1); time.sleep(1000)"
    )
    program.signal(signal.SIGHUP)
    assert program.told("hangs") == 1
    program.terminate()
    assert program.wait() == 0
    assert program.logged("the new code takes too long seconds=2")
    program.wait_silent()


def test_time_in_which_the_process_was_stopped_is_not_the_codes(
    reloadable: Callable[..., Reloadable],
) -> None:
    """New code whose process is stopped while it loads, for longer than it may take, is not interrupted."""
    server = reloadable(boot_timeout=2.0)
    program = server.program
    server.write(
        first="if not prefork.host.process.process.is_trial:\n    tell('loads', 1); time.sleep(1.0)",
        version="2",
    )
    with board_of(program.pid) as board:
        program.signal(signal.SIGHUP)
        assert program.told("loads") == 1
        program.signal(signal.SIGSTOP)
        let_pass(3.5)  # more than boot_timeout and the second by which the signal may be late
        program.signal(signal.SIGCONT)
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
        assert board.pool(PoolField.RELOADS_FAILED) == 0
    assert not program.logged("takes too long")


SOONER = "import prefork.reloading.exec; prefork.reloading.exec.HARD_EXTRA = 0.5\n"
"""Has the old code set the second timer sooner."""


def test_new_code_that_holds_the_lock_of_the_interpreter_ends(
    reloadable: Callable[..., Reloadable],
) -> None:
    """New code that hangs in C, where no bytecode runs, is ended by the kernel, so that a supervisor sees it."""
    server = reloadable(boot_timeout=2.0, first=SOONER)
    program = server.program
    server.write(
        first="import ctypes\n"
        "mutex, held = ctypes.create_string_buffer(64), ctypes.PyDLL(None)\n"
        "if not prefork.host.process.process.is_trial:\n"
        "    held.pthread_mutex_lock(mutex), held.pthread_mutex_lock(mutex)\n"
    )
    program.signal(signal.SIGHUP)
    assert program.wait() == -signal.SIGALRM
    program.wait_silent()


def test_new_code_that_hangs_before_it_imports_prefork_ends(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """New code that hangs before its import of prefork is ended by the kernel, and its workers leave."""
    program = start(
        "import os, time\n"
        "if os.path.exists('hang') and 'PREFORK_TRIAL' not in os.environ: time.sleep(1000)\n"
        + SOONER
        + serving(workers=2, boot_timeout=2.0)
    )
    program.address()
    (tmp_path / "hang").touch()
    program.signal(signal.SIGHUP)
    assert program.wait() == -signal.SIGALRM
    program.wait_silent()


IN_A_THREAD = """
    from tests.support.app import *
    import prefork

    def run():
        serve(Echo, prefork.PreForkingTCPServer, workers=2)

    if os.path.exists("thread"):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
"""


def test_new_code_that_serves_in_a_thread(start: Callable[..., Program], tmp_path: Path) -> None:
    """New code that serves in another thread than the main one adopts the workers as any other, and TERM ends it."""
    program = start(IN_A_THREAD)
    address = program.address()
    (tmp_path / "thread").touch()
    with board_of(program.pid) as board:
        program.signal(signal.SIGHUP)
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
    assert ask(address, "x")
    program.terminate()  # no signal reaches a master in a thread, so this does what it does without prefork
    assert program.wait() == -signal.SIGTERM
    program.wait_silent()


TIMERS = "; ".join(
    [
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)",
        *(f"signal.setitimer(signal.ITIMER_{which}, 0.2)" for which in ("REAL", "VIRTUAL", "PROF")),
    ]
)
"""Timers whose signals would end the new code, because an exec resets the handlers."""


def test_timers_of_the_old_code_do_not_reach_the_new(
    reloadable: Callable[..., Reloadable],
) -> None:
    """Timers that the old code has set, and signals that it ignored, neither end the new code nor outlive it."""
    server = reloadable()
    program = server.program
    look = "signal.getsignal(signal.SIGALRM) is signal.SIG_DFL"
    server.write(
        hook=TIMERS,
        first="if not prefork.host.process.process.is_trial:\n"
        "    end = time.process_time() + 0.5\n"
        "    while time.process_time() < end: pass\n"
        f"    tell('alarm', {look})\n",
        version="2",
    )
    with board_of(program.pid) as board:
        server.reload(board)
    assert program.told("alarm") is True
    assert server.version() == ("2", 1)
