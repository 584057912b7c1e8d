"""The descriptors of a pool, and which process closes which of them after a fork.

A fork copies every descriptor of the master into the child, and a copy keeps alive what is behind
it. So each child closes at once what is not meant for it:

                              worker of    worker of      metrics    child that the
                              this pool    another pool   process    program forks
        forks.close((self.proof, self._life_write))
    life pipe, write end      closes       closes         closes     closes
    life pipe, read end       keeps        closes         keeps      keeps
    scoreboard                keeps        closes         keeps      keeps
    master's own wake-up pipe closes       closes         closes     closes
    workers' wake-up pipe     write end    closes         closes     write end
    pipes of a worker         its own      closes         closes     keeps

Two of these rows are more than tidiness. The life pipe tells workers that the master has ended: the
master writes nothing to it, and its read end is at its end once no process holds the write end. A
child that kept the write end would hide the master's death. And a worker that kept the pipes of a
sibling could wake that sibling and read its report.

There are two steps. The first three rows are closed in every child of this process, from the list in
workers/forks.py, also where the program forks for itself. The rest is closed by the worker as one
of the first steps of its life, because only the worker knows its slot: what belongs to siblings by
``shed()`` (see PoolLink), what belongs to other pools by ``forks.let_go_of_others()``. A child that
the program forks for itself keeps the rest until it ends. The pidfds themselves are let go of by
workers/system.py, which opens them. All descriptors are closed on exec.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
from collections.abc import Collection, Iterable

from prefork.workers import forks, proof, reports
from prefork.workers.identity import WorkerPipes
from prefork.workers.pool.table import PoolState
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.system import Child


class Descriptors:
    """What one pool has open: scoreboard, proof, life pipe, an epoll over pidfds, pipes for each worker.

    wake: where workers wake the master. previous: descriptors of an earlier image of the master to
    go on with.
    """

    def __init__(
        self,
        slots: int,
        wake: int,
        previous: PoolState | None = None,
    ) -> None:
        self._wake = wake
        self.pipes: dict[int, WorkerPipes] = {}
        """By slot, also those of workers that are about to be forked."""
        with forks.lock:
            if previous is None:
                self.board = Scoreboard.create(slots)
                self.proof = proof.create(self.board.fd)
                self.life_read, self._life_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            else:
                self.board = Scoreboard.adopt(
                    previous.board, previous.slots, previous.layout, previous.counters
                )
                self.proof = previous.proof
                self.life_read, self._life_write = previous.life
            self.exits = select.epoll()
            """Readable when a worker has ended."""
            for handle in () if previous is None else previous.workers:
                self.pipes[handle.slot] = handle.pipes
                self.watch(handle.child)
            self._on_list = forks.add(self._close_masters, in_others=self._close_workers)

    @property
    def life(self) -> tuple[int, int]:
        """Both ends of the life pipe."""
        return self.life_read, self._life_write

    # --- in the master

    def open_pipes(self, slots: Iterable[int]) -> None:
        """Make the pipes of workers that are to be forked; OSError without free descriptors."""
        with forks.lock:
            for slot in slots:
                self.pipes[slot] = self._make_pipes(slot)

    def _make_pipes(self, slot: int) -> WorkerPipes:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # One byte is enough, and the kernel bounds what all pipes of a user could hold.
            fcntl.fcntl(wake_write, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE)
            report = reports.create(reports.name_of(self.board.fd, slot))
        except OSError:
            os.close(wake_read)
            os.close(wake_write)
            raise
        return WorkerPipes(wake_read, wake_write, report)

    def close_pipes(self, slot: int) -> None:
        """Close the pipes of a worker that has ended, or that could not be forked."""
        with forks.lock:
            if (pipes := self.pipes.pop(slot, None)) is not None:
                pipes.close()

    def watch(self, child: Child) -> None:
        """Have ``exits`` be readable when this worker has ended."""
        self.exits.register(child.pidfd, select.EPOLLIN)

    def ended(self) -> set[int]:
        """Return the pidfds of the workers that have ended and were not forgotten yet."""
        return {fd for fd, _ in self.exits.poll(0)}

    def forget(self, child: Child) -> None:
        """Watch a worker no longer that was collected, before its pidfd is closed."""
        self.exits.unregister(child.pidfd)

    def close(self) -> None:
        """Close everything; no worker is left by now."""
        with forks.lock:
            forks.remove(self._on_list)
            self.exits.close()
            for fd in (self.proof, *self.life):
                os.close(fd)
            self.board.close()

    # --- in a child

    def _close_masters(self) -> None:
        """Close what only the master may have (any child of the master's process)."""
        self.exits.close()
        forks.close((self.proof, self._life_write))

    def shed(self, slot: int) -> None:
        """Close what is for other workers of this pool (worker in this slot)."""
        for other_slot, pipes in self.pipes.items():
            if other_slot != slot:
                pipes.close()
        forks.remove(self._on_list)  # from what belongs to other pools

    def _close_workers(self, _servers: Collection[object]) -> None:
        """Close what is for the workers of this pool (worker of another one)."""
        forks.close((self.life_read, self._wake))
        for pipes in self.pipes.values():
            pipes.close()
        self.board.close()
