"""A master killed with -9: nobody stays behind, and the port is free for the next one."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, can_bind, connect, read_to_the_end, send
from tests.support.load import Load, Verdict
from tests.support.ports import free_port
from tests.support.processes import is_alive
from tests.support.server import serving
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

SOON = 1.0
"""Seconds within which an idle orphan is gone: the promise."""

MARGIN = 2.0
"""Seconds for a loaded machine. With SOON they are fewer than those for which an idle worker sleeps."""


def kill_master(program: Program) -> Stopwatch:
    """Kill the master with -9 and reap it."""
    program.signal(signal.SIGKILL)
    watch = Stopwatch()
    program.wait()
    return watch


def wait_gone(workers: set[int], ceiling: float) -> None:
    """Wait until none of the workers lives."""
    wait_until(
        lambda: not any(map(is_alive, workers)),
        lambda: f"the end of {[pid for pid in workers if is_alive(pid)]}",
        ceiling,
    )


def test_idle_orphans_are_gone_within_a_second(start: Callable[..., Program]) -> None:
    """Idle workers leave within one second of their master's death, and the address can be bound at once."""
    program = start(serving(workers=6))
    address = program.address()
    workers = program.wait_workers(6)
    kill_master(program)
    wait_gone(workers, SOON + MARGIN)
    assert can_bind(address)
    program.wait_silent()


def test_replaced_workers_do_not_keep_each_other_alive(start: Callable[..., Program]) -> None:
    """Workers forked at different times all see the master's end: none holds what tells the others."""
    program = start(serving(workers=3))
    program.address()
    for _ in range(6):
        victim = min(program.wait_workers(3))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda gone=victim: gone not in program.workers(), "the death of a worker")
    workers = program.wait_workers(3)
    kill_master(program)
    wait_gone(workers, SOON + MARGIN)


def test_busy_orphan_finishes_its_request_and_leaves(start: Callable[..., Program]) -> None:
    """A worker that is serving when its master dies answers its client, then goes."""
    program = start(serving("TellingEcho", workers=2, pause=0.6))
    address = program.address()
    workers = program.wait_workers(2)
    with send(address, "late") as client:
        busy = program.told("busy")
        kill_master(program)
        wait_gone(workers - {busy}, SOON + MARGIN)
        assert read_to_the_end(client) == f"{busy} late"
    wait_gone(workers, SOON + MARGIN)
    assert can_bind(address)


def test_orphans_leave_under_constant_load(start: Callable[..., Program]) -> None:
    """Clients that never cease to come do not keep orphans alive."""
    program = start(serving(workers=3))
    address = program.address()
    workers = program.wait_workers(3)
    with Load(address, clients=6) as load:
        wait_until(lambda: load.answered > 50, "requests go on")
        kill_master(program)
        wait_gone(workers, SOON + MARGIN)
        assert can_bind(address)
        wait_until(lambda: load.verdicts[Verdict.REFUSED] > 0, "clients are refused")


def test_orphan_that_is_still_booting_leaves(start: Callable[..., Program]) -> None:
    """A worker whose master dies before it is ready leaves once it looks, and never serves."""
    program = start("""
        from tests.support.app import *

        def worker_init(self, worker):
            tell("booting", worker.pid)
            if worker.slot == 1:
                time.sleep(0.5)

        serve(Echo, workers=2, worker_init=worker_init)
    """)
    booting = {program.told("booting"), program.told("booting", 1)}
    kill_master(program)
    wait_gone(booting, 0.5 + SOON + MARGIN)


def test_orphan_with_all_signals_blocked_leaves(start: Callable[..., Program]) -> None:
    """An orphan needs no signal to learn that its master is gone."""
    program = start(serving("Run", workers=2))
    address = program.address()
    for _ in range(8):
        ask(address, "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()) and None")
    workers = program.wait_workers(2)
    kill_master(program)
    wait_gone(workers, SOON + MARGIN)


def test_orphan_with_a_program_that_its_handler_started_leaves(
    start: Callable[..., Program],
) -> None:
    """A program that a handler left running keeps neither the orphans nor the port."""
    program = start(serving("Run", workers=2))
    address = program.address()
    started = int(ask(address, "subprocess.Popen(['sleep', '60'], stdout=2).pid").split()[1])
    workers = program.wait_workers(2)
    kill_master(program)
    wait_gone(workers, SOON + MARGIN)
    assert can_bind(address)
    os.kill(started, signal.SIGKILL)


def test_next_master_can_start_at_once(start: Callable[..., Program]) -> None:
    """A new server on the same address serves while a busy orphan of the old one still works."""
    source = """
        from tests.support.app import *

        serve(TellingEcho, workers=1, pause=0.5, address=("127.0.0.1", int(sys.argv[1])))
    """
    old = start(source, arguments=[str(free_port())])
    address = old.address()
    with send(address, "late") as client:
        busy = old.told("busy")
        kill_master(old)
        assert read_to_the_end(client) == f"{busy} late"
    wait_gone({busy}, SOON + MARGIN)
    new = start(source, arguments=[str(address[1])])
    assert new.address() == address
    assert int(ask(address).split()[0]) in new.workers()


def test_unix_socket_of_a_killed_master_does_not_stop_the_next(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """The socket file that a killed master leaves is replaced by the next server, which removes it at its end."""
    path = str(tmp_path / "socket")
    source = serving(base="PreForkingUnixStreamServer", address=path, workers=1)
    old = start(source)
    old.address()
    workers = old.wait_workers(1)
    kill_master(old)
    wait_gone(workers, SOON + MARGIN)
    new = start(source)
    assert int(ask(new.address()).split()[0]) in new.workers()
    assert new.stop() == 0


@pytest.mark.parametrize("connections", [1, 3])
def test_silent_clients_hold_an_orphan_no_longer_than_themselves(
    start: Callable[..., Program], connections: int
) -> None:
    """An orphan whose client says nothing leaves when that client goes."""
    program = start(serving(workers=3))
    address = program.address()
    workers = program.wait_workers(3)
    silent = [connect(address) for _ in range(connections)]
    kill_master(program)
    for client in silent:
        client.close()
    wait_gone(workers, SOON + MARGIN)
