"""What one worker takes with it through its fork (made by the master, used by the worker)."""

from __future__ import annotations

import contextlib

from prefork.workers.identity import WorkerPipes
from prefork.workers.scoreboard import SlotWriter
from prefork.workers.spec import WorkerSpec
from prefork.workers.waits import sample_every
from prefork.workers.worker.source import Source


class PreparedWorker:
    """The writer, the pipes and the sources of one worker, made by the master just before the fork.

    A worker could make all of them itself. But each page of memory that a worker writes to is
    copied for it, and code that runs for the first time writes to many: making the sources alone
    would cost each worker 150 KiB. In the master the cost is paid once.
    """

    def __init__(self, spec: WorkerSpec, slot: int, pipes: WorkerPipes) -> None:
        self.slot = slot
        self.pipes = pipes
        self.writer = SlotWriter(spec.board, slot)
        self.sources: list[Source] = []
        # Where a server's own code raises, the worker will meet the same error and report it.
        with contextlib.suppress(Exception):
            self.sources = sources_of(spec, self.writer)


def sources_of(spec: WorkerSpec, writer: SlotWriter) -> list[Source]:
    """Return where a worker's requests come from."""
    return [
        Source(
            listener,
            writer,
            client_timeout=spec.settings.client_timeout,
            sample_every=sample_every(spec.settings),
        )
        for listener in spec.listeners
    ]
