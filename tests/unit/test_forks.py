"""The list of what a fork lets go of: who calls what, in which child, and how often."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from prefork.workers import forks
from tests.support.processes import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.processes


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """Give a list that children fill in their own memory, and take off the list what the test adds."""
    before = list(forks._entries)
    yield []
    forks._entries[:] = before


_at_fork: list[Callable[[], None]] = []
os.register_at_fork(before=lambda: [run() for run in _at_fork])


@pytest.fixture
def at_fork() -> Iterator[list[Callable[[], None]]]:
    """Give a list of what a fork of this process runs before anything else of its own."""
    yield _at_fork
    _at_fork.clear()


def test_children_let_go_once(calls: list[str]) -> None:
    """A child calls each function, its own child only those that are for every fork."""
    forks.add(lambda: calls.append("once"))
    forks.add(lambda: calls.append("always"), every_time=True)

    assert in_child(lambda: calls) == "['once', 'always']"
    assert in_child(lambda: in_child(lambda: calls)) == "['once', 'always', 'always']"
    assert calls == []


def test_removed_thing_is_kept(calls: list[str]) -> None:
    """What was taken off the list is no business of the next child; taking it off twice is harmless."""
    entry = forks.add(lambda: calls.append("gone"))
    forks.remove(entry)
    forks.remove(entry)

    assert in_child(lambda: calls) == "[]"


def test_failure_of_one_does_not_keep_the_others(calls: list[str]) -> None:
    """A descriptor that is closed already keeps no other from being let go of."""

    def fail() -> None:
        raise OSError

    forks.add(fail)
    forks.add(lambda: calls.append("next"))

    assert in_child(lambda: calls) == "['next']"


def test_worker_lets_go_of_what_is_others(calls: list[str]) -> None:
    """A worker lets go of all that belongs to other pools and servers, told which servers are its own."""
    mine = forks.add(lambda: None, in_others=lambda _: calls.append("mine"))
    forks.add(lambda: None, in_others=lambda servers: calls.append(f"of others, not {servers}"))
    forks.add(lambda: calls.append("no more"))

    def work() -> object:
        calls.clear()
        forks.remove(mine)
        forks.let_go_of_others(["a"])
        return calls, in_child(lambda: calls)

    assert in_child(work) == """(["of others, not ['a']"], '["of others, not [\\'a\\']"]')"""


def test_child_sees_no_half_change(calls: list[str], at_fork: list[Callable[[], None]]) -> None:
    """A fork waits for a thread that changes the list, and the child's copy of the lock is free."""
    holding, forking = threading.Event(), threading.Event()

    def change() -> None:
        with forks.lock:
            holding.set()
            forking.wait()
            forks.add(lambda: calls.append("whole"))

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    holding.wait()
    # From here on the other thread may go on; it gets the interpreter only if the fork waits for it.
    at_fork.append(forking.set)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        said = in_child(lambda: (calls, forks.lock.acquire(blocking=False)))
    finally:
        sys.setswitchinterval(interval)
    thread.join()

    assert said == "(['whole'], True)"


def test_lock_is_free_in_the_child_of_a_thread(calls: list[str]) -> None:
    """Whichever thread forks, the lock can be taken in the child and in its children."""

    def look() -> object:
        taken = forks.lock.acquire(blocking=False)
        forks.lock.release()
        return taken, in_child(lambda: forks.lock.acquire(blocking=False))

    said: list[object] = []
    thread = threading.Thread(target=lambda: said.append(in_child(look)))
    thread.start()
    thread.join()

    assert said == ["(True, 'True')"]


def test_thing_that_fails_keeps_no_other(calls: list[str]) -> None:
    """Whatever a child cannot let go of, it lets go of all the rest."""

    def fail() -> None:
        raise RuntimeError("on purpose")

    forks._entries.clear()  # the fixture puts back what others have added
    forks.add(fail)
    forks.add(lambda: calls.append("after it"))
    forks.lock.acquire()  # as before a fork
    with pytest.raises(RuntimeError, match="on purpose"):
        forks._let_go_in_child()
    assert calls == ["after it"]
