"""Leaving workers that are busy are told to end idle connections: when, how often, and who is spared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefork.workers.identity import HANG_UP_NUMBER
from prefork.workers.pool.hang_ups import FIRST_HANG_UP, HANG_UP_INTERVAL
from prefork.workers.slot_writer import REQUEST_NS
from prefork.workers.states import ExitCause, ExitKind
from tests.support.staged import StagedPool, pen

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def staged() -> Iterator[StagedPool]:
    """Give a pool of three workers that were asked to leave, except for the last; the first one is idle."""
    one = StagedPool(3)
    one.ready(3)
    for slot in (1, 2):
        with pen(one.pool, slot) as writer:
            writer.words[REQUEST_NS] = 77
    for slot in (0, 1):
        one.handle(slot).ask_to_leave(ExitCause(ExitKind.RETIRED), one.now + 25)
    yield one
    one.close()


def look(staged: StagedPool, seconds: float) -> list[list[int]]:
    """Let time go by, and return what each worker has been sent meanwhile."""
    staged.now += seconds
    staged.pool.views(staged.now)
    staged.pool.hang_ups.look(staged.now)
    return [staged.received(slot) for slot in range(3)]


def test_busy_worker_that_is_to_leave_is_told_again_and_again(staged: StagedPool) -> None:
    """The first signal comes after a moment, and more follow; idle workers and those that stay get none."""
    assert look(staged, 0.0) == [[], [], []]
    assert look(staged, FIRST_HANG_UP / 2) == [[], [], []]
    assert look(staged, FIRST_HANG_UP) == [[], [HANG_UP_NUMBER], []]
    assert look(staged, HANG_UP_INTERVAL / 2) == [[], [], []]
    assert look(staged, HANG_UP_INTERVAL) == [[], [HANG_UP_NUMBER], []]


def test_worker_that_is_being_killed_is_left_alone(staged: StagedPool) -> None:
    """No signal follows the kill."""
    look(staged, 0.0)
    staged.handle(1).note_kill(None)
    assert look(staged, 10.0) == [[], [], []]
