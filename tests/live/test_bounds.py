"""How many workers there are: the ceiling, the target and its bounds, and what is refused before any fork."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask
from tests.support.load import Load
from tests.support.sampling import ChildrenWatch
from tests.support.server import serving
from tests.support.waiting import Stopwatch, let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def kill_one(program: Program, dice: random.Random) -> None:
    """Kill a worker at random with -9, if there is one."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(dice.choice(sorted(program.workers()) or [0x3FFFFFFF]), signal.SIGKILL)


def test_never_more_live_children_than_max_children(start: Callable[..., Program]) -> None:
    """At no instant more than max_children workers live: not in kills, TTIN storms, nor in a stop."""
    # Busy workers take a while to retire: those who come instead must wait for their places.
    program = start(serving(workers=3, max_children=5, pause=0.03))
    address = program.address()
    dice = random.Random(5)
    with ChildrenWatch(program.pid) as watch, Load(address, clients=8, until_refused=True):
        storm, kills = Stopwatch(), 0
        while storm.seconds < 1.5:
            program.signal(dice.choice([signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU]))
            let_pass(0.0005)
            # More often, none would live to be ready, which is another test.
            if storm.seconds > kills * 0.03:
                kill_one(program, dice)
                kills += 1
        for _ in range(5):
            program.signal(signal.SIGTTIN)
            program.settle()
        program.wait_workers(5)
        program.terminate()
        with contextlib.suppress(ProcessLookupError):
            while program.popen.poll() is None:
                program.signal(signal.SIGTTIN)
                let_pass(0.0005)  # without it a busy machine gives the master no time
        assert program.wait() == 0
    assert watch.most == 5
    assert watch.samples > 100
    assert watch.oldest_zombie < 1.0
    assert "Traceback" not in program.log


def test_ttin_and_ttou_move_the_target_by_one(start: Callable[..., Program]) -> None:
    """TTIN adds one worker and TTOU takes one away, and the others stay who they are."""
    program = start(serving(workers=2, max_children=4))
    program.address()
    two = program.wait_workers(2)
    program.signal(signal.SIGTTIN)
    three = program.wait_workers(3)
    program.signal(signal.SIGTTOU)
    assert len(program.wait_workers(2) & three) == 2
    assert two < three


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTTIN, 3), (signal.SIGTTOU, 1)])
def test_bound_of_the_target_is_one_log_line(
    start: Callable[..., Program], number: int, workers: int
) -> None:
    """At max_children a TTIN, and at one worker a TTOU, is a log line and nothing else."""
    program = start(serving(workers=workers, max_children=3))
    program.address()
    pids = program.wait_workers(workers)
    wait_until(lambda: len(program.logged("ready")) > workers, "the lines of the start")
    before = len(program.log.splitlines())
    program.signal(number)
    wait_until(lambda: len(program.log.splitlines()) > before, "a log line about the bound")
    stays(lambda: program.workers() == pids, "the workers changed", span=0.2)
    assert len(program.log.splitlines()) == before + 1, program.log
    ask(program.address())


def test_target_is_reached_after_a_burst_of_signals(start: Callable[..., Program]) -> None:
    """Ten thousand mixed signals leave a pool that serves, within its bounds, and obeys the next one."""
    program = start(serving(workers=2, max_children=4))
    address = program.address()
    dice = random.Random(7)
    numbers = [signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGWINCH]
    with ChildrenWatch(program.pid) as watch:
        for _ in range(10_000):
            program.signal(dice.choice([*numbers, signal.SIGCHLD]))
        program.settle()
        for _ in range(3):
            program.signal(signal.SIGTTIN)
            program.settle()
        for workers in (4, 3, 2, 1):
            program.wait_workers(workers)
            program.signal(signal.SIGTTOU)
            program.settle()
    assert watch.most <= 4
    ask(address)


REFUSED = [
    ("workers", {"workers": 9, "max_children": 8}, ["9", "8"]),
    ("workers", {"workers": "many"}, ["many"]),
    ("workers", {"workers": -1}, ["-1"]),
    ("workers", {"workers": 1.5}, ["1.5"]),
    ("max_children", {"max_children": 0}, ["0"]),
    ("graceful_timeout", {"graceful_timeout": -1}, ["-1"]),
    ("boot_timeout", {"boot_timeout": "soon"}, ["soon"]),
    ("run_as_user", {"run_as_user": "no-such-user"}, ["no-such-user"]),
    ("umask", {"umask": 0o7777}, ["4095"]),
]


@pytest.mark.parametrize(("key", "members", "shown"), REFUSED)
def test_wrong_settings_are_refused_before_any_fork(
    start: Callable[..., Program], key: str, members: dict[str, object], shown: list[str]
) -> None:
    """A setting that cannot be is refused with key, value, source and what is allowed; nothing forks."""
    program = start(f"""
        from tests.support.app import *
        import prefork

        os.register_at_fork(before=lambda: tell("forked"))
        try:
            serve(Echo, **{members!r})
        except prefork.SettingsError as error:
            tell("refused", str(error))
        tell("end")
    """)
    program.told("end")
    assert program.all_told("forked") == []
    text = program.told("refused")
    for word in [key.removeprefix("run_as_"), *shown, "Server"]:
        assert word in text
    assert program.wait() == 0


def test_automatic_workers_stay_below_max_children(start: Callable[..., Program]) -> None:
    """A number of workers that nobody asked for is lowered to max_children, not refused."""
    program = start(serving(max_children=1))
    program.address()
    program.wait_workers(1)


def test_address_in_use_is_refused_by_the_constructor(start: Callable[..., Program]) -> None:
    """An address that somebody listens on is refused as OSError by the constructor; nothing forks."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = start(f"""
            from tests.support.app import *
            import prefork

            os.register_at_fork(before=lambda: tell("forked"))
            try:
                prefork.PreForkingTCPServer({taken.getsockname()!r}, Echo)
            except OSError as error:
                tell("refused", [error.errno, str(error)])
            tell("end")
        """)
        assert program.told("refused")[0] == 98
        program.told("end")
    assert program.all_told("forked") == []
