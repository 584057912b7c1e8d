"""The limits at which a worker asks to be recycled: what counts, when it is looked at, and that it is said once."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.machine import Memory
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.states import ExitKind, index_of
from prefork.workers.worker.recycling import MemoryLimit, RequestLimit, limits_for, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20


@contextmanager
def pen() -> Iterator[SlotWriter]:
    """Give the pen of a slot whose former workers have served 1000 requests."""
    board = Scoreboard.create(1)
    writer = SlotWriter(board, 0)
    writer.words[SlotField.DURATIONS + 3] = 1000
    try:
        yield writer
    finally:
        writer.detach()
        board.close()


# --- jitter


@given(st.integers(1, 2**62), st.floats(0, 1), st.floats(0, 1))
def test_jitter_only_ever_shortens(limit: int, jitter: float, spread: float) -> None:
    """A worker's own limit lies between the limit less its jitter and the limit, and is at least one."""
    own = shortened(limit, jitter, spread)

    assert 1 <= own <= limit * (1 + 1e-9)
    assert own >= limit * (1 - jitter) * (1 - 1e-9) - 1


@pytest.mark.parametrize(
    ("jitter", "spread", "own"),
    [(0, 1, 1000), (0.1, 0, 1000), (0.1, 0.5, 950), (0.1, 1, 900), (1, 1, 1)],
)
def test_jitter_by_example(jitter: float, spread: float, own: int) -> None:
    """Of a limit of 1000 the jitter takes its share of what it may."""
    assert shortened(1000, jitter, spread) == own


def test_workers_of_a_pool_draw_differently() -> None:
    """Two workers made alike, as forks of one master are, have limits of their own."""
    settings = Settings(workers=1, max_requests=2**40, jitter=1)
    with pen() as writer:
        limits = {
            check.__self__._is_reached.__self__._most  # type: ignore[attr-defined]
            for _ in range(4)
            for check in limits_for(settings, writer, lambda: None)
        }
    assert len(limits) == 4


# --- requests


def test_requests_of_former_workers_do_not_count() -> None:
    """The counters are the slot's and go on, the limit is this worker's."""
    with pen() as writer:
        limit = RequestLimit(3, writer)
        for _ in range(2):
            writer.account(Outcome.OK, 5)
        assert not limit.is_reached()
        writer.account(Outcome.ERROR, 10**12)
        assert limit.is_reached()


def test_requests_in_the_hands_of_threads_count() -> None:
    """What threads have taken and not finished has been taken."""
    with pen() as writer:
        limit = RequestLimit(3, writer)
        writer.account(Outcome.OK, 5)
        writer.words[SlotField.IN_PROGRESS] = 2
        assert limit.is_reached()


# --- memory


class Measured:
    """A clock, and a memory that takes its time to be read."""

    def __init__(self) -> None:
        self.now, self.private, self.takes, self.reads = 100.0, 10 * MIB, 0.0, 0

    def clock(self) -> float:
        """Tell the time."""
        return self.now

    def read(self) -> int | None:
        """Read the memory, for as long as that takes."""
        self.reads += 1
        self.now += self.takes
        return self.private


def test_memory_is_looked_at_once_a_second() -> None:
    """However many requests there are, the memory is read once a second at most, at the first one at once."""
    measured = Measured()
    limit = MemoryLimit(20 * MIB, measured.read, measured.clock)
    for _ in range(35):
        assert not limit.is_reached()
        measured.now += 0.1
    assert measured.reads == 4

    measured.private = 20 * MIB + 1
    assert not limit.is_reached()
    measured.now += 1.0
    assert limit.is_reached()


def test_dear_looks_are_rare() -> None:
    """A worker so large that reading takes 50 ms is read every five seconds: a hundredth of its time."""
    measured = Measured()
    measured.takes = 0.05
    limit = MemoryLimit(20 * MIB, measured.read, measured.clock)
    began = measured.now
    while measured.now < began + 50:
        limit.is_reached()
        measured.now += 0.01
    assert 8 <= measured.reads <= 10


def test_memory_that_cannot_be_read_is_no_reason() -> None:
    """Without a descriptor to read it with, the next look will tell."""
    assert not MemoryLimit(1, lambda: None).is_reached()


def test_private_memory_is_ones_own() -> None:
    """What is read grows by what this process allocates."""
    before = Memory().private(os.getpid())
    # Of its own mapping: the heap may have as much left of what was freed before.
    with mmap.mmap(-1, 16 * MIB) as ballast:
        ballast.write(b"x" * (16 * MIB))
        after = Memory().private(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before > 12 * MIB


# --- the wish


def test_no_limit_no_check() -> None:
    """Where nothing is limited there is nothing to look at."""
    with pen() as writer:
        assert limits_for(Settings(workers=1), writer, lambda: None) == []


def test_wish_is_said_once() -> None:
    """The slot tells the kind, the master is called once, and serving on changes nothing."""
    calls = []
    settings = Settings(workers=1, max_requests=2, max_memory=2**40, jitter=0)
    with pen() as writer:
        checks = limits_for(settings, writer, lambda: calls.append(1))
        assert len(checks) == 2
        for served in range(5):
            for check in checks:
                check()
            assert len(calls) == (served >= 2)
            writer.account(Outcome.OK, 5)
        assert writer.words[SlotField.RECYCLE_REQUEST] == 1 + index_of(ExitKind.MAX_REQUESTS)


def test_the_first_limit_stands() -> None:
    """A worker that reaches both limits has one reason."""
    settings = Settings(workers=1, max_requests=1, max_memory=2**20, jitter=0)
    with pen() as writer:
        writer.account(Outcome.OK, 5)
        checks = limits_for(settings, writer, lambda: None)
        writer.account(Outcome.OK, 5)
        for check in checks:
            check()
        assert writer.words[SlotField.RECYCLE_REQUEST] == 1 + index_of(ExitKind.MAX_REQUESTS)
