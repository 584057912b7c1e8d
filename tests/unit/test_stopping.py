"""The control signals while no master takes them: noted, obeyed as an exception, or waited with."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from prefork.host import stopping
from prefork.host.stopping import (
    CONTROL_SIGNALS,
    STOPS,
    StoppedEarly,
    Unattended,
    stops_deferred,
    stops_unwind,
    undisturbed_cleanup,
)
from prefork.master.signals import TABLE
from prefork.workers import forks, system

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def unattended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unattended]:
    """Give a fresh object, and leave every disposition and the mask as they were."""
    before = {number: signal.getsignal(number) for number in CONTROL_SIGNALS}
    for number in CONTROL_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Unattended()
    monkeypatch.setattr(stopping, "unattended", made)
    monkeypatch.setattr("atexit.register", lambda _: None)
    yield made
    forks.remove(next(one for one in forks._entries if one.let_go == made._put_back_in_child))
    for number, handler in before.items():
        signal.signal(number, handler)
    system.unblock(CONTROL_SIGNALS)


def dispositions() -> dict[int, Any]:
    """Return the dispositions of all control signals."""
    return {number: signal.getsignal(number) for number in CONTROL_SIGNALS}


def in_child() -> bool:
    """Return whether a forked child has the dispositions of a Python that has just started."""
    pid = os.fork()
    if pid == 0:
        expected = dict.fromkeys(CONTROL_SIGNALS, signal.SIG_DFL)
        expected[signal.SIGINT] = signal.default_int_handler  # type: ignore[assignment]
        os._exit(dispositions() != expected)
    return os.waitpid(pid, 0)[1] == 0


def test_control_signals_are_those_of_the_table() -> None:
    """Every signal that the master handles is handled at the edges, too, but for those that the kernel ignores."""
    assert TABLE.keys() - {signal.SIGWINCH, signal.SIGURG} == CONTROL_SIGNALS


@pytest.mark.parametrize("number", sorted(CONTROL_SIGNALS))
def test_signal_is_noted(unattended: Unattended, number: signal.Signals) -> None:
    """While no master serves, a control signal neither ends nor stops the process, and is noted once."""
    unattended.stand(to_the_end=True)
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert unattended.take() == [number]
    assert unattended.take() == []


def test_signal_that_was_blocked_arrives(unattended: Unattended) -> None:
    """What came while prefork imported itself is noted as soon as handlers stand."""
    stopping.block()
    for number in CONTROL_SIGNALS:
        signal.raise_signal(number)
    unattended.stand(to_the_end=True)
    assert set(unattended.take()) == CONTROL_SIGNALS


def test_ignored_signal_stays_ignored(unattended: Unattended) -> None:
    """HUP under nohup stays ignored through all phases, and so does an ignored TERM or INT."""
    for number in CONTROL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    unattended.stand(to_the_end=True)
    with stops_unwind(), undisturbed_cleanup(), stops_deferred():
        for number in CONTROL_SIGNALS:
            signal.raise_signal(number)
    unattended.end(0)
    assert dispositions() == dict.fromkeys(CONTROL_SIGNALS, signal.SIG_IGN)
    assert unattended.take() == []


@pytest.mark.parametrize("number", STOPS)
def test_stop_leaves_the_body(number: signal.Signals) -> None:
    """TERM, INT and QUIT leave what is loaded, and leave no note behind."""
    kind = KeyboardInterrupt if number is signal.SIGINT else StoppedEarly
    with pytest.raises(kind), stops_unwind():
        signal.raise_signal(number)
    assert stopping.unattended.take() == []


def test_stop_that_came_before_leaves_at_once(unattended: Unattended) -> None:
    """A TERM that was noted before the body is obeyed at its beginning; a HUP stays noted."""
    unattended.note(signal.SIGHUP)
    unattended.note(signal.SIGTERM)
    with pytest.raises(StoppedEarly), stops_unwind():
        pytest.fail("the body ran")


def test_stop_that_the_program_swallows_is_noted(unattended: Unattended) -> None:
    """A program that catches everything does not make TERM be lost."""
    with stops_unwind():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        assert unattended.take() == [signal.SIGTERM]


def test_stop_is_deferred() -> None:
    """A constructor is not interrupted, and the stop is obeyed behind it."""
    done = []

    def construct() -> None:
        signal.raise_signal(signal.SIGTERM)
        done.append(True)

    with pytest.raises(StoppedEarly), stops_unwind(), stops_deferred():
        construct()
    assert done


def test_second_stop_is_not_deferred() -> None:
    """A second stop interrupts a constructor that hangs."""
    done = []

    def construct() -> None:
        signal.raise_signal(signal.SIGTERM)
        done.append(1)
        signal.raise_signal(signal.SIGINT)
        done.append(2)

    with pytest.raises(KeyboardInterrupt), stops_unwind(), stops_deferred():
        construct()
    assert done == [1]


def test_cleanup_is_not_interrupted(unattended: Unattended) -> None:
    """No stop interrupts the removal of files, and the dispositions are as before afterwards."""
    before = dispositions()
    removed = []
    with undisturbed_cleanup() as cleanup:
        for number in STOPS:
            cleanup.callback(removed.append, number)
            cleanup.callback(signal.raise_signal, number)
    assert removed == list(reversed(STOPS))
    assert set(unattended.take()) == set(STOPS)
    assert dispositions() == before


@pytest.mark.processes
def test_child_has_what_was_before(unattended: Unattended) -> None:
    """A child that the application forks while it is loaded has the dispositions of a fresh process."""
    unattended.stand(to_the_end=True)
    with stops_unwind():
        assert in_child()
    unattended.end(0)
    assert in_child()


@pytest.mark.processes
def test_stop_at_the_end_ends_the_process(unattended: Unattended) -> None:
    """When the work is done, TERM ends the process with the status that it would have anyway."""
    for number in STOPS:
        pid = os.fork()
        if pid == 0:
            unattended.end(4)
            signal.raise_signal(number)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4


def test_handlers_for_the_time_after_an_exec_are_put_back(unattended: Unattended) -> None:
    """Behind a master, a program has the dispositions again with which its new image has begun."""
    before = dispositions()
    unattended.stand(to_the_end=False)
    ours = dispositions()
    assert {n: unattended.after_serving(n, ours[n]) for n in CONTROL_SIGNALS} == before
    unattended.stand(to_the_end=True)
    assert {n: unattended.after_serving(n, ours[n]) for n in CONTROL_SIGNALS} == ours
