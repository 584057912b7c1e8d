"""The two pipes that wake the master: its own, which it believes, and its workers', which it does not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from prefork.master.wakeup import PAUSE, Wakeup
from prefork.workers import forks
from prefork.workers.identity import SHUTDOWN, WAKE
from tests.support.processes import fds_of, in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.processes


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    """Give the pipes of a master."""
    made = Wakeup()
    yield made
    made.close()


@pytest.fixture
def poll(wakeup: Wakeup) -> Iterator[select.epoll]:
    """Give an epoll in which a master waits for nothing but these pipes."""
    with select.epoll() as made:
        wakeup.register(made)
        yield made


def write_all(fd: int, byte: bytes = WAKE) -> None:
    """Write to a pipe until it is full."""
    os.set_blocking(fd, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, byte * size)


def test_pipes_never_block_and_are_not_inherited(wakeup: Wakeup) -> None:
    """All four ends are non-blocking and close-on-exec, and both pipes are empty at first."""
    for fd in wakeup.fds:
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
    assert wakeup.drain() == b""
    assert not wakeup.shutdown_asked()


def test_next_image_goes_on_with_the_pipes(wakeup: Wakeup) -> None:
    """What one image has not read, the next one reads from the same descriptors."""
    wakeup.wake()
    os.write(wakeup.workers_fd, SHUTDOWN)
    following = Wakeup(wakeup.fds)

    assert following.drain() == WAKE
    assert following.shutdown_asked()
    forks.remove(following._on_list)


@pytest.mark.parametrize("which", ["own", "workers"])
def test_each_pipe_wakes_the_master(wakeup: Wakeup, poll: select.epoll, which: str) -> None:
    """A byte in either pipe ends the wait, and only one of the workers' is reported as theirs."""
    os.write(wakeup.write_fd if which == "own" else wakeup.workers_fd, WAKE)

    assert wakeup.wait(poll, 60) is (which == "workers")


def test_wait_is_over_in_time(wakeup: Wakeup, poll: select.epoll) -> None:
    """Without a wake-up the wait ends by itself."""
    assert not wakeup.wait(poll, 0.001)


def test_wake_from_another_thread(wakeup: Wakeup, poll: select.epoll) -> None:
    """Any thread can wake the master, also when the pipe is full."""
    write_all(wakeup.write_fd)
    thread = threading.Thread(target=wakeup.wake)
    thread.start()
    thread.join()

    assert not wakeup.wait(poll, 60)
    assert set(wakeup.drain()) == set(WAKE)
    assert wakeup.drain() == b""


# --- what a worker can do


@pytest.mark.parametrize("number", [n for n in range(256) if n != SHUTDOWN[0]])
def test_byte_of_a_worker_is_no_order(wakeup: Wakeup, number: int) -> None:
    """Whatever a worker writes, nothing of it is among the signals, and it is no request to shut down."""
    os.write(wakeup.workers_fd, bytes([number]) * 3)

    assert wakeup.drain() == b""
    assert not wakeup.shutdown_asked()


def test_worker_can_ask_for_a_shutdown(wakeup: Wakeup) -> None:
    """The call of shutdown() in a handler arrives among other bytes, and once."""
    os.write(wakeup.workers_fd, WAKE * 3 + SHUTDOWN * 2 + WAKE)

    assert wakeup.shutdown_asked()
    assert not wakeup.shutdown_asked()


def test_full_pipe_of_the_workers_costs_no_signal(wakeup: Wakeup, poll: select.epoll) -> None:
    """A worker that fills its pipe and sets it blocking takes no room from the signals."""
    write_all(wakeup.workers_fd, bytes([signal.SIGHUP]))
    os.set_blocking(wakeup.workers_fd, True)
    wakeup.wake()

    assert wakeup.wait(poll, 60)
    assert wakeup.drain() == WAKE
    assert not wakeup.shutdown_asked()
    assert not wakeup.wait(poll, 0)


def test_enlarged_pipe_is_emptied_step_by_step(wakeup: Wakeup, poll: select.epoll) -> None:
    """A worker that enlarges its pipe costs the master a bounded read at a time, never one of a megabyte."""
    size = fcntl.fcntl(wakeup.workers_fd, fcntl.F_SETPIPE_SZ, 1 << 18)
    write_all(wakeup.workers_fd)
    reads = 0
    while wakeup.wait(poll, 0):
        assert not wakeup.shutdown_asked()
        reads += 1

    assert reads == size // 65536


def test_workers_that_close_their_end_cause_nothing(wakeup: Wakeup, poll: select.epoll) -> None:
    """The pipe of the workers is not at its end when no worker has it, so the master still waits."""
    in_child(lambda: os.close(wakeup.workers_fd))

    assert not wakeup.wait(poll, 0.001)
    assert wakeup.drain() == b""


def test_child_has_the_write_end_of_the_workers_alone(wakeup: Wakeup) -> None:
    """A child of the master can wake it, and can neither write signals to it nor read what others wrote."""

    def look() -> bool:
        own_read, own_write, workers_read, workers_write = wakeup.fds
        os.write(workers_write, SHUTDOWN)
        return not {own_read, own_write, workers_read} & fds_of().keys()

    assert in_child(look) == "True"
    assert wakeup.shutdown_asked()


@pytest.mark.parametrize("is_ours", [True, False])
def test_closed_pipe_gets_no_signal(is_ours: bool) -> None:
    """A pipe that is closed is no wake-up descriptor of Python any more, and that of a program stays."""
    wakeup = Wakeup()
    read, write = os.pipe2(os.O_NONBLOCK)
    try:
        signal.set_wakeup_fd(wakeup.write_fd if is_ours else write)
        wakeup.close()
        assert signal.set_wakeup_fd(-1) == (-1 if is_ours else write)
    finally:
        signal.set_wakeup_fd(-1)
        os.close(read)
        os.close(write)


def test_flood_wakes_the_master_seldom(wakeup: Wakeup, poll: select.epoll) -> None:
    """However fast workers write, two wake-ups by them are PAUSE apart, and the first is not delayed."""
    write_all(wakeup.workers_fd)
    began = time.monotonic()
    instants = []
    for _ in range(4):
        assert wakeup.wait(poll, 60)
        instants.append(time.monotonic() - began)
        wakeup.shutdown_asked()
        write_all(wakeup.workers_fd)

    assert instants[0] < PAUSE
    assert instants[3] >= 3 * PAUSE


def test_flood_delays_no_signal(wakeup: Wakeup, poll: select.epoll) -> None:
    """While wake-ups by workers are put off, the master's own pipe wakes it at once."""
    os.write(wakeup.workers_fd, WAKE)
    assert wakeup.wait(poll, 60)
    wakeup._heard_at = time.monotonic() + 600  # a pause that does not end in this test
    thread = threading.Timer(0.02, wakeup.wake)
    thread.start()

    assert wakeup.wait(poll, 60)
    assert wakeup.drain() == WAKE
    thread.join()


def test_without_a_descriptor_there_is_no_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second pipe cannot be made, the first one is closed again."""
    made: list[int] = []

    def pipe2(flags: int) -> tuple[int, int]:
        if made:
            raise OSError(24, "Too many open files")
        made.extend(real(flags))
        return made[0], made[1]

    real = os.pipe2
    monkeypatch.setattr(os, "pipe2", pipe2)

    with pytest.raises(OSError, match="Too many"):
        Wakeup()
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
