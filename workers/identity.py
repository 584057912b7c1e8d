"""What names a worker, and what the master and one worker say to each other with (both)."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import msgspec

from prefork.workers.states import Order

DUMP_AT_ONCE = int(signal.SIGRTMIN) + 1
"""The signal for a stack dump that needs no bytecode; workers/pool/dumps.py says when."""

CANCEL_NUMBER = int(signal.SIGRTMIN) + 2
"""The signal that has a worker read which request it is asked to end; workers/worker/cancelling.py says how."""

HANG_UP_NUMBER = int(signal.SIGRTMIN) + 4
"""The signal that has a leaving worker end connections on which nothing is asked (workers/worker/hang_up.py)."""

WAKE = b"\0"
"""The byte in a wake-up pipe that has the other side look around.

It is no signal's number, because the master's own pipe has those, too, and it is no order: a worker's
pipe has the numbers of those.
"""

SHUTDOWN = b"\xff"
"""The byte that a worker writes to the master when its handler has called ``shutdown()``."""


class WorkerInfo(msgspec.Struct, frozen=True):
    """Names a worker.

    slot: the number of its place in the pool, from 0 to ``max_children - 1``; the next worker in that place
    has the same number. generation: of its code, which each reload raises by one. pid: of its process.
    """

    slot: int
    generation: int
    pid: int

    def __str__(self) -> str:
        return f"worker slot={self.slot} gen={self.generation} pid={self.pid}"


class WorkerPipes(msgspec.Struct, frozen=True):
    """The descriptors that the master and one worker share, made before the fork.

    wake_read, wake_write: a pipe that the master writes to when it has an order for the worker, or
    for a client that no worker has taken. Only the master keeps the write end, and no other worker
    has the read end. So what comes through the pipe is the master's word. A byte in a pipe
    reaches a worker whatever the worker has done to its signals. An eventfd would not do: it has
    one open file description for both sides, so a worker could fill it and set it blocking, and the
    master would wait in it for ever.
    report: memory for the worker's stack dumps and last words (workers/reports.py). Both sides
    share one file position, so the master decides where the next dump begins, also while the worker
    is stuck.
    """

    wake_read: int
    wake_write: int
    report: int

    @property
    def fds(self) -> tuple[int, int, int]:
        """All descriptors."""
        return self.wake_read, self.wake_write, self.report

    def wake(self) -> None:
        """Have the worker look at its order and its listeners (master)."""
        # A full pipe wakes it as well. After any other error the worker looks by itself, later.
        with contextlib.suppress(OSError):
            os.write(self.wake_write, WAKE)

    def order(self, order: Order) -> None:
        """Give the worker an order: the byte with its number (master)."""
        # There is room: a worker that leaves a wake-up unread gets no second one.
        with contextlib.suppress(OSError):
            os.write(self.wake_write, bytes((order,)))

    @property
    def is_unread(self) -> bool:
        """Whether the worker has not read its last wake-up yet (master)."""
        poll = select.poll()
        poll.register(self.wake_read, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close all (master, or a worker that they are not for)."""
        for fd in self.fds:
            os.close(fd)
