"""Reading a pool for a scrape: the scoreboard, the kernel's queues and the workers' processes.

What the reading shows is decided in ``metrics/families.py``, by pure functions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector

from prefork.metrics.demand import Demand
from prefork.metrics.description import PoolDescription
from prefork.metrics.families import families, family_of, memory_families
from prefork.metrics.kernel import queues
from prefork.metrics.names import METRICS
from prefork.metrics.processes import Processes, memory
from prefork.metrics.reading import Columns, Reading, counts_of
from prefork.workers.scoreboard import PoolField, Scoreboard, Snapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family


class PoolCollector(Collector):
    """Reads the scoreboard, the kernel's queues and the workers' processes anew for each scrape.

    A counter must never fall, so the collector remembers the highest values of those that could.
    There is one collector for the life of the metrics process, and it makes one scrape at a time.
    """

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._processes = Processes(board)
        self._good = 0
        self._demand = Demand()
        # The first scrape compares with this moment. A metrics process that follows another one would
        # otherwise say what the whole life of the pool has needed.
        snapshot = board.snapshot()
        self._needed_by(snapshot, Columns(snapshot.slots), 0)
        self._to_unix_ns = 0
        self._master = ProcessCollector(pid=lambda: board.pool(PoolField.MASTER_PID), registry=None)
        self._platform = PlatformCollector(registry=None)

    def describe(self) -> list[Family]:
        """Return nothing. Without this method a registry would collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield every family that is in each scrape, in the order of the table."""
        yield from families(self._read())
        yield from _from_the_client(self._of_the_master())

    def _read(self) -> Reading:
        snapshot = self._board.snapshot()
        description = PoolDescription.from_text(self._board.description.read())
        words = Columns(snapshot.slots)
        # A worker counts a request in the histogram first and as an error then: for a moment in
        # between the request looks like one that went well.
        self._good = max(self._good, words.good())
        found = queues(description.listeners)
        queued = sum(queue.depth or 0 for queue in found.values())
        return Reading(
            snapshot=snapshot,
            words=words,
            description=description,
            queues=found,
            facts=self._processes.facts(snapshot),
            good=self._good,
            to_unix_ns=self._unix_offset(),
            now=time.time(),
            needed=self._needed_by(snapshot, words, queued),
        )

    def _needed_by(self, snapshot: Snapshot, words: Columns, queued: int) -> float:
        counts = counts_of(words, time.monotonic_ns(), queued)
        return self._demand.update(counts, snapshot[PoolField.STARTED_NS] / 1e9)

    def _unix_offset(self) -> int:
        # Kept until the clock is set. Measured anew for each scrape, it would make every instant
        # differ by some microseconds from scrape to scrape.
        offset = time.time_ns() - time.monotonic_ns()
        if abs(offset - self._to_unix_ns) > 1_000_000_000:
            self._to_unix_ns = offset
        return self._to_unix_ns

    def _of_the_master(self) -> list[Family]:
        try:
            of_the_master = [*self._master.collect()]
        except (LookupError, ValueError, NameError):
            of_the_master = []  # /proc has only half of the fields of a process that is ending
        return [*of_the_master, *self._platform.collect()]


class MemoryCollector(Collector):
    """Reads the families that cost too much to be in every scrape: those with ``Metric.opt_in``."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board

    def describe(self) -> list[Family]:
        """Return nothing, as ``PoolCollector`` does."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield the families that a scrape has to ask for by name."""
        yield from memory_families(memory(self._board.snapshot()))


def _from_the_client(given: Iterable[Family]) -> Iterator[Family]:
    """Yield prometheus_client's own families with the help and the unit of the table."""
    for sample in itertools.chain.from_iterable(family.samples for family in given):
        metric = METRICS.get(sample.name)
        if metric is not None and sample.labels.keys() == set(metric.labels):
            labels = (sample.labels[label] for label in metric.labels)
            yield family_of(metric, [(*labels, sample.value)])
