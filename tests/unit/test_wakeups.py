"""Idle workers that do not read a wake-up: what counts against them, what does not, and that they are replaced."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.pool.deadlines import DUMP_TIME, STOPPED_TIME, STUCK_TIME
from prefork.workers.pool.handle import Unread
from prefork.workers.pool.wakeups import FIRST_LOOK, judge
from prefork.workers.slot_writer import REQUEST_NS, Outcome
from prefork.workers.states import ExitCause, ExitKind, MainThread
from tests.support.staged import StagedMaster, StagedPool, pen

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK = 0.4
"""Seconds between two looks of the master at the most."""


@pytest.fixture(name="stage")
def _stage() -> Iterator[StagedPool]:
    """Give a pool of two workers that are ready."""
    stage = StagedPool(2)
    stage.ready(2)
    yield stage
    stage.close()


def is_in(stage: StagedPool, slot: int, state: str, cpu: float = 0.0) -> None:
    """Have the main thread of a worker be in this state."""
    stage.system.processes[stage.handle(slot).info.pid].main_thread = MainThread(state, cpu)


def look(stage: StagedPool, seconds: float = LOOK) -> None:
    """Let this much time go by, and look."""
    stage.now += seconds
    stage.pool.wakeups.look(stage.now)


def unread_for(stage: StagedPool, slot: int) -> float | None:
    """Return for how long a worker has left its wake-up unread, as the policy sees it."""
    since = stage.pool.views(stage.now)[slot].unread_since
    return None if since is None else round(stage.now - since, 6)


def test_time_counts_from_the_first_wake_up(stage: StagedPool) -> None:
    """A worker that was woken several times and reads none is late since the first one; others are not."""
    is_in(stage, 0, "T")
    for _ in range(4):
        stage.apply(poke=(0,))
        look(stage)
    first, other = stage.pool.views(stage.now)
    assert unread_for(stage, 0) == 4 * LOOK
    assert first.stopped
    assert (other.unread_since, other.stopped) == (None, False)


def test_worker_that_reads_its_wake_up_is_well(stage: StagedPool) -> None:
    """A worker that reads its wake-ups is never late, however often it finds no client."""
    is_in(stage, 0, "S")
    for _ in range(100):
        stage.apply(poke=(0,))
        os.read(stage.handle(0).pipes.wake_read, 8)
        look(stage)
        assert unread_for(stage, 0) is None


def test_worker_with_requests_is_well(stage: StagedPool) -> None:
    """Time begins anew while the worker has a request, and when it has served one since the previous look."""
    is_in(stage, 0, "S")
    stage.apply(poke=(0,))
    look(stage)
    with pen(stage.pool, 0) as writer:
        writer.words[REQUEST_NS] = 1
        look(stage)
        assert unread_for(stage, 0) == 0
        look(stage)
        writer.account(Outcome.OK, 1)
    look(stage)
    assert unread_for(stage, 0) == 0
    look(stage)
    assert unread_for(stage, 0) == LOOK


def test_kernel_is_not_asked_at_once(stage: StagedPool) -> None:
    """Within FIRST_LOOK nothing is read from /proc; the time counts later."""
    stage.apply(poke=(0,))
    look(stage, FIRST_LOOK / 2)  # it has no state that could be asked for
    assert stage.handle(0).unread == Unread(
        stage.now - FIRST_LOOK / 2, stage.now - FIRST_LOOK / 2, (0, 0)
    )
    is_in(stage, 0, "T")
    look(stage, FIRST_LOOK)
    assert unread_for(stage, 0) == FIRST_LOOK * 1.5


@pytest.mark.parametrize(
    ("thread", "counted"),
    [
        (MainThread("S", 5.0), LOOK),
        (MainThread("T", 5.0), LOOK),
        (MainThread("R", 5.0), 0.0),
        (MainThread("R", 5.1), 0.1),
        (MainThread("R", 9.0), LOOK),
        (MainThread("R", 4.0), 0.0),
        (MainThread("D", 5.0), 0.0),
        (MainThread("t", 5.0), 0.0),
        (None, 0.0),
    ],
    ids=str,
)
def test_only_time_in_which_it_could_have_run_counts(
    thread: MainThread | None, counted: float
) -> None:
    """Sleep and a stop count in full, a run as much as CPU time was used, and anything else not at all."""
    unread = Unread(since=100.0, looked_at=101.0, progress=(0, 0), cpu=5.0)
    judge(unread, thread, 101.0 + LOOK)
    assert 101.0 + LOOK - unread.since == pytest.approx(1.0 + counted)
    assert unread.looked_at == 101.0 + LOOK
    assert unread.stopped is (thread is not None and thread.state == "T")


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.sampled_from("RDt"))))
def test_worker_that_gets_no_processor_is_never_late(looks: list[tuple[float, str]]) -> None:
    """On a machine that is overloaded for any time, a worker is late by no more than the CPU time that it got."""
    now = 100.0
    unread = Unread(now, now, (0, 0))
    for number, (seconds, state) in enumerate(looks):
        now += seconds
        judge(unread, MainThread(state, number * 0.001), now)
        assert now - unread.since <= number * 0.001 + 1e-6


@pytest.mark.parametrize(
    ("state", "settings", "bound"),
    [
        ("T", {}, STOPPED_TIME),
        ("T", {"request_timeout": 60.0}, STOPPED_TIME),
        ("S", {}, STUCK_TIME),
        ("S", {"request_timeout": 4.0}, 4.0),
        ("S", {"request_timeout": 0.5}, STOPPED_TIME),
    ],
)
def test_stuck_worker_is_dumped_killed_and_replaced(
    state: str, settings: dict[str, float], bound: float
) -> None:
    """A worker that is too late is dumped at its bound and killed DUMP_TIME later as stuck; the next one follows."""
    stage = StagedMaster(workers=1, max_children=2, **settings)
    seen: dict[str, float] = {}

    def play() -> Iterator[float]:
        yield from stage.boot()
        first = stage.pool.table[0]
        process = stage.system.processes[first.info.pid]
        process.main_thread = MainThread(state, 0.0)
        stage.pool.wakeups.wake(first, stage.now)
        seen["woken"] = stage.now
        yield from stage.until(lambda: process.received, step=0.05)
        seen["dumped"] = stage.now
        yield from stage.until(lambda: process.status, step=0.05)
        seen["killed"] = stage.now
        yield from stage.boot()
        assert first.killed_for == ExitCause(ExitKind.STUCK)
        assert stage.pool.board.snapshot().exits[ExitKind.STUCK] == 1
        assert len(stage.pool.table) == 1
        seen["replaced"] = stage.now

    stage.run(play())
    stage.close()
    assert seen["dumped"] - seen["woken"] == pytest.approx(bound, abs=0.2)
    assert seen["killed"] - seen["dumped"] == pytest.approx(DUMP_TIME, abs=0.2)
    assert seen["replaced"] - seen["killed"] < 0.2


def test_worker_that_reads_between_dump_and_kill_lives() -> None:
    """A worker that is continued (SIGCONT) after its dump and reads its wake-up is spared."""
    stage = StagedMaster(workers=1, max_children=1)

    def play() -> Iterator[float]:
        yield from stage.boot()
        first = stage.pool.table[0]
        process = stage.system.processes[first.info.pid]
        process.main_thread = MainThread("T", 0.0)
        stage.pool.wakeups.wake(first, stage.now)
        yield from stage.until(lambda: process.received, step=0.05)
        os.read(first.pipes.wake_read, 8)
        for _ in range(20):
            yield 0.1
        assert process.status is None

    stage.run(play())
    stage.close()


def test_verdict_stands_while_a_dump_is_under_way(stage: StagedPool) -> None:
    """Between dump and kill no time is judged, so that the deadline does not move and no second dump is asked for."""
    is_in(stage, 0, "T")
    stage.apply(poke=(0,))
    for _ in range(6):
        look(stage)
    stage.apply(dump=(0,))
    late = unread_for(stage, 0)
    is_in(stage, 0, "D")
    look(stage, DUMP_TIME)
    assert late is not None
    assert unread_for(stage, 0) == pytest.approx(late + DUMP_TIME)
