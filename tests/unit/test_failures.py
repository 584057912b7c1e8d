"""What went wrong with new workers: what counts, how long the pause is, and what a crash loop is."""

from __future__ import annotations

import pytest

from prefork.workers.pool.failures import (
    CRASH_LOOP,
    EXTRA_RESPAWNS,
    LONGEST_PAUSE,
    REPORT_INTERVAL,
    Failures,
    is_crash,
)
from prefork.workers.states import ExitCause, ExitKind

NOW = 100.0


def fail_boots(failures: Failures, count: int, begin: float = NOW, report: str = "x") -> float:
    """Have boots fail one after the other, each try at the end of a pause; return the last instant."""
    now = begin
    for _ in range(count):
        now = max(now, failures.try_at)
        failures.boot_failed(report, now, forked_at=now, own_fault=True)
    return now


def test_boot_failures_back_off_up_to_a_second() -> None:
    """Tries that fail in a row are followed by 0.1, 0.2, 0.4 … 1 s; the first ready worker ends the pause at once."""
    failures, pauses, now = Failures(), [], NOW
    for _ in range(8):
        failures.boot_failed("x", now, forked_at=now, own_fault=True)
        pauses.append(round(failures.try_at - now, 3))
        now = failures.try_at

    assert pauses[:5] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert pauses[-1] == LONGEST_PAUSE
    assert failures.probing
    failures.became_ready()
    assert not failures.probing
    assert failures.try_at <= now
    failures.boot_failed("x", NOW + 100, forked_at=NOW + 99, own_fault=True)
    assert failures.try_at == pytest.approx(NOW + 100.1)


def test_workers_that_fail_together_are_one_failure() -> None:
    """A worker that was forked before the last pause began says nothing new, whenever it fails."""
    failures = Failures()
    for late in range(16):
        failures.boot_failed("x", NOW + late / 100, forked_at=NOW - 1, own_fault=True)
    assert (failures.boots, failures.died_booting) == (1, 16)
    assert failures.try_at == pytest.approx(NOW + 0.1)
    failures.boot_failed("x", NOW + 0.3, forked_at=NOW + 0.1, own_fault=True)
    assert failures.boots == 2
    assert failures.try_at == pytest.approx(NOW + 0.5)

    early = Failures()
    for _ in range(16):
        early.died_early("x", NOW, forked_at=NOW - 1)
    assert early.early_deaths == 1


def test_fork_failures_are_tried_again_every_second() -> None:
    """The back-off of forks ends at a second; a fork that works ends it."""
    failures = Failures()
    for _ in range(10):
        failures.fork_failed(NOW)

    assert failures.fork_at == NOW + LONGEST_PAUSE
    failures.forked()
    assert not failures.probing


def test_early_deaths_back_off_though_workers_become_ready() -> None:
    """A worker that crashes right after ready waits longer each time, until one outlives its first second."""
    failures, now = Failures(), NOW
    for _ in range(3):
        now = max(now, failures.try_at)
        failures.became_ready()
        failures.died_early("x", now, forked_at=now)

    assert failures.try_at == pytest.approx(now + 0.4)
    failures.became_ready()
    assert failures.try_at == pytest.approx(now + 0.4)
    failures.proved()
    failures.became_ready()
    assert failures.try_at <= now


def test_crash_loop_is_this_many_in_a_row() -> None:
    """CRASH_LOOP failures in a row are one, whether before or right after ready."""
    boots, early = Failures(), Failures()
    for number in range(CRASH_LOOP):
        assert not boots.is_crash_loop, number
        assert not early.is_crash_loop, number
        now = NOW + 2 * number
        boots.boot_failed("x", now, forked_at=now, own_fault=True)
        early.became_ready()
        early.died_early("x", now, forked_at=now)

    assert boots.is_crash_loop
    assert early.is_crash_loop


def test_repeated_report_is_logged_now_and_then() -> None:
    """The same report counts as news once in REPORT_INTERVAL, and another one at once."""
    failures = Failures()
    assert not failures.was_reported("x", NOW)
    now = fail_boots(failures, 1)
    assert failures.was_reported("x", now + REPORT_INTERVAL / 2)
    assert not failures.was_reported("y", now + REPORT_INTERVAL / 2)
    assert not failures.was_reported("x", now + 2 * REPORT_INTERVAL)
    assert failures.was_reported("x", now + 2 * REPORT_INTERVAL + 1)


def test_row_of_failed_boots() -> None:
    """From CRASH_LOOP failed boots on, the tries are a row, whose repeated lines the log leaves out."""
    failures = Failures()
    now = fail_boots(failures, CRASH_LOOP - 1)
    assert not failures.is_row
    fail_boots(failures, 1, now)
    assert failures.is_row


def test_replacements_are_bounded_by_their_rate() -> None:
    """The size of the pool and EXTRA_RESPAWNS may be replaced at once, and then as many in each second, evenly."""
    failures, most = Failures(), 4 + EXTRA_RESPAWNS
    assert failures.respawns_left(4, NOW) == most
    failures.respawned(most)
    assert failures.respawns_left(4, NOW) == 0
    assert failures.respawns_left(4, NOW + 1.01 / most) == 1
    assert failures.respawns_left(4, NOW + 0.5) == most // 2
    failures.respawned(most // 2)
    assert failures.respawns_left(4, NOW + 0.75) == most // 4
    assert failures.respawns_left(4, NOW + 10) == most


@pytest.mark.parametrize(
    ("cause", "crash"),
    [
        (ExitCause(ExitKind.EXITED, 1), True),
        (ExitCause(ExitKind.EXITED, None), True),
        (ExitCause(ExitKind.EXITED, 0), False),
        (ExitCause(ExitKind.KILLED, 11), True),
        (ExitCause(ExitKind.KILLED, 9), False),
        (ExitCause(ExitKind.KILLED, 15), False),
        (ExitCause(ExitKind.OOM_KILLED), False),
        (ExitCause(ExitKind.REQUEST_TIMEOUT), False),
    ],
)
def test_kill_from_outside_is_no_crash(cause: ExitCause, *, crash: bool) -> None:
    """Segfaults and bad exit codes are the worker's own; KILL and TERM, and what the master did, are not."""
    assert is_crash(cause) is crash
