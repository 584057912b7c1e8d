"""Scoreboards to scrape, filled by hand, and the samples of what a scrape shows."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from prefork.metrics.description import ListenerDescription, PoolDescription
from prefork.metrics.kernel import Queue
from prefork.metrics.processes import Facts
from prefork.metrics.reading import Columns, Reading
from prefork.workers.scoreboard import BUCKETS, PoolField, Scoreboard, SlotField
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.states import StartReason, WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric as Family


SLOTS = 3
NOTHING_SAID = PoolDescription()

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextlib.contextmanager
def scoreboard(slots: int = SLOTS) -> Iterator[Scoreboard]:
    """Make a scoreboard and give it back."""
    board = Scoreboard.create(slots)
    try:
        yield board
    finally:
        board.close()


@contextlib.contextmanager
def pen(board: Scoreboard, slot: int) -> Iterator[SlotWriter]:
    """Give a worker's pen; its view must go before the map is closed."""
    writer = SlotWriter(board, slot)
    view = writer.words
    try:
        yield writer
    finally:
        view.release()


def reading(
    board: Scoreboard,
    description: PoolDescription = NOTHING_SAID,
    queues: Mapping[int, Queue] | None = None,
    facts: Mapping[int, Facts] | None = None,
    to_unix_ns: int = 0,
) -> Reading:
    """Read a scoreboard without asking the system for anything."""
    snapshot = board.snapshot()
    words = Columns(snapshot.slots)
    return Reading(
        snapshot=snapshot,
        words=words,
        description=description,
        queues=queues or {},
        facts=facts or {},
        good=words.good(),
        to_unix_ns=to_unix_ns,
    )


def samples(found: Iterable[Family]) -> Samples:
    """Return all samples by name and labels; none is there twice."""
    listed = [
        ((one.name, frozenset(one.labels.items())), one.value)
        for family in found
        for one in family.samples
    ]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def value(found: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return found[name, frozenset(labels.items())]


def registry(*collectors: Any) -> CollectorRegistry:
    """Register collectors as the metrics process does."""
    made = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    for one in collectors:
        made.register(one)
    return made


def spawn(board: Scoreboard, slot: int, pid: int = 1) -> None:
    """Put a worker into a slot, idle."""
    board.prepare_slot(slot, 0, 0)
    board.occupy_slot(slot, pid, StartReason.STARTED)
    board.words[board.slot_at(slot) + SlotField.STATE] = WorkerState.IDLE


def busy_pool(board: Scoreboard) -> None:
    """Fill a scoreboard as a busy pool would."""
    board.set_pool(PoolField.MASTER_PID, os.getpid())
    board.set_pool(PoolField.TICK_NS, time.monotonic_ns())
    listener = ListenerDescription('unix:/a "\\b', "stream", "unix", 1)
    description = PoolDescription(version="1", python="3", listeners=(listener,))
    board.description.write(description.to_text())
    for slot in range(board.slots):
        spawn(board, slot, 2**40 + slot)
        with pen(board, slot) as writer:
            for bucket in range(BUCKETS):
                writer.words[SlotField.DURATIONS + bucket] = 1000 * slot + bucket
                writer.words[SlotField.QUEUE_WAITS + bucket] = 10 * slot + bucket
            writer.words[SlotField.BUSY_NS] = 123_456_789 * slot
