"""Workers that an attacker controls, as another user than the master: what they write decides nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.states import ExitKind, Order, WorkerState, index_of
from tests.support.board import board_of
from tests.support.clients import ask
from tests.support.waiting import stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.clients import Address
    from tests.support.server import Program

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give workers another identity"
)

WORKERS = 3


def attacked(**settings: object) -> str:
    """Return a program whose workers are another user's and do what their clients say."""
    return f"""
        from tests.support.app import *
        from tests.support.hostile import Hostile

        members = {{**{settings!r}, "run_as_user": "nobody", "workers": {WORKERS}}}
        serve(Hostile, **members)
    """


def reload(program: Program, times: int) -> None:
    """Reload, and wait for the end of it."""
    program.signal(signal.SIGHUP)
    program.wait_logged(" reloaded ", times=times)


@pytest.mark.parametrize(
    "attack",
    [
        "scribble(bytes(8))",
        "scribble(b'prefork\\0')",
        "scribble(struct.pack('q', 2), 16)",
        "scribble(struct.pack('q', 2**62), 16)",
        "scribble_all(0)",
        "scribble_all(255)",
    ],
)
def test_scribbled_scoreboard_survives_reloads(start: Callable[..., Program], attack: str) -> None:
    """A header, a number of slots or a whole scoreboard that a worker writes over stops no reload."""
    program = start(attacked())
    address = program.address()
    workers = program.wait_workers(WORKERS)
    for times in (1, 2):
        ask(address, attack)
        reload(program, times)
        program.wait_workers(WORKERS)
    assert not workers & program.workers()
    assert ask(address, "1 + 1").endswith(" 2")
    assert program.stop() == 0


def test_commands_find_a_pool_whose_header_was_scribbled(start: Callable[..., Program]) -> None:
    """The master writes the header and its pid again, so the pool is hidden for a moment only."""
    program = start(attacked())
    ask(program.address(), "scribble(bytes(4096))")

    def found() -> bool:
        try:
            with board_of(program.pid) as board:
                return board.pool(PoolField.MASTER_PID) == program.pid
        except ValueError:
            return False

    wait_until(found, "the pool found again")


def test_bytes_of_a_worker_are_no_orders(start: Callable[..., Program]) -> None:
    """A worker that writes the numbers of signals to every pipe that it has gives the master no order."""
    program = start(attacked(max_children=8))
    address = program.address()
    for number in (1, 2, 3, 10, 12, 15, 21, 22):
        ask(address, f"write_to_pipes(self, bytes([{number}]) * 3)")
    ask(address, "write_to_pipes(self, HARMLESS)")
    program.settle()
    program.wait_workers(
        WORKERS
    )  # one that has written TERM to its own pipe of signals was replaced
    assert program.logged("phase changed|reload requested|resized|order has no effect") == []
    assert len(program.logged("master status")) == 1


@pytest.mark.parametrize("blocking", [False, True])
def test_full_pipes_keep_no_order_from_the_master(
    start: Callable[..., Program], blocking: bool
) -> None:
    """A worker that fills the pipe to the master, and sets it blocking, delays neither orders nor replacements."""
    program = start(attacked(max_children=8))
    address = program.address()
    victim = min(program.wait_workers(WORKERS))
    ask(address, f"fill_pipes(self, bytes([1, 3, 21]) * 1000, blocking={blocking})")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(program.workers() - {victim}) == WORKERS, "another worker")
    ask(address, f"fill_pipes(self, bytes([1, 3, 21]) * 1000, blocking={blocking})")
    program.signal(signal.SIGTTIN)
    program.wait_workers(WORKERS + 1)
    reload(program, 1)
    assert ask(address, "1 + 1").endswith(" 2")
    assert program.stop() == 0


def test_full_pipe_to_the_master_holds_up_no_sibling(start: Callable[..., Program]) -> None:
    """A worker that fills the pipe to the master, and sets it blocking, has no other worker wait, though nobody reads."""
    program = start(attacked(min_spare=1, max_children=2 * WORKERS))
    address = program.address()
    program.wait_workers(WORKERS)
    with board_of(program.pid) as board:
        wait_until(lambda: board.pool(PoolField.WATCH) == 1, "workers that call the master")
    program.signal(signal.SIGSTOP)
    answer = ask(address, "fill_pipes(self, b'x' * 4096, blocking=True)")
    os.kill(int(answer.split()[0]), signal.SIGKILL)
    for _ in range(2 * WORKERS):
        assert ask(address, "1 + 1").endswith(" 2")
    program.signal(signal.SIGCONT)
    program.wait_workers(WORKERS)
    assert program.stop() == 0


# --- words about siblings

