"""All faults at once, at random but replayable, under load; the invariants hold throughout and afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.load import Load, Verdict, request
from tests.support.processes import fds_of, kind_of
from tests.support.sampling import ChildrenWatch
from tests.support.server import serving
from tests.support.waiting import Stopwatch, let_pass, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

SECONDS = 4.0
CEILING = 6


class Chaos:
    """Does one fault after the other to a server; every worker it harms by force is counted."""

    def __init__(self, program: Program, seed: int) -> None:
        self.kills = 0
        self._program = program
        self._dice = random.Random(seed)
        self._faults = [
            *[self.kill_worker] * 3,
            *[self.stop_worker] * 2,
            self.retire_worker,
            self.resize,
            self.resize,
            self.dump,
            self.take_descriptors,
            self.stop_master,
        ]

    def strike(self) -> None:
        """Do one fault; a worker that is gone already cannot be harmed."""
        with contextlib.suppress(ProcessLookupError, IndexError):
            self._dice.choice(self._faults)()

    def _worker(self) -> int:
        return self._dice.choice(sorted(self._program.workers()))

    def kill_worker(self) -> None:
        """Kill a worker with -9."""
        os.kill(self._worker(), signal.SIGKILL)
        self.kills += 1

    def stop_worker(self) -> None:
        """Stop a worker for a moment."""
        worker = self._worker()
        os.kill(worker, signal.SIGSTOP)
        let_pass(0.05)
        os.kill(worker, signal.SIGCONT)

    def retire_worker(self) -> None:
        """Ask a worker to leave behind the master's back."""
        os.kill(self._worker(), signal.SIGTERM)

    def resize(self) -> None:
        """Ask for some workers more or less."""
        for _ in range(self._dice.randrange(1, 8)):
            self._program.signal(self._dice.choice([signal.SIGTTIN, signal.SIGTTOU]))

    def dump(self) -> None:
        """Ask for all stacks."""
        self._program.signal(signal.SIGUSR1)

    def take_descriptors(self) -> None:
        """Leave a worker without a free descriptor for a moment."""
        worker = self._worker()
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (3, hard))
        let_pass(0.05)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))

    def stop_master(self) -> None:
        """Stop the master for a moment."""
        self._program.signal(signal.SIGSTOP)
        let_pass(0.05)
        self._program.signal(signal.SIGCONT)


def held_by(pid: int) -> Counter[str]:
    """Return how many descriptors of which kind a process holds."""
    return Counter(map(kind_of, fds_of(pid).values()))


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.once)])
def test_invariants_hold_in_chaos(start: Callable[..., Program], seed: int) -> None:
    """Bounded children, prompt reaping, no unexplained loss, no leak, whole log lines, and a clean stop at the end."""
    program = start(serving(workers=4, max_children=CEILING, pause=0.003))
    address = program.address()
    program.wait_workers(4)
    before = held_by(program.pid)
    chaos = Chaos(program, seed)
    with ChildrenWatch(program.pid) as watch, Load(address, clients=8, until_refused=True) as load:
        watching = Stopwatch()
        while watching.seconds < SECONDS:
            chaos.strike()
            let_pass(0.03)
        for _ in range(CEILING):
            program.signal(signal.SIGTTIN)
            program.settle()
        program.wait_workers(CEILING)
        served = load.answered
        wait_until(lambda: load.answered > served + 50, "requests go on")
        for workers in range(CEILING - 1, 3, -1):
            program.signal(signal.SIGTTOU)
            program.wait_workers(workers)
        wait_until(
            lambda: held_by(program.pid) == before,
            lambda: f"what the master held before: {before}, now {held_by(program.pid)}",
        )
        assert request(address, "lone").seconds < 0.8
        program.terminate()
        load.join()
    assert program.wait() == 0
    sys.stdout.write(
        f"seed {seed}: {chaos.kills} kills, { {str(v): n for v, n in load.verdicts.items()} }\n"
    )
    assert watch.most <= CEILING
    assert watch.oldest_zombie < 1.0
    assert sum(load.lost.values()) <= chaos.kills, load.verdicts
    assert Verdict.WRONG not in load.verdicts
    assert_log_is_sound(program)


def assert_log_is_sound(program: Program) -> None:
    """Hold the log against the rules: whole lines, one exit per worker, no unexplained traceback."""
    lines = program.log.splitlines()
    whole = re.compile(
        r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO|WARNING|ERROR) \S|    "
    )  # a stack is indented
    assert [line for line in lines if not whole.match(line)] == []
    # A worker that had no descriptors while it booted may say so.
    errors = re.findall(r"^ +(?:\w+\.)*\w+(?:Error|Exception)\b.*", program.log, re.MULTILINE)
    assert [error for error in errors if "Too many open files" not in error] == []
    spawned = re.findall(r"pid=(\d+) spawned", program.log)
    exited = re.findall(r"pid=(\d+) exited cause=", program.log)
    assert sorted(spawned) == sorted(exited)
