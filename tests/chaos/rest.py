"""A rest: nothing is done to the pool and nothing is asked of it, until everything is as it was in the beginning."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from typing import TYPE_CHECKING, Final

from tests.chaos.clients import DatagramClient, Question, ask_stream
from tests.chaos.invariants import Baseline, Breach, Invariant, Rest, judge_rest, total
from tests.chaos.observe import scrape, status
from tests.chaos.pool import DATAGRAMS, STREAMS
from tests.chaos.verdict import Outcome
from tests.support.processes import cpu_seconds, fds_of, private_bytes, zombies_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.clients import Book
    from tests.chaos.invariants import Values
    from tests.chaos.observe import Journal
    from tests.chaos.pool import Pool
    from tests.chaos.verdict import Findings

ANSWERS_IN: Final = 10.0
"""Seconds in which new code answers on every listener, when nothing else is done."""

_JUDGED: Final = (
    *(Invariant.I5, Invariant.I6, Invariant.I8, Invariant.I9),
    *(Invariant.I10, Invariant.I11, Invariant.I13),
)


class Rests:
    """Looks at a pool at rest. The first look, before any fault, is the baseline of the others."""

    def __init__(self, pool: Pool, book: Book, journal: Journal, findings: Findings) -> None:
        self._pool = pool
        self._book = book
        self._journal = journal
        self._findings = findings
        pool.await_fact("the pool is ready", lambda: self._is_at_rest(scrape(pool)))
        self._baseline = self._calibrated()

    def _calibrated(self) -> Baseline:
        """Learn what the master holds, and what it holds for one worker more."""
        pool = self._pool
        workers, fds = len(pool.workers()), len(fds_of(pool.pid))
        pool.signal(signal.SIGTTIN)
        pool.await_fact("one worker more", lambda: len(pool.workers()) == workers + 1)
        self._settled()
        per_worker = len(fds_of(pool.pid)) - fds
        pool.signal(signal.SIGTTOU)
        return Baseline(workers, fds, per_worker, private_bytes(pool.pid))

    def look(self) -> None:
        """Wait until the pool is at rest and look at everything. Then nothing may hinder a reload of good code."""
        try:
            self._restore_floor()
            self._settled()
        except TimeoutError as error:
            self._findings.check([Breach(Invariant.I5, time.monotonic(), str(error))])
        else:
            self._findings.check(judge_rest(self._looked(), self._baseline), *_JUDGED)
        self._findings.check(self._reload(), Invariant.I14)
        self._journal.forget()

    def _settled(self) -> Values:
        self._pool.await_fact("the pool is at rest", lambda: self._is_at_rest(scrape(self._pool)))
        return scrape(self._pool)

    def _is_at_rest(self, values: Values) -> bool:
        idle, *others = (
            total(values, "prefork_workers", f'state="{state}"')
            for state in ("idle", "starting", "busy", "retiring")
        )
        busy = total(values, "prefork_requests_in_progress")
        return idle >= self._pool.plan.workers and not any(others) and not busy

    def _restore_floor(self) -> None:
        """Undo what storms of TTIN and TTOU have done, one signal at a time."""

        def is_restored() -> bool:
            more = self._pool.plan.workers - total(scrape(self._pool), "prefork_workers_min")
            if more:
                self._pool.signal(signal.SIGTTIN if more > 0 else signal.SIGTTOU)
            return not more

        self._pool.await_fact("the floor is restored", is_restored, pause=0.6)

    def _looked(self) -> Rest:
        lone = {listener: self._lone(listener)[0] for listener in (*STREAMS, *DATAGRAMS)}
        values = self._settled()  # after the last request
        told = status(self._pool)
        self._journal.read()
        processes = [self._pool.pid, *self._pool.workers()]
        used, begun = sum(map(cpu_seconds, processes)), time.monotonic()
        time.sleep(0.5)
        share = (sum(map(cpu_seconds, processes)) - used) / (time.monotonic() - begun)
        return Rest(
            at=time.monotonic(),
            workers=len(self._pool.workers()),
            zombies=len(zombies_of(self._pool.pid)),
            values=values,
            taken=self._journal.taken,
            fds=len(fds_of(self._pool.pid)),
            private=private_bytes(self._pool.pid),
            share=share,
            lone=lone,
            status=told,
        )

    def _lone(self, listener: str) -> tuple[float, int]:
        """Make one request; return the seconds it took, infinite if it failed, and the version of the code."""
        asked = Question(random.getrandbits(63), "quick", b"lone")
        address = self._pool.addresses[listener]
        if listener in STREAMS:
            reply = ask_stream(address, asked)
        else:
            own = self._pool.folder / "lone" if isinstance(address, str) else None
            with contextlib.closing(DatagramClient(address, self._journal, own)) as client:
                reply = client.ask(asked)
            if own is not None:
                own.unlink()
        self._book.note(listener, asked, reply)
        is_good = reply.outcome is Outcome.ANSWERED
        return (reply.ended - reply.began if is_good else float("inf")), reply.version

    def _reload(self) -> Iterator[Breach]:
        """Reload good code. Soon it is to answer everybody."""
        self._pool.write_good_code()
        wanted = self._pool.version
        self._pool.signal(signal.SIGHUP)

        def is_everywhere() -> bool:
            is_at_rest = self._is_at_rest(scrape(self._pool))
            listeners = (*STREAMS, *DATAGRAMS) * 2
            return is_at_rest and all(self._lone(one)[1] == wanted for one in listeners)

        try:
            self._pool.await_fact("new code answers on every listener", is_everywhere, ANSWERS_IN)
        except TimeoutError as error:
            yield Breach(Invariant.I14, time.monotonic(), str(error))
