"""Choosing a running pool: which one is meant, and what the error says where none is."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from prefork.inspect import find
from prefork.inspect.find import SeveralPoolsError
from prefork.inspect.running_pool import NoPoolError, RunningPool
from prefork.inspect.survey import Survey
from prefork.workers import proof, system
from prefork.workers.scoreboard import Scoreboard
from tests.support.boards import HERE, memfd, scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def survey() -> Iterator[Callable[..., Survey]]:
    """``survey(_4711="shop", …)`` returns a survey that has found these pools."""
    with contextlib.ExitStack() as stack:

        def make(forbidden: tuple[int, ...] = (), **names: str | None) -> Survey:
            pools = []
            for pid, name in names.items():
                board = stack.enter_context(scoreboard(name=name))
                attached = Scoreboard.attach(os.dup(board.fd))
                pool = RunningPool(
                    int(pid[1:]),
                    board.fd,
                    system.hold_process(HERE),
                    attached,
                    proof.create(board.fd),
                )
                pools.append(stack.enter_context(pool))
            return Survey(pools, list(forbidden), [])

        yield make


def chosen(survey: Survey, which: str | None, name: str | None) -> RunningPool:
    """Choose from pools that were found as ``find_pool()`` does."""
    return find._chosen(survey, find._wanted(which, name))


def test_lone_pool_needs_no_name(survey: Callable[..., Survey]) -> None:
    """A lone pool is chosen without a name, and a name or pid that is not its own is refused."""
    alone = survey(_4711="shop")
    assert chosen(alone, None, None).pid == 4711
    assert chosen(alone, "shop", None).pid == 4711
    assert chosen(alone, None, "shop").pid == 4711
    assert chosen(alone, "4711", None).pid == 4711
    with pytest.raises(
        NoPoolError, match=r"no running pool is called shoe; these are running:\n +4711  shop"
    ):
        chosen(alone, "shoe", None)


def test_several_pools_have_to_be_told_apart(survey: Callable[..., Survey]) -> None:
    """Several pools are listed with pid, name and listeners; a pid, a name or both choose one."""
    several = survey(_4711="shop", _4712="shop", _4713=None, _4714="4711")
    with pytest.raises(SeveralPoolsError) as refused:
        chosen(several, None, None)
    assert str(refused.value).splitlines() == [
        "several pools are running; name one of them by its pid or name:",
        "     4711  shop             tcp://127.0.0.1:9000",
        "     4712  shop             tcp://127.0.0.1:9000",
        "     4713  -                tcp://127.0.0.1:9000",
        "     4714  4711             tcp://127.0.0.1:9000",
    ]
    with pytest.raises(SeveralPoolsError):
        chosen(several, "shop", None)
    assert chosen(several, "4711", None).pid == 4711
    assert chosen(several, None, "4711").pid == 4714
    assert chosen(several, "4712", "shop").pid == 4712


def test_name_of_ones_own_pool_is_ones_own(
    survey: Callable[..., Survey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of another user with the same name is not in the way; its pid still chooses it."""
    monkeypatch.setattr(find, "is_of_another_user", lambda pid: pid == 4711)
    both = survey(_4711="shop", _4712="shop")
    assert chosen(both, "shop", None).pid == 4712
    assert chosen(both, None, "shop").pid == 4712
    assert chosen(both, "4711", None).pid == 4711
    assert chosen(survey(_4711="shop"), "shop", None).pid == 4711


def test_no_pool_at_all(survey: Callable[..., Survey]) -> None:
    """Where no pool runs, the error is one line."""
    with pytest.raises(NoPoolError) as refused:
        chosen(survey(), None, None)
    assert str(refused.value) == "no pool is running"


@pytest.mark.parametrize(
    ("pid", "reason"),
    [
        (2**22 + 1, "there is no process 4194305"),
        (HERE, f"process {HERE} is not the master of a pool"),
    ],
    ids=["absent", "no-master"],
)
def test_process_that_is_no_master(survey: Callable[..., Survey], pid: int, reason: str) -> None:
    """The error says what the process with this pid is instead of a master."""
    with pytest.raises(NoPoolError) as refused:
        chosen(survey(), str(pid), None)
    assert str(refused.value) == reason


def test_child_of_a_master_names_its_master(survey: Callable[..., Survey]) -> None:
    """The error for a worker's pid names the pid of its master."""
    parent = os.getppid()
    with pytest.raises(
        NoPoolError, match=f"{HERE} is not a master but belongs to a pool; its master is {parent}$"
    ):
        chosen(survey(**{f"_{parent}": "shop"}), str(HERE), None)


def test_masters_of_others_are_told(
    survey: Callable[..., Survey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a master of another user names the user and the escaped title."""
    monkeypatch.setattr(find, "title_of", lambda _pid: b"prefork: master [\x1bshop] tcp://:80")
    with pytest.raises(NoPoolError) as refused:
        chosen(survey(forbidden=(1,)), None, None)
    assert "this user may not look at process 1 (" in str(refused.value)
    assert "(prefork: master [\\x1bshop] tcp://:80), which belongs to root" in str(refused.value)


def test_nothing_is_held_after_a_look() -> None:
    """The descriptors of all pools except the chosen one are closed."""
    with scoreboard(name="one"), scoreboard(name="two"), memfd(b"rubbish"):
        before = len(os.listdir("/proc/self/fd"))
        with find.find_pool("two") as pool:
            # The process, the memory, what mmap keeps of it, and the proof.
            assert len(os.listdir("/proc/self/fd")) == before + 4
            assert pool.name == "two"
        with pytest.raises(SeveralPoolsError):
            find.find_pool(str(HERE))
        assert len(os.listdir("/proc/self/fd")) == before
