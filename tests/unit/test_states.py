"""The words for what happens to a worker: judged from facts, shown the same everywhere."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.states import (
    ExitCause,
    ExitKind,
    ExitStatus,
    Phase,
    cause_of_exit,
    signal_name,
)

RETIRED = ExitCause(ExitKind.RETIRED)
SCALED_DOWN = ExitCause(ExitKind.SCALED_DOWN)
BOOT_TIMEOUT = ExitCause(ExitKind.BOOT_TIMEOUT)

CLEAN = ExitStatus(code=0)
FAILED = ExitStatus(code=3)
SIGKILLED = ExitStatus(signal=signal.SIGKILL)
UNKNOWN = ExitStatus()


def killed(number: int) -> ExitCause:
    """Give the cause of a worker that a signal ended."""
    return ExitCause(ExitKind.KILLED, number)


def exited(status: int | None) -> ExitCause:
    """Give the cause of a ready worker that ended without being asked."""
    return ExitCause(ExitKind.EXITED, status)


def boot_error(status: int | None) -> ExitCause:
    """Give the cause of a worker that ended before it was ready."""
    return ExitCause(ExitKind.BOOT_ERROR, status)


@pytest.mark.parametrize(
    ("cause", "status", "asked", "killed_for", "was_ready"),
    [
        # The master killed it: its reason holds, however the worker got away.
        (BOOT_TIMEOUT, SIGKILLED, None, BOOT_TIMEOUT, False),
        (RETIRED, SIGKILLED, RETIRED, RETIRED, True),
        (SCALED_DOWN, CLEAN, SCALED_DOWN, SCALED_DOWN, True),
        (BOOT_TIMEOUT, UNKNOWN, None, BOOT_TIMEOUT, True),
        (BOOT_TIMEOUT, FAILED, None, BOOT_TIMEOUT, False),
        # Somebody else's signal is the cause, also of a worker that was asked to leave.
        (killed(9), SIGKILLED, None, None, True),
        (killed(9), SIGKILLED, RETIRED, None, True),
        (killed(11), ExitStatus(signal=signal.SIGSEGV), None, None, False),
        # Asked, and it left.
        (RETIRED, CLEAN, RETIRED, None, True),
        (SCALED_DOWN, CLEAN, SCALED_DOWN, None, True),
        (RETIRED, CLEAN, RETIRED, None, False),
        # Asked, but it failed on the way.
        (exited(3), FAILED, RETIRED, None, True),
        (boot_error(3), FAILED, RETIRED, None, False),
        # Nobody asked.
        (exited(0), CLEAN, None, None, True),
        (exited(3), FAILED, None, None, True),
        (boot_error(3), FAILED, None, None, False),
        (boot_error(0), CLEAN, None, None, False),
        # Somebody else collected the status.
        (exited(None), UNKNOWN, None, None, True),
        (boot_error(None), UNKNOWN, None, None, False),
    ],
)
def test_cause_of_exit(
    cause: ExitCause,
    status: ExitStatus,
    asked: ExitCause | None,
    killed_for: ExitCause | None,
    was_ready: bool,
) -> None:
    """What the master wanted comes first, the wait status second, and readiness tells boot errors."""
    assert cause == cause_of_exit(status, asked=asked, killed_for=killed_for, was_ready=was_ready)


@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        ("retired", RETIRED),
        ("scaled_down", SCALED_DOWN),
        ("boot_timeout", BOOT_TIMEOUT),
        ("boot_error", boot_error(3)),
        ("boot_error", boot_error(None)),
        ("orphaned", ExitCause(ExitKind.ORPHANED)),
        ("exited(0)", exited(0)),
        ("exited(3)", exited(3)),
        ("exited(unknown)", exited(None)),
        ("killed(SIGKILL)", killed(9)),
        ("killed(SIGSEGV)", killed(signal.SIGSEGV)),
        ("killed(signal 35)", killed(35)),
        ("killed", ExitCause(ExitKind.KILLED)),
    ],
)
def test_causes_are_shown_in_the_words_of_the_log(shown: str, cause: ExitCause) -> None:
    """A cause reads the same in log, hook and command line, with the number where that says more."""
    assert shown == str(cause)


@given(
    st.sampled_from(ExitKind),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_any_cause_can_be_shown(kind: ExitKind, status: int | None) -> None:
    """Whatever number a cause bears, it is one word of the table, with at most one number or name behind it."""
    shown = str(ExitCause(kind, status))

    assert re.fullmatch(rf"{kind}(\((SIG[A-Z0-9]+|signal -?\d+|-?\d+|unknown)\))?", shown)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN + 3])
def test_real_deaths_are_judged(number: int) -> None:
    """What the kernel says of a child that a signal ended becomes killed with that signal."""
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(number)
        kernel_says = ExitStatus(signal=-child.wait())
    judged = cause_of_exit(kernel_says, asked=None, killed_for=None, was_ready=True)

    assert judged == killed(number)


def test_phases_are_in_the_order_of_their_coming() -> None:
    """Comparing phases means earlier and later: a pool only moves on."""
    assert list(Phase) == sorted(Phase)
    assert Phase.SERVING < Phase.NOT_READY < Phase.DRAINING < Phase.LEAVING < Phase.STOPPING_NOW


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40"), (0, "signal 0")])
def test_signals_are_named(number: int, name: str) -> None:
    """A signal is shown by its name, and by its number where it has none."""
    assert signal_name(number) == name
