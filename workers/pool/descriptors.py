"""The descriptors of a pool, and which process closes which of them after a fork.

A fork copies every descriptor of the master into the child, and a copy keeps alive what is behind it.
So each child closes at once what is not meant for it:

                              worker of    worker of      metrics    child that the
                              this pool    another pool   process    program forks
    pidfds and their epoll    closes       closes         closes     closes
    life pipe, write end      closes       closes         closes     closes
    private ones of master    closes       closes         (its own)  closes
    life pipe, read end       keeps        closes         keeps      keeps
    scoreboard                keeps        closes         keeps      keeps
    master's wake-up pipe     keeps        closes         closes     keeps
    pipes of a worker         its own      closes         closes     keeps

Two of these rows are more than tidiness. The life pipe tells workers that the master has ended: the
master writes nothing to it, and its read end is at its end once no process holds the write end. A
child that kept the write end would hide the master's death. And a worker that kept the pipes of a
sibling could wake that sibling and read its report.

There are two steps. The first three rows are closed in every child of this process, from
``os.register_at_fork``, also where the program forks for itself. The rest is closed by the worker as
one of the first steps of its life (PoolLink.shed), because only the worker knows its slot. A child
that the program forks for itself keeps the rest until it ends. All descriptors are closed on exec.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import threading
from collections.abc import Callable, Iterable

from prefork.workers import reports
from prefork.workers.identity import WorkerPipes
from prefork.workers.pool.table import PoolState
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.system import Child

_pools_here: list[Descriptors] = []
"""Those of every running pool of this process, so that a child closes all of them."""

changing_pools = threading.RLock()
"""Held while a pool is made or a worker is forked: a worker must not be forked from half a pool."""


def _close_masters_in_child() -> None:
    global changing_pools  # noqa: PLW0603 - held, perhaps by a thread that does not exist here
    changing_pools = threading.RLock()
    for descriptors in _pools_here:
        descriptors.close_masters()


os.register_at_fork(after_in_child=_close_masters_in_child)


class Descriptors:
    """What one pool has open: scoreboard, life pipe, an epoll over its workers' pidfds, a set of pipes for each.

    wake: where workers wake the master. private_fds: returns what else of the master no child may
    have; called in the child. previous: descriptors of an earlier image of the master to go on with.
    """

    def __init__(
        self,
        slots: int,
        wake: int,
        private_fds: Callable[[], list[int]],
        previous: PoolState | None = None,
    ) -> None:
        if previous is None:
            self.board = Scoreboard.create(slots)
            self.life_read, self._life_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        else:
            self.board = Scoreboard.attach(previous.board, writable=True)
            self.life_read, self._life_write = previous.life
        self.pipes: dict[int, WorkerPipes] = {}
        """By slot, also those of workers that are about to be forked."""
        self.exits = select.epoll()
        """Readable when a worker has ended."""
        self._pidfds: set[int] = set()
        self._wake = wake
        self._private_fds = private_fds
        self._masters_closed = False
        for handle in () if previous is None else previous.workers:
            self.pipes[handle.slot] = handle.pipes
            self.watch(handle.child)

    def register(self) -> None:
        """Have children of this process close these from now on (master, the pool is whole)."""
        _pools_here.append(self)

    @property
    def life(self) -> tuple[int, int]:
        """Both ends of the life pipe."""
        return self.life_read, self._life_write

    # --- in the master

    def open_pipes(self, slots: Iterable[int]) -> None:
        """Make the pipes of workers that are about to be forked; OSError where descriptors have run out."""
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
        if (pipes := self.pipes.pop(slot, None)) is not None:
            pipes.close()

    def watch(self, child: Child) -> None:
        """Have ``exits`` be readable when this worker has ended."""
        self._pidfds.add(child.pidfd)
        self.exits.register(child.pidfd, select.EPOLLIN)

    def ended(self) -> set[int]:
        """Return the pidfds of the workers that have ended and were not forgotten yet."""
        return {fd for fd, _ in self.exits.poll(0)}

    def forget(self, child: Child) -> None:
        """Close the pidfd of a worker that was collected."""
        self._pidfds.remove(child.pidfd)
        self.exits.unregister(child.pidfd)
        os.close(child.pidfd)

    def close(self) -> None:
        """Close everything; no worker is left by now."""
        with changing_pools:
            _pools_here.remove(self)
            self.exits.close()
            for fd in self.life:
                os.close(fd)
            self.board.close()

    # --- in a child

    def close_masters(self) -> None:
        """Close what only the master may have (any child of the master's process)."""
        if self._masters_closed:
            return  # a child's child: by now the numbers may be those of other files
        self._masters_closed = True
        self.exits.close()
        for fd in [*self._pidfds, self._life_write, *self._private_fds()]:
            with contextlib.suppress(OSError):
                os.close(fd)

    def shed(self, slot: int) -> None:
        """Close what is for other workers of this pool, and for workers of other pools (worker in this slot)."""
        for other_slot, pipes in self.pipes.items():
            if other_slot != slot:
                pipes.close()
        for descriptors in _pools_here:
            if descriptors is not self:
                descriptors._close_workers()  # noqa: SLF001 - of this class
        _pools_here.clear()

    def _close_workers(self) -> None:
        for fd in (self.life_read, self._wake):
            os.close(fd)
        for pipes in self.pipes.values():
            pipes.close()
        self.board.close()
