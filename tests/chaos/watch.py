"""What is looked at all the time: the children of the master, its metrics, and whether anybody is answered."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tests.chaos.invariants import (
    CONNECTED_IN,
    SILENT_FOR,
    Breach,
    ChildrenJudge,
    Invariant,
    Promise,
    ScrapeJudge,
    total,
)
from tests.chaos.observe import Repeating, sample, scrape
from tests.chaos.verdict import Drop, Excuse, unexcused

if TYPE_CHECKING:
    from tests.chaos.clients import Book
    from tests.chaos.pool import Pool
    from tests.chaos.verdict import Findings, Ledger


class Watch:
    """Samples a pool in threads of its own, from ``start()`` to ``stop()``, and has the samples judged."""

    def __init__(self, pool: Pool, book: Book, ledger: Ledger, findings: Findings) -> None:
        self.over = threading.Event()
        """Set when the master is gone though nobody has ended it."""
        self.is_asking = threading.Event()
        """Set while the clients ask."""
        self._pool = pool
        self._book = book
        self._ledger = ledger
        self._findings = findings
        self._children = ChildrenJudge(pool.plan.max_children)
        self._scrapes = ScrapeJudge(time.monotonic())
        self._floor = 0
        self._drops, self._counted_at = 0, time.monotonic()
        self._threads = [
            Repeating("children", 0.008, self._look_at_children),
            Repeating("metrics", 0.3, self._look_at_metrics),
            Repeating("clients", 0.3, self._look_at_clients),
        ]

    def start(self) -> None:
        """Begin to look."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End it; whatever has gone wrong in the threads is raised here."""
        for thread in self._threads:
            thread.stop()

    def _unexcused(self, since: float, now: float, promise: Promise) -> float:
        return unexcused(since, now, promise, self._ledger.recent_excuses(since))

    def _look_at_children(self) -> None:
        seen = sample(self._pool.pid)
        self._findings.check(
            self._children.take(seen, self._floor, self._unexcused),
            *(Invariant.I1, Invariant.I2, Invariant.I6, Invariant.I7),
        )
        if seen.is_over and not self.over.is_set():
            # One breach; what follows from it is not worth a line for each client.
            end = Excuse("the master is gone", frozenset(Promise), seen.at - 2, seen.at + 3600)
            self._ledger.excuses.append(end)
            self.over.set()

    def _look_at_metrics(self) -> None:
        wall = time.time()
        try:
            values = scrape(self._pool)
        except (OSError, ValueError):
            found = self._scrapes.take_none(time.monotonic(), self._unexcused)
            self._findings.check(found, Invariant.I9)
            return
        self._floor = int(total(values, "prefork_workers_min"))
        self._note_drops(int(total(values, "prefork_socket_receive_drops_total")))
        away_at = self._children.away_at
        self._findings.check(
            self._scrapes.take(time.monotonic(), wall, values, away_at, self._unexcused),
            *(Invariant.I8, Invariant.I9, Invariant.I12, Invariant.I14),
        )

    def _note_drops(self, drops: int) -> None:
        now = time.monotonic()
        if drops > self._drops:
            self._ledger.drops.append(Drop(self._counted_at, now, drops - self._drops))
        self._drops, self._counted_at = drops, now

    def _look_at_clients(self) -> None:
        now, found = time.monotonic(), []
        is_away = self._children.away_at > now - 0.1
        if self._children.workers == 0 and (
            is_away or not self._unexcused(now - 0.1, now, Promise.SIZE)
        ):
            # Nobody can answer: all workers are dead, and a fault or an exec keeps the master from forking.
            self._book.answered_at = now
        elif self.is_asking.is_set():
            silent = self._unexcused(self._book.answered_at, now, Promise.ANSWER)
            if silent > SILENT_FOR:
                self._book.answered_at = now
                found += [Breach(Invariant.I5, now, f"nobody was answered for {silent:.1f} s")]
        slowest = self._book.take_slowest_connect()
        if slowest > CONNECTED_IN:
            found += [Breach(Invariant.I3, now, f"a connection took {slowest:.2f} s")]
        self._findings.check(found, Invariant.I3, Invariant.I5)
