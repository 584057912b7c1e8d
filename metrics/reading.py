"""One reading of a pool, out of which a scrape is made: its parts, and the sums of its words (pure).

``collector.py`` makes the reading, and ``families.py`` says what is shown of it.

A worker can write anything into its words of the scoreboard, so they are clipped at 0 (families.py
says why).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from prefork.metrics.demand import Counts
from prefork.metrics.description import PoolDescription
from prefork.metrics.kernel import Queue
from prefork.metrics.processes import Facts
from prefork.workers.scoreboard import (
    BUCKETS,
    CANCELLED_FIELDS,
    MOST_IN_PROGRESS,
    SlotField,
    SlotSnapshot,
    Snapshot,
)
from prefork.workers.states import Rejection


class Columns:
    """The words of all slots, clipped, by field: a column has one word of each slot.

    A pool of a thousand slots has 64,000 words, most of which are in no metric. A column is clipped
    when it is read, and mostly has no negative word, which one call finds out.
    """

    def __init__(self, slots: Sequence[SlotSnapshot]) -> None:
        self._columns = [*zip(*(one.words for one in slots), strict=True)]

    def __getitem__(self, field: int) -> tuple[int, ...]:
        """Return one word of every slot, 0 where it is negative."""
        column = self._columns[field]
        return column if min(column) >= 0 else tuple(max(0, word) for word in column)

    def histogram(self, field: SlotField) -> list[tuple[int, ...]]:
        """Return the buckets of DURATIONS or QUEUE_WAITS: a column for each bucket."""
        return [self[field + bucket] for bucket in range(BUCKETS)]

    def finished(self) -> list[int]:
        """Return how many requests each slot has finished, whatever their outcome."""
        return [*map(sum, zip(*self.histogram(SlotField.DURATIONS), strict=True))]

    def good(self) -> int:
        """Return how many requests of all slots went well."""
        others = (
            *(SlotField.ERRORS, SlotField.REJECTED, SlotField.CLIENT_TIMEOUTS),
            *CANCELLED_FIELDS,
        )
        rows = zip(self.finished(), *(self[field] for field in others), strict=True)
        return sum(max(0, finished - sum(not_good)) for finished, *not_good in rows)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All that one scrape shows, read at nearly one moment.

    words: of the snapshot's slots. queues: by the inode of the listener. facts: of the processes,
    by slot. good: requests that went well. to_unix_ns: what to add to CLOCK_MONOTONIC for Unix
    time. now: Unix time of the scrape. needed: workers that the load needs (metrics/demand.py).
    """

    snapshot: Snapshot
    words: Columns
    description: PoolDescription
    queues: Mapping[int, Queue]
    facts: Mapping[int, Facts]
    good: int
    to_unix_ns: int
    now: float = 0.0
    needed: float = 0.0

    def unix(self, monotonic_ns: int) -> float:
        """Return an instant as Unix time."""
        return max(0, monotonic_ns + self.to_unix_ns) / 1e9


def all_requests(words: Columns) -> list[int]:
    """Return how many requests of each slot are over, also those that ended with their worker."""
    lost = words[SlotField.TIMEOUTS], words[SlotField.ABORTED]
    return [*map(sum, zip(words.finished(), *lost, strict=True))]


_SHED = SlotField.REJECTIONS + tuple(Rejection).index(Rejection.QUEUE_WAIT)


def counts_of(words: Columns, now_ns: int, queued: int) -> Counts:
    """Return what the load is judged by. now_ns: CLOCK_MONOTONIC. queued: in all accept queues.

    A worker with threads counts its requests in IN_PROGRESS, and writes only the beginning of the oldest one.
    The times of its other requests are in BUSY_NS when they have ended.
    """
    in_hand = [
        (since, max(1, min(count, MOST_IN_PROGRESS)))
        for since, count in zip(
            words[SlotField.REQUEST_NS], words[SlotField.IN_PROGRESS], strict=True
        )
        if since > 0
    ]
    in_hand_ns = sum(max(0, now_ns - since) for since, _ in in_hand)
    return Counts(
        at=now_ns / 1e9,
        taken=sum(all_requests(words)) + sum(count for _, count in in_hand),
        shed=sum(words[_SHED]),
        busy=(sum(words[SlotField.BUSY_NS]) + in_hand_ns) / 1e9,
        queued=queued,
    )
