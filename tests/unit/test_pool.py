"""The pool over invented processes: forks that fail, deaths and their causes, stack dumps, and what is counted."""

from __future__ import annotations

import errno
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.identity import DUMP_AT_ONCE, WAKE
from prefork.workers.machine import Memory
from prefork.workers.pool import descriptors
from prefork.workers.pool.deadlines import DUMP_TIME, INSIST_TIME
from prefork.workers.pool.failures import PROVEN
from prefork.workers.pool.spares import Spares
from prefork.workers.pool.views import Kill, Retirement
from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.slot_writer import REQUEST_NS, Outcome
from prefork.workers.states import (
    ExitCause,
    ExitKind,
    Order,
    StartReason,
    Usage,
    WorkerState,
)
from tests.support.fake_system import FIRST_PID
from tests.support.staged import StagedPool, pen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.workers.pool.table import PoolState

SCALED_DOWN = ExitCause(ExitKind.SCALED_DOWN)
NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


@pytest.fixture(name="stage")
def _stage() -> Iterator[StagedPool]:
    """Give a pool of four slots in which nothing has happened."""
    stage = StagedPool()
    yield stage
    stage.close()


@pytest.fixture(name="log", autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Note all that is logged."""
    caplog.set_level(logging.DEBUG, "prefork")
    return caplog


def logged(log: pytest.LogCaptureFixture, what: str) -> list[dict[str, Any]]:
    """Return the facts of each event of that name, its report among them."""
    return [
        {**record.facts, "report": record.report}
        for record in log.records
        if record.facts["event"] == what
    ]


def exits(stage: StagedPool) -> dict[str, int]:
    """Return how many workers have ended, by cause."""
    return {kind: count for kind, count in stage.pool.board.snapshot().exits.items() if count}


def causes(stage: StagedPool) -> list[str]:
    """Return the causes that the hook was given, in order."""
    return [str(cause) for _, cause in stage.hooks("worker_died")]


# --- forks


def test_workers_are_forked_in_one_go(stage: StagedPool) -> None:
    """All workers of a plan are forked in one batch, into the lowest free slots, each with its reason."""
    stage.spawn(3)
    assert stage.system.batches == [3]
    assert stage.pool.table.slots == [0, 1, 2]
    assert stage.pool.table.pids == {FIRST_PID, FIRST_PID + 1, FIRST_PID + 2}
    snapshot = stage.pool.board.snapshot()
    assert snapshot.starts[StartReason.STARTED] == 3
    assert [one[SlotField.PID] for one in snapshot.slots][:3] == [FIRST_PID + n for n in range(3)]
    assert [info.slot for (info,) in stage.hooks("pre_fork")] == [0, 1, 2]
    assert {info.pid for (info,) in stage.hooks("pre_fork")} == {0}


def test_no_more_workers_than_slots(stage: StagedPool) -> None:
    """A plan that wants more workers than there are slots gets as many as there are."""
    stage.spawn(3)
    stage.spawn(3)
    assert stage.system.batches == [3, 1]
    assert stage.pool.table.slots == [0, 1, 2, 3]


@pytest.mark.parametrize("stands", [0, 1, 3])
def test_fork_that_fails_in_a_batch(
    stage: StagedPool, log: pytest.LogCaptureFixture, stands: int
) -> None:
    """Those forked before the one that failed live; of the others nothing is left but one line and a pause."""
    stage.system.refuse_forks(after=stands)
    stage.spawn(4)
    pool = stage.pool
    assert pool.table.slots == [*range(stands)]
    assert [*pool._descriptors.pipes] == [*range(stands)], "pipes of workers that there are not"
    assert pool.board.pool(PoolField.SPAWN_FAILURES) == 1
    assert pool.failures.fork_at == pytest.approx(stage.now + 0.1)
    (line,) = logged(log, "fork failed, retrying")
    assert line["workers"] == stands
    # The next ones go into the slots that stayed free.
    stage.system.allow_forks()
    stage.spawn(4 - stands)
    assert pool.table.slots == [0, 1, 2, 3]
    assert len({*pool.table.pids}) == 4


def test_row_of_failed_forks_is_two_lines(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """However often fork fails in a row, one line says when it began and one when it was over; the pause grows."""
    stage.system.refuse_forks()
    pauses = []
    for _ in range(6):
        stage.spawn(1)
        pauses.append(round(stage.pool.failures.fork_at - stage.now, 3))
        stage.now += 10
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    stage.system.allow_forks()
    stage.spawn(1)
    assert len(logged(log, "fork failed, retrying")) == 1
    (line,) = logged(log, "fork succeeded again")
    assert line["failures"] == 6
    assert not stage.pool.failures.probing
    stage.system.refuse_forks()
    stage.spawn(1)
    assert len(logged(log, "fork failed, retrying")) == 2


def test_worker_without_a_pidfd_leaves_its_slot(stage: StagedPool) -> None:
    """A worker for which the master gets no descriptor is none; its siblings of the batch live."""
    stage.system.pidfd_errors = {1: NO_DESCRIPTOR}
    stage.spawn(3)
    assert stage.pool.table.slots == [0, 2]
    assert [*stage.pool._descriptors.pipes] == [0, 2]
    assert stage.pool.board.pool(PoolField.SPAWN_FAILURES) == 1
    stage.system.allow_forks()
    stage.spawn(1)
    assert stage.pool.table.slots == [0, 1, 2]


def test_without_descriptors_for_pipes_none_is_forked(
    stage: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pipes of a batch cannot all be made, no worker is forked and no pipe is left."""
    make, calls = os.pipe2, []

    def pipe2(flags: int) -> tuple[int, int]:
        calls.append(flags)
        if len(calls) > 2:
            raise NO_DESCRIPTOR
        return make(flags)

    monkeypatch.setattr(descriptors.os, "pipe2", pipe2)
    stage.spawn(4)
    assert stage.system.batches == []
    assert len(stage.pool.table) == 0
    assert stage.pool._descriptors.pipes == {}
    assert stage.pool.failures.forks == 1


def test_worker_without_a_report_leaves_no_pipe(
    stage: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last of a worker's descriptors cannot be made, those made before are closed."""

    def create(_name: str) -> int:
        raise NO_DESCRIPTOR

    monkeypatch.setattr(descriptors.reports, "create", create)
    before = set(os.listdir("/proc/self/fd"))
    stage.spawn(1)
    assert set(os.listdir("/proc/self/fd")) == before
    assert stage.system.batches == []
    assert stage.pool.failures.forks == 1


# --- ready


def test_ready_worker_is_told_of_once(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """A worker that writes that it is ready is logged, published and told to the hook once, with its boot time."""
    stage.spawn(2)
    stage.now += 0.5
    stage.become_ready(1)
    for _ in range(2):
        stage.pool.note_ready(stage.now)
    (line,) = logged(log, "ready")
    assert (line["subject"], line["boot"]) == (str(stage.handle(1)), pytest.approx(0.5))
    assert [info.slot for (info,) in stage.hooks("worker_ready")] == [1]
    assert stage.pool.table.count_ready() == 1
    assert sum(stage.pool.board.snapshot().boots) == 1


def test_worker_asked_to_leave_while_it_boots_may_become_ready(stage: StagedPool) -> None:
    """The worker's own word counts: the slot of one that was asked to leave says ``retiring`` throughout."""
    stage.spawn(1)
    stage.apply(retire=(Retirement(0, SCALED_DOWN, stage.now + 25),))
    stage.pool.note_ready(stage.now)
    assert not stage.handle(0).is_ready
    assert stage.pool.board.state(0) is WorkerState.RETIRING
    stage.become_ready(0)
    stage.pool.note_ready(stage.now)
    assert stage.handle(0).is_ready


# --- asked to leave


@pytest.mark.parametrize("order", [Order.RETIRE, Order.DRAIN])
def test_worker_is_asked_by_a_word_and_a_byte(stage: StagedPool, order: Order) -> None:
    """A worker that is to leave finds the order in its slot and in its pipe; no signal is sent."""
    stage.ready(2)
    stage.apply(retire=(Retirement(1, SCALED_DOWN, stage.now + 25, order),))
    assert stage.pool.board.word(1, SlotField.ORDER) == order
    assert os.read(stage.handle(1).pipes.wake_read, 8) == bytes((order,))
    with pytest.raises(BlockingIOError):
        os.read(stage.handle(0).pipes.wake_read, 8)
    assert stage.received(1) == []


def test_idle_workers_are_poked(stage: StagedPool) -> None:
    """Those that a plan names are woken, once while they do not read it, so that an order finds room."""
    stage.ready(2)
    for _ in range(5000):
        stage.apply(poke=(0,))
    stage.apply(retire=(Retirement(0, SCALED_DOWN, stage.now + 25, Order.DRAIN),))
    assert os.read(stage.handle(0).pipes.wake_read, 1 << 16) == WAKE + bytes((Order.DRAIN,))


@pytest.mark.parametrize("word", [0, -1, 2**62])
def test_pid_that_was_written_over_is_published_again(stage: StagedPool, word: int) -> None:
    """A worker whose pid another one has written over is idle at the next look, and not gone."""
    stage.ready(2)
    stage.pool.board.words[stage.pool.board.slot_at(1) + SlotField.PID] = word
    assert [view.idle for view in stage.pool.views(stage.now)] == [True, True]
    assert stage.pool.board.word(1, SlotField.PID) == stage.handle(1).info.pid


# --- deaths


def test_death_before_ready_is_a_boot_failure(
    stage: StagedPool, log: pytest.LogCaptureFixture
) -> None:
    """A worker that ends while it boots is told of with its last words, and the next one has to wait."""
    stage.spawn(2)
    stage.write_report(0, "Traceback ...\nZeroDivisionError\x1b[1m\n")
    stage.end(0, 3)
    stage.reap()
    (line,) = logged(log, "exited")
    assert str(line["cause"]) == "boot_error"
    assert line["report"].splitlines() == ["Traceback ...", "ZeroDivisionError\\x1b[1m"]
    assert (stage.pool.failures.boots, stage.pool.failures.own_fault) == (1, True)
    assert "ZeroDivisionError" in stage.pool.failures.last_report
    assert stage.pool.failures.try_at > stage.now
    assert stage.pool.table.slots == [1]


def test_what_dead_workers_have_used_stays_in_the_totals(stage: StagedPool) -> None:
    """The CPU time and the switches that the kernel counted for a worker are added to those of its slot's former ones."""
    for number in (1, 10):
        stage.ready(1)
        used = Usage(
            user_ns=number,
            system_ns=2 * number,
            voluntary_switches=3 * number,
            involuntary_switches=4 * number,
        )
        stage.system.end(stage.handle(0).info.pid, by=signal.SIGKILL, usage=used)
        stage.reap()
    (slot, *_) = stage.pool.board.snapshot().slots
    assert [
        slot[SlotField.CPU_USER_NS],
        slot[SlotField.CPU_SYSTEM_NS],
        slot[SlotField.VOLUNTARY_SWITCHES],
        slot[SlotField.INVOLUNTARY_SWITCHES],
    ] == [11, 22, 33, 44]


def test_totals_of_all_that_ended_are_there_before_any_death_is_told(stage: StagedPool) -> None:
    """When the hook of one death runs, what the others have used is in their slots, and these have no process."""
    stage.ready(3)
    found = []

    def on_hook(name: str, *_: object) -> None:
        if name == "worker_died":
            slots = stage.pool.board.snapshot().slots
            found.append([(one[SlotField.PID], one[SlotField.CPU_USER_NS]) for one in slots[:3]])

    stage.on_hook = on_hook
    for slot in range(3):
        pid = stage.handle(slot).info.pid
        stage.system.end(pid, by=signal.SIGKILL, usage=Usage(user_ns=7))
    stage.reap()
    assert found == [[(0, 7)] * 3] * 3


def test_worker_that_dies_before_the_master_saw_it_ready_had_booted(stage: StagedPool) -> None:
    """A worker that has written that it is ready, and ends before the next look, has not failed to boot."""
    stage.spawn(1)
    stage.become_ready(0)
    stage.end(0, 1)
    stage.reap()
    assert causes(stage) == ["exited(1)"]
    assert stage.pool.failures.boots == 0
    assert stage.pool.failures.early_deaths == 1


@pytest.mark.parametrize(
    ("age", "code", "by", "early"),
    [
        (PROVEN - 0.01, 1, None, 1),
        (PROVEN - 0.01, None, signal.SIGSEGV, 1),
        (PROVEN - 0.01, 0, None, 0),
        (PROVEN - 0.01, None, signal.SIGKILL, 0),
        (PROVEN + 0.01, 1, None, 0),
        (PROVEN + 0.01, None, signal.SIGSEGV, 0),
    ],
)
def test_crash_right_after_ready_makes_the_next_one_wait(
    stage: StagedPool, age: float, code: int | None, by: int | None, early: int
) -> None:
    """Only a worker that ends by its own fault within its first second says something about the next one."""
    stage.ready(1)
    stage.now += age
    stage.end(0, code, by=by)
    stage.reap()
    assert stage.pool.failures.early_deaths == early
    assert (stage.pool.failures.try_at > stage.now) is bool(early)
    assert stage.pool.table.lost == 1
    assert stage.pool.table.lost_after_serving == 1 - early


@pytest.mark.parametrize("ended", [False, True], ids=["in its hand", "before"])
def test_worker_that_has_served_makes_nobody_wait(stage: StagedPool, *, ended: bool) -> None:
    """A worker that crashes at once says nothing about the next one when it had a request: that may have killed it."""
    stage.ready(1)
    with pen(stage.pool, 0) as writer:
        writer.words[SlotField.REQUEST_NS] = 1
        if ended:
            writer.account(Outcome.ERROR, 1)
    stage.end(0, by=signal.SIGSEGV)
    stage.reap()
    assert stage.pool.failures.early_deaths == 0
    assert stage.pool.failures.try_at <= stage.now
    assert stage.pool.table.lost_after_serving == 1
    # The next worker of that slot has served nothing, whatever the slot's totals say.
    stage.spawn(1, StartReason.RESPAWNED)
    stage.become_ready(0)
    stage.end(0, 1)
    stage.reap()
    assert stage.pool.failures.early_deaths == 1


@pytest.mark.parametrize(
    ("asked", "ready", "cause"),
    [(True, True, "scaled_down"), (False, True, "exited(unknown)"), (False, False, "boot_error")],
)
def test_status_that_another_has_collected(
    stage: StagedPool, asked: bool, ready: bool, cause: str
) -> None:
    """Where another part of the program has taken a worker's status, its end is told of all the same."""
    stage.ready(1) if ready else stage.spawn(1)
    if asked:
        stage.apply(retire=(Retirement(0, SCALED_DOWN, stage.now + 25),))
    stage.end(0)
    stage.reap()
    assert causes(stage) == [cause]
    assert len(stage.pool.table) == 0


def test_kill_of_one_that_has_just_ended(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """A worker that ends before its kill arrives is buried once, for what the master killed it for."""
    stage.ready(1)
    stage.end(0, 0)
    stage.apply(kill=(Kill(0, ExitCause(ExitKind.REQUEST_TIMEOUT)),))
    stage.reap()
    stage.reap()
    assert causes(stage) == ["request_timeout"]
    assert exits(stage) == {"request_timeout": 1}
    assert len(logged(log, "exited")) == 1


def test_killed_worker_keeps_the_cause_it_was_asked_for(stage: StagedPool) -> None:
    """A worker that did not leave in time, and was killed for that, ended for the reason of its retirement."""
    stage.ready(1)
    stage.apply(retire=(Retirement(0, SCALED_DOWN, stage.now),))
    stage.apply(kill=(Kill(0, None),))
    assert stage.received(0) == [signal.SIGKILL]
    stage.reap()
    assert causes(stage) == ["scaled_down"]
    assert stage.pool.table.lost == 0


def test_kernels_kills_are_attributed_one_by_one(
    stage: StagedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kill that the kernel has counted explains one SIGKILL that was not the master's, and no other death."""
    kills = [stage.pool.deaths._oom._memory.oom_kills()]
    monkeypatch.setattr(Memory, "oom_kills", lambda _self: kills[0])
    stage.ready(4)
    kills[0] += 1
    stage.apply(kill=(Kill(0, ExitCause(ExitKind.REQUEST_TIMEOUT)),))
    stage.end(1, by=signal.SIGSEGV)
    for slot in (2, 3):
        stage.end(slot, by=signal.SIGKILL)
    stage.reap()
    assert causes(stage) == ["request_timeout", "killed(SIGSEGV)", "oom_killed", "killed(SIGKILL)"]
    assert stage.pool.deaths.oom_killed == 1
    stage.apply()
    assert stage.pool.deaths.oom_killed == 0, "counted for one plan only"


def test_last_facts_are_of_the_worker_that_ended(
    stage: StagedPool, log: pytest.LogCaptureFixture
) -> None:
    """The line of an end has the worker's age, and that of its request if it had one; the slot is clear afterwards."""
    stage.ready(2)
    with pen(stage.pool, 0) as writer:
        writer.words[SlotField.REQUEST_NS] = 1
    stage.now += 3
    stage.end(0, 1)
    stage.end(1, 1)
    stage.reap()
    first, second = logged(log, "exited")
    assert first["age"] == second["age"] == 3
    assert first["request_age"] > 0
    assert "request_age" not in second
    assert stage.pool.board.word(0, SlotField.REQUEST_NS) == 0
    assert stage.pool.board.word(0, SlotField.ABORTED) == 1
    assert stage.pool.board.word(1, SlotField.ABORTED) == 0


def test_expected_end_is_no_error(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """A worker that leaves as it was asked to is logged as information, a clean end that was not asked for as a warning, any other as an error."""
    stage.ready(3)
    stage.apply(retire=tuple(Retirement(slot, SCALED_DOWN, stage.now) for slot in (0, 1)))
    stage.end(0, 0)
    stage.end(1, 7)
    stage.end(2, 0)
    stage.reap()
    levels = {r.facts["cause"]: r.levelno for r in log.records if r.facts["event"] == "exited"}
    assert levels == {
        SCALED_DOWN: logging.INFO,
        ExitCause(ExitKind.EXITED, 7): logging.ERROR,
        ExitCause(ExitKind.EXITED, 0): logging.WARNING,
    }


@pytest.mark.parametrize("ready", [False, True])
def test_end_of_one_that_was_asked_to_leave_is_no_failure(stage: StagedPool, ready: bool) -> None:
    """However a worker ends that was asked to leave, it is not lost, and the next one does not wait."""
    stage.ready(1) if ready else stage.spawn(1)
    stage.apply(retire=(Retirement(0, SCALED_DOWN, stage.now + 25),))
    stage.end(0, by=signal.SIGSEGV)
    stage.reap()
    assert causes(stage) == ["killed(SIGSEGV)"]
    assert stage.pool.table.lost == 0
    assert not stage.pool.failures.probing


def test_hook_may_collect_again(stage: StagedPool) -> None:
    """A hook that has the dead collected once more finds each of them once."""
    stage.ready(3)
    stage.on_hook = lambda name, *_: stage.reap() if name == "worker_died" else None
    for slot in range(3):
        stage.end(slot, 1)
    stage.reap()
    assert len(stage.hooks("worker_died")) == 3
    assert exits(stage) == {"exited": 3}


def test_hook_that_raises_stops_nothing(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """An error of a hook is logged with its name and counted, and the others are still called."""

    def fail(*_call: object) -> None:
        raise LookupError("in a hook")

    stage.on_hook = fail
    stage.ready(2)
    for slot in range(2):
        stage.end(slot, 1)
    stage.reap()
    assert len(stage.hooks("worker_died")) == 2
    assert stage.pool.board.pool(PoolField.HOOK_FAILURES) == 6
    assert len(logged(log, "worker_died() raised")) == 2


# --- lost and replaced


def test_lost_workers_are_respawned(stage: StagedPool) -> None:
    """Workers that died unexpectedly are lost until as many respawns were forked."""
    stage.ready(4)
    for slot in (1, 2):
        stage.end(slot, by=signal.SIGKILL)
    stage.reap()
    assert stage.pool.table.lost == 2
    stage.spawn(1, StartReason.RESPAWNED)
    assert (stage.pool.table.lost, stage.pool.table.slots) == (1, [0, 1, 3])
    stage.spawn(1, StartReason.RESPAWNED)
    assert stage.pool.table.lost == 0
    assert stage.pool.board.snapshot().starts[StartReason.RESPAWNED] == 2


def test_smaller_pool_has_lost_none(stage: StagedPool) -> None:
    """A worker that died and is not wanted any more is not replaced later on."""
    stage.ready(3)
    stage.end(0, by=signal.SIGKILL)
    stage.reap()
    stage.apply(spares=Spares(2))
    assert stage.pool.table.lost == 0


# --- stack dumps


def test_dump_that_is_answered_is_shown(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """Workers are asked by USR1, what they write is logged DUMP_TIME later, and none is asked twice."""
    stage.ready(2)
    stage.system.processes[stage.handle(0).info.pid].has_received_alone = True
    stage.pool.dumps.ask_all(stage.now)
    assert stage.pool.dumps.next_at == stage.now + INSIST_TIME
    for slot in (0, 1):
        assert stage.received(slot) == [signal.SIGUSR1]
        stage.write_report(slot, f"stack of {slot}")
    stage.pool.dumps.ask_all(stage.now)
    for _ in range(2):
        stage.now += INSIST_TIME
        stage.pool.dumps.insist(stage.now)
        stage.pool.dumps.show_due(stage.now)
    assert [line["report"] for line in logged(log, "stacks")] == ["stack of 0", "stack of 1"]
    assert stage.received(0) == stage.received(1) == []
    assert stage.pool.dumps.next_at is None


def test_dump_that_is_not_answered(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """A worker that may be running Python code is not asked again, and the log says that it gave no answer."""
    stage.ready(1)
    stage.pool.dumps.ask_all(stage.now)
    assert stage.received(0) == [signal.SIGUSR1]
    stage.now += INSIST_TIME
    stage.pool.dumps.insist(stage.now)
    assert stage.received(0) == []
    stage.now += DUMP_TIME - INSIST_TIME - 0.01
    stage.pool.dumps.show_due(stage.now)
    assert logged(log, "stacks") == []
    stage.now += 0.01
    stage.pool.dumps.show_due(stage.now)
    assert [line["report"] for line in logged(log, "stacks")] == ["(no answer)"]


def test_answer_of_an_earlier_dump_is_not_shown_again(
    stage: StagedPool, log: pytest.LogCaptureFixture
) -> None:
    """A worker that answers once and then no more is shown with an answer once."""
    stage.ready(1)
    for answer in ("first", ""):
        stage.pool.dumps.ask_all(stage.now)
        if answer:
            stage.write_report(0, answer)
        stage.now += DUMP_TIME
        stage.pool.dumps.show_due(stage.now)
    assert [line["report"] for line in logged(log, "stacks")] == ["first", "(no answer)"]


def test_booting_worker_is_not_asked(stage: StagedPool) -> None:
    """A status report has the stacks of the workers that serve; one that boots is left alone."""
    stage.spawn(1)
    stage.pool.dumps.ask_all(stage.now)
    assert stage.received(0) == []
    assert stage.pool.dumps.next_at is None


def test_second_signal_only_to_a_single_thread_that_has_the_first(stage: StagedPool) -> None:
    """A worker that is to live is asked by the second signal only where no frame can change meanwhile."""
    stage.ready(2)
    stage.system.processes[stage.handle(1).info.pid].has_received_alone = True
    stage.pool.dumps.ask_all(stage.now)
    stage.now += INSIST_TIME
    stage.pool.dumps.insist(stage.now)
    assert stage.received(0) == [signal.SIGUSR1]
    assert stage.received(1) == [signal.SIGUSR1, DUMP_AT_ONCE]
    stage.pool.dumps.insist(stage.now + 1)
    assert stage.received(1) == [], "once"


def test_second_signal_whatever_it_does_to_one_that_is_to_be_killed(stage: StagedPool) -> None:
    """A worker that is killed after its dump is always asked again; where the master is late, the kill waits."""
    stage.ready(1)
    asked_at = stage.now
    stage.apply(dump=(0,))
    assert stage.handle(0).dump.dumped_at == asked_at
    late = 1.0
    stage.now += INSIST_TIME + late
    stage.pool.dumps.insist(stage.now)
    assert stage.received(0) == [signal.SIGUSR1, DUMP_AT_ONCE]
    assert stage.handle(0).dump.dumped_at == pytest.approx(asked_at + late)
    assert stage.handle(0).dump.show_at == pytest.approx(stage.now + DUMP_TIME - INSIST_TIME)


def test_kill_shows_the_dump_first(stage: StagedPool, log: pytest.LogCaptureFixture) -> None:
    """What a worker has written is in the log before the line of its kill, and is not shown again."""
    stage.ready(1)
    stage.apply(dump=(0,))
    stage.write_report(0, "here it hangs")
    stage.apply(kill=(Kill(0, ExitCause(ExitKind.REQUEST_TIMEOUT)),))
    stage.pool.dumps.show_due(stage.now + 1)
    events = [record.facts["event"] for record in log.records]
    assert events[-2:] == ["stacks", "killed"]
    assert logged(log, "stacks")[0]["report"] == "here it hangs"
    assert not stage.handle(0).dump.kill_follows


def test_slow_request_is_dumped_and_goes_on(
    stage: StagedPool, log: pytest.LogCaptureFixture
) -> None:
    """A slow request is counted, logged with its age and dumped; its worker is not killed for it."""
    stage.ready(1)
    stage.handle(0).busy_since = stage.now - 5
    stage.apply(slow=(0,))
    assert stage.received(0) == [signal.SIGUSR1]
    (line,) = logged(log, "has a slow request")
    assert line["request_age"] == 5
    assert stage.handle(0).slow_noted
    assert stage.handle(0).dump.dumped_at is None
    assert stage.pool.board.pool(PoolField.SLOW_REQUESTS) == 1
    assert stage.pool.board.word(0, SlotField.SLOW) == 1


def test_take_that_becomes_a_request_keeps_its_time(stage: StagedPool) -> None:
    """A beginning that moves back is the same request, with its deadline; a later one is another request."""
    stage.ready(1)
    handle, board = stage.handle(0), stage.pool.board
    with pen(stage.pool, 0) as writer:
        for number, (begun, since) in enumerate([(900, 0), (890, 0), (950, 2), (0, None), (20, 4)]):
            writer.words[REQUEST_NS] = begun
            handle.look(board, stage.now + number, 1000)
            busy_since = handle.busy_since
            assert busy_since == (None if since is None else pytest.approx(stage.now + since))


def test_dump_that_is_under_way_is_asked_for_anew(stage: StagedPool) -> None:
    """A worker that is to be killed is asked even while a dump is under way: that one may be of an earlier moment."""
    stage.ready(1)
    stage.pool.dumps.ask_all(stage.now)
    stage.write_report(0, "before")
    stage.now += DUMP_TIME - 0.01
    stage.apply(dump=(0,))
    assert stage.received(0) == [signal.SIGUSR1] * 2
    stage.pool.dumps.show_due(stage.now + 0.02)
    assert stage.handle(0).dump.show_at == stage.now + DUMP_TIME


# --- the end


def test_kill_all_leaves_no_worker(stage: StagedPool) -> None:
    """A master that fails kills and collects every worker, those that it had asked to leave for that reason."""
    stage.ready(3)
    stage.spawn(1)
    stage.apply(retire=(Retirement(1, SCALED_DOWN, stage.now + 25),))
    stage.end(2, 5)
    stage.system.processes[stage.handle(0).info.pid].lingers = True
    stage.pool.kill_all(stage.now)
    assert stage.system.alive == stage.system.uncollected == []
    assert len(stage.pool.table) == 0
    assert causes(stage) == ["retired", "scaled_down", "retired", "retired"]
    assert stage.pool._descriptors.pipes == {}


def test_workers_of_an_earlier_image_are_taken_over(stage: StagedPool) -> None:
    """The next image of the master knows the workers, their dumps and losses, and collects them; its own are younger."""
    stage.ready(2)
    stage.pool.table.lost = 1
    stage.pool.dumps.ask_all(stage.now)
    state = stage.pool.handover_state()
    heir = StagedPool(stage=stage, previous=_with_own_copies(state))
    try:
        pool = heir.pool
        assert (pool.generation, pool.table.lost, pool.table.slots) == (1, 1, [0, 1])
        assert pool.table.count_ready() == 2
        assert pool.table.count_ready(pool.generation) == 0
        assert pool.table.has_older(pool.generation)
        assert pool.dumps.next_at == stage.now + INSIST_TIME
        assert pool.board.pool(PoolField.GENERATION) == 1
        heir.spawn(1, StartReason.RELOADED)
        assert (heir.handle(2).info.generation, heir.handle(0).info.generation) == (1, 0)
        heir.end(0, 4)
        heir.reap()
        assert causes(heir) == ["exited(4)"]
        assert pool.table.slots == [1, 2]
        assert pool.failures.ever_ready
    finally:
        stage.pool._descriptors.pipes.clear()
        heir.close()


def _with_own_copies(state: PoolState) -> PoolState:
    """Give the next image descriptors of its own where both images are closed in one process."""
    return msgspec.structs.replace(
        state,
        board=os.dup(state.board),
        proof=os.dup(state.proof),
        life=tuple(map(os.dup, state.life)),
    )


# --- whatever happens


class Steps:
    """What may happen to a pool of four slots, each by the number of a slot or of workers."""

    def __init__(self, stage: StagedPool) -> None:
        self.stage = stage

    def spawn(self, number: int) -> None:
        """Have workers forked, respawns first."""
        self.stage.system.allow_forks()
        reasons = [StartReason.RESPAWNED] * self.stage.pool.table.lost + [StartReason.STARTED] * 4
        self.stage.apply(starts=tuple(reasons[:number]))

    def refuse(self, number: int) -> None:
        """Have a batch fail at some fork."""
        self.stage.system.refuse_forks(after=number)
        self.stage.apply(starts=(StartReason.STARTED,) * 4)

    def become_ready(self, slot: int) -> None:
        """Have a worker write that it is ready."""
        self.stage.become_ready(slot)

    def exit(self, slot: int) -> None:
        """Have a worker exit."""
        self.stage.end(slot, slot)

    def crash(self, slot: int) -> None:
        """Have a worker killed by a stranger."""
        self.stage.end(slot, by=signal.SIGKILL)

    def steal(self, slot: int) -> None:
        """Have a worker's status taken."""
        self.stage.end(slot)

    def retire(self, slot: int) -> None:
        """Ask a worker to leave."""
        self.stage.apply(retire=(Retirement(slot, SCALED_DOWN, self.stage.now),))

    def kill(self, slot: int) -> None:
        """Kill a worker."""
        self.stage.apply(kill=(Kill(slot, ExitCause(ExitKind.BOOT_TIMEOUT)),))

    def dump(self, slot: int) -> None:
        """Have a worker dumped before a kill."""
        self.stage.apply(dump=(slot,))

    def tick(self, _slot: int) -> None:
        """Do what the master does in every tick."""
        self.stage.reap()
        self.stage.pool.note_ready(self.stage.now)
        self.stage.pool.dumps.insist(self.stage.now)
        self.stage.pool.dumps.show_due(self.stage.now)

    def may(self, step: str, slot: int) -> bool:
        """Return whether that can happen now."""
        if step in ("spawn", "refuse", "tick"):
            return True
        if slot not in self.stage.pool.table.slots:
            return False
        lives = self.stage.handle(slot).info.pid in self.stage.system.alive
        return lives or step not in ("exit", "crash", "steal")


STEPS = st.sampled_from([name for name in vars(Steps) if name != "may" and name[0] != "_"])


@given(st.lists(st.tuples(STEPS, st.integers(0, 3)), max_size=40))
def test_books_agree_with_the_processes(steps: list[tuple[str, int]]) -> None:
    """Whatever workers and kernel do: the table, the scoreboard, the hooks and the open pipes tell one story."""
    stage = StagedPool()
    possible = Steps(stage)
    try:
        for step, number in steps:
            stage.now += 0.1
            if possible.may(step, number):
                getattr(possible, step)(number)
            _check_books(stage)
        stage.pool.kill_all(stage.now)
        _check_books(stage)
        assert stage.system.alive == stage.pool.table.slots == []
    finally:
        stage.close()


def _check_books(stage: StagedPool) -> None:
    pool, snapshot = stage.pool, stage.pool.board.snapshot()
    assert pool.table.pids == {*stage.system.alive, *stage.system.uncollected}
    assert ([*pool._descriptors.pipes] and sorted(pool._descriptors.pipes) == pool.table.slots) or (
        not pool.table.slots
    )
    on_board = {slot.slot: slot[SlotField.PID] for slot in snapshot.slots if slot[SlotField.PID]}
    assert on_board == {one.slot: one.info.pid for one in pool.table}
    assert sum(snapshot.starts.values()) - sum(snapshot.exits.values()) == len(pool.table)
    assert sum(snapshot.exits.values()) == len(stage.hooks("worker_died"))
    assert pool.table.lost >= 0
