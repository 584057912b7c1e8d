"""What went wrong with new workers: how long to wait, and when it is a crash loop."""

from __future__ import annotations

import pytest

from prefork.workers.pool.failures import (
    BOOT_BACKOFF_CAP,
    CRASH_LOOP,
    FORK_BACKOFF_CAP,
    Failures,
    is_crash,
)
from prefork.workers.states import ExitCause, ExitKind

NOW = 100.0


def test_boot_failures_back_off_up_to_half_a_minute() -> None:
    """Deaths before ready wait 0.1, 0.2, 0.4 … 30 s; the first ready ends that at once."""
    failures, waits = Failures(), []
    for _ in range(12):
        failures.boot_failed("x", NOW, own_fault=True)
        waits.append(round(failures.retry_at - NOW, 3))

    assert waits[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert waits[-1] == BOOT_BACKOFF_CAP
    assert failures.probing
    failures.became_ready()
    assert not failures.probing
    failures.boot_failed("x", NOW + 100, own_fault=True)
    assert failures.retry_at == pytest.approx(NOW + 100.1)


def test_fork_failures_are_tried_again_every_second() -> None:
    """The back-off of forks ends at a second; a fork that works ends it."""
    failures = Failures()
    for _ in range(10):
        failures.fork_failed(NOW)

    assert failures.retry_at == NOW + FORK_BACKOFF_CAP
    failures.forked()
    assert not failures.probing


def test_early_deaths_back_off_though_workers_become_ready() -> None:
    """A worker that crashes right after ready waits longer each time, until one outlives its first second."""
    failures = Failures()
    for _ in range(3):
        failures.became_ready()
        failures.died_early("x", NOW)

    assert failures.retry_at == pytest.approx(NOW + 0.4)
    failures.proved()
    assert not failures.probing


def test_crash_loop_is_so_many_in_a_row() -> None:
    """CRASH_LOOP failures in a row are one, whether before or right after ready."""
    boots, early = Failures(), Failures()
    for number in range(CRASH_LOOP):
        assert not boots.is_crash_loop, number
        assert not early.is_crash_loop, number
        boots.boot_failed("x", NOW, own_fault=True)
        early.became_ready()
        early.died_early("x", NOW)

    assert boots.is_crash_loop
    assert early.is_crash_loop


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
def test_somebodys_kill_is_no_crash(cause: ExitCause, *, crash: bool) -> None:
    """Segfaults and bad exit codes are the worker's own; KILL and TERM, and what the master did, are not."""
    assert is_crash(cause) is crash
