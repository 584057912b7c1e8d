"""What a program sees of its worker: more time for the request in hand, and who the worker is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from prefork.workers.identity import WorkerInfo
from prefork.workers.scoreboard import Scoreboard, SlotField, SlotSnapshot
from prefork.workers.settings import LONGEST
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.worker.side import ThisWorker
from prefork.workers.worker.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = 86_400.0


class Slot:
    """A slot, the writer of its worker, and the worker's turn."""

    def __init__(self) -> None:
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        self.turn = Turn()

    @property
    def seen(self) -> SlotSnapshot:
        """Read the slot."""
        return self.board.snapshot().slots[0]


@pytest.fixture
def slot() -> Iterator[Slot]:
    """Give a slot."""
    made = Slot()
    yield made
    made.writer.detach()
    made.board.close()


def worker_of(slot: Slot) -> ThisWorker:
    """Give the worker of the slot, as a handler sees it."""
    return ThisWorker(0, 2, os.getpid(), slot.writer, slot.turn)


def test_extension_holds_for_the_request_in_hand(slot: Slot) -> None:
    """Extensions of one request add up, those of the next one begin anew."""
    worker = worker_of(slot)
    slot.writer.words[SlotField.REQUEST_NS] = 111
    worker.extend_deadline(1.5)
    worker.extend_deadline(0)
    worker.extend_deadline(2)
    assert slot.seen[SlotField.EXTENDED_FOR_NS] == 111
    assert slot.seen[SlotField.EXTENSION_NS] == 3_500_000_000
    slot.writer.words[SlotField.REQUEST_NS] = 222
    worker.extend_deadline(0.25)
    assert slot.seen[SlotField.EXTENDED_FOR_NS] == 222
    assert slot.seen[SlotField.EXTENSION_NS] == 250_000_000


def test_extension_ends_the_round(slot: Slot) -> None:
    """Datagrams of one round share a REQUEST_NS: the next one is of another round, or it would get the time, too."""
    slot.turn.until = slot.turn.round_until = 10**18
    slot.writer.words[SlotField.REQUEST_NS] = 111
    worker_of(slot).extend_deadline(5)
    assert (slot.turn.until, slot.turn.round_until) == (10**18, 0)


def test_extension_without_a_request_is_nothing(slot: Slot) -> None:
    """Between two requests there is no deadline to extend."""
    worker_of(slot).extend_deadline(5)
    assert slot.seen[SlotField.EXTENSION_NS] == slot.seen[SlotField.EXTENDED_FOR_NS] == 0


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf"), -5, 7 * DAY + 1])
def test_absurd_extension_is_refused(slot: Slot, seconds: float) -> None:
    """Less than nothing, no number and more than a week are mistakes, and change nothing."""
    slot.writer.words[SlotField.REQUEST_NS] = 111
    with pytest.raises(ValueError, match="cannot extend a deadline by"):
        worker_of(slot).extend_deadline(seconds)
    assert slot.seen[SlotField.EXTENDED_FOR_NS] == 0


def test_sum_of_extensions_is_bounded(slot: Slot) -> None:
    """However often a handler asks, a request gets a week at the most, and asking never fails."""
    slot.writer.words[SlotField.REQUEST_NS] = 111
    for _ in range(3):
        worker_of(slot).extend_deadline(6 * DAY)
    assert slot.seen[SlotField.EXTENSION_NS] == LONGEST * 10**9


def test_this_worker_is_a_worker(slot: Slot) -> None:
    """What a handler sees has the names of every other worker, and reads the same."""
    worker = worker_of(slot)
    info = WorkerInfo(0, 2, os.getpid())
    assert isinstance(worker, WorkerInfo)
    assert str(worker) == str(info) == f"worker slot=0 gen=2 pid={os.getpid()}"
    assert (worker.slot, worker.generation, worker.pid) == (0, 2, os.getpid())