FULL = 2**63 - 1
COUNTERS = [*range(19, 24), *range(27, 62)]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (COUNTERS, FULL),
        ([SlotField.BUSY_NS], FULL),
        (range(SlotField.STATE, 62), -(2**63)),
        ([SlotField.ORDER], Order.RETIRE),
        ([SlotField.ORDER], Order.DRAIN),
        ([SlotField.RECYCLE_REQUEST], 1 + index_of(ExitKind.MAX_REQUESTS)),
        ([SlotField.STATE], WorkerState.STARTING),
        ([SlotField.STATE], WorkerState.RETIRING),
        ([SlotField.REQUEST_NS], 1),
    ],
)
def test_words_about_siblings_end_none(
    start: Callable[..., Program], words: Iterable[int], value: int
) -> None:
    """Whatever a worker writes into the slots of all, busy or not, no worker ends of it, and all serve on."""
    program = start(attacked(max_children=8, request_timeout=1.0, graceful_timeout=1.0))
    address = program.address()
    workers = program.wait_workers(WORKERS)
    ask(address, f"scribble_slots({list(words)}, {int(value)}, 8)")

    # Longer than the deadline that the master would keep for such words, and the dump before a kill.
    stays(lambda: program.workers() == workers, "all workers stay", span=1.7, poll=0.05)
    for _ in range(20):
        assert ask(address, "1 + 1").endswith(" 2")
    assert program.workers() == workers
    assert program.logged(" exited ") == []


@pytest.mark.parametrize("value", [FULL, 0, -1])
def test_totals_are_right_again_after_a_reload(start: Callable[..., Program], value: int) -> None:
    """Counters that a worker has written over have their former values when their slots have other workers."""
    program = start(attacked())
    address = program.address()
    program.wait_workers(WORKERS)
    for _ in range(20):
        ask(address, "1 + 1")
    reload(program, 1)
    with board_of(program.pid) as board:

        def finished() -> int:
            return sum(sum(one.histogram(SlotField.DURATIONS)) for one in board.snapshot().slots)

        before, busy = finished(), board.total(SlotField.BUSY_NS)
        assert before >= 20
        ask(address, f"scribble_slots({COUNTERS}, {value}, {WORKERS})")
        for times in (2, 3):
            reload(program, times)
            wait_until(lambda: before <= finished() <= before + 20, "the requests are back")
            assert busy <= board.total(SlotField.BUSY_NS) <= busy + 60 * 10**9


def test_worker_that_scribbles_on_is_survived(start: Callable[..., Program]) -> None:
    """While a worker writes orders and full counters into all slots again and again, the others serve."""
    program = start(attacked(max_children=8))
    address = program.address()
    program.wait_workers(WORKERS)
    for words, value in (([int(SlotField.ORDER)], int(Order.RETIRE)), (COUNTERS, FULL)):
        ask(address, f"scribble_on({words}, {value}, 8)")

    def served() -> bool:
        return ask(address, "1 + 1").endswith(" 2")

    stays(served, "all requests are answered", span=1.0, poll=0.01)
    program.signal(signal.SIGTTIN)
    program.wait_workers(WORKERS + 1)
    assert program.logged(" exited ") == []
    assert program.stop() == 0


# --- everything, at any time

ORDERS = bytes((signal.SIGHUP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1))


@pytest.mark.parametrize(
    "attack",
    [
        "each(self, os.close)",
        "overwrite(self)",
        "each(self, lambda fd: os.ftruncate(fd, 0))",
        "each(self, lambda fd: os.ftruncate(fd, 1 << 40))",
        "each(self, lambda fd: os.set_blocking(fd, True))",
        "each(self, lambda fd: fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096))",
        f"fill_pipes(self, {ORDERS!r} * 800, blocking=True)",
        f"flood_pipes(self, {ORDERS!r})",
        "scribble(os.urandom(1 << 17))",
        "scribble_all(255)",
    ],
)
def test_whatever_a_worker_does_to_all_it_has(start: Callable[..., Program], attack: str) -> None:
    """Before, during and after a reload: the master serves on, reloads, and obeys no order but those of its signals."""
    program = start(attacked(max_children=8, request_timeout=2.0, graceful_timeout=2.0))
    address = program.address()
    program.wait_workers(WORKERS)
    over = threading.Event()

    def attack_on() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):  # the worker may have closed the connection
                ask(address, attack)
            over.wait(0.02)

    ask_in_vain(address, attack)
    attacker = threading.Thread(target=attack_on)
    attacker.start()
    try:
        reload(program, 1)
    finally:
        over.set()
        attacker.join()
    ask_in_vain(address, attack)
    reload(program, 2)
    program.wait_workers(WORKERS)
    assert ask(address, "1 + 1").endswith(" 2")
    assert len(program.logged("reload requested")) == 2
    assert program.logged("phase changed|resized|order has no effect|master status") == []
    assert program.stop() == 0


def ask_in_vain(address: Address, line: str) -> None:
    """Send a line to which there may be no answer."""
    with contextlib.suppress(OSError):
        ask(address, line)
