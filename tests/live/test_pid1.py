"""As the first process of a container: a stop is obeyed, and orphans of others are reaped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, server_of
from tests.support.processes import children_of, live_children_of, zombies_of
from tests.support.sampling import ChildrenWatch
from tests.support.server import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Program

# The child of unshare dies with it, so that nothing is left when a test fails.
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@cache
def why_no_container() -> str:
    """Why no PID namespace can be made here; "" when one can."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    tried = subprocess.run([*CONTAINER, "true"], capture_output=True, text=True, check=False)
    return f"no PID namespace here: {tried.stderr.strip()}" if tried.returncode else ""


pytestmark = pytest.mark.skipif(why_no_container() != "", reason=why_no_container())


@pytest.fixture
def contain(start: Callable[..., Program]) -> Iterator[Callable[[str], Program]]:
    """``contain(source)`` starts a program as PID 1; unshare heeds no TERM, so it is ended here."""
    programs = []

    def contained(source: str) -> Program:
        programs.append(start(source, before=CONTAINER))
        return programs[-1]

    yield contained
    for program in programs:
        program.popen.kill()


def master_of(program: Program) -> int:
    """Return the pid, as seen from here, of the process that is PID 1 in there."""
    return wait_until(lambda: live_children_of(program.pid), "the child of unshare").pop()


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_stop_is_obeyed_as_pid_1(contain: Callable[[str], Program], name: str) -> None:
    """As PID 1, for which the kernel has no default action, the master obeys TERM and INT."""
    program = contain(serving(workers=2))
    address = program.address()
    master = master_of(program)
    assert server_of(address) > 1
    os.kill(master, getattr(signal, f"SIG{name}"))
    ended_well = program.wait() == 0
    assert ended_well == (name == "TERM")  # INT leaves serve_forever() as KeyboardInterrupt
    assert bool(program.all_told("left")) == ended_well


def test_dead_workers_are_replaced_as_pid_1(contain: Callable[[str], Program]) -> None:
    """As PID 1 the master reaps and replaces its own workers as ever."""
    program = contain(serving(workers=2))
    program.address()
    master = master_of(program)
    victims = live_children_of(master)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(live_children_of(master) - victims) == 2, "two new workers")
    wait_until(lambda: not zombies_of(master), "no zombies", ceiling=5)
    assert len(program.logged(r"cause=killed\(SIGKILL\)")) == 2


def test_adopted_orphans_are_reaped_and_never_taken_for_workers(
    contain: Callable[[str], Program],
) -> None:
    """Orphans that handlers leave behind are reaped within a second or so, and the pool stays what it is."""
    program = contain(serving("Run", workers=2))
    address = program.address()
    master = master_of(program)
    workers = live_children_of(master)
    with ChildrenWatch(master) as watch:
        for _ in range(20):
            ask(address, "subprocess.run(['sh', '-c', 'sleep 0.02 &'])")
        wait_until(
            lambda: {child.pid for child in children_of(master)} == workers, "only the workers"
        )
    assert watch.oldest_zombie < 3.0  # a second or so, with room for a loaded machine
    assert watch.most > 2, "no orphan was adopted"
    assert program.logged("exited") == []


def test_own_children_of_the_program_keep_their_status_as_pid_1(
    contain: Callable[[str], Program],
) -> None:
    """As PID 1, too, a child that the program waits for is not reaped before the program has seen it."""
    program = contain(
        """
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            when_ready = announce
            rounds = 0

            def service_actions(self):
                super().service_actions()
                self.rounds += 1
                if self.rounds < 6:
                    tell("status", subprocess.run(["sh", "-c", "exit 7"]).returncode)

        with Server(LOOPBACK, Echo) as server:
            server.serve_forever(poll_interval=0.02)
        """
    )
    assert [program.told("status", nth) for nth in range(5)] == [7] * 5


def test_nothing_survives_the_first_process(contain: Callable[[str], Program]) -> None:
    """When PID 1 is killed with -9 every process of the container goes with it."""
    program = contain(serving(workers=3))
    program.address()
    os.kill(master_of(program), signal.SIGKILL)
    program.wait_silent(ceiling=10)
