"""What one worker takes with it through its fork (made by the master, used by the worker)."""

from __future__ import annotations

import contextlib
import functools
import os

from prefork.workers.identity import WAKE, WorkerPipes
from prefork.workers.listener import Kind
from prefork.workers.parking import ResumeQueue
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.spec import PoolLink, WorkerSpec
from prefork.workers.waits import sample_every
from prefork.workers.worker.access import access_log_for
from prefork.workers.worker.accounting import Account, account_for, busy_call
from prefork.workers.worker.admission import Admission
from prefork.workers.worker.choice import lanes_for
from prefork.workers.worker.client_check import ClientCheck
from prefork.workers.worker.lanes import Common, Lane
from prefork.workers.worker.parking import IN_A_ROW_NS, Parking
from prefork.workers.worker.polled import PolledSource
from prefork.workers.worker.recycling import OnlyRequest
from prefork.workers.worker.source import Source
from prefork.workers.worker.turn import Turn


class PreparedWorker:
    """One worker before its fork: its place in the pool, its pipes, its writer and its lanes.

    A worker could make the writer and the lanes itself. But each page of memory that a worker
    writes to is copied for it, and code that runs for the first time writes to many: making the
    sources would cost each worker 150 KiB, and their lanes 70. In the master the cost is paid once.
    """

    def __init__(
        self, spec: WorkerSpec, link: PoolLink, slot: int, generation: int, pipes: WorkerPipes
    ) -> None:
        self.spec = spec
        self.link = link
        self.slot = slot
        self.generation = generation
        self.pipes = pipes
        self.writer = SlotWriter(link.board, slot)
        # Not a method: the account keeps it, and a circle would keep the scoreboard in the master.
        self.call_master = functools.partial(_call_master, spec.wake)
        turn = Turn()
        self.common = Common(
            self.writer, self._make_account(turn), turn, self._client_check(), self._admission()
        )
        self.lanes: list[Lane] = []
        # Where a server's own code raises, the worker will meet the same error and report it.
        with contextlib.suppress(Exception):
            self.lanes = self.make_lanes()

    def make_lanes(self) -> list[Lane]:
        """Return the ways in which the worker serves, one lane for each listener and link."""
        spec, settings = self.spec, self.spec.settings
        make = functools.partial(
            Source,
            writer=self.writer,
            client_timeout=settings.client_timeout,
            sample_every=sample_every(settings),
        )
        sources: list[Source] = []
        for listener in spec.listeners:
            link = spec.links.get(listener.fd)
            if listener.kind is Kind.POLLED:
                sources.append(PolledSource(listener, self.writer, interval=spec.poll_interval))
                continue
            if link is None:
                sources.append(make(listener))
                continue
            parking = Parking(
                listener,
                link,
                linger=settings.linger,
                in_a_row_ns=_in_a_row_ns(settings),
                phase=self.link.board.pool_word(PoolField.PHASE),
                writer=self.writer,
            )
            sources.append(make(listener, parking=parking, park_new=settings.park_new))
            sources.append(make(ResumeQueue(listener, link), parking=parking))
        return lanes_for(sources, self.common)

    def _client_check(self) -> ClientCheck | None:
        word = self.spec.settings.check_client
        return None if word == "off" else ClientCheck(when_closed=word == "closed")

    def _admission(self) -> Admission | None:
        wait, workers = self.spec.settings.max_queue_wait, self.spec.settings.max_per_client
        if wait is None and workers is None:
            return None
        most_wait = None if wait is None else int(wait * 1e9)
        return Admission(self.writer, self.link.board, most_wait=most_wait, most_workers=workers)

    def _make_account(self, turn: Turn) -> Account | None:
        settings = self.spec.settings
        became_busy = busy_call(settings, self.link.board, self.call_master)
        if settings.max_requests == 1:
            became_busy = OnlyRequest(self.writer, turn, self.call_master).begin
        return account_for(
            [listener.server for listener in self.spec.listeners],
            self.writer,
            became_busy,
            access_log_for(settings, self.slot, self.generation, self.writer),
            parks=bool(self.spec.links),
        )


def _in_a_row_ns(settings: Settings) -> int:
    """Return for how long one handler object serves the requests of a connection; 0 for one request."""
    each_for_itself = settings.max_requests is not None or settings.restore_process
    return 0 if each_for_itself else IN_A_ROW_NS


def _call_master(wake: int) -> None:
    """Wake the master, to look at the scoreboard (worker)."""
    # The write fails when the master has ended, or has a full pipe of reasons to look.
    with contextlib.suppress(OSError):
        os.write(wake, WAKE)
