"""What names a worker, and what the master and one worker have in common (both)."""

from __future__ import annotations

import os
import signal

import msgspec

DUMP_AT_ONCE = int(signal.SIGRTMIN) + 1
"""Asks for a stack dump that needs no bytecode to run: for a worker that has not answered USR1."""

WAKE = b"\0"
"""What a worker writes into the master's wake-up pipe when the scoreboard has news, and the master into a worker's.

Never a signal number.
"""

SHUTDOWN = b"\xff"
"""What a worker writes there when its handler called ``shutdown()``."""


class WorkerInfo(msgspec.Struct, frozen=True):
    """Which worker: its numbered place, the generation of the code it runs, its process."""

    slot: int
    generation: int
    pid: int

    def __str__(self) -> str:
        return f"worker slot={self.slot} gen={self.generation} pid={self.pid}"


class WorkerPipes(msgspec.Struct, frozen=True):
    """What the master and one worker have in common, made before the fork.

    wake_read: a pipe that the master rings when the worker is to look around: at its order, or for a
    client that nobody took. It reaches a worker whatever that has done to its signals. Not an
    eventfd, whose one description both would have: a worker could fill it and set it blocking, and
    its master would wait in it for ever. wake_write: the end that rings, the master's alone. report:
    memory for its stack dumps and last words, with one position for both: the master sets where
    the next dump goes, also while the worker is stuck.
    """

    wake_read: int
    wake_write: int
    report: int

    @property
    def fds(self) -> tuple[int, int, int]:
        """All descriptors."""
        return self.wake_read, self.wake_write, self.report

    def close(self) -> None:
        """Close all (master, or a worker that they are not for)."""
        for fd in self.fds:
            os.close(fd)
