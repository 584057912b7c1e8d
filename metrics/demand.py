"""How many workers the load needs: what an autoscaler of machines should follow (pure).

By Little's law the mean number of requests in hand is the rate at which they arrive times the mean time
that one takes. That many workers would have to be busy all the time. Requests do not arrive evenly, so the
number is divided by the share of the time for which a worker should be busy:

    needed = arrivals per second x mean service time / TARGET

**Why not the share of busy workers, or CPU time.** Both are at most 100 % when there are too few workers. An
autoscaler that follows them adds the same few machines whether the load is twice or ten times the capacity
of the pool. Arrivals have no such limit. CPU time is also low while workers wait for a slow database, although
the pool then needs more workers and not fewer.

**What counts as an arrival.** Arrivals are the requests that workers have taken, and the growth of the accept
queues, which is the part of an overload that no worker shows. A request that was shed because it had waited
too long has arrived, too. It has taken no time, so the mean service time is that of the others.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

TARGET: Final = 0.7
"""The share of its time for which a worker should be busy."""

SPAN: Final = 60.0
"""Seconds that the numbers are averaged over. Scrapes that are further apart make it longer."""

APART: Final = 5.0
"""Seconds between two readings that are kept, at least: several scrapers may ask at once."""


class Counts(msgspec.Struct, frozen=True):
    """One reading of a pool.

    at: seconds, on any clock. taken: requests that workers have taken so far. shed: those among them
    that were refused because they had waited too long. busy: seconds that requests were in hand, those
    that are in hand now included. queued: connections in the accept queues now.
    """

    at: float
    taken: int = 0
    shed: int = 0
    busy: float = 0.0
    queued: int = 0


def workers_needed(first: Counts, last: Counts, target: float = TARGET) -> float:
    """Return how many workers the load between two readings needs; never negative.

    It is never more than one worker for each request that was in hand, waiting or shed, divided by ``target``.
    """
    length = last.at - first.at
    if length <= 0:
        return 0.0
    in_hand = max(0.0, last.busy - first.busy) / length
    shed = max(0, last.shed - first.shed)
    most = in_hand + max(0, last.queued) + shed
    arrived = max(0, last.taken - first.taken + last.queued - first.queued)
    served = last.taken - first.taken - shed
    if served <= 0:  # requests that last longer than the time that was looked at
        return most / target
    # Arrivals per second times seconds of work for each request that was served.
    return min(most, (arrived / length) * (in_hand * length / served)) / target


class Demand:
    """Compares each reading with one that is about SPAN old. One scrape at a time uses it."""

    def __init__(self) -> None:
        self._kept: deque[Counts] = deque()

    def update(self, counts: Counts, started: float) -> float:
        """Keep a reading, and return how many workers the load needs.

        started: when the pool started, on the same clock. For a pool that is younger than SPAN the span is
        its whole life. The same holds where no reading of the right age was kept, as in a new metrics
        process.
        """
        kept = self._kept
        while len(kept) > 1 and counts.at - kept[1].at >= SPAN:
            kept.popleft()
        first = kept[0] if kept else Counts(started)
        if not kept or counts.at - kept[-1].at >= APART:
            kept.append(counts)
        if counts.at - started <= SPAN:
            first = Counts(started)
        return workers_needed(first, counts)
