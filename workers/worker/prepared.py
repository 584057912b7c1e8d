"""What one worker takes with it through its fork (made by the master, used by the worker)."""

from __future__ import annotations

import contextlib

from prefork.workers.identity import WorkerPipes
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.spec import PoolLink, WorkerSpec
from prefork.workers.waits import sample_every
from prefork.workers.worker.source import Source


class PreparedWorker:
    """One worker before its fork: its place in the pool, its pipes, its writer and its sources.

    A worker could make the writer and the sources itself. But each page of memory that a worker
    writes to is copied for it, and code that runs for the first time writes to many: making the
    sources would cost each worker 150 KiB. In the master the cost is paid once.
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
        self.sources: list[Source] = []
        # Where a server's own code raises, the worker will meet the same error and report it.
        with contextlib.suppress(Exception):
            self.sources = self.make_sources()

    def make_sources(self) -> list[Source]:
        """Return where the worker's requests come from, one source for each listener."""
        settings = self.spec.settings
        return [
            Source(
                listener,
                self.writer,
                client_timeout=settings.client_timeout,
                sample_every=sample_every(settings),
            )
            for listener in self.spec.listeners
        ]
