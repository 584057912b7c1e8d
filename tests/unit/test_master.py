"""A whole master over invented processes, in a time that the test moves: from the first fork to the return of run()."""

from __future__ import annotations

import logging
import signal
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.master.master import BOOT_TRIES
from prefork.reloading.reload import Reload
from prefork.workers.errors import BootError, CrashLoopError
from prefork.workers.pool.deadlines import DUMP_TIME
from prefork.workers.pool.failures import CRASH_LOOP, PROVEN
from prefork.workers.scoreboard import SlotField
from prefork.workers.states import Phase, StartReason
from tests.support.staged import BEGIN, TICK, StagedMaster, become_ready, pen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Stager = Callable[..., StagedMaster]

SOON = 4 * TICK
"""What the master does at an instant, it does within this time."""


@pytest.fixture(name="staged")
def _staged(caplog: pytest.LogCaptureFixture) -> Iterator[Stager]:
    """``staged(**settings)`` makes a master."""
    caplog.set_level(logging.DEBUG, "prefork")
    made: list[StagedMaster] = []

    def make(**settings: Any) -> StagedMaster:
        made.append(StagedMaster(**settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def causes(stage: StagedMaster) -> list[str]:
    """Return why workers have ended, in order."""
    return [str(cause) for _, cause in stage.hooks("worker_died")]


def events(log: pytest.LogCaptureFixture, subject: str) -> list[str]:
    """Return the names of the events logged with a subject."""
    facts = [record.facts for record in log.records]
    return [fact["event"] for fact in facts if fact["subject"].startswith(subject)]


def nothing_is_left(stage: StagedMaster) -> bool:
    """Return whether every process has ended and was collected."""
    return stage.system.alive == stage.system.uncollected == stage.pool.table.slots == []


# --- from start to stop


def test_life_of_a_pool(staged: Stager, caplog: pytest.LogCaptureFixture) -> None:
    """A master forks its workers, says when they are ready, asks them to leave, and returns when none is left."""
    stage = staged(workers=3)

    def play() -> Iterator[float]:
        yield from stage.boot()
        yield from stage.until(lambda: stage.hooks("when_ready"))
        assert stage.pool.table.count_ready() == 3

    stage.run(play())
    assert causes(stage) == ["retired"] * 3
    assert stage.hooks("on_exit") == [[]]
    assert stage.system.batches == [3]
    assert nothing_is_left(stage)
    assert [len(pids) for pids in stage.pids] == [3, 0]
    assert events(caplog, "master") == ["started", "ready", "phase changed", "stopped"]


def test_pool_is_stopped_before_its_workers_are_ready(staged: Stager) -> None:
    """A stop that comes while workers boot waits for them, and needs none to become ready."""
    stage = staged(workers=3)
    stage.run(iter([0.0]))
    assert causes(stage) == ["retired"] * 3
    assert stage.hooks("when_ready") == []


def test_worker_that_does_not_leave_is_killed(staged: Stager) -> None:
    """At the end of graceful_timeout a worker that still works is asked for its stacks, then killed."""
    stage = staged(workers=1, graceful_timeout=3)
    stage.obedient = False

    def play() -> Iterator[float]:
        yield from stage.boot()

    stage.run(play())
    assert BEGIN + 3 <= stage.now <= BEGIN + 3 + DUMP_TIME + 3 * SOON
    assert causes(stage) == ["retired"]
    (process,) = stage.system.processes.values()
    assert process.received[0] == signal.SIGUSR1
    assert process.received[-1] == signal.SIGKILL


def test_error_of_service_actions_leaves_after_the_workers(staged: Stager) -> None:
    """What the program's service_actions() raises comes out of run(), when no worker is left."""
    stage = staged(workers=2, graceful_timeout=1)

    def play() -> Iterator[float]:
        yield from stage.boot()
        raise LookupError("in the program")

    with pytest.raises(LookupError, match="in the program"):
        stage.run(play())
    assert nothing_is_left(stage)
    assert causes(stage) == ["retired"] * 2


def test_reload_goes_on_only_while_the_pool_serves(
    staged: Stager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first tick of a stop on, a reload is given up and no step of it is made."""
    stage = staged(workers=1)
    steps, ends = [], []
    monkeypatch.setattr(Reload, "step", lambda *_: steps.append(stage.master._life.phase))
    monkeypatch.setattr(Reload, "cancel", lambda *_: ends.append(stage.master._life.phase))

    stage.run(stage.boot())

    assert set(steps) == {Phase.SERVING}
    assert set(ends) == {Phase.LEAVING}


def test_signals_move_the_floor(staged: Stager) -> None:
    """TTIN has a worker more forked and TTOU has one leave, as the hook learns; not once the pool is to stop."""
    stage = staged(workers=2, max_children=4)

    def play() -> Iterator[float]:
        yield from stage.boot()
        signal.raise_signal(signal.SIGTTIN)
        yield from stage.until(lambda: len(stage.pool.table) == 3)
        become_ready(stage.pool)
        signal.raise_signal(signal.SIGTTOU)
        yield from stage.until(lambda: len(stage.pool.table) == 2)
        assert causes(stage) == ["scaled_down"]

    stage.run(play())
    assert stage.system.batches == [2, 1]
    assert [arguments[:2] for arguments in stage.hooks("pool_resized")] == [[2, 3], [3, 2]]


# --- boots


def test_worker_that_does_not_boot_is_killed(staged: Stager) -> None:
    """At boot_timeout a worker is asked for its stacks, DUMP_TIME later it is killed, and its slot is filled again."""
    stage = staged(workers=2, boot_timeout=5)

    def play() -> Iterator[float]:
        yield 0.0
        forked_at = stage.now - 2 * TICK
        hung, sound = stage.pid(0), stage.pid(1)
        become_ready(stage.pool, 1)
        yield from stage.until(lambda: stage.system.received(hung) == [signal.SIGUSR1])
        assert stage.now == pytest.approx(forked_at + 5, abs=SOON)
        asked_at = stage.now
        yield from stage.until(lambda: hung not in stage.system.alive)
        assert stage.now == pytest.approx(asked_at + DUMP_TIME, abs=SOON)
        yield from stage.until(lambda: len(stage.system.batches) == 2)
        assert stage.system.received(sound) == []

    stage.run(play())
    assert causes(stage)[0] == "boot_timeout"
    assert stage.pool.board.snapshot().starts[StartReason.RESPAWNED] == 1


def test_first_worker_that_cannot_boot_ends_the_pool(staged: Stager) -> None:
    """Where the first workers fail by their own code, run() raises BootError with the traceback, and none is left."""
    stage = staged(workers=4)

    def play() -> Iterator[float]:
        yield 0.0
        stage.write_report(2, "ZeroDivisionError: division by zero")
        stage.system.end(stage.pid(2), 3)
        while True:
            yield 0.1

    with pytest.raises(BootError) as raised:
        stage.run(play())
    assert "ZeroDivisionError" in raised.value.report
    assert nothing_is_left(stage)


def test_first_workers_that_others_kill_are_tried_again(staged: Stager) -> None:
    """Where the first workers are killed before they are ready, BOOT_TRIES of them are tried before the pool gives up."""
    stage = staged(workers=1)

    def play() -> Iterator[float]:
        while True:
            yield from stage.until(lambda: stage.system.alive)
            stage.system.end(stage.system.alive[0], by=signal.SIGKILL)
            yield 0.0

    with pytest.raises(BootError):
        stage.run(play())
    assert len(stage.system.processes) == BOOT_TRIES


def test_failed_boots_come_ever_later(staged: Stager) -> None:
    """Workers that had served are replaced at once; what then fails to boot is tried again after 0.1 … 1 s, one at a time."""
    stage = staged(workers=3)
    forks: list[float] = []

    def play() -> Iterator[float]:
        yield from stage.boot()
        stage.now += 10
        for slot in (0, 1):
            stage.system.end(stage.pid(slot), by=signal.SIGKILL)
        for _ in range(6):
            yield from stage.until(lambda: stage.starting)
            forks.append(stage.now)
            for handle in stage.starting:
                stage.system.end(handle.info.pid, 3)
            yield 0.0

    stage.run(play())
    pauses = [later - earlier for earlier, later in pairwise(forks)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0], abs=SOON)
    assert stage.system.batches[1:] == [2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("crash_loop", ["exit", "retry"])
def test_crash_loop(staged: Stager, crash_loop: str) -> None:
    """Workers that crash right after they were ready, CRASH_LOOP times in a row, end the pool if it wants that."""
    stage = staged(workers=1, crash_loop=crash_loop)
    crashes: list[float] = []

    def play() -> Iterator[float]:
        while len(crashes) < CRASH_LOOP + 2:
            yield from stage.until(lambda: stage.starting, step=0.1)
            become_ready(stage.pool)
            yield 0.0
            stage.system.end(stage.pid(0), 7)
            crashes.append(stage.now)
            yield 0.0
        yield from stage.until(lambda: stage.starting, step=0.1)
        yield from stage.boot()

    if crash_loop == "exit":
        with pytest.raises(CrashLoopError):
            stage.run(play())
        assert len(crashes) == CRASH_LOOP
    else:
        stage.run(play())
        assert len(crashes) == CRASH_LOOP + 2
    assert nothing_is_left(stage)


def test_worker_that_proves_sound_ends_a_row_of_crashes(staged: Stager) -> None:
    """A worker that outlives its first second has the next crash count as the first one again."""
    stage = staged(workers=1)

    def play() -> Iterator[float]:
        for age in (0.1, PROVEN + 0.1, 0.1):
            yield from stage.until(lambda: stage.starting)
            become_ready(stage.pool)
            yield age
            yield 0.0
            stage.system.end(stage.pid(0), 7)
            yield 0.0
            crashes.append(stage.pool.failures.early_deaths)

    crashes: list[int] = []
    stage.run(play())
    assert crashes == [1, 0, 1]


# --- forks that fail


def test_fork_that_fails_is_tried_again(staged: Stager, caplog: pytest.LogCaptureFixture) -> None:
    """While fork fails the others serve, it is tried once a second at last, and soon after it works the pool is whole."""
    stage = staged(workers=3)

    def play() -> Iterator[float]:
        yield from stage.boot()
        stage.system.refuse_forks()
        stage.system.end(stage.pid(1), by=signal.SIGKILL)
        began = stage.now
        yield from stage.until(lambda: stage.now > began + 20)
        assert 20 <= len(stage.system.batches) <= 26
        assert stage.pool.table.count_ready() == 2
        stage.system.allow_forks()
        relieved = stage.now
        yield from stage.until(lambda: len(stage.pool.table) == 3)
        assert stage.now < relieved + 1.1

    stage.run(play())
    failures = [one for one in events(caplog, "master") if "fork" in one]
    assert failures == ["fork failed, retrying", "fork succeeded again"]


def test_stop_is_obeyed_while_fork_fails(staged: Stager) -> None:
    """A master that has no worker left and cannot fork stops at once."""
    stage = staged(workers=2)

    def play() -> Iterator[float]:
        yield from stage.boot()
        stage.system.refuse_forks()
        for pid in stage.system.alive:
            stage.system.end(pid, by=signal.SIGKILL)
        yield from stage.until(lambda: len(stage.system.batches) > 3)

    stage.run(play())
    assert nothing_is_left(stage)
    assert stage.now < BEGIN + 2


# --- requests


def test_request_that_takes_too_long_costs_its_worker(staged: Stager) -> None:
    """At request_timeout the worker is asked for its stacks, then killed, counted and replaced; an idle one is not."""
    stage = staged(workers=2, request_timeout=4)

    def play() -> Iterator[float]:
        yield from stage.boot()
        busy, idle = stage.pid(0), stage.pid(1)
        with pen(stage.pool, 0) as writer:
            writer.words[SlotField.REQUEST_NS] = time.monotonic_ns()
        began = stage.now
        yield from stage.until(lambda: busy not in stage.system.alive)
        assert stage.now == pytest.approx(began + 4 + DUMP_TIME, abs=2 * SOON)
        yield from stage.until(lambda: stage.starting)
        assert stage.system.received(idle) == []

    stage.run(play())
    assert causes(stage)[0] == "request_timeout"
    assert stage.pool.board.word(0, SlotField.TIMEOUTS) == 1


def test_request_that_ends_in_time_saves_its_worker(staged: Stager) -> None:
    """A worker that finishes between its dump and its kill lives on."""
    stage = staged(workers=1, request_timeout=4)

    def play() -> Iterator[float]:
        yield from stage.boot()
        with pen(stage.pool, 0) as writer:
            writer.words[SlotField.REQUEST_NS] = time.monotonic_ns()
        yield from stage.until(lambda: stage.system.received(stage.pid(0)))
        with pen(stage.pool, 0) as writer:
            writer.words[SlotField.REQUEST_NS] = 0
        yield 10.0

    stage.run(play())
    assert causes(stage) == ["retired"]


# --- whatever happens


CHAOS = st.lists(
    st.tuples(
        st.sampled_from(["ready", "exit", "kill", "steal", "refuse", "allow", "TTIN", "TTOU"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.1, 1.0]),
    ),
    max_size=30,
)


@given(CHAOS)
def test_pool_stays_within_its_bound(steps: list[tuple[str, int, float]]) -> None:
    """Whatever workers, kernel and operator do: never more than max_children live, and a stop leaves none."""
    stage = StagedMaster(workers=3, max_children=5)

    def play() -> Iterator[float]:
        yield from stage.boot()
        for step, number, pause in steps:
            _happen(stage, step, number)
            yield pause
        stage.system.allow_forks()
        yield 40.0
        yield from stage.boot()

    try:
        stage.run(play())
        assert stage.system.most_alive <= 5
        assert nothing_is_left(stage)
        snapshot = stage.pool.board.snapshot()
        assert sum(snapshot.starts.values()) == sum(snapshot.exits.values())
        assert sum(snapshot.starts.values()) == len(stage.system.processes)
    finally:
        stage.close()


def _happen(stage: StagedMaster, step: str, number: int) -> None:
    alive = stage.system.alive
    pid = alive[number % len(alive)] if alive else None
    match step:
        case "ready":
            become_ready(stage.pool)
        case "exit" if pid is not None:
            stage.system.end(pid, number)
        case "kill" if pid is not None:
            stage.system.end(pid, by=signal.SIGKILL)
        case "steal" if pid is not None:
            stage.system.end(pid)
        case "refuse":
            stage.system.refuse_forks(after=number)
        case "allow":
            stage.system.allow_forks()
        case "TTIN" | "TTOU":
            signal.raise_signal(getattr(signal, f"SIG{step}"))
