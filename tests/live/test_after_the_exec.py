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
from tests.support.processes import fds_of, zombies_of
from tests.support.reloadable import Reloadable
from tests.support.waiting import let_pass, stays, wait_until

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
    """A want of descriptors that fails good code after the exec is over: the code takes over by itself, and no request is lost."""
    server = reloadable()
    program = server.program
    workers = program.wait_workers(3)
    server.write(version="2")
    scarce = (
        "import resource\n"
        "if not prefork.host.process.process.is_trial and not os.path.exists('scarce'):\n"
        "    open('scarce', 'w').close()\n"
        "    used = max(map(int, os.listdir('/proc/self/fd')))\n"
        "    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))\n"
    )
    with board_of(program.pid) as board, Load(server.address, clients=2) as load:
        fail_after_the_exec(server, scarce)
        program.wait_logged("the new code ended|cannot be executed again", times=4)
        assert program.workers() == workers
        _, hard = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
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
    program.wait_silent(ceiling=2)
    assert not os.path.exists(path)


def test_good_code_takes_over_also_when_no_worker_is_left(
    reloadable: Callable[..., Reloadable],
) -> None:
    """When the last worker has gone, code that is good by now serves at once, however long the pause has become."""
    server = reloadable()
    program = server.program
    fail_after_the_exec(server)
    program.wait_logged(ENDED, times=6)  # the pause is 3.2 s by now
    server.write(first="", version="2")
    with board_of(program.pid) as board:
        for pid in program.workers():
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: board.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:], ceiling=3
        )
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
    program.wait_silent(ceiling=2)


def test_attempts_leave_no_descriptor_behind(reloadable: Callable[..., Reloadable]) -> None:
    """However often the program is run again, the process has the same descriptors: each has one owner that closes it."""
    server = reloadable()
    program = server.program
    fail_after_the_exec(server)
    before = sorted(fds_of(program.pid))
    program.wait_logged(ENDED, times=5)
    wait_until(lambda: sorted(fds_of(program.pid)) == before, lambda: f"{fds_of(program.pid)}")
